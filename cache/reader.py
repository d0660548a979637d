"""Opens entries and datasets: one `zarr.json` read by hand and one memory map an array. Needs NumPy only.

Opening checks manifests, shapes, dtypes and file sizes, and whether the first and last window lie within their streams;
all other content is checked by `bin/cache verify`.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cache.files import listing
from cache.layout import FORMAT, SEQUENCE, SEQUENCES, SHARD_ROWS, STAGES, array_spec, body_path, group_metadata, shards
from cache.maps import map_array
from cache.schema import REF, entry_fault, fault, stage_fault
from cache.seal import unsealed
from configs.errors import UserError

AT_ONCE = 8
UNKNOWN_DIR = "DIR-OF-SOURCES"  # data_dir of an imported ref; it stands in commands that people are told to type
_OF_STORE = {  # what tells a store from any other folder, by subfolder
    "refs": re.compile(r"[^.].*\.json"),
    "locks": re.compile("store"),
    **dict.fromkeys(STAGES, re.compile(r"\.?[0-9a-f]{32}(\..*)?")),
}


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


@dataclass(frozen=True)
class SymbolEntries:
    """What a dataset holds of one symbol: its windows, and its streams in timeframe order.

    Of recordings there is one symbol, named as the dataset, and its streams are those of the folds.
    """

    windows: Entry
    streams: dict[str, Entry]


@dataclass(frozen=True)
class Dataset:
    """A dataset as a ref names it: its recipe as asked for, and where the sources were when it was built last."""

    name: str
    entry: Entry
    recipe: dict[str, Any]
    data_dir: str
    symbols: Mapping[str, SymbolEntries]

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
        """Bounds of `train` and `val` in a dataset of bars.

        `splits[part]["windows"][symbol]` is the half-open range of the windows of a part.
        """
        return dict(self.entry.manifest["splits"])

    @property
    def kind(self) -> str:
        """`bars` or `sequences`."""
        return str(self.entry.manifest["components"]["fields"].get("kind", "bars"))

    @property
    def folds(self) -> list[range]:
        """The validation windows of every fold, which together are all windows; [] in a dataset of bars."""
        return [range(*fold["windows"]) for fold in self.entry.manifest.get("folds", ())]


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
        raise _damaged(path, "its zarr.json is not a manifest") from None
    if found != FORMAT:
        raise StoreError(f"{path}: written in format {found}, this version reads {FORMAT}; run bin/build-cache again")
    if group != group_metadata(manifest):
        raise _damaged(path, "its zarr.json is not a manifest")
    try:
        manifest = unsealed(manifest)
    except ValueError as error:
        raise _damaged(path, f"zarr.json was changed: {error}") from None
    if (manifest.get("stage"), manifest.get("key")) != (stage, key):
        raise _damaged(path, f"its manifest is of {manifest.get('stage')}/{manifest.get('key')}")
    if wrong := entry_fault(stage, manifest):
        raise _damaged(path, f"its manifest does not say what it should: {wrong}")
    for name, array in manifest["arrays"].items():
        row_bytes = array_spec(name, array).row_bytes
        for shard in shards(array["shape"][0]):
            file = body_path(path, name, len(array["shape"]), shard.number)
            try:
                size = file.stat().st_size
            except (FileNotFoundError, NotADirectoryError):
                if not (path / "zarr.json").exists():  # removed just now, and all of it
                    raise _no_entry(path) from None
                raise _damaged(path, f"{file.relative_to(path)} is missing") from None
            if size != (expected := shard.file_bytes(row_bytes)):
                raise _damaged(path, f"{file.relative_to(path)} has {size:,} bytes, not {expected:,}")
    return Entry(path, manifest)


class Symbols(Mapping[str, SymbolEntries]):
    """The entries of every symbol of a dataset, each opened and checked when it is asked for first."""

    def __init__(self, store: Path, dataset: Entry) -> None:
        self._store, self._dataset = store, dataset
        self._names: dict[str, Any] = dataset.manifest["components"]["inputs"]
        self._open: dict[str, SymbolEntries] = {}

    def __getitem__(self, symbol: str) -> SymbolEntries:
        if symbol not in self._open:
            self._open[symbol] = open_symbol(self._store, self._dataset, symbol)
        return self._open[symbol]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def open_dataset(store: str | Path, name: str) -> Dataset:
    """Open the dataset that the ref `name` points to. Raises StoreError.

    Of few symbols all entries are opened at once, of more (`AT_ONCE`) each when it is asked for: thirty thousand
    manifests would take seconds.
    """
    store = Path(store)
    ref = read_ref(store, name)
    entry = open_entry(store, "datasets", ref["dataset"])
    _check_stage(entry)
    symbols: Mapping[str, SymbolEntries] = Symbols(store, entry)
    if len(symbols) <= AT_ONCE:
        symbols = open_symbols(store, entry)
    return Dataset(name, entry, ref["recipe"], ref["data_dir"], symbols)


def open_symbols(store: Path, dataset: Entry) -> dict[str, SymbolEntries]:
    """The windows and streams of a dataset, checked against it and each other. Raises StoreError."""
    _check_stage(dataset)
    return {symbol: open_symbol(store, dataset, symbol) for symbol in dataset.manifest["components"]["inputs"]}


def open_symbol(store: Path, dataset: Entry, symbol: str) -> SymbolEntries:
    """The same for one symbol of a dataset whose manifest is known to be of its stage."""
    manifest, keys = dataset.manifest, dataset.manifest["components"]["inputs"][symbol]
    of_sequences = manifest["components"]["fields"].get("kind") == SEQUENCES
    windows = open_entry(store, "windows", keys["windows"])
    names = keys["streams"] if of_sequences else manifest["timeframes"]
    streams = {name: open_entry(store, "streams", keys["streams"][name]) for name in names}
    for one in (windows, *streams.values()):
        _check_stage(one)
    if any(windows.manifest[field] != manifest[field] for field in ("timeframes", "seq_len")):
        raise _unfit(windows.path, f"its timeframes or lengths are not those of {dataset.path}")
    parts = (
        [f["windows"] for f in manifest["folds"]]
        if of_sequences
        else [part["windows"][symbol] for part in manifest["splits"].values()]
    )
    if (last := max(stop for _, stop in parts)) > windows.shape("time")[0]:
        raise _unfit(dataset.path, f"it counts {last:,} windows of {symbol}, but {windows.path} has fewer")
    if not of_sequences:
        found = {"windows": windows.shape("time")[0], "streams": [s.shape("values")[0] for s in streams.values()]}
        if found != manifest["lengths"][symbol]:
            raise _unfit(dataset.path, f"it counts {manifest['lengths'][symbol]} rows of {symbol}, which has {found}")
    _check_ends(windows, streams)
    return SymbolEntries(windows, streams)


def read_ref(store: Path, name: str) -> dict[str, Any]:
    """A ref: {"name", "dataset": key, "recipe", "data_dir", "sources", "updated"}.

    Raises StoreError: for a missing one it names those there are.
    """
    path = store / "refs" / f"{name}.json"
    try:
        ref = unsealed(json.loads(path.read_bytes()))
    except (FileNotFoundError, NotADirectoryError):
        known = ", ".join(ref_names(store)) or "none yet"
        raise StoreError(f"{store}: no dataset named {name} (there are: {known})") from None
    except (ValueError, RecursionError):
        raise _damaged(path, "it is not as it was written") from None
    if wrong := fault(ref, REF):
        raise _damaged(path, wrong)
    if ref["name"] != name:
        raise _damaged(path, f"it is the ref of {ref['name']}")
    return ref


def ref_names(store: Path) -> list[str]:
    """Names of all datasets, sorted. Raises StoreError where there is no store, and OSError where it cannot be read."""
    check_store(store)
    return [path.stem for path in listing(store / "refs") if _OF_STORE["refs"].fullmatch(path.name)]


def check_store(store: Path) -> None:
    """Raise StoreError where there is no store, whatever else may lie there."""
    check_folder(store)
    if not any(_holds(store / part, name) for part, name in _OF_STORE.items()):
        raise StoreError(f"{store}: no store here; --store says where it is, and bin/build-cache makes one")


def check_folder(store: Path) -> None:
    """Raise StoreError where a store is something else than a folder, or nothing yet."""
    if store.is_symlink() and not store.exists():
        raise StoreError(f"{store}: a link to {store.readlink()}, which is not there; --store says where the store is")
    if store.exists() and not store.is_dir():
        raise StoreError(f"{store}: a file, not a folder; --store says where the store is")


def _holds(folder: Path, name: re.Pattern[str]) -> bool:
    """Whether a folder holds something of such a name; one that cannot be read may."""
    try:
        return any(name.fullmatch(path.name) for path in listing(folder))
    except OSError as error:
        return not isinstance(error, NotADirectoryError)


def _check_stage(entry: Entry) -> None:
    if wrong := stage_fault(entry.path.parent.name, entry.manifest):
        raise _unfit(entry.path, f"its manifest does not say what it should: {wrong}")


def _check_ends(windows: Entry, streams: dict[str, Entry]) -> None:
    """That the first and the last window lie within the streams, which a file of other bytes will hardly do."""
    first, last = windows.first_and_last("ends")
    lengths = windows.manifest["seq_len"]
    for j, (name, stream) in enumerate(streams.items()):
        if SEQUENCE in lengths:  # windows are ordered by fold, not by their ends, which are those of all streams
            low, high, length = min(first[0], last[0]), max(first[0], last[0]), lengths[SEQUENCE]
        else:
            low, high, length = first[j], last[j], lengths[name]
        rows = stream.shape("values")[0]
        if not length <= low <= high <= rows:
            file = body_path(windows.path, "ends", 2)
            what = f"its windows end at {'rows' if SEQUENCE in lengths else 'bars'} {low:,} to {high:,} of {name}"
            raise _unfit(file, f"{what}, which has {rows:,}; a window has {length:,}")


def _no_entry(path: Path) -> StoreError:
    return StoreError(f"{path}: no such entry; run bin/build-cache again to make it")


def _damaged(path: Path, what: str) -> StoreError:
    return StoreError(f"{path}: damaged, {what}. Run bin/build-cache again to remake it; nothing else is lost")


def _unfit(path: Path, what: str) -> StoreError:
    """An error for what a build would take as it is, because only its content is wrong."""
    return StoreError(
        f"{path}: damaged, {what}. `bin/cache verify --repair` finds and removes what is damaged, and bin/build-cache "
        "then makes it again; nothing else is lost"
    )
