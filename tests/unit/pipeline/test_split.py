from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from cache.recipe import Recipe, Session
from cache.timeframes import duration_ns
from configs.errors import UserError
from pipeline.align import Dropped, align
from pipeline.bars import Block
from pipeline.derive import derive_bars
from pipeline.split import split_windows, train_cutoff, train_end
from tests.unit.pipeline.making import DAY, MINUTE, MONDAY, MemorySeries, joined, make_recipe, random_ohlc


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
    fraction=st.floats(0.05, 0.9),
    stride=st.integers(1, 5),
)
def test_parts_are_those_of_every_window_judged_on_its_own(
    rows: int,
    seed: int,
    gap_share: float,
    names: set[str],
    lengths: list[int],
    embargo: str,
    fraction: float,
    stride: int,
):
    timeframes = ["m1", *(name for name in ("m15", "h1", "d") if name in names)]
    wanted = ", ".join(f"{name}: {length}" for name, length in zip(timeframes, lengths, strict=False))
    recipe = make_recipe(
        f"timeframes=[{', '.join(timeframes)}]",
        f"window.seq_len={{{wanted}}}",
        f"window.stride={stride}",
        f"split.val_fraction={fraction}",
        f"split.embargo={embargo!r}",
    )
    bars = {name: series for name, series in market(rows, seed, gap_share).items() if name in timeframes}
    assume(all(len(series) for series in bars.values()))
    windows = cut(bars, recipe)
    assume(len(windows.array("time")))
    t0 = int(bars["m1"].bars.close_time[max(int((1 - fraction) * rows), 1) - 1])
    assert train_end(bars["m1"], recipe) == t0
    train, val = parts_by_hand(windows, bars, recipe, t0)
    if not (train and val):
        with pytest.raises(UserError, match="the split leaves no"):
            split_windows(windows, bars, recipe)
        return
    parts = split_windows(windows, bars, recipe)
    assert set(range(*parts["train"]["windows"])) == train
    assert set(range(*parts["val"]["windows"])) == val
    assert parts["train"]["until"] == t0 - duration_ns(embargo) == train_cutoff(bars["m1"], recipe)
    assert parts["val"]["from"] == t0
    assert parts["purged"] == len(windows.array("time")) - len(train) - len(val)


def small(*overrides: str) -> tuple[Windows, dict[str, MemorySeries], Recipe]:
    bars = {name: series for name, series in market(4 * 1440, 0, 0.0).items() if name in ("m1", "d")}
    recipe = make_recipe("timeframes=[m1, d]", "window.seq_len={m1: 10, d: 1}", *overrides)
    return cut(bars, recipe), bars, recipe


def test_a_day_in_the_window_purges_days_not_minutes():
    windows, bars, recipe = small("split.train_end=2024-01-10")
    parts = split_windows(windows, bars, recipe)
    first = parts["val"]["windows"][0]
    # the first session day that opens at or after T0 is over at 22:00 UTC on the 11th
    assert windows.array("time")[first] == MONDAY + 3 * DAY + 22 * 60 * MINUTE
    assert parts["purged"] > 1440


@pytest.mark.parametrize("instant", ["2020-01-01", "2024-01-08", "2024-01-12T00:01", "2030-01-01"])
def test_a_stated_end_of_training_outside_the_bars_is_an_error(instant: str):
    windows, bars, recipe = small(f"split.train_end={instant}")
    with pytest.raises(UserError) as caught:
        split_windows(windows, bars, recipe)
    assert str(caught.value) == (
        f"data.split.train_end = {instant} lies outside the bars of TEST, which go from 2024-01-08T00:01:00 UTC to "
        "2024-01-12T00:01:00 UTC"
    )


def test_a_stated_instant_is_in_its_zone_or_utc():
    _, bars, recipe = small("split.train_end='2024-01-10T17:00-05:00'")
    assert train_end(bars["m1"], recipe) == MONDAY + 2 * DAY + 22 * 60 * MINUTE
    _, bars, recipe = small("split.train_end='2024-01-10T17:00'")
    assert train_end(bars["m1"], recipe) == MONDAY + 2 * DAY + 17 * 60 * MINUTE


@pytest.mark.parametrize(
    ("overrides", "part", "ends", "after"),
    [
        (["split.train_end=2024-01-08T12:00"], "training", "2024-01-08T12:00:00 UTC", "2024-01-08T12:00:00 UTC"),
        (
            ["split.train_end=2024-01-10", "split.embargo=3d"],
            "training",
            "2024-01-07T00:00:00 UTC",
            "2024-01-10T00:00:00 UTC",
        ),
        (["split.train_end=2024-01-11"], "validation", "2024-01-11T00:00:00 UTC", "2024-01-11T00:00:00 UTC"),
    ],
)
def test_an_empty_part_is_an_error_that_says_what_to_change(overrides: list[str], part: str, ends: str, after: str):
    windows, bars, recipe = small(*overrides)
    with pytest.raises(UserError) as caught:
        split_windows(windows, bars, recipe)
    assert str(caught.value) == (
        f"test: the split leaves no {part} windows. Training ends at {ends}, and validation windows must lie wholly "
        f"after {after}; the last window spans 1.1 days. Change data.split, shorten data.window.seq_len, or leave out "
        "the longest timeframe"
    )
