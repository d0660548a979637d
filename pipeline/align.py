"""Windows: for every decision time, how many bars of every timeframe had closed.

The decision times are the base timeframe's bar closes. For stream j, ends[t, j] = #{close_time_j <= t}, so that
close_time_j[ends - 1] <= t < close_time_j[ends]: a bar that is still open at t is never seen.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cache.entries import Entry
from cache.recipe import Recipe
from cache.timeframes import duration_ns
from configs.errors import UserError
from pipeline import kernels
from pipeline.bars import BLOCK_ROWS
from pipeline.series import BarSeries

_NONE = np.empty(0, np.int64)
RULES = ("history", "staleness", "coverage")


@dataclass
class Dropped:
    """How many candidates broke each rule: `counts` int64 [S, 3] (rules in the order of RULES), out of `candidates`."""

    counts: NDArray[np.int64]
    candidates: int = 0
    kept: int = 0

    @staticmethod
    def of(windows: Entry) -> "Dropped":
        """Those of the windows of an entry, to be counted on."""
        known = windows.manifest
        counts = [[known["dropped"][name][rule] for rule in RULES] for name in known["timeframes"]]
        return Dropped(np.array(counts, np.int64), known["candidates"], windows.shape("time")[0])

    def table(self, timeframes: list[str]) -> dict[str, dict[str, int]]:
        """For the manifest: {timeframe: {rule: windows}}."""
        return {
            name: dict(zip(RULES, map(int, row), strict=True))
            for name, row in zip(timeframes, self.counts, strict=True)
        }


def align(
    bars: Mapping[str, BarSeries], recipe: Recipe, dropped: Dropped, first: int = 0
) -> Iterator[tuple[NDArray[np.int32], NDArray[np.int64]]]:
    """Blocks of windows, in order of time: ends int32 [n, S] and decision times int64 ns UTC [n].

    `bars` holds one series a timeframe, the base first; `dropped` is filled on the way. Decision times are the closes
    of the base bars from `first` on.
    """
    base, *others = (bars[name] for name in recipe.timeframes)
    pointers = np.zeros(len(recipe.timeframes), np.int64)
    if first:
        before = int(base.rows("close_time", first - 1, first)[0])
        pointers[:] = [first, *(series.completed_by(before) for series in others)]
    seq_lens = np.array(list(recipe.seq_lens.values()), np.int64)
    unlimited = str(10**6) + "w"
    limits = recipe.window.max_staleness
    staleness = np.array([min(duration_ns(limits.get(n, unlimited)), 2**62) for n in recipe.timeframes], np.int64)
    for start, stop in base.ranges(first):
        lookback = min(start, int(seq_lens[0]))
        base_open = base.rows("open_time", start - lookback, stop)
        base_close = base.rows("close_time", start - lookback, stop)
        ends = np.empty((stop - start, len(recipe.timeframes)), np.int32)
        skipped = np.maximum(pointers[1:] - 1, 0)  # the bar before may be the window's last
        closes = [_closes(series, int(at), int(base_close[-1])) for series, at in zip(others, skipped, strict=True)]
        flat_close, offsets = np.concatenate([_NONE, *closes]), np.cumsum([0, *map(len, closes)])
        kernels.count_completed(base_close[lookback:], flat_close, offsets, skipped, pointers, ends)
        keep = np.empty(len(ends), np.int64)
        kept = kernels.select_windows(
            base_open,
            base_close,
            lookback,
            start,
            recipe.window.stride,
            seq_lens,
            flat_close,
            offsets,
            skipped,
            staleness,
            recipe.window.min_coverage,
            ends,
            dropped.counts,
            keep,
        )
        dropped.candidates += -(-stop // recipe.window.stride) - -(-start // recipe.window.stride)
        dropped.kept += kept
        if kept == len(ends):
            yield ends, base_close[lookback:]
        elif kept:
            yield ends[keep[:kept]], base_close[lookback:][keep[:kept]]


def _closes(series: BarSeries, start: int, until: int) -> NDArray[np.int64]:
    """Close times from row `start` on, at least all those at or before `until`."""
    parts = [_NONE]
    for at in range(start, len(series), BLOCK_ROWS // 4):
        parts.append(series.rows("close_time", at, min(at + BLOCK_ROWS // 4, len(series))))
        if parts[-1][-1] > until:
            break
    return np.concatenate(parts)


def explain_empty(dropped: Dropped, symbol: str, recipe: Recipe, bars: Mapping[str, BarSeries]) -> UserError:
    """The error for zero windows of a symbol: which rule of which timeframe killed them."""
    worst = np.unravel_index(int(dropped.counts.argmax()), dropped.counts.shape)
    name, rule = recipe.timeframes[int(worst[0])], RULES[int(worst[1])]
    remedies = {
        "history": f"needs {recipe.seq_lens[name]} bars of {name} before t, and there are {len(bars[name]):,} in all; "
        "shorten data.window.seq_len, add data, or leave the timeframe out",
        "staleness": f"wants the last {name} bar at most {recipe.window.max_staleness.get(name)} old; "
        f"raise data.window.max_staleness.{name}",
        "coverage": f"wants {recipe.window.min_coverage:.0%} of the window's span covered by bars; "
        "lower data.window.min_coverage",
    }
    count = int(dropped.counts[worst])
    return UserError(
        f"{recipe.name}: {symbol} has no windows left of {dropped.candidates:,} candidates. The rule `{rule}` of "
        f"{name} dropped {count:,}: it {remedies[rule]}"
    )
