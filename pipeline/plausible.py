"""Do the data contradict their own time stamps? Only probes that cannot misfire on honest data.

The spot currency market is closed from Friday 17:00 to Sunday 17:00 New York. Bars of a currency pair well inside that
closure, week after week, carry stamps of another zone than the recipe says.

Markets open and close at whole quarters of an hour. Where nearly all pauses begin and end one bar beside such a
quarter, time stamps that mark the ends of bars were taken for their beginnings, or the other way round.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from zoneinfo import ZoneInfo

import numpy as np
from numpy.typing import NDArray

from pipeline.series import BarSeries

NEW_YORK = ZoneInfo("America/New_York")
HOUR_NS = 3600 * 10**9
MARGIN_NS = HOUR_NS // 2  # some markets close a little later, or open a little earlier
QUARTER_NS = HOUR_NS // 4
PAUSES = 8  # fewer may lie beside a quarter by chance
PAUSE_NS = HOUR_NS // 2
LONGEST_NS = HOUR_NS // 12  # of longer bars, a market's hours need not be a whole number
FIRST_ROWS = 500_000  # more than a year of minutes, and a few milliseconds
# those traded against each other around the clock; no metals and no coins
CURRENCIES = frozenset(
    re.findall(
        r"[A-Z]{3}",
        "AUD BRL CAD CHF CLP CNH CNY COP CZK DKK EUR GBP HKD HUF IDR ILS INR JPY KRW MXN MYR NOK NZD PEN PHP PLN RON "
        "RUB SEK SGD THB TRY TWD USD ZAR",
    )
)


def warnings(symbol: str, base: BarSeries) -> list[str]:
    """What is implausible about the base bars of a symbol, in words; empty where nothing is."""
    return [*_other_label(symbol, base), *(_open_weekends(symbol, base) if is_currency_pair(symbol) else ())]


def is_currency_pair(symbol: str) -> bool:
    """Whether a name contains a pair of two currencies (`AUDUSD`, `EUR/USD`, `fx-usdcad`), not in a longer word."""
    pair = r"(?<![A-Z])([A-Z]{3})[/_. -]?([A-Z]{3})(?![A-Z])"
    found = [match for text in (symbol, symbol.upper()) for match in re.findall(pair, text)]
    return any(left != right and {left, right} <= CURRENCIES for left, right in found)


def _other_label(symbol: str, base: BarSeries) -> Iterator[str]:
    """Warn when nine of ten pauses of half an hour and more begin, and end, one bar beside a quarter of an hour.

    One edge alone is no reason: the bar of a closing auction lies behind the last minute of many honest files.
    """
    opened, closed = (base.rows(name, 0, min(len(base), FIRST_ROWS)) for name in ("open_time", "close_time"))
    length = int(closed[0] - opened[0])
    pauses = np.flatnonzero(opened[1:] - closed[:-1] >= PAUSE_NS)
    if length > LONGEST_NS or QUARTER_NS % length or len(pauses) < PAUSES:
        return
    edges = np.stack([closed[pauses], opened[pauses + 1]])  # when they begin and end
    for shift, so in ((length, "early"), (-length, "late")):
        beside = int(((edges + shift) % QUARTER_NS == 0).sum(axis=1).min())
        if beside >= 0.9 * len(pauses):
            mark, label, taken = ("beginning", "left", "end") if shift > 0 else ("end", "right", "beginning")
            before = " Windows would hold bars that were not over yet." if shift > 0 else ""
            begins, ends = _usual(edges)
            yield (
                f"{symbol}: the bars seem to be one bar too {so}: trading pauses at {begins} and goes on at {ends} UTC "
                f"where whole quarters of an hour are usual, in {beside:,} of {len(pauses):,} pauses. Do time stamps "
                f"mark the {mark} of a bar, not its {taken}? Then set data.source.label: {label}.{before}"
            )


def _usual(edges: NDArray[np.int64]) -> tuple[str, str]:
    """The times of day of the most frequent pause."""
    times, counts = np.unique(edges % (24 * HOUR_NS), axis=1, return_counts=True)
    begins, ends = (datetime.fromtimestamp(ns // 10**9, UTC) for ns in times[:, counts.argmax()].tolist())
    return f"{begins:%H:%M}", f"{ends:%H:%M}"


@dataclass(frozen=True)
class _Weekend:
    """A closure, int64 ns UTC, and the open times of the bars that lie within half a day of it."""

    closes: int
    opens: int
    opened: NDArray[np.int64]
    length: int  # of a bar

    def inside(self, hours: int = 0) -> int:
        """How many bars open more than half an hour inside it, were all `hours` later."""
        shift = hours * HOUR_NS
        low, high = np.searchsorted(self.opened, [self.closes + MARGIN_NS - shift, self.opens - MARGIN_NS - shift])
        return int(high - low)

    def last_close(self) -> int:
        """When the last bar before the middle of it closes."""
        before = self.opened[: np.searchsorted(self.opened, (self.closes + self.opens) // 2)]
        return int(before[-1]) + self.length if len(before) else self.closes

    def first_open(self) -> int:
        """When the first bar after the middle of it opens."""
        after = self.opened[np.searchsorted(self.opened, (self.closes + self.opens) // 2) :]
        return int(after[0]) if len(after) else self.opens


def _open_weekends(symbol: str, base: BarSeries) -> Iterator[str]:
    """Warn when bars lie inside at least half of the closures (and two, if there are two).

    Where hours are missing from the data, bars may lie inside a quarter of them only: a week that begins late counts
    as well if the same shift explains it.
    """
    length = int(base.rows("close_time", 0, 1)[0]) - base.first_open
    weekends = [*_weekends(base, length)]
    inside = [one for one in weekends if one.inside()]
    if not inside or length > HOUR_NS:  # longer bars may well begin before the market does
        return
    count = sum(one.inside() for one in inside)
    left = {hours: sum(one.inside(hours) for one in inside) for hours in sorted(range(-12, 13), key=abs)}
    shift = min(left, key=lambda hours: left[hours])  # the smallest of the best
    if left[shift] > 0.25 * count:  # some stay when clocks change on the weekend
        shift = 0
    late = [one for one in weekends if shift < 0 and not one.inside() and one.first_open() > one.opens + MARGIN_NS]
    concerned = [*inside, *late]
    if len(concerned) < min(len(weekends), 2) or 2 * len(concerned) < len(weekends) or 4 * len(inside) < len(weekends):
        return
    earliest = min(concerned, key=lambda one: one.first_open() - one.opens).first_open()
    latest = max(concerned, key=lambda one: one.last_close() - one.closes).last_close()
    reopens, closes = (datetime.fromtimestamp(instant // 10**9, NEW_YORK) for instant in (earliest, latest))
    yield (
        f"{symbol}: {count:,} bars lie where the currency market is closed, between Friday 17:00 and Sunday 17:00 New "
        f"York, in {len(inside)} of {len(weekends)} weekend{'s' * (len(weekends) > 1)}: the earliest reopening is on "
        f"{reopens:%A} at {reopens:%H:%M} there, the latest close on {closes:%A} at {closes:%H:%M}. {_remedy(shift)}"
    )


def _remedy(shift: int) -> str:
    if not shift:
        return "No whole number of hours puts that right; are these quotes of another market, or filled gaps?"
    return (
        f"The time stamps seem to be {abs(shift)} hour{'s' * (abs(shift) > 1)} too {'late' if shift < 0 else 'early'}. "
        "Correct data.source.timezone or the stamps: New York times to which a fixed 5 hours were added, for example, "
        "are an hour off in summer"
    )


def _weekends(base: BarSeries, length: int) -> Iterator[_Weekend]:
    """The closures that lie wholly between the first and the last bar."""
    day = datetime.fromtimestamp(base.first_open / 1e9, NEW_YORK).date()
    friday = day + timedelta(days=(4 - day.weekday()) % 7)
    closures = []
    while (opens := _instant(friday + timedelta(days=2))) < base.last_close:
        if (closes := _instant(friday)) > base.first_open:
            closures.append((closes, opens))
        friday += timedelta(days=7)
    around = np.array(closures, np.int64).reshape(-1, 2) + np.array([-13, 13]) * HOUR_NS
    near: list[list[NDArray[np.int64]]] = [[] for _ in closures]
    for start, stop in base.ranges():
        opened = base.rows("open_time", start, stop)
        for number, (first, last) in enumerate(np.searchsorted(opened, around).tolist()):
            if last > first:
                near[number].append(opened[first:last].copy())
    for (closes, opens), parts in zip(closures, near, strict=True):
        yield _Weekend(closes, opens, np.concatenate([np.empty(0, np.int64), *parts]), length)


def _instant(day: date) -> int:
    """17:00 New York of a day, ns UTC."""
    return int(datetime.combine(day, time(17), NEW_YORK).timestamp()) * 10**9
