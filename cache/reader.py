"""Opens datasets: the entries that a ref leads to, as memory maps. Needs NumPy only.

Beside what opening an entry checks, entries must be of one make, and the first and last window lie within their
streams; all other content is checked by `bin/cache verify`.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from cache.entries import Entry, open_entry, unfit
from cache.layout import SEQUENCE, SEQUENCES, body_path
from cache.per_symbol import PerSymbol, read_per_symbol, splits_of
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
    symbols: "Symbols"

    @property
    def timeframes(self) -> list[str]:
        """Base first."""
        return list(self.entry.manifest["timeframes"])

    @property
    def seq_lens(self) -> dict[str, int]:
        """Window length in bars, per timeframe."""
        return dict(self.entry.manifest["seq_len"])

    @property
    def per_symbol(self) -> PerSymbol:
        """What a dataset of bars knows of its symbols."""
        assert self.symbols.known
        return self.symbols.known

    @cached_property
    def splits(self) -> dict[str, Any]:
        """Bounds of `train` and `val` in a dataset of bars.

        `splits[part]["windows"][symbol]` is the half-open range of the windows of a part.
        """
        return splits_of(self.entry.manifest["splits"], self.per_symbol)

    @property
    def kind(self) -> str:
        """`bars` or `sequences`."""
        return str(self.entry.manifest["components"]["fields"].get("kind", "bars"))

    @property
    def folds(self) -> list[range]:
        """The validation windows of every fold, which together are all windows; [] in a dataset of bars."""
        return [range(*fold["windows"]) for fold in self.entry.manifest.get("folds", ())]


class Symbols(Mapping[str, SymbolEntries]):
    """The entries of every symbol of a dataset, each opened and checked when it is asked for first.

    Raises StoreError, also where what the dataset knows of its symbols is impossible.

    Attributes:
        known: what a dataset of bars knows of them; None of recordings.
    """

    def __init__(self, store: Path, dataset: Entry) -> None:
        self._store, self._dataset = store, dataset
        _check_stage(dataset)
        self.known = None if _of_sequences(dataset) else read_per_symbol(dataset)
        self._numbers = {name: k for k, name in enumerate(dataset.manifest["components"]["inputs"])}
        self._open: dict[str, SymbolEntries] = {}

    def __getitem__(self, symbol: str) -> SymbolEntries:
        if symbol not in self._open:
            found, k = _open_symbol(self._store, self._dataset, symbol), self._numbers[symbol]
            if self.known:
                counted = [int(self.known.windows[k]), *self.known.rows[k].tolist()]
                there = [found.windows.shape("time")[0], *(one.shape("values")[0] for one in found.streams.values())]
                if counted != there:
                    what = f"it counts {counted} windows and rows of {symbol}, which has {there}"
                    raise unfit(self._dataset.path, what)
            self._open[symbol] = found
        return self._open[symbol]

    def __iter__(self) -> Iterator[str]:
        return iter(self._numbers)

    def __len__(self) -> int:
        return len(self._numbers)


def open_dataset(store: str | Path, name: str) -> Dataset:
    """Open the dataset that the ref `name` points to. Raises StoreError.

    Of few symbols all entries are opened at once, of more (`AT_ONCE`) each when it is asked for: thirty thousand
    manifests would take seconds.
    """
    store = Path(store)
    ref = read_ref(store, name)
    entry = open_entry(store, "datasets", ref["dataset"])
    symbols = Symbols(store, entry)
    if len(symbols) <= AT_ONCE:
        dict(symbols)  # opens each
    return Dataset(name, entry, ref["recipe"], ref["data_dir"], symbols)


def open_symbols(store: Path, dataset: Entry) -> dict[str, SymbolEntries]:
    """The windows and streams of a dataset, checked against it and each other. Raises StoreError."""
    return dict(Symbols(store, dataset))


def _of_sequences(dataset: Entry) -> bool:
    return bool(dataset.manifest["components"]["fields"].get("kind") == SEQUENCES)


def _open_symbol(store: Path, dataset: Entry, symbol: str) -> SymbolEntries:
    manifest, keys = dataset.manifest, dataset.manifest["components"]["inputs"][symbol]
    windows = open_entry(store, "windows", keys["windows"])
    names = keys["streams"] if _of_sequences(dataset) else manifest["timeframes"]
    streams = {name: open_entry(store, "streams", keys["streams"][name]) for name in names}
    for one in (windows, *streams.values()):
        _check_stage(one)
    if any(windows.manifest[field] != manifest[field] for field in ("timeframes", "seq_len")):
        raise unfit(windows.path, f"its timeframes or lengths are not those of {dataset.path}")
    if (last := max((fold["windows"][1] for fold in manifest.get("folds", ())), default=0)) > windows.shape("time")[0]:
        raise unfit(dataset.path, f"it counts {last:,} windows of {symbol}, but {windows.path} has fewer")
    _check_ends(windows, streams)
    return SymbolEntries(windows, streams)


def _check_stage(entry: Entry) -> None:
    if wrong := stage_fault(entry.path.parent.name, entry.manifest):
        raise unfit(entry.path, f"its manifest does not say what it should: {wrong}")


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
            raise unfit(file, f"{what}, which has {rows:,}; a window has {length:,}")
