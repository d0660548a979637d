"""Rows of the arrays of many symbols, read where they lie.

Reading costs less than mapping and touching pages; what is read does not count as the process's memory; and a process
may have some 65,000 maps, while thousands of symbols have more arrays than that. Files stay open, as many as the system
allows: opening one costs three times as much as reading from it.
"""

import math
import os
import resource
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cache.entries import StoreError
from cache.layout import SHARD_ROWS, body_name, body_path, shards
from cache.maps import map_array

_MOST_FILES = 65_536
_OTHER_FILES = 256  # that the rest of the process may want to open


@dataclass(frozen=True)
class Kind:
    """What all arrays of one name have in common: the dtype and the axes behind that of the rows."""

    dtype: np.dtype[Any]
    columns: tuple[int, ...]

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return self.dtype.itemsize * math.prod(self.columns)


@dataclass(frozen=True)
class Rows:
    """Where the arrays of N symbols lie, those of `windows` and of streams by name.

    Attributes:
        folders: of each, the entries of all symbols.
        lengths: of each, int64 [N], the rows of all symbols.
        kinds: of each, the arrays by name.
    """

    folders: Mapping[str, Sequence[str]]
    lengths: Mapping[str, NDArray[np.int64]]
    kinds: Mapping[str, Mapping[str, Kind]]

    def bytes(self, of: str, name: str) -> int:
        """What the arrays of this name take, of all symbols."""
        return int(self.lengths[of].sum()) * self.kinds[of][name].row_bytes

    def map(self, symbol: int, of: str, name: str) -> NDArray[Any]:
        """A whole array as a private (copy-on-write) memory map."""
        kind, rows = self.kinds[of][name], int(self.lengths[of][symbol])
        folder = Path(self.folders[of][symbol])
        files = [body_path(folder, name, 1 + len(kind.columns), one.number) for one in shards(rows)]
        return map_array(files, kind.dtype.str, (rows, *kind.columns))


class RowReader:
    """Reads them, in one thread, from files that it keeps open until `close`."""

    def __init__(self, rows: Rows) -> None:
        self._rows = rows
        self._files: dict[tuple[str, str], dict[tuple[int, int], int]] = {}  # by array, then symbol and shard
        self._count, self._most = 0, _files_allowed()

    def read(self, of: str, name: str, symbols: Sequence[int], starts: Sequence[int], out: NDArray[Any]) -> None:
        """Fill `out` [B, n, …], of the array's dtype and in C order, with n rows from each start on, of each symbol.

        Raises StoreError for a file that is not there, or not as long as it should be.
        """
        kind, (batch, rows) = self._rows.kinds[of][name], out.shape[:2]
        assert out.dtype == kind.dtype and out.shape == (batch, rows, *kind.columns) and out.flags.c_contiguous
        files = self._files.setdefault((of, name), {})
        width, data, at = kind.row_bytes, out.reshape(-1).view(np.uint8).data, 0
        for symbol, start in zip(symbols, starts, strict=True):
            row, stop = start, start + rows
            while row < stop:
                number, first = divmod(row, SHARD_ROWS)
                size = min(stop - row, SHARD_ROWS - first) * width
                file = files.get((symbol, number))
                if file is None:
                    file = self._open(of, name, symbol, number)
                    files[symbol, number] = file
                if os.preadv(file, [data[at : at + size]], first * width) != size:
                    raise StoreError(f"{self._path(of, name, symbol, number)}: damaged, it has become shorter{_REMEDY}")
                at, row = at + size, row + size // width

    def close(self) -> None:
        """Close all files."""
        for files in self._files.values():
            for file in files.values():
                os.close(file)
            files.clear()
        self._count = 0

    def _path(self, of: str, name: str, symbol: int, number: int) -> str:
        ndim = 1 + len(self._rows.kinds[of][name].columns)
        return f"{self._rows.folders[of][symbol]}/{body_name(name, ndim, number)}"

    def _open(self, of: str, name: str, symbol: int, number: int) -> int:
        if self._count == self._most:
            self.close()
        path = self._path(of, name, symbol, number)
        shard = shards(int(self._rows.lengths[of][symbol]))[number]
        try:
            file = os.open(path, os.O_RDONLY)
        except FileNotFoundError:
            raise StoreError(f"{path}: no such file; run bin/build-cache again to make its entry") from None
        size = shard.file_bytes(self._rows.kinds[of][name].row_bytes)
        if (there := os.fstat(file).st_size) != size:
            os.close(file)
            raise StoreError(f"{path}: damaged, it has {there:,} bytes, not {size:,}{_REMEDY}")
        self._count += 1
        return file


def _files_allowed() -> int:
    """How many files may stay open, after the process's own limit is raised to what the system grants it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MOST_FILES + _OTHER_FILES
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with suppress(ValueError, OSError):  # macOS grants less than it says
            resource.setrlimit(
                resource.RLIMIT_NOFILE, (wanted if hard == resource.RLIM_INFINITY else min(hard, wanted), hard)
            )
        soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return _MOST_FILES if soft == resource.RLIM_INFINITY else max(min(soft, wanted) - _OTHER_FILES, 16)


_REMEDY = (
    ". `bin/cache verify --repair` removes its entry, and bin/build-cache then makes it again; nothing else is lost"
)
