from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given as drawn
from hypothesis import settings
from hypothesis import strategies as st

from cache.recipe import Session
from pipeline.bars import Block
from pipeline.consistency import consistency, describe
from pipeline.derive import derive_bars
from tests.unit.pipeline.making import DAY, HOUR, MINUTE, MONDAY, MemorySeries, joined, random_ohlc

PRICES = ["open", "high", "low", "close"]
LENGTHS = {"m5": 5 * MINUTE, "h1": HOUR, "d": DAY}
SESSION = Session(tz="America/New_York", at="17:00")


def base_bars(rows: int, seed: int, gaps: float = 0.1) -> Block:
    rng = np.random.default_rng(seed)
    opened = MONDAY + MINUTE * np.cumsum(np.where(rng.random(rows) < gaps, rng.integers(1, 90, rows), 1))
    return Block(opened, opened + MINUTE, random_ohlc(rng, rows))


def derived(base: Block, timeframe: str, session: Session | None = None) -> Block:
    return joined(derive_bars([base], timeframe, session))


def cut(bars: Block, rows: Any) -> Block:
    return Block(bars.open_time[rows], bars.close_time[rows], bars.ohlc[rows].copy())


def report(base: Block, given: Block, timeframe: str, session: Session | None = None, block_rows: int = 97) -> dict:
    return consistency(MemorySeries(base, block_rows), MemorySeries(given, block_rows), timeframe, session)


def counts(found: dict) -> tuple[int, ...]:
    names = ("both", "equal", "different", "only_given", "only_derived", "beyond_base", "shift")
    return tuple(found[name] for name in names)


@pytest.mark.parametrize(("timeframe", "session"), [("m5", None), ("h1", None), ("d", None), ("d", SESSION)])
def test_bars_that_were_derived_agree(timeframe: str, session: Session | None):
    base = base_bars(6000, 0)
    made = derived(base, timeframe, session)
    found = report(base, made, timeframe, session)
    assert counts(found) == (len(made.ohlc), len(made.ohlc), 0, 0, 0, 0, 0)
    assert found["first"] is None
    assert describe(found, "EURUSD") == (
        f"EURUSD {timeframe}: all {len(made.ohlc):,} given bars equal those made of the base bars"
    )


