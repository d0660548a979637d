"""Windows for trainers of any kind, as NumPy arrays; no PyTorch is needed.

    data = WindowDataset("store", "demo", "train")
    data[[5, 3, 8]]["m1"]  # float32 [3, L, F]
    torch.utils.data.DataLoader(data, batch_size=256, shuffle=True, num_workers=4)

Shape suffixes: B batch, L bars, F features.
"""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray

from cache.part import Universe, universe_of
from cache.reader import Dataset, open_dataset
from configs.errors import UserError

Sample = dict[str, NDArray[Any]]


class WindowDataset:
    """The windows of one part of a dataset, of all its symbols or of a fold of recordings.

    It is pickled as its arguments, so processes start at once; each opens the store when it first takes a window, and
    maps the arrays of a symbol when it first takes one of that.
    """

    def __init__(self, store: str | Path, name: str, part: str = "train", fold: int | None = None) -> None:
        """`part`: train, val or, where symbols never train, hold_out; `fold`, of recordings: the one to validate on."""
        self._arguments = (str(store), name, part, fold)

    def __reduce__(self) -> tuple[Any, ...]:
        return WindowDataset, self._arguments

    def __len__(self) -> int:
        """Raises StoreError, and UserError where there is no such part or fold."""
        return int(self._ends[-1])

    def __getitem__(self, place: int | Sequence[int] | NDArray[np.int64]) -> Sample:
        """The window at a place, or those at several, by stream: float32 [L, F] or [B, L, F], the oldest bar first.

        `time` is the decision time, int64 ns UTC. Of recordings `label` holds the numbers of their classes, int32 a
        label, and `padding` is true in rows that lie before a recording begins (bool [L]).
        """
        several = self._windows(np.atleast_1d(np.asarray(place, np.int64)))
        return {name: values[0] for name, values in several.items()} if np.ndim(place) == 0 else several

    def __getitems__(self, places: Sequence[int]) -> list[Sample]:
        """What DataLoader asks for: a whole batch, gathered at once, window by window."""
        several = self[places]
        return [{name: values[b] for name, values in several.items()} for b in range(len(places))]

    @cached_property
    def dataset(self) -> Dataset:
        """What it is a part of: recipe, timeframes, splits. Raises StoreError."""
        return open_dataset(*self._arguments[:2])

    @cached_property
    def _universe(self) -> Universe:
        return universe_of(self.dataset, self._arguments[3])

    @cached_property
    def _ranges(self) -> NDArray[np.int64]:
        parts, part = self._universe.parts, self._arguments[2]
        if part not in parts:
            raise UserError(f"{self.dataset.name}: has no part {part}; it has {', '.join(parts)}")
        return parts[part]

    @cached_property
    def _ends(self) -> NDArray[np.int64]:
        """After how many places each range ends."""
        return np.cumsum(self._ranges[:, 1] - self._ranges[:, 0])

    @cached_property
    def _maps(self) -> dict[int, dict[tuple[str, str], NDArray[Any]]]:
        return {}

    def _of_symbol(self, symbol: int) -> dict[tuple[str, str], NDArray[Any]]:
        if symbol not in self._maps:
            rows = self._universe.rows
            named = ("ends", "time", "label", "starts")
            wanted = [("windows", name) for name in named if name in rows.kinds["windows"]]
            wanted += [(stream, "values") for stream in self._universe.streams]
            self._maps[symbol] = {(of, name): rows.map(symbol, of, name) for of, name in wanted}
        return self._maps[symbol]

    def _windows(self, place_B: NDArray[np.int64]) -> Sample:
        count = len(self)
        if len(place_B) and not (-count <= place_B.min() and place_B.max() < count):
            raise IndexError(f"{self.dataset.name} has {count:,} windows in the part {self._arguments[2]}")
        place_B = place_B % max(count, 1)
        range_B = np.searchsorted(self._ends, place_B, side="right")
        symbol_B, own_B = self._universe.locate(self._ranges[range_B, 1] - self._ends[range_B] + place_B)
        found: Sample = {}
        for symbol in np.unique(symbol_B).tolist():
            at = np.flatnonzero(symbol_B == symbol)
            for name, values in self._gathered(self._of_symbol(symbol), own_B[at]).items():
                found.setdefault(name, np.empty((len(place_B), *values.shape[1:]), values.dtype))[at] = values
        return found

    def _gathered(self, maps: dict[tuple[str, str], NDArray[Any]], own_B: NDArray[np.int64]) -> Sample:
        lengths = self.dataset.seq_lens.values()
        start_BS = maps["windows", "ends"][own_B] - np.array(list(lengths))
        found: Sample = {}
        for j, (stream, length) in enumerate(zip(self._universe.streams, lengths, strict=True)):
            values = maps[stream, "values"]
            shape, strides = (len(values) - length + 1, length, values.shape[1]), (values.strides[0], *values.strides)
            found[stream] = as_strided(values, shape, strides)[start_BS[:, j]]  # row s holds the rows from s on
        for name in ("time", "label"):
            if ("windows", name) in maps:
                found[name] = maps["windows", name][own_B]
        if ("windows", "starts") in maps:
            rows_BL = start_BS[:, :1] + np.arange(next(iter(lengths)))
            found["padding"] = rows_BL < maps["windows", "starts"][own_B][:, :1]
        return found
