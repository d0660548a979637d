"""Splits by time, purged: what a training window saw ends before what a validation window saw begins.

The span of a window is [earliest open over all its bars, t]. With T0 the end of training, train windows end at or
before T0 − embargo and validation windows begin at or after T0 (cf. López de Prado 2018, chapter 7). T0 is one instant
for all symbols: were it each symbol's own, a model could learn a day from one symbol and be validated on another's.
"""

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from cache.entries import Entry, open_entry
from cache.recipe import Recipe
from cache.timeframes import duration_ns, format_time
from configs.errors import UserError
from pipeline.series import BarSeries

_EDGES = 4096


def train_end(store: Path, inputs: Mapping[str, Sequence[str]], recipe: Recipe) -> int:
    """T0 in ns UTC: as stated, or the close of the bar that ends the first 1 − val_fraction of all base bars.

    In the second case `inputs`, those of a stream, name the base bars (`split`) or the entry that knows it (`splits`).
    """
    if recipe.train_end_ns is not None:
        return recipe.train_end_ns
    if "splits" in inputs:
        (key,) = inputs["splits"]
        return int(open_entry(store, "splits", key).manifest["train_end"])
    return train_end_of(store, inputs["split"], recipe)


def train_end_of(store: Path, base_keys: Sequence[str], recipe: Recipe) -> int:
    """The same, given the entries of all symbols' base bars, where a fraction of them validates."""
    assert recipe.split.val_fraction is not None  # the recipe has one of the two
    return _close_at(store, tuple(base_keys), 1 - recipe.split.val_fraction)


def train_cutoff(store: Path, inputs: Mapping[str, Sequence[str]], recipe: Recipe) -> int:
    """T0 − embargo: the last instant that training, its statistics included, may know of."""
    return train_end(store, inputs, recipe) - duration_ns(recipe.split.embargo)


@cache
def _close_at(store: Path, base_keys: tuple[str, ...], share: float) -> int:
    """The close of the bar that ends the first `share` of all bars, in order of their closes.

    Every sweep over the entries counts at `_EDGES` instants and leaves the interval between two of them. One map is
    open at a time: the pages of all of them together would count as hundreds of megabytes of the process's memory.
    """
    entries = [open_entry(store, "bars", key) for key in base_keys]
    wanted = max(int(share * sum(entry.shape("close_time")[0] for entry in entries)), 1)
    low = min(int(entry.rows("close_time", 0, 1)[0]) for entry in entries)
    high = max(int(entry.manifest["last_close"]) for entry in entries)
    while low < high:  # the first instant by which so many bars have closed, which is the close of one
        edges = np.arange(low, high, -(-(high - low) // _EDGES))
        closed = sum(np.searchsorted(entry.array("close_time"), edges, side="right") for entry in entries)
        at = int(np.searchsorted(closed, wanted))
        low, high = int(edges[at - 1]) + 1 if at else low, int(edges[at]) if at < len(edges) else high
    return low


def split_windows(windows: Entry, bars: Mapping[str, BarSeries], recipe: Recipe, start: int) -> tuple[int, int]:
    """(a, b): windows [0, a) of a symbol are for training, [b, n) for validation, given T0 = `start` in ns UTC.

    The decision time of a window and the bars that it ends with grow with its index: each bound is a binary search.
    """
    time, ends = windows.array("time"), windows.array("ends")
    train_stop = int(np.searchsorted(time, start - duration_ns(recipe.split.embargo), side="right"))
    # no bar of a window opened before T0 if all those that did lie before its first ones
    fewest = np.array([bars[name].opened_before(start) + length for name, length in recipe.seq_lens.items()])
    after = bisect_left(range(len(time)), True, lo=train_stop, key=lambda at: bool((ends[at] >= fewest).all()))
    return train_stop, after


def earliest_open(ends: Any, bars: Mapping[str, BarSeries], recipe: Recipe) -> int:
    """When the first bar of a window opens, ns UTC; `ends` int32 [S] is the window's row."""
    begins = [int(end) - length for end, length in zip(ends, recipe.seq_lens.values(), strict=True)]
    return min(int(bars[n].rows("open_time", b, b + 1)[0]) for n, b in zip(recipe.timeframes, begins, strict=True))


def explain_empty_part(
    part: str, start: int, symbols: Mapping[str, Entry], bars: Mapping[str, Mapping[str, BarSeries]], recipe: Recipe
) -> UserError:
    """The error for a part that no symbol has windows for."""
    symbol, windows = max(symbols.items(), key=lambda one: int(one[1].array("time")[-1]))
    last, ends = int(windows.array("time")[-1]), windows.array("ends")[-1]
    span = (last - earliest_open(ends, bars[symbol], recipe)) / 86400e9
    cutoff = start - duration_ns(recipe.split.embargo)
    return UserError(
        f"{recipe.name}: the split leaves no {part} windows. Training ends at {format_time(cutoff)}, and validation "
        f"windows must lie wholly after {format_time(start)}; the last window, at {format_time(last)}, spans "
        f"{span:.1f} days. Give {part} windows more time in data.split, shorten data.window.seq_len, or leave out the "
        "longest timeframe"
    )
