from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cache.recipe import Session
from pipeline.bars import Block
from pipeline.derive import bucket_bounds, derive_bars
from tests.unit.pipeline.making import DAY, HOUR, MINUTE, MONDAY, in_blocks, joined, random_ohlc

NEW_YORK = Session(tz="America/New_York", at="17:00")
SUMMER_TIME, WINTER_TIME = (pd.Timestamp(day, tz="UTC").value for day in ("2024-03-08", "2024-11-01"))
AGGREGATE = {"open": "first", "high": "max", "low": "min", "close": "last", "closed": "last"}


def derive_by_pandas(bars: Block, timeframe: str, session: Session | None) -> pd.DataFrame:
    """Bars indexed by when their bucket opens, with `ends` (of the bucket) and `closed` (of the last child)."""
    frame = pd.DataFrame(bars.ohlc, columns=["open", "high", "low", "close"])
    frame.index = pd.to_datetime(bars.open_time, utc=True)
    frame["closed"] = pd.to_datetime(bars.close_time, utc=True)
    if timeframe != "d" or session is None:
        rule = {"s": "s", "m": "min", "h": "h"}.get(timeframe[0])
        rule = "1D" if rule is None else timeframe[1:] + rule
        made = frame.resample(rule).agg(AGGREGATE).dropna()
        made["ends"] = made.index + pd.Timedelta(rule)
    else:
        since = pd.Timedelta(f"{session.at}:00")
        local_day = (frame.index.tz_convert(session.tz).tz_localize(None) - since).normalize()
        made = frame.groupby(local_day).agg(AGGREGATE)
        made["ends"] = (made.index + pd.Timedelta("1D") + since).tz_localize(session.tz).tz_convert("UTC")
        made.index = (made.index + since).tz_localize(session.tz).tz_convert("UTC")
    finished = made["closed"].iloc[-1] >= made["ends"].iloc[-1]
    return made if finished else made.iloc[:-1]


def as_ns(times: Any) -> np.ndarray:
    return pd.DatetimeIndex(times).as_unit("ns").asi8


def assert_same(found: Block, expected: pd.DataFrame) -> None:
    np.testing.assert_array_equal(found.open_time, as_ns(expected.index))
    np.testing.assert_array_equal(found.close_time, np.maximum(as_ns(expected["ends"]), as_ns(expected["closed"])))
    np.testing.assert_array_equal(found.ohlc, expected[["open", "high", "low", "close"]])


@st.composite
def base_bars(draw: st.DrawFn, max_rows: int = 300) -> Block:
    """Minute bars with gaps up to days; they may begin anywhere and close later than a minute after they open."""
    rows = draw(st.integers(1, max_rows))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    gap_share, longest = draw(st.sampled_from([0.0, 0.05, 0.5])), draw(st.sampled_from([3, 90, 1440, 6000]))
    steps = np.where(rng.random(rows) < gap_share, rng.integers(1, longest + 1, rows), 1)
    start = draw(st.sampled_from([MONDAY, SUMMER_TIME, WINTER_TIME])) + draw(st.integers(0, 3000)) * MINUTE
    opened = start + np.cumsum(steps) * MINUTE
    closed = opened + MINUTE
    if draw(st.booleans()):  # irregular: some bars overrun their minute, up to the next bar's close
        overrun = np.where(rng.random(rows) < 0.2, rng.integers(0, 600, rows), 0) * 10**9
        closed = np.maximum.accumulate(closed + overrun)
    return Block(opened, closed, random_ohlc(rng, rows))


@settings(max_examples=150, deadline=None)
@given(bars=base_bars(), timeframe=st.sampled_from(["m5", "m15", "h1", "h4", "h12", "d"]))
def test_buckets_equal_pandas(bars: Block, timeframe: str):
    assert_same(joined(derive_bars([bars], timeframe, None)), derive_by_pandas(bars, timeframe, None))


