"""Seeded one-minute bars that look like a currency pair, so that everything can be tried without market data.

The market is open from Sunday 17:00 to Friday 17:00 New York time. A week is simulated on its full grid of 7,200
minutes, and then minutes are taken out. All randomness of a week comes from (seed, week number), and a week hands only
its last price and volatility regime to the next one: the first rows of a long simulation are those of a short one.
"""

from collections.abc import Callable, Iterator
from datetime import date, datetime, time, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import numpy as np
from numpy.typing import NDArray

from pipeline.bars_writer import write_bars

NEW_YORK = ZoneInfo("America/New_York")
FIRST_SUNDAY = date(2024, 1, 7)
OPEN_AT = time(17)
DAY_MINUTES = 1440
# New York changes its clocks on Sundays at 02:00, while the market is closed: every week is 120 hours long.
WEEK_MINUTES = 5 * DAY_MINUTES
MINUTE_NS = 60_000_000_000
HOLIDAYS = ((12, 25), (1, 1))

# 18 whole weeks are at most 129,600 rows: one row group that stays below 131,072.
BLOCK_WEEKS = 18
# Int64 nanoseconds end in the year 2262, which is 85 million rows away.
MAX_ROWS = 80_000_000

ANCHOR, TICKS_PER_UNIT = 1.10, 100_000
MINUTE_VOLATILITY = 1.3e-4
# Shares of a minute's variance: a small one from the last price of a minute to the first of the next, and five equal.
STEP_VARIANCE = np.array([0.04, 0.192, 0.192, 0.192, 0.192, 0.192])
WEEKEND_VOLATILITY = 6e-4

CALM, NORMAL, STRESSED = 0, 1, 2
REGIME_VOLATILITY = (0.55, 1.0, 2.2)
REGIME_MEAN_MINUTES = (1800, 2400, 480)
STRESSED_AFTER_NORMAL = 0.35

CLUSTER_DECAY, CLUSTER_DEVIATION = 0.98, 0.35
PULL_DECAY, PULL = 0.95, 0.02
ANCHOR_PULL_PER_WEEK = 0.009

# By the hour in New York, counted on from 17:00: the roll-over, Asia, London from 27 (= 03:00), with New York from 32.
CLOCK_HOURS = (17, 18.5, 19.5, 26, 27, 31, 32.5, 35, 36.5, 39, 41)
CLOCK_VOLATILITY = (0.3, 0.35, 0.6, 0.6, 1.1, 1.1, 1.7, 1.7, 1.0, 0.7, 0.35)
CLOCK_MISSING = (0.35, 0.20, 0.04, 0.04, 0.008, 0.005, 0.002, 0.002, 0.005, 0.01, 0.04)
GAPS_PER_WEEK, GAP_MINUTES = 0.5, (5, 240)

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def simulate_bars(path: Path, rows: int, seed: int, progress: Callable[[int], None]) -> None:
    """Write `rows` one-minute bars to the parquet file `path`; its folder must exist.

    Columns: `timestamp` (nanoseconds UTC, the bar's open) and open, high, low, close (float64, rounded to 0.00001).
    The file appears whole or not at all. `progress` is called after every row group with the rows written so far.

    The same (rows, seed) give the same table, and the first n rows are the same for every `rows` ≥ n.

    Raises ValueError if `rows` is not in 1..MAX_ROWS or `seed` is negative; OSError if the file cannot be written.
    """
    if not 1 <= rows <= MAX_ROWS:
        raise ValueError(f"rows must be between 1 and {MAX_ROWS:,}, not {rows:,}")
    if seed < 0:
        raise ValueError(f"seed must not be negative, and it is {seed}")
    write_bars(path, _blocks(rows, seed), progress)


def _blocks(rows: int, seed: int) -> Iterator[tuple[Ints, Floats]]:
    """Yield open times [T] and prices [4, T] of BLOCK_WEEKS weeks at a time, `rows` rows in all."""
    weeks = _weeks(seed)
    while rows > 0:
        times, prices = zip(*(next(weeks) for _ in range(BLOCK_WEEKS)), strict=True)
        times_T, prices_4T = np.concatenate(times)[:rows], np.concatenate(prices, axis=1)[:, :rows]
        rows -= times_T.size
        yield times_T, prices_4T


