"""Everything that source files have been seen to be instead of bars: each is refused, in words of its own.

Cases are named by their fault; what follows a slash tells several of one fault apart. `<arrow>` stands for words of
Arrow's own.
"""

import gzip
import io
import os
import re
import socket
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import date, time
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.bars import ReadLog, SourceError, read_bars, symbols_in
from pipeline.files import find_by_symbol, find_files
from tests.unit.pipeline.making import make_source

ROOT = Path(__file__).parents[2]
REAL = ROOT.parent / "shared" / "data" / "bars"
real_files = pytest.mark.skipif(not REAL.is_dir(), reason=f"{REAL} is not there")

TIMES = pd.date_range("2024-01-08", periods=60, freq="min", tz="UTC")
DROP = "correct or remove the row, or set data.source.policy."
COLUMNS = "['time', 'open', 'high', 'low', 'close']"
NO_FILE = "no such file, directory or pattern; --data-dir says where the recipe's paths begin"
NOT_REGULAR = "not a regular file; let data.source.files match files only"


@dataclass(frozen=True)
class Case:
    """What is written to a path, how it is read, and the error without the path that it begins with."""

    write: Callable[[Path], object]
    message: str
    source: dict[str, Any] = field(default_factory=dict)
    timeframe: str = "m1"
    find: str | None = None  # a pattern to be looked for in the path instead of a file to be read
    symbols: tuple[str, ...] = ()  # columns whose symbols are asked for instead
    where: dict[str, str] = field(default_factory=dict)


def bars(**columns: Any) -> pd.DataFrame:
    prices = {"open": 2.0, "high": 3.0, "low": 1.0, "close": 2.5}
    return pd.DataFrame({"time": TIMES, **prices, **columns})


def with_value(row: int, column: str, value: Any) -> Callable[[Path], object]:
    """Good bars but for one value, as parquet."""

    def write(path: Path) -> None:
        table = pa.Table.from_pandas(bars(), preserve_index=False)
        values = table[column].to_pylist()
        values[row] = value
        where = table.schema.get_field_index(column)
        pq.write_table(table.set_column(where, column, pa.array(values, table.schema.field(where).type)), path)

    return write


def parquet(**columns: Any) -> Callable[[Path], object]:
    return lambda path: bars(**columns).to_parquet(path, index=False)


def without(name: str) -> Callable[[Path], object]:
    return lambda path: bars().drop(columns=name).to_parquet(path, index=False)


def renamed(**names: str) -> Callable[[Path], object]:
    return lambda path: bars().rename(columns=names).to_parquet(path, index=False)


def text(content: str | None = None, encoding: str = "utf-8", **settings: Any) -> Callable[[Path], object]:
    if content is None:
        content = bars().assign(time=TIMES.strftime("%Y-%m-%d %H:%M")).to_csv(index=False, **settings)
    return lambda path: path.write_bytes(content.encode(encoding))


def lines(*rows: str, header: str = "time,open,high,low,close") -> Callable[[Path], object]:
    return text("\n".join([header, *rows]) + "\n")


def raw(content: bytes) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(content)


def cut(write: Callable[[Path], object], share: float) -> Callable[[Path], object]:
    def written(path: Path) -> None:
        write(path)
        os.truncate(path, int(share * path.stat().st_size))

    return written


def feather(path: Path) -> None:
    bars().to_feather(path)


def zipped(*names: str) -> Callable[[Path], object]:
    def write(path: Path) -> None:
        with zipfile.ZipFile(path, "w") as archive:
            for name in names:
                archive.writestr(name, "time,open\n")

    return write


def table(*columns: tuple[str, Any]) -> Callable[[Path], object]:
    """Parquet with exactly these columns, whose names may come twice."""
    arrays = [pa.array(values) for _, values in columns]
    return lambda path: pq.write_table(pa.Table.from_arrays(arrays, names=[name for name, _ in columns]), path)


def stream(path: Path) -> None:
    arrow = pa.Table.from_pandas(bars(), preserve_index=False)
    with pa.ipc.new_stream(str(path), arrow.schema) as writer:
        writer.write_table(arrow)


def bound_socket(path: Path) -> None:
    before = Path.cwd()
    os.chdir(path.parent)  # names of sockets are short
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path.name)
    os.chdir(before)


def local(start: str) -> Callable[[Path], object]:
    return lambda path: bars(time=pd.date_range(start, periods=60, freq="min")).to_parquet(path, index=False)


GOOD = "2024-01-08 00:0{},2,3,1,2.5".format
NEW_YORK = {"timezone": "America/New_York"}
SECONDS = TIMES.as_unit("s").asi8

