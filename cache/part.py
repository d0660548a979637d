"""What one training run takes from a dataset, whatever it was made of.

Of one symbol, or one fold, that is a Part. Of many symbols it is a Universe: the windows of all of them have numbers
one behind another, symbol by symbol, and `locate` tells whose a window is and which of its own. What lies in their
arrays is read by cache.rows.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cache.layout import ALL_FOLDS, SEQUENCE, fold_name
from cache.reader import Dataset, Entry
from configs.errors import UserError


@dataclass(frozen=True)
class Part:
    """Streams by timeframe, base first (of sequences the one of the fold), and which of the windows train and validate.

    Attributes:
        train: ranges of window numbers: of bars one, of sequences those before and after `val`, without empty ones.
        val: the range of the windows that validate.
    """

    windows: Entry
    streams: dict[str, Entry]
    train: tuple[range, ...]
    val: range


def part_of(dataset: Dataset, fold: int | None = None) -> Part:
    """Of bars both splits of the one symbol; of sequences a fold to validate on, and all the others to train on.

    Raises UserError where there are several symbols, where there is no such fold, and for a fold of bars.
    """
    if len(dataset.symbols) > 1:
        first, count = next(iter(dataset.symbols)), len(dataset.symbols)
        raise UserError(
            f"{dataset.name} holds {count} symbols, and training on several at once is not possible yet; build a "
            f"dataset of one, for example with data.source.symbols=[{first}]"
        )
    ((symbol, entries),) = dataset.symbols.items()
    folds = dataset.folds
    if not folds:
        if fold is not None:
            raise UserError(f"{dataset.name} is made of bars, which are split by time and have no folds; leave it out")
        train, val = (range(*dataset.splits[name]["windows"][symbol]) for name in ("train", "val"))
        return Part(entries.windows, entries.streams, (train,), val)
    if fold is None or not 0 <= fold < len(folds):
        what = "say which" if fold is None else f"there is no fold {fold}"
        raise UserError(f"{dataset.name} has folds 0 to {len(folds) - 1}, of which one validates; {what}")
    val = folds[fold]
    around = (range(val.start), range(val.stop, folds[-1].stop))
    stream = entries.streams.get(ALL_FOLDS) or entries.streams[fold_name(fold)]
    return Part(entries.windows, {SEQUENCE: stream}, tuple(part for part in around if part), val)


@dataclass(frozen=True)
class Universe:
    """The windows of N symbols of bars in one numbering, from the dataset's manifest alone; S timeframes, base first.

    Attributes:
        symbols: their names.
        first: int64 [N + 1]; symbol k has the windows first[k] to first[k + 1] − 1.
        parts: `train`, `val` and, where symbols are held out, `hold_out`: int64 [N, 2], from and past the last; empty
            where a symbol has nothing in that part.
        rows: int64 [N, S], lengths of the streams.
        weights: float64 [N], how often to draw from a symbol, relative to its number of windows.
    """

    symbols: tuple[str, ...]
    first: NDArray[np.int64]
    parts: dict[str, NDArray[np.int64]]
    rows: NDArray[np.int64]
    weights: NDArray[np.float64]

    def locate(self, windows: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Of windows int64 [B] the numbers of their symbols, and which of the symbol's own windows each is."""
        symbol = np.searchsorted(self.first, windows, side="right") - 1
        return symbol, windows - self.first[symbol]

    def count(self, part: str) -> int:
        """How many windows a part has."""
        return int((self.parts[part][:, 1] - self.parts[part][:, 0]).sum())

    def window(self, part: str, places: NDArray[np.int64]) -> NDArray[np.int64]:
        """The windows at places int64 [B] of a part, whose places are 0 to count − 1, symbol by symbol."""
        start, stop = self.parts[part].T
        before = np.concatenate([[0], np.cumsum(stop - start)])
        symbol = np.searchsorted(before, places, side="right") - 1
        found: NDArray[np.int64] = start[symbol] + places - before[symbol]
        return found


def universe_of(dataset: Dataset) -> Universe:
    """All symbols of a dataset of bars, one or many. Reads nothing."""
    manifest, symbols = dataset.entry.manifest, tuple(dataset.symbols)
    lengths = [manifest["lengths"][symbol] for symbol in symbols]
    first = np.concatenate([[0], np.cumsum([one["windows"] for one in lengths], dtype=np.int64)])
    parts = {
        name: np.array([bounds["windows"][symbol] for symbol in symbols], np.int64) + first[:-1, None]
        for name, bounds in dataset.splits.items()
    }
    rows = np.array([one["streams"] for one in lengths], np.int64)
    return Universe(symbols, first, parts, rows, np.array([manifest["weights"][symbol] for symbol in symbols]))
