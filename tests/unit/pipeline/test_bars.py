from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cache.timeframes import format_time
from pipeline.bars import Block, ReadLog, SourceError, bar_times, read_bars
from pipeline.columns import recognise
from pipeline.tables import open_table
from tests.unit.pipeline.making import DAY, MINUTE, MONDAY, joined, make_source, random_ohlc, write_parquet

TIMES = pd.date_range("2024-01-08", periods=5, freq="1min", tz="UTC")
NEW_YORK = {"tz": "America/New_York", "at": "17:00"}


def frame(times: Any = TIMES, **columns: Any) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "timestamp": times,
            "open": [1.0, 2.0, 3.0, 4.0, 5.0],
            "high": [1.5, 2.5, 3.5, 4.5, 5.5],
            "low": [0.5, 1.5, 2.5, 3.5, 4.5],
            "close": [1.1, 2.1, 3.1, 4.1, 5.1],
            **columns,
        }
    )


def read(path: Path, timeframe: str = "m1", **source: Any) -> tuple[Block, list[str]]:
    log = ReadLog()
    return joined(read_bars(path, make_source(**source), timeframe, {}, log)), log.remarks


def saved(tmp_path: Path, bars: pd.DataFrame, index: bool = False) -> Path:
    path = tmp_path / "bars.parquet"
    bars.to_parquet(path, index=index)
    return path


def fault_of(path: Path, **source: Any) -> str:
    """The message of the error, which must begin with the file."""
    with pytest.raises(SourceError) as caught:
        read(path, **source)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    return message.removeprefix(f"{path}: ")


def test_bars_are_read_as_they_stand(tmp_path: Path):
    bars, remarks = read(saved(tmp_path, frame()))
    np.testing.assert_array_equal(bars.open_time, MONDAY + MINUTE * np.arange(5))
    np.testing.assert_array_equal(bars.close_time, MONDAY + MINUTE * np.arange(1, 6))
    np.testing.assert_array_equal(bars.ohlc, frame()[["open", "high", "low", "close"]])
    assert remarks == []


# --- which column is what


@pytest.mark.parametrize(
    "names",
    [
        ["time", "o", "h", "l", "c"],
        ["Date", "Open", "High", "Low", "Close"],
        ["DATETIME", "OPEN", "HIGH", "LOW", "CLOSE"],
        ["Timestamp", "O", "H", "L", "C"],
        ["ts", "open", "high", "low", "close"],
        ["open_time", "open", "high", "low", "close"],
        ["close_time", "open", "high", "low", "close"],
    ],
)
def test_usual_names_are_recognised_in_any_order_among_others(tmp_path: Path, names: list[str]):
    renamed = frame().set_axis(names, axis=1)
    renamed.insert(0, "volume", 1)
    renamed["Symbol"] = "X"
    path = saved(tmp_path, renamed[renamed.columns[::-1]])
    bars, _ = read(path)
    np.testing.assert_array_equal(bars.ohlc, frame()[["open", "high", "low", "close"]])
    found = recognise(open_table(path), make_source()).columns
    assert found == dict(zip(("time", "open", "high", "low", "close"), names, strict=True))


def test_stated_columns_win_over_recognised_ones(tmp_path: Path):
    bars = frame(when=TIMES + pd.Timedelta("1h"), mid=[1.2, 2.2, 3.2, 4.2, 5.2])
    read_back, _ = read(saved(tmp_path, bars), columns={"time": "when", "close": "mid"})
    np.testing.assert_array_equal(read_back.ohlc[:, 3], bars["mid"])
    assert read_back.open_time[0] == MONDAY + 60 * MINUTE


def test_a_stated_time_column_is_enough(tmp_path: Path):
    bars, _ = read(saved(tmp_path, frame().rename(columns={"timestamp": "stamped at"})), columns={"time": "stamped at"})
    assert bars.open_time[0] == MONDAY


def test_stated_columns_settle_what_is_ambiguous(tmp_path: Path):
    bars, _ = read(saved(tmp_path, frame(date=TIMES - pd.Timedelta("1D"))), columns={"time": "date"})
    assert bars.open_time[0] == MONDAY - DAY


@pytest.mark.parametrize(
    ("change", "source", "message"),
    [
        (
            {"Close": 1.0},
            {},
            "which column is the close? several columns could be it: ['close', 'Close']. Name it in "
            "data.source.columns.close",
        ),
        (
            {"date": TIMES},
            {},
            "which column is the time? several columns could be it: ['timestamp', 'date']. Name it in "
            "data.source.columns.time",
        ),
        (
            {},
            {"columns": {"high": "hi"}},
            "data.source.columns.high names hi, but the columns are ['timestamp', 'open', 'high', 'low', 'close']",
        ),
    ],
)
def test_unclear_columns_are_an_error_that_lists_them(tmp_path: Path, change: dict, source: dict, message: str):
    assert fault_of(saved(tmp_path, frame(**change)), **source) == message


@pytest.mark.parametrize(("column", "role"), [("timestamp", "time"), ("open", "open"), ("low", "low")])
def test_a_missing_column_is_an_error_that_lists_those_there_are(tmp_path: Path, column: str, role: str):
    left = [name for name in frame().columns if name != column]
    assert fault_of(saved(tmp_path, frame().drop(columns=column))) == (
        f"which column is the {role}? none is called so: {left}. Name it in data.source.columns.{role}"
    )