def by_pandas(base: Block, given: Block, length: int) -> dict[str, int]:
    """The same counts by a merge of data frames."""
    frame = pd.DataFrame(base.ohlc, columns=PRICES).assign(bucket=base.open_time // length)
    made = frame.groupby("bucket").agg(dict(zip(PRICES, ("first", "max", "min", "last"), strict=True))).reset_index()
    made["closes"] = (made["bucket"] + 1) * length
    made = made[made["closes"] <= base.close_time[-1]]
    known = pd.DataFrame(given.ohlc, columns=PRICES).assign(closes=given.close_time)
    inside = known[(known["closes"] > base.open_time[0]) & (known["closes"] <= base.close_time[-1])]
    both = made.merge(inside, on="closes", suffixes=("", "_given"))
    equal = np.isclose(both[PRICES], both[[f"{p}_given" for p in PRICES]], rtol=1e-9, atol=0).all(axis=1)
    return {
        "both": len(both),
        "equal": int(equal.sum()),
        "different": len(both) - int(equal.sum()),
        "only_given": len(inside) - len(both),
        "only_derived": len(made) - len(both),
        "beyond_base": len(known) - len(inside),
    }


@settings(max_examples=80, deadline=None)
@drawn(
    seed=st.integers(0, 2**32),
    rows=st.integers(200, 1500),
    timeframe=st.sampled_from(["m5", "h1"]),
    missing=st.floats(0, 0.9),
    changed=st.floats(0, 1),
    extra=st.integers(0, 5),
    block_rows=st.sampled_from([1, 13, 200, 10_000]),
)
def test_counts_are_those_of_a_merge(
    seed: int, rows: int, timeframe: str, missing: float, changed: float, extra: int, block_rows: int
):
    rng, length = np.random.default_rng(seed), LENGTHS[timeframe]
    base = base_bars(rows, seed)
    made = derived(base, timeframe)
    kept = rng.random(len(made.ohlc)) >= missing
    opened = np.concatenate([made.open_time[kept], made.open_time[0] - length * np.arange(1, extra + 1)])
    opened = np.concatenate([opened, np.setdiff1d(made.open_time[0] + length * np.arange(extra), made.open_time)])
    ohlc = np.concatenate([made.ohlc[kept], random_ohlc(rng, 2 * extra + 1)])[: len(opened)]
    order = np.argsort(opened)
    given = Block(opened[order], opened[order] + length, ohlc[order])
    if not len(opened):
        return
    spoilt = rng.random(given.ohlc.shape) < changed * 0.3
    given.ohlc[spoilt] *= rng.choice([1 + 1e-13, 1 + 1e-7, 1.01], spoilt.sum())
    found = report(base, given, timeframe, block_rows=block_rows)
    expected = by_pandas(base, given, length)
    assert {name: found[name] for name in expected} == expected


def test_the_first_difference_is_told():
    base = base_bars(3000, 1, gaps=0)
    given = cut(derived(base, "h1"), slice(None))
    given.ohlc[7, 2] = 90.5
    given.ohlc[9] *= 1 + 1e-6
    given = cut(given, np.arange(len(given.ohlc)) != 20)
    found = report(base, given, "h1")
    lowest = float(derived(base, "h1").ohlc[7, 2])
    assert counts(found) == (49, 47, 2, 0, 1, 0, 0)
    assert found["first"] == {"open_time": MONDAY + 7 * HOUR, "field": "low", "given": 90.5, "derived": lowest}
    assert found["largest_relative_difference"] == pytest.approx(abs(90.5 - lowest) / lowest)
    assert describe(found, "X") == (
        "X h1: 2 of 49 given bars differ from those made of the base bars, by up to "
        f"{abs(90.5 - lowest) / lowest:.2g} of the price; the first opens at 2024-01-08T07:00:00 UTC, with low 90.5 "
        f"given and {lowest:.9g} made; 1 missing from the file"
    )


@pytest.mark.parametrize("steps", [-1, 1])
@pytest.mark.parametrize("timeframe", ["m5", "h1"])
@pytest.mark.parametrize("block_rows", [61, 100_000])
def test_labels_taken_for_the_wrong_end_are_recognised(steps: int, timeframe: str, block_rows: int):
    base, length = base_bars(9000, 2, gaps=0), LENGTHS[timeframe]
    made = derived(base, timeframe)
    given = Block(made.open_time - steps * length, made.close_time - steps * length, made.ohlc)
    found = report(base, given, timeframe, block_rows=block_rows)
    assert found["shift"] == steps
    assert found["equal"] < found["both"] / 4
    text = describe(found, "X")
    if steps < 0:
        assert text.endswith(
            ". They would agree one bar earlier: the time stamps of this file seem to mark the ends of its bars, where "
            "data.source.label takes them for the beginnings"
        )
    else:
        assert "They would agree one bar later: the time stamps of this file seem to mark the beginnings" in text


def test_other_prices_are_no_shift():
    base = base_bars(3000, 3)
    made = derived(base, "h1")
    found = report(base, Block(made.open_time, made.close_time, made.ohlc * 1.5), "h1")
    assert (found["equal"], found["shift"]) == (0, 0)


def test_days_belong_together_that_end_together():
    """A file may date session days at midnight: its bars open later than the session does, and close with it."""
    base = base_bars(9000, 4, gaps=0)
    made = derived(base, "d", SESSION)
    dated = Block(made.open_time + 2 * HOUR, made.close_time, made.ohlc)
    assert counts(report(base, dated, "d", SESSION))[:3] == (len(made.ohlc), len(made.ohlc), 0)


def test_a_file_that_never_meets_the_base():
    base = base_bars(3000, 5)
    made = derived(base, "h1")
    before = Block(made.open_time - 400 * DAY, made.close_time - 400 * DAY, made.ohlc)
    found = report(base, before, "h1")
    assert counts(found) == (0, 0, 0, 0, len(made.ohlc), len(made.ohlc), 0)
    assert describe(found, "X") == (
        f"X h1: no given bar is over when a bar made of the base bars is; {len(made.ohlc)} missing from the file; "
        f"{len(made.ohlc)} outside the span of the base bars"
    )
