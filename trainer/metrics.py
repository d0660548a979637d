"""What evaluation measures, piece by piece: correlations and their intervals, spectra, consistency, ticks.

Whatever is summed is summed in float64 and by calendar week, so that intervals cost no second pass: resampling weeks is
then a product of two small matrices.

Shape suffixes: B batch, L bars, C bars of the coarser timeframe, P prices (open, high, low, close), W weeks,
R resamples, K columns or frequencies.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cache.entries import Entry

FEWEST = 30  # pairs that a correlation needs
FEWEST_WEEKS = 5  # that an interval needs: fewer say too little of how much weeks differ
RESAMPLES = 1000
HOURS_OF_WEEK = 168
_HOUR = 3600 * 10**9
_MONDAY = 4 * 24 * _HOUR  # 1970 began on a Thursday
_SMALLEST_POWER = 1e-30
_ROUNDING = 1e-6


def weeks_of(time_B: NDArray[np.int64]) -> NDArray[np.int64]:
    """Calendar weeks, Monday to Sunday in UTC, of times in ns: int64, counted from 1970."""
    return (time_B - _MONDAY) // (7 * 24 * _HOUR)


def hours_of_week(close_time: NDArray[np.int64]) -> NDArray[np.int64]:
    """The hour of the week (UTC) in which bars end, of their close times in ns: a bar closing at 10:00 is of hour 9."""
    return (close_time - 1) // _HOUR % HOURS_OF_WEEK


class WeeklySums:
    """Sums by week of columns that arrive by window, float64 [W, K]."""

    def __init__(self, weeks: int, columns: int) -> None:
        self.sums = np.zeros((weeks, columns))

    def add(self, columns_BK: Tensor, week_B: NDArray[np.int64]) -> None:
        """Take in a row a window, of the weeks numbered `week_B`."""
        np.add.at(self.sums, week_B, columns_BK.double().cpu().numpy())


class Pairs(WeeklySums):
    """Sufficient statistics of pairs by week: n, Σx, Σy, Σx², Σy², Σxy."""

    def __init__(self, weeks: int) -> None:
        super().__init__(weeks, 6)
        self._origin: Tensor | None = None

    def add_pairs(self, x_BL: Tensor, y_BL: Tensor, hidden_BL: Tensor, week_B: NDArray[np.int64]) -> None:
        """Take in the pairs at hidden positions; the others may be anything. float64, bool."""
        if self._origin is None:  # shifted by their first values, the sums of squares stay small
            if not hidden_BL.any():
                return
            self._origin = torch.stack([x_BL[hidden_BL][0], y_BL[hidden_BL][0]])
        x = (x_BL - self._origin[0]).masked_fill(~hidden_BL, 0)
        y = (y_BL - self._origin[1]).masked_fill(~hidden_BL, 0)
        self.add(torch.stack([hidden_BL.double(), x, y, x * x, y * y, x * y], dim=-1).sum(dim=1), week_B)


def pearson(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    """Pearson's r of sums [..., 6] as `Pairs` keeps them: [...].

    NaN below 30 pairs or where one of the two does not vary.
    """
    n, x, y, xx, yy, xy = np.moveaxis(sums, -1, 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        variance_x, variance_y = xx / n - (x / n) ** 2, yy / n - (y / n) ** 2
        r = (xy / n - x * y / n**2) / np.sqrt(variance_x * variance_y)
        still = np.minimum(variance_x, variance_y) <= 1e-12 * np.maximum(variance_x, variance_y)
    return np.where((n < FEWEST) | still, np.nan, r)


def resampled_weeks(weeks: int, seed: int = 0) -> NDArray[np.float64]:
    """How often each week is drawn in each resample, with replacement: float64 [R, W], rows summing to W."""
    return np.random.default_rng(seed).multinomial(weeks, np.full(weeks, 1 / weeks), size=RESAMPLES).astype(float)


def interval(values_R: NDArray[np.float64], weeks: int) -> list[float] | None:
    """The 2.5 and 97.5 % quantiles of a resampled figure (Efron's percentile interval).

    None from fewer than 5 weeks, or where the figure does not exist in a tenth of the resamples.
    """
    known = values_R[np.isfinite(values_R)]
    if weeks < FEWEST_WEEKS or len(known) < 0.9 * len(values_R):
        return None
    return [float(bound) for bound in np.quantile(known, (0.025, 0.975))]


def ohlc_valid(log_BLP: Tensor) -> Tensor:
    """Whether neither open nor close lies above the high or below the low: bool [B, L].

    A ten-thousandth of a percent is let pass: float32 features of bars that open at their high are not exact.
    """
    open_, high, low, close = log_BLP.unbind(-1)
    above, below = torch.maximum(open_, close) - high, low - torch.minimum(open_, close)
    return torch.maximum(above, below) <= _ROUNDING


def segment_length(length: int) -> int:
    """Bars in a Welch segment: half of the window, but at least 8 where it has as many."""
    return min(length, max(8, length // 2))


def welch(signal_BLP: Tensor, segment: int) -> Tensor:
    """Sum over windows of Welch's power spectrum (Welch 1967): float64 [P, segment // 2], frequencies in (0, π].

    The mean over Hann-windowed, half-overlapping segments inside each window, each less its own mean; scaled by
    nothing, since spectra are compared with each other.
    """
    pieces_BNPK = signal_BLP.double().unfold(1, segment, max(segment // 2, 1))
    hann = torch.hann_window(segment, periodic=True, dtype=torch.float64, device=signal_BLP.device)
    spectrum = torch.fft.rfft((pieces_BNPK - pieces_BNPK.mean(dim=-1, keepdim=True)) * hann)
    power_BPK: Tensor = spectrum.abs().square().mean(dim=1)
    return power_BPK.sum(dim=0)[:, 1:]


def spectral_delta(predicted_PK: NDArray[np.float64], true_PK: NDArray[np.float64]) -> float:
    """Mean of |log P̂ − log P| over prices and frequencies; spectra of the same windows."""
    difference = np.log(predicted_PK + _SMALLEST_POWER) - np.log(true_PK + _SMALLEST_POWER)
    return float(np.abs(difference).mean())


@dataclass(frozen=True)
class Children:
    """Which bars of a timeframe make up the bars of the next coarser one, in a batch of windows.

    Attributes:
        parent: int64 [B, L], number of the coarse bar in which a fine bar lies; C for none in the window.
        first, last: int64 [B, C], numbers of a coarse bar's first and last child (0 where it has none).
        complete: bool [B, C], whether all its children are in the window: theirs are all the base rows it has.
    """

    parent: Tensor
    first: Tensor
    last: Tensor
    complete: Tensor


def children_of(fine_BL2: Tensor, coarse_BC2: Tensor) -> Children:
    """Match bars by the base rows [first, past the last) that lie in them, int32 [B, L, 2] and [B, C, 2]."""
    start_BL, stop_BL = (part.contiguous() for part in fine_BL2.long().unbind(-1))
    begin_BC, end_BC = (part.contiguous() for part in coarse_BC2.long().unbind(-1))
    count = begin_BC.shape[1]
    parent = torch.searchsorted(begin_BC, start_BL, right=True) - 1
    inside = (parent >= 0) & (stop_BL > start_BL) & (stop_BL <= end_BC.gather(1, parent.clamp(min=0)))
    parent = torch.where(inside, parent, count)
    at = torch.arange(start_BL.shape[1], device=parent.device).expand_as(parent)
    zeros = torch.zeros((len(parent), count + 1), dtype=torch.int64, device=parent.device)
    rows = zeros.scatter_add(1, parent, stop_BL - start_BL)[:, :count]
    first = zeros.scatter_reduce(1, parent, at, "amin", include_self=False)[:, :count]
    last = zeros.scatter_reduce(1, parent, at, "amax", include_self=False)[:, :count]
    return Children(parent, first, last, (rows == end_BC - begin_BC) & (end_BC > begin_BC))


def some_child(flag_BL: Tensor, children: Children) -> Tensor:
    """Whether a flag holds for some child of each coarse bar: bool [B, C]."""
    batch, count = children.first.shape
    counted = torch.zeros((batch, count + 1), dtype=torch.int64, device=flag_BL.device)
    return counted.scatter_add(1, children.parent, flag_BL.long())[:, :count] > 0


def aggregate(fine_BLP: Tensor, children: Children) -> Tensor:
    """First open, highest high, lowest low and last close of each coarse bar's children, [B, C, 4].

    Means something where the coarse bar is complete.
    """
    open_, high, low, close = fine_BLP.unbind(-1)
    batch, count = children.first.shape
    empty = torch.zeros((batch, count + 1), dtype=fine_BLP.dtype, device=fine_BLP.device)
    highest = empty.scatter_reduce(1, children.parent, high, "amax", include_self=False)[:, :count]
    lowest = empty.scatter_reduce(1, children.parent, low, "amin", include_self=False)[:, :count]
    return torch.stack([open_.gather(1, children.first), highest, lowest, close.gather(1, children.last)], dim=-1)


def tick_of(closes: NDArray[np.float64]) -> float:
    """The step in which prices are quoted: the smallest difference of closes that occurs again and again.

    Of the gaps between neighbouring distinct closes, the smallest that a thousandth of them (and at least three) equal
    within 1 %; a few closes off the grid, or the last digit of a float, do not count. NaN where no price ever changes.
    """
    distinct = np.unique(closes)
    gaps = np.sort(np.diff(distinct))
    gaps = gaps[gaps > 1e-9 * np.median(distinct)]
    if not len(gaps):
        return math.nan
    alike = np.searchsorted(gaps, gaps * 1.01, "right") - np.searchsorted(gaps, gaps * 0.99, "left")
    often = np.flatnonzero(alike >= max(3, len(gaps) / 1000))
    if not len(often):
        return float(gaps[0])
    smallest = gaps[often[0]]
    return float(np.median(gaps[(gaps >= smallest * 0.99) & (gaps <= smallest * 1.01)]))


@dataclass(frozen=True)
class TimeOfWeek:
    """The baseline that knows the time and nothing else: mean log range by hour of the week.

    Attributes:
        close_time: int64 [T], of the stream's bars.
        mean: float64 [168], by the hour (UTC) in which bars end.
    """

    close_time: NDArray[np.int64]
    mean: NDArray[np.float64]

    @staticmethod
    def fitted(stream: Entry, until: int) -> "TimeOfWeek":
        """Fit it on the bars closed by `until`, the end of training. Hours without bars get the mean of all."""
        close_time = stream.array("close_time")
        rows = int(np.searchsorted(close_time, until, "right"))
        statistics = stream.manifest["statistics"]
        mean, std = (np.array(list(statistics[name].values())[1:3]) for name in ("mean", "std"))
        high, low = (stream.array("values")[:rows, 1:3] * std + mean).T
        ranges = np.log(high / low) if stream.manifest["feature_set"] == "price" else high - low
        hours = hours_of_week(close_time[:rows])
        counts = np.bincount(hours, minlength=HOURS_OF_WEEK)
        sums = np.bincount(hours, weights=ranges, minlength=HOURS_OF_WEEK)
        return TimeOfWeek(close_time, np.where(counts > 0, sums / np.maximum(counts, 1), ranges.mean()))

    def ranges(self, rows: NDArray[np.int64]) -> NDArray[np.float64]:
        """The log ranges it expects of bars, by their rows in the stream (any shape)."""
        expected: NDArray[np.float64] = self.mean[hours_of_week(self.close_time[rows])]
        return expected
