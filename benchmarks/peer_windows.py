"""The windows that benchmarks/peer_loaders.py prepares and reads, and what several of its ways share."""

import functools
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

SEQ_LEN = 64
Batches = Iterator[tuple[torch.Tensor, list[torch.Tensor]]]


@functools.cache
def open_arrays(arrays: Path) -> tuple[list[np.ndarray], np.ndarray]:
    """Memory maps of the streams, float32 [T, F] each, and of `ends`, int32 [W, S]."""
    ends = np.load(arrays / "ends.npy", mmap_mode="c")
    return [np.load(arrays / f"x{j}.npy", mmap_mode="c") for j in range(ends.shape[1])], ends


def window(number: int, arrays: Path) -> dict[str, Any]:
    """A window written out: its number, and float32 [S, L, F]."""
    values, ends = open_arrays(arrays)
    x = np.stack([one[end - SEQ_LEN : end] for one, end in zip(values, ends[number].tolist(), strict=True)])
    return {"number": number, "x": x}


def written(windows: int, arrays: Path) -> Iterator[dict[str, Any]]:
    return (window(number, arrays) for number in range(windows))


def again(loader: Iterable[Any]) -> Iterator[Any]:
    while True:
        yield from loader


def apart(batches: Iterable[dict[str, torch.Tensor]]) -> Batches:
    """Batches of windows that were written out, as one tensor a stream."""
    for batch in batches:
        yield batch["number"], list(batch["x"].unbind(1))


def shuffled(dataset: Any, batch: int) -> Iterator[Any]:
    return again(DataLoader(dataset, batch, shuffle=True, drop_last=True))


class Slices(Dataset):
    """A map-style dataset that cuts every window out of every stream by row numbers, as most tutorials have it."""

    def __init__(self, ends: np.ndarray, cut: list[Callable[[int], Any]]) -> None:
        self.ends, self.cut = ends, cut

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, number: int) -> tuple[int, list[Any]]:
        return number, [cut(end) for cut, end in zip(self.cut, self.ends[number].tolist(), strict=True)]
