import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cache.recipe import Session
from pipeline.sessions import day_boundaries
from tests.unit.pipeline.making import DAY, HOUR

ZONES = ["UTC", "America/New_York", "Europe/London", "Asia/Tokyo", "Australia/Sydney", "Asia/Kolkata"]


def boundaries_by_pandas(first_ns: int, last_ns: int, session: Session) -> np.ndarray:
    """Local days at the session's time; a skipped hour is an hour later, a repeated one is the first of the two."""
    start, stop = (pd.Timestamp(ns, tz="UTC").tz_localize(None).normalize() for ns in (first_ns, last_ns))
    local = pd.date_range(start - pd.Timedelta("5D"), stop + pd.Timedelta("5D")) + pd.Timedelta(f"{session.at}:00")
    zoned = local.tz_localize(session.tz, nonexistent=pd.Timedelta("1h"), ambiguous=np.ones(len(local), bool))
    return zoned.tz_convert("UTC").as_unit("ns").asi8


@settings(max_examples=200, deadline=None)
@given(
    tz=st.sampled_from(ZONES),
    at=st.times().map(lambda t: t.strftime("%H:%M")) | st.sampled_from(["00:00", "01:30", "02:00", "02:30", "17:00"]),
    first_ns=st.integers(0, 4_000_000_000 * 10**9),
    days=st.integers(0, 500),
)
def test_days_begin_and_end_as_pandas_says(tz: str, at: str, first_ns: int, days: int):
    session = Session(tz=tz, at=at)
    last_ns = first_ns + days * DAY
    bounds = day_boundaries(first_ns, last_ns, session)
    assert bounds.dtype == np.int64
    assert bounds[0] <= first_ns
    assert bounds[-1] > last_ns
    expected = boundaries_by_pandas(first_ns, last_ns, session)
    np.testing.assert_array_equal(bounds, expected[(expected >= bounds[0]) & (expected <= bounds[-1])])


@pytest.mark.parametrize(
    ("day", "hours"), [("2024-03-09", 23), ("2024-03-10", 24), ("2024-11-02", 25), ("2024-07-01", 24)]
)
def test_the_day_of_a_clock_change_is_an_hour_shorter_or_longer(day: str, hours: int):
    opened = pd.Timestamp(f"{day} 17:00", tz="America/New_York").value
    bounds = day_boundaries(opened, opened, Session(tz="America/New_York", at="17:00"))
    at = int(np.searchsorted(bounds, opened))
    assert bounds[at] == opened
    assert bounds[at + 1] - opened == hours * HOUR


def test_a_boundary_in_a_skipped_hour_comes_an_hour_later_and_in_a_repeated_one_the_first_time():
    session = Session(tz="America/New_York", at="02:30")
    changed = day_boundaries(*[pd.Timestamp("2024-03-10 12:00", tz="UTC").value] * 2, session)
    assert pd.Timestamp("2024-03-10 07:30").value in changed
    session = Session(tz="America/New_York", at="01:30")
    changed = day_boundaries(*[pd.Timestamp("2024-11-03 12:00", tz="UTC").value] * 2, session)
    assert pd.Timestamp("2024-11-03 05:30").value in changed
    assert pd.Timestamp("2024-11-03 06:30").value not in changed


@given(first_ns=st.integers(0, 4 * 10**18), length=st.integers(0, 10 * DAY))
def test_without_a_session_days_are_utc_days(first_ns: int, length: int):
    bounds = day_boundaries(first_ns, first_ns + length, None)
    assert bounds[0] <= first_ns < bounds[1]
    assert bounds[-2] <= first_ns + length < bounds[-1]
    assert (bounds % DAY == 0).all()
    assert (np.diff(bounds) == DAY).all()
