"""What a certificate proves of all windows: that training and validation have no instant in common.

The bounds of the split are computed anew, differently from the code that made them. Times are int64 ns UTC.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from cache.recipe import Recipe
from cache.timeframes import duration_ns, format_time
from pipeline.certify_evidence import Evidence, Finding, blocks, taken_over
from pipeline.series import BarSeries
from pipeline.universe import held_out


def end_of_training(recipe: Recipe, symbols: Mapping[str, Evidence], claimed: int) -> int:
    """T0: the stated instant, or the close of the last of the first 1 − val_fraction of all base bars.

    In the second case `claimed` is confirmed if just so many bars have closed by then and fewer before; otherwise all
    closes are put in order.
    """
    if recipe.train_end_ns is not None:
        return recipe.train_end_ns
    assert recipe.split.val_fraction is not None
    shards = {entry.key: entry for one in symbols.values() for entry in one.bars[recipe.base].entries}
    wanted = max(int((1 - recipe.split.val_fraction) * sum(e.shape("close_time")[0] for e in shards.values())), 1)
    before = by_then = 0
    for entry in shards.values():
        closes = entry.array("close_time")  # one map at a time: the pages touched count as the process's memory
        before += int(np.searchsorted(closes, claimed, side="left"))
        by_then += int(np.searchsorted(closes, claimed, side="right"))
    if before < wanted <= by_then:
        return claimed
    return int(np.partition(np.concatenate([e.array("close_time") for e in shards.values()]), wanted - 1)[wanted - 1])


def check_purge(recipe: Recipe, symbols: Mapping[str, Evidence], splits: Mapping[str, Any], start: int) -> Finding:
    """Training knows nothing after T0 − embargo, and validation nothing before T0 = `start`."""
    found = Finding()
    cutoff = start - duration_ns(recipe.split.embargo)
    held = held_out(recipe, symbols)
    for part, field_, expected, what in (
        ("train", "until", cutoff, "training ends"),
        ("val", "from", start, "validation begins"),
        *([("hold_out", "from", start, "validation begins")] if held else []),
    ):
        if splits[part][field_] != expected:
            found.faults.append(
                f"{recipe.name}: {what} at {format_time(splits[part][field_])}, where recipe and bars put it at "
                f"{format_time(expected)}"
            )
    for symbol, evidence in symbols.items():
        count = evidence.windows.shape("time")[0]
        (first, stop), (begin, end) = (
            splits[part]["windows"][symbol] for part in ("train", "hold_out" if symbol in held else "val")
        )
        if symbol in held:
            for part in ("train", "val"):
                one, past = splits[part]["windows"][symbol]
                if one != past:
                    found.faults.append(f"{symbol}: held out, and yet {past - one:,} of its windows are in {part}")
        if not 0 <= first <= stop <= begin <= end <= count:
            found.faults.append(
                f"{symbol}: training takes windows {first:,} to {stop:,} and validation {begin:,} to {end:,} of "
                f"{count:,}; these ranges overlap or lie outside"
            )
            continue
        if evidence.proved and evidence.proved.ranges["train"] == (first, stop):
            trained = stop
        else:
            trained = first
        validated = begin
        if evidence.proved and evidence.proved.ranges["hold_out" if symbol in held else "val"][0] == begin:
            validated = min(max(begin, evidence.first), end)
        found.checked += stop - trained + end - validated
        latest = max((int(time.max()) for (time,) in blocks(evidence.windows, trained, stop, "time")), default=cutoff)
        if latest > cutoff:
            found.faults.append(
                f"{symbol} {recipe.base} at {format_time(latest)}: a training window is decided after training ends, "
                f"{format_time(cutoff)}"
            )
        known = len(found.faults)
        if end > validated:
            found.faults += _unpurged(symbol, recipe, evidence, (validated, end), start)
        if len(found.faults) == known:
            train = None if symbol in held else (first, stop)
            found.faults += _other_ranges(symbol, recipe, evidence, train, (begin, end), cutoff, start)
    found.detail = (
        f"{found.checked:,} windows: those for training are decided by {format_time(cutoff)}, and those for validation "
        f"hold no bar that opened before {format_time(start)}"
    ) + taken_over(symbols)
    return found


def _other_ranges(
    symbol: str,
    recipe: Recipe,
    evidence: Evidence,
    train: tuple[int, int] | None,
    val: tuple[int, int],
    cutoff: int,
    start: int,
) -> Iterator[str]:
    """Windows that could be in a part and are not."""
    count = evidence.windows.shape("time")[0]

    def late(window: int) -> bool:
        return int(evidence.windows.rows("time", window, window + 1)[0]) > cutoff

    def unseen(window: int) -> bool:
        ends = evidence.windows.rows("ends", window, window + 1)[0].tolist()
        first = {name: end - length for (name, length), end in zip(recipe.seq_lens.items(), ends, strict=True)}
        # the longest bars reach back furthest
        return all(_opened(evidence.bars[name], at) >= start for name, at in [*first.items()][::-1])

    known = [("training", train, (0, _first(late, count, train[1])))] if train else []
    for part, found, expected in (*known, ("validation", val, (_first(unseen, count, val[0]), count))):
        if found != expected:
            yield (
                f"{symbol}: {part} takes windows {found[0]:,} to {found[1]:,}, where recipe and bars give "
                f"{expected[0]:,} to {expected[1]:,}"
            )


def _opened(bars: BarSeries, row: int) -> int:
    """When a bar opened; long ago, where there is none."""
    return int(bars.rows("open_time", row, row + 1)[0]) if 0 <= row < len(bars) else -(2**62)


def _first(holds: Callable[[int], bool], count: int, likely: int) -> int:
    """The first of so many windows for which something holds that holds for all after it, too; `likely` is tried."""
    if (likely == count or holds(likely)) and (likely == 0 or not holds(likely - 1)):
        return likely
    return bisect_left(range(count), True, key=holds)


def _unpurged(symbol: str, recipe: Recipe, evidence: Evidence, val: tuple[int, int], start: int) -> Iterator[str]:
    fewest = []
    for time, ends in blocks(evidence.windows, *val, "time", "ends"):
        at = ends.argmin(axis=0)
        fewest.append((ends[at, range(len(at))], time[at]))
    counts, times = (np.stack(of_blocks) for of_blocks in zip(*fewest, strict=True))
    for column, (name, length) in enumerate(recipe.seq_lens.items()):
        block = int(counts[:, column].argmin())
        begins = int(counts[block, column]) - length
        opened = int(evidence.bars[name].rows("open_time", begins, begins + 1)[0]) if begins >= 0 else start
        if opened < start:
            yield (
                f"{symbol} {name} at {format_time(times[block, column])}: this validation window begins at "
                f"{format_time(opened)}, before validation does, {format_time(start)}, so it shares bars with training"
            )