# --- time stamps


@pytest.mark.parametrize("zone", ["UTC", "Asia/Tokyo", "America/New_York", "+05:30"])
@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
def test_zoned_times_of_any_unit_mean_the_same_instants(tmp_path: Path, zone: str, unit: str):
    times = TIMES.tz_convert(zone).as_unit(unit)
    bars, _ = read(saved(tmp_path, frame(times)), timezone="Europe/Berlin")
    np.testing.assert_array_equal(bars.open_time, MONDAY + MINUTE * np.arange(5))


@pytest.mark.parametrize("name", [None, "timestamp", "whatever"])
def test_times_may_be_the_pandas_index(tmp_path: Path, name: str | None):
    bars, remarks = read(saved(tmp_path, frame().set_index("timestamp").rename_axis(name), index=True))
    np.testing.assert_array_equal(bars.open_time, MONDAY + MINUTE * np.arange(5))
    assert remarks == []


def test_a_range_index_is_not_mistaken_for_times(tmp_path: Path):
    path = saved(tmp_path, frame().set_index(pd.Index(range(100, 105))).drop(columns="timestamp"), index=True)
    assert fault_of(path).startswith("which column is the time? none is called so")


@pytest.mark.parametrize(
    ("zone", "start"),
    [("UTC", "2024-03-10 02:00"), ("Asia/Tokyo", "2024-03-10 02:00"), ("America/New_York", "2024-07-01")],
)
def test_naive_times_are_in_the_stated_zone(tmp_path: Path, zone: str, start: str):
    naive = pd.date_range(start, periods=5, freq="1min")
    bars, _ = read(saved(tmp_path, frame(naive)), timezone=zone)
    np.testing.assert_array_equal(bars.open_time, naive.tz_localize(zone).tz_convert("UTC").as_unit("ns").asi8)


@pytest.mark.parametrize(
    ("start", "before", "verb"), [("2024-03-10 01:57", 3, "skips"), ("2024-11-03 00:58", 2, "repeats")]
)
def test_naive_times_in_a_clock_change_are_an_error(tmp_path: Path, start: str, before: int, verb: str):
    times = pd.date_range(start, periods=5, freq="1min")
    message = fault_of(saved(tmp_path, frame(times)), timezone="America/New_York")
    assert message == (
        f"column timestamp, row {before}: {times[before]} falls into an hour that America/New_York {verb} when clocks "
        "change; store the times in UTC"
    )
    assert fault_of(saved(tmp_path, frame(times.as_unit("ns"))), timezone="America/New_York") == message


def test_dates_are_times(tmp_path: Path):
    days = pd.date_range("2024-01-01", periods=5).date
    bars, _ = read(saved(tmp_path, frame(days)), "d")
    np.testing.assert_array_equal(bars.open_time, MONDAY - 7 * DAY + DAY * np.arange(5))


@pytest.mark.parametrize(("unit", "scale"), [("s", 10**9), ("ms", 10**6), ("us", 10**3), ("ns", 1)])
@pytest.mark.parametrize("year", [1975, 2024, 2200])
def test_integers_are_times_since_1970_and_the_unit_is_told(tmp_path: Path, unit: str, scale: int, year: int):
    start = int(datetime(year, 6, 1, tzinfo=UTC).timestamp()) * 10**9
    stamps = (start + MINUTE * np.arange(5)) // scale
    bars, remarks = read(saved(tmp_path, frame(stamps)))
    np.testing.assert_array_equal(bars.open_time, start + MINUTE * np.arange(5))
    assert remarks == [f"times of bars.parquet are read as integers in {unit} since 1970"]


def test_small_integers_are_no_times(tmp_path: Path):
    assert fault_of(saved(tmp_path, frame(np.arange(5)))) == (
        "column timestamp, row 0: 0 is not a time (it would be in 1970); name the right column in "
        "data.source.columns.time"
    )


def test_integers_that_change_their_unit_are_an_error(tmp_path: Path):
    stamps = np.array([1_600_000_000, 1_600_000_060, 1_600_000_120_000, 1_600_000_180_000, 1_600_000_240_000])
    assert fault_of(saved(tmp_path, frame(stamps))) == (
        "column timestamp, row 2: 1600000120000 is not a time in s since 1970, as the rows before it are; correct or "
        "remove the row"
    )


@pytest.mark.parametrize("name", [None, "date", "Time"])
def test_an_index_that_claims_1970_yields_to_a_column_of_times(tmp_path: Path, name: str | None):
    trap = frame().set_index(pd.to_datetime(np.arange(5))).rename_axis(name)  # integers taken for nanoseconds
    bars, remarks = read(saved(tmp_path, trap, index=True))
    np.testing.assert_array_equal(bars.open_time, MONDAY + MINUTE * np.arange(5))
    assert remarks == ["the index of bars.parquet claims 1970; column timestamp is used instead"]


