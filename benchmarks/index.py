"""Alignment: for every base bar, how many bars of each of seven timeframes had closed.

The same sorted int64 arrays in memory for all: the merge kernel as the build calls it, block by block, and into one
array for the whole series; np.searchsorted and pandas.merge_asof per timeframe; and what filling that array alone
costs. All answers are compared. `align` is the build's whole step from the store's files: reading, counting, and
choosing the windows.
"""

from collections import deque
from collections.abc import Iterator

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from benchmarks import measure
from cache.reader import Dataset, open_dataset
from cache.recipe import Recipe
from pipeline import kernels
from pipeline.align import Dropped, align
from pipeline.bars import BLOCK_ROWS
from pipeline.series import BarSeries

Closes = list[NDArray[np.int64]]
Ends = NDArray[np.int32]
KERNEL = "merge kernel, blocks"
RIVALS = ("np.searchsorted", "pandas.merge_asof")


def merge_blocks(closes: Closes, whole: Ends | None = None) -> Iterator[Ends]:
    base, *others = closes
    flat, offsets = np.concatenate(others), np.cumsum([0, *map(len, others)])
    pointers, skipped = np.zeros(len(closes), np.int64), np.zeros(len(others), np.int64)
    for start in range(0, len(base), BLOCK_ROWS):
        block = base[start : start + BLOCK_ROWS]
        ends = np.empty((len(block), len(closes)), np.int32) if whole is None else whole[start : start + BLOCK_ROWS]
        kernels.count_completed(block, flat, offsets, skipped, pointers, ends)
        yield ends


def merge_whole(closes: Closes) -> Ends:
    ends = np.empty((len(closes[0]), len(closes)), np.int32)
    deque(merge_blocks(closes, ends), maxlen=0)
    return ends


def search(closes: Closes) -> Ends:
    ends = np.empty((len(closes[0]), len(closes)), np.int32)
    for j, close in enumerate(closes):
        ends[:, j] = np.searchsorted(close, closes[0], side="right")
    return ends


def merge_asof(closes: Closes) -> Ends:
    ends = np.empty((len(closes[0]), len(closes)), np.int32)
    base = pd.DataFrame({"close_time": closes[0]})
    for j, close in enumerate(closes):
        bars = pd.DataFrame({"close_time": close, "ends": np.arange(1, len(close) + 1, dtype=np.int32)})
        ends[:, j] = pd.merge_asof(base, bars, on="close_time", direction="backward")["ends"].fillna(0)
    return ends


def fill(closes: Closes) -> Ends:
    ends = np.empty((len(closes[0]), len(closes)), np.int32)
    ends.fill(1)
    return ends


def whole_step(dataset: Dataset, bars: dict[str, BarSeries]) -> int:
    dropped = Dropped(np.zeros((len(bars), 3), np.int64))
    for _ in align(bars, Recipe.model_validate(dataset.recipe), dropped):
        pass
    return dropped.kept


def main() -> None:
    args = measure.parser(__doc__, repeats=7).parse_args()
    print(measure.environment("numpy", "pandas", "numba"))
    with measure.scratch() as folder:
        store = measure.build_store(measure.data_dir(args.data, args.rows, folder), folder / "store")
        dataset = open_dataset(store, "demo")
        inputs = next(iter(dataset.symbols.values())).windows.manifest["components"]["inputs"]
        bars = {name: BarSeries(store, inputs[name]) for name in dataset.timeframes}
        closes = [series.rows("close_time", 0, len(series)) for series in bars.values()]

        subjects = {
            KERNEL: lambda: deque(merge_blocks(closes), maxlen=0),
            "merge kernel, one array": lambda: merge_whole(closes),
            "np.searchsorted": lambda: search(closes),
            "pandas.merge_asof": lambda: merge_asof(closes),
            "filling one array": lambda: fill(closes),
            "align, from the store": lambda: whole_step(dataset, bars),
        }
        answer = np.concatenate(list(merge_blocks(closes)))
        for other in (merge_whole, search, merge_asof):
            assert np.array_equal(answer, other(closes)), other.__name__
        subjects["align, from the store"]()
        seconds = measure.interleave(subjects, args.repeats)

    print(f"{len(closes[0]):,} decision times × {len(closes)} timeframes, all answers equal\n")
    ratios = {name: measure.ratio(seconds[name], seconds[KERNEL]) for name in subjects}
    rows = [
        (
            name,
            f"{measure.median(seconds[name]) * 1e3:.1f}",
            f"{ratios[name]:.2f}",
            measure.verdict(ratios[name], at_least=15) if name in RIVALS else "",
        )
        for name in subjects
    ]
    measure.print_table(("", "ms", "× kernel", "bar"), rows)


if __name__ == "__main__":
    main()
