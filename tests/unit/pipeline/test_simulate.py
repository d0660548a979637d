import errno
from datetime import date, datetime, time, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from pipeline.simulate import MAX_ROWS, simulate_bars
from pipeline.simulate_command import main

NEW_YORK = ZoneInfo("America/New_York")
YEAR = 380_000  # rows: over both clock changes, both holidays and two row-group boundaries


def simulate(path: Path, rows: int, seed: int = 0) -> pa.Table:
    simulate_bars(path, rows, seed, lambda written: None)
    return pq.read_table(path)


@pytest.fixture(scope="module")
def year_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("simulated") / "year.parquet"
    simulate_bars(path, YEAR, 0, lambda written: None)
    return path


@pytest.fixture(scope="module")
def year(year_path: Path) -> pd.DataFrame:
    frame = pd.read_parquet(year_path)
    frame["new_york"] = frame["timestamp"].dt.tz_convert("America/New_York")
    return frame


def test_the_same_seed_gives_the_same_table_and_another_seed_another(tmp_path: Path):
    first, again, other = (simulate(tmp_path / "bars.parquet", 20_000, seed) for seed in (7, 7, 8))
    assert first.equals(again)
    assert not first["timestamp"].equals(other["timestamp"])
    assert not first["close"].equals(other["close"])


@pytest.mark.parametrize("rows", [1, 1_000, 123_457, 124_000, 250_001])
def test_a_shorter_simulation_is_the_beginning_of_a_longer_one(year_path: Path, tmp_path: Path, rows: int):
    short = simulate(tmp_path / "bars.parquet", rows)
    assert short.num_rows == rows
    assert short.equals(pq.read_table(year_path).slice(0, rows))


def test_the_simulation_stays_what_it_is(tmp_path: Path):
    table = simulate(tmp_path / "bars.parquet", 3, seed=0)
    assert [str(t) for t in table["timestamp"].to_pylist()] == [
        "2024-01-07 22:00:00+00:00",
        "2024-01-07 22:01:00+00:00",
        "2024-01-07 22:03:00+00:00",
    ]
    assert table["close"].to_pylist() == [1.09992, 1.0999, 1.09983]


def test_the_file_has_the_promised_columns_and_small_row_groups(year_path: Path):
    file = pq.ParquetFile(year_path)
    prices = [(name, pa.float64()) for name in ("open", "high", "low", "close")]
    assert file.schema_arrow == pa.schema([("timestamp", pa.timestamp("ns", tz="UTC")), *prices])
    assert file.metadata.num_rows == YEAR
    groups = [file.metadata.row_group(group).num_rows for group in range(file.metadata.num_row_groups)]
    assert len(groups) > 2
    assert max(groups) <= 131_072


def test_minutes_are_whole_unique_and_increasing(year: pd.DataFrame):
    ns = year["timestamp"].astype("int64").to_numpy()
    assert (ns % 60_000_000_000 == 0).all()
    assert (np.diff(ns) > 0).all()


def test_no_bar_opens_while_the_market_is_closed(year: pd.DataFrame):
    day, hour = year["new_york"].dt.day_of_week, year["new_york"].dt.hour
    closed = (day == 5) | ((day == 4) & (hour >= 17)) | ((day == 6) & (hour < 17))
    assert not closed.any()


def test_weeks_run_from_sunday_to_friday_17_new_york_on_both_sides_of_a_clock_change(year: pd.DataFrame):
    utc_hours = set()
    # The first Sunday; those before, at and after the changes of 10 March and 3 November 2024.
    for sunday in [(1, 7), (3, 3), (3, 10), (3, 17), (10, 27), (11, 3), (11, 10)]:
        opens = pd.Timestamp(datetime.combine(date(2024, *sunday), time(17), NEW_YORK))
        closes = pd.Timestamp(datetime.combine(date(2024, *sunday) + timedelta(days=5), time(17), NEW_YORK))
        times = year["timestamp"][(year["timestamp"] >= opens) & (year["timestamp"] < closes + pd.Timedelta("1D"))]
        assert times.min() - opens < pd.Timedelta("30min")
        assert pd.Timedelta(0) < closes - times.max() < pd.Timedelta("30min")
        utc_hours.add((sunday, times.min().hour))
    assert {hour for sunday, hour in utc_hours if (3, 10) <= sunday < (11, 3)} == {21}
    assert {hour for sunday, hour in utc_hours if not (3, 10) <= sunday < (11, 3)} == {22}