def test_an_index_that_claims_1970_alone_is_an_error(tmp_path: Path):
    trap = frame().drop(columns="timestamp").set_index(pd.to_datetime(np.arange(5)))
    message = fault_of(saved(tmp_path, trap, index=True))
    assert message.startswith("column __index_level_0__, row 0: 1970-01-01")
    assert message.endswith(
        "lies in 1970; whatever wrote the file took integers for nanoseconds. Name the column with the true times in "
        "data.source.columns.time"
    )


@pytest.mark.parametrize(
    ("times", "kind"), [([1.7e9] * 5, "double"), ([True] * 5, "bool"), ([TIMES[0] - TIMES[1]] * 5, "duration[us]")]
)
def test_other_types_are_no_times(tmp_path: Path, times: list, kind: str):
    assert fault_of(saved(tmp_path, frame(times))) == (
        f"column timestamp holds {kind}, not times; store timestamps, or integers since 1970"
    )


# --- labels


def test_labels_are_where_bars_begin_or_end(tmp_path: Path):
    path = saved(tmp_path, frame(pd.date_range("2024-01-08", periods=5, freq="5min", tz="UTC")))
    left, _ = read(path, "m5", label="left")
    right, _ = read(path, "m5", label="right")
    np.testing.assert_array_equal(left.open_time, right.close_time)
    np.testing.assert_array_equal(left.close_time - left.open_time, 5 * MINUTE)
    np.testing.assert_array_equal(right.close_time - right.open_time, 5 * MINUTE)


def test_bars_that_overlap_are_of_another_timeframe(tmp_path: Path):
    path = saved(tmp_path, frame())
    with pytest.raises(SourceError) as fault:
        read(path, "m5")
    assert str(fault.value) == (
        f"{path}: column timestamp, row 1: {TIMES[1]:%Y-%m-%dT%H:%M:%S} UTC begins before the bar in the row before "
        "has ended; are these m5 bars? data.source.files says so"
    )


def test_days_that_overlap_are_found_though_they_are_24_hours_apart(tmp_path: Path):
    days = pd.date_range("2024-11-01 21:00", periods=5, freq="24h", tz="UTC")  # 17:00 in New York, then 16:00
    with pytest.raises(SourceError) as fault:
        read(saved(tmp_path, frame(days)), "d", session=NEW_YORK)
    assert "row 2: 2024-11-03T21:00:00 UTC begins before the bar in the row before has ended; are these d bars?" in str(
        fault.value
    )


def test_days_are_compared_across_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("pipeline.bars.BLOCK_ROWS", 2)
    days = pd.DatetimeIndex(["2024-01-08", "2024-01-09", "2024-01-09 23:00", "2024-01-11", "2024-01-12"], tz="UTC")
    with pytest.raises(SourceError) as fault:
        read(saved(tmp_path, frame(days)), "d")
    assert "row 2: 2024-01-09T23:00:00 UTC begins before the bar in the row before has ended; " in str(fault.value)


