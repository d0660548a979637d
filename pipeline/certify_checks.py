"""What a certificate proves of all windows of a dataset: that each ends in time, and that the splits are apart.

Each check takes what the store holds, computes anew what should be there, differently from the code that made it, and
returns a Finding. Times are int64 ns UTC.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from functools import cache
from typing import Any, Literal
from zoneinfo import ZoneInfo

import numpy as np
from numpy.typing import NDArray

from cache.reader import Entry
from cache.recipe import Recipe, Session
from cache.timeframes import duration_ns, format_time, timeframe_ns
from pipeline.features import FeatureSet, feature_set
from pipeline.series import BarSeries
from pipeline.universe import held_out

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
        arrays = (entry.array(name) for entry in self.bars[timeframe].entries)
        return sum(int(np.searchsorted(array, instant, side=side)) for array in arrays)

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


def end_of_training(recipe: Recipe, symbols: Mapping[str, Evidence], claimed: int) -> int:
    """T0: the stated instant, or the close of the last of the first 1 − val_fraction of all base bars.

    In the second case `claimed` is confirmed if just so many bars have closed by then and fewer before; otherwise all
    closes are put in order.
    """
    if recipe.train_end_ns is not None:
        return recipe.train_end_ns
    assert recipe.split.val_fraction is not None
    shards = {entry.key: entry for one in symbols.values() for entry in one.bars[recipe.base].entries}
    closes = [entry.array("close_time") for entry in shards.values()]
    wanted = max(int((1 - recipe.split.val_fraction) * sum(map(len, closes))), 1)
    before = sum(int(np.searchsorted(c, claimed, side="left")) for c in closes)
    by_then = sum(int(np.searchsorted(c, claimed, side="right")) for c in closes)
    if before < wanted <= by_then:
        return claimed
    return int(np.partition(np.concatenate(closes), wanted - 1)[wanted - 1])


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
        for time, ends in _blocks(evidence.windows, first, count, "time", "ends"):
            if (np.diff(time, prepend=before) <= 0).any():
                found.faults.append(f"{symbol}: the windows are not in order of their decision times")
            before = int(time[-1])
            for column, (name, length) in enumerate(recipe.seq_lens.items()):
                found.faults += _wrong_ends(symbol, name, length, evidence.bars[name], time, ends[:, column])
    found.detail = (
        f"all {found.checked:,} windows end, in every timeframe, with the last bar that was over at their time"
    ) + taken_over(symbols)
    return found


def _blocks(windows: Entry, start: int, stop: int, *arrays: str) -> Iterator[list[NDArray[Any]]]:
    """Arrays of the windows [start, stop), block by block."""
    for at in range(start, stop, _ROWS):
        yield [windows.rows(name, at, min(at + _ROWS, stop)) for name in arrays]


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
    for start in range(first, len(series), _ROWS):
        opened, closed = (
            series.rows(name, start, min(start + _ROWS, len(series))) for name in ("open_time", "close_time")
        )
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


def check_purge(recipe: Recipe, symbols: Mapping[str, Evidence], splits: Mapping[str, Any], start: int) -> Finding:
    """Training knows nothing after T0 − embargo, and validation nothing before T0 = `start`."""
    found = Finding()
    cutoff = start - duration_ns(recipe.split.embargo)
    held = held_out(recipe, symbols)
    for part, field_, expected, what in (
        ("train", "until", cutoff, "training ends"),
        ("val", "from", start, "validation begins"),
        *([("hold_out", "from", start, "validation begins")] if held else []),
    ):
        if splits[part][field_] != expected:
            found.faults.append(
                f"{recipe.name}: {what} at {format_time(splits[part][field_])}, where recipe and bars put it at "
                f"{format_time(expected)}"
            )
    for symbol, evidence in symbols.items():
        count = evidence.windows.shape("time")[0]
        (first, stop), (begin, end) = (
            splits[part]["windows"][symbol] for part in ("train", "hold_out" if symbol in held else "val")
        )
        if symbol in held:
            for part in ("train", "val"):
                one, past = splits[part]["windows"][symbol]
                if one != past:
                    found.faults.append(f"{symbol}: held out, and yet {past - one:,} of its windows are in {part}")
        if not 0 <= first <= stop <= begin <= end <= count:
            found.faults.append(
                f"{symbol}: training takes windows {first:,} to {stop:,} and validation {begin:,} to {end:,} of "
                f"{count:,}; these ranges overlap or lie outside"
            )
            continue
        if evidence.proved and evidence.proved.ranges["train"] == (first, stop):
            trained = stop
        else:
            trained = first
        validated = begin
        if evidence.proved and evidence.proved.ranges["hold_out" if symbol in held else "val"][0] == begin:
            validated = min(max(begin, evidence.first), end)
        found.checked += stop - trained + end - validated
        latest = max((int(time.max()) for (time,) in _blocks(evidence.windows, trained, stop, "time")), default=cutoff)
        if latest > cutoff:
            found.faults.append(
                f"{symbol} {recipe.base} at {format_time(latest)}: a training window is decided after training ends, "
                f"{format_time(cutoff)}"
            )
        known = len(found.faults)
        if end > validated:
            found.faults += _unpurged(symbol, recipe, evidence, (validated, end), start)
        if len(found.faults) == known:
            train = None if symbol in held else (first, stop)
            found.faults += _other_ranges(symbol, recipe, evidence, train, (begin, end), cutoff, start)
    found.detail = (
        f"{found.checked:,} windows: those for training are decided by {format_time(cutoff)}, and those for validation "
        f"hold no bar that opened before {format_time(start)}"
    ) + taken_over(symbols)
    return found


def _other_ranges(
    symbol: str,
    recipe: Recipe,
    evidence: Evidence,
    train: tuple[int, int] | None,
    val: tuple[int, int],
    cutoff: int,
    start: int,
) -> Iterator[str]:
    """Windows that could be in a part and are not; the counts of bars tell, and they grow with the windows."""
    windows = range(evidence.windows.shape("time")[0])
    needed = [  # by stream, how many bars there are when as many as a window has open in validation
        evidence.count_by(name, "open_time", start, side="left") + length for name, length in recipe.seq_lens.items()
    ]
    stop = bisect_right(windows, cutoff, key=lambda at: evidence.windows.rows("time", at, at + 1)[0])
    begin = bisect_left(
        windows, True, lo=stop, key=lambda at: bool((evidence.windows.rows("ends", at, at + 1)[0] >= needed).all())
    )
    for part, found, expected in (("training", train, (0, stop)), ("validation", val, (begin, len(windows)))):
        if found is not None and found != expected:
            yield (
                f"{symbol}: {part} takes windows {found[0]:,} to {found[1]:,}, where recipe and bars give "
                f"{expected[0]:,} to {expected[1]:,}"
            )


def _unpurged(symbol: str, recipe: Recipe, evidence: Evidence, val: tuple[int, int], start: int) -> Iterator[str]:
    fewest = []
    for time, ends in _blocks(evidence.windows, *val, "time", "ends"):
        at = ends.argmin(axis=0)
        fewest.append((ends[at, range(len(at))], time[at]))
    counts, times = (np.stack(of_blocks) for of_blocks in zip(*fewest, strict=True))
    for column, (name, length) in enumerate(recipe.seq_lens.items()):
        block = int(counts[:, column].argmin())
        begins = int(counts[block, column]) - length
        opened = int(evidence.bars[name].rows("open_time", begins, begins + 1)[0]) if begins >= 0 else start
        if opened < start:
            yield (
                f"{symbol} {name} at {format_time(times[block, column])}: this validation window begins at "
                f"{format_time(opened)}, before validation does, {format_time(start)}, so it shares bars with training"
            )
