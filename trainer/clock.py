"""The time of week of bars, as channels that are known of every bar, hidden or not.

Shape suffixes: B batch, L bars, N minutes of a week, K channels.
"""

import torch
from torch import Tensor

_MINUTE_NS = 60_000_000_000
_WEEK = 7 * 24 * 60
_PERIODS = tuple(24 * 60 / k for k in (1, 2, 3, 4)) + tuple(_WEEK / k for k in (1, 2, 3))
CLOCK_CHANNELS = 2 * len(_PERIODS)


def clock_table() -> Tensor:
    """Sine and cosine of the first harmonics of day and week, float32 [10080, CLOCK_CHANNELS], by minute of the week.

    Looked up, not computed for each bar: so live and offline embeddings agree to the last bit.
    """
    minute_N = torch.arange(_WEEK, dtype=torch.float64)
    angle_NK = 2 * torch.pi * minute_N[:, None] / torch.tensor(_PERIODS, dtype=torch.float64)
    return torch.cat([angle_NK.sin(), angle_NK.cos()], dim=1).float()


def time_of_week(close_time_BL: Tensor, table_NK: Tensor) -> Tensor:
    """The row of `clock_table` for bars that close at int64 ns UTC [B, L]: float32 [B, L, CLOCK_CHANNELS].

    Seconds are cut off; the week begins on the weekday of 1 January 1970.
    """
    minute_BL = torch.div(close_time_BL, _MINUTE_NS, rounding_mode="floor") % _WEEK
    return table_NK[minute_BL]
