from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cache.recipe import Recipe, Session
from cache.timeframes import duration_ns, timeframe_ns
from pipeline.align import RULES, Dropped, align, explain_empty
from pipeline.bars import Block
from pipeline.build import build
from pipeline.derive import derive_bars
from tests.unit.pipeline.making import (
    HOUR,
    MINUTE,
    MONDAY,
    MemorySeries,
    joined,
    make_recipe,
    quiet,
    random_ohlc,
    store_bars,
    write_parquet,
)

NEW_YORK = Session(tz="America/New_York", at="17:00")
SUMMER_TIME = pd.Timestamp("2024-03-08", tz="UTC").value


def run(bars: dict[str, Any], recipe: Recipe) -> tuple[np.ndarray, np.ndarray, Dropped]:
    dropped = Dropped(np.zeros((len(recipe.timeframes), 3), np.int64))
    blocks = list(align(bars, recipe, dropped))
    assert all(ends.dtype == np.int32 and len(ends) == len(time) > 0 for ends, time in blocks)
    ends = np.concatenate([np.empty((0, len(recipe.timeframes)), np.int32), *(block[0] for block in blocks)])
    return ends, np.concatenate([np.empty(0, np.int64), *(block[1] for block in blocks)]), dropped


def align_by_hand(bars: dict[str, Block], recipe: Recipe) -> tuple[list[list[int]], list[int], dict[str, dict]]:
    """One decision time after the other, one timeframe after the other, by what the recipe says in words."""
    base = bars[recipe.base]
    broken = {name: dict.fromkeys(RULES, 0) for name in recipe.timeframes}
    ends, times = [], []
    for row in range(0, len(base.ohlc), recipe.window.stride):
        t = int(base.close_time[row])
        completed = {name: sum(int(close) <= t for close in bars[name].close_time) for name in recipe.timeframes}
        good = True
        for name, count in completed.items():
            limit = recipe.window.max_staleness.get(name)
            if count < recipe.seq_lens[name]:
                broken[name]["history"] += 1
                good = False
            elif limit is not None and t - int(bars[name].close_time[count - 1]) > duration_ns(limit):
                broken[name]["staleness"] += 1
                good = False
        begin = completed[recipe.base] - recipe.seq_lens[recipe.base]
        if begin >= 0:
            inside = range(begin, completed[recipe.base])
            covered = sum(int(base.close_time[i]) - int(base.open_time[i]) for i in inside)
            if covered < recipe.window.min_coverage * (t - int(base.open_time[begin])):
                broken[recipe.base]["coverage"] += 1
                good = False
        if good:
            ends.append(list(completed.values()))
            times.append(t)
    return ends, times, broken


