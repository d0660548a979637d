"""What a dataset of bars knows of each of its symbols: arrays of its entry, a row a symbol in the order of the names.

As JSON they would be nearly all that opening a dataset of thousands of symbols takes.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cache.entries import Entry, unfit
from cache.layout import EVERY_SYMBOL, POOLED, ArraySpec


@dataclass(frozen=True)
class PerSymbol:
    """Of N symbols, S timeframes (base first) and F features.

    Attributes:
        names: of the symbols, sorted.
        windows: int64 [N], how many each has.
        rows: int64 [N, S], of its streams.
        weight: float64 [N], how often its windows are drawn.
        parts: `train`, `val` and, where symbols are held out, `hold_out`: int64 [N, 2], the symbol's windows in each,
            from the first to past the last.
        scaled: whose mean and deviation follow: the symbols, or `*`, which is all of them together (M = N or 1).
        mean: float64 [M, S, F], what streams were scaled by.
        std: likewise.
    """

    names: tuple[str, ...]
    windows: NDArray[np.int64]
    rows: NDArray[np.int64]
    weight: NDArray[np.float64]
    parts: Mapping[str, NDArray[np.int64]]
    scaled: tuple[str, ...]
    mean: NDArray[np.float64]
    std: NDArray[np.float64]

    def arrays(self) -> Iterator[tuple[ArraySpec, NDArray[Any]]]:
        """As they are stored."""
        parts = {name: (part, ("symbol", "bound")) for name, part in self.parts.items()}
        moments = ("symbol" if self.scaled == self.names else POOLED, "timeframe", "feature")
        for name, (values, dims) in {
            "windows": (self.windows, ("symbol",)),
            "rows": (self.rows, ("symbol", "timeframe")),
            "weight": (self.weight, ("symbol",)),
            **parts,
            "mean": (self.mean, moments),
            "std": (self.std, moments),
        }.items():
            yield ArraySpec(name, values.dtype.str, dims, values.shape[1:]), values


def read_per_symbol(dataset: Entry) -> PerSymbol:
    """What the entry of a dataset of bars holds; its manifest is known to be of its stage.

    Raises StoreError where the numbers are impossible.
    """
    names = tuple(dataset.manifest["components"]["inputs"])
    arrays = {name: dataset.rows(name, 0, dataset.shape(name)[0]) for name in dataset.manifest["arrays"]}
    parts = {name: arrays.pop(name) for name in dataset.manifest["splits"]}
    pooled = dataset.manifest["arrays"]["mean"]["dims"][0] == POOLED
    found = PerSymbol(names, **arrays, parts=parts, scaled=(EVERY_SYMBOL,) if pooled else names)
    for name, part in parts.items():
        wrong = ~((part[:, 0] >= 0) & (part[:, 0] <= part[:, 1]) & (part[:, 1] <= found.windows))
        if wrong.any():
            at = int(wrong.argmax())
            what = f"gives {name} the windows {part[at].tolist()} of {names[at]}, which has {found.windows[at]:,}"
            raise unfit(dataset.path, f"it {what}")
    if not (found.weight > 0).all():
        at = int((~(found.weight > 0)).argmax())
        raise unfit(dataset.path, f"it draws the windows of {names[at]} {found.weight[at]} times")
    return found


def splits_of(limits: Mapping[str, Mapping[str, int]], known: PerSymbol) -> dict[str, Any]:
    """By part of the split its limit in time, and `windows`, by symbol the range of those in it."""
    return {
        name: {**limit, "windows": dict(zip(known.names, known.parts[name].tolist(), strict=True))}
        for name, limit in limits.items()
    }
