"""Maps the shard files of an array into memory, one behind another, so that it is one array without a copy."""

import ctypes
import math
import mmap
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cache.layout import SHARD_ROWS

_FIXED = 0x10  # MAP_FIXED, on Linux and macOS


def map_array(files: Sequence[Path], dtype: str, shape: tuple[int, ...]) -> NDArray[Any]:
    """A private (copy-on-write) map of an array whose shards lie in `files`. Raises OSError.

    Of several files each is mapped over its part of a reservation of addresses, whose end unmaps all of them.
    """
    rows, row_bytes = shape[0], np.dtype(dtype).itemsize * math.prod(shape[1:])
    if len(files) == 1:
        with files[0].open("rb") as opened:  # np.memmap takes three times as long
            mapped = mmap.mmap(opened.fileno(), rows * row_bytes, access=mmap.ACCESS_COPY)
        return np.frombuffer(mapped, dtype).reshape(shape)
    reserved = mmap.mmap(-1, rows * row_bytes, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    flat = np.frombuffer(reserved, dtype)
    for number, file in enumerate(files):
        first = number * SHARD_ROWS
        _map_over(flat.ctypes.data + first * row_bytes, min(SHARD_ROWS, rows - first) * row_bytes, file)
    return flat.reshape(shape)


def _map_over(address: int, size: int, file: Path) -> None:
    """Map the beginning of a file at an address that a map of ours already covers."""
    with file.open("rb") as opened:
        how = mmap.PROT_READ | mmap.PROT_WRITE
        found = _system().mmap(address, size, how, mmap.MAP_PRIVATE | _FIXED, opened.fileno(), 0)
    if found != address:
        raise OSError(ctypes.get_errno(), "cannot be mapped", str(file))


@cache
def _system() -> ctypes.CDLL:
    system = ctypes.CDLL(None, use_errno=True)
    system.mmap.restype = ctypes.c_void_p
    system.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_int64]
    return system
