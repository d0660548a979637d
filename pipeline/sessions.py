"""Trading days: the instants at which they close."""

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import numpy as np
from numpy.typing import NDArray

from cache.recipe import Session
from cache.timeframes import DAY_NS


def day_boundaries(first_ns: int, last_ns: int, session: Session | None) -> NDArray[np.int64]:
    """Instants at which days begin and end, int64 ns UTC: at least one at or before `first_ns`, one after `last_ns`.

    Without a session, days are UTC days. With one, each calendar day has its boundary at the session's local time, so
    that a day has 23, 24 or 25 hours. A local time skipped or repeated by the zone is read as PEP 495 does (fold 0).
    """
    if session is None:
        return np.arange(first_ns // DAY_NS, last_ns // DAY_NS + 2, dtype=np.int64) * DAY_NS
    zone, (hour, minute) = ZoneInfo(session.tz), (int(part) for part in session.at.split(":"))
    day = (datetime.fromtimestamp(first_ns / 1e9, UTC) - timedelta(days=2)).date()
    end = (datetime.fromtimestamp(last_ns / 1e9, UTC) + timedelta(days=2)).date()
    seconds = []
    while day <= end:
        seconds.append(int(datetime(day.year, day.month, day.day, hour, minute, tzinfo=zone).timestamp()))
        day += timedelta(days=1)
    return np.array(seconds, np.int64) * 10**9
