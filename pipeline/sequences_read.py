"""Reads the columns of recordings: names as codes, numbers as float64.

Text is parsed by Arrow in one go, without a thought for messages. Where that fails, the file is read again in the slow
way of pipeline.text, which names the row.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
from numpy.typing import NDArray

from pipeline.convert import Refuse, converted, no_number, numpy_of
from pipeline.files import SourceError
from pipeline.plan import SourceFile
from pipeline.sequences_columns import Columns
from pipeline.tables import HEAD_BYTES, Table, open_table
from pipeline.text import Text, sniff

NOTHING = -1  # the code of a missing name
_BLOCK_BYTES = 1 << 20
_ROWS = 1 << 17
# what Arrow takes for a missing number in text, as pandas does
_MISSING = tuple(pyarrow.csv.ConvertOptions().null_values)


@dataclass(frozen=True)
class Names:
    """A column of names: codes int32 [n] into `known`, in order of appearance; NOTHING where there is none."""

    codes: NDArray[np.int32]
    known: list[str]


@dataclass(frozen=True)
class Raw:
    """Rows as they stand in a file: names by column, order float64 [n], channels float64 [n, C] with NaN for nothing.

    `first_row` tells, when a message wants it, the number of the first of these rows in the file.
    """

    path: Path
    columns: Columns
    names: dict[str, Names]
    order: NDArray[np.float64]
    channels: NDArray[np.float64]
    first_row: Callable[[], int]


def read_rows(file: SourceFile, columns: Columns) -> Raw:
    """Read the part of a file that `file` names. Raises SourceError naming the row where something does not parse."""
    table = open_table(file.path)
    if not table.is_text:
        return _raw(file.path, columns, _whole(table, columns), lambda: 0)
    with file.path.open("rb") as opened:
        text = sniff(file.path, opened.read(HEAD_BYTES))
        start, stop = file.span or (text.begin, opened.seek(0, 2))
        opened.seek(start)
        data = opened.read(stop - start)
    try:
        parsed = _parsed(text, columns, data)
        if parsed.num_rows != data.count(b"\n") + (not data.endswith(b"\n")) and parsed.num_rows != _lines(data):
            raise pa.ArrowInvalid("a quoted field holds a line break")
    except pa.ArrowInvalid as error:
        raise _explained(table, columns, error) from None
    return _raw(file.path, columns, parsed, lambda: _lines_before(file.path, text.begin, start))


def _parsed(text: Text, columns: Columns, data: bytes) -> pa.Table:
    """The wanted columns of a part of a file, without its header."""
    every = [str(k) for k in range(len(text.names))]
    number = {name: str(text.names.index(name)) for name in (*columns.words, *columns.numbers)}
    words = pa.dictionary(pa.int32(), pa.string())
    types = {number[name]: words for name in columns.words} | {number[name]: pa.float64() for name in columns.numbers}
    table = pyarrow.csv.read_csv(
        pa.BufferReader(data),
        pyarrow.csv.ReadOptions(use_threads=False, block_size=_BLOCK_BYTES, column_names=every),  # parts are parallel
        pyarrow.csv.ParseOptions(delimiter=text.separator),
        pyarrow.csv.ConvertOptions(include_columns=list(number.values()), column_types=types),
    )
    return table.rename_columns(list(number))


def _whole(table: Table, columns: Columns) -> pa.Table:
    """The wanted columns of a file that is no text."""
    batches = list(table.batches([*columns.words, *columns.numbers], _ROWS))
    whole = pa.Table.from_batches(batches)
    arrays = []
    for name in whole.column_names:
        column = whole.column(name)
        if name in columns.words:
            arrays.append(column.cast(pa.string()).dictionary_encode())
        else:
            arrays.append(column.cast(pa.float64(), safe=False))
    return pa.table(arrays, names=whole.column_names)


def _raw(path: Path, columns: Columns, table: pa.Table, first_row: Callable[[], int]) -> Raw:
    channels = np.empty((table.num_rows, len(columns.channels)))
    for k, name in enumerate(columns.channels):
        channels[:, k] = table.column(name).to_numpy()
    return Raw(
        path,
        columns,
        {name: _names(table.column(name)) for name in columns.words},
        table.column(columns.order).to_numpy(),
        channels,
        first_row,
    )


def _names(column: pa.ChunkedArray) -> Names:
    """A column of categories. An empty name is none."""
    whole = column.unify_dictionaries().combine_chunks()
    whole = whole.chunk(0) if isinstance(whole, pa.ChunkedArray) else whole
    codes = whole.indices.fill_null(NOTHING).to_numpy(zero_copy_only=False).astype(np.int32)
    known = whole.dictionary.to_pylist()
    if "" in known:
        codes[codes == known.index("")] = NOTHING
    return Names(codes, known)


def _explained(table: Table, columns: Columns, error: Exception) -> SourceError:
    """The error of a text file that Arrow does not parse: the first row that is at fault."""
    row = 0
    try:
        for batch in table.batches([*columns.words, *columns.numbers], _ROWS):
            for name in columns.numbers:
                otherwise = "; correct it" if name == columns.order else "; correct it, or leave the field empty"
                converted(batch.column(name), _numbers, _no_number(otherwise), _refuse(table.path, name, row))
            row += batch.num_rows
    except SourceError as found:
        return found
    return SourceError(f"{table.path}: cannot be read ({error}); look at the file, or fetch it again")


def _numbers(column: pa.Array) -> NDArray[Any]:
    present = column.drop_null()
    for word in _MISSING:
        present = present.filter(pa.compute.not_equal(present, word))
    return numpy_of(present, pa.float64())


def _no_number(otherwise: str) -> Callable[[str, ValueError], str]:
    return lambda value, _: no_number(value, otherwise)


def _refuse(path: Path, name: str, row: int) -> Refuse:
    return lambda at, what: SourceError(f"{path}: column {name}, row {row + at:,}: {what}")


def _lines(data: bytes) -> int:
    """Lines that are not empty, whatever ends them."""
    return sum(1 for line in data.splitlines() if line)


def _lines_before(path: Path, begin: int, stop: int) -> int:
    """Rows of a text file before an offset."""
    with path.open("rb") as file:
        file.seek(begin)
        return _lines(file.read(stop - begin))
