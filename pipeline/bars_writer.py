"""Writes bars to one parquet file, which appears whole or not at all."""

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from cache.files import becoming

PRICES = ("open", "high", "low", "close")
SCHEMA = pa.schema([pa.field(name, pa.float64()) for name in PRICES]).insert(
    0, pa.field("timestamp", pa.timestamp("ns", tz="UTC"))
)

# Half the size and half the reading time of the defaults, which would make a dictionary of the times.
ENCODING: dict[str, Any] = {
    "use_dictionary": PRICES,
    "column_encoding": {"timestamp": "DELTA_BINARY_PACKED"},
}


def write_bars(
    path: Path,
    blocks: Iterable[tuple[NDArray[np.int64], NDArray[np.float64]]],
    progress: Callable[[int], None] = lambda written: None,
) -> int:
    """Write blocks of bars, each a row group: labels int64 ns UTC [n] and open, high, low, close float64 [4, n].

    The folder must exist. `progress` is called after every block with the rows written so far. Returns the rows.
    Raises OSError when the file cannot be written; what was there before then stays, as after any other exception.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    written = 0
    with (
        partial.open("wb") as file,
        becoming(path, file),
        pq.ParquetWriter(file, SCHEMA, compression="snappy", **ENCODING) as writer,
    ):
        for label, prices in blocks:
            columns = {"timestamp": label.view("datetime64[ns]"), **dict(zip(PRICES, prices, strict=True))}
            writer.write_table(pa.table(columns, schema=SCHEMA))
            written += label.size
            progress(written)
    return written
