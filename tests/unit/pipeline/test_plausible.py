from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from pipeline.bars import Block
from pipeline.plausible import is_currency_pair, warnings
from pipeline.series import BarSeries
from pipeline.simulate import simulate_bars
from tests.unit.pipeline.making import DAY, HOUR, MINUTE, MemorySeries

BARS = Path(__file__).parents[3].parent / "shared" / "data" / "bars"
real = pytest.mark.skipif(not BARS.is_dir(), reason=f"{BARS} is not there")
PRICES = ["open", "high", "low", "close"]


@pytest.mark.parametrize(
    "name", ["AUDUSD", "EUR/USD", "usdcad", "usdcad_m1", "FX.EURUSD", "oanda-EUR_USD", "EURUSDm", "gbp-jpy", "USD JPY"]
)
def test_currency_pairs(name: str):
    assert is_currency_pair(name)


@pytest.mark.parametrize(
    "name",
    ["XAGUSD", "xau/usd", "SSE", "BTCUSD", "binance-BTC", "EURUSDT", "USDCUSD", "BUSDUSD", "USDUSD", "demo", "EUR", ""],
)
def test_no_currency_pairs(name: str):
    assert not is_currency_pair(name)


def series(opened: np.ndarray, length: int = MINUTE) -> BarSeries:
    """Bars of prices that nobody looks at, in blocks that end anywhere in a week."""
    return MemorySeries(Block(opened, opened + length, np.ones((len(opened), 4))), 1000)


def week_minutes(
    weeks: int, late_hours: float, first: str = "2024-01-07", zone: str = "America/New_York"
) -> np.ndarray:
    """Open times of all minutes from Sunday 17:00 to Friday 17:00 in a zone, shifted."""
    starts = pd.date_range(f"{first} 17:00", periods=weeks, freq="7D", tz=zone).as_unit("ns").asi8
    return (starts[:, None] + MINUTE * np.arange(7200)).ravel() + round(late_hours * HOUR)


@pytest.mark.parametrize("late", [-12, -9, -5, -1, 1, 2, 7, 12])
@pytest.mark.parametrize("first", ["2024-01-07", "2024-06-02", "2024-03-03"])
def test_a_week_that_begins_and_ends_at_another_hour_is_told(late: int, first: str):
    (text,) = warnings("EURUSD", series(week_minutes(5, late, first)))
    bars = 60 * abs(late) - 30
    assert text.startswith(
        f"EURUSD: {4 * bars:,} bars lie where the currency market is closed, between Friday 17:00 and Sunday 17:00 New "
        "York, in 4 of 4 weekends: the earliest reopening is on "
    )
    hours = f"{abs(late)} hour{'s' * (abs(late) > 1)} too {'late' if late > 0 else 'early'}"
    assert f"The time stamps seem to be {hours}. Correct data.source.timezone or the stamps: New York times" in text
    begins = pd.Timestamp("2024-01-07 17:00") + pd.Timedelta(hours=late)
    ends = pd.Timestamp("2024-01-05 17:00") + pd.Timedelta(hours=late)
    assert f"reopening is on {begins:%A at %H:%M} there, the latest close on {ends:%A at %H:%M}. The" in text


@pytest.mark.parametrize("late", [0, 0.4, -0.4])
def test_half_an_hour_is_no_reason_to_warn(late: float):
    assert warnings("EURUSD", series(week_minutes(30, late))) == []


def test_names_decide_and_so_does_the_length_of_bars():
    opened = week_minutes(5, 3)
    assert warnings("XAUUSD", series(opened)) == []
    assert len(warnings("EURUSD", series(opened[::60], HOUR))) == 1
    assert warnings("EURUSD", series(opened[::240], 4 * HOUR)) == []
    days = np.arange(19_730, 19_800) * DAY  # every UTC day, Sundays too
    assert warnings("EURUSD", series(days, DAY)) == []


def test_fixed_offsets_are_told_when_they_are_wrong_half_the_year():
    """New York's wall clock plus five hours: right in winter, an hour late in summer."""
    local = pd.DatetimeIndex(week_minutes(52, 0), tz="UTC").tz_convert("America/New_York").tz_localize(None)
    (text,) = warnings("EURUSD", series((local + pd.Timedelta(hours=5)).as_unit("ns").asi8))
    summer = [
        one for one in pd.date_range("2024-01-12 17:00", periods=51, freq="7D", tz="America/New_York") if one.dst()
    ]
    assert f"in {len(summer)} of 51 weekends" in text
    assert "seem to be 1 hour too late" in text
    winter = local[: 10 * 7200]
    assert warnings("EURUSD", series((winter + pd.Timedelta(hours=5)).as_unit("ns").asi8)) == []


@pytest.mark.parametrize(("inside", "told"), [(3, False), (4, True), (5, True), (8, True)])
def test_it_takes_half_of_the_weekends(inside: int, told: bool):
    extra = [week_minutes(1, 0, "2024-01-07")[-1] + (31 + 7 * 1440 * week) * MINUTE for week in range(inside)]
    opened = np.sort(np.concatenate([week_minutes(9, 0), extra]))
    assert bool(warnings("EURUSD", series(opened))) == told