CASES: dict[str, Case] = {
    # --- what is no table
    "empty file": Case(raw(b""), "an empty file; fetch it again"),
    "gzip": Case(raw(gzip.compress(b"time,open\n")), "compressed by gzip; unpack it first"),
    "zip": Case(zipped("bars.csv"), "a zip archive; unpack it first"),
    "workbook": Case(
        zipped("[Content_Types].xml", "xl/workbook.xml"),
        "an Excel workbook; export it as text, or convert it, for example by pandas.read_excel(…).to_parquet(…)",
    ),
    "Feather of version 1": Case(
        raw(b"FEA1\0\0\0\0" * 9),
        "Feather of version 1; write it again, for example by pandas.read_feather(…).to_parquet(…)",
    ),
    "Arrow stream": Case(
        stream, "an Arrow stream, whose end cannot be told from a cut; write an Arrow file or parquet"
    ),
    "web page": Case(text("<!doctype html>\n<html>404</html>"), "a web page or XML, no table; fetch it again"),
    "JSON": Case(
        text('[{"time": "2024-01-08", "open": 2.0}]'),
        "JSON; convert it, for example by pandas.read_json(…).to_parquet(…)",
    ),
    "UTF-16": Case(text(encoding="utf-16"), "text in UTF-16; save it as UTF-8"),
    "UTF-16 / unmarked": Case(text(encoding="utf-16-le"), "text in UTF-16; save it as UTF-8"),
    "junk": Case(
        raw(np.random.default_rng(0).bytes(5000)),
        "binary data that is neither parquet nor Arrow; fetch it again, or convert it",
    ),
    "junk / zeros": Case(
        raw(b"\0" * 5000), "binary data that is neither parquet nor Arrow; fetch it again, or convert it"
    ),
    "one endless line": Case(
        raw(b"0,1," * 50_000), "neither parquet, Arrow nor text in lines; convert it to one of them"
    ),
    "Latin header": Case(
        text("Zeit;Eröffnung;Hoch\n", "latin-1"),
        "its first line is not UTF-8 (\"b'\\\\xf6ffnung;Hoch'\"); save the file as UTF-8",
    ),
    "prose": Case(
        text("Thank you for your order.\n"),
        "its first line, 'Thank you for your order.', holds no comma, tab or semicolon; separate columns by one of "
        "them",
    ),
    "blank first line": Case(text("\ntime,open\n"), "its first line is empty; it must hold the names of the columns"),
    "headerless text": Case(
        lines(GOOD(1), header=GOOD(0)),
        "its first line, '2024-01-08 00:00,2,3,1,2.5', holds values; put the names of the columns before it, such as "
        "'time,open,high,low,close'",
    ),
    # --- damage
    **{
        f"truncated parquet / {share}": Case(
            cut(parquet(), share), "not a readable parquet file, perhaps truncated (<arrow>); fetch it again"
        )
        for share in (0.002, 0.1, 0.5, 0.9, 0.999)
    },
    **{
        f"truncated Arrow / {share}": Case(
            cut(feather, share), "not a readable Arrow file, perhaps truncated (<arrow>); fetch it again"
        )
        for share in (0.01, 0.1, 0.5, 0.9, 0.999)
    },
    "text cut within a row": Case(
        cut(text(), 0.5),
        "row 29 has 2 fields, but the header has 5: '2024-01-08 00:29,2.0'; correct or remove the row",
    ),
    "text with a tail of zeros": Case(
        raw(b"time,open,high,low,close\n" + GOOD(0).encode() + b"\n" + b"\0" * 8),
        r"row 1 has 1 field, but the header has 5: '\x00\x00\x00\x00\x00\x00\x00\x00'; correct or remove the row",
    ),
    # --- nothing in it
    "parquet without rows": Case(lambda path: bars()[:0].to_parquet(path), "holds no rows; fetch it again"),
    "parquet without rows / Arrow": Case(lambda path: bars()[:0].to_feather(path), "holds no rows; fetch it again"),
    "parquet without rows / text": Case(lines(), "holds no rows; fetch it again"),
    "all rows dropped": Case(
        parquet(low=-1.0),
        "data.source.policy leaves none of its rows: it drops 60 for not_positive. Look at the file, or fetch it again",
        {"policy": {"not_positive": "drop"}},
    ),
    # --- rows of text
    "ragged row": Case(
        lines(GOOD(0), GOOD(1) + ",extra"),
        "row 1 has 6 fields, but the header has 5: '2024-01-08 00:01,2,3,1,2.5,extra'; correct or remove the row",
    ),
    "decimal commas between commas": Case(
        lines("2024-01-08 00:00,2,0,3,0,1,0,2,5"),
        "row 0 has 9 fields, but the header has 5: '2024-01-08 00:00,2,0,3,0,1,0,2,5'; correct or remove the row",
    ),
    "open quote": Case(
        lines(GOOD(0) + ",a", GOOD(1) + ',"b', GOOD(2) + ",c", header="time,open,high,low,close,note"),
        "column note, row 1: a quoted field holds a line break, 'b\\n2024-01-08 00:02,2,3,1,2.5,c\\n'; the quote is "
        "perhaps never closed. Correct the row",
    ),
    "wrong separator": Case(
        text(sep="|"),
        "its first line, 'time|open|high|low|close', holds no comma, tab or semicolon; separate columns by one of them",
    ),
    "decimal commas": Case(
        text(sep=";", decimal=","),
        "column open, row 0: '2,0' is not a number; write 1234.5, with a point before the decimals and nothing between "
        "the thousands",
    ),
    "thousands separators": Case(
        lines(GOOD(0), '2024-01-08 00:01,2,"1,234.5",1,2.5'),
        "column high, row 1: '1,234.5' is not a number; write 1234.5, with a point before the decimals and nothing "
        "between the thousands",
    ),
    "words among prices": Case(
        lines(GOOD(0), "2024-01-08 00:01,2,3,n/a,2.5"),
        "column low, row 1: 'n/a' is not a number that float64 holds; correct or remove the row",
    ),
    "NUL within a price": Case(
        lines(GOOD(0), "2024-01-08 00:01,2,3\0,1,2.5"),
        "column high, row 1: '3\\x00' is not a number that float64 holds; correct or remove the row",
    ),
    "Latin text": Case(
        text("time,open,high,low,close,place\n" + GOOD(0) + ",Zürich\n", "latin-1"),
        "column place, row 0: b'Z\\xfcrich' is not UTF-8; save the file as UTF-8",
        symbols=("place",),
    ),
    # --- columns
    **{
        f"missing {role}": Case(
            without(role),
            f"which column is the {role}? none is called so: "
            f"{[name for name in ('time', 'open', 'high', 'low', 'close') if name != role]}. Name it in "
            f"data.source.columns.{role}",
        )
        for role in ("time", "open", "high", "low", "close")
    },
    "unknown names": Case(
        renamed(open="Eröffnung"),
        "which column is the open? none is called so: ['time', 'Eröffnung', 'high', 'low', 'close']. Name "
        "it in data.source.columns.open",
    ),
    "two candidates": Case(
        parquet(Close=2.5),
        "which column is the close? several columns could be it: ['close', 'Close']. Name it in "
        "data.source.columns.close",
    ),
    "two times": Case(
        parquet(timestamp=TIMES),
        "which column is the time? several columns could be it: ['time', 'timestamp']. Name it in "
        "data.source.columns.time",
    ),
    "one name twice": Case(
        table(("time", TIMES), *((name, [2.0] * 60) for name in ("open", "high", "low", "close", "low"))),
        "2 columns are called low; rename one",
    ),
    "a stated column that is not there": Case(
        parquet(),
        f"data.source.columns.high names High, but the columns are {COLUMNS}",
        {"columns": {"high": "High"}},
    ),
    "date and time apart": Case(
        lines("2024.01.08,00:00,2,3,1,2.5", header="date,time,open,high,low,close"),
        "column date holds dates and column time times of the day; join them in one column, such as 2023-06-01 "
        "05:00:00",
    ),
    "date and time apart / parquet": Case(
        parquet(date=[date(2024, 1, 8)] * 60, time=[time(0, k) for k in range(60)]),
        "column date holds dates and column time times of the day; join them in one column, such as 2023-06-01 "
        "05:00:00",
    ),
    # --- types
    "times of float": Case(
        parquet(time=SECONDS.astype(float)),
        "column time holds double, not times; store timestamps, or integers since 1970",
    ),
    "times of day": Case(
        parquet(time=[time(0, k) for k in range(60)]),
        "column time holds time64[us], times without a date; join it with the dates",
    ),
    "times of nothing": Case(
        table(("time", pa.nulls(60)), *((name, [2.0] * 60) for name in ("open", "high", "low", "close"))),
        "column time holds null, not times; store timestamps, or integers since 1970",
    ),
    "prices of text": Case(parquet(low="1.0"), "column low holds large_string, not numbers; store prices as float64"),
    "prices of bool": Case(parquet(high=True), "column high holds bool, not numbers; store prices as float64"),
    "prices of times": Case(
        parquet(close=TIMES), "column close holds timestamp[us, tz=UTC], not numbers; store prices as float64"
    ),
    "prices in lists": Case(
        parquet(open=[[2.0]] * 60), "column open holds list<element: double>, not numbers; store prices as float64"
    ),
    "huge integers": Case(
        parquet(high=[3] * 59 + [2**53 + 1]),
        "column high, row 59: 9007199254740993 is not a number that float64 holds; correct or remove the row",
    ),
    "points that are not whole": Case(
        parquet(),
        "column close, row 0: 2.5 is not a whole number of points, as data.source.points_per_unit says that prices "
        "are; leave it out",
        {"points_per_unit": 1000},
    ),
    # --- times
    "index of 1970": Case(
        lambda path: bars(time=np.arange(60)).astype({"time": "datetime64[ns]"}).set_index("time").to_parquet(path),
        "column time, row 0: 1970-01-01 00:00:00 lies in 1970; whatever wrote the file took integers for nanoseconds. "
        "Name the column with the true times in data.source.columns.time",
    ),
    "numbered rows": Case(
        parquet(time=np.arange(60)),
        "column time, row 0: 0 is not a time (it would be in 1970); name the right column in data.source.columns.time",
    ),
    "dates in digits": Case(
        parquet(time=202401080000 + np.arange(60)),
        "column time, row 0: 202401080000 looks like a date written in digits, not like ms since 1970; write "
        "2023-06-01 05:00:00",
    ),
    "beyond 2262": Case(
        parquet(time=10_000_000_000 + np.arange(60)),
        "column time, row 0: 10000000000 is not a time (in s since 1970 it would be beyond 2262); correct it",
    ),
    "timestamps beyond 2262": Case(
        with_value(7, "time", pd.Timestamp("2300-01-01", tz="UTC").to_pydatetime()),
        "column time, row 7: 2300-01-01 00:00:00Z is outside the years 1678 to 2261, which nanoseconds reach; "
        "correct or remove the row",
    ),
    "unit changes": Case(
        parquet(time=np.r_[SECONDS[:30], SECONDS[30:] * 1000]),
        "column time, row 30: 1704673800000 is not a time in s since 1970, as the rows before it are; correct or "
        "remove the row",
    ),
    "day or month": Case(
        lines("01/02/2024 00:00,2,3,1,2.5"),
        "column time, row 0: '01/02/2024 00:00' could be day/month or month/day; write the year first, as in "
        "2023-02-01 05:00:00",
    ),
    "unknown form of time": Case(
        lines("Jan 8 2024 00:00,2,3,1,2.5"),
        "column time, row 0: 'Jan 8 2024 00:00' is not a time in a known form; write 2023-06-01 05:00:00, 2023.06.01 "
        "05:00, 2023/06/01 05:00, 20230601 050000 or whole seconds since 1970",
    ),
    "times alone": Case(
        lines("00:00,2,3,1,2.5"),
        "column time, row 0: '00:00' is a time without a date; join date and time in one column: 2023-06-01 05:00:00",
    ),
    "no such day": Case(
        lines("2024-02-30 00:00,2,3,1,2.5"),
        "column time, row 0: '2024-02-30 00:00' is a time that does not exist, or outside the years 1678 to 2261; "
        "correct or remove the row",
    ),
    "mixed offsets": Case(
        lines("2024-01-08 00:00+00:00,2,3,1,2.5", "2024-01-08 00:01,2,3,1,2.5"),
        "column time, row 1: '2024-01-08 00:01' is not a time written like '2024-01-08 00:00+00:00' in row 0; write "
        "all times alike",
    ),
    "mixed forms": Case(
        lines(GOOD(0), "2024.01.08 00:01,2,3,1,2.5"),
        "column time, row 1: '2024.01.08 00:01' is not a time written like '2024-01-08 00:00' in row 0; write all "
        "times alike",
    ),
    "a repeated header": Case(
        lines(GOOD(0), GOOD(1), "time,open,high,low,close", GOOD(2)),
        "column time, row 2: 'time' is not a time written like '2024-01-08 00:00' in row 0; write all times alike",
    ),
    "a skipped hour": Case(
        local("2024-03-10 01:50"),
        "column time, row 10: 2024-03-10 02:00:00 falls into an hour that America/New_York skips when clocks change; "
        "store the times in UTC",
        NEW_YORK,
    ),
    "a repeated hour": Case(
        local("2024-11-03 00:30"),
        "column time, row 30: 2024-11-03 01:00:00 falls into an hour that America/New_York repeats when clocks change; "
        "store the times in UTC",
        NEW_YORK,
    ),
    "a repeated hour of text": Case(
        lines("2024-11-03 00:59,2,3,1,2.5", "2024-11-03 01:00,2,3,1,2.5"),
        "column time, row 1: '2024-11-03 01:00' falls into an hour that America/New_York repeats when clocks change; "
        "store the times in UTC",
        NEW_YORK,
    ),
    # --- rows that cannot be true
    "missing time": Case(with_value(5, "time", None), f"column time, row 5: the value is missing; {DROP}missing=drop"),
    "missing price": Case(with_value(0, "low", None), f"column low, row 0: the value is missing; {DROP}missing=drop"),
    "missing price in text": Case(
        lines(GOOD(0), GOOD(1), "2024-01-08 00:02,2,,1,2.5"),
        f"column high, row 2: the value is missing; {DROP}missing=drop",
    ),
    "NaN": Case(
        with_value(59, "open", np.nan), f"column open, row 59: nan is not a finite number; {DROP}not_finite=drop"
    ),
    "NaN in text": Case(
        lines(GOOD(0), "2024-01-08 00:01,2,3,NaN,2.5"),
        f"column low, row 1: nan is not a finite number; {DROP}not_finite=drop",
    ),
    "infinity": Case(
        with_value(7, "high", np.inf), f"column high, row 7: inf is not a finite number; {DROP}not_finite=drop"
    ),
    "negative price": Case(
        with_value(8, "low", -1.5), f"column low, row 8: -1.5 is not positive; {DROP}not_positive=drop"
    ),
    "zero": Case(with_value(9, "close", 0.0), f"column close, row 9: 0.0 is not positive; {DROP}not_positive=drop"),
    "negative points": Case(
        parquet(open=2000, high=3000, low=[-7] + [1000] * 59, close=2500),
        f"column low, row 0: -7 is not positive; {DROP}not_positive=drop",
        {"points_per_unit": 1000},
    ),
    "high below": Case(
        with_value(3, "high", 2.25), f"column high, row 3: 2.25 is below the bar's open or close; {DROP}high=drop"
    ),
    "low above": Case(
        with_value(4, "low", 2.25), f"column low, row 4: 2.25 is above the bar's open or close; {DROP}low=drop"
    ),
    "duplicate": Case(
        with_value(6, "time", TIMES[5].to_pydatetime()),
        "column time, row 6: 2024-01-08T00:05:00 UTC repeats the time of the row before; remove the duplicate, or set "
        "data.source.policy.duplicate=keep_first or keep_last",
    ),
    "unsorted": Case(
        with_value(6, "time", TIMES[2].to_pydatetime()),
        "column time, row 6: 2024-01-08T00:02:00 UTC is earlier than the row before; sort the file by time, or set "
        "data.source.policy.unsorted=sort",
    ),
    "newest first": Case(
        lambda path: bars()[::-1].to_parquet(path, index=False),
        "column time, row 1: 2024-01-08T00:58:00 UTC is earlier than the row before; sort the file by time, or set "
        "data.source.policy.unsorted=sort",
    ),
    # --- another timeframe
    "coarse bars": Case(
        parquet(time=pd.date_range("2024-01-08", periods=60, freq="h", tz="UTC")),
        "no two of its 60 bars are as close as m1 bars are, the closest being 1h apart. Name their timeframe in "
        "data.source.files; as m1 they would count as closed too early",
    ),
    "fine bars": Case(
        parquet(),
        "column time, row 1: 2024-01-08T00:01:00 UTC begins before the bar in the row before has ended; are these h1 "
        "bars? data.source.files says so",
        timeframe="h1",
    ),
    "fine bars of days": Case(
        parquet(),
        "column time, row 1: 2024-01-08T00:01:00 UTC begins before the bar in the row before has ended; are these d "
        "bars? data.source.files says so",
        timeframe="d",
    ),
    # --- several symbols
    "several symbols": Case(
        parquet(time=TIMES.repeat(2)[:60], venue=["A", "B"] * 30, coin="X"),
        "column time, row 1: 2024-01-08T00:00:00 UTC repeats the time of the row before; if venue, coin tell symbols "
        "apart, set data.source.symbol_columns: [venue, coin]; otherwise remove the duplicate, or set "
        "data.source.policy.duplicate=keep_first or keep_last",
    ),
    "several symbols one after another": Case(
        lines(GOOD(1) + ",A", GOOD(2) + ",A", GOOD(0) + ",B", header="time,open,high,low,close,coin"),
        "column time, row 2: 2024-01-08T00:00:00 UTC is earlier than the row before; if coin tells symbols apart, set "
        "data.source.symbol_columns: [coin]; otherwise sort the file by time, or set data.source.policy.unsorted=sort",
    ),
    "too few symbol columns": Case(
        parquet(time=TIMES.repeat(2)[:60], venue=["A", "B"] * 30, coin="X"),
        "column time, row 1: 2024-01-08T00:00:00 UTC repeats the time of the row before; if venue tells symbols apart, "
        "set data.source.symbol_columns: [coin, venue]; otherwise remove the duplicate, or set "
        "data.source.policy.duplicate=keep_first or keep_last",
        {"symbol_columns": ["coin"]},
        where={"coin": "X"},
    ),
    "no symbol column": Case(
        parquet(), f"data.source.symbol_columns names coin, but the columns are {COLUMNS}", symbols=("coin",)
    ),
    "nameless symbol": Case(
        parquet(coin=["X"] * 40 + [None] * 20),
        "column coin, row 40: the value is missing, but data.source.symbol_columns makes it part of the symbol's name; "
        "correct or remove the row",
        symbols=("coin",),
    ),
    "symbols of float": Case(
        parquet(coin=1.5),
        "column coin, row 0: 1.5 is a double; data.source.symbol_columns must name columns of text or whole numbers",
        symbols=("coin",),
    ),
    "another symbol": Case(parquet(coin="X"), "no row has coin = Y", where={"coin": "Y"}),
    # --- paths
    "nothing there": Case(lambda path: None, NO_FILE, find="none.parquet"),
    "a pattern without matches": Case(lambda path: path.mkdir(), NO_FILE, find="*.parquet"),
    "an empty directory": Case(
        lambda path: path.mkdir(),
        "there is no *.parquet, *.csv, *.tsv, *.feather or *.arrow in this directory; put the files there, or remove "
        "the directory",
        find="",
    ),
    "a directory": Case(lambda path: path.mkdir(), f"a directory, {NOT_REGULAR}"),
    "a named pipe": Case(os.mkfifo, f"a named pipe, {NOT_REGULAR}"),
    "a socket": Case(bound_socket, f"a socket, {NOT_REGULAR}"),
    "a dangling link": Case(
        lambda path: path.symlink_to("/nowhere/bars.parquet"),
        "a symbolic link to /nowhere/bars.parquet, which does not exist; mend or remove it",
    ),
    "no symbol": Case(
        lambda path: path.mkdir(),
        "nothing matches, where {symbol} stands for any text but /; --data-dir says where the recipe's paths begin",
        find="{symbol}.parquet",
    ),
    "the symbol twice": Case(
        lambda path: path.mkdir(), "{symbol} must stand in it once", find="{symbol}/{symbol}.parquet"
    ),
}