def test_christmas_and_new_year_have_no_bars_and_the_days_around_them_do(year: pd.DataFrame):
    days = set(year["new_york"].dt.date)
    assert not days & {date(2024, 12, 25), date(2025, 1, 1)}
    assert days >= {date(2024, 12, 24), date(2024, 12, 26), date(2024, 12, 31), date(2025, 1, 2)}


def test_prices_are_valid_plausible_and_on_the_tick(year: pd.DataFrame):
    prices = year[["open", "high", "low", "close"]]
    assert (year["high"] == prices.max(axis=1)).all()
    assert (year["low"] == prices.min(axis=1)).all()
    assert prices.to_numpy().min() > 0.8
    assert prices.to_numpy().max() < 1.5
    ticks = np.rint(prices.to_numpy() * 1e5)
    np.testing.assert_array_equal(prices.to_numpy(), ticks / 1e5)


def test_a_bar_opens_near_the_close_before_it(year: pd.DataFrame):
    jump = (year["open"] - year["close"].shift()).abs()
    gap = year["timestamp"].diff()
    assert jump[gap == pd.Timedelta("1min")].median() <= 0.00002
    weekend = jump[gap > pd.Timedelta("1D")]
    assert 0.0001 < weekend.median() < 0.002


def test_minutes_are_missing_in_quiet_hours_more_than_in_busy_ones(year: pd.DataFrame):
    weeks = (year["timestamp"].diff() > pd.Timedelta("40h")).sum() + 1
    assert 0.02 < 1 - YEAR / (weeks * 7_200) < 0.08
    per_hour = year.groupby(year["new_york"].dt.hour).size() / (weeks * 5 * 60)
    assert 1 - per_hour[17] > 0.15
    assert 1 - per_hour[9] < 0.03
    gaps = year["timestamp"].diff()
    assert ((gaps > pd.Timedelta("30min")) & (gaps < pd.Timedelta("5h"))).sum() > 5


def test_volatility_follows_the_clock_and_clusters(year: pd.DataFrame):
    size = np.log(year["close"]).diff()[year["timestamp"].diff() == pd.Timedelta("1min")].abs()
    by_hour = size.groupby(year["new_york"].dt.hour).mean()
    assert by_hour[10] > 2 * by_hour[21] > 2 * by_hour[17]
    same_hour = size[year["new_york"].dt.hour == 10]
    assert same_hour.autocorr(10) > 0.1


def test_the_next_move_gives_a_little_of_the_last_ones_back(year: pd.DataFrame):
    moves = np.log(year["close"]).diff().clip(-0.0005, 0.0005)
    assert -0.1 < moves.rolling(20).mean().shift().corr(moves) < -0.02


def test_progress_counts_the_rows_of_every_row_group(tmp_path: Path):
    seen: list[int] = []
    simulate_bars(tmp_path / "bars.parquet", 130_000, 0, seen.append)
    groups = pq.ParquetFile(tmp_path / "bars.parquet").metadata
    assert seen == [groups.row_group(0).num_rows, 130_000]


