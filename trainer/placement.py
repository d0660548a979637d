"""Where the rows of windows are taken from: tensors that hold all symbols, or the files they lie in.

Shape suffixes: B batch, S streams, L bars, N symbols.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from cache.part import Universe
from cache.rows import Kind, RowReader

_PIECE = 32_000_000  # bytes, or one array where that is longer, that go to the device at a time


@dataclass(frozen=True)
class Wanted:
    """What every window takes of an array: `length` rows of its bars, the one row before them, or the window's own.

    Attributes:
        of: `windows`, or the name of a stream.
        stream: the stream's number; None for the window's own row.
        length: of rows; None for the row before the first of them, or that first one where there is none before.
    """

    of: str
    name: str
    stream: int | None = None
    length: int | None = None

    def shape(self, kind: Kind, batch: int) -> tuple[int, ...]:
        """Of a batch of it."""
        return (batch, *(() if self.length is None else (self.length,)), *kind.columns)


class Placement(Protocol):
    """Takes rows of windows by the windows' numbers."""

    def fetch(self, index_B: Tensor, buffers: Sequence[Tensor] | None) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Of windows int64 [B] their symbols int64 [B], the row where each begins in the base int64 [B], and the rows.

        What is wanted lies in the order in which it was named, in the buffers if there are any.
        """


class Held:
    """All symbols one behind another, a tensor an array: on a GPU a copy, of one symbol on the host the maps."""

    def __init__(
        self, universe: Universe, seq_lens: Sequence[int], wanted: Sequence[Wanted], home: torch.device
    ) -> None:
        self._wanted = wanted
        self._first = torch.from_numpy(universe.first[:-1]).to(home)
        streams = list(universe.streams)
        before = np.stack([np.cumsum(universe.rows.lengths[of]) - universe.rows.lengths[of] for of in streams], axis=1)
        self._before_NS = torch.from_numpy(before).to(home)
        self._lengths_S = torch.tensor(seq_lens, device=home)
        self._ends_WS = _whole(universe, "windows", "ends", home)
        self._views = [_view(_whole(universe, one.of, one.name, home), one.length) for one in wanted]

    def fetch(self, index_B: Tensor, buffers: Sequence[Tensor] | None) -> tuple[Tensor, Tensor, list[Tensor]]:
        """By index_select."""
        index_B = index_B.to(self._first.device)
        symbol_B = torch.searchsorted(self._first, index_B, right=True) - 1
        starts_BS = self._ends_WS.index_select(0, index_B) - self._lengths_S
        before_BS = self._before_NS.index_select(0, symbol_B)
        starts_SB = (starts_BS + before_BS).T.contiguous().unbind()
        last_SB = ((starts_BS - 1).clamp(min=0) + before_BS).T.contiguous().unbind()
        found = []
        for k, (one, view) in enumerate(zip(self._wanted, self._views, strict=True)):
            rows = index_B if one.stream is None else (last_SB if one.length is None else starts_SB)[one.stream]
            if buffers is None:
                found.append(view.index_select(0, rows))
            else:
                found.append(torch.index_select(view, 0, rows, out=buffers[k]))
        return symbol_B, starts_BS[:, 0], found


class Read:
    """Files of many symbols, read window by window: no memory, however large the store."""

    def __init__(self, universe: Universe, seq_lens: Sequence[int], wanted: Sequence[Wanted]) -> None:
        self._locate, self._seq_lens, self._wanted = universe.locate, np.array(seq_lens), wanted
        self._reader = RowReader(universe.rows)

    def fetch(self, index_B: Tensor, buffers: Sequence[Tensor] | None) -> tuple[Tensor, Tensor, list[Tensor]]:
        """By reading into the buffers."""
        assert buffers is not None
        read = self._reader.read
        symbol_B, own_B = self._locate(index_B.numpy())
        symbols, own = symbol_B.tolist(), own_B.tolist()
        ends_BS = np.empty((len(own), len(self._seq_lens)), np.int32)
        read("windows", "ends", symbols, own, ends_BS[:, None])
        starts_BS = ends_BS.astype(np.int64) - self._seq_lens
        starts_SB, last_SB = starts_BS.T.tolist(), np.maximum(starts_BS - 1, 0).T.tolist()
        for one, buffer in zip(self._wanted, buffers, strict=True):
            rows = own if one.stream is None else (last_SB if one.length is None else starts_SB)[one.stream]
            read(one.of, one.name, symbols, rows, buffer.numpy() if one.length else buffer.numpy()[:, None])
        return torch.from_numpy(symbol_B), torch.from_numpy(starts_BS[:, 0]), list(buffers)


def _whole(universe: Universe, of: str, name: str, home: torch.device) -> Tensor:
    """An array of all symbols, one behind another."""
    rows, lengths = universe.rows, universe.rows.lengths[of]
    kind = rows.kinds[of][name]
    if home.type == "cpu" and len(lengths) == 1:
        return torch.from_numpy(rows.map(0, of, name))  # the map is copy-on-write, so writable, and never written
    nothing = torch.from_numpy(np.empty(0, kind.dtype))
    whole = torch.empty((int(lengths.sum()), *kind.columns), dtype=nothing.dtype, device=home)
    at, pieces, size, reader = 0, list[np.ndarray](), 0, RowReader(rows)
    for symbol, length in enumerate(lengths.tolist()):
        pieces.append(np.empty((length, *kind.columns), kind.dtype))
        reader.read(of, name, [symbol], [0], pieces[-1][None])
        size += pieces[-1].nbytes
        if size > _PIECE or symbol + 1 == len(lengths):
            together = torch.from_numpy(np.concatenate(pieces) if len(pieces) > 1 else pieces[0])
            whole[at : at + len(together)] = together
            at, pieces, size = at + len(together), [], 0
    reader.close()
    return whole


def _view(values: Tensor, length: int | None) -> Tensor:
    """[T − L + 1, L, …]: row s is the L rows from s on, all sharing the memory of the values [T, …]."""
    if length is None:
        return values
    row, *rest = values.stride()
    return values.as_strided((len(values) - length + 1, length, *values.shape[1:]), (row, row, *rest))
