"""Timeframe names and durations. All results are int64-sized nanoseconds."""

import re
from datetime import datetime, timedelta

_UNIT_NS = {"s": 10**9, "min": 60 * 10**9, "h": 3600 * 10**9, "d": 86400 * 10**9, "w": 7 * 86400 * 10**9}
_EPOCH = datetime(1970, 1, 1)
_TIMEFRAME_UNITS = {"s": "s", "m": "min", "h": "h", "d": "d"}
DAY_NS = _UNIT_NS["d"]


def timeframe_ns(name: str) -> int:
    """Nominal length of a timeframe such as `s30`, `m1`, `h4` or `d` in nanoseconds.

    A session day (`d`) is nominally 24 h; its true length may be 23 or 25 h. Raises ValueError for other names.
    """
    match = re.fullmatch(r"([smh])([1-9]\d*)|(d)", name)
    if not match:
        raise ValueError(f"{name!r} is not a timeframe; write for example s30, m1, m15, h4 or d")
    unit, count = match[1] or "d", int(match[2] or 1)
    length = count * _UNIT_NS[_TIMEFRAME_UNITS[unit]]
    if unit != "d" and DAY_NS % length:
        raise ValueError(f"{name!r} does not divide a day evenly; write for example m15, m20 or h4")
    return length


def duration_ns(text: str) -> int:
    """A duration such as `0s`, `90s`, `200min`, `4h`, `1.5d` or `2w` in nanoseconds.

    Raises ValueError for other texts, negative ones included.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(s|min|h|d|w)", text)
    if not match:
        raise ValueError(f"{text!r} is not a duration; write for example 0s, 90s, 200min, 4h, 1d or 2w")
    return round(float(match[1]) * _UNIT_NS[match[2]])


def format_ns(ns: int) -> str:
    """A duration in the largest unit that divides it (`90min`, `1d`), exactly."""
    for unit in ("w", "d", "h", "min", "s"):
        if ns % _UNIT_NS[unit] == 0 and (ns or unit == "s"):
            return f"{ns // _UNIT_NS[unit]}{unit}"
    return f"{ns // 10**9}.{ns % 10**9:09}".rstrip("0") + "s"


def format_time(ns: int) -> str:
    """An instant for messages, in UTC: `2024-01-31T11:25:00 UTC`, with nine decimals where they are not zero."""
    seconds, rest = divmod(int(ns), 10**9)
    text = (_EPOCH + timedelta(seconds=seconds)).isoformat()
    return f"{text}.{rest:09} UTC" if rest else f"{text} UTC"
