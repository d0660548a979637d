"""Opens entries: one `zarr.json` read by hand and one memory map an array. Needs NumPy only.

Opening checks the manifest, shapes, dtypes and file sizes; content is checked by `bin/cache verify`.
"""

import json
import math
import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cache.layout import FORMAT, SHARD_ROWS, array_spec, body_name, body_path, group_metadata, shards
from cache.maps import map_array
from cache.schema import entry_fault
from cache.seal import unsealed
from configs.errors import UserError

_KNOWN = 4096  # manifests stay in memory, each some 7 kB …
_LARGE = 2**20  # … that have fewer bytes: those of entries, but for datasets of many symbols


class StoreError(UserError):
    """Something that should be in the store is missing or damaged."""


@dataclass(frozen=True)
class Entry:
    """One immutable directory of the store."""

    path: Path
    manifest: dict[str, Any]

    @property
    def key(self) -> str:
        """The entry's MD5."""
        return str(self.manifest["key"])

    @property
    def bytes(self) -> int:
        """Size of all array files."""
        return sum(int(array["bytes"]) for array in self.manifest["arrays"].values())

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of an array."""
        return tuple(self.manifest["arrays"][name]["shape"])

    def array(self, name: str) -> NDArray[Any]:
        """The whole array as a private (copy-on-write) memory map; nothing is read until it is touched."""
        described = self.manifest["arrays"][name]
        shape = tuple(described["shape"])
        files = [body_path(self.path, name, len(shape), shard.number) for shard in shards(shape[0])]
        return map_array(files, described["dtype"], shape)

    def rows(self, name: str, start: int, stop: int) -> NDArray[Any]:
        """Rows [start, stop) as an array of their own, so that memory does not grow with the file."""
        shape, dtype = self.shape(name), np.dtype(self.manifest["arrays"][name]["dtype"])
        row_bytes, stop = dtype.itemsize * math.prod(shape[1:]), min(stop, shape[0])
        found = np.empty((stop - start, *shape[1:]), dtype)
        data, at = found.reshape(-1).view(np.uint8).data, 0
        for shard in range(start // SHARD_ROWS, -(-stop // SHARD_ROWS)):
            whole = shard * SHARD_ROWS
            first, last = max(start - whole, 0), min(stop - whole, SHARD_ROWS)
            path, size = f"{self.path}/{body_name(name, len(shape), shard)}", (last - first) * row_bytes
            file = os.open(path, os.O_RDONLY)  # of few rows Path.open and readinto take twice as long
            try:
                if os.preadv(file, [data[at : at + size]], first * row_bytes) != size:
                    raise unfit(Path(path), "it has become shorter")
            finally:
                os.close(file)
            at += size
        return found

    def first_and_last(self, name: str) -> tuple[list[int], list[int]]:
        """The first and the last row of an array of two axes and whole numbers."""
        array = self.array(name)
        return array[0].tolist(), array[-1].tolist()


def entry_path(store: Path, stage: str, key: str) -> Path:
    """Where an entry lies, or would lie."""
    return store / f"{stage}/{key}"


def entry_exists(store: Path, stage: str, key: str) -> bool:
    """Whether the entry has been published and is whole, as far as opening it tells."""
    try:
        open_entry(store, stage, key)
    except StoreError:
        return False
    return True


def open_entry(store: Path, stage: str, key: str) -> Entry:
    """Open an entry, checking what can be checked without reading its arrays. Raises StoreError."""
    path = entry_path(store, stage, key)
    try:
        with open(f"{path}/zarr.json", "rb", buffering=0) as opened:  # noqa: PTH123  (half the time of Path.read_bytes)
            content = opened.read()
    except (FileNotFoundError, NotADirectoryError):
        raise _no_entry(path) from None
    except IsADirectoryError:
        raise damaged(path, "its zarr.json is not a manifest") from None
    parse = _parsed if len(content) < _LARGE else _parsed.__wrapped__
    manifest, sizes = parse(path, stage, key, content)
    for file, expected in sizes:
        try:
            size = os.stat(f"{path}/{file}").st_size  # noqa: PTH116  (a third of the time)
        except (FileNotFoundError, NotADirectoryError):
            if not (path / "zarr.json").exists():  # removed just now, and all of it
                raise _no_entry(path) from None
            raise damaged(path, f"{file} is missing") from None
        if size != expected:
            raise damaged(path, f"{file} has {size:,} bytes, not {expected:,}")
    return Entry(path, manifest)


@lru_cache(_KNOWN)
def _parsed(path: Path, stage: str, key: str, content: bytes) -> tuple[dict[str, Any], list[tuple[str, int]]]:
    """The manifest of an entry, and the files that it should have, each with its size. Raises StoreError.

    A build opens an entry for every other that needs it; nobody changes what is returned.
    """
    try:
        group = json.loads(content)
        manifest = group["attributes"]
        found = manifest["format"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise damaged(path, "its zarr.json is not a manifest") from None
    if found != FORMAT:
        raise StoreError(f"{path}: written in format {found}, this version reads {FORMAT}; run bin/build-cache again")
    if group != group_metadata(manifest):
        raise damaged(path, "its zarr.json is not a manifest")
    try:
        manifest = unsealed(manifest)
    except ValueError as error:
        raise damaged(path, f"zarr.json was changed: {error}") from None
    if (manifest.get("stage"), manifest.get("key")) != (stage, key):
        raise damaged(path, f"its manifest is of {manifest.get('stage')}/{manifest.get('key')}")
    if wrong := entry_fault(stage, manifest):
        raise damaged(path, f"its manifest does not say what it should: {wrong}")
    sizes = []
    for name, array in manifest["arrays"].items():
        row_bytes, ndim = array_spec(name, array).row_bytes, len(array["shape"])
        sizes += [
            (body_name(name, ndim, shard.number), shard.file_bytes(row_bytes)) for shard in shards(array["shape"][0])
        ]
    return manifest, sizes


def _no_entry(path: Path) -> StoreError:
    return StoreError(f"{path}: no such entry; run bin/build-cache again to make it")


def damaged(path: Path, what: str) -> StoreError:
    """An error for what a build finds damaged, and makes again."""
    return StoreError(f"{path}: damaged, {what}. Run bin/build-cache again to remake it; nothing else is lost")


def unfit(path: Path, what: str) -> StoreError:
    """An error for what a build would take as it is, because only its content is wrong."""
    return StoreError(
        f"{path}: damaged, {what}. `bin/cache verify --repair` finds and removes what is damaged, and bin/build-cache "
        "then makes it again; nothing else is lost"
    )
