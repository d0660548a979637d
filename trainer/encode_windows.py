"""Which windows of a dataset are embedded, and what tells them apart."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from cache.entries import Entry
from cache.layout import CHUNK_ROWS, SEQUENCE
from cache.part import part_of
from cache.reader import Dataset
from cache.timeframes import format_time
from configs.errors import UserError
from trainer.predictions import KNOWN, known_of, write_table

PART_BYTES = 64_000_000


def window_numbers(dataset: Dataset, times: Any, symbol: str) -> Tensor:
    """Which of a symbol's windows are at these decision times, int64 [N]. Arguments and errors as of `encode_at`."""
    if isinstance(times, pd.DatetimeIndex):
        if times.tz is None:
            raise UserError("times have no zone; say which it is, for example with tz_localize('UTC')")
        times = times.as_unit("ns").asi8
    wanted = np.asarray(times)
    if wanted.ndim != 1:
        raise UserError(
            f"times is {times!r}, not several in a row; give a pandas.DatetimeIndex with a zone, or a list of whole "
            "nanoseconds since 1970 UTC"
        )
    if wanted.dtype.kind not in "iu" and len(wanted):
        raise UserError(
            f"times are {wanted.dtype}; give a pandas.DatetimeIndex with a zone, or whole nanoseconds since 1970 UTC"
        )
    wanted = wanted.astype(np.int64)
    known = dataset.symbols[symbol].windows.array("time")
    at = np.searchsorted(known, wanted)
    there = known[np.minimum(at, len(known) - 1)] == wanted
    if not there.all():
        first = int(np.argmin(there))
        near = [format_time(known[i]) for i in (at[first] - 1, at[first]) if 0 <= i < len(known)]
        raise UserError(
            f"{dataset.name}: {symbol} has no window at {format_time(wanted[first])}; the nearest "
            f"{'are' if len(near) > 1 else 'is'} at {' and '.join(near)}"
        )
    return torch.from_numpy(at.astype(np.int64))


def window_ranges(dataset: Dataset, split: str, fold: int | None = None) -> list[tuple[str, range]]:
    """Symbols, each with a range of its windows in a split; of recordings it is the split of a fold.

    `all` has also the windows that were purged between the others. Raises UserError for none.
    """
    if dataset.folds:
        part = part_of(dataset, fold)
        of = {"all": (range(dataset.folds[-1].stop),), "train": part.train, "val": (part.val,)}
        found = [(symbol, own) for symbol in dataset.symbols for own in of.get(split, ())]
    elif split == "all":
        known = dataset.per_symbol
        found = [(symbol, range(count)) for symbol, count in zip(known.names, known.windows.tolist(), strict=True)]
    else:
        bounds = dataset.splits.get(split, {"windows": {}})["windows"]
        found = [(symbol, range(*bounds[symbol])) for symbol in dataset.symbols if symbol in bounds]
    if not any(own for _, own in found):
        raise UserError(f"{dataset.name}: the split {split} has no windows; choose another --split")
    return [(symbol, own) for symbol, own in found if own]


def part_ranges(windows: range, shape: tuple[int, ...]) -> Iterator[range]:
    """Ranges of windows that make about PART_BYTES each, and never more than one chunk."""
    size = min(max(PART_BYTES // (4 * math.prod(shape)), 1), CHUNK_ROWS)
    for start in range(windows.start, windows.stop, size):
        yield range(start, min(start + size, windows.stop))


def padding_latents(windows: Entry, own: range, stride: int) -> NDArray[np.uint8]:
    """1 where a latent of a recording is of padding alone: uint8 [W, latent_len]; `stride` rows make a latent."""
    length = windows.manifest["seq_len"][SEQUENCE]
    before = np.zeros((len(own), 1), np.int64)
    if "starts" in windows.manifest["arrays"]:
        ends, starts = (windows.rows(name, own.start, own.stop) for name in ("ends", "starts"))
        before = length - (ends - starts)
    latents = -(-length // stride)
    until = np.arange(1, latents + 1) * stride - (latents * stride - length)  # rows of the window, which may begin late
    return np.asarray(until <= before, np.uint8)


def write_recordings(path: Path, windows: Entry, ranges: list[range]) -> None:
    """Write who made which recording, its fold and its classes as CSV, one row a window of the ranges, in order."""
    index = np.concatenate([np.arange(own.start, own.stop) for own in ranges])
    classes, codes = windows.manifest["classes"], windows.array("label")[index]
    labels = [[known[code] for code in codes[:, k]] for k, known in enumerate(classes.values())]
    write_table(path, [*KNOWN, *classes], zip(*known_of(windows, index), *labels, strict=True))
