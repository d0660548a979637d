"""Splits by time, purged: what a training window saw ends before what a validation window saw begins.

The span of a window is [earliest open over all its bars, t]. With T0 the end of training, train windows end at or
before T0 − embargo and validation windows begin at or after T0 (cf. López de Prado 2018, chapter 7).
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from cache.reader import Entry
from cache.recipe import Recipe
from cache.timeframes import duration_ns, format_time
from configs.errors import UserError
from pipeline.series import BarSeries


def train_end(base: BarSeries, recipe: Recipe) -> int:
    """T0 in ns UTC: as stated, or the close of the bar that ends the first 1 − val_fraction of the base bars.

    Raises UserError when a stated instant lies outside the bars.
    """
    if recipe.train_end_ns is None:
        assert recipe.split.val_fraction is not None  # the recipe has one of the two
        last = max(int((1 - recipe.split.val_fraction) * len(base)), 1)
        return int(base.rows("close_time", last - 1, last)[0])
    if not base.first_open < recipe.train_end_ns < base.last_close:
        raise UserError(
            f"data.split.train_end = {recipe.split.train_end} lies outside the bars of {recipe.symbol}, which go from "
            f"{format_time(base.first_open)} to {format_time(base.last_close)}"
        )
    return recipe.train_end_ns


def train_cutoff(base: BarSeries, recipe: Recipe) -> int:
    """T0 − embargo: the last instant that training, its statistics included, may know of."""
    return train_end(base, recipe) - duration_ns(recipe.split.embargo)


def split_windows(windows: Entry, bars: Mapping[str, BarSeries], recipe: Recipe) -> dict[str, Any]:
    """Bounds of the parts: {"train": {"until", "windows": [0, a]}, "val": {"from", "windows": [b, n]}}.

    Both the decision time and the earliest open of a window grow with its index, so each bound is one binary search.
    Raises UserError when a part is left without windows.
    """
    base = bars[recipe.base]
    start, cutoff = train_end(base, recipe), train_cutoff(base, recipe)
    time, ends = windows.array("time"), windows.array("ends")
    lengths = list(recipe.seq_lens.values())

    def earliest_open(window: int) -> int:
        begins = [int(end) - length for end, length in zip(ends[window], lengths, strict=True)]
        return min(int(bars[n].rows("open_time", b, b + 1)[0]) for n, b in zip(recipe.timeframes, begins, strict=True))

    train_stop = int(np.searchsorted(time, cutoff, side="right"))
    low, high = train_stop, len(time)
    while low < high:
        middle = (low + high) // 2
        if earliest_open(middle) >= start:
            high = middle
        else:
            low = middle + 1
    if train_stop == 0 or low == len(time):
        part = "training" if train_stop == 0 else "validation"
        raise UserError(
            f"{recipe.name}: the split leaves no {part} windows. Training ends at {format_time(cutoff)}, and "
            f"validation windows must lie wholly after {format_time(start)}; the last window spans "
            f"{(int(time[-1]) - earliest_open(len(time) - 1)) / 86400e9:.1f} days. Change data.split, shorten "
            "data.window.seq_len, or leave out the longest timeframe"
        )
    return {
        "train": {"until": cutoff, "windows": [0, train_stop]},
        "val": {"from": start, "windows": [low, len(time)]},
        "purged": low - train_stop,
    }
