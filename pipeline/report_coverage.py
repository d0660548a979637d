"""When there were bars: a map of hours by date, pauses that recur, and the longest gaps. Times are int64 ns UTC.

Streams keep when bars closed. A bar is taken to have opened its timeframe's length before, or when the one before it
closed, whichever is later.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cache.entries import Entry
from cache.html import figure, grid, legend, paragraph, subheading, table
from cache.layout import CHUNK_ROWS
from cache.reader import Dataset
from cache.svg import cells, element, panel, text
from cache.timeframes import DAY_NS

Array = NDArray[Any]
HOUR_NS = DAY_NS // 24
_COLUMNS = 110  # of a map, at most
_STEPS = (1, 2, 7, 14, 28, 56, 112, 224, 448, 896)  # days a column
_LONGEST = 6  # gaps to name
_THIN = 0.6  # of the median column: a column below is marked
_LEVELS = 5
_SYMBOLS = 60  # rows of the map of symbols


@dataclass(frozen=True)
class Coverage:
    """Of one stream: the share of every hour that bars cover, float32 [hours] from the hour number `first_hour` on.

    Attributes:
        pauses: how often each length of time without a bar occurs, ns.
        longest: the longest of them, (begin, end), longest first.
    """

    first_hour: int
    last_close: int
    hours: NDArray[np.float32]
    pauses: Counter[int]
    longest: list[tuple[int, int]]


def spans(stream: Entry) -> Iterator[tuple[Array, Array]]:
    """When bars open and close, block by block, int64 [n]."""
    nominal, before = int(stream.manifest["nominal_length"]), None
    rows = stream.shape("close_time")[0]
    for start in range(0, rows, CHUNK_ROWS):
        close = stream.rows("close_time", start, min(start + CHUNK_ROWS, rows))
        previous = np.append(close[0] - nominal if before is None else before, close[:-1])
        before = close[-1]
        yield np.maximum(close - nominal, previous), close


def cover(stream: Entry) -> Coverage:
    """Read a stream's times once."""
    ends = stream.array("close_time")
    first = (int(ends[0]) - int(stream.manifest["nominal_length"])) // HOUR_NS
    last = int(ends[-1]) // HOUR_NS + 1
    grid_ns = np.arange(first, last + 1) * HOUR_NS
    covered = np.zeros(len(grid_ns))  # ns that bars cover before each full hour
    total, before = 0, None
    pauses: Counter[int] = Counter()
    longest: list[tuple[int, int]] = []
    for opens, closes in spans(stream):
        lengths = closes - opens
        sums = total + np.append(0, np.cumsum(lengths))
        reached = slice(int(np.searchsorted(grid_ns, opens[0])), int(np.searchsorted(grid_ns, closes[-1], "right")))
        at = grid_ns[reached]
        over = np.searchsorted(closes, at, side="right")  # bars that are over by then, and part of the next
        inside = np.clip(at - opens[np.minimum(over, len(opens) - 1)], 0, lengths[np.minimum(over, len(opens) - 1)])
        covered[reached] = sums[over] + np.where(over < len(opens), inside, 0)
        covered[reached.stop :] = total = int(sums[-1])
        previous = np.append(opens[0] if before is None else before, closes[:-1])
        before = closes[-1]
        gaps = opens - previous
        lengths_found, counts = np.unique(gaps[gaps > 0], return_counts=True)
        pauses.update(dict(zip(lengths_found.tolist(), counts.tolist(), strict=True)))
        some = np.argsort(gaps, kind="stable")[-_LONGEST:]
        longest += [(int(previous[k]), int(opens[k])) for k in some if gaps[k] > 0]
        longest = sorted(longest, key=lambda gap: gap[0] - gap[1])[:_LONGEST]
    return Coverage(first, int(ends[-1]), (np.diff(covered) / HOUR_NS).astype(np.float32), pauses, longest)


