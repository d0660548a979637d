"""What a certificate proves of all windows: that each ends, in every timeframe, with the last bar that was over.

When a bar is over is computed anew, differently from the code that made it. Times are int64 ns UTC.
"""

from collections.abc import Iterator, Mapping
from datetime import UTC, date, datetime, timedelta
from functools import cache
from zoneinfo import ZoneInfo

import numpy as np
from numpy.typing import NDArray

from cache.recipe import Recipe, Session
from cache.timeframes import format_time, timeframe_ns
from pipeline.certify_evidence import Evidence, Finding, blocks, taken_over
from pipeline.series import BarSeries


def check_completion(recipe: Recipe, symbols: Mapping[str, Evidence]) -> Finding:
    """Every window of every stream ends with the last bar that was over, and no bar counts as over before its time."""
    found = Finding()
    for symbol, evidence in symbols.items():
        for name, series in evidence.bars.items():
            found.faults += _early_bars(
                f"{symbol} {name}",
                name,
                evidence.derived(name),
                recipe.source.session,
                series,
                evidence.first_bar(name),
            )
        first, count, before = evidence.first, evidence.windows.shape("time")[0], -(2**62)
        if first:
            before = int(evidence.windows.rows("time", first - 1, first)[0])
        found.checked += count - first
        for time, ends in blocks(evidence.windows, first, count, "time", "ends"):
            if (np.diff(time, prepend=before) <= 0).any():
                found.faults.append(f"{symbol}: the windows are not in order of their decision times")
            before = int(time[-1])
            for column, (name, length) in enumerate(recipe.seq_lens.items()):
                found.faults += _wrong_ends(symbol, name, length, evidence.bars[name], time, ends[:, column])
    found.detail = (
        f"all {found.checked:,} windows end, in every timeframe, with the last bar that was over at their time"
    ) + taken_over(symbols)
    return found


def _wrong_ends(
    symbol: str, name: str, length: int, series: BarSeries, time: NDArray[np.int64], ends: NDArray[np.int32]
) -> Iterator[str]:
    """Compare a block of windows with the bars: runs that end with the same bar, by the first and last of each."""
    first = np.flatnonzero(np.append(True, ends[1:] != ends[:-1]))
    last = np.append(first[1:], len(ends)) - 1
    count = ends[first].astype(np.int64)
    outside = (count < length) | (count > len(series))
    if outside.any():
        at = int(outside.argmax())
        yield (
            f"{symbol} {name} at {format_time(time[first[at]])}: the window needs {length} bars and ends with bar "
            f"number {count[at]:,} of {len(series):,}"
        )
        return
    low, high = int(count.min()) - 1, int(count.max())
    close = np.append(series.rows("close_time", low, min(high + 1, len(series))), np.iinfo(np.int64).max)
    at_end = count - (low + 1)
    early, late = close[at_end] > time[first], close[at_end + 1] <= time[last]
    for wrong, at_window, what in (
        (early, first, "holds a bar that was not over: it closed at"),
        (late, last, "leaves out a bar that was over: it closed at"),
    ):
        if wrong.any():
            at = int(wrong.argmax())
            closed = close[at_end[at] + (wrong is late)]
            yield f"{symbol} {name} at {format_time(time[at_window[at]])}: the window {what} {format_time(closed)}"


def _early_bars(
    where: str, timeframe: str, derived: bool, session: Session | None, series: BarSeries, first: int
) -> Iterator[str]:
    """Bars from row `first` on that are not in order of time, or count as over before they can be."""
    length = timeframe_ns(timeframe)
    last_opened = last_closed = -(2**62)
    if first:
        last_opened, last_closed = (int(series.rows(x, first - 1, first)[0]) for x in ("open_time", "close_time"))
    for opened, closed in blocks(series, first, len(series), "open_time", "close_time"):
        if derived and timeframe == "d" and session is not None:
            over = np.array([_session_end(int(instant), session.tz, session.at) for instant in opened])
        elif derived:
            over = (opened // length + 1) * length
        else:  # a day in a file ends when its label says
            over = opened + (length if timeframe != "d" else 1)
        for wrong, what in (
            (closed < over, "counts as over although its time is not"),
            (np.diff(opened, prepend=last_opened) <= 0, "does not begin after the one in front of it"),
            (np.diff(closed, prepend=last_closed) < 0, "is over before the one in front of it"),
        ):
            if wrong.any():
                at = int(wrong.argmax())
                times = f"{format_time(opened[at])} to {format_time(closed[at])}"
                yield f"{where} at {format_time(closed[at])}: the bar from {times} {what}"
        last_opened, last_closed = int(opened[-1]), int(closed[-1])


def _session_end(instant: int, zone: str, at: str) -> int:
    """When the trading day of an instant ends: the next time that clocks in `zone` show `at`."""
    day = datetime.fromtimestamp(instant // 10**9, ZoneInfo(zone)).date()
    return next(end for end in (_at(day + timedelta(days=n), zone, at) for n in (0, 1, 2)) if end > instant)


@cache
def _at(day: date, zone: str, at: str) -> int:
    moment = datetime.combine(day, datetime.strptime(at, "%H:%M").time(), ZoneInfo(zone))
    return int(moment.astimezone(UTC).timestamp()) * 10**9
