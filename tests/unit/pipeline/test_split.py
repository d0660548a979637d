import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from cache.recipe import Recipe, Session
from cache.timeframes import duration_ns
from pipeline.align import Dropped, align
from pipeline.bars import Block
from pipeline.derive import derive_bars
from pipeline.split import explain_empty_part, split_windows, train_cutoff, train_end
from tests.unit.pipeline.making import (
    DAY,
    MINUTE,
    MONDAY,
    MemorySeries,
    joined,
    make_recipe,
    random_ohlc,
    store_bars,
)


class Windows:
    """What split_windows needs of a windows entry."""

    def __init__(self, ends: np.ndarray, time: np.ndarray) -> None:
        self.arrays = {"ends": ends, "time": time}

    def array(self, name: str) -> np.ndarray:
        return self.arrays[name]


def cut(bars: dict[str, Any], recipe: Recipe) -> Windows:
    blocks = [(np.empty((0, len(bars)), np.int32), np.empty(0, np.int64))]
    blocks += align(bars, recipe, Dropped(np.zeros((len(bars), 3), np.int64)))
    return Windows(np.concatenate([ends for ends, _ in blocks]), np.concatenate([time for _, time in blocks]))


def market(rows: int, seed: int, gap_share: float, start: int = MONDAY) -> dict[str, MemorySeries]:
    rng = np.random.default_rng(seed)
    opened = start + MINUTE * np.cumsum(np.where(rng.random(rows) < gap_share, rng.integers(1, 400, rows), 1))
    base = Block(opened, opened + MINUTE, random_ohlc(rng, rows))
    session = Session(tz="America/New_York", at="17:00")
    made = {"m1": base, **{name: joined(derive_bars([base], name, session)) for name in ("m15", "h1", "d")}}
    return {name: MemorySeries(series) for name, series in made.items()}


def parts_by_hand(windows: Windows, bars: dict[str, MemorySeries], recipe: Recipe, t0: int) -> tuple[set, set]:
    """Every window on its own: which are wholly before T0 less the embargo, and which wholly after T0."""
    train, val = set(), set()
    for window, (ends, t) in enumerate(zip(windows.array("ends"), windows.array("time"), strict=True)):
        opens = [
            bars[name].bars.open_time[end - length : end]
            for (name, length), end in zip(recipe.seq_lens.items(), ends, strict=True)
        ]
        assert [len(o) for o in opens] == list(recipe.seq_lens.values())
        earliest = min(int(o.min()) for o in opens)
        if t <= t0 - duration_ns(recipe.split.embargo):
            train.add(window)
        if earliest >= t0:
            val.add(window)
    return train, val


@settings(max_examples=120, deadline=None)
@given(
    rows=st.integers(200, 1200),
    seed=st.integers(0, 2**32),
    gap_share=st.sampled_from([0.0, 0.02, 0.3]),
    names=st.sets(st.sampled_from(["m15", "h1", "d"])),
    lengths=st.lists(st.integers(1, 5), min_size=4, max_size=4),
    embargo=st.sampled_from(["0s", "10min", "7h", "2d"]),
    share=st.floats(-0.1, 1.1),
    stride=st.integers(1, 5),
)
def test_parts_are_those_of_every_window_judged_on_its_own(
    rows: int,
    seed: int,
    gap_share: float,
    names: set[str],
    lengths: list[int],
    embargo: str,
    share: float,
    stride: int,
):
    timeframes = ["m1", *(name for name in ("m15", "h1", "d") if name in names)]
    wanted = ", ".join(f"{name}: {length}" for name, length in zip(timeframes, lengths, strict=False))
    recipe = make_recipe(
        f"timeframes=[{', '.join(timeframes)}]",
        f"window.seq_len={{{wanted}}}",
        f"window.stride={stride}",
        f"split.embargo={embargo!r}",
    )
    bars = {name: series for name, series in market(rows, seed, gap_share).items() if name in timeframes}
    assume(all(len(series) for series in bars.values()))
    windows = cut(bars, recipe)
    count = len(windows.array("time"))
    assume(count)
    first, last = bars["m1"].first_open, bars["m1"].last_close
    t0 = int(first + share * (last - first)) // MINUTE * MINUTE
    train, val = parts_by_hand(windows, bars, recipe, t0)
    a, b = split_windows(windows, bars, recipe, t0)
    assert set(range(a)) == train
    assert set(range(b, count)) == val
    assert a <= b