@pytest.mark.parametrize("label", ["left", "right"])
@pytest.mark.parametrize(
    ("around", "lengths"), [("2024-01-10", {24}), ("2024-03-10", {23, 24}), ("2024-11-03", {24, 25})]
)
def test_session_days_have_23_24_or_25_hours(label: str, around: str, lengths: set[int]):
    local = pd.date_range(pd.Timestamp(around) - pd.Timedelta("4D"), periods=9) + pd.Timedelta("17h")
    bounds = local.tz_localize("America/New_York").tz_convert("UTC").as_unit("ns").asi8
    inside = slice(0, -1) if label == "left" else slice(1, None)
    opened, closed = bar_times(bounds[inside], make_source(label=label, session=NEW_YORK), "d")
    np.testing.assert_array_equal(opened, bounds[:-1])
    np.testing.assert_array_equal(closed, bounds[1:])
    assert set((closed - opened) // (60 * MINUTE)) == lengths


@pytest.mark.parametrize("label", ["left", "right"])
def test_days_without_a_session_are_utc_days(label: str):
    labels = MONDAY + DAY * np.arange(5)
    opened, closed = bar_times(labels, make_source(label=label), "d")
    np.testing.assert_array_equal(opened, labels if label == "left" else labels - DAY)
    np.testing.assert_array_equal(closed, opened + DAY)


def test_a_day_labelled_inside_its_session_reaches_to_its_end():
    midnight = np.array([MONDAY])  # 19:00 in New York, two hours after the day began
    _, closed = bar_times(midnight, make_source(session=NEW_YORK), "d")
    assert closed[0] == MONDAY + 22 * 60 * MINUTE


# --- faults


@pytest.mark.parametrize(
    ("column", "row", "value", "message"),
    [
        (
            "open",
            2,
            np.inf,
            "column open, row 2: inf is not a finite number; "
            "correct or remove the row, or set data.source.policy.not_finite=drop",
        ),
        (
            "low",
            0,
            -np.inf,
            "column low, row 0: -inf is not a finite number; "
            "correct or remove the row, or set data.source.policy.not_finite=drop",
        ),
        (
            "close",
            4,
            0.0,
            "column close, row 4: 0.0 is not positive; "
            "correct or remove the row, or set data.source.policy.not_positive=drop",
        ),
        (
            "low",
            3,
            -1.5,
            "column low, row 3: -1.5 is not positive; "
            "correct or remove the row, or set data.source.policy.not_positive=drop",
        ),
        (
            "high",
            1,
            2.05,
            "column high, row 1: 2.05 is below the bar's open or close; "
            "correct or remove the row, or set data.source.policy.high=drop",
        ),
        (
            "low",
            1,
            2.05,
            "column low, row 1: 2.05 is above the bar's open or close; "
            "correct or remove the row, or set data.source.policy.low=drop",
        ),
        (
            "close",
            3,
            None,
            "column close, row 3: the value is missing; "
            "correct or remove the row, or set data.source.policy.missing=drop",
        ),
        (
            "timestamp",
            2,
            None,
            "column timestamp, row 2: the value is missing; "
            "correct or remove the row, or set data.source.policy.missing=drop",
        ),
        (
            "timestamp",
            0,
            None,
            "column timestamp, row 0: the value is missing; "
            "correct or remove the row, or set data.source.policy.missing=drop",
        ),
        (
            "timestamp",
            3,
            TIMES[2],
            "column timestamp, row 3: 2024-01-08T00:02:00 UTC repeats the time of the row before; "
            "remove the duplicate, or set data.source.policy.duplicate=keep_first or keep_last",
        ),
        (
            "timestamp",
            3,
            TIMES[1],
            "column timestamp, row 3: 2024-01-08T00:01:00 UTC is earlier than the row before; "
            "sort the file by time, or set data.source.policy.unsorted=sort",
        ),
    ],
)
def test_faults_name_column_row_value_and_remedy(tmp_path: Path, column: str, row: int, value: Any, message: str):
    bars = frame()
    bars.loc[row, column] = value
    assert fault_of(saved(tmp_path, bars)) == message


def test_a_missing_integer_time_is_named(tmp_path: Path):
    stamps = pd.array([None, *(1_700_000_000 + 60 * np.arange(4))], dtype="Int64")
    assert fault_of(saved(tmp_path, frame(stamps))) == (
        "column timestamp, row 0: the value is missing; "
        "correct or remove the row, or set data.source.policy.missing=drop"
    )


def test_nan_is_told_from_a_missing_value(tmp_path: Path):
    ohlc = frame()[["open", "high", "low", "close"]].to_numpy(copy=True)
    ohlc[2, 1] = np.nan  # pandas would write a null
    path = write_parquet(tmp_path / "bars.parquet", TIMES.as_unit("ns").asi8, ohlc)
    assert fault_of(path) == (
        "column high, row 2: nan is not a finite number; "
        "correct or remove the row, or set data.source.policy.not_finite=drop"
    )


@pytest.mark.parametrize(
    ("values", "kind"),
    [([str(x) for x in range(5)], "large_string"), ([True] * 5, "bool"), (list(TIMES), "timestamp[us, tz=UTC]")],
)
def test_prices_must_be_numbers(tmp_path: Path, values: list, kind: str):
    assert fault_of(saved(tmp_path, frame(low=values))) == (
        f"column low holds {kind}, not numbers; store prices as float64"
    )


@pytest.mark.parametrize("kind", ["float16", "float32", "int64", "uint16"])
def test_prices_of_other_numeric_types_become_float64(tmp_path: Path, kind: str):
    bars = frame()
    prices = (bars[["open", "high", "low", "close"]] * 10).astype(kind)
    read_back, _ = read(saved(tmp_path, pd.concat([bars[["timestamp"]], prices], axis=1)))
    np.testing.assert_array_equal(read_back.ohlc, prices.to_numpy().astype(float))


LONG = 131_072 + 500


@pytest.fixture(scope="module")
def long_bars() -> tuple[np.ndarray, np.ndarray]:
    return MONDAY + MINUTE * np.arange(LONG), random_ohlc(np.random.default_rng(0), LONG)


@pytest.mark.parametrize("row_group_size", [1_000_000, 50_000])
@pytest.mark.parametrize(("row", "column"), [(131_071, 1), (131_072, 2), (LONG - 1, 3)])
def test_rows_are_counted_through_all_blocks(
    tmp_path: Path, long_bars: tuple, row: int, column: int, row_group_size: int
):
    label, ohlc = long_bars[0], long_bars[1].copy()
    ohlc[row, column] = -2.5
    path = write_parquet(tmp_path / "bars.parquet", label, ohlc, row_group_size=row_group_size)
    name = ("open", "high", "low", "close")[column]
    assert fault_of(path) == (
        f"column {name}, row {row:,}: -2.5 is not positive; "
        "correct or remove the row, or set data.source.policy.not_positive=drop"
    )


@pytest.mark.parametrize(("shift", "words"), [(-MINUTE, "repeats the time of"), (-2 * MINUTE, "is earlier than")])
def test_times_are_compared_across_blocks(tmp_path: Path, long_bars: tuple, shift: int, words: str):
    label = long_bars[0].copy()
    label[131_072] += shift
    path = write_parquet(tmp_path / "bars.parquet", label, long_bars[1])
    assert fault_of(path).startswith(f"column timestamp, row 131,072: {format_time(label[131_072])} {words}")


def test_a_missing_value_beyond_the_first_block_is_counted_too(tmp_path: Path, long_bars: tuple):
    path = write_parquet(tmp_path / "bars.parquet", *long_bars)
    table = pq.read_table(path).to_pandas()
    table.loc[131_100, "open"] = None
    table.to_parquet(path, index=False)
    assert fault_of(path) == (
        "column open, row 131,100: the value is missing; "
        "correct or remove the row, or set data.source.policy.missing=drop"
    )


def test_row_groups_do_not_matter_not_even_empty_ones(tmp_path: Path):
    table = pa.Table.from_pandas(frame(), preserve_index=False)
    path = tmp_path / "bars.parquet"
    with pq.ParquetWriter(path, table.schema) as writer:
        for part in (table.slice(0, 0), table.slice(0, 2), table.slice(0, 0), table.slice(2)):
            writer.write_table(part)
    np.testing.assert_array_equal(read(path)[0].ohlc, frame()[["open", "high", "low", "close"]])


# --- several at once


def test_bars_of_a_longer_timeframe_are_refused(tmp_path: Path):
    hourly = pd.DataFrame(dict.fromkeys(("open", "high", "low", "close"), [1.0] * 30))
    hourly.insert(0, "timestamp", pd.date_range("2024-01-08", periods=30, freq="h", tz="UTC"))
    path = saved(tmp_path, hourly)
    assert len(read(path, "h1")[0].ohlc) == 30
    with pytest.raises(SourceError) as fault:
        read(path, "m5")
    assert str(fault.value) == (
        f"{path}: no two of its 30 bars are as close as m5 bars are, the closest being 1h apart. Name their "
        "timeframe in data.source.files; as m5 they would count as closed too early"
    )


def test_bars_of_several_symbols_are_refused(tmp_path: Path):
    path = saved(tmp_path, frame(TIMES[[0, 0, 1, 1, 2]], venue=list("ABABA"), coin="X"))
    with pytest.raises(SourceError) as fault:
        read(path)
    assert str(fault.value) == (
        f"{path}: column timestamp, row 1: {TIMES[0]:%Y-%m-%dT%H:%M:%S} UTC repeats the time of the row before; if "
        "venue, coin tell symbols apart, set data.source.symbol_columns: [venue, coin]; otherwise remove the "
        "duplicate, or set data.source.policy.duplicate=keep_first or keep_last"
    )


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, pd.DataFrame]:
    """Three symbols interleaved, 200,000 rows in all, of unequal histories."""
    rng = np.random.default_rng(0)
    parts = []
    for coin, start, rows in (("BTC", 0, 120_000), ("ETH", 500, 70_000), ("X", 3, 10_000)):
        part = pd.DataFrame(random_ohlc(rng, rows), columns=["o", "h", "l", "c"])
        part.insert(0, "time", pd.to_datetime(MONDAY + MINUTE * (start + np.arange(rows)), utc=True))
        parts.append(part.assign(coin=coin))
    frame = pd.concat(parts).sort_values(["time", "coin"]).reset_index(drop=True)
    path = tmp_path_factory.mktemp("mixed") / "bars.parquet"
    frame.to_parquet(path)
    return path, frame