def fault_of(case: Case, path: Path) -> str:
    """The error without the path it must begin with."""
    case.write(path)
    return read_fault(path, case)


def read_fault(path: Path, case: Case) -> str:
    source = make_source(
        **{**case.source, "policy": {**make_source().policy.model_dump(), **case.source.get("policy", {})}}
    )
    with pytest.raises(SourceError) as caught:
        if case.find is not None:
            find = find_by_symbol if "{symbol}" in case.find else find_files
            find(path, case.find) if case.find else find(path.parent, path.name)
        elif case.symbols:
            symbols_in(path, case.symbols)
        else:
            list(read_bars(path, source, case.timeframe, case.where, ReadLog()))
    where = path / case.find if case.find else path
    assert str(caught.value).startswith(f"{where}: ")
    return str(caught.value).removeprefix(f"{where}: ")


def fits(message: str, expected: str) -> bool:
    return bool(re.fullmatch(".+".join(map(re.escape, expected.split("<arrow>"))), message, re.DOTALL))


@pytest.mark.parametrize("name", CASES)
def test_bad_input_is_refused_in_its_own_words(tmp_path: Path, name: str):
    message = fault_of(CASES[name], tmp_path / "bars.parquet")
    assert fits(message, CASES[name].message), message


def test_there_are_many_cases_and_faults_are_told_apart():
    faults = {name.split(" / ")[0]: case.message for name, case in CASES.items()}
    assert len(faults) >= 80
    same = {message for message in faults.values() if list(faults.values()).count(message) > 1}
    assert same == {NO_FILE}  # a file and a pattern that are not there


