import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cache.timeframes import duration_ns, format_ns, format_time, timeframe_ns

MINUTE = 60 * 10**9


@pytest.mark.parametrize(
    ("name", "minutes"), [("s30", 0.5), ("m1", 1), ("m15", 15), ("h1", 60), ("h4", 240), ("d", 1440)]
)
def test_timeframes(name: str, minutes: float):
    assert timeframe_ns(name) == minutes * MINUTE


@pytest.mark.parametrize("name", ["", "m", "m0", "m01", "1m", "d1", "w1", "M1", "h1 ", "m-5"])
def test_what_is_no_timeframe(name: str):
    with pytest.raises(ValueError, match=r"is not a timeframe; write for example s30, m1, m15, h4 or d"):
        timeframe_ns(name)


@pytest.mark.parametrize("name", ["m7", "h5", "h48", "s7"])
def test_timeframes_divide_a_day(name: str):
    with pytest.raises(ValueError, match=f"'{name}' does not divide a day evenly"):
        timeframe_ns(name)


@pytest.mark.parametrize(
    ("text", "minutes"), [("0s", 0), ("90s", 1.5), ("200min", 200), ("4 h", 240), ("1.5d", 2160), ("2w", 20160)]
)
def test_durations(text: str, minutes: float):
    assert duration_ns(text) == minutes * MINUTE


@pytest.mark.parametrize("text", ["", "5", "-1d", "1m", "1e3s", "d", "1 day"])
def test_what_is_no_duration(text: str):
    with pytest.raises(ValueError, match="is not a duration; write for example 0s, 90s"):
        duration_ns(text)


@pytest.mark.parametrize("text", ["0s", "90s", "90min", "5h", "1d", "2w"])
def test_durations_read_back(text: str):
    assert format_ns(duration_ns(text)) == text


@given(st.integers(-(2**63) + 1, 2**63 - 1) | st.integers(0, 2**32).map(lambda s: s * 10**9))
def test_instants_are_written_as_numpy_writes_them(ns: int):
    assert format_time(ns) == f"{str(np.datetime64(ns, 'ns')).removesuffix('.000000000')} UTC"


def test_an_instant_of_an_array():
    assert format_time(np.int64(1706700300 * 10**9)) == "2024-01-31T11:25:00 UTC"
