import io
import subprocess
import sys
import zipfile
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pipeline.files import SourceError
from pipeline.tables import open_table
from tests.unit.pipeline.making import MINUTE, MONDAY, random_ohlc

ROOT = Path(__file__).parents[3]
ROWS = 5000
FRAME = pd.DataFrame(random_ohlc(np.random.default_rng(0), ROWS).round(5), columns=["open", "high", "low", "close"])
FRAME.insert(0, "time", pd.to_datetime(MONDAY + MINUTE * np.arange(ROWS)).astype("datetime64[ms]"))
FRAME["note"] = [["plain", 'say "no"', "a, b; c\td", ""][k % 4] for k in range(ROWS)]

WRITERS: dict[str, Callable[[pd.DataFrame, Path], object]] = {
    "parquet": lambda frame, path: frame.to_parquet(path, index=False),
    "Arrow": lambda frame, path: frame.to_feather(path, chunksize=1000),
    "Arrow, one batch": lambda frame, path: frame.to_feather(path, compression="uncompressed"),
    "comma-separated text": lambda frame, path: frame.to_csv(path, index=False),
    "tab-separated text": lambda frame, path: frame.to_csv(path, index=False, sep="\t"),
    "semicolon-separated text": lambda frame, path: frame.to_csv(path, index=False, sep=";"),
    "comma-separated text, Windows": lambda frame, path: frame.to_csv(path, index=False, lineterminator="\r\n"),
    "comma-separated text, BOM": lambda frame, path: frame.to_csv(path, index=False, encoding="utf-8-sig"),
    "comma-separated text, quoted": lambda frame, path: frame.to_csv(path, index=False, quoting=1),
    "comma-separated text, open end": lambda frame, path: path.write_text(frame.to_csv(index=False).rstrip("\n")),
}


def fault_of(path: Path) -> str:
    """The message of the error that opening or reading ends in, without the path it must begin with."""
    with pytest.raises(SourceError) as caught:
        table = open_table(path)
        list(table.batches(table.names, 1000))
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    return message.removeprefix(f"{path}: ")


def written(tmp_path: Path, content: str | bytes, name: str = "bars.csv") -> Path:
    path = tmp_path / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize("rows", [1, 777, 1_000_000])
def test_every_format_is_told_by_its_content_and_read_in_batches(tmp_path: Path, kind: str, rows: int):
    path = tmp_path / "bars.xyz"
    WRITERS[kind](FRAME if rows > 1 else FRAME[:50], path)
    table = open_table(path)
    assert table.format == kind.split(",")[0]
    assert table.names == list(FRAME.columns)
    assert table.is_text == ("text" in kind)
    assert table.rows == (len(FRAME if rows > 1 else FRAME[:50]) if kind == "parquet" else None)
    batches = list(table.batches(["note", "close", "time"], rows))
    assert all(1 <= batch.num_rows <= rows for batch in batches)
    read = pa.Table.from_batches(batches).to_pandas().reset_index(drop=True)
    expected = FRAME if rows > 1 else FRAME[:50]
    if table.is_text:
        assert (read["note"].isna() == (expected["note"] == "")).all()
        read = read.fillna("").assign(close=read["close"].astype(float), time=pd.to_datetime(read["time"]))
    for name in ("note", "close", "time"):
        assert (read[name] == expected[name]).all()


@given(
    st.lists(
        st.lists(
            st.text(st.characters(codec="utf-8", exclude_characters="\r\n\0"), max_size=8), min_size=2, max_size=4
        ),
        min_size=1,
        max_size=12,
    ).map(lambda rows: [row[: min(map(len, rows))] for row in rows]),
    st.sampled_from(",;\t"),
    st.sampled_from([0, 1]),
    st.sampled_from(["\n", "\r\n"]),
)
@settings(max_examples=150)
def test_any_text_comes_back_as_the_csv_module_reads_it(
    tmp_path_factory: pytest.TempPathFactory, rows: list, separator: str, quoting: int, end: str
):
    import csv

    names = [f"column{k}" for k in range(len(rows[0]))]
    out = io.StringIO(newline="")
    csv.writer(out, delimiter=separator, quoting=quoting, lineterminator=end).writerows([names, *rows])
    path = tmp_path_factory.mktemp("text") / "bars.csv"
    path.write_bytes(out.getvalue().encode())
    table = open_table(path)
    read = [list(row.values()) for batch in table.batches(names, 3) for row in batch.to_pylist()]
    assert read == [[value or None for value in row] for row in rows]


