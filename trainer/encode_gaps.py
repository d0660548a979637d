"""Whether frames of bars lack some, or hold one that is not finished, as far as they can show it of each other.

A bar proves that the bars of longer timeframes around it exist, and a bar that was derived in training proves that its
time holds bars of shorter ones. Where no bar of any frame says otherwise, a gap is a time without trading.
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from cache.timeframes import format_ns, format_time, timeframe_ns
from configs.errors import UserError
from pipeline.bars import Block, bar_times
from pipeline.derive import bucket_bounds
from trainer.encode_inputs import Inputs

_HOUR_NS = timeframe_ns("h1")
Labels = NDArray[np.int64]


def check_bars(inputs: Inputs, timeframe: str, found: Mapping[str, Block], finer: Mapping[str, Labels]) -> None:
    """Check the bars `found[timeframe]` beside those of shorter timeframes. Raises UserError as Encoder.encode.

    Args:
        inputs: of the run.
        timeframe: not the base.
        found: the bars that are needed, the base first.
        finer: all times of the frames of shorter timeframes that can prove something: the base, and those that were
            derived in training. They may reach further back than what is needed; that part is not checked otherwise.
    """
    bars, t = found[timeframe], int(found[inputs.base].close_time[-1])
    _check_finished(inputs, timeframe, bars, t)
    for name, label in finer.items():
        _check_present(inputs, timeframe, bars, name, label, t)
        if timeframe not in inputs.from_files:
            _check_filled(timeframe, bars, name, found[name])
    last = int(bars.close_time[-1])
    age, longest = t - last, inputs.longest_gap[timeframe]
    if age > longest + timeframe_ns(timeframe) and min(int(label[0]) for label in finer.values()) > last:
        raise UserError(
            f"bars[{timeframe!r}] is stale: its last bar closed at {format_time(last)}, {format_ns(age)} before the "
            f"decision time {format_time(t)}, and in training the last one was never {format_ns(longest)} old; add "
            f"what is missing, or, if nothing is, {inputs.base} bars that reach back to it and show that"
        )


def _check_finished(inputs: Inputs, timeframe: str, bars: Block, t: int) -> None:
    unfinished = bars.close_time > t
    if unfinished.any():
        at = int(unfinished.argmax())
        raise UserError(
            f"bars[{timeframe!r}]: the bar that begins at {format_time(bars.open_time[at])} is unfinished: it closes "
            f"at {format_time(bars.close_time[at])}, after the decision time {format_time(t)}, at which the last "
            f"{inputs.base} bar closes; leave it out"
        )


def _check_present(inputs: Inputs, timeframe: str, bars: Block, finer: str, label: Labels, t: int) -> None:
    """Whether bars of a shorter timeframe, by their times, lie where there is none of this one.

    Bars from files may begin at other times than derived ones. So after the last one, it takes a shorter bar so old
    that any bar around it has closed.
    """
    label = label[np.searchsorted(label, bars.close_time[0]) :]  # what is unsorted is older than what was checked
    if not len(label):
        return
    open_time, close_time = bar_times(label, inputs.source, finer)
    before = np.searchsorted(bars.close_time, open_time, side="right")
    between = (before > 0) & (before < len(bars.close_time))
    following = bars.open_time[np.minimum(before, len(bars.open_time) - 1)]
    if (lacking := between & (close_time <= following)).any():
        at = int(lacking.argmax())
        k = int(before[at])
        raise UserError(
            f"bars[{timeframe!r}] lacks a bar: none closes between {format_time(bars.close_time[k - 1])} and "
            f"{format_time(bars.close_time[k])}, and {finer} bars from {format_time(open_time[at])} on show that one "
            f"did; add what is missing, or leave {timeframe} out to have it derived"
        )
    since = open_time[before == len(bars.close_time)]
    if not len(since):
        return
    first, last = int(since[0]), int(bars.close_time[-1])
    if timeframe in inputs.from_files:
        closed = first + timeframe_ns(timeframe) + (_HOUR_NS if timeframe == "d" else 0)  # a day has up to 25 hours
    else:
        closed = int(bucket_bounds(first, first, timeframe, inputs.source.session)[1])
    if closed <= t:
        raise UserError(
            f"bars[{timeframe!r}] is stale: its last bar closed at {format_time(last)}, and {finer} bars since "
            f"{format_time(first)} show that another had closed by the decision time {format_time(t)}; add what is "
            f"missing, or leave {timeframe} out to have it derived"
        )


def _check_filled(timeframe: str, bars: Block, finer: str, fine: Block) -> None:
    """Whether every bar that was made of shorter ones, and lies among them, overlaps one of them."""
    begun = np.searchsorted(fine.open_time, bars.close_time)
    ended = np.searchsorted(fine.close_time, bars.open_time, side="right")
    if (empty := (bars.open_time >= fine.open_time[0]) & (begun == ended)).any():
        at = int(empty.argmax())
        raise UserError(
            f"bars[{finer!r}] lacks bars: it has none from {format_time(bars.open_time[at])} to "
            f"{format_time(bars.close_time[at])}, and the {timeframe} bar of that time was made of some; add what is "
            "missing"
        )
