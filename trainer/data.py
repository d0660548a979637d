"""Windows from the store's memory maps, a whole batch at a time.

Two placements behind one interface: on the *device* the streams live in GPU memory and only window numbers are made
there; on the *host* a batch is copied out of the maps into reused buffers, pinned where a GPU waits for them.

Shape suffixes: B batch, S streams, L bars, F features, W windows.
"""

import torch
from torch import Tensor

from cache.reader import Dataset, Entry
from configs.errors import UserError


class WindowSource:
    """The windows of a dataset with one symbol. Raises UserError for several.

    Attributes:
        train, val: half-open ranges of window numbers.
        seq_lens: L_j, bars a window of each stream.
        placement: "device" (at most half of the free GPU memory) or "host".
        reason: for the log, why, where there is a GPU.
    """

    def __init__(self, dataset: Dataset, device: torch.device) -> None:
        if len(dataset.symbols) > 1:
            first, count = next(iter(dataset.symbols)), len(dataset.symbols)
            raise UserError(
                f"{dataset.name} holds {count} symbols, and training on several at once is not possible yet; build a "
                f"dataset of one, for example with data.source.symbols=[{first}]"
            )
        ((symbol, entries),) = dataset.symbols.items()
        self.device = device
        self.seq_lens = tuple(dataset.seq_lens.values())
        self.train = range(*dataset.splits["train"]["windows"][symbol])
        self.val = range(*dataset.splits["val"]["windows"][symbol])
        streams = list(entries.streams.values())
        self.n_features = streams[0].shape("values")[1]
        needed = sum(entry.bytes for entry in streams) + entries.windows.bytes
        free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 0
        self.placement = "device" if needed < free // 2 else "host"
        self.reason = f"streams and windows take {needed / 1e9:.2f} GB, {free / 1e9:.2f} GB of the GPU are free"
        home = device if self.placement == "device" else torch.device("cpu")
        self._ends_WS = _map(entries.windows, "ends").to(home)
        self._values = [_map(entry, "values").to(home) for entry in streams]
        # view j is [T_j − L_j + 1, L_j, F]: row s is the L_j bars from s on, all sharing the stream's memory
        self._views = [
            values.as_strided(
                (len(values) - length + 1, length, self.n_features), (self.n_features, self.n_features, 1)
            )
            for values, length in zip(self._values, self.seq_lens, strict=True)
        ]
        self._ring: list[tuple[list[Tensor], torch.cuda.Event | None]] = []

    def gather(self, index_B: Tensor) -> list[Tensor]:
        """The windows numbered `index_B` (int64 [B]): one [B, L_j, F] float32 a stream, on the device.

        On the host, what this returns is overwritten by the next call (for a GPU, by the next but one).
        """
        ends_BS = self._ends_WS.index_select(0, index_B.to(self._ends_WS.device)).long()
        starts = [ends_BS[:, j] - length for j, length in enumerate(self.seq_lens)]
        if self.placement == "device":
            return [view.index_select(0, start) for view, start in zip(self._views, starts, strict=True)]
        buffers, copied = self._next_buffers(len(index_B))
        for view, start, buffer in zip(self._views, starts, buffers, strict=True):
            torch.index_select(view, 0, start, out=buffer)
        if copied is None:
            return buffers
        moved = [buffer.to(self.device, non_blocking=True) for buffer in buffers]
        copied.record()
        return moved

    def _next_buffers(self, batch: int) -> tuple[list[Tensor], torch.cuda.Event | None]:
        """Buffers whose last copy to the GPU is over; fresh ones for another batch size."""
        if not self._ring or self._ring[0][0][0].shape[0] != batch:
            pin = self.device.type == "cuda"
            self._ring = [
                (
                    [torch.empty(batch, length, self.n_features, pin_memory=pin) for length in self.seq_lens],
                    torch.cuda.Event() if pin else None,
                )
                for _ in range(2 if pin else 1)
            ]
        self._ring.append(self._ring.pop(0))
        buffers, copied = self._ring[-1]
        if copied is not None:
            copied.synchronize()
        return buffers, copied


def _map(entry: Entry, name: str) -> Tensor:
    return torch.from_numpy(entry.array(name))  # the map is copy-on-write, so writable, and never written


def spread(windows: range, count: int) -> Tensor:
    """At most `count` window numbers spread evenly over a range, int64."""
    step = max(len(windows) / count, 1)
    return torch.tensor([windows[int(i * step)] for i in range(min(count, len(windows)))], dtype=torch.int64)
