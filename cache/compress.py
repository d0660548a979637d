"""The compressed profile of an array: every chunk is one column of 65,536 rows, packed by PCodec.

    <array>/zarr.json          as in the store, but for the chunks and their codec
    <array>/c.<block>[.<column>]

These are plain Zarr v3 arrays: zarr-python reads them where the package pcodec is installed. The last chunk is padded
as in the store. One codec serves all: on Shanghai bars PCodec packs prices to 1/6.2 (zstd 1/2.7, Blosc 1/2.2), times to
1/227 and windows to 1/126, and unpacks over 2 GB/s a core. Columns on their own cost little for prices (row by row:
1/6.5) and gain much for windows (1/41) and features.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pcodec import ChunkConfig, standalone

from cache.layout import ArraySpec, array_metadata, chunk_rows, padded_rows

LEVEL = 8
DTYPES = ("|u1", "|i1", "<i2", "<i4", "<i8", "<f2", "<f4", "<f8")
_CONFIG = ChunkConfig(compression_level=LEVEL, enable_8_bit=True)
_OVERHEAD = 64  # bytes that numbers without any pattern may grow by


def pack(column: NDArray[Any]) -> bytes:
    """Compress numbers [n] of one of `DTYPES`: the same numbers, bit for bit, give the same bytes."""
    return bytes(standalone.simple_compress(np.ascontiguousarray(column), _CONFIG))


def unpack(data: bytes, dtype: str, rows: int) -> NDArray[Any]:
    """The numbers [rows] again. Raises ValueError when `data` does not hold just so many of this type."""
    numbers = np.empty(rows, dtype)
    try:
        progress = standalone.simple_decompress_into(data, numbers)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"not packed {dtype} numbers ({error})") from None
    if progress.n_processed != rows or not progress.finished:
        raise ValueError(f"it does not hold {rows:,} numbers")
    return numbers


def packed_limit(dtype: str, rows: int) -> int:
    """Bytes that `rows` packed numbers have at most."""
    return rows * np.dtype(dtype).itemsize + _OVERHEAD


def packed_metadata(spec: ArraySpec, rows: int) -> dict[str, Any]:
    """`zarr.json` of an array in this profile."""
    chunks = [chunk_rows(rows), *(1 for _ in spec.columns)]
    return {
        **array_metadata(spec, rows),
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": chunks}},
        "codecs": [{"name": "numcodecs.pcodec", "configuration": {"level": LEVEL}}],
    }


def block_count(rows: int) -> int:
    """Blocks of rows that an array is cut into."""
    return padded_rows(rows) // chunk_rows(rows)


def chunk_names(spec: ArraySpec, block: int) -> Iterator[str]:
    """Where the columns of a block of rows lie below the array, in C order: c.0.0, c.0.1, …"""
    for column in np.ndindex(spec.columns):
        yield ".".join(map(str, ("c", block, *column)))


def pack_block(block: NDArray[Any]) -> list[bytes]:
    """The columns of a block [rows, width], each packed."""
    return [pack(column) for column in block.T]


def unpack_block(columns: Sequence[bytes], dtype: str, rows: int) -> NDArray[Any]:
    """A block [rows, width] from its packed columns. Raises ValueError."""
    block = np.empty((rows, len(columns)), dtype)
    for index, data in enumerate(columns):
        block[:, index] = unpack(data, dtype, rows)
    return block
