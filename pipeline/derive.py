"""Higher timeframes from the base: first open, maximum, minimum, last close of the bars that open inside a bucket."""

from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from cache.recipe import Session
from cache.timeframes import timeframe_ns
from pipeline import kernels
from pipeline.bars import Block
from pipeline.sessions import day_boundaries


def bucket_bounds(first_ns: int, last_ns: int, timeframe: str, session: Session | None) -> NDArray[np.int64]:
    """Bounds of the buckets of a timeframe from the one with `first_ns` to the one with `last_ns`, int64 ns UTC.

    Intraday buckets begin at whole multiples since midnight UTC, days at the session's boundary.
    """
    if timeframe == "d":
        bounds = day_boundaries(first_ns, last_ns, session)
        return bounds[np.searchsorted(bounds, first_ns, side="right") - 1 :]
    length = timeframe_ns(timeframe)
    return np.arange(first_ns // length, last_ns // length + 2, dtype=np.int64) * length


def derive_bars(base: Iterable[Block], timeframe: str, session: Session | None) -> Iterator[Block]:
    """Bars of `timeframe` from base bars in order of time. A last bucket that the data does not finish is left out.

    A bar closes when its bucket does, never before its last child.
    """
    prices, closed = np.full(4, np.nan), np.zeros(1, np.int64)
    bounds = np.empty(0, np.int64)
    for block in base:
        begin = int(bounds[0] if len(bounds) else block.open_time[0])
        bounds = bucket_bounds(begin, int(block.open_time[-1]), timeframe, session)
        out = Block(np.empty(len(bounds), np.int64), np.empty(len(bounds), np.int64), np.empty((len(bounds), 4)))
        count, still_open = kernels.aggregate(
            block.open_time,
            block.close_time,
            block.ohlc,
            bounds,
            prices,
            closed,
            out.open_time,
            out.close_time,
            out.ohlc,
        )
        bounds = bounds[still_open:]
        if count:
            yield Block(out.open_time[:count], out.close_time[:count], out.ohlc[:count])
    if len(bounds) and bounds[1] <= closed[0]:
        yield Block(bounds[:1], np.maximum(bounds[1:2], closed), prices[None, :])
