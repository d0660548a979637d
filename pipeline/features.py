"""Feature sets: what a stream's rows hold. Each is one kernel over blocks of bars, named and versioned.

`price`    open, high, low, close, Δclose, body %
`returns`  log(open/c₋₁), log(high/c₋₁), log(low/c₋₁), log(close/c₋₁), log(high/low), body %

c₋₁ is the previous bar's close (for the very first bar its own open) and body % = 100·|close − open| / (high − low),
0 where high = low. Behind them may stand columns of a user's own (pipeline/own_features.py). Columns are z-scored by
the mean and the (population) standard deviation of the training rows. A column that does not vary there, such as
log(open/c₋₁) where every bar opens at the close before, is only centred.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cache.timeframes import format_time
from configs.errors import UserError
from pipeline import kernels
from pipeline.own_features import RULE, OwnFeatures, own_features
from pipeline.series import BarSeries


@dataclass(frozen=True)
class FeatureSet:
    """A named function from bars to columns; `version` rises whenever its values change.

    `reveals` names the columns that, with the others of the same bar, give away the close of the bar before; `lookback`
    is the number of bars before its own that a row may read. The kernel gives all columns but the `own`, the last ones.
    """

    version: int
    columns: tuple[str, ...]
    reveals: tuple[str, ...]
    lookback: int
    kernel: Callable[[NDArray[np.float64], float, NDArray[np.float64]], None]
    own: OwnFeatures | None = None

    @property
    def code(self) -> dict[str, Any]:
        """What keys say of the user's file, where there is one."""
        return {"plugin": {"code": self.own.plugin.md5}} if self.own else {}

    @property
    def told(self) -> dict[str, Any]:
        """What the manifest of a stream says of the user's columns, where there are any."""
        return {"own": {"columns": list(self.own.columns), "lookback": self.own.lookback}} if self.own else {}


FEATURE_SETS = {
    "price": FeatureSet(
        1, ("open", "high", "low", "close", "delta_close", "body_pct"), ("delta_close",), 1, kernels.price_features
    ),
    "returns": FeatureSet(
        1, ("log_open", "log_high", "log_low", "log_close", "log_range", "body_pct"), (), 1, kernels.return_features
    ),
}

_CLOSE = 3  # the column of every feature set that describes the close


@dataclass(frozen=True)
class Statistics:
    """Column moments of the training rows: mean and std float64 [F], over `rows` bars.

    `constant` are the numbers of the columns that do not vary over them; their std is given as 1.
    """

    mean: NDArray[np.float64]
    std: NDArray[np.float64]
    rows: int
    constant: tuple[int, ...] = ()

    @staticmethod
    def of(manifest: Mapping[str, Any]) -> "Statistics":
        """Those that a manifest holds."""
        columns = list(manifest["mean"])
        mean, std = (np.array(list(manifest[name].values())) for name in ("mean", "std"))
        return Statistics(mean, std, manifest["rows"], tuple(map(columns.index, manifest["constant"])))

    def manifest(self, columns: tuple[str, ...], until_ns: int) -> dict[str, Any]:
        """As kept in the manifest."""
        return {
            "rows": self.rows,
            "until": until_ns,
            "mean": dict(zip(columns, map(float, self.mean), strict=True)),
            "std": dict(zip(columns, map(float, self.std), strict=True)),
            "constant": [columns[k] for k in self.constant],
        }


def feature_set(name: str, plugin: str | None = None) -> FeatureSet:
    """Look up a feature set, with the columns that a user's file adds. Raises UserError listing the known ones."""
    if name not in FEATURE_SETS:
        raise UserError(f"data.features.set = {name!r} is not a feature set; known ones: {', '.join(FEATURE_SETS)}")
    known = FEATURE_SETS[name]
    if plugin is None:
        return known
    own = own_features(plugin, known.columns)
    return replace(known, columns=known.columns + own.columns, lookback=max(known.lookback, own.lookback), own=own)