# --- the real files, broken


def xagusd(change: Callable[[str], str]) -> Callable[[Path], object]:
    return lambda path: path.write_text(change((REAL / "xagusd_h1.csv").read_text()))


def of_real(name: str, change: Callable[[pd.DataFrame], pd.DataFrame]) -> Callable[[Path], object]:
    return lambda path: change(pd.read_parquet(REAL / name)).to_parquet(path, index=False)


def real_bytes(name: str, share: float) -> Callable[[Path], object]:
    return lambda path: path.write_bytes((content := (REAL / name).read_bytes())[: int(share * len(content))])


def same(name: str) -> Callable[[Path], object]:
    return lambda path: path.symlink_to(REAL / name)


BROKEN: dict[str, Case] = {
    **{
        f"{name} cut at {share}": Case(
            real_bytes(f"{name}.parquet", share),
            "not a readable parquet file, perhaps truncated (<arrow>); fetch it again",
        )
        for name in ("sse_composite_m1", "audusd_m1", "usdcad_m1", "crypto_h1_venues")
        for share in (0.001, 0.5, 0.9999)
    },
    "xagusd cut": Case(
        xagusd(lambda text: text[:-40]),
        "row 74,403 has 1 field, but the header has 6: '2023-09-11'; correct or remove the row",
        timeframe="h1",
    ),
    "xagusd without a header": Case(
        xagusd(lambda text: text.split("\n", 1)[1]),
        "its first line, '2011-02-17 15:00:00\\t30.867\\t30.988\\t30.847\\t30.947\\t49', holds values; put the names "
        "of the columns before it, such as 'time\\topen\\thigh\\tlow\\tclose'",
        timeframe="h1",
    ),
    "xagusd with decimal commas": Case(
        xagusd(lambda text: text.replace(".", ",")),
        "column Open, row 0: '30,867' is not a number; write 1234.5, with a point before the decimals and nothing "
        "between the thousands",
        timeframe="h1",
    ),
    "xagusd between bars": Case(
        xagusd(lambda text: text.replace("\t", "|")),
        "its first line, 'Time|Open|High|Low|Close|Volume', holds no comma, tab or semicolon; separate columns by "
        "one of them",
        timeframe="h1",
    ),
    "xagusd with days first": Case(
        xagusd(lambda text: re.sub(r"^(\d{4})-(\d\d)-(\d\d)", r"\3/\2/\1", text, flags=re.MULTILINE)),
        "column Time, row 0: '17/02/2011 15:00:00' could be day/month or month/day; write the year first, as in "
        "2023-02-01 05:00:00",
        timeframe="h1",
    ),
    "xagusd with one odd row": Case(
        xagusd(lambda text: text.replace("2020-06-01 12:00:00", "2020.06.01 12:00:00")),
        "column Time, row 55,006: '2020.06.01 12:00:00' is not a time written like '2011-02-17 15:00:00' in row 0; "
        "write all times alike",
        timeframe="h1",
    ),
    "xagusd as minutes": Case(
        same("xagusd_h1.csv"),
        "no two of its 74,404 bars are as close as m1 bars are, the closest being 1h apart. Name their timeframe in "
        "data.source.files; as m1 they would count as closed too early",
    ),
    "xagusd in points": Case(
        same("xagusd_h1.csv"),
        "column Open, row 0: 30.867 is not a whole number of points, as data.source.points_per_unit says that prices "
        "are; leave it out",
        {"points_per_unit": 1000},
        timeframe="h1",
    ),
    "sse as m5": Case(
        same("sse_composite_m1.parquet"),
        "column timestamp, row 1: 2015-01-05T01:32:00 UTC begins before the bar in the row before has ended; are "
        "these m5 bars? data.source.files says so",
        {"label": "right"},
        timeframe="m5",
    ),
    "sse with one high mistaken": Case(
        of_real(
            "sse_composite_m1.parquet", lambda frame: frame.assign(high=frame["high"].where(frame.index != 200_000, 1))
        ),
        f"column high, row 200,000: 1.0 is below the bar's open or close; {DROP}high=drop",
        {"label": "right"},
    ),
    "sse twice": Case(
        of_real("sse_composite_m1.parquet", lambda frame: pd.concat([frame, frame])),
        "column timestamp, row 239,550: 2015-01-05T01:31:00 UTC is earlier than the row before; sort the file by "
        "time, or set data.source.policy.unsorted=sort",
        {"label": "right"},
    ),
    "audusd with every row twice": Case(
        of_real("audusd_m1.parquet", lambda frame: frame.loc[frame.index.repeat(2)]),
        "column timestamp, row 1: 2023-06-01T05:00:00 UTC repeats the time of the row before; remove the duplicate, "
        "or set data.source.policy.duplicate=keep_first or keep_last",
    ),
    "usdcad with a gap": Case(
        of_real("usdcad_m1.parquet", lambda frame: frame.assign(low=frame["low"].where(frame.index != 9_999))),
        f"column low, row 9,999: the value is missing; {DROP}missing=drop",
    ),
    "usdcad in seconds, then milliseconds": Case(
        of_real(
            "usdcad_m1.parquet",
            lambda frame: frame.assign(
                timestamp=frame["timestamp"].astype("datetime64[s, UTC]").astype("int64")
                * np.where(frame.index < 8_000, 1, 1000)
            ),
        ),
        "column timestamp, row 8,000: 1686625980000 is not a time in s since 1970, as the rows before it are; "
        "correct or remove the row",
    ),
    "crypto without symbol columns": Case(
        same("crypto_h1_venues.parquet"),
        "column timestamp, row 1: 2025-03-06T11:00:00 UTC repeats the time of the row before; if venue, coin tell "
        "symbols apart, set data.source.symbol_columns: [venue, coin]; otherwise remove the duplicate, or set "
        "data.source.policy.duplicate=keep_first or keep_last",
        timeframe="h1",
    ),
    "crypto with a column too many": Case(
        same("crypto_h1_venues.parquet"),
        "column v, row 0: 731.3046 is a double; data.source.symbol_columns must name columns of text or whole numbers",
        symbols=("venue", "v"),
    ),
}


