"""Windows from the store, a whole batch at a time.

Two placements behind one interface: on the *device* the streams live in GPU memory and only window numbers are made
there; on the *host* a batch is copied out of the store's maps or files into reused buffers, pinned where a GPU waits
for them.

Shape suffixes: B batch, S streams, L bars, F features, W windows.
"""

from collections.abc import Iterator
from copy import copy
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cache.part import universe_of
from cache.reader import Dataset
from cache.rows import Kind
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
        self._ring: list[tuple[list[Tensor], torch.cuda.Event | None]] = []

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
        return self.batch(index_B.to(self.device), self.fetch(index_B))

    def fetch(self, index_B: Tensor) -> list[Tensor]:
        """What the store holds of the windows `index_B`, on the device, for `batch`."""
        if self.placement == "device":
            symbol, first_row, found = self._place.fetch(index_B, None)
            return [symbol, first_row.int(), *found]
        buffers, copied = self._next_buffers(len(index_B))
        symbol, first_row, found = self._place.fetch(index_B.cpu(), buffers)
        if copied is not None:
            found = [buffer.to(self.device, non_blocking=True) for buffer in buffers]
            copied.record()
        return [symbol.to(self.device), first_row.to(self.device, torch.int32), *found]

    def batch(self, index_B: Tensor, fetched: list[Tensor]) -> Batch:
        """The batch of the windows `index_B` (on the device), of what was fetched of them."""
        symbol, first_row, *rest = fetched
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
            [close.log() for close in closes],
            next(found).long() if self._labelled else index_B.new_empty(len(index_B), 0),
        )

    def _next_buffers(self, batch: int) -> tuple[list[Tensor], torch.cuda.Event | None]:
        """Buffers whose last copy to the GPU is over; fresh ones for another batch size."""
        if not self._ring or len(self._ring[0][0][0]) != batch:
            pin = self.device.type == "cuda"

            def buffer(one: Wanted, kind: Kind) -> Tensor:
                dtype = torch.from_numpy(np.empty(0, kind.dtype)).dtype
                return torch.empty(one.shape(kind, batch), dtype=dtype, pin_memory=pin)

            self._ring = [
                ([buffer(*one) for one in self._buffers], torch.cuda.Event() if pin else None)
                for _ in range(2 if pin else self._kept)
            ]
        self._ring.append(self._ring.pop(0))
        buffers, copied = self._ring[-1]
        if copied is not None:
            copied.synchronize()
        return buffers, copied


def spread(windows: Windows, count: int) -> Tensor:
    """At most `count` window numbers spread evenly over some, int64."""
    step = max(len(windows) / count, 1)
    return windows.at(torch.tensor([int(i * step) for i in range(min(count, len(windows)))], dtype=torch.int64))
