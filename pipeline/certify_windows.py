"""Windows made again from bars whose future is different: the heart of the certificate.

A window at decision time t is made by the pipeline's own functions (derive_bars, align, compute_features, normalise)
from the bars around it alone, so that it costs milliseconds however long the series is.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cache.recipe import Recipe
from cache.timeframes import format_time, timeframe_ns
from pipeline import kernels
from pipeline.align import Dropped, align
from pipeline.bars import Block
from pipeline.certify_evidence import Evidence
from pipeline.certify_streams import Stretch, raw_features
from pipeline.derive import derive_bars


@dataclass(frozen=True)
class Moment:
    """A window to be made again."""

    symbol: str
    window: int


def draw_moments(
    recipe: Recipe,
    symbols: Mapping[str, Evidence],
    splits: Mapping[str, Any],
    samples: int,
    rng: np.random.Generator,
) -> list[Moment]:
    """About `samples` windows of all parts and symbols, none twice; all there are to prove, if so many are wanted.

    First come the first and the last of every part of as many symbols as may take half of them (one at least); then
    windows at which a bar of a longer timeframe has just closed, the ones before those, and any, in turn.
    """
    order = [list(symbols)[i] for i in rng.permutation(len(symbols))]
    ranges = {name: [(symbol, *part["windows"][symbol]) for symbol in order] for name, part in splits.items()}
    ranges = {
        name: [(symbol, max(first, symbols[symbol].first), stop) for symbol, first, stop in parts]
        for name, parts in ranges.items()
    }
    ranges = {name: [part for part in parts if part[2] > part[1]] for name, parts in ranges.items()}
    parts = [part for of_part in ranges.values() for part in of_part]
    if sum(stop - first for _, first, stop in parts) <= samples:
        return [Moment(symbol, window) for symbol, first, stop in parts for window in range(first, stop)]
    chosen: dict[Moment, None] = {}  # in order, none twice
    for of_part in ranges.values():
        for symbol, first, stop in of_part[: max(samples // 8, 1)]:
            chosen |= dict.fromkeys((Moment(symbol, first), Moment(symbol, stop - 1)))
    longer = recipe.timeframes[:0:-1] or [recipe.base]
    for turn in range(4 * samples):
        if len(chosen) >= samples:
            break
        symbol, first, stop = parts[turn % len(parts)]
        window = int(rng.integers(first, stop))
        turn //= len(parts)
        if turn % 3 < 2:
            name = longer[turn // 3 % len(longer)]
            window = _closing(symbols[symbol], recipe.timeframes.index(name), name, window) - turn % 3
        chosen[Moment(symbol, min(max(window, first), stop - 1))] = None
    return list(chosen)


def _closing(evidence: Evidence, column: int, name: str, window: int) -> int:
    """The next window after `window` at which a bar of a timeframe has just closed."""
    completed = int(evidence.windows.rows("ends", window, window + 1)[0, column])
    if not 0 <= completed < len(evidence.bars[name]):
        return window
    closed = int(evidence.bars[name].rows("close_time", completed, completed + 1)[0])
    return int(np.searchsorted(evidence.windows.array("time"), closed))


def check_moment(recipe: Recipe, evidence: Evidence, moment: Moment, rng: np.random.Generator) -> dict[str, list[str]]:
    """Make a window again from bars truncated, and from bars randomised, after its time; what differs, by check."""
    (t,), (row,) = (evidence.windows.rows(name, moment.window, moment.window + 1).tolist() for name in ("time", "ends"))
    ends: dict[str, int] = dict(zip(recipe.timeframes, row, strict=True))
    whence = _beginnings(recipe, evidence, ends)
    past = _past(recipe, evidence, t, whence)
    found = {}
    for check, what, futures in (
        ("truncation", "are cut off", {}),
        ("randomisation", "get other prices", _randomised_futures(recipe, evidence, t, rng)),
    ):
        differences = list(_differences(recipe, evidence, t, ends, whence, _bars(recipe, evidence, past, futures)))
        found[check] = [
            f"{moment.symbol} {name} at {format_time(t)}: the window changes when bars after it {what}: {difference}"
            for name, difference in differences
        ][:1]
    if any(found.values()):
        whole = _bars(recipe, evidence, past, _futures(recipe, evidence, t))
        for name, difference in _differences(recipe, evidence, t, ends, whence, whole):  # without any change, too
            what = f"{moment.symbol} {name} at {format_time(t)}: the window in the store is not what the bars give"
            return {check: [f"{what}: {difference}"] if faults else [] for check, faults in found.items()}
    return found


def _beginnings(recipe: Recipe, evidence: Evidence, ends: Mapping[str, int]) -> dict[str, int]:
    """The row of each series at which the bars begin from which a window is made: its length and a lookback before."""
    return {
        name: min(max(ends[name] - length - evidence.features(name).lookback, 0), len(evidence.bars[name]) - 1)
        for name, length in recipe.seq_lens.items()
    }


def _past(recipe: Recipe, evidence: Evidence, t: int, whence: Mapping[str, int]) -> dict[str, Block]:
    """What each timeframe's bars from row `whence` on are made of, as far as it closed by t."""
    opened = {name: int(evidence.bars[name].rows("open_time", row, row + 1)[0]) for name, row in whence.items()}
    sources = {name: _source(recipe, evidence, name) for name in recipe.timeframes}
    known = {}
    for source in set(sources.values()):  # each is read once
        earliest = min(opened[name] for name in sources if sources[name] == source)
        start = evidence.count_by(source, "open_time", earliest, side="left")
        known[source] = evidence.bars[source].between(start, evidence.count_by(source, "close_time", t))
    return {
        name: _cut(known[source], int(np.searchsorted(known[source].open_time, opened[name])), len(known[source].ohlc))
        for name, source in sources.items()
    }


