from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cache.timeframes import format_time
from pipeline.bars import Block, SourceError, bar_times, find_files, open_parquet, read_bars, recognise
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
    remarks: list[str] = []
    return joined(read_bars(path, make_source(**source), timeframe, remarks)), remarks


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
    found = recognise(open_parquet(path), path, make_source()).columns
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
        f"which column is the {role}? none of the columns is known: {left}. Name it in data.source.columns.{role}"
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
    assert fault_of(path).startswith("which column is the time? none of the columns is known")


@pytest.mark.parametrize(
    ("zone", "start"),
    [("UTC", "2024-03-10 02:00"), ("Asia/Tokyo", "2024-03-10 02:00"), ("America/New_York", "2024-07-01")],
)
def test_naive_times_are_in_the_stated_zone(tmp_path: Path, zone: str, start: str):
    naive = pd.date_range(start, periods=5, freq="1min")
    bars, _ = read(saved(tmp_path, frame(naive)), timezone=zone)
    np.testing.assert_array_equal(bars.open_time, naive.tz_localize(zone).tz_convert("UTC").as_unit("ns").asi8)


@pytest.mark.parametrize(("start", "reason"), [("2024-03-10 02:00", "skipped"), ("2024-11-03 01:00", "repeated")])
def test_naive_times_in_a_clock_change_are_an_error(tmp_path: Path, start: str, reason: str):
    message = fault_of(
        saved(tmp_path, frame(pd.date_range(start, periods=5, freq="1min"))), timezone="America/New_York"
    )
    assert message.startswith("column timestamp, rows 0 to 5: ")
    assert start[:-1] in message
    assert message.endswith(
        "In America/New_York that hour is skipped or repeated when clocks change; store the times in UTC"
    )
    assert reason in message


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


def test_an_index_that_claims_1970_yields_to_a_column_of_times(tmp_path: Path):
    trap = frame().set_index(pd.to_datetime(np.arange(5)))  # integers that something took for nanoseconds
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
    ("times", "kind"), [(["2024-01-08"] * 5, "large_string"), ([1.7e9] * 5, "double"), ([True] * 5, "bool")]
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
        ("open", 2, np.inf, "column open, row 2: inf is not a finite number; correct or remove the row"),
        ("low", 0, -np.inf, "column low, row 0: -inf is not a finite number; correct or remove the row"),
        ("close", 4, 0.0, "column close, row 4: 0.0 is not positive; correct or remove the row"),
        ("low", 3, -1.5, "column low, row 3: -1.5 is not positive; correct or remove the row"),
        ("high", 1, 2.05, "column high, row 1: 2.05 is below the bar's open or close; correct or remove the row"),
        ("low", 1, 2.05, "column low, row 1: 2.05 is above the bar's open or close; correct or remove the row"),
        ("close", 3, None, "column close, row 3: the value is missing; correct or remove the row"),
        ("timestamp", 2, None, "column timestamp, row 2: the value is missing; correct or remove the row"),
        ("timestamp", 0, None, "column timestamp, row 0: the value is missing; correct or remove the row"),
        (
            "timestamp",
            3,
            TIMES[2],
            "column timestamp, row 3: 2024-01-08T00:02:00 UTC repeats the time of the row before; remove the duplicate",
        ),
        (
            "timestamp",
            3,
            TIMES[1],
            "column timestamp, row 3: 2024-01-08T00:01:00 UTC is earlier than the row before; sort the file by time",
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
        "column timestamp, row 0: the value is missing; correct or remove the row"
    )


def test_nan_is_told_from_a_missing_value(tmp_path: Path):
    ohlc = frame()[["open", "high", "low", "close"]].to_numpy(copy=True)
    ohlc[2, 1] = np.nan  # pandas would write a null
    path = write_parquet(tmp_path / "bars.parquet", TIMES.as_unit("ns").asi8, ohlc)
    assert fault_of(path) == "column high, row 2: nan is not a finite number; correct or remove the row"


@pytest.mark.parametrize(
    ("values", "kind"),
    [([str(x) for x in range(5)], "large_string"), ([True] * 5, "bool"), (list(TIMES), "timestamp[us, tz=UTC]")],
)
def test_prices_must_be_numbers(tmp_path: Path, values: list, kind: str):
    assert fault_of(saved(tmp_path, frame(low=values))) == (
        f"column low holds {kind}, not numbers; store prices as float64"
    )