def of_symbol(path: Path, coin: str, **source: Any) -> Block:
    return joined(read_bars(path, make_source(symbol_columns=["coin"], **source), "m1", {"coin": coin}, ReadLog()))


def test_the_rows_of_one_symbol_are_read(mixed: tuple[Path, pd.DataFrame]):
    path, frame = mixed
    for coin, rows in frame.groupby("coin"):
        bars = of_symbol(path, str(coin))
        np.testing.assert_array_equal(bars.ohlc, rows[["o", "h", "l", "c"]])
        np.testing.assert_array_equal(bars.open_time, rows["time"].astype("datetime64[ns, UTC]").astype("int64"))


def test_faults_of_other_symbols_do_not_matter_and_rows_are_those_of_the_file(tmp_path: Path, mixed: tuple):
    frame = mixed[1].copy()
    eth = frame.index[frame["coin"] == "ETH"]
    frame.loc[eth[60_000], "h"] = -2.5
    frame.loc[frame.index[frame["coin"] == "X"][7], ["time", "o"]] = None
    path = saved(tmp_path, frame)
    assert len(of_symbol(path, "BTC").ohlc) == 120_000
    with pytest.raises(SourceError) as caught:
        of_symbol(path, "ETH")
    assert f"{path}: column h, row {eth[60_000]:,}: -2.5 is not positive; " in str(caught.value)
    log = ReadLog()
    source = make_source(symbol_columns=["coin"], policy={**make_source().policy.model_dump(), "missing": "drop"})
    bars = joined(read_bars(path, source, "m1", {"coin": "X"}, log))
    assert len(bars.ohlc) == 9999
    assert log.repaired == {"missing": {"rows": 1, "first_row": int(frame.index[frame["coin"] == "X"][7])}}


def test_a_symbol_that_is_not_there_is_an_error(mixed: tuple[Path, pd.DataFrame]):
    with pytest.raises(SourceError, match=r"column o, row 0: [\d.]+ is a double; data.source.symbol_columns must name"):
        list(read_bars(mixed[0], make_source(), "m1", {"coin": "BTC", "o": "1"}, ReadLog()))
    with pytest.raises(SourceError) as caught:
        of_symbol(mixed[0], "DOGE")
    assert str(caught.value) == f"{mixed[0]}: no row has coin = DOGE"


