"""Windows from the store, a whole batch at a time.

Two placements behind one interface: on the *device* the streams live in GPU memory and only window numbers are made
there; on the *host* a batch is copied out of the store's maps or files into reused buffers, pinned where a GPU waits
for them.

Shape suffixes: B batch, S streams, L bars, F features, W windows.
"""

import math
from collections.abc import Iterator
from copy import copy
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cache.part import universe_of
from cache.reader import Dataset
from trainer.placement import Held, Placement, Read, Wanted
from trainer.windows import Windows


@dataclass(frozen=True)
class Batch:
    """Windows as the task wants them, on the device; all lists are by stream, the base first.

    What the store does not hold of these windows is an empty list.

    Attributes:
        index: int64 [B], the windows' numbers.
        symbol: int64 [B], the numbers of their symbols.
        x: float32 [B, L_j, F], normalised features.
        padding: bool [B, L_j], rows before a recording begins.
        rows: int32 [B, L_j, 2], which rows of the symbol's base stream lie in each bar, [first, past the last).
        close_time: int64 [B, L_j], ns UTC.
        log_before: float64 [B], log close of the bar before the window (of the window's first where there is none).
        labels: int64 [B, labels], numbers of classes; without columns where the store has none.
    """

    index: Tensor
    symbol: Tensor
    x: list[Tensor]
    padding: list[Tensor]
    rows: list[Tensor]
    close_time: list[Tensor]
    log_before: list[Tensor]
    labels: Tensor

    def __len__(self) -> int:
        return len(self.index)

    def tensors(self) -> list[Tensor]:
        """All of them."""
        lists = (self.x, self.padding, self.rows, self.close_time, self.log_before)
        return [self.index, self.symbol, *(one for of in lists for one in of), self.labels]