def test_names_are_stripped_and_pandas_index_is_known(tmp_path: Path):
    table = open_table(written(tmp_path, "time, open ,\thigh\n1,2,3\n"))
    assert (table.names, table.index) == (["time", "open", "high"], ())
    table = open_table(written(tmp_path, FRAME.to_csv()))
    assert (table.names[:2], table.index) == (["Unnamed: 0", "time"], ("Unnamed: 0",))
    FRAME.set_index("time").to_parquet(tmp_path / "a")
    FRAME.set_index("time").rename_axis(None).to_parquet(tmp_path / "b")
    assert open_table(tmp_path / "a").index == ("time",)
    assert open_table(tmp_path / "b").index == ("__index_level_0__",)


@pytest.mark.parametrize("described", [b"{", b"[]", b'{"index_columns": [{"kind": "range"}, "gone", 5]}'])
def test_damaged_metadata_of_pandas_is_no_index(tmp_path: Path, described: bytes):
    pq.write_table(pa.table({"a": [1]}, metadata={"pandas": described}), tmp_path / "a.parquet")
    assert open_table(tmp_path / "a.parquet").index == ()


def test_rows_of_empty_fields_are_rows(tmp_path: Path):
    table = open_table(written(tmp_path, "time\topen\n\t\n\t\n"))
    assert [row for batch in table.batches(["open"], 10) for row in batch.to_pylist()] == [{"open": None}] * 2


def archive(path: Path, *names: str) -> None:
    with zipfile.ZipFile(path, "w") as file:
        for name in names:
            file.writestr(name, "time,open\n")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "an empty file; fetch it again"),
        (b"\x1f\x8b\x08\0\0", "compressed by gzip; unpack it first"),
        (b"\x28\xb5\x2f\xfd\0", "compressed by zstd; unpack it first"),
        (b"BZh91AY", "compressed by bzip2; unpack it first"),
        (b"\xfd7zXZ\0", "compressed by xz; unpack it first"),
        (b"FEA1\0\0", "Feather of version 1; write it again, for example by pandas.read_feather(…).to_parquet(…)"),
        (b"\xff\xff\xff\xff\0", "an Arrow stream, whose end cannot be told from a cut; write an Arrow file or parquet"),
        (b"PARE", "encrypted parquet; decrypt it first"),
        (b"\x89HDF\r\n", "HDF5; convert it, for example by pandas.read_hdf(…).to_parquet(…)"),
        (b"\x93NUMPY\1\0", "a NumPy array, whose columns have no names; write the columns as parquet or text"),
        (
            b"SQLite format 3\0",
            "an SQLite database; convert it, for example by pandas.read_sql(…).to_parquet(…)",
        ),
        (
            b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1",
            "an Excel workbook; export it as text, or convert it, for example by pandas.read_excel(…).to_parquet(…)",
        ),
        ("time,open\n1,2\n".encode("utf-16"), "text in UTF-16; save it as UTF-8"),
        ("time,open\n1,2\n".encode("utf-16-le"), "text in UTF-16; save it as UTF-8"),
        ("time,open\n1,2\n".encode("utf-16-be"), "text in UTF-16; save it as UTF-8"),
        (b" <!DOCTYPE html><html>", "a web page or XML, no table; fetch it again"),
        (b"\xef\xbb\xbf<?xml version='1.0'?>", "a web page or XML, no table; fetch it again"),
        (b'{"time": [1]}', "JSON; convert it, for example by pandas.read_json(…).to_parquet(…)"),
        (b'\n [{"time": 1}]', "JSON; convert it, for example by pandas.read_json(…).to_parquet(…)"),
        (b"\0" * 500, "binary data that is neither parquet nor Arrow; fetch it again, or convert it"),
        (bytes(range(14, 256)), "binary data that is neither parquet nor Arrow; fetch it again, or convert it"),
        (b"x" * 70_000, "neither parquet, Arrow nor text in lines; convert it to one of them"),
        (
            "Zeit;Öffnung\n1;2\n".encode("latin-1"),
            "its first line is not UTF-8 (\"b'\\\\xd6ffnung'\"); save the file as UTF-8",
        ),
        (b"\ntime,open\n", "its first line is empty; it must hold the names of the columns"),
        (
            b"time|open\n1|2\n",
            "its first line, 'time|open', holds no comma, tab or semicolon; separate columns by one of them",
        ),
        (
            b"hello",
            "its first line, 'hello', holds no comma, tab or semicolon; separate columns by one of them",
        ),
        (
            b"2023-06-01 05:00;1.5;2;1;1.7\n",
            "its first line, '2023-06-01 05:00;1.5;2;1;1.7', holds values; put the names of the columns before it, "
            "such as 'time;open;high;low;close'",
        ),
        (
            b"EURUSD\t2023.06.01\t05:00\t1.5\t-2e5\n",
            "its first line, 'EURUSD\\t2023.06.01\\t05:00\\t1.5\\t-2e5', holds values; put the names of the columns "
            "before it, such as 'time\\topen\\thigh\\tlow\\tclose'",
        ),
        (b"time,open", "holds no rows; fetch it again"),
        (b"time,open\r\n\r\n  \n", "holds no rows; fetch it again"),
        (b"time,open\n1,2\n3\n", "row 1 has 1 field, but the header has 2: '3'; correct or remove the row"),
        (
            b"time,open\n1,2\n\n\n3,4,5\n",
            "row 1 has 3 fields, but the header has 2: '3,4,5'; correct or remove the row",
        ),
        (
            b"time,open\n1,2\n" + b"\0" * 100 + b"\n",
            "row 1 has 1 field, but the header has 2: '" + r"\x00" * 60 + "'…; correct or remove the row",
        ),
        (
            b'time,note\n1,a\n2,"b\n3,c\n4,d\n',
            "column note, row 1: a quoted field holds a line break, 'b\\n3,c\\n4,d\\n'; the quote is perhaps never "
            "closed. Correct the row",
        ),
        (
            b'time,note\n1,"a\r\nb"\n',
            "column note, row 0: a quoted field holds a line break, 'a\\r\\nb'; the quote is perhaps never closed. "
            "Correct the row",
        ),
        (
            "time,note\n1,a\n2,é\n".encode("latin-1"),
            "column note, row 1: b'\\xe9' is not UTF-8; save the file as UTF-8",
        ),
    ],
)
def test_what_is_no_table_is_told(tmp_path: Path, content: bytes, message: str):
    for name in ("bars.csv", "bars.parquet"):  # the name does not matter
        assert fault_of(written(tmp_path, content, name)) == message