def test_what_may_tell_symbols_apart_is_suggested_for_unsorted_rows_too(mixed: tuple[Path, pd.DataFrame]):
    with pytest.raises(SourceError) as caught:
        list(read_bars(mixed[0], make_source(), "m1", {}, ReadLog()))
    assert "if coin tells symbols apart, set data.source.symbol_columns: [coin]; otherwise " in str(caught.value)


# --- policies


def policy(**changes: str) -> dict[str, str]:
    return {**make_source().policy.model_dump(), **changes}


def test_policies_repair_and_the_log_tells(tmp_path: Path):
    bars = pd.concat([frame(TIMES + pd.Timedelta(f"{5 * k}min")) for k in range(6)], ignore_index=True)
    bars.loc[3, "open"] = None
    bars.loc[7, "timestamp"] = None
    bars.loc[9, "high"] = np.inf
    bars.loc[11, "low"] = 0.0
    bars.loc[13, "high"] = 1.0
    bars.loc[17, "low"] = 5.0
    bars.loc[20, "timestamp"] = bars.loc[19, "timestamp"]
    bars.loc[[24, 25], "timestamp"] = bars.loc[[25, 24], "timestamp"].to_list()
    expected = bars.drop([3, 7, 9, 11, 13, 17, 19]).sort_values("timestamp", kind="stable")
    log = ReadLog()
    source = make_source(
        policy=policy(
            **dict.fromkeys(("missing", "not_finite", "not_positive", "high", "low"), "drop"),
            duplicate="keep_last",
            unsorted="sort",
        )
    )
    read_back = joined(read_bars(saved(tmp_path, bars), source, "m1", {}, log))
    np.testing.assert_array_equal(read_back.ohlc, expected[["open", "high", "low", "close"]])
    np.testing.assert_array_equal(
        read_back.open_time, expected["timestamp"].astype("datetime64[ns, UTC]").astype("int64")
    )
    assert log.repaired == {
        "missing": {"rows": 2, "first_row": 3},
        "not_finite": {"rows": 1, "first_row": 9},
        "not_positive": {"rows": 1, "first_row": 11},
        "high": {"rows": 1, "first_row": 13},
        "low": {"rows": 1, "first_row": 17},
        "duplicate": {"rows": 1, "first_row": 19},
        "unsorted": {"rows": 1, "first_row": 25},
    }
    assert log.remarks == []


@pytest.mark.parametrize(("duplicate", "kept"), [("keep_first", 131_071), ("keep_last", 131_072)])
def test_duplicates_are_found_across_blocks(tmp_path: Path, long_bars: tuple, duplicate: str, kept: int):
    label = long_bars[0].copy()
    label[131_072] = label[131_071]
    path = write_parquet(tmp_path / "bars.parquet", label, long_bars[1])
    log = ReadLog()
    bars = joined(read_bars(path, make_source(policy=policy(duplicate=duplicate)), "m1", {}, log))
    gone = 131_071 + 131_072 - kept
    np.testing.assert_array_equal(bars.ohlc, np.delete(long_bars[1], gone, axis=0))
    np.testing.assert_array_equal(bars.open_time, np.delete(label, gone))
    assert log.repaired == {"duplicate": {"rows": 1, "first_row": gone}}


def test_shuffled_rows_are_sorted_across_blocks(tmp_path: Path, long_bars: tuple):
    order = np.random.default_rng(1).permutation(LONG)
    path = write_parquet(tmp_path / "bars.parquet", long_bars[0][order], long_bars[1][order])
    blocks = list(read_bars(path, make_source(policy=policy(unsorted="sort")), "m1", {}, ReadLog()))
    assert len(blocks) == 2
    np.testing.assert_array_equal(joined(blocks).open_time, long_bars[0])
    np.testing.assert_array_equal(joined(blocks).ohlc, long_bars[1])


def test_a_file_of_which_nothing_is_left_is_an_error(tmp_path: Path):
    bars = frame(open=[None] * 4 + [1.0], low=-1.0)
    assert fault_of(saved(tmp_path, bars), policy=policy(missing="drop", not_positive="drop")) == (
        "data.source.policy leaves none of its rows: it drops 4 for missing, 1 for not_positive. Look at the file, or "
        "fetch it again"
    )
    assert fault_of(saved(tmp_path, frame([None] * 5)), policy=policy(missing="drop")).startswith(
        "column timestamp holds null, not times"
    )
    nowhere = pd.Series([pd.NaT] * 5, dtype="datetime64[ns, UTC]")
    assert fault_of(saved(tmp_path, frame(nowhere)), policy=policy(missing="drop")) == (
        "data.source.policy leaves none of its rows: it drops 5 for missing. Look at the file, or fetch it again"
    )


def test_sorting_brings_no_bars_of_1970_to_the_front(tmp_path: Path):
    times = pd.Series(TIMES)
    times[3] = pd.Timestamp("1970-01-01T00:05", tz="UTC")
    assert fault_of(saved(tmp_path, frame(times)), policy=policy(unsorted="sort")) == (
        "column timestamp, row 3: 1970-01-01T00:05:00 UTC lies in 1970; whatever wrote the file took integers for "
        "nanoseconds. Name the column with the true times in data.source.columns.time"
    )


