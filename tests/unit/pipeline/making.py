"""Bars, recipes and series for the tests of the pipeline."""

import io
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cache.console import Console
from cache.keys import Components
from cache.layout import ArraySpec
from cache.recipe import BarsSource, Recipe
from cache.writer import EntryWriter
from configs.loader import load_config
from pipeline.bars import Block
from pipeline.series import BarSeries

MINUTE = 60 * 10**9
HOUR = 60 * MINUTE
DAY = 24 * HOUR
MONDAY = 1_704_672_000 * 10**9  # 2024-01-08 00:00 UTC


def make_recipe(*overrides: str) -> Recipe:
    """The recipe of configs/test.yaml with `data.` put before every override."""
    return load_config("configs/test.yaml", [f"data.{override}" for override in overrides]).parse("data", Recipe)


def make_source(**changes: Any) -> BarsSource:
    """The source of configs/base.yaml with other values for some fields."""
    fields = {**load_config("configs/base.yaml").values["data"]["source"], "files": {"m1": "bars.parquet"}}
    return BarsSource.model_validate({**fields, **changes})


def quiet() -> Console:
    return Console(io.StringIO())


def random_ohlc(rng: np.random.Generator, rows: int) -> np.ndarray:
    """Valid prices float64 [rows, 4] around 100; a tenth of the bars do not move at all."""
    path = 100 * np.exp(np.cumsum(rng.normal(0, 1e-3, (rows, 4)).ravel())).reshape(rows, 4)
    path[rng.random(rows) < 0.1] = path[0, 0]
    return np.column_stack([path[:, 0], path.max(axis=1), path.min(axis=1), path[:, 3]])


def write_parquet(path: Path, label_ns: np.ndarray, ohlc: np.ndarray, **settings: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    times = pa.array(np.asarray(label_ns, np.int64)).cast(pa.timestamp("ns", "UTC"))
    columns = dict(zip(("open", "high", "low", "close"), np.asarray(ohlc, float).T, strict=True))
    pq.write_table(pa.table({"timestamp": times, **columns}), path, **settings)
    return path


def in_blocks(block: Block, cuts: list[int]) -> Iterator[Block]:
    """The same bars in the blocks that `cuts` make; empty ones are left out."""
    bounds = [0, *sorted(cuts), len(block.ohlc)]
    for start, stop in itertools.pairwise(bounds):
        if stop > start:
            yield Block(block.open_time[start:stop], block.close_time[start:stop], block.ohlc[start:stop])


def joined(blocks: Iterator[Block] | list[Block]) -> Block:
    parts = list(blocks)
    none = Block(np.empty(0, np.int64), np.empty(0, np.int64), np.empty((0, 4)))
    return Block(
        *(np.concatenate([getattr(p, name) for p in [none, *parts]]) for name in ("open_time", "close_time", "ohlc"))
    )


@dataclass
class MemorySeries(BarSeries):
    """A series of bars in memory and in blocks of any size."""

    bars: Block
    block_rows: int = 7

    def __len__(self) -> int:
        return len(self.bars.ohlc)

    @property
    def first_open(self) -> int:
        return int(self.bars.open_time[0])

    @property
    def last_close(self) -> int:
        return int(self.bars.close_time[-1])

    def rows(self, name: str, start: int, stop: int) -> np.ndarray:
        return getattr(self.bars, name)[start:stop].copy()

    def ranges(self, first: int = 0) -> Iterator[tuple[int, int]]:
        for start in range(first, len(self), self.block_rows):
            yield start, min(start + self.block_rows, len(self))

    def completed_by(self, instant: int) -> int:
        return int((self.bars.close_time <= instant).sum())

    def opened_before(self, instant: int) -> int:
        return int((self.bars.open_time < instant).sum())


def store_bars(store: Path, bars: Block, name: str = "bars") -> BarSeries:
    """The bars as an entry of the store."""
    components = Components("bars", 1, {"name": name}, {})
    with EntryWriter(store, components) as entry:
        for field, dtype, columns in (("open_time", "<i8", ()), ("close_time", "<i8", ()), ("ohlc", "<f8", (4,))):
            array = entry.array(ArraySpec(field, dtype, ("time", "price")[: 1 + len(columns)], columns))
            array.append(getattr(bars, field))
        entry.publish(origin=name, first_open=int(bars.open_time[0]), last_close=int(bars.close_time[-1]))
    return BarSeries(store, [components.key])