@settings(max_examples=40, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 60), min_size=1, max_size=4),
    starts=st.lists(st.integers(0, 90), min_size=4, max_size=4),
    fraction=st.floats(0.01, 0.99),
    embargo=st.sampled_from(["0s", "10min", "2d"]),
)
def test_training_ends_for_all_symbols_when_their_first_bars_have_closed(
    lengths: list[int], starts: list[int], fraction: float, embargo: str
):
    """All bars of all symbols in one list, in order of their closes."""
    closes, keys = [], []
    with tempfile.TemporaryDirectory() as folder:
        for number, (rows, start) in enumerate(zip(lengths, starts, strict=False)):
            opened = MONDAY + MINUTE * (start + np.arange(rows) * (number + 1))
            block = Block(opened, opened + MINUTE, np.ones((rows, 4)))
            keys.append(store_bars(Path(folder), block, f"bars{number}").entries[0].key)
            closes += block.close_time.tolist()
        recipe = make_recipe(f"split.val_fraction={fraction}", f"split.embargo={embargo!r}")
        expected = sorted(closes)[max(int((1 - fraction) * len(closes)), 1) - 1]
        assert train_end(Path(folder), {"split": keys}, recipe) == expected
        assert train_cutoff(Path(folder), {"split": keys}, recipe) == expected - duration_ns(embargo)


def small(*overrides: str) -> tuple[Windows, dict[str, MemorySeries], Recipe]:
    bars = {name: series for name, series in market(4 * 1440, 0, 0.0).items() if name in ("m1", "d")}
    recipe = make_recipe("timeframes=[m1, d]", "window.seq_len={m1: 10, d: 1}", *overrides)
    return cut(bars, recipe), bars, recipe


def test_a_day_in_the_window_purges_days_not_minutes():
    windows, bars, recipe = small()
    a, b = split_windows(windows, bars, recipe, MONDAY + 2 * DAY)
    assert windows.array("time")[a - 1] == MONDAY + 2 * DAY
    # the first session day that opens at or after T0 is over at 22:00 UTC on the 11th
    assert windows.array("time")[b] == MONDAY + 3 * DAY + 22 * 60 * MINUTE
    assert b - a > 1440


def test_a_stated_instant_is_in_its_zone_or_utc_and_needs_no_bars(tmp_path: Path):
    recipe = make_recipe("split.train_end='2024-01-10T17:00-05:00'", "split.embargo=1h")
    assert train_end(tmp_path, [], recipe) == MONDAY + 2 * DAY + 22 * 60 * MINUTE
    assert train_cutoff(tmp_path, ["no such entry"], recipe) == MONDAY + 2 * DAY + 21 * 60 * MINUTE
    recipe = make_recipe("split.train_end='2024-01-10T17:00'")
    assert train_end(tmp_path, [], recipe) == MONDAY + 2 * DAY + 17 * 60 * MINUTE


@pytest.mark.parametrize(
    ("day", "embargo", "part"),
    [
        (-10, "0s", "training"),
        (0.5, "0s", "training"),
        (2, "3d", "training"),
        (3, "0s", "validation"),
        (9, "0s", "validation"),
    ],
)
def test_a_part_may_be_empty(day: float, embargo: str, part: str):
    """Of one symbol among several, that is; where all are, the build says so."""
    windows, bars, recipe = small(f"split.embargo={embargo!r}")
    a, b = split_windows(windows, bars, recipe, int(MONDAY + day * DAY))
    count = len(windows.array("time"))
    assert (a == 0) if part == "training" else (b == count)


def test_a_part_that_no_symbol_has_windows_for_is_an_error_that_says_what_to_change():
    windows, bars, recipe = small("split.embargo=3d")
    short = Windows(windows.array("ends")[:5], windows.array("time")[:5])
    symbols, of_all = {"SHORT": short, "LONG": windows}, {"SHORT": bars, "LONG": bars}
    error = explain_empty_part("training", MONDAY + 2 * DAY, symbols, of_all, recipe)
    assert str(error) == (
        "test: the split leaves no training windows. Training ends at 2024-01-07T00:00:00 UTC, and validation windows "
        "must lie wholly after 2024-01-10T00:00:00 UTC; the last window, at 2024-01-12T00:01:00 UTC, spans 1.1 days. "
        "Give training windows more time in data.split, shorten data.window.seq_len, or leave out the longest timeframe"
    )
