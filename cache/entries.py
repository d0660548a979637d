"""Opens entries: one `zarr.json` read by hand and one memory map an array. Needs NumPy only.

Opening checks the manifest, shapes, dtypes and file sizes; content is checked by `bin/cache verify`.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cache.layout import FORMAT, SHARD_ROWS, array_spec, body_path, group_metadata, shards
from cache.maps import map_array
from cache.schema import entry_fault
from cache.seal import unsealed
from configs.errors import UserError


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
        width = int(np.prod(shape[1:], dtype=np.int64))
        stop = min(stop, shape[0])
        parts = [
            np.fromfile(file, dtype, (last - first) * width, offset=first * width * dtype.itemsize)
            for file, first, last in self.pieces(name, start, stop)
        ]
        flat = parts[0] if len(parts) == 1 else np.concatenate([np.empty(0, dtype), *parts])
        return flat.reshape(stop - start, *shape[1:])

    def pieces(self, name: str, start: int, stop: int) -> Iterator[tuple[Path, int, int]]:
        """The files that hold the rows [start, stop) of an array, and which of the rows in each file."""
        shape = self.shape(name)
        for shard in shards(shape[0])[start // SHARD_ROWS : -(-stop // SHARD_ROWS)]:
            file = body_path(self.path, name, len(shape), shard.number)
            yield file, max(start - shard.start, 0), min(stop - shard.start, shard.rows)

    def first_and_last(self, name: str) -> tuple[list[int], list[int]]:
        """The first and the last row of an array of two axes and whole numbers."""
        array = self.array(name)
        return array[0].tolist(), array[-1].tolist()


def entry_path(store: Path, stage: str, key: str) -> Path:
    """Where an entry lies, or would lie."""
    return store / stage / key


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
        group = json.loads((path / "zarr.json").read_bytes())
        manifest = group["attributes"]
        found = manifest["format"]
    except (FileNotFoundError, NotADirectoryError):
        raise _no_entry(path) from None
    except (ValueError, KeyError, TypeError, RecursionError, IsADirectoryError):
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
    for name, array in manifest["arrays"].items():
        row_bytes = array_spec(name, array).row_bytes
        for shard in shards(array["shape"][0]):
            file = body_path(path, name, len(array["shape"]), shard.number)
            try:
                size = file.stat().st_size
            except (FileNotFoundError, NotADirectoryError):
                if not (path / "zarr.json").exists():  # removed just now, and all of it
                    raise _no_entry(path) from None
                raise damaged(path, f"{file.relative_to(path)} is missing") from None
            if size != (expected := shard.file_bytes(row_bytes)):
                raise damaged(path, f"{file.relative_to(path)} has {size:,} bytes, not {expected:,}")
    return Entry(path, manifest)


def _no_entry(path: Path) -> StoreError:
    return StoreError(f"{path}: no such entry; run bin/build-cache again to make it")


def damaged(path: Path, what: str) -> StoreError:
    """An error for what a build finds damaged, and makes again."""
    return StoreError(f"{path}: damaged, {what}. Run bin/build-cache again to remake it; nothing else is lost")
