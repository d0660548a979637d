"""Rows of the arrays of many symbols, read where they lie, by what the dataset's manifest alone says of them.

A file is opened for every read, which costs less than mapping it and touching its pages; what is read does not count as
the process's memory; and there is no limit, while a process may have some 65,000 maps, and thousands of symbols have
more arrays than that.
"""

import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cache.layout import shard_bytes
from cache.reader import Dataset, StoreError

_DTYPES = {"values": "<f4", "close_time": "<i8", "close": "<f8", "base_rows": "<i4", "ends": "<i4", "time": "<i8"}


class Rows:
    """The arrays of all symbols of a dataset of bars. It holds no file, and serves any number of threads."""

    def __init__(self, store: Path, dataset: Dataset) -> None:
        manifest = dataset.entry.manifest
        self._store = str(store)
        self._keys: dict[str, Any] = manifest["components"]["inputs"]
        self._lengths: dict[str, Any] = manifest["lengths"]
        self._place = {name: number for number, name in enumerate(dataset.timeframes)}
        columns = {"values": len(manifest["features"]), "base_rows": 2, "ends": len(dataset.timeframes)}
        self.kinds = {name: (np.dtype(dtype), columns.get(name)) for name, dtype in _DTYPES.items()}

    def read(self, symbol: str, of: str, name: str, start: int, out: NDArray[Any]) -> None:
        """Fill `out` [n] or [n, columns], of the array's dtype and in C order, with the rows from `start` on.

        `of` is `windows`, which has the arrays `ends` and `time`, or a timeframe: `values`, `close_time`, `close`, and
        `base_rows` but for the base. Raises StoreError for a file that is not there, or not as long as it should be.
        """
        if of == "windows":
            rows, entry = self._lengths[symbol]["windows"], f"windows/{self._keys[symbol]['windows']}"
        else:
            rows = self._lengths[symbol]["streams"][self._place[of]]
            entry = f"streams/{self._keys[symbol]['streams'][of]}"
        dtype, columns = self.kinds[name]
        assert out.dtype == dtype and 0 <= start <= rows - len(out), (symbol, of, name, start, rows)
        width = dtype.itemsize * (columns or 1)
        path = f"{self._store}/{entry}/{name}/c/{'0/0' if columns else '0'}"
        try:
            descriptor = os.open(path, os.O_RDONLY)
        except FileNotFoundError:
            raise StoreError(f"{path}: no such file; run bin/build-cache again to make its entry") from None
        try:
            if (there := os.fstat(descriptor).st_size) != (expected := shard_bytes(rows, width)):
                raise StoreError(
                    f"{path}: damaged, it has {there:,} bytes, not {expected:,}. `bin/cache verify --repair` removes "
                    "its entry, and bin/build-cache then makes it again; nothing else is lost"
                )
            os.preadv(descriptor, [out.data], start * width)
        finally:
            os.close(descriptor)