@pytest.mark.parametrize("kind", ["float32", "int64", "uint16"])
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
    assert fault_of(path) == f"column {name}, row {row:,}: -2.5 is not positive; correct or remove the row"


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
    assert fault_of(path) == "column open, row 131,100: the value is missing; correct or remove the row"


def test_row_groups_do_not_matter_not_even_empty_ones(tmp_path: Path):
    table = pa.Table.from_pandas(frame(), preserve_index=False)
    path = tmp_path / "bars.parquet"
    with pq.ParquetWriter(path, table.schema) as writer:
        for part in (table.slice(0, 0), table.slice(0, 2), table.slice(0, 0), table.slice(2)):
            writer.write_table(part)
    np.testing.assert_array_equal(read(path)[0].ohlc, frame()[["open", "high", "low", "close"]])


# --- files


def test_an_empty_table_is_an_error(tmp_path: Path):
    assert fault_of(saved(tmp_path, frame().iloc[:0])) == "holds no rows"


@pytest.mark.parametrize("share", [0.001, 0.3, 0.7, 0.99, 0.9999])
def test_truncated_parquet_is_an_error(tmp_path: Path, long_bars: tuple, share: float):
    path = write_parquet(tmp_path / "bars.parquet", *long_bars)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    message = fault_of(path)
    assert message.startswith("not a readable parquet file, perhaps truncated (")
    assert message.endswith("; fetch it again")


def test_what_is_not_parquet_is_an_error(tmp_path: Path):
    path = tmp_path / "bars.parquet"
    path.write_text("time,open,high,low,close\n" * 100)
    assert fault_of(path) == "not a parquet file; convert it, for example by pandas.read_csv(…).to_parquet(…)"


def test_a_damaged_body_is_an_error_that_names_the_file(tmp_path: Path, long_bars: tuple):
    path = write_parquet(tmp_path / "bars.parquet", *long_bars)
    whole = bytearray(path.read_bytes())
    for share in np.linspace(0.02, 0.98, 25):
        damaged = whole.copy()
        at = int(share * len(whole))
        damaged[at : at + 400] = b"\xff" * 400
        path.write_bytes(damaged)
        try:
            read(path)
        except SourceError as error:
            assert str(error).startswith(f"{path}: ")  # elsewhere the damage may not matter


def test_a_damaged_footer_is_an_error_that_names_the_file(tmp_path: Path):
    path = saved(tmp_path, frame())
    whole = bytearray(path.read_bytes())
    whole[-40:-8] = b"\xff" * 32
    path.write_bytes(whole)
    assert fault_of(path).startswith("not a readable parquet file")


def test_a_missing_or_forbidden_file_keeps_its_own_error(tmp_path: Path):
    with pytest.raises(FileNotFoundError):
        open_parquet(tmp_path / "none.parquet")


def test_files_are_a_file_a_folder_or_a_pattern_sorted_by_name(tmp_path: Path):
    names = ["2024-02.parquet", "2024-01.parquet", "other.parquet"]
    folder = tmp_path / "m1"
    folder.mkdir()
    for name in [*names, "notes.txt"]:
        (folder / name).touch()
    assert find_files(tmp_path, "m1/other.parquet") == [folder / "other.parquet"]
    assert find_files(tmp_path, "m1") == [folder / name for name in sorted(names)]
    assert find_files(tmp_path, "m1/2024-*.parquet") == [folder / "2024-01.parquet", folder / "2024-02.parquet"]
    assert find_files(tmp_path, "**/other.parquet") == [folder / "other.parquet"]
    assert find_files(Path("/nowhere"), str(folder / "2024-*.parquet")) == find_files(tmp_path, "m1/2024-*.parquet")
    assert find_files(Path("/nowhere"), str(folder)) == find_files(tmp_path, "m1")


@pytest.mark.parametrize(
    "pattern", ["none.parquet", "empty", "*.parquet", "/nowhere/none.parquet", "/nowhere/*.parquet"]
)
def test_no_file_is_an_error_that_says_where_was_looked(tmp_path: Path, pattern: str):
    (tmp_path / "empty").mkdir()
    with pytest.raises(SourceError) as caught:
        find_files(tmp_path, pattern)
    assert str(caught.value) == (
        f"{tmp_path / 'empty'}: there is no *.parquet in this directory"
        if pattern == "empty"
        else f"{tmp_path / pattern}: no such file, directory or pattern; --data-dir says where the recipe's paths begin"
    )


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
        "venue, coin tell symbols apart, split the file: one symbol a dataset"
    )