@settings(max_examples=100, deadline=None)
@given(
    bars=base_bars(),
    spread=st.sampled_from([1, 7, 60]),
    session=st.sampled_from([NEW_YORK, Session(tz="Europe/London", at="00:00"), Session(tz="Asia/Tokyo", at="09:30")]),
)
def test_session_days_equal_pandas_over_clock_changes(bars: Block, spread: int, session: Session):
    opened = bars.open_time[0] + (bars.open_time - bars.open_time[0]) * spread
    wide = Block(opened, opened + (bars.close_time - bars.open_time), bars.ohlc)
    assert_same(joined(derive_bars([wide], "d", session)), derive_by_pandas(wide, "d", session))


@settings(max_examples=150, deadline=None)
@given(
    bars=base_bars(max_rows=60),
    cuts=st.lists(st.integers(0, 60), max_size=8),
    timeframe=st.sampled_from(["m5", "h1", "d"]),
    session=st.sampled_from([None, NEW_YORK]),
)
def test_blocks_do_not_matter(bars: Block, cuts: list[int], timeframe: str, session: Session | None):
    cuts = [min(cut, len(bars.ohlc)) for cut in cuts]
    whole = joined(derive_bars([bars], timeframe, session))
    pieces = joined(derive_bars(in_blocks(bars, cuts), timeframe, session))
    for name in ("open_time", "close_time", "ohlc"):
        np.testing.assert_array_equal(getattr(pieces, name), getattr(whole, name))


def minutes(start: int, count: int, seed: int = 0) -> Block:
    opened = start + MINUTE * np.arange(count)
    return Block(opened, opened + MINUTE, random_ohlc(np.random.default_rng(seed), count))


@pytest.mark.parametrize(("count", "bars"), [(59, 0), (60, 1), (61, 1), (119, 1), (120, 2)])
def test_a_bar_exists_when_its_bucket_is_over(count: int, bars: int):
    assert len(joined(derive_bars([minutes(MONDAY, count)], "h1", None)).ohlc) == bars


def test_a_bucket_with_missing_minutes_is_over_when_a_later_bar_opens():
    early, late = minutes(MONDAY, 10), minutes(MONDAY + 3 * HOUR, 1)
    made = joined(derive_bars([early, late], "h1", None))
    np.testing.assert_array_equal(made.open_time, [MONDAY])
    np.testing.assert_array_equal(made.close_time, [MONDAY + HOUR])


def test_a_bar_never_closes_before_its_last_child():
    bars = minutes(MONDAY, 70)
    closed = bars.close_time.copy()
    closed[59] += 30 * 10**9  # the last minute of the hour is reported half a minute late
    made = joined(derive_bars([Block(bars.open_time, closed, bars.ohlc)], "h1", None))
    assert made.close_time[0] == MONDAY + HOUR + 30 * 10**9


def test_nothing_comes_of_nothing():
    assert list(derive_bars([], "h1", None)) == []


@pytest.mark.parametrize(("start", "lengths"), [(SUMMER_TIME, [24, 23, 24, 24]), (WINTER_TIME, [24, 25, 24, 24])])
def test_days_over_a_clock_change_have_the_hours_they_have(start: int, lengths: list[int]):
    made = joined(derive_bars([minutes(start, 5 * 1440)], "d", NEW_YORK))
    np.testing.assert_array_equal((made.close_time - made.open_time)[1:] // HOUR, lengths[: len(made.ohlc) - 1])


@given(
    first=st.integers(10 * DAY, 3 * 10**18),
    length=st.integers(0, 5 * DAY),
    timeframe=st.sampled_from(["m1", "h4", "d"]),
)
def test_bucket_bounds_begin_with_the_first_bar_and_end_after_the_last(first: int, length: int, timeframe: str):
    for session in (None, NEW_YORK):
        bounds = bucket_bounds(first, first + length, timeframe, session)
        assert bounds[0] <= first < bounds[1]
        assert first + length < bounds[-1]
        assert (np.diff(bounds) > 0).all()