@real_files
@pytest.mark.parametrize("name", BROKEN)
def test_real_files_are_refused_once_broken(tmp_path: Path, name: str):
    message = fault_of(BROKEN[name], tmp_path / "bars")
    assert fits(message, BROKEN[name].message), message


@real_files
@pytest.mark.parametrize(
    ("name", "timeframe", "source", "rows"),
    [
        ("sse_composite_m1.parquet", "m1", {"label": "right"}, 239_550),
        ("audusd_m1.parquet", "m1", {}, 16_875),
        ("usdcad_m1.parquet", "m1", {}, 16_937),
        ("xagusd_h1.csv", "h1", {}, 74_404),
    ],
)
def test_real_files_are_read_as_pandas_reads_them(name: str, timeframe: str, source: dict, rows: int):
    path = REAL / name
    frame = pd.read_csv(path, sep="\t") if path.suffix == ".csv" else pd.read_parquet(path)
    blocks = list(read_bars(path, make_source(**source), timeframe, {}, ReadLog()))
    assert sum(len(block.ohlc) for block in blocks) == len(frame) == rows
    np.testing.assert_array_equal(np.concatenate([block.ohlc for block in blocks]), frame.iloc[:, 1:5])
    label = "close_time" if source else "open_time"
    times = pd.to_datetime(frame.iloc[:, 0], utc=True).astype("datetime64[ns, UTC]").astype("int64")
    np.testing.assert_array_equal(np.concatenate([getattr(block, label) for block in blocks]), times)