@st.composite
def market(draw: st.DrawFn) -> tuple[dict[str, Block], Recipe]:
    """Minute bars with gaps and overruns; higher timeframes derived, or given with other gaps and closes."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    rows = draw(st.integers(2, 250))
    steps = np.where(rng.random(rows) < draw(st.sampled_from([0, 0.1, 0.5])), rng.integers(1, 200, rows), 1)
    opened = (
        draw(st.sampled_from([MONDAY, SUMMER_TIME])) + draw(st.integers(0, 1440)) * MINUTE + np.cumsum(steps) * MINUTE
    )
    late = np.where(rng.random(rows) < draw(st.sampled_from([0, 0.2])), rng.integers(0, 60, rows), 0) * 10**9
    base = Block(opened, opened + MINUTE + late, random_ohlc(rng, rows))
    names = [
        "m1",
        *sorted(draw(st.sets(st.sampled_from(["m5", "m15", "h1", "h4", "d"]), max_size=4)), key=timeframe_ns),
    ]
    bars = {"m1": base}
    for name in names[1:]:
        if draw(st.booleans()):
            bars[name] = joined(derive_bars([base], name, NEW_YORK))
        else:
            count = draw(st.integers(1, 60))
            close = (
                opened[0] + np.sort(rng.choice(opened[-1] - opened[0] + HOUR, count, replace=False)) // 10**9 * 10**9
            )
            close = np.concatenate([close, rng.choice(base.close_time, min(rows, 10), replace=False)])  # and on the dot
            close = np.unique(close)
            bars[name] = Block(close - timeframe_ns(name), close, random_ohlc(rng, len(close)))
    lengths = {name: draw(st.integers(1, 12)) for name in names}
    stale = {name: draw(st.sampled_from(["0s", "7min", "2h", "1d"])) for name in names[1:] if draw(st.booleans())}
    recipe = make_recipe(
        f"timeframes=[{', '.join(names)}]",
        f"window.seq_len={{{', '.join(f'{n}: {length}' for n, length in lengths.items())}}}",
        f"window.stride={draw(st.integers(1, 9))}",
        f"window.min_coverage={draw(st.sampled_from([0.0, 0.3, 0.9, 1.0]))}",
        f"window.max_staleness={{{', '.join(f'{n}: {limit!r}' for n, limit in stale.items())}}}",
    )
    return bars, recipe


@settings(max_examples=200, deadline=None)
@given(made=market(), block_rows=st.sampled_from([1, 5, 64, 1000]))
def test_windows_and_what_was_dropped_are_as_the_rules_say(made: tuple, block_rows: int):
    bars, recipe = made
    ends, time, dropped = run({name: MemorySeries(series, block_rows) for name, series in bars.items()}, recipe)
    expected_ends, expected_time, broken = align_by_hand(bars, recipe)
    np.testing.assert_array_equal(ends, np.array(expected_ends, int).reshape(-1, len(recipe.timeframes)))
    np.testing.assert_array_equal(time, np.array(expected_time, int))
    assert dropped.table(recipe.timeframes) == broken
    assert dropped.kept == len(expected_time)
    assert dropped.candidates == -(-len(bars["m1"].ohlc) // recipe.window.stride)


@settings(max_examples=60, deadline=None)
@given(made=market())
def test_ends_are_what_searchsorted_and_merge_asof_find(made: tuple):
    bars, recipe = made
    recipe = recipe.model_copy(
        update={"window": recipe.window.model_copy(update={"seq_len": 1, "max_staleness": {}, "min_coverage": 0.0})}
    )
    ends, time, _ = run({name: MemorySeries(series) for name, series in bars.items()}, recipe)
    for column, name in enumerate(recipe.timeframes):
        close = bars[name].close_time
        np.testing.assert_array_equal(ends[:, column], np.searchsorted(close, time, side="right"))
        last = pd.merge_asof(
            pd.DataFrame({"t": time}), pd.DataFrame({"t": close, "row": np.arange(len(close))}), on="t"
        )
        np.testing.assert_array_equal(ends[:, column] - 1, last["row"])
        assert (close[ends[:, column] - 1] <= time).all()
        later = ends[:, column] < len(close)
        assert (time[later] < close[ends[later, column]]).all()


def test_series_of_the_store_give_the_same_as_series_in_memory(tmp_path: Path):
    rng = np.random.default_rng(5)
    opened = MONDAY + MINUTE * np.cumsum(rng.integers(1, 4, 5000))
    base = Block(opened, opened + MINUTE, random_ohlc(rng, 5000))
    bars = {"m1": base, "m5": joined(derive_bars([base], "m5", None)), "h4": joined(derive_bars([base], "h4", None))}
    recipe = make_recipe("timeframes=[m1, m5, h4]", "window.seq_len=8", "window.min_coverage=0.4", "window.stride=3")
    stored = run({name: store_bars(tmp_path, series, name) for name, series in bars.items()}, recipe)
    memory = run({name: MemorySeries(series, 100) for name, series in bars.items()}, recipe)
    assert 0 < stored[2].kept < stored[2].candidates
    np.testing.assert_array_equal(stored[0], memory[0])
    np.testing.assert_array_equal(stored[1], memory[1])
    np.testing.assert_array_equal(stored[2].counts, memory[2].counts)


@pytest.mark.parametrize("label", ["left", "right"])
def test_a_build_with_given_and_derived_timeframes_sees_only_closed_bars(tmp_path: Path, label: str):
    """Minutes and hours from files (the hours with holes), days derived over a change of the clocks."""
    rng = np.random.default_rng(1)
    minute = SUMMER_TIME + MINUTE * np.flatnonzero(rng.random(6 * 1440) < 0.7)
    hour = SUMMER_TIME + HOUR * np.flatnonzero(rng.random(6 * 24) < 0.8)
    write_parquet(tmp_path / "m1.parquet", minute, random_ohlc(rng, len(minute)))
    write_parquet(tmp_path / "h1.parquet", hour, random_ohlc(rng, len(hour)))
    recipe = make_recipe(
        "source.files={m1: m1.parquet, h1: h1.parquet}",
        f"source.label={label}",
        "source.session={tz: America/New_York, at: '17:00'}",
        "timeframes=[m1, m15, h1, d]",
        "window.seq_len={m1: 20, m15: 4, h1: 4, d: 1}",
        "window.stride=7",
    )
    windows = build(recipe, tmp_path, tmp_path / "store", 2, quiet()).dataset.symbols["TEST"].windows
    time, ends = windows.array("time"), windows.array("ends")

    to_open = pd.Timedelta(0) if label == "left" else -pd.Timedelta("1min")
    opened = pd.Series(1.0, pd.to_datetime(minute, utc=True) + to_open)
    close = {
        "m1": opened.index + pd.Timedelta("1min"),
        "m15": opened.resample("15min").first().dropna().index + pd.Timedelta("15min"),
        "h1": pd.to_datetime(hour, utc=True) + (pd.Timedelta("1h") if label == "left" else pd.Timedelta(0)),
        "d": pd.date_range("2024-03-08 17:00", "2024-03-14 17:00", tz="America/New_York").tz_convert("UTC"),
    }
    unfinished = {
        name: times[times <= close["m1"][-1]] if name in ("m15", "d") else times for name, times in close.items()
    }
    expected = np.column_stack(
        [
            np.searchsorted(times.as_unit("ns").asi8, close["m1"].as_unit("ns").asi8, "right")
            for times in unfinished.values()
        ]
    )[::7]
    full = (expected >= [20, 4, 4, 1]).all(axis=1)
    np.testing.assert_array_equal(time, close["m1"].as_unit("ns").asi8[::7][full])
    np.testing.assert_array_equal(ends, expected[full])


def simple(rows: int = 200) -> dict[str, MemorySeries]:
    opened = MONDAY + MINUTE * np.arange(rows)
    base = Block(opened, opened + MINUTE, random_ohlc(np.random.default_rng(0), rows))
    return {"m1": MemorySeries(base), "h1": MemorySeries(joined(derive_bars([base], "h1", None)))}


def message(bars: dict[str, MemorySeries], *overrides: str) -> str:
    recipe = make_recipe("timeframes=[m1, h1]", "window.seq_len={m1: 5, h1: 2}", *overrides)
    _, time, dropped = run(bars, recipe)
    assert len(time) == 0
    return str(explain_empty(dropped, "TEST", recipe, bars))


def test_no_windows_for_want_of_history_is_explained():
    assert message(simple(), "window.seq_len={m1: 5, h1: 4}") == (
        "test: TEST has no windows left of 200 candidates. The rule `history` of h1 dropped 200: it needs 4 bars of h1 "
        "before t, and there are 3 in all; shorten data.window.seq_len, add data, or leave the timeframe out"
    )


def test_no_windows_for_staleness_are_explained():
    bars = simple()
    old = bars["h1"].bars
    bars["h1"] = MemorySeries(Block(old.open_time[:2] - 24 * HOUR, old.close_time[:2] - 24 * HOUR, old.ohlc[:2]))
    assert message(bars, "window.max_staleness={h1: 90min}") == (
        "test: TEST has no windows left of 200 candidates. The rule `staleness` of h1 dropped 200: it wants the last "
        "h1 bar at most 90min old; raise data.window.max_staleness.h1"
    )


def test_no_windows_for_coverage_are_explained():
    bars = simple()
    base = bars["m1"].bars
    sparse = Block(base.open_time * 2 - MONDAY, base.open_time * 2 - MONDAY + MINUTE, base.ohlc)
    assert message({"m1": MemorySeries(sparse), "h1": bars["h1"]}, "window.min_coverage=0.6") == (
        "test: TEST has no windows left of 200 candidates. The rule `coverage` of m1 dropped 196: it wants 60% of the "
        "window's span covered by bars; lower data.window.min_coverage"
    )


def test_whole_coverage_keeps_windows_without_gaps():
    _, time, dropped = run(
        simple(), make_recipe("timeframes=[m1, h1]", "window.seq_len={m1: 5, h1: 1}", "window.min_coverage=1.0")
    )
    assert len(time) == 200 - 59
    assert dropped.table(["m1", "h1"])["m1"]["coverage"] == 0
