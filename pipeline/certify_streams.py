"""What a certificate proves of the streams of a dataset: whom their statistics know, and what their features tell."""

from collections.abc import Callable, Collection, Iterator, Mapping
from functools import cache, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cache.entries import Entry
from cache.timeframes import format_time
from configs.errors import UserError
from pipeline.bars import Block
from pipeline.certify_evidence import Evidence, Finding
from pipeline.features import (
    FeatureSet,
    Moments,
    Statistics,
    compute_features,
    fit_moments,
    fit_statistics,
    sum_of_moments,
)
from pipeline.series import BarSeries

_AHEAD = 8  # bars after a hidden one that must not give it away


class Stretch(BarSeries):
    """Consecutive bars in memory, with the face of a series."""

    def __init__(self, bars: Block) -> None:
        self.bars = bars

    def __len__(self) -> int:
        return len(self.bars.open_time)

    def rows(self, name: str, start: int, stop: int) -> NDArray[Any]:
        """Rows [start, stop)."""
        found: NDArray[Any] = getattr(self.bars, name)[start:stop]
        return found


class Beginning(BarSeries):
    """The first `count` bars of a series: whoever reads it cannot see the others."""

    def __init__(self, series: BarSeries, count: int) -> None:
        self.series, self.count = series, count

    def __len__(self) -> int:
        return self.count

    def rows(self, name: str, start: int, stop: int) -> NDArray[Any]:
        """Rows [start, stop)."""
        return self.series.rows(name, start, min(stop, self.count))


def check_statistics(symbols: Mapping[str, Evidence], cutoff: int, held: Collection[str] = ()) -> Finding:
    """Means and deviations come from the bars closed by the cut-off and from no others: fitted again, bit for bit.

    Pooled ones come from such bars of all symbols but those `held` out.
    """
    found = Finding()
    streams = {
        stream.key: (f"{symbol} {name}", stream, name, evidence)
        for symbol, evidence in symbols.items()
        for name, stream in evidence.streams.items()
    }
    pooled: dict[str, Moments] = {}
    known = all(evidence.proved for evidence in symbols.values())  # pooled ones rest on all symbols

    @cache
    def same_bars(name: str) -> bool:
        return all(_same_bars(evidence, name, cutoff) for evidence in symbols.values())

    for where, stream, name, evidence in streams.values():
        stored, features = stream.manifest["statistics"], evidence.features(name)
        alone = "statistics" not in stream.manifest["components"]["inputs"]
        as_before = evidence.proved and evidence.proved.statistics[name] == stored and stored["until"] == cutoff
        if known and as_before and (_same_bars(evidence, name, cutoff) if alone else same_bars(name)):
            continue
        if alone:
            fit: Callable[[], Statistics] = partial(_fitted_alone, evidence, name, features, cutoff, where)
        else:
            if name not in pooled:
                pooled[name] = _pooled(symbols, name, features, cutoff, held)
            fit = partial(pooled[name].statistics, features, where)
        found.checked += 1
        found.faults += _refitted(where, stored, features, fit, cutoff)
    found.detail = (
        f"mean and standard deviation of {'all ' * (found.checked == len(streams))}{found.checked} streams fitted "
        f"again on the bars closed by {format_time(cutoff)}, bit for bit the same"
        + (f"; those of {len(streams) - found.checked} are as before" if found.checked < len(streams) else "")
    )
    return found


def _same_bars(evidence: Evidence, name: str, cutoff: int) -> bool:
    """Whether the bars closed by the cut-off are those that an earlier dataset had."""
    return evidence.count_by(name, "close_time", cutoff) <= evidence.first_bar(name)


def _fitted_alone(evidence: Evidence, name: str, features: FeatureSet, cutoff: int, where: str) -> Statistics:
    rows = evidence.count_by(name, "close_time", cutoff)
    return fit_statistics(Beginning(evidence.bars[name], rows), features, rows, where)


def _pooled(
    symbols: Mapping[str, Evidence], name: str, features: FeatureSet, cutoff: int, held: Collection[str]
) -> Moments:
    """Of all symbols that train, those with the same bars once."""
    of_key = {}
    for symbol, evidence in symbols.items():
        if symbol not in held:
            rows = evidence.count_by(name, "close_time", cutoff)
            of_key[tuple(sorted(entry.key for entry in evidence.bars[name].entries))] = (evidence.bars[name], rows)
    return sum_of_moments(fit_moments(Beginning(bars, rows), features, rows) for bars, rows in of_key.values())