def _source(recipe: Recipe, evidence: Evidence, timeframe: str) -> str:
    """The timeframe whose bars it is made of."""
    return recipe.base if evidence.derived(timeframe) else timeframe


def _randomised_futures(recipe: Recipe, evidence: Evidence, t: int, rng: np.random.Generator) -> dict[str, Block]:
    """Other bars after t."""
    return {name: _randomised(after, rng) for name, after in _futures(recipe, evidence, t).items()}


def _futures(recipe: Recipe, evidence: Evidence, t: int) -> dict[str, Block]:
    """Bars after t of the series that come from files: until any bar in progress at t is long over."""
    longest = timeframe_ns(recipe.timeframes[-1])
    futures = {}
    for name in recipe.timeframes:
        if not evidence.derived(name):
            known = evidence.count_by(name, "close_time", t)
            futures[name] = evidence.bars[name].between(known, known + 2 * longest // timeframe_ns(name) + 8)
    return futures


def _randomised(bars: Block, rng: np.random.Generator) -> Block:
    """Other prices, valid ones, and a third of the bars gone."""
    kept = rng.random(len(bars.ohlc)) < 2 / 3
    factor = rng.uniform(0.5, 2, (int(kept.sum()), 1))
    return Block(bars.open_time[kept], bars.close_time[kept], bars.ohlc[kept] * factor)


def _bars(
    recipe: Recipe, evidence: Evidence, past: Mapping[str, Block], futures: Mapping[str, Block]
) -> dict[str, Block]:
    """The bars of every timeframe, of those of the past and the `futures` of the timeframe it is made of."""
    made = {}
    for name in recipe.timeframes:
        source = _source(recipe, evidence, name)
        blocks = [block for block in (past[name], futures.get(source)) if block and len(block.ohlc)]
        made[name] = _joined(derive_bars(blocks, name, recipe.source.session) if source != name else blocks)
    return made


def _differences(
    recipe: Recipe,
    evidence: Evidence,
    t: int,
    ends: Mapping[str, int],
    whence: Mapping[str, int],
    bars: Mapping[str, Block],
) -> Iterator[tuple[str, str]]:
    """Make the window at t from bars: in which timeframes it is not what the store holds, and what differs."""
    window = recipe.window.model_copy(update={"stride": 1})  # it counts from the series' first bar, which is not here
    series = {name: Stretch(block) for name, block in bars.items()}
    dropped = Dropped(np.zeros((len(bars), 3), np.int64))
    found = [
        block_ends[block_time == t]
        for block_ends, block_time in align(series, recipe.model_copy(update={"window": window}), dropped)
    ]
    now = np.concatenate([np.empty((0, len(bars)), np.int32), *found])
    if len(now) != 1:
        yield recipe.base, "none can be made at this time any more"
        return
    for (name, length), end in zip(recipe.seq_lens.items(), now[0].tolist(), strict=True):
        if end + whence[name] != ends[name]:
            yield name, f"it ends with bar number {end + whence[name]:,}, and in the store with number {ends[name]:,}"
            continue
        made = _stream(evidence, name, _cut(bars[name], 0, end + 8))
        for array, values in made.items():
            stored = evidence.streams[name].rows(array, ends[name] - length, ends[name])
            again = values[end - length : end]
            if stored.tobytes() != again.tobytes():
                yield name, _difference(array, stored, again, evidence.features(name).columns)
                break


def _stream(evidence: Evidence, timeframe: str, bars: Block) -> dict[str, NDArray[Any]]:
    """The rows of a stream that stand on these bars."""
    features, statistics = evidence.features(timeframe), evidence.streams[timeframe].manifest["statistics"]
    mean, std = (np.array([statistics[kind][column] for column in features.columns]) for kind in ("mean", "std"))
    raw = raw_features(bars, features)
    values = np.empty(raw.shape, np.float32)
    kernels.normalise(raw, mean, std, 0, values, np.zeros_like(mean), np.zeros_like(mean))
    return {"close_time": bars.close_time, "close": bars.ohlc[:, 3], "values": values}


_NAMES = ("open_time", "close_time", "ohlc")
_NONE = Block(np.empty(0, np.int64), np.empty(0, np.int64), np.empty((0, 4)))


def _cut(bars: Block, start: int, stop: int) -> Block:
    return Block(*(getattr(bars, name)[start:stop] for name in _NAMES))


def _joined(blocks: Iterable[Block]) -> Block:
    parts = [_NONE, *blocks]
    return Block(*(np.concatenate([getattr(one, name) for one in parts]) for name in _NAMES))


def _difference(array: str, stored: NDArray[Any], made: NDArray[Any], columns: tuple[str, ...]) -> str:
    """Words for the first row in which two pieces of an array differ."""
    if stored.shape != made.shape:
        return f"its {array} has {len(made)} rows, not {len(stored)}"
    wrong = (stored != made) & ~((stored != stored) & (made != made))
    if not wrong.any():
        return f"its {array} differs in a sign of zero or a kind of NaN"
    at = np.argwhere(wrong)[0]
    bar = "its last bar" if at[0] == len(stored) - 1 else f"its bar {at[0] + 1} of {len(stored)}"
    name = columns[at[1]] if array == "values" else array
    then, now = (format_time(x[tuple(at)]) if array == "close_time" else f"{x[tuple(at)]:.6g}" for x in (stored, made))
    return f"{name} of {bar} is {now} in place of {then}"