@real_files
def test_all_symbols_of_a_real_file_are_read():
    path = REAL / "crypto_h1_venues.parquet"
    frame = pd.read_parquet(path)
    columns = ["venue", "coin"]
    found = symbols_in(path, columns)
    assert len(found) == 35
    for symbol, rows in frame.groupby(columns):
        where = dict(zip(columns, symbol, strict=True))
        blocks = list(read_bars(path, make_source(symbol_columns=columns), "h1", where, ReadLog()))
        np.testing.assert_array_equal(np.concatenate([block.ohlc for block in blocks]), rows[["o", "h", "l", "c"]])
        found.remove(tuple(map(str, symbol)))
    assert found == []


# --- found by chance


@settings(max_examples=300)
@given(st.data())
def test_a_spoilt_text_file_is_refused_or_reads_as_many_rows(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
):
    """One byte of a text file changed, dropped or put in: an error that names the file, or bars all the same."""
    content = bytearray(io.BytesIO(bars()[:8].to_csv(index=False).encode()).getvalue())
    at = data.draw(st.integers(0, len(content) - 1))
    byte = data.draw(st.sampled_from(list(b'\0\n\r",;\t -+.e0129xT\xff\xc3')))
    how = data.draw(st.sampled_from(["change", "drop", "put"]))
    content[at : at + (how != "put")] = b"" if how == "drop" else bytes([byte])
    path = tmp_path_factory.mktemp("spoilt") / "bars.csv"
    path.write_bytes(content)
    try:
        rows = sum(len(block.ohlc) for block in read_bars(path, make_source(), "m1", {}, ReadLog()))
    except SourceError as error:
        assert str(error).startswith(f"{path}: ")
    else:
        assert rows == 8


