"""Opens datasets: the entries that a ref leads to, as memory maps. Needs NumPy only.

Beside what opening an entry checks, entries must be of one make, and the first and last window lie within their
streams; all other content is checked by `bin/cache verify`.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cache.entries import Entry, StoreError, open_entry
from cache.layout import SEQUENCE, SEQUENCES, body_path
from cache.refs import read_ref
from cache.schema import stage_fault

AT_ONCE = 8  # symbols whose entries are opened with the dataset


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


def _unfit(path: Path, what: str) -> StoreError:
    """An error for what a build would take as it is, because only its content is wrong."""
    return StoreError(
        f"{path}: damaged, {what}. `bin/cache verify --repair` finds and removes what is damaged, and bin/build-cache "
        "then makes it again; nothing else is lost"
    )
