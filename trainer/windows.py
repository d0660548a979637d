"""Which windows there are to draw: ranges of window numbers, those of each symbol as often as its weight says.

Shape suffixes: B batch, R ranges.
"""

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_GOLDEN = 0x9E3779B9  # the golden section of 2³²: its multiples fill a circle most evenly


class Windows:
    """The windows of a part, at places from 0 on: an epoch has them all, range by range, in rising order.

    A weight of 2 gives every window of a range two places. One of 0.5 gives a place to every other window, to the
    others in the next epoch; whatever the weight, over many epochs all windows of a range come equally often.
    """

    def __init__(self, ranges: NDArray[np.int64], weights: NDArray[np.float64] | None = None) -> None:
        """`ranges` int64 [R, 2], from the first window to past the last; `weights` float64 [R], 1 unless given."""
        start, length = ranges[:, 0], ranges[:, 1] - ranges[:, 0]
        draws = np.maximum(np.rint(length * (1.0 if weights is None else weights)).astype(np.int64), 1)
        there = length > 0
        table = np.stack([start, length, draws], axis=1)[there]
        self._ranges = ranges[there]
        self._count = int(table[:, 2].sum())
        before = np.cumsum(table[:, 2]) - table[:, 2]
        self._tables = {torch.device("cpu"): (torch.from_numpy(before), torch.from_numpy(table))}

    def __len__(self) -> int:
        """How many places there are."""
        return self._count

    def __getitem__(self, place: int) -> int:
        """The window at a place of the first epoch; negative places count from the end."""
        return int(self.at(torch.tensor([range(len(self))[place]])))

    def __iter__(self) -> Iterator[int]:
        """The windows at all places of the first epoch."""
        return iter(self.all().tolist())

    def all(self) -> Tensor:
        """The same, int64."""
        return self.at(torch.arange(len(self)))

    @property
    def ranges(self) -> list[range]:
        """The ranges that have windows: of bars, one of each symbol."""
        return [range(start, stop) for start, stop in self._ranges.tolist()]

    def at(self, places: Tensor, epoch: int | Tensor = 0) -> Tensor:
        """The windows at places of an epoch, or of epochs that broadcast with them, int64; arithmetic only."""
        before_R, table_R3 = self._on(places.device)
        of = torch.searchsorted(before_R, places, right=True) - 1
        start, length, draws = table_R3[of].unbind(-1)
        place = places - before_R[of]
        turn = ((epoch * _GOLDEN) % 2**32 * length) >> 32  # in [0, length)
        return start + (place * length + turn) // draws

    def first(self, count: int) -> "Windows":
        """The first windows alone, each once."""
        length = self._ranges[:, 1] - self._ranges[:, 0]
        kept = np.clip(count - (np.cumsum(length) - length), 0, length)
        return Windows(np.stack([self._ranges[:, 0], self._ranges[:, 0] + kept], axis=1))

    def _on(self, device: torch.device) -> tuple[Tensor, Tensor]:
        if device not in self._tables:
            before, table = self._tables[torch.device("cpu")]
            self._tables[device] = (before.to(device), table.to(device))
        return self._tables[device]