@settings(max_examples=200)
@given(st.data())
def test_one_spoilt_value_is_refused_by_name(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject):
    row, column = data.draw(st.integers(0, 59)), data.draw(st.sampled_from(["open", "high", "low", "close"]))
    value = data.draw(
        st.one_of(st.sampled_from([None, np.nan, np.inf, -np.inf, 0.0, -0.0]), st.floats(max_value=0, allow_nan=False))
    )
    path = tmp_path_factory.mktemp("spoilt") / "bars.parquet"
    with_value(row, column, value)(path)
    with pytest.raises(SourceError) as caught:
        list(read_bars(path, make_source(), "m1", {}, ReadLog()))
    assert str(caught.value).startswith(f"{path}: column {column}, row {row}: ")


# --- through the command


def build(data: Path, store: Path, *overrides: str, user: int | None = None) -> subprocess.CompletedProcess:
    command = [
        ROOT / "bin/build-cache",
        "--config",
        "configs/test.yaml",
        "--data-dir",
        data,
        "--store",
        store,
        *overrides,
    ]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=60, user=user)


def published(store: Path) -> list[str]:
    stages = ("bars", "streams", "windows", "datasets", "refs")
    return sorted(str(path.relative_to(store)) for stage in stages for path in (store / stage).glob("[!.]*"))