class WindowSource:
    """The windows of all symbols of a dataset, or of a fold of recordings. Raises UserError where there is no such.

    Attributes:
        train: the windows to train on.
        val: those to validate on, after training, of symbols that train.
        symbols: names of the symbols, by number.
        begins: by symbol, the number of its first window.
        seq_lens: L_j, bars a window of each stream.
        home: where the streams are, and window numbers are looked up.
        placement: "device" (at most half of the free GPU memory) or "host".
        reason: for the log, why, where there is a GPU.
    """

    def __init__(self, dataset: Dataset, device: torch.device, kept: int = 1, fold: int | None = None) -> None:
        """`kept`: batches that stay as they are while others are fetched, where they are in the host's memory."""
        universe = universe_of(dataset, fold)
        self.device = device
        self.symbols = universe.symbols
        self.seq_lens = tuple(dataset.seq_lens.values())
        self.train = Windows(universe.parts["train"], universe.weights)
        self.val = Windows(universe.parts["val"])
        self._held_out = Windows(universe.parts["hold_out"]) if "hold_out" in universe.parts else None
        self.locate = universe.locate
        self.begins = dict(zip(universe.symbols, universe.first.tolist(), strict=False))

        kinds = universe.rows.kinds
        streams = list(enumerate(zip(universe.streams, self.seq_lens, strict=True)))
        known = [name for name in ("starts", "label") if name in kinds["windows"]]
        timed = streams if "close_time" in kinds[streams[0][1][0]] else []
        self._padded, self._labelled = "starts" in known, "label" in known
        self._lists = [
            [Wanted(of, "values", j, length) for j, (of, length) in streams],
            [Wanted(of, "base_rows", j, length) for j, (of, length) in streams[1:]],
            [Wanted(of, "close_time", j, length) for j, (of, length) in timed],
            [Wanted(of, "close", j) for j, (of, _) in timed],
            [Wanted("windows", name) for name in known],
        ]
        wanted = [one for of in self._lists for one in of]
        self._buffers = [(one, kinds[one.of][one.name]) for one in wanted]

        needed = sum(universe.rows.bytes(one.of, one.name) for one in [Wanted("windows", "ends"), *wanted])
        free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 0
        self.placement = "device" if needed < free // 2 else "host"
        self.reason = f"streams and windows take {needed / 1e9:.2f} GB, {free / 1e9:.2f} GB of the GPU are free"
        self.home = device if self.placement == "device" else torch.device("cpu")
        self._place: Placement
        if self.placement == "device" or len(self.symbols) == 1:
            self._place = Held(universe, self.seq_lens, wanted, self.home)
        else:
            self._place = Read(universe, self.seq_lens, wanted)
        self._kept = kept
        self._ring: list[tuple[Tensor, list[Tensor], torch.cuda.Event | None]] = []

    def parts(self) -> dict[str, "WindowSource"]:
        """What is validated: as `val` this, and as `hold_out` the same with windows of symbols that never train."""
        if self._held_out is None:
            return {"val": self}
        other = copy(self)
        other.val = self._held_out
        return {"val": self, "hold_out": other}

    def overfit(self, count: int) -> None:
        """Train, and validate, on the first windows alone."""
        self.train = self.val = self.train.first(count)
        self._held_out = None

    def by_symbol(self, windows: Windows) -> Iterator[tuple[str, range, range]]:
        """Windows of bars symbol by symbol: its name, which of its own windows they are, and their numbers here."""
        for here in windows.ranges:
            (symbol,), (own,) = self.locate(np.array([here.start]))
            yield self.symbols[symbol], range(own, own + len(here)), here

    def example(self, count: int) -> tuple[str, NDArray[np.int64], Tensor]:
        """Some windows of the symbol that has the most in `val`: its name, their numbers among its own, and here."""
        symbol, own, here = max(self.by_symbol(self.val), key=lambda one: len(one[1]))
        index = spread(Windows(np.array([[here.start, here.stop]])), count + 1)[1:]  # the first say least about it
        return symbol, index.numpy() - here.start + own.start, index

    def gather(self, index_B: Tensor) -> Batch:
        """The windows numbered `index_B` (int64 [B]).

        On a CPU, what this returns is overwritten by the next call but `kept` − 1.
        """
        return self.batch(self.fetch(index_B))

    def fetch(self, index_B: Tensor) -> list[Tensor]:
        """What the store holds of the windows `index_B`, on the device, for `batch`; from the host it is on its way."""
        if self.placement == "device":
            index_B = index_B.to(self.device)
            symbol, first_row, found = self._place.fetch(index_B, None)
            return [index_B, symbol, first_row.int(), *found]
        index_B = index_B.cpu()
        whole, buffers, copied = self._next_buffers(len(index_B))
        symbol, first_row, found = self._place.fetch(index_B, buffers[3:])
        if copied is None:
            return [index_B, symbol, first_row.int(), *found]
        for buffer, known in zip(buffers, (index_B, symbol, first_row), strict=False):
            buffer.copy_(known)
        there = self._cut(whole.to(self.device, non_blocking=True), len(index_B))
        copied.record()
        return there

    def batch(self, fetched: list[Tensor]) -> Batch:
        """The batch of what was fetched."""
        index_B, symbol, first_row, *rest = fetched
        found = iter(rest)
        x, rows, times, closes = ([next(found) for _ in of] for of in self._lists[:4])
        base_BL = first_row[:, None] + torch.arange(self.seq_lens[0], dtype=torch.int32, device=self.device)
        return Batch(
            index_B,
            symbol,
            x,
            [base_BL < next(found)] if self._padded else [],
            [torch.stack([base_BL, base_BL + 1], dim=-1), *rows],
            times,
            list(torch.stack(closes).log()) if closes else [],
            next(found).long() if self._labelled else index_B.new_empty(len(index_B), 0),
        )

    def _next_buffers(self, batch: int) -> tuple[Tensor, list[Tensor], torch.cuda.Event | None]:
        """Memory for a batch, whole and cut, whose last copy to the GPU is over; fresh for another batch size."""
        if not self._ring or len(self._ring[0][1][0]) != batch:
            pin = self.device.type == "cuda"
            size = sum(_aligned(size) for *_, size in self._pieces(batch))
            wholes = [torch.empty(size, dtype=torch.uint8, pin_memory=pin) for _ in range(2 if pin else self._kept)]
            self._ring = [(one, self._cut(one, batch), torch.cuda.Event() if pin else None) for one in wholes]
        self._ring.append(self._ring.pop(0))
        whole, buffers, copied = self._ring[-1]
        if copied is not None:
            copied.synchronize()
        return whole, buffers, copied

    def _pieces(self, batch: int) -> Iterator[tuple[tuple[int, ...], torch.dtype, int]]:
        """Shape, dtype and bytes of window numbers, symbols and first rows, and of all that is wanted."""
        own = [((batch,), torch.int64), ((batch,), torch.int64), ((batch,), torch.int32)]
        kinds = [
            (one.shape(kind, batch), torch.from_numpy(np.empty(0, kind.dtype)).dtype) for one, kind in self._buffers
        ]
        for shape, dtype in [*own, *kinds]:
            yield shape, dtype, math.prod(shape) * dtype.itemsize

    def _cut(self, whole: Tensor, batch: int) -> list[Tensor]:
        """Bytes as `_pieces`, which share their memory: so a batch is one copy to the GPU."""
        found, at = [], 0
        for shape, dtype, size in self._pieces(batch):
            found.append(whole[at : at + size].view(dtype).view(shape))
            at += _aligned(size)
        return found


def _aligned(size: int) -> int:
    """So many bytes, up to the next multiple of 64."""
    return -(-size // 64) * 64


def spread(windows: Windows, count: int) -> Tensor:
    """At most `count` window numbers spread evenly over some, int64."""
    step = max(len(windows) / count, 1)
    return windows.at(torch.tensor([int(i * step) for i in range(min(count, len(windows)))], dtype=torch.int64))
