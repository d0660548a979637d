"""Are given bars of a longer timeframe what the base bars aggregate to? Counts, and words for them."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from cache.recipe import Session
from cache.timeframes import format_time, timeframe_ns
from pipeline.bars import Block
from pipeline.derive import derive_bars
from pipeline.series import BarSeries

FIELDS = ("open", "high", "low", "close")
TOLERANCE = 1e-9  # relative: what rounding to text and back may cost


@dataclass
class _Pairs:
    """Bars that are over at the same time, `shift` ns after the given ones say so; filled block by block."""

    shift: int
    both: int = 0
    equal: int = 0
    largest: float = 0.0
    first: dict[str, Any] | None = None

    def add(self, derived: Block, given: Block) -> None:
        _, left, right = np.intersect1d(
            derived.close_time, given.close_time + self.shift, assume_unique=True, return_indices=True
        )
        if not len(left):
            return
        made, found = derived.ohlc[left], given.ohlc[right]
        difference = np.abs(found - made) / np.abs(made)
        wrong = difference > TOLERANCE
        self.both += len(left)
        self.equal += int((~wrong.any(axis=1)).sum())
        self.largest = max(self.largest, float(difference.max()))
        if self.first is None and wrong.any():
            row, column = map(int, np.argwhere(wrong)[0])
            self.first = {
                "open_time": int(given.open_time[right[row]]),
                "field": FIELDS[column],
                "given": float(found[row, column]),
                "derived": float(made[row, column]),
            }


def consistency(base: BarSeries, given: BarSeries, timeframe: str, session: Session | None) -> dict[str, Any]:
    """Compare given bars with those derived from the base, in blocks: memory does not grow with the series.

    Bars belong together that are over at the same time. Returns {"timeframe", "both", "equal", "different", "first":
    {"open_time", "field", "given", "derived"} or None, "largest_relative_difference", "only_given", "only_derived",
    "beyond_base", "shift"}. `beyond_base` counts given bars outside the span of the base, which nothing can be said
    of; they are not among `only_given`. `shift` is −1 or 1 where most bars differ but would agree one bar earlier or
    later, else 0.
    """
    length = timeframe_ns(timeframe)
    pairs = {step: _Pairs(step * length) for step in (0, -1, 1)}
    derived_count = 0
    for block in derive_bars(base.blocks(), timeframe, session):
        derived_count += len(block.close_time)
        first, last = int(block.close_time[0]) - length, int(block.close_time[-1]) + length
        nearby = given.between(given.completed_by(first - 1), given.completed_by(last))
        for one in pairs.values():
            one.add(block, nearby)
    same = pairs[0]
    inside = given.completed_by(base.last_close) - given.completed_by(base.first_open)
    better = max((pairs[-1], pairs[1]), key=lambda one: one.equal)
    shifted = same.equal < same.both / 2 and better.both > 0 and better.equal > 0.9 * better.both
    return {
        "timeframe": timeframe,
        "both": same.both,
        "equal": same.equal,
        "different": same.both - same.equal,
        "first": same.first,
        "largest_relative_difference": same.largest,
        "only_given": inside - same.both,
        "only_derived": derived_count - same.both,
        "beyond_base": len(given) - inside,
        "shift": better.shift // length if shifted else 0,
    }


def describe(report: dict[str, Any], symbol: str) -> str:
    """One line for people."""
    name = f"{symbol} {report['timeframe']}"
    counted = {
        "missing from the file": report["only_derived"],
        "only in the file": report["only_given"],
        "outside the span of the base bars": report["beyond_base"],
    }
    besides = "".join(f"; {count:,} {what}" for what, count in counted.items() if count)
    if not report["both"]:
        return f"{name}: no given bar is over when a bar made of the base bars is{besides}"
    if not report["different"]:
        return f"{name}: all {report['both']:,} given bars equal those made of the base bars{besides}"
    first, largest = report["first"], report["largest_relative_difference"]
    line = (
        f"{name}: {report['different']:,} of {report['both']:,} given bars differ from those made of the base bars, by "
        f"up to {largest:.2g} of the price; the first opens at {format_time(first['open_time'])}, with "
        f"{first['field']} {first['given']:.9g} given and {first['derived']:.9g} made{besides}"
    )
    if report["shift"]:
        earlier = report["shift"] < 0
        line += (
            f". They would agree one bar {'earlier' if earlier else 'later'}: the time stamps of this file seem to "
            f"mark the {'ends' if earlier else 'beginnings'} of its bars, where data.source.label takes them for the "
            f"{'beginnings' if earlier else 'ends'}"
        )
    return line