def _refitted(
    where: str, stored: Mapping[str, Any], features: FeatureSet, fit: Callable[[], Statistics], cutoff: int
) -> Iterator[str]:
    closed = f"by {format_time(cutoff)}"
    if stored["until"] > cutoff:
        yield (
            f"{where} at {format_time(stored['until'])}: mean and standard deviation know of bars up to then, and "
            f"training ends at {format_time(cutoff)}"
        )
    try:
        fitted = fit()
    except UserError as error:
        yield str(error)
        return
    if stored["until"] <= cutoff and stored["rows"] != fitted.rows:
        yield f"{where}: mean and deviation stand on {stored['rows']:,} bars; {fitted.rows:,} closed {closed}"
    for kind, values in (("mean", fitted.mean), ("std", fitted.std)):
        for column, value in zip(features.columns, values, strict=True):
            if stored[kind][column] != value:
                yield (
                    f"{where}: the {kind} of {column} is {stored[kind][column]!r}, where the {fitted.rows:,} bars "
                    f"closed {closed} have {float(value)!r}: it was fitted on other bars"
                )
                return


def check_masks(symbols: Mapping[str, Evidence], samples: int, rng: np.random.Generator) -> Finding:
    """What stays visible after a hidden block leaves the hidden close open: another close would look the same.

    In a second series one bar's close is different, and the bars after it are the same, or all scaled like it. In one
    of the two the features of the later bars must be those of the first series, except in the bar right after it the
    features that the stream `reveals`, and columns of a user's own in as many bars as they look back, which a trainer
    hides as well.
    """
    found, streams = Finding(), {}
    for symbol, evidence in symbols.items():
        for name, stream in evidence.streams.items():
            streams[stream.key] = (f"{symbol} {name}", stream, evidence.bars[name], evidence.features(name))
    order = [list(streams)[i] for i in rng.permutation(len(streams))]
    for key in order * -(-samples // len(order)) if samples > len(order) else order[: max(samples, 1)]:
        where, stream, bars, features = streams[key]
        if len(bars) < features.lookback + 2:
            continue
        hidden = int(rng.integers(features.lookback, len(bars) - 1))
        found.checked += 1
        found.faults += _given_away(where, stream, features, bars, hidden, float(rng.choice([0.9, 1.1])))
    found.detail = f"at {found.checked} places another close of a hidden bar leaves all that stays visible as it is"
    return found


def _given_away(
    where: str, stream: Entry, features: FeatureSet, bars: BarSeries, hidden: int, factor: float
) -> Iterator[str]:
    start, stop = hidden - features.lookback, min(hidden + 1 + _AHEAD, len(bars))
    opened, closed, ohlc = (bars.rows(name, start, stop) for name in ("open_time", "close_time", "ohlc"))
    row = features.lookback
    other = ohlc.copy()
    other[row, 3] *= factor
    other[row, 1], other[row, 2] = max(other[row, 1], other[row, 3]), min(other[row, 2], other[row, 3])
    scaled = other.copy()
    scaled[row + 1 :] *= factor
    std = np.array([stream.manifest["statistics"]["std"][name] for name in features.columns])
    original = raw_features(Block(opened, closed, ohlc), features)
    tells: list[list[str]] = []
    for alternative in (other, scaled):
        moved = np.abs(raw_features(Block(opened, closed, alternative), features) - original) > 1e-6 * std
        if not moved[row].any():
            yield f"{where} at {format_time(closed[row])}: another close of this bar changes none of its features"
            return
        for column in set(stream.manifest["reveals"]) & set(features.columns):
            moved[row + 1, features.columns.index(column)] = False
        if own := stream.manifest.get("own"):
            moved[row + 1 : row + 1 + own["lookback"], -len(own["columns"]) :] = False
        later = np.any(moved[row + 1 :], axis=0)
        tells.append([name for name, seen in zip(features.columns, later, strict=True) if seen])
    if all(tells):
        fewest = min(tells, key=lambda names: len(names))
        yield (
            f"{where} at {format_time(closed[row])}: when this bar is hidden, {', '.join(fewest)} of the bars after "
            "it, which stay visible, give its close away; the feature set must list what does in `reveals`"
        )


def raw_features(bars: Block, features: FeatureSet) -> NDArray[np.float64]:
    """Unscaled features of bars, float64 [n, F]."""
    return np.concatenate([values for _, values in compute_features(Stretch(bars), features, len(bars.ohlc))])