def test_rows_are_named_as_they_are_numbered_where_values_are_missing(tmp_path: Path):
    path = tmp_path / "bars.csv"
    path.write_text("time,o,h,l,c\n2024-01-08,,3,1,2\n,2,3,1,2\n2024-01-10,2,3,1,2\n2024-01-11,x,3,1,2\nno,2,3,1,2\n")
    assert fault_of(path).startswith("column time, row 4: 'no' is not a time written like '2024-01-08' in row 0; ")
    path.write_text(path.read_text().replace("no", "2024-01-12"))
    assert fault_of(path).startswith("column o, row 3: 'x' is not a number that float64 holds; ")


# --- prices of other kinds


@pytest.mark.parametrize("kind", ["int32", "int64", "float64", "float32", "decimal128", "text"])
def test_points_are_divided_exactly(tmp_path: Path, kind: str):
    points = np.arange(30_000, 31_000)
    bars = pd.DataFrame({"time": pd.date_range("2024-01-08", periods=1000, freq="min", tz="UTC")})
    for name in ("open", "high", "low", "close"):
        if kind == "text":
            bars[name] = points.astype(str)
        elif kind == "decimal128":
            bars[name] = [Decimal(int(point)) for point in points]
        else:
            bars[name] = points.astype(kind)
    path = tmp_path / "bars"
    bars.to_csv(path, index=False) if kind == "text" else bars.to_parquet(path, index=False)
    log = ReadLog()
    read_back = joined(read_bars(path, make_source(points_per_unit=1000), "m1", {}, log))
    assert read_back.ohlc[:, 0].tolist() == [float(f"{point / 1000:.3f}") for point in points.tolist()]
    assert "prices of bars are divided by data.source.points_per_unit = 1000" in log.remarks


def test_points_are_whole_and_faults_show_them(tmp_path: Path):
    assert fault_of(saved(tmp_path, frame()), points_per_unit=100) == (
        "column high, row 0: 1.5 is not a whole number of points, as data.source.points_per_unit says that prices are; "
        "leave it out"
    )
    gaps = frame(open=[4, None, 4, 4, 4], high=5.0, low=3.0, close=[4.0, 4.0, None, 4.0, 4.0])
    bars = joined(
        read_bars(
            saved(tmp_path, gaps),
            make_source(points_per_unit=100, policy=policy(missing="drop")),
            "m1",
            {},
            ReadLog(),
        )
    )
    np.testing.assert_array_equal(bars.ohlc, [[0.04, 0.05, 0.03, 0.04]] * 3)
    ohlc = np.full((5, 4), 7.0)
    ohlc[1, 2] = np.nan
    path = write_parquet(tmp_path / "nan.parquet", TIMES.as_unit("ns").asi8, ohlc)
    assert fault_of(path, points_per_unit=100).startswith("column low, row 1: nan is not a finite number; ")
    whole = frame(open=4, high=5, low=-3, close=4)
    assert fault_of(saved(tmp_path, whole), points_per_unit=100).startswith("column low, row 0: -3 is not positive; ")


@settings(max_examples=100)
@given(st.lists(st.integers(1, 10**12), min_size=1, max_size=20), st.integers(0, 12), st.sampled_from([128, 256]))
def test_decimals_are_rounded_once(tmp_path_factory: pytest.TempPathFactory, values: list[int], scale: int, bits: int):
    path = tmp_path_factory.mktemp("decimals") / "bars.parquet"
    kind = pa.decimal128(30, scale) if bits == 128 else pa.decimal256(30, scale)
    prices = [Decimal(value).scaleb(-scale) for value in values]
    times = pa.array(MONDAY + MINUTE * np.arange(len(values))).cast(pa.timestamp("ns"))
    column = pa.array(prices, kind)
    pq.write_table(pa.table({"time": times, "o": column, "h": column, "l": column, "c": column}), path)
    assert read(path)[0].ohlc[:, 2].tolist() == [float(price) for price in prices]


@settings(max_examples=150)
@given(
    st.lists(st.floats(1e-300, 1e300), min_size=1, max_size=20), st.sampled_from(["{!r}", "{:.5e}", "+{!r}", " {!r} "])
)
def test_text_prices_are_what_python_reads(tmp_path_factory: pytest.TempPathFactory, values: list[float], written: str):
    path = tmp_path_factory.mktemp("text") / "bars"
    texts = [written.format(value) for value in values]
    lines = [f"2024-01-{8 + k:02},{text},{text},{text},{text}" for k, text in enumerate(texts)]
    path.write_text("\n".join(["time,o,h,l,c", *lines]))
    assert read(path, "d")[0].ohlc[:, 3].tolist() == [float(text) for text in texts]


def test_prices_that_float64_cannot_hold_are_named(tmp_path: Path):
    bars = frame(high=[3, 3, 2**53 + 1, 3, 3], open=1, low=1, close=1)
    assert fault_of(saved(tmp_path, bars)) == (
        "column high, row 2: 9007199254740993 is not a number that float64 holds; correct or remove the row"
    )


# --- text