@pytest.mark.parametrize("fault", [KeyboardInterrupt(), OSError(errno.ENOSPC, "No space left on device")])
def test_an_interrupted_write_leaves_what_was_there(tmp_path: Path, fault: BaseException):
    def interrupt(written: int) -> None:
        raise fault

    with pytest.raises(type(fault)):
        simulate_bars(tmp_path / "bars.parquet", 1_000, 0, interrupt)
    assert list(tmp_path.iterdir()) == []
    before = simulate(tmp_path / "bars.parquet", 10)
    with pytest.raises(type(fault)):
        simulate_bars(tmp_path / "bars.parquet", 1_000, 0, interrupt)
    assert [path.name for path in tmp_path.iterdir()] == ["bars.parquet"]
    assert pq.read_table(tmp_path / "bars.parquet").equals(before)


@pytest.mark.parametrize(
    ("rows", "seed", "message"),
    [
        (0, 0, "rows must be between 1 and 80,000,000, not 0"),
        (MAX_ROWS + 1, 0, "rows must be between 1 and 80,000,000, not 80,000,001"),
        (1, -1, "seed must not be negative, and it is -1"),
    ],
)
def test_impossible_requests_are_refused_before_anything_is_written(tmp_path: Path, rows: int, seed: int, message: str):
    with pytest.raises(ValueError, match=message):
        simulate_bars(tmp_path / "bars.parquet", rows, seed, lambda written: None)
    assert list(tmp_path.iterdir()) == []


def test_the_command_writes_the_file_and_names_the_next_step(tmp_path: Path):
    folder = tmp_path / "new" / "data"
    result = CliRunner().invoke(main, ["--out", str(folder), "--rows", "5000", "--seed", "3"])
    assert result.exit_code == 0, result.output
    assert pq.read_table(folder / "simfx_m1.parquet").equals(simulate(tmp_path / "bars.parquet", 5_000, seed=3))
    assert f"{folder}/simfx_m1.parquet: 5,000 rows, 0.1 MB" in result.stdout
    assert "2024-01-07T22:00 to 2024-01-11T" in result.stdout
    assert f"Next: bin/build-cache --config configs/demo.yaml --data-dir {folder}\n" in result.stdout


def test_the_command_writes_a_universe_of_symbols_that_differ(tmp_path: Path):
    words = ["--out", str(tmp_path), "--symbols", "3", "--rows", "2000", "--seed", "3"]
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 0, result.output
    folder = tmp_path / "universe"
    assert sorted(one.name for one in folder.iterdir()) == ["SIM0000", "SIM0001", "SIM0002"]
    for number in range(3):
        expected = simulate(tmp_path / "bars.parquet", 2_000, seed=3 + number)
        assert pq.read_table(folder / f"SIM{number:04}" / "m1.parquet").equals(expected)
    assert f"{folder}: 3 symbols of 2,000 rows, " in result.stdout
    assert f"Next: bin/build-cache --config configs/universe.yaml --data-dir {tmp_path}\n" in result.stdout


@pytest.mark.parametrize("arguments", [["--rows", "0"], ["--seed", "-1"], []])
def test_the_command_refuses_wrong_usage(tmp_path: Path, arguments: list[str]):
    out = ["--out", str(tmp_path / "data")] if arguments else []
    result = CliRunner().invoke(main, out + arguments)
    assert result.exit_code == 2
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--kind", "imu", "--rows", "90000"], "--rows does not go with --kind imu; leave one out"),
        (["--kind", "imu", "--symbols", "3"], "--symbols does not go with --kind imu; leave one out"),
        (["--sequences", "5"], "--sequences does not go with --kind bars; leave one out"),
    ],
)
def test_what_is_said_of_another_kind_is_not_passed_over(tmp_path: Path, arguments: list[str], said: str):
    result = CliRunner().invoke(main, ["--out", str(tmp_path / "data"), *arguments])
    assert (result.exit_code, said in result.stderr) == (2, True)
    assert not (tmp_path / "data").exists()


def test_the_help_shows_an_example():
    assert "bin/simulate --out" in CliRunner().invoke(main, ["--help"]).stdout