@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        ("zip", ()),
        ("NaN", ()),
        ("decimal commas", ()),
        ("a skipped hour", ("data.source.timezone=America/New_York",)),
        ("all rows dropped", ("data.source.policy.not_positive=drop",)),
    ],
)
def test_the_command_ends_with_one_message_and_publishes_nothing(tmp_path: Path, name: str, overrides: tuple[str, ...]):
    data = tmp_path / "data"
    data.mkdir()
    CASES[name].write(data / "simfx_m1.parquet")
    done = build(data, tmp_path / "store", *overrides)
    assert done.returncode == 1
    assert f"\nerror: {data / 'simfx_m1.parquet'}: {CASES[name].message}\n" in done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert published(tmp_path / "store") == []


def test_a_pipe_does_not_hang_the_command(tmp_path: Path):
    os.mkfifo(tmp_path / "simfx_m1.parquet")
    done = build(tmp_path, tmp_path / "store")
    assert done.returncode == 1
    assert done.stderr.endswith(f"error: {tmp_path / 'simfx_m1.parquet'}: a named pipe, {NOT_REGULAR}\n")


FORBIDDEN = """
import os, sys
from pathlib import Path
from pipeline.bars import ReadLog, read_bars
if os.getuid() == 0:
    os.setgid(65534)
    os.setuid(65534)
try:
    list(read_bars(Path(sys.argv[1]), None, "m1", {}, ReadLog()))
except PermissionError as error:
    print(error)
"""


def test_a_forbidden_file_keeps_the_words_of_the_system():
    import tempfile

    with tempfile.TemporaryDirectory(dir="/tmp") as folder:  # one that others may enter
        Path(folder).chmod(0o755)
        path = Path(folder) / "bars.parquet"
        parquet()(path)
        path.chmod(0)
        done = subprocess.run([sys.executable, "-c", FORBIDDEN, path], capture_output=True, text=True, cwd=ROOT)
        assert done.stdout == f"[Errno 13] Permission denied: '{path}'\n", done.stderr


def test_decimals_are_no_fault(tmp_path: Path):
    """So that the table above refuses nothing that is good."""
    for write in (parquet(), feather, text(), text(sep="\t"), text(sep=";"), parquet(open=[Decimal("2.00")] * 60)):
        path = tmp_path / "bars.parquet"
        write(path)
        assert sum(len(block.ohlc) for block in read_bars(path, make_source(), "m1", {}, ReadLog())) == 60