@pytest.mark.parametrize("separator", [",", "\t", ";"])
@pytest.mark.parametrize(
    ("written", "remark"),
    [
        ("%Y-%m-%d %H:%M:%S", None),
        ("%Y-%m-%dT%H:%M:%SZ", None),
        ("%Y.%m.%d %H:%M", "times of bars.txt are read as year, month and day, like '2024.01.08 00:00' in row 0"),
        ("%Y%m%d %H%M%S", "times of bars.txt are read as year, month and day, like '20240108 000000' in row 0"),
        ("%s", "times of bars.txt are read as integers in s since 1970"),
    ],
)
def test_text_is_read_like_parquet(tmp_path: Path, long_bars: tuple, separator: str, written: str, remark: str | None):
    times = pd.to_datetime(long_bars[0][:2000])
    bars = pd.DataFrame(long_bars[1][:2000], columns=["Open", "High", "Low", "Close"])
    bars.insert(0, "Time", times.strftime(written) if written != "%s" else long_bars[0][:2000] // 10**9)
    path = tmp_path / "bars.txt"
    bars.to_csv(path, sep=separator, index=False)
    log = ReadLog()
    read_back = joined(read_bars(path, make_source(), "m1", {}, log))
    np.testing.assert_array_equal(read_back.open_time, long_bars[0][:2000])
    np.testing.assert_array_equal(read_back.ohlc, long_bars[1][:2000])
    assert log.remarks == ([remark] if remark else [])
    named = {",": "comma", "\t": "tab", ";": "semicolon"}[separator]
    assert log.recognised == {
        "time": "Time (text)",
        "open": "Open (text)",
        "high": "High (text)",
        "low": "Low (text)",
        "close": "Close (text)",
        "format": f"{named}-separated text",
    }


def test_the_log_names_columns_and_types(tmp_path: Path):
    log = ReadLog()
    bars = frame().astype({"open": "float32"}).rename(columns={"close": "C"})
    list(read_bars(saved(tmp_path, bars), make_source(), "m1", {}, log))
    assert log.recognised == {
        "time": "timestamp (timestamp[us, tz=UTC])",
        "open": "open (float)",
        "high": "high (double)",
        "low": "low (double)",
        "close": "C (double)",
        "format": "parquet",
    }


def test_text_times_in_parquet_are_read_too(tmp_path: Path):
    bars, remarks = read(saved(tmp_path, frame(TIMES.strftime("%Y/%m/%d %H:%M"))))
    np.testing.assert_array_equal(bars.open_time, MONDAY + MINUTE * np.arange(5))
    assert remarks == ["times of bars.parquet are read as year, month and day, like '2024/01/08 00:00' in row 0"]


def test_an_index_that_pandas_wrote_as_text_is_the_time(tmp_path: Path):
    bars = frame().set_index("timestamp").rename_axis(None)
    bars.to_csv(tmp_path / "bars.csv")
    np.testing.assert_array_equal(read(tmp_path / "bars.csv")[0].open_time, MONDAY + MINUTE * np.arange(5))
    bars.reset_index(names="when").to_csv(tmp_path / "bars.csv")
    message = fault_of(tmp_path / "bars.csv")
    assert message == (
        "column Unnamed: 0, row 0: 0 is not a time (it would be in 1970); name the right column in "
        "data.source.columns.time"
    )


def test_names_of_metatrader_are_known_and_its_two_columns_of_time_refused(tmp_path: Path):
    path = tmp_path / "EURUSD_M1.csv"
    path.write_text("<DATE>\t<TIME>\t<OPEN>\t<HIGH>\t<LOW>\t<CLOSE>\n2024.01.08\t00:00:00\t1.1\t1.2\t1.0\t1.1\n")
    assert fault_of(path) == (
        "column <DATE> holds dates and column <TIME> times of the day; join them in one column, such as 2023-06-01 "
        "05:00:00"
    )
    assert fault_of(path, columns={"time": "<TIME>"}) == (
        "column <TIME>, row 0: '00:00:00' is a time without a date; join date and time in one column: 2023-06-01 "
        "05:00:00"
    )
    bars, _ = read(path, "d", columns={"time": "<DATE>"})
    np.testing.assert_array_equal(bars.ohlc, [[1.1, 1.2, 1.0, 1.1]])


@pytest.mark.parametrize("written", ["%Y-%m-%d %H:%M", "%Y%m%d %H%M%S", "%s"])
def test_times_kept_as_categories_are_read(tmp_path: Path, written: str):
    times = TIMES.strftime(written) if written != "%s" else (TIMES.as_unit("s").asi8).astype(str)
    bars, _ = read(saved(tmp_path, frame(pd.Series(times).astype("category"))))
    np.testing.assert_array_equal(bars.open_time, MONDAY + MINUTE * np.arange(5))


def test_columns_of_one_name_that_are_not_needed_do_not_matter(tmp_path: Path):
    path = tmp_path / "bars.csv"
    path.write_text("time,o,h,l,c,x,x\n2024-01-08,2,3,1,2,a,b\n2024-01-08,2,3,1,2,a,b\n")
    assert fault_of(path).startswith("column time, row 1: 2024-01-08T00:00:00 UTC repeats the time of the row before; ")