def test_one_weekend_must_do_where_there_is_one():
    assert len(warnings("EURUSD", series(week_minutes(2, 1)))) == 1
    assert warnings("EURUSD", series(week_minutes(1, 1))) == []


def test_what_no_shift_puts_right_is_told_as_such():
    (text,) = warnings("EURUSD", series(np.arange(1_704_672_000, 1_707_000_000, 60) * 10**9))
    assert text.endswith(
        "No whole number of hours puts that right; are these quotes of another market, or filled gaps?"
    )


@pytest.mark.parametrize("seed", [1, 2])
def test_simulated_currencies_pass(tmp_path: Path, seed: int):
    simulate_bars(tmp_path / "bars.parquet", 60_000, seed, lambda written: None)
    opened = ns(pd.read_parquet(tmp_path / "bars.parquet")["timestamp"])
    assert warnings("EURUSD", series(opened)) == []
    assert "1 hour too late" in warnings("EURUSD", series(opened + HOUR))[0]


def ns(times: pd.Series) -> np.ndarray:
    return times.astype("datetime64[ns, UTC]").astype("int64").to_numpy()


@real
@pytest.mark.parametrize("name", ["audusd", "usdcad"])
def test_real_pairs_an_hour_off_in_summer(name: str):
    opened = ns(pd.read_parquet(BARS / f"{name}_m1.parquet")["timestamp"])
    (text,) = warnings(name.upper(), series(opened))
    assert "The time stamps seem to be 1 hour too late." in text
    assert warnings(name.upper(), series(opened - HOUR)) == []


@real
def test_real_bars_of_other_markets_pass():
    silver = pd.to_datetime(pd.read_csv(BARS / "xagusd_h1.csv", sep="\t")["Time"], utc=True)
    assert warnings("XAGUSD", series(ns(silver), HOUR)) == []
    assert warnings("EURUSD", series(ns(silver), HOUR)) == []  # true UTC, and the same week
    sse = pd.read_parquet(BARS / "sse_composite_m1.parquet")["timestamp"]
    assert warnings("SSE", series(ns(sse) - MINUTE)) == []
    crypto = pd.read_parquet(BARS / "crypto_h1_venues.parquet")
    for (venue, coin), frame in crypto.groupby(["venue", "coin"]):
        opened = np.unique(ns(pd.to_datetime(frame["timestamp"], utc=True)))
        assert warnings(f"{venue}-{coin}", series(opened, HOUR)) == []


def sessions(days: int, closing_auction: bool = False) -> np.ndarray:
    """Open times of the minutes of 09:30 to 11:30 and 13:00 to 15:00, day by day."""
    minutes = np.r_[570:690, 780 : 900 + closing_auction]
    return ((19_730 + np.arange(days))[:, None] * DAY + minutes * MINUTE).ravel()


def test_bars_labelled_by_the_other_side_are_told():
    (early,) = warnings("X", series(sessions(5) - MINUTE))
    assert early == (
        "X: the bars seem to be one bar too early: trading pauses at 11:29 and goes on at 12:59 UTC where whole "
        "quarters of an hour are usual, in 9 of 9 pauses. Do time stamps mark the beginning of a bar, not its end? "
        "Then set data.source.label: left. Windows would hold bars that were not over yet."
    )
    (late,) = warnings("X", series(sessions(5) + MINUTE))
    assert "one bar too late: trading pauses at 11:31 and goes on at 13:01 UTC" in late
    assert late.endswith("mark the end of a bar, not its beginning? Then set data.source.label: right.")
    five = sessions(5)[::5]
    assert "too early" in warnings("X", series(five - 5 * MINUTE, 5 * MINUTE))[0]
    assert warnings("X", series(five, 5 * MINUTE)) == []


def test_what_honest_bars_do_is_not_told():
    assert warnings("X", series(sessions(5))) == []
    assert warnings("X", series(sessions(5, closing_auction=True))) == []  # one edge is beside, the other is not
    assert warnings("X", series(sessions(4) - MINUTE)) == []  # seven pauses
    assert warnings("X", series(np.delete(sessions(5), np.s_[::120]))) == []  # a first minute without a trade
    at_random = np.flatnonzero(np.random.default_rng(0).random(50_000) < 0.05)
    assert warnings("X", series(at_random * MINUTE)) == []


@pytest.mark.parametrize(("odd", "told"), [(1, True), (2, False)])
def test_nine_of_ten_pauses_must_agree(odd: int, told: bool):
    opened = sessions(6)[: 11 * 120]  # ten pauses
    without = np.delete(opened, [120 * (pause + 1) for pause in range(odd)])
    assert bool(warnings("X", series(without - MINUTE))) == told


@real
def test_real_bars_taken_for_the_other_label_are_told():
    sse = ns(pd.read_parquet(BARS / "sse_composite_m1.parquet")["timestamp"])
    assert "one bar too late: trading pauses at 03:31 and goes on at 05:01 UTC" in warnings("SSE", series(sse))[0]
    pair = ns(pd.read_parquet(BARS / "audusd_m1.parquet")["timestamp"])
    assert "one bar too early" in warnings("X", series(pair - MINUTE))[0]
