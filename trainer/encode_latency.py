"""How long the encoder takes for one window: frames in, tensor out."""

from collections.abc import Callable
from time import perf_counter_ns

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from cache.recipe import Session
from cache.timeframes import timeframe_ns
from pipeline.sessions import day_boundaries
from trainer.encode import Encoder

_MONDAY_NS = 1_704_067_200_000_000_000  # 2024-01-01T00:00 UTC: bars of every intraday timeframe close then
_WARM_UP = 5


def latencies(encoder: Encoder, windows: int, advance: Callable[[int], object] = lambda count: None) -> list[float]:
    """Milliseconds that `encoder.encode` takes for each of `windows` windows of simulated bars, after a few others."""
    rng = np.random.default_rng(0)
    seconds = []
    for number in range(_WARM_UP + windows):
        bars = simulated_frames(encoder, rng)
        began = perf_counter_ns()
        encoder.encode(bars, next(iter(encoder.inputs.scaling))).cpu()
        if number >= _WARM_UP:
            seconds.append((perf_counter_ns() - began) / 1e6)
            advance(1)
    return seconds


def simulated_frames(encoder: Encoder, rng: np.random.Generator) -> dict[str, pd.DataFrame]:
    """A frame a timeframe of just as many bars as a window needs, random walks without gaps."""
    inputs = encoder.inputs
    return {
        name: _frame(_edges(name, inputs.needed(name), inputs.source.session), inputs.source.label, rng)
        for name in inputs.recipe.timeframes
    }


def _edges(timeframe: str, bars: int, session: Session | None) -> NDArray[np.int64]:
    """Where consecutive bars begin and end, int64 ns UTC [bars + 1]."""
    if timeframe == "d":
        days = day_boundaries(_MONDAY_NS - (bars + 2) * timeframe_ns("d"), _MONDAY_NS, session)
        return days[days <= _MONDAY_NS][-bars - 1 :]
    return _MONDAY_NS + np.arange(-bars, 1, dtype=np.int64) * timeframe_ns(timeframe)


def _frame(edges: NDArray[np.int64], label: str, rng: np.random.Generator) -> pd.DataFrame:
    steps = rng.normal(0, 1e-3, (len(edges) - 1, 4)).cumsum(axis=1)
    path = 100 * np.exp(steps + np.concatenate([[0], steps[:-1, -1].cumsum()])[:, None])
    ohlc = np.stack([path[:, 0], path.max(axis=1), path.min(axis=1), path[:, -1]], axis=1)
    times = edges[:-1] if label == "left" else edges[1:]
    return pd.DataFrame(ohlc, columns=["open", "high", "low", "close"], index=pd.DatetimeIndex(times, tz="UTC"))