def test_archives_and_workbooks_are_told(tmp_path: Path):
    archive(tmp_path / "bars.csv", "bars.csv")
    assert fault_of(tmp_path / "bars.csv") == "a zip archive; unpack it first"
    archive(tmp_path / "bars.csv", "[Content_Types].xml", "xl/workbook.xml")
    assert fault_of(tmp_path / "bars.csv").startswith("an Excel workbook; export it as text, or ")


@pytest.mark.parametrize("before", [0, 1, 100, 30_000])
def test_rows_are_counted_through_all_blocks_of_text(tmp_path: Path, before: int):
    good = "2023-06-01 05:00,1.5,some text to fill the line,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16\n"
    header = "time,open,note" + ",x" * 16 + "\n"
    path = written(tmp_path, header + good * before + "2023,1\n" + good)
    assert fault_of(path).startswith(f"row {before:,} has 2 fields, but the header has 19: '2023,1'")
    path = written(tmp_path, header + good * before + good.replace("some", '"some') + good)
    assert fault_of(path).startswith(f"row {before:,} has 3 fields, but the header has 19: ")
    path = written(
        tmp_path, (header + good * before).encode() + good.encode().replace(b"some", b"\xff") + good.encode()
    )
    assert fault_of(path).startswith(f"column note, row {before:,}: b'\\xff text to fill the line' is not UTF-8; ")


def test_a_line_longer_than_a_block_is_an_error(tmp_path: Path):
    path = written(tmp_path, "time,open\n1,2\n3," + "4" * 3_000_000 + "\n")
    assert fault_of(path).startswith("cannot be read beyond row ")


