"""What a certificate rests on: what the store holds of a symbol, what an earlier one has proved; and what it finds."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from cache.entries import Entry
from cache.layout import EVERY_SYMBOL
from cache.recipe import Recipe
from pipeline.features import FeatureSet, feature_set
from pipeline.series import BarSeries

_ROWS = 1 << 17  # looked at together: they stay in the processor's cache, and memory does not grow with the series


@dataclass(frozen=True)
class Proved:
    """What the certificate of an earlier dataset has proved of a symbol: its first windows, and bars by timeframe.

    `dataset` is its key, `ranges` are the windows of the parts of the split, `statistics` those of the streams.
    """

    dataset: str
    windows: int
    bars: Mapping[str, int]
    ranges: Mapping[str, tuple[int, int]]
    statistics: Mapping[str, Any]


@dataclass(frozen=True)
class Evidence:
    """What a dataset holds of one symbol: its windows, and by timeframe, base first, its streams and their bars.

    `plugin` is the user's file that adds columns to the streams; `proved` need not be proved again.
    """

    windows: Entry
    streams: Mapping[str, Entry]
    bars: Mapping[str, BarSeries]
    plugin: str | None = None
    proved: Proved | None = None

    @property
    def first(self) -> int:
        """The first window to be proved."""
        return self.proved.windows if self.proved else 0

    def first_bar(self, timeframe: str) -> int:
        """The first bar to be proved."""
        return self.proved.bars[timeframe] if self.proved else 0

    def features(self, timeframe: str) -> FeatureSet:
        """What the stream of a timeframe holds. Raises UserError."""
        return feature_set(self.streams[timeframe].manifest["feature_set"], self.plugin)

    def count_by(self, timeframe: str, name: str, instant: int, side: Literal["left", "right"] = "right") -> int:
        """How many bars have a time `name` at or before an instant (`side` left: before it).

        No map is kept: the pages a search touches, megabytes of them, count as the process's memory until it is gone.
        """
        count = 0
        for entry in self.bars[timeframe].entries:
            if entry.manifest["last_close"] < instant:  # all of it
                count += entry.shape(name)[0]
            elif entry.manifest["first_open"] <= instant:
                count += int(np.searchsorted(entry.array(name), instant, side=side))
        return count

    def derived(self, timeframe: str) -> bool:
        """Whether the bars were made from the base's, not read from files."""
        return "derived_from" in self.bars[timeframe].entries[0].manifest["components"]["fields"]


@dataclass
class Finding:
    """What came out of one check: how much it looked at, in words too, and the faults it met."""

    checked: int = 0
    detail: str = ""
    faults: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """As kept in the certificate."""
        more = f" (and {len(self.faults) - 1:,} more)" if len(self.faults) > 1 else ""
        detail = self.faults[0] + more if self.faults else self.detail
        return {"passed": not self.faults, "checked": self.checked, "detail": detail}


def taken_over(symbols: Mapping[str, Evidence]) -> str:
    """Words for the windows that need no proof."""
    proved = [evidence.proved for evidence in symbols.values() if evidence.proved]
    count = sum(one.windows for one in proved)
    return f"; {count:,} before them are those of dataset {proved[0].dataset}, which proved it" if proved else ""


def blocks(source: Entry | BarSeries, start: int, stop: int, *names: str) -> Iterator[list[NDArray[Any]]]:
    """The rows [start, stop) of arrays of windows or bars, block by block."""
    for at in range(start, stop, _ROWS):
        yield [source.rows(name, at, min(at + _ROWS, stop)) for name in names]


def scale_of(
    recipe: Recipe, symbols: Mapping[str, Evidence]
) -> tuple[tuple[str, ...], NDArray[np.float64], NDArray[np.float64]]:
    """Whose statistics streams are scaled by, and their mean and deviation, as cache.per_symbol has them."""
    pooled = recipe.features.statistics == "pooled"
    scaled = {EVERY_SYMBOL: next(iter(symbols.values()))} if pooled else symbols
    mean, std = (
        [[[*s.manifest["statistics"][moment].values()] for s in one.streams.values()] for one in scaled.values()]
        for moment in ("mean", "std")
    )
    return tuple(scaled), np.array(mean), np.array(std)
