"""A file of many symbols, read once for all of them: their rows are put apart, in a file that the build removes.

It is an Arrow file whose batches are of one symbol each, the rows in the order of the source with their numbers in it,
and beside it a list of the batches of every symbol. Only so many rows are held in memory at a time.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.ipc
from numpy.typing import NDArray

from cache.files import write_atomically
from cache.recipe import BarsSource
from pipeline.columns import ROLES, recognise
from pipeline.convert import numpy_of, take
from pipeline.symbols import check_symbol_columns, symbol_of_rows
from pipeline.tables import open_table

HELD_ROWS = 1 << 20  # some 100 MB
_BATCH_ROWS = 131_072
_NUMBER = "row number"
Values = tuple[str, ...]


def divide(path: Path, source: BarsSource, symbols: Iterable[Values], divided: Path) -> None:
    """Put the rows of these symbols, given by the values of `source.symbol_columns`, apart. Raises SourceError."""
    table = open_table(path)
    check_symbol_columns(table, source.symbol_columns)
    recognised, wanted = recognise(table, source), set(symbols)
    names = list(dict.fromkeys(recognised.columns[role] for role in ROLES))
    schema = pa.schema([*(pa.field(name, _plain(table.type_of(name))) for name in names), (_NUMBER, pa.int64())])
    batches: dict[Values, list[int]] = {}
    written = row = 0
    divided.parent.mkdir(parents=True, exist_ok=True)
    partial = divided.with_name(f".{divided.name}.partial")
    with pa.OSFile(str(partial), "wb") as file, pa.ipc.new_file(file, schema) as writer:
        columns = list(dict.fromkeys([*names, *source.symbol_columns]))
        for held in _held(table.batches(columns, _BATCH_ROWS)):
            which, found = symbol_of_rows(held, source.symbol_columns)
            order = np.argsort(which, kind="stable")
            bounds = np.searchsorted(which[order], np.arange(len(found) + 1))
            for values, start, stop in zip(found, bounds[:-1], bounds[1:], strict=True):
                if values in wanted:
                    rows = order[start:stop]
                    of_symbol = take(held, rows)
                    arrays = [of_symbol.column(n).cast(schema.field(n).type) for n in names]
                    number = pa.Array.from_buffers(pa.int64(), len(rows), [None, pa.py_buffer(rows + row)])
                    writer.write_batch(pa.record_batch([*arrays, number], schema=schema))
                    batches.setdefault(values, []).append(written)
                    written += 1
            row += held.num_rows
    partial.replace(divided)
    write_atomically(_list_of(divided), json.dumps([[list(values), of] for values, of in batches.items()]).encode())


def read_divided(divided: Path, values: Values) -> Iterator[tuple[pa.RecordBatch, NDArray[np.int64]]]:
    """The rows of one symbol, as their file has them, and their numbers in it, int64 [n]."""
    known = {tuple(one): of for one, of in json.loads(_list_of(divided).read_bytes())}
    with pa.memory_map(str(divided)) as file, pa.ipc.open_file(file) as reader:
        for number in known.get(values, ()):
            batch = reader.get_batch(number)
            yield batch, numpy_of(batch.column(_NUMBER), pa.int64())


def _held(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """The same rows in fewer batches."""
    held: list[pa.RecordBatch] = []
    for batch in batches:
        held.append(batch)
        if sum(one.num_rows for one in held) >= HELD_ROWS:
            yield _joined(held)
            held = []
    if held:
        yield _joined(held)


def _joined(batches: Sequence[pa.RecordBatch]) -> pa.RecordBatch:
    (joined,) = pa.Table.from_batches(batches).unify_dictionaries().combine_chunks().to_batches()
    return joined


def _plain(kind: pa.DataType) -> pa.DataType:
    """Without a dictionary, of which a file may have one only."""
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def _list_of(divided: Path) -> Path:
    return divided.with_suffix(".json")
