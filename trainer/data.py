"""Windows from the store's memory maps, a whole batch at a time.

Two placements behind one interface: on the *device* the streams live in GPU memory and only window numbers are made
there; on the *host* a batch is copied out of the maps into reused buffers, pinned where a GPU waits for them.

Shape suffixes: B batch, S streams, L bars, F features, W windows.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from cache.part import part_of
from cache.reader import Dataset, Entry


@dataclass(frozen=True)
class Batch:
    """Windows as the task wants them, on the device; all lists are by stream, the base first.

    What the store does not hold of these windows is an empty list.

    Attributes:
        index: int64 [B], the windows' numbers.
        x: float32 [B, L_j, F], normalised features.
        padding: bool [B, L_j], rows before a recording begins.
        rows: int32 [B, L_j, 2], which rows of the base stream lie in each bar, [first, past the last).
        close_time: int64 [B, L_j], ns UTC.
        log_before: float64 [B], log close of the bar before the window (of the window's first where there is none).
        labels: int64 [B, labels], numbers of classes; without columns where the store has none.
    """

    index: Tensor
    x: list[Tensor]
    padding: list[Tensor]
    rows: list[Tensor]
    close_time: list[Tensor]
    log_before: list[Tensor]
    labels: Tensor

    def __len__(self) -> int:
        return len(self.index)


@dataclass(frozen=True)
class Windows(Sequence[int]):
    """The numbers of training windows: ranges in rising order, one behind another."""

    ranges: tuple[range, ...]

    def __len__(self) -> int:
        return sum(map(len, self.ranges))

    def __getitem__(self, place: Any) -> Any:
        """The window at a place; negative places count from the end."""
        left = range(len(self))[place]
        for one in self.ranges:
            if left < len(one):
                return one[left]
            left -= len(one)
        raise AssertionError(place)

    def at(self, places: Tensor) -> Tensor:
        """The windows at these places, int64 of the same shape; arithmetic only."""
        numbers, passed = places + self.ranges[0].start, 0
        for before, after in pairwise(self.ranges):
            passed += len(before)
            numbers = numbers + (places >= passed) * (after.start - before.stop)
        return numbers

    def first(self, count: int) -> "Windows":
        """The first windows of the first range."""
        return Windows((self.ranges[0][:count],))


class WindowSource:
    """The windows of a dataset with one symbol, or of a fold. Raises UserError for several, or where there is no such.

    Attributes:
        train: the windows to train on.
        val: half-open range of the numbers of those to validate on.
        seq_lens: L_j, bars a window of each stream.
        placement: "device" (at most half of the free GPU memory) or "host".
        reason: for the log, why, where there is a GPU.
    """

    def __init__(self, dataset: Dataset, device: torch.device, kept: int = 1, fold: int | None = None) -> None:
        """`kept`: batches that stay as they are while others are fetched, where they are in the host's memory."""
        part = part_of(dataset, fold)
        windows, streams = part.windows, list(part.streams.values())
        self.device = device
        self.seq_lens = tuple(dataset.seq_lens.values())
        self.train, self.val = Windows(part.train), part.val
        self.n_features = streams[0].shape("values")[1]
        needed = sum(entry.bytes for entry in streams) + windows.bytes
        free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 0
        self.placement = "device" if needed < free // 2 else "host"
        self.reason = f"streams and windows take {needed / 1e9:.2f} GB, {free / 1e9:.2f} GB of the GPU are free"
        self._home = device if self.placement == "device" else torch.device("cpu")
        self._ends_WS = _map(windows, "ends").to(self._home)
        lengths = list(zip(streams, self.seq_lens, strict=True))
        self._x = [self._view(entry, "values", length) for entry, length in lengths]
        self._rows = [self._view(entry, "base_rows", length) for entry, length in lengths[1:]]
        timed = lengths if "close_time" in streams[0].manifest["arrays"] else []
        self._times = [self._view(entry, "close_time", length) for entry, length in timed]
        self._closes = [_map(entry, "close").to(self._home) for entry, _ in timed]
        known = windows.manifest["arrays"]
        self._of_windows = [_map(windows, name).to(self._home) for name in ("starts", "label") if name in known]
        self._padded, self._labelled = "starts" in known, "label" in known
        self._kept = kept
        self._ring: list[tuple[list[Tensor], torch.cuda.Event | None]] = []

    def gather(self, index_B: Tensor) -> Batch:
        """The windows numbered `index_B` (int64 [B]).

        On a CPU, what this returns is overwritten by the next call but `kept` − 1.
        """
        return self.batch(index_B.to(self.device), self.fetch(index_B))

    def fetch(self, index_B: Tensor) -> list[Tensor]:
        """What the store holds of the windows `index_B`, on the device, for `batch`."""
        index_B = index_B.to(self._home)
        ends_BS = self._ends_WS.index_select(0, index_B).long()
        starts = [ends_BS[:, j] - length for j, length in enumerate(self.seq_lens)]
        before = [(start - 1).clamp(min=0) for start in starts]
        parts = (
            (self._x, starts),
            (self._rows, starts[1:]),
            (self._times, starts),
            (self._closes, before),
            (self._of_windows, [index_B, index_B]),
        )
        wanted = [pair for sources, places in parts for pair in zip(sources, places, strict=False)]
        first_row = starts[0].to(self.device, torch.int32)
        if self.placement == "device":
            return [first_row, *(source.index_select(0, place) for source, place in wanted)]
        return [first_row, *self._through_buffers(wanted)]

    def batch(self, index_B: Tensor, fetched: list[Tensor]) -> Batch:
        """The batch of the windows `index_B` (on the device), of what was fetched of them."""
        first_row, *rest = fetched
        found = iter(rest)
        x, rows, times, closes = ([next(found) for _ in of] for of in (self._x, self._rows, self._times, self._closes))
        base_BL = first_row[:, None] + torch.arange(self.seq_lens[0], dtype=torch.int32, device=self.device)
        return Batch(
            index_B,
            x,
            [base_BL < next(found)] if self._padded else [],
            [torch.stack([base_BL, base_BL + 1], dim=-1), *rows],
            times,
            [close.log() for close in closes],
            next(found).long() if self._labelled else index_B.new_empty(len(index_B), 0),
        )

    def _view(self, entry: Entry, name: str, length: int) -> Tensor:
        """[T − L + 1, L, …]: row s is the L rows from s on, all sharing the stream's memory."""
        values = _map(entry, name).to(self._home)
        row, *rest = values.stride()
        return values.as_strided((len(values) - length + 1, length, *values.shape[1:]), (row, row, *rest))

    def _through_buffers(self, wanted: list[tuple[Tensor, Tensor]]) -> list[Tensor]:
        buffers, copied = self._next_buffers([source for source, _ in wanted], len(wanted[0][1]))
        for (source, start), buffer in zip(wanted, buffers, strict=True):
            torch.index_select(source, 0, start, out=buffer)
        if copied is None:
            return buffers
        moved = [buffer.to(self.device, non_blocking=True) for buffer in buffers]
        copied.record()
        return moved

    def _next_buffers(self, sources: list[Tensor], batch: int) -> tuple[list[Tensor], torch.cuda.Event | None]:
        """Buffers whose last copy to the GPU is over; fresh ones for another batch size."""
        if not self._ring or len(self._ring[0][0][0]) != batch:
            pin = self.device.type == "cuda"
            self._ring = [
                (
                    [torch.empty(batch, *one.shape[1:], dtype=one.dtype, pin_memory=pin) for one in sources],
                    torch.cuda.Event() if pin else None,
                )
                for _ in range(2 if pin else self._kept)
            ]
        self._ring.append(self._ring.pop(0))
        buffers, copied = self._ring[-1]
        if copied is not None:
            copied.synchronize()
        return buffers, copied


def _map(entry: Entry, name: str) -> Tensor:
    return torch.from_numpy(entry.array(name))  # the map is copy-on-write, so writable, and never written


def spread(windows: Sequence[int], count: int) -> Tensor:
    """At most `count` window numbers spread evenly over some, int64."""
    step = max(len(windows) / count, 1)
    return torch.tensor([windows[int(i * step)] for i in range(min(count, len(windows)))], dtype=torch.int64)
