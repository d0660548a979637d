import os
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result

from pipeline.bars import ReadLog, read_bars
from pipeline.derive import derive_bars
from pipeline.resample_command import main
from pipeline.simulate import simulate_bars
from tests.unit.pipeline.making import MINUTE, MONDAY, joined, make_source, random_ohlc, write_parquet

PRICES = ["open", "high", "low", "close"]
AGGREGATE = dict(zip(PRICES, ("first", "max", "min", "last"), strict=True))


@pytest.fixture(scope="module")
def bars(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("raw") / "fx_m1.parquet"
    simulate_bars(path, 10_000, 4, lambda written: None)
    return path


def resample(file: Path, out: Path, *arguments: str) -> Result:
    return CliRunner().invoke(main, [str(file), "--out", str(out), *arguments])


def finished(frame: pd.DataFrame, rule: str) -> pd.DataFrame:
    made = frame.set_index("timestamp").resample(rule).agg(AGGREGATE).dropna()
    over = frame["timestamp"].iloc[-1] + pd.Timedelta("1min")
    return made[made.index + pd.Timedelta(rule) <= over].reset_index()


@pytest.mark.parametrize(("timeframe", "rule"), [("m5", "5min"), ("h1", "1h"), ("h4", "4h"), ("d", "1D")])
def test_the_file_holds_what_pandas_makes_of_the_bars(bars: Path, tmp_path: Path, timeframe: str, rule: str):
    out = tmp_path / "new" / "bars.parquet"
    result = resample(bars, out, "--timeframe", timeframe)
    assert result.exit_code == 0, result.output
    expected = finished(pd.read_parquet(bars), rule)
    pd.testing.assert_frame_equal(pd.read_parquet(out), expected, check_dtype=False, check_freq=False)
    assert pq.read_schema(out).field("timestamp").type == pa.timestamp("ns", "UTC")
    assert f"Resampling {bars} from m1 to {timeframe}\n" in result.output
    assert "  format: parquet, time: timestamp, open: open, high: high, low: low, close: close\n" in result.output
    assert f"{out}: 10,000 rows in, {len(expected):,} out, " in result.output
    assert [path.name for path in out.parent.iterdir()] == ["bars.parquet"]


def test_labels_zones_sessions_and_other_bases_are_as_stated(bars: Path, tmp_path: Path):
    frame = pd.read_parquet(bars)
    local = (frame["timestamp"] + pd.Timedelta("1min")).dt.tz_convert("America/New_York").dt.tz_localize(None)
    frame.assign(timestamp=local).to_parquet(tmp_path / "local.parquet", index=False)
    stated = ["--label", "right", "--timezone", "America/New_York"]
    done = resample(tmp_path / "local.parquet", tmp_path / "h1.parquet", "--timeframe", "h1", *stated)
    assert done.exit_code == 0, done.output
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "h1.parquet"), finished(frame, "1h"), check_dtype=False)

    session = ["--session-tz", "America/New_York", "--session-at", "17:00"]
    done = resample(tmp_path / "h1.parquet", tmp_path / "d.parquet", "--timeframe", "d", "--base", "h1", *session)
    assert done.exit_code == 0, done.output
    days = pd.read_parquet(tmp_path / "d.parquet")
    assert set(days["timestamp"].dt.tz_convert("America/New_York").dt.strftime("%H:%M")) == {"17:00"}
    day = (frame["timestamp"].dt.tz_convert("America/New_York") - pd.Timedelta("17h")).dt.date
    np.testing.assert_array_equal(days[PRICES], frame.groupby(day).agg(AGGREGATE).iloc[: len(days)])


def test_a_resampled_file_is_a_source_like_the_derived_bars(bars: Path, tmp_path: Path):
    assert resample(bars, tmp_path / "h1.parquet", "--timeframe", "h1").exit_code == 0
    read = joined(read_bars(tmp_path / "h1.parquet", make_source(), "h1", {}, ReadLog()))
    derived = joined(derive_bars(read_bars(bars, make_source(), "m1", {}, ReadLog()), "h1", None))
    for name in ("open_time", "close_time", "ohlc"):
        np.testing.assert_array_equal(getattr(read, name), getattr(derived, name))


def test_many_blocks_make_one_file(tmp_path: Path):
    label, ohlc = MONDAY + MINUTE * np.arange(300_000), random_ohlc(np.random.default_rng(0), 300_000)
    file = write_parquet(tmp_path / "bars.parquet", label, ohlc)
    assert resample(file, tmp_path / "m5.parquet", "--timeframe", "m5").exit_code == 0
    made = pq.ParquetFile(tmp_path / "m5.parquet").metadata
    assert made.num_rows == 60_000
    assert made.num_row_groups > 2
    np.testing.assert_array_equal(pd.read_parquet(tmp_path / "m5.parquet")["close"], ohlc[4::5, 3])


