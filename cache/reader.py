"""Opens entries and datasets: one `zarr.json` read by hand and one memory map an array. Needs NumPy only.

Opening checks the manifest, shapes, dtypes and file sizes; the content is checked by nobody here.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cache.layout import FORMAT, STAGES, body_path, shard_bytes
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
        return np.memmap(body_path(self.path, name, len(shape)), described["dtype"], mode="c", shape=shape)

    def rows(self, name: str, start: int, stop: int) -> NDArray[Any]:
        """Rows [start, stop) as an array of their own, so that memory does not grow with the file."""
        shape, dtype = self.shape(name), np.dtype(self.manifest["arrays"][name]["dtype"])
        width = int(np.prod(shape[1:], dtype=np.int64))
        stop = min(stop, shape[0])
        path = body_path(self.path, name, len(shape))
        flat = np.fromfile(path, dtype, (stop - start) * width, offset=start * width * dtype.itemsize)
        return flat.reshape(stop - start, *shape[1:])


@dataclass(frozen=True)
class SymbolEntries:
    """What a dataset holds of one symbol: its windows, and its streams in timeframe order."""

    windows: Entry
    streams: dict[str, Entry]


@dataclass(frozen=True)
class Dataset:
    """A dataset as a ref names it: its recipe as asked for, and where the sources were when it was built last.

    `splits[part]["windows"][symbol]` is the half-open range of the windows of a part.
    """

    name: str
    entry: Entry
    recipe: dict[str, Any]
    data_dir: str
    symbols: dict[str, SymbolEntries]

    @property
    def timeframes(self) -> list[str]:
        """Base first."""
        return list(self.entry.manifest["timeframes"])

    @property
    def seq_lens(self) -> dict[str, int]:
        """Window length in bars, per timeframe."""
        return dict(self.entry.manifest["seq_len"])

    @property
    def splits(self) -> dict[str, Any]:
        """Bounds of `train` and `val`."""
        return dict(self.entry.manifest["splits"])


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
        manifest = json.loads((path / "zarr.json").read_bytes())["attributes"]
        found = manifest["format"]
    except FileNotFoundError:
        raise StoreError(f"{path}: no such entry; run bin/build-cache again to make it") from None
    except (ValueError, KeyError, TypeError):
        raise _damaged(path, "its zarr.json is not a manifest") from None
    if found != FORMAT:
        raise StoreError(f"{path}: written in format {found}, this version reads {FORMAT}; run bin/build-cache again")
    if (manifest.get("stage"), manifest.get("key")) != (stage, key):
        raise _damaged(path, f"its manifest is of {manifest.get('stage')}/{manifest.get('key')}")
    try:
        expected = {
            body_path(path, name, len(array["shape"])): _shard_bytes(array["shape"], array["dtype"])
            for name, array in manifest["arrays"].items()
        }
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, ArithmeticError):
        raise _damaged(path, "its manifest does not describe its arrays") from None
    for file, size in expected.items():
        try:
            found_size = file.stat().st_size
        except FileNotFoundError:
            raise _damaged(path, f"{file.relative_to(path)} is missing") from None
        if found_size != size:
            raise _damaged(path, f"{file.relative_to(path)} has {found_size:,} bytes, not {size:,}")
    return Entry(path, manifest)


def open_dataset(store: Path, name: str) -> Dataset:
    """Open the dataset that the ref `name` points to, with all its entries. Raises StoreError."""
    ref = read_ref(store, name)
    entry = open_entry(store, "datasets", ref["dataset"])
    symbols = {
        symbol: SymbolEntries(
            open_entry(store, "windows", keys["windows"]),
            {
                timeframe: open_entry(store, "streams", keys["streams"][timeframe])
                for timeframe in entry.manifest["timeframes"]
            },
        )
        for symbol, keys in entry.manifest["components"]["inputs"].items()
    }
    return Dataset(name, entry, ref["recipe"], ref["data_dir"], symbols)


def read_ref(store: Path, name: str) -> dict[str, Any]:
    """A ref: {"name", "dataset": key, "recipe", "data_dir", "updated"}. Raises StoreError naming the refs there are."""
    path = store / "refs" / f"{name}.json"
    try:
        ref = json.loads(path.read_bytes())
        missing = {"dataset", "recipe", "data_dir", "updated"} - ref.keys()
    except FileNotFoundError:
        known = ", ".join(ref_names(store)) or "none yet"
        raise StoreError(f"{store}: no dataset named {name} (there are: {known})") from None
    except (ValueError, AttributeError):
        raise _damaged(path, "not a JSON object") from None
    if missing:
        raise _damaged(path, f"{', '.join(sorted(missing))} missing")
    return dict(ref)


def ref_names(store: Path) -> list[str]:
    """Names of all datasets, sorted. Raises StoreError where there is no store."""
    if not any((store / part).is_dir() for part in ("refs", *STAGES)):
        raise StoreError(f"{store}: no store here; --store says where it is, and bin/build-cache makes one")
    return sorted(path.stem for path in (store / "refs").glob("*.json"))


def _shard_bytes(shape: list[int], dtype: str) -> int:
    return shard_bytes(shape[0], int(np.dtype(dtype).itemsize * np.prod(shape[1:], dtype=np.int64)))


def _damaged(path: Path, what: str) -> StoreError:
    return StoreError(f"{path}: damaged, {what}. Run bin/build-cache again to remake it; nothing else is lost")
