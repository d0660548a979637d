from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.bars import SourceError, symbols_in
from pipeline.symbols import rows_of

WORDS = st.text(st.characters(codec="utf-8", exclude_characters="\0\r\n"), min_size=1, max_size=3).filter(str.strip)


def fault_of(path: Path, *columns: str) -> str:
    with pytest.raises(SourceError) as caught:
        symbols_in(path, columns)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    return message.removeprefix(f"{path}: ")


def saved(tmp_path: Path, **columns: object) -> Path:
    pq.write_table(pa.table(columns), tmp_path / "bars.parquet")
    return tmp_path / "bars.parquet"


@settings(max_examples=60)
@given(
    st.lists(st.tuples(st.sampled_from("ABC"), WORDS, st.integers(-3, 3)), min_size=1, max_size=30),
    st.sampled_from(["string", "large_string", "dictionary", "int", "text"]),
)
def test_symbols_are_the_distinct_rows(tmp_path_factory: pytest.TempPathFactory, rows: list, kind: str):
    path = tmp_path_factory.mktemp("symbols") / "bars"
    frame = pd.DataFrame(rows, columns=["venue", "coin", "number"])
    if kind == "text":
        frame.to_csv(path, index=False)
    else:
        table = pa.table({"venue": [r[0] for r in rows], "coin": [r[1] for r in rows], "number": [r[2] for r in rows]})
        if kind == "dictionary":
            table = table.set_column(1, "coin", table["coin"].dictionary_encode())
        elif kind == "large_string":
            table = table.set_column(1, "coin", table["coin"].cast(pa.large_string()))
        pq.write_table(table, path, row_group_size=4)
    assert symbols_in(path, ["venue", "coin"]) == sorted({(r[0], r[1]) for r in rows})
    assert symbols_in(path, ["number"]) == sorted({(str(r[2]),) for r in rows})
    assert symbols_in(path, ["number", "coin", "venue"]) == sorted({(str(r[2]), r[1], r[0]) for r in rows})
    if kind != "text":
        (batch,) = pq.read_table(path).combine_chunks().to_batches()
        for venue, coin, number in rows:
            where = {"coin": coin, "venue": venue, "number": str(number)}
            expected = [k for k, row in enumerate(rows) if row == (venue, coin, number)]
            assert rows_of(batch, where).tolist() == expected
        assert rows_of(batch, {"coin": "none of them"}).tolist() == []
        assert rows_of(batch, {}).tolist() == list(range(len(rows)))


def test_many_rows_and_blocks(tmp_path: Path):
    numbers = np.random.default_rng(0).integers(0, 500, 300_000)
    path = saved(tmp_path, coin=numbers.astype(str), lot=numbers % 7)
    assert symbols_in(path, ["coin", "lot"]) == sorted({(str(n), str(n % 7)) for n in numbers.tolist()})


@pytest.mark.parametrize("row", [0, 3, 131_072, 140_000])
@pytest.mark.parametrize("value", [None, "", "  "])
def test_nameless_rows_are_errors(tmp_path: Path, row: int, value: str | None):
    coins: list = ["A"] * 150_000
    coins[row] = value
    path = saved(tmp_path, venue=["X"] * len(coins), coin=coins)
    assert fault_of(path, "venue", "coin") == (
        f"column coin, row {row:,}: the value is missing, but data.source.symbol_columns makes it part of the symbol's "
        "name; correct or remove the row"
    )


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ([1.5, 2.0], "1.5 is a double"),
        ([True, False], "true is a bool"),
        (pd.to_datetime(["2023-06-01", "2023-06-02"]), "2023-06-01 00:00:00.000000 is a timestamp[us]"),
        (pa.array([None, None]), "None is a null"),
    ],
)
def test_symbols_are_text_or_whole_numbers(tmp_path: Path, values: object, said: str):
    if isinstance(values, pd.DatetimeIndex):
        values = values.as_unit("us")
    message = fault_of(saved(tmp_path, coin=values), "coin")
    assert message == (
        f"column coin, row 0: {said}; data.source.symbol_columns must name columns of text or whole numbers"
    )


def test_columns_must_be_there_once(tmp_path: Path):
    path = saved(tmp_path, venue=["X"], coin=["A"])
    assert fault_of(path, "venue", "koin") == (
        "data.source.symbol_columns names koin, but the columns are ['venue', 'coin']"
    )
    (tmp_path / "twice.csv").write_text("coin,coin\nA,B\n")
    assert fault_of(tmp_path / "twice.csv", "coin") == (
        "data.source.symbol_columns names coin, but the columns are ['coin', 'coin']"
    )