def test_what_was_recognised_is_told(bars: Path, tmp_path: Path):
    frame = pd.read_parquet(bars).rename(columns={"open": "O", "close": "Close"})
    frame["timestamp"] = frame["timestamp"].astype("datetime64[ms, UTC]").astype("int64")
    frame.to_parquet(tmp_path / "epoch.parquet", index=False)
    result = resample(tmp_path / "epoch.parquet", tmp_path / "out.parquet", "--timeframe", "h1")
    assert "  format: parquet, time: timestamp, open: O, high: high, low: low, close: Close\n" in result.output
    assert "  times of epoch.parquet are read as integers in ms since 1970\n" in result.output


@pytest.mark.parametrize(("name", "separator", "said"), [("a.csv", ",", "comma"), ("a.txt", "\t", "tab")])
def test_text_is_resampled_like_parquet(bars: Path, tmp_path: Path, name: str, separator: str, said: str):
    pd.read_parquet(bars).to_csv(tmp_path / name, sep=separator, index=False)
    result = resample(tmp_path / name, tmp_path / "out.parquet", "--timeframe", "h1")
    assert result.exit_code == 0, result.output
    assert f"  format: {said}-separated text, time: timestamp, open: open, " in result.output
    assert f"{tmp_path / 'out.parquet'}: 10,000 rows in, " in result.output
    assert resample(bars, tmp_path / "same.parquet", "--timeframe", "h1").exit_code == 0
    assert (tmp_path / "out.parquet").read_bytes() == (tmp_path / "same.parquet").read_bytes()


def test_a_named_pipe_is_refused_rather_than_waited_for(tmp_path: Path):
    os.mkfifo(tmp_path / "bars.parquet")
    result = resample(tmp_path / "bars.parquet", tmp_path / "out.parquet", "--timeframe", "h1")
    assert result.exit_code == 1
    assert "bars.parquet: a named pipe, not a regular file; " in result.stderr


def test_a_fault_leaves_what_was_there(bars: Path, tmp_path: Path):
    out = tmp_path / "out.parquet"
    assert resample(bars, out, "--timeframe", "h1").exit_code == 0
    before = out.read_bytes()
    label, ohlc = MONDAY + MINUTE * np.arange(200_000), random_ohlc(np.random.default_rng(0), 200_000)
    ohlc[190_000, 1] = np.nan
    file = write_parquet(tmp_path / "bars.parquet", label, ohlc)
    result = resample(file, out, "--timeframe", "h1")
    assert result.exit_code == 1
    assert f"error: {file}: column high, row 190,000: nan is not a finite number" in result.stderr
    assert out.read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bars.parquet", "out.parquet"]


def test_a_file_too_short_for_one_bar_is_an_error(tmp_path: Path):
    file = write_parquet(tmp_path / "bars.parquet", MONDAY + MINUTE * np.arange(3), np.ones((3, 4)))
    result = resample(file, tmp_path / "out.parquet", "--timeframe", "h4")
    assert result.exit_code == 1
    assert result.stderr == (
        f"\nerror: {file}: h4 bars: the file does not finish a single one; give more rows or a shorter --timeframe\n"
    )
    assert not (tmp_path / "out.parquet").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Missing option '--timeframe'"),
        (["--timeframe", "m7"], "Invalid value for '--timeframe': 'm7' does not divide a day evenly"),
        (["--timeframe", "1h"], "'1h' is not a timeframe"),
        (["--timeframe", "h1", "--base", "x"], "Invalid value for '--base': 'x' is not a timeframe"),
        (["--timeframe", "m1"], "--timeframe m1 is not a multiple of the bars of FILE; --base says m1"),
        (["--timeframe", "m3", "--base", "m2"], "--timeframe m3 is not a multiple of the bars of FILE; --base says m2"),
        (["--timeframe", "d", "--session-at", "17:00"], "--session-tz and --session-at go together"),
        (["--timeframe", "d", "--session-tz", "UTC", "--session-at", "25:00"], "--session-at 25:00: "),
        (["--timeframe", "h1", "--timezone", "Mars"], "--timezone Mars: 'Mars' is not a time zone"),
        (["--timeframe", "d", "--session-tz", "Mars", "--session-at", "17:00"], "--session-tz Mars: 'Mars' is not a"),
        (["--timeframe", "h1", "--label", "middle"], "Invalid value for '--label'"),
    ],
)
def test_wrong_usage_ends_with_2_before_anything_is_written(
    bars: Path, tmp_path: Path, arguments: list[str], message: str
):
    result = resample(bars, tmp_path / "out.parquet", *arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_the_source_itself_is_never_overwritten(bars: Path):
    before = bars.read_bytes()
    result = resample(bars, bars, "--timeframe", "h1")
    assert result.exit_code == 2
    assert "is FILE itself, which is kept" in result.stderr
    assert bars.read_bytes() == before


def test_the_help_shows_examples():
    shown = CliRunner().invoke(main, ["--help"]).stdout
    assert "bin/resample data/simfx_m1.parquet --timeframe h1 --out data/simfx_h1.parquet" in shown
