"""Which base bars lie inside each bar of a longer timeframe: the clock that all timeframes share."""

import numpy as np
from numpy.typing import NDArray

from pipeline.series import BarSeries


def base_rows(base: BarSeries, bars: BarSeries, first: int = 0) -> NDArray[np.int32]:
    """Rows [first, past the last) of the base bars that open inside each bar, int32 [n, 2]; equal where there are none.

    Only of the n bars from row `first` on. Memory grows with their number, not with that of base bars.
    """
    edges = np.empty((len(bars) - first, 2), np.int64)
    for start, stop in bars.ranges(first):
        for side, name in enumerate(("open_time", "close_time")):
            edges[start - first : stop - first, side] = bars.rows(name, start, stop)
    rows = np.full(edges.shape, len(base), np.int32)
    low = [0, 0]
    for start, stop in base.ranges(base.opened_before(int(edges[0, 0])) if first and len(edges) else 0):
        opened = base.rows("open_time", start, stop)
        for side in (0, 1):
            high = int(np.searchsorted(edges[:, side], opened[-1], side="right"))
            rows[low[side] : high, side] = start + np.searchsorted(opened, edges[low[side] : high, side], side="left")
            low[side] = high
    return rows