def coverage_body(dataset: Dataset, symbol: str) -> str:
    """A map for every timeframe of one symbol, and the pauses of its base; with several symbols, first a map of all."""
    streams = dataset.symbols[symbol].streams
    found = {name: cover(stream) for name, stream in streams.items()}
    days = column_days(max(len(of.hours) for of in found.values()) / 24)
    shares = {name: _by_date(of, days) for name, of in found.items()}
    open_hours = np.flatnonzero(np.any([np.nan_to_num(share).any(axis=1) for share in shares.values()], axis=0))
    hours = range(max(int(open_hours[0]) - 1, 0), min(int(open_hours[-1]) + 2, 24))  # with one before and one after
    words = {
        "h5": "hour full of bars",
        "h2": "partly",
        "thinly": f"less than {100 * _THIN:.0f} % of what is usual",
    }
    figures = []
    for name, of in found.items():
        drawing = _map(symbol, name, shares[name], of.first_hour, of.last_close, days, hours)
        caption = f"bars cover {100 * float(of.hours.mean()):.0f} % of all time"
        figures.append(figure(drawing, caption, heading=name))
    parts = [_symbols_map(dataset)] if len(dataset.symbols) > 1 else []
    parts += [
        legend(words),
        paragraph(f"Down: hours of the day, UTC. Across: dates, {_days(days)} a column."),
        grid(figures),
    ]
    base = dataset.timeframes[0]
    return "".join([*parts, subheading(f"Time without {base} bars"), _pauses(base, found[base])])


def column_days(days: float) -> int:
    """Days a column of a map holds, so that they are not too many."""
    return next((step for step in _STEPS if days / step <= _COLUMNS - 1), _STEPS[-1])


def day(ns: int) -> str:
    """The date of an instant, in UTC."""
    return f"{datetime.fromtimestamp(ns // 10**9, UTC):%Y-%m-%d}"


def minute(ns: int) -> str:
    """Date and time of day of an instant, in UTC."""
    return f"{datetime.fromtimestamp(ns // 10**9, UTC):%Y-%m-%d %H:%M}"