def _weeks(seed: int) -> Iterator[tuple[Ints, Floats]]:
    """Yield open times [T] (int64 ns UTC) and open, high, low, close [4, T], week after week without end."""
    clock_hours = 17 + np.arange(DAY_MINUTES) / 60
    clock_volatility = np.tile(np.interp(clock_hours, CLOCK_HOURS, CLOCK_VOLATILITY), 5)
    clock_missing = np.tile(np.interp(clock_hours, CLOCK_HOURS, CLOCK_MISSING), 5)
    log_price, regime, week = 0.0, NORMAL, 0
    while True:
        rng = np.random.default_rng([seed, week])
        sunday = FIRST_SUNDAY + timedelta(weeks=week)
        regime_volatility, regime = _regimes(rng, regime)
        volatility = MINUTE_VOLATILITY * clock_volatility * regime_volatility * _clusters(rng)
        path_4T = _path(rng, log_price, volatility)
        log_price = float(path_4T[3, -1])
        minutes = np.flatnonzero(~_missing(rng, sunday, clock_missing))
        opened = int(datetime.combine(sunday, OPEN_AT, NEW_YORK).timestamp()) * 1_000_000_000
        ticks_4T = np.rint(ANCHOR * TICKS_PER_UNIT * np.exp(path_4T[:, minutes]))
        yield opened + minutes * MINUTE_NS, ticks_4T / TICKS_PER_UNIT
        week += 1


def _regimes(rng: np.random.Generator, regime: int) -> tuple[Floats, int]:
    """Return the volatility factors [WEEK_MINUTES] and the last regime; durations are geometric, so none is carried."""
    factors = np.empty(WEEK_MINUTES)
    start = 0
    while True:
        stop = start + int(rng.geometric(1 / REGIME_MEAN_MINUTES[regime]))
        factors[start:stop] = REGIME_VOLATILITY[regime]
        if stop >= WEEK_MINUTES:
            return factors, regime
        start = stop
        if regime == NORMAL:
            regime = STRESSED if rng.random() < STRESSED_AFTER_NORMAL else CALM
        else:
            regime = NORMAL


def _clusters(rng: np.random.Generator) -> Floats:
    """Return volatility factors [WEEK_MINUTES] around 1 whose logarithm is a first-order autoregression."""
    noise = _decaying_sum(rng.standard_normal(WEEK_MINUTES), CLUSTER_DECAY)
    factors: Floats = np.exp(CLUSTER_DEVIATION * (1 - CLUSTER_DECAY**2) ** 0.5 * noise - CLUSTER_DEVIATION**2 / 2)
    return factors


def _path(rng: np.random.Generator, log_price: float, volatility: Floats) -> Floats:
    """Return log(price / ANCHOR) [4, WEEK_MINUTES]: open, high, low, close, given the one before the weekend."""
    start = log_price + WEEKEND_VOLATILITY * rng.standard_normal()
    shocks = rng.standard_normal((STEP_VARIANCE.size, WEEK_MINUTES)) * np.sqrt(STEP_VARIANCE)[:, None] * volatility
    # A minute gives back a little of the moves before it: known at its open, so a model can learn it.
    drift = np.full(WEEK_MINUTES, -ANCHOR_PULL_PER_WEEK / WEEK_MINUTES * start)
    drift[1:] -= PULL * _decaying_sum(shocks.sum(axis=0), PULL_DECAY)[:-1]
    shocks += drift / STEP_VARIANCE.size
    inside = np.cumsum(shocks, axis=0)
    before = np.cumsum(np.concatenate([[start], inside[-1, :-1]]))
    path: Floats = before + np.stack([inside[0], inside.max(axis=0), inside.min(axis=0), inside[-1]])
    return path


def _missing(rng: np.random.Generator, sunday: date, clock_missing: Floats) -> NDArray[np.bool_]:
    """Return which minutes [WEEK_MINUTES] have no bar: single ones by the clock, a few longer gaps, and holidays."""
    missing = rng.random(WEEK_MINUTES) < clock_missing
    shortest, longest = GAP_MINUTES
    for _ in range(rng.poisson(GAPS_PER_WEEK)):
        start = int(rng.integers(WEEK_MINUTES))
        missing[start : start + int(shortest * (longest / shortest) ** rng.random())] = True
    for day in range(6):
        holiday = sunday + timedelta(days=day)
        if (holiday.month, holiday.day) in HOLIDAYS:
            midnight = day * DAY_MINUTES - OPEN_AT.hour * 60
            missing[max(midnight, 0) : midnight + DAY_MINUTES] = True
    return missing


def _decaying_sum(x: Floats, decay: float) -> Floats:
    """Return y[t] = Σ decay^k · x[t−k], cut off where decay^k < 0.001, by doubling the number of terms."""
    y, lag = x, 1
    while decay**lag >= 1e-3:
        y = np.concatenate([y[:lag], y[lag:] + decay**lag * y[:-lag]])
        lag *= 2
    return y
