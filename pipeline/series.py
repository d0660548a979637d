"""Bars of one symbol and timeframe as one series, however many shards (entries) they lie in."""

from collections.abc import Iterator, Sequence
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from cache.entries import open_entry
from cache.timeframes import format_time
from pipeline.bars import BLOCK_ROWS, Block, SourceError

_FEW = 16_384


class BarSeries:
    """Read-only view of `bars` entries in order of time. Blocks are copies, so memory does not grow with the series."""

    def __init__(self, store: Path, keys: Sequence[str]) -> None:
        entries = [open_entry(store, "bars", key) for key in keys]
        self.entries = sorted(entries, key=lambda entry: int(entry.manifest["first_open"]))
        for left, right in zip(self.entries, self.entries[1:], strict=False):
            if right.manifest["first_open"] < left.manifest["last_close"]:
                raise SourceError(
                    f"{right.manifest['origin']} begins at {format_time(right.manifest['first_open'])}, before "
                    f"{left.manifest['origin']} ends at {format_time(left.manifest['last_close'])}; remove the overlap"
                )
        self._offsets = list(accumulate((entry.shape("close_time")[0] for entry in self.entries), initial=0))

    def __len__(self) -> int:
        return self._offsets[-1]

    @property
    def first_open(self) -> int:
        """Open time of the first bar, ns UTC."""
        return int(self.entries[0].manifest["first_open"])

    @property
    def last_close(self) -> int:
        """Close time of the last bar, ns UTC."""
        return int(self.entries[-1].manifest["last_close"])

    def rows(self, name: str, start: int, stop: int) -> NDArray[Any]:
        """Rows [start, stop) of `open_time`, `close_time` or `ohlc`."""
        parts = [
            entry.rows(name, max(start - first, 0), stop - first)
            for entry, (first, past) in zip(self.entries, pairwise(self._offsets), strict=True)
            if first < stop and past > start
        ]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def ranges(self, first: int = 0) -> Iterator[tuple[int, int]]:
        """Row ranges of at most `BLOCK_ROWS` that cover the series from row `first` on."""
        for start in range(first, len(self), BLOCK_ROWS):
            yield start, min(start + BLOCK_ROWS, len(self))

    def blocks(self, first: int = 0) -> Iterator[Block]:
        """The bars themselves, in the same ranges."""
        for start, stop in self.ranges(first):
            yield self.between(start, stop)

    def between(self, start: int, stop: int) -> Block:
        """The bars [start, stop), as far as there are any."""
        stop = min(stop, len(self))
        if start >= stop:
            return Block(np.empty(0, np.int64), np.empty(0, np.int64), np.empty((0, 4)))
        return Block(*(self.rows(name, start, stop) for name in ("open_time", "close_time", "ohlc")))

    def completed_by(self, instant: int) -> int:
        """Number of bars that closed at or before `instant` (ns UTC)."""
        return self._count("close_time", instant, "right")

    def opened_before(self, instant: int) -> int:
        """Number of bars that opened before `instant` (ns UTC)."""
        return self._count("open_time", instant, "left")

    def _count(self, name: str, instant: int, side: Literal["left", "right"]) -> int:
        """How many times come before `instant`, or by then: single rows are read until few are left."""
        over: int = sum(entry.manifest["last_close"] <= instant for entry in self.entries)
        begun = sum(entry.manifest["first_open"] <= instant for entry in self.entries)
        low, high = self._offsets[over], self._offsets[begun]
        while high - low > _FEW:
            middle = (low + high) // 2
            time = int(self.rows(name, middle, middle + 1)[0])
            if time < instant or (time == instant and side == "right"):
                low = middle + 1
            else:
                high = middle
        return low + (int(np.searchsorted(self.rows(name, low, high), instant, side=side)) if low < high else 0)