def lasting(ns: float) -> str:
    """A length of time for people, in its largest unit."""
    for unit, name in ((DAY_NS, "day"), (HOUR_NS, "h"), (HOUR_NS // 60, "min")):
        if ns >= unit:
            count = f"{ns / unit:.1f}".removesuffix(".0")
            return f"{count} {name}{'s' * (name == 'day' and count != '1')}"
    return f"{ns / 1e9:g} s"


def _by_date(of: Coverage, days: int) -> Array:
    """Mean coverage [24, columns] of every hour of the day in every column of dates; NaN where it is not reached."""
    begin = of.first_hour // 24
    padded = np.full((-(-(of.first_hour % 24 + len(of.hours)) // (24 * days))) * 24 * days, np.nan)
    padded[of.first_hour - 24 * begin :][: len(of.hours)] = of.hours
    cube = padded.reshape(-1, days, 24)
    known = np.isfinite(cube).sum(axis=1)
    sums = np.nan_to_num(cube).sum(axis=1)
    return np.where(known > 0, sums / np.maximum(known, 1), np.nan).T


def _map(symbol: str, name: str, share: Array, first_hour: int, last: int, days: int, hours: range) -> str:
    """Hours of the day by date; `share` float [24, columns], of which only `hours` are drawn."""
    full = float(np.nanquantile(share[share > 0], 0.95)) if (share > 0).any() else 1.0
    levels = np.ceil(np.clip(np.nan_to_num(share) / full, 0, 1) * _LEVELS - 1e-6).astype(int)
    columns = np.nanmean(share, axis=0)
    thin = columns < _THIN * float(np.median(columns))
    left, top, width, height = 30.0, 4.0, 322.0, 132.0
    row, wide, low = height / len(hours), width / share.shape[1], top + height
    parts = [element("rect", x=left, y=top, width=width, height=height, class_="node")]
    parts += cells(levels[hours.start : hours.stop].tolist(), wide, row, left, top)
    parts += cells([[9 if one else 0 for one in thin.tolist()]], wide, 4, left, low + 3)
    for k, hour in list(enumerate(hours))[:: max(len(hours) // 4, 1)]:
        parts.append(text(left - 4, top + k * row + 9, f"{hour:02}", "small soft", "end"))
    begin = first_hour // 24 * DAY_NS
    parts += [
        text(left, low + 20, day(begin), "small soft"),
        text(left + width, low + 20, day(last), "small soft", "end"),
    ]
    dates = ", ".join(day(begin + k * days * DAY_NS) for k in np.flatnonzero(thin)[:12].tolist())
    title = f"Coverage of {symbol} {name} by hour of the day (UTC) and date"
    said = f"{share.shape[1]} columns of {_days(days)}." + f" Dates with far fewer bars begin {dates}." * bool(dates)
    return panel(title, said, 356, low + 24, parts)


def _symbols_map(dataset: Dataset) -> str:
    """All symbols by date."""
    base = dataset.timeframes[0]
    found = {symbol: cover(entries.streams[base]) for symbol, entries in list(dataset.symbols.items())[:_SYMBOLS]}
    first = min(of.first_hour for of in found.values()) // 24
    last = max(of.first_hour + len(of.hours) for of in found.values()) // 24
    days = column_days(last - first + 1)
    columns = (last - first) // days + 1
    levels = np.zeros((len(found), columns), int)
    for row, of in enumerate(found.values()):
        sums = np.bincount((np.arange(len(of.hours)) + of.first_hour - 24 * first) // (24 * days), of.hours, columns)
        levels[row] = np.ceil(
            np.clip(sums / max(float(np.quantile(sums[sums > 0], 0.95)), 1e-9), 0, 1) * _LEVELS - 1e-6
        )
    left, row_height, width = 110.0, 12.0, 246.0
    height = row_height * len(found)
    parts = [element("rect", x=left, y=0, width=width, height=height, class_="node")]
    parts += cells(levels.tolist(), width / columns, row_height, left, 0)
    parts += [text(left - 4, row_height * (k + 0.8), _ended(name), "small", "end") for k, name in enumerate(found)]
    parts += [
        text(left, height + 14, day(first * DAY_NS), "small soft"),
        text(left + width, height + 14, day(last * DAY_NS), "small soft", "end"),
    ]
    drawing = panel(
        f"Coverage of all symbols by date, {base}", f"A row a symbol, {_days(days)} a column.", 360, height + 18, parts
    )
    more = len(dataset.symbols) - len(found)
    words = f"{base} bars of every symbol by date; a column is {_days(days)}"
    return figure(drawing, words + f"; {more:,} more symbols are not drawn" * (more > 0), "symbols")


def _pauses(base: str, of: Coverage) -> str:
    """Lengths that recur, beside the longest ones."""
    if not of.pauses:
        return paragraph(f"There is no gap between {base} bars.")
    common = [(lasting(ns), f"{count:,}") for ns, count in of.pauses.most_common(_LONGEST)]
    rest = len(of.pauses) - len(common)
    if rest > 0:
        common.append(
            (
                f"{rest:,} other lengths",
                f"{sum(of.pauses.values()) - sum(c for _, c in of.pauses.most_common(_LONGEST)):,}",
            )
        )
    rare = [(lasting(end - begin), minute(begin), minute(end)) for begin, end in of.longest]
    return grid(
        [
            table(("length", "times"), common, "Pauses that recur most"),
            table(("length", "from (UTC)", "to (UTC)"), rare, "The longest gaps"),
        ]
    )


def _days(days: int) -> str:
    return "1 day" if days == 1 else f"{days} days" if days % 7 or days == 7 else f"{days // 7} weeks"


def _ended(name: str) -> str:
    return name if len(name) <= 17 else name[:16] + "…"
