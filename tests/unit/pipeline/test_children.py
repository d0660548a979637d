from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.bars import Block
from pipeline.children import base_rows
from pipeline.derive import derive_bars
from tests.unit.pipeline.making import HOUR, MINUTE, MONDAY, MemorySeries, joined, random_ohlc, store_bars


def minutes(seed: int, rows: int, gap: float) -> Block:
    rng = np.random.default_rng(seed)
    opened = MONDAY + MINUTE * np.cumsum(np.where(rng.random(rows) < gap, rng.integers(2, 200, rows), 1))
    return Block(opened, opened + MINUTE, random_ohlc(rng, rows))


@settings(max_examples=60)
@given(
    seed=st.integers(0, 2**32),
    rows=st.integers(1, 400),
    gap=st.floats(0, 0.5),
    block_rows=st.tuples(st.integers(1, 50), st.integers(1, 50)),
)
def test_children_are_the_base_bars_that_open_inside(seed: int, rows: int, gap: float, block_rows: tuple[int, int]):
    base = minutes(seed, rows, gap)
    bars = joined(derive_bars([base], "m15", None))
    found = base_rows(MemorySeries(base, block_rows[0]), MemorySeries(bars, block_rows[1]))
    assert (found.dtype, found.shape) == (np.int32, (len(bars.ohlc), 2))
    for (first, past), opens, closes, ohlc in zip(found, bars.open_time, bars.close_time, bars.ohlc, strict=True):
        inside = [row for row in range(rows) if opens <= base.open_time[row] < closes]
        assert list(range(first, past)) == inside
        assert base.ohlc[inside, 1].max() == ohlc[1]


def test_a_bar_without_children_and_bars_beyond_the_base():
    base = Block(*(np.array([MONDAY + HOUR, MONDAY + HOUR + MINUTE]) + shift for shift in (0, MINUTE)), np.ones((2, 4)))
    opened = MONDAY + HOUR * np.array([-1, 0, 1, 2])
    bars = Block(opened, opened + HOUR, np.ones((4, 4)))
    assert base_rows(MemorySeries(base), MemorySeries(bars)).tolist() == [[0, 0], [0, 0], [0, 2], [2, 2]]


def test_rows_of_a_stored_series(tmp_path: Path):
    base = minutes(0, 300_000, 0.1)
    bars = joined(derive_bars([base], "h4", None))
    found = base_rows(store_bars(tmp_path, base, "base"), store_bars(tmp_path, bars, "h4"))
    np.testing.assert_array_equal(found[:, 0], np.searchsorted(base.open_time, bars.open_time))
    np.testing.assert_array_equal(found[:, 1], np.searchsorted(base.open_time, bars.close_time))