@pytest.mark.parametrize("share", [0.01, 0.3, 0.7, 0.99, 0.9999])
@pytest.mark.parametrize("kind", ["Arrow", "Arrow, one batch", "parquet"])
def test_truncated_files_are_errors(tmp_path: Path, kind: str, share: float):
    path = tmp_path / "bars"
    WRITERS[kind](FRAME, path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    message = fault_of(path)
    assert message.startswith(f"not a readable {kind.split(',')[0]} file, perhaps truncated (")
    assert message.endswith("; fetch it again")


@pytest.mark.parametrize("kind", ["Arrow", "Arrow, one batch", "parquet"])
def test_damage_is_an_error_that_names_the_file_or_does_not_matter(tmp_path: Path, kind: str):
    path = tmp_path / "bars"
    WRITERS[kind](FRAME, path)
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    for _ in range(150):
        damaged = bytearray(whole)
        at, length = int(rng.integers(8, len(whole) - 8)), int(rng.integers(1, 300))
        damaged[at : at + length] = rng.bytes(min(length, len(whole) - at))
        path.write_bytes(damaged)
        try:
            table = open_table(path)
            for batch in table.batches([n for n in ("time", "open", "note") if table.names.count(n) == 1], 1000):
                batch.to_pylist() if batch.num_rows < 2 else batch.column(0)
        except SourceError as error:
            assert str(error).startswith(f"{path}: ")


def test_a_damaged_place_of_text_is_an_error_rather_than_the_end_of_the_process(tmp_path: Path):
    path = tmp_path / "bars"
    pd.DataFrame({"note": ["seven77"] * 1000, "n": 1.0}).astype({"note": pd.ArrowDtype(pa.string())}).to_feather(
        path, compression="uncompressed"
    )
    whole = path.read_bytes()
    at = whole.index(np.arange(0, 700, 7, np.int32).tobytes())
    path.write_bytes(whole[: at + 40] + b"\xff\xff\xff\x7f" + whole[at + 44 :])
    assert fault_of(path).startswith("cannot be read beyond row 0 (")


@pytest.mark.parametrize("kind", ["Arrow", "parquet"])
def test_tables_without_rows_are_errors(tmp_path: Path, kind: str):
    WRITERS[kind](FRAME[:0], tmp_path / "bars")
    assert fault_of(tmp_path / "bars") == "holds no rows; fetch it again"


def test_a_missing_file(tmp_path: Path):
    with pytest.raises(SourceError, match=r"none\.parquet: no such file any more; put it back"):
        open_table(tmp_path / "none.parquet")


@given(st.binary(max_size=200))
@example(b"PAR1")
@example(b"PAR1PAR1")
@example(b"ARROW1\0\0")
@example(b"ARROW1\0\0ARROW1")
@example(b",\n,")
@example(b'"\n')
@example(b'",')
@settings(max_examples=400)
def test_anything_is_a_table_or_a_clear_error(tmp_path_factory: pytest.TempPathFactory, content: bytes):
    path = tmp_path_factory.mktemp("any") / "bars"
    path.write_bytes(content)
    try:
        table = open_table(path)
        list(table.batches([table.names[0]], 10))
    except SourceError as error:
        assert str(error).startswith(f"{path}: ")


def test_decimals_stay_decimals(tmp_path: Path):
    pq.write_table(pa.table({"a": [Decimal("1.50")]}), tmp_path / "a.parquet")
    assert open_table(tmp_path / "a.parquet").kind_of("a") == "decimal128(3, 2)"


READ = """
import sys
from pathlib import Path
from pipeline.bars import ReadLog, read_bars, symbols_in
from cache.recipe import BarsSource
from configs.loader import load_config
fields = load_config("configs/base.yaml").values["data"]["source"]
source = BarsSource.model_validate({**fields, "files": {"m1": "x"}, "timezone": "America/New_York",
    "symbol_columns": ["coin"],
    "policy": dict(fields["policy"], missing="drop", duplicate="keep_last", unsorted="sort")})
for path in map(Path, sys.argv[1:]):
    symbols_in(path, ["coin"])
    log = ReadLog()
    rows = sum(len(block.ohlc) for block in read_bars(path, source, "m1", {"coin": "BTC"}, log))
    assert rows == 48, rows
    assert set(log.repaired) == {"missing", "duplicate", "unsorted"}, log.repaired
    assert "pandas" not in sys.modules, path
print(*sorted(set(sys.modules) & {"pandas", "dask", "sklearn", "polars"}))
"""


def test_no_format_needs_pandas(tmp_path: Path):
    frame = FRAME[:50].drop(columns="note").assign(coin="BTC", decimal=Decimal("1.5"))
    frame = pd.concat([frame, frame.assign(coin="ETH")]).sort_values(["time", "coin"]).reset_index(drop=True)
    frame.loc[4, "open"] = None
    frame.loc[6, "time"] = frame.loc[8, "time"]
    frame.loc[[10, 12], "time"] = frame.loc[[12, 10], "time"].to_list()
    paths = [tmp_path / str(k) for k in range(len(WRITERS) + 2)]
    for path, write in zip(paths, WRITERS.values(), strict=False):
        write(frame, path)
    frame.assign(time=frame["time"].dt.strftime("%Y.%m.%d %H:%M")).to_csv(paths[-2], index=False)
    frame.assign(coin=frame["coin"].astype("category"), time=frame["time"].astype("int64")).to_parquet(paths[-1])
    done = subprocess.run([sys.executable, "-c", READ, *paths], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "\n"
