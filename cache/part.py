"""What one training run takes from a dataset, whatever it was made of.

The windows of all symbols have numbers one behind another, symbol by symbol; one symbol is a universe of one, and so
are recordings, of which a fold validates. All is told by the dataset's manifest and those of its first symbol.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cache.entries import Entry
from cache.layout import ALL_FOLDS, SEQUENCE, fold_name
from cache.reader import Dataset
from cache.rows import Kind, Rows
from configs.errors import UserError


@dataclass(frozen=True)
class Part:
    """What a fold of recordings trains and validates on.

    Attributes:
        streams: by name the one of the fold.
        train: ranges of window numbers, those before and after `val`, without empty ones.
        val: the range of the windows that validate.
    """

    windows: Entry
    streams: dict[str, Entry]
    train: tuple[range, ...]
    val: range


def part_of(dataset: Dataset, fold: int | None) -> Part:
    """A fold of recordings to validate on, and all the others to train on. Raises UserError for no such fold."""
    folds = dataset.folds
    if fold is None or not 0 <= fold < len(folds):
        what = "say which" if fold is None else f"there is no fold {fold}"
        raise UserError(f"{dataset.name} has folds 0 to {len(folds) - 1}, of which one validates; {what}")
    ((_, entries),) = dataset.symbols.items()
    val = folds[fold]
    around = (range(val.start), range(val.stop, folds[-1].stop))
    stream = entries.streams.get(ALL_FOLDS) or entries.streams[fold_name(fold)]
    return Part(entries.windows, {SEQUENCE: stream}, tuple(part for part in around if part), val)


@dataclass(frozen=True)
class Universe:
    """The windows of N symbols in one numbering, and where their rows lie.

    Attributes:
        symbols: their names.
        first: int64 [N + 1]; symbol k has the windows first[k] to first[k + 1] − 1.
        parts: `train`, `val` and, where symbols are held out, `hold_out`: int64 [R, 2], ranges of windows from the
            first to past the last, of bars one of each symbol, which may be empty.
        weights: float64 [R], how often to draw the windows of each range of `train` an epoch.
        streams: of the first symbol, base first: what they tell of features is the same for all.
        rows: the arrays.
    """

    symbols: tuple[str, ...]
    first: NDArray[np.int64]
    parts: dict[str, NDArray[np.int64]]
    weights: NDArray[np.float64]
    streams: dict[str, Entry]
    rows: Rows

    def locate(self, windows: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Of windows int64 [B] the numbers of their symbols, and which of the symbol's own windows each is."""
        symbol = np.searchsorted(self.first, windows, side="right") - 1
        return symbol, windows - self.first[symbol]


def universe_of(dataset: Dataset, fold: int | None = None) -> Universe:
    """All symbols of a dataset of bars, one or many, or a fold of recordings. Raises UserError for no such fold."""
    if dataset.folds:
        return _of_fold(dataset, part_of(dataset, fold))
    if fold is not None:
        raise UserError(f"{dataset.name} is made of bars, which are split by time and have no folds; leave it out")
    known = dataset.per_symbol
    entries = dataset.symbols[known.names[0]]
    first = np.concatenate([[0], known.windows.cumsum()])
    parts = {name: part + first[:-1, None] for name, part in known.parts.items()}
    store, keys = dataset.entry.path.parents[1], dataset.entry.manifest["components"]["inputs"].values()
    folders = {"windows": [f"{store}/windows/{of['windows']}" for of in keys]}
    folders |= {name: [f"{store}/streams/{of['streams'][name]}" for of in keys] for name in dataset.timeframes}
    lengths = dict(zip(folders, (known.windows, *known.rows.T), strict=True))
    arrays = Rows(folders, lengths, _kinds({"windows": entries.windows, **entries.streams}))
    return Universe(known.names, first, parts, known.weight, entries.streams, arrays)


def _of_fold(dataset: Dataset, part: Part) -> Universe:
    entries = {"windows": part.windows, **part.streams}
    lengths = {of: np.array([entry.shape("values" if of != "windows" else "ends")[0]]) for of, entry in entries.items()}
    parts = {"train": _ranges(part.train), "val": _ranges((part.val,))}
    rows = Rows({of: [str(entry.path)] for of, entry in entries.items()}, lengths, _kinds(entries))
    first = np.array([0, lengths["windows"][0]])
    return Universe((dataset.name,), first, parts, np.ones(len(part.train)), part.streams, rows)


def _ranges(ranges: tuple[range, ...]) -> NDArray[np.int64]:
    return np.array([(one.start, one.stop) for one in ranges], np.int64).reshape(-1, 2)


def _kinds(entries: Mapping[str, Entry]) -> dict[str, dict[str, Kind]]:
    def kind(described: dict[str, Any]) -> Kind:
        return Kind(np.dtype(described["dtype"]), tuple(described["shape"][1:]))

    return {of: {n: kind(one) for n, one in entry.manifest["arrays"].items()} for of, entry in entries.items()}