def compute_features(
    bars: BarSeries, features: FeatureSet, stop: int, first: int = 0
) -> Iterator[tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """The rows [first, stop) in blocks: (ohlc [n, 4], unscaled features [n, F]), float64. No row sees a later one.

    Before the first bar, columns of a user's own see bars that stay at its open. Raises UserError for what they hold
    that is not a number.
    """
    if first >= stop:
        return
    own, reach = features.own, features.lookback
    known = bars.between(max(first - reach, 0), first).ohlc
    before = np.concatenate([np.full((reach - len(known), 4), bars.rows("ohlc", 0, 1)[0, 0]), known])
    previous_close = float(before[-1, 3])
    before = before[reach - (own.lookback if own else 0) :]
    for start, end in bars.ranges(first):
        if start >= stop:
            return
        ohlc = bars.rows("ohlc", start, min(end, stop))
        out = np.empty((len(ohlc), len(features.columns)))
        features.kernel(ohlc, previous_close, out)  # writes as many columns as it has
        previous_close = float(ohlc[-1, 3])
        if own:
            known = np.concatenate([before, ohlc])
            out[:, -len(own.columns) :] = own.compute(known)
            before = known[len(known) - own.lookback :]
            _check_numbers(bars, start, out, features)
        yield ohlc, out


def _check_numbers(bars: BarSeries, start: int, out: NDArray[np.float64], features: FeatureSet) -> None:
    wrong = np.argwhere(~np.isfinite(out))
    if len(wrong) and features.own:
        row, column = (int(at) for at in wrong[0])
        closed = format_time(int(bars.rows("close_time", start + row, start + row + 1)[0]))
        raise UserError(
            f"{features.own.plugin.path}: features() gives {out[row, column]} as {features.columns[column]} of the bar "
            f"that closed at {closed}; every value must be a finite number. (Before the first bar lie LOOKBACK bars "
            "that stay at its open, and some bars do not move at all)"
        )


@dataclass(frozen=True)
class Moments:
    """Of `rows` rows: mean and sum of squared deviations float64 [F]. Those of several series add up."""

    rows: int
    mean: NDArray[np.float64]
    scatter: NDArray[np.float64]

    def __add__(self, other: "Moments") -> "Moments":
        """Chan, Golub and LeVeque (1983)."""
        if not self.rows or not other.rows:
            return self if self.rows else other
        rows = self.rows + other.rows
        delta = other.mean - self.mean
        mean = self.mean + delta * (other.rows / rows)
        return Moments(rows, mean, self.scatter + other.scatter + delta**2 * (self.rows * other.rows / rows))

    def statistics(self, features: FeatureSet, where: str) -> Statistics:
        """Mean and standard deviation. Raises UserError where there are no rows, and when the close does not vary."""
        if not self.rows:
            raise UserError(
                f"{where}: no bar had closed by the end of training; shorten data.split.embargo, or add data"
            )
        std = np.sqrt(self.scatter / self.rows)
        # rounding leaves a constant column some 1e-13 of its value, and a logarithm that is always 0 some 1e-16
        constant = np.flatnonzero(std <= 1e-9 * np.abs(self.mean) + 1e-13)
        if _CLOSE in constant:
            raise UserError(
                f"{where}: feature {features.columns[_CLOSE]} does not vary over its {self.rows:,} training rows; "
                "check the prices, or give more data"
            )
        std[constant] = 1
        return Statistics(self.mean, std, self.rows, tuple(map(int, constant)))


def sum_of_moments(moments: Iterable[Moments]) -> Moments:
    """Their sum in an order of their own, because that decides the last bits: it depends on no names and no keys."""
    first, *others = sorted(moments, key=lambda one: (one.rows, one.mean.tolist(), one.scatter.tolist()))
    return sum(others, first)


def fit_moments(bars: BarSeries, features: FeatureSet, train_rows: int) -> Moments:
    """Moments of the first `train_rows` rows, merged block by block."""
    width = len(features.columns)
    fitted = Moments(0, np.zeros(width), np.zeros(width))
    for _, block in compute_features(bars, features, train_rows):
        of_block = Moments(len(block), np.empty(width), np.empty(width))
        kernels.moments(block, of_block.mean, of_block.scatter)
        fitted += of_block
    return fitted


def fit_statistics(bars: BarSeries, features: FeatureSet, train_rows: int, where: str) -> Statistics:
    """Mean and standard deviation of the first `train_rows` rows. Raises UserError when the close does not vary."""
    return fit_moments(bars, features, train_rows).statistics(features, where)


def normalised(
    bars: BarSeries, features: FeatureSet, statistics: Statistics, where: str, first: int = 0
) -> Iterator[tuple[NDArray[np.float64], NDArray[np.float32]]]:
    """The rows from `first` on in blocks: (ohlc float64 [n, 4], values float32 [n, F]), by the series' own statistics.

    `first` is 0, or past the training rows. Raises UserError at the end when the training rows, as written, do not have
    mean 0 and standard deviation 1.
    """
    sums, squares, left = np.zeros(len(features.columns)), np.zeros(len(features.columns)), statistics.rows - first
    for ohlc, block in compute_features(bars, features, len(bars), first):
        out = np.empty(block.shape, np.float32)
        kernels.normalise(block, statistics.mean, statistics.std, left, out, sums, squares)
        left -= len(block)
        yield ohlc, out
    if first:
        return
    mean = sums / statistics.rows
    std = np.sqrt(np.maximum(squares / statistics.rows - mean**2, 0))
    std[list(statistics.constant)] += 1  # theirs is 0, and so it stays
    for name, m, s in zip(features.columns, mean, std, strict=True):
        if not (abs(m) < 1e-3 and abs(s - 1) < 1e-3):
            own = features.own if features.own and name in features.own.columns else None
            raise UserError(
                f"{where}: feature {name} has mean {m:.3g} and standard deviation {s:.3g} over its training rows after "
                "scaling, not 0 and 1; its values are too extreme for float32. "
                + (f"Check {own.plugin.path}: {RULE}" if own else "Check the prices")
            )


def scaled(
    bars: BarSeries, features: FeatureSet, statistics: Statistics, where: str, first: int = 0
) -> Iterator[tuple[NDArray[np.float64], NDArray[np.float32]]]:
    """The same by the statistics of several series; this one's own may be far from 0 and 1, but must be finite."""
    unused = np.zeros(len(features.columns))
    for ohlc, block in compute_features(bars, features, len(bars), first):
        out = np.empty(block.shape, np.float32)
        kernels.normalise(block, statistics.mean, statistics.std, 0, out, unused, unused)
        if not np.isfinite(out).all():
            raise UserError(f"{where}: values are too extreme for float32 after scaling. Check the prices")
        yield ohlc, out
