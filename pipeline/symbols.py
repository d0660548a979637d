"""Several symbols in one file: which there are, and the rows of one of them."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.convert import is_text, numpy_of
from pipeline.files import SourceError
from pipeline.tables import Table, open_table

_BLOCK_ROWS = 131_072


def symbols_in(path: Path, columns: Sequence[str]) -> list[tuple[str, ...]]:
    """The distinct combinations of values of these columns, whole numbers as text, sorted.

    Raises SourceError naming column and row for values that are missing or empty, for columns that hold something else
    than text or whole numbers, and for columns that are not there.
    """
    table = open_table(path)
    check_symbol_columns(table, columns)
    found: set[tuple[str, ...]] = set()
    row = 0
    for batch in table.batches(list(columns), _BLOCK_ROWS):
        coded = [_coded(batch.column(name)) for name in columns]
        for name, (codes, values) in zip(columns, coded, strict=True):
            nameless = [code for code, value in enumerate(values) if not (value or "").strip()]
            if len(rows := np.flatnonzero(np.isin(codes, nameless))):
                raise SourceError(
                    f"{path}: column {name}, row {row + int(rows[0]):,}: the value is missing, but "
                    "data.source.symbol_columns makes it part of the symbol's name; correct or remove the row"
                )
        found.update(symbol_of_rows(batch, columns)[1])
        row += batch.num_rows
    return sorted(found)


def check_symbol_columns(table: Table, columns: Sequence[str]) -> None:
    """Raise SourceError for columns that are not there once, or hold neither text nor whole numbers."""
    for name in columns:
        if table.names.count(name) != 1:
            raise SourceError(
                f"{table.path}: data.source.symbol_columns names {name}, but the columns are {table.names}"
            )
        kind = table.type_of(name)
        if not (is_text(kind) or pa.types.is_integer(kind)):
            value = next(table.batches([name], 1)).column(name)[0].cast(pa.string()).as_py()
            raise SourceError(
                f"{table.path}: column {name}, row 0: {value} is a {kind}; data.source.symbol_columns must name "
                "columns of text or whole numbers"
            )


def rows_of(batch: pa.RecordBatch, where: Mapping[str, str]) -> NDArray[np.int64]:
    """Positions of the rows that have these values in these columns, int64 [k]."""
    chosen = np.ones(batch.num_rows, np.bool_)
    for name, wanted in where.items():
        codes, values = _coded(batch.column(name))
        chosen &= codes == (values.index(wanted) if wanted in values else -1)
    return np.flatnonzero(chosen)


def symbol_of_rows(batch: pa.RecordBatch, columns: Sequence[str]) -> tuple[NDArray[np.int64], list[tuple[str, ...]]]:
    """Which symbol each row is of, int64 [n], as a position in the list of their values that comes with it."""
    coded = [_coded(batch.column(name)) for name in columns]
    combined = np.zeros(batch.num_rows, np.int64)
    for codes, values in coded:
        combined = combined * len(values) + codes
    _, first, which = np.unique(combined, return_index=True, return_inverse=True)
    return which, [tuple(str(values[codes[at]]) for codes, values in coded) for at in first]


def _coded(column: pa.Array) -> tuple[NDArray[np.int32], list[str | None]]:
    """Codes int32 [n] and what each stands for."""
    coded = column.cast(pa.string()).dictionary_encode(null_encoding="encode")
    return numpy_of(coded.indices, pa.int32()), coded.dictionary.to_pylist()
