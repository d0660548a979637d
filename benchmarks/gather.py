"""Windows out of memory maps into batches, on one thread: float32 bytes produced a second, windows a second.

Seven streams of 64 bars × 6 features, windows at random over the whole series, new ones for every batch. All ways
copy the same windows from the same maps (pages touched before) and must give the same bytes:

gather        trainer.data.WindowSource.gather, as in training: index_select into reused buffers
fresh         the same into new tensors
fancy index   values[ends[:, None] + arange] in NumPy, which the batch is made of at once
np.stack      a slice a window and np.stack, torch.stack: what a Dataset and its collate function do
iloc, loc     a pandas slice a window, by row numbers, and by the time that the window was decided at

Last, gather on as many threads as PyTorch takes by itself; on a busy machine they wait for each other.
"""

from collections.abc import Callable

import numpy as np
import pandas as pd
import torch

from benchmarks import measure
from cache.reader import Dataset, open_dataset
from trainer.data import WindowSource

BATCHES = (64, 256, 1024)
SLOW = ("np.stack", "torch.stack", "iloc", "loc")
Batch = list[np.ndarray] | list[torch.Tensor]
Way = Callable[[torch.Tensor], Batch]


def make_ways(dataset: Dataset) -> tuple[dict[str, Way], int]:
    """Functions from window numbers [B] to one [B, L, F] a stream; and how many windows there are."""
    (entries,) = dataset.symbols.values()
    source = WindowSource(dataset, torch.device("cpu"))
    ends_WS, time_W = entries.windows.array("ends"), entries.windows.array("time")
    arrays = [stream.array("values") for stream in entries.streams.values()]
    for touched in (ends_WS, time_W, *arrays):
        touched.sum()
    tensors = [torch.from_numpy(array) for array in arrays]
    closes = [stream.array("close_time") for stream in entries.streams.values()]
    frames = [pd.DataFrame(a, pd.DatetimeIndex(c, copy=False), copy=False) for a, c in zip(arrays, closes, strict=True)]
    lengths = list(dataset.seq_lens.values())
    steps = [np.arange(-length, 0) for length in lengths]

    all_ends = torch.from_numpy(ends_WS)
    views = [tensor.unfold(0, length, 1).transpose(1, 2) for tensor, length in zip(tensors, lengths, strict=True)]

    def fresh(index: torch.Tensor) -> Batch:
        ends = all_ends.index_select(0, index).long()
        return [
            view.index_select(0, ends[:, j] - length)
            for j, (view, length) in enumerate(zip(views, lengths, strict=True))
        ]

    def fancy(index: torch.Tensor) -> Batch:
        ends = ends_WS[index.numpy()]
        return [array[ends[:, j, None] + step] for j, (array, step) in enumerate(zip(arrays, steps, strict=True))]

    def stack(index: torch.Tensor) -> Batch:
        samples = [
            [a[e - n : e] for a, e, n in zip(arrays, ends_WS[i].tolist(), lengths, strict=True)] for i in index.tolist()
        ]
        return [np.stack(windows) for windows in zip(*samples, strict=True)]

    def torch_stack(index: torch.Tensor) -> Batch:
        samples = [
            [a[e - n : e] for a, e, n in zip(tensors, ends_WS[i].tolist(), lengths, strict=True)]
            for i in index.tolist()
        ]
        return [torch.stack(windows) for windows in zip(*samples, strict=True)]

    def iloc(index: torch.Tensor) -> Batch:
        samples = [
            [f.iloc[e - n : e].to_numpy() for f, e, n in zip(frames, ends_WS[i].tolist(), lengths, strict=True)]
            for i in index.tolist()
        ]
        return [np.stack(windows) for windows in zip(*samples, strict=True)]

    def loc(index: torch.Tensor) -> Batch:
        samples = [
            [f.loc[:decided].iloc[-n:].to_numpy() for f, n in zip(frames, lengths, strict=True)]
            for decided in pd.DatetimeIndex(time_W[index.numpy()])
        ]
        return [np.stack(windows) for windows in zip(*samples, strict=True)]

    ways = {"gather": lambda index: source.gather(index).x, "fresh": fresh, "fancy index": fancy}
    return ways | {"np.stack": stack, "torch.stack": torch_stack, "iloc": iloc, "loc": loc}, len(ends_WS)


def on_threads(way: Way, threads: int) -> Way:
    def threaded(index: torch.Tensor) -> Batch:
        torch.set_num_threads(threads)
        batch = way(index)
        torch.set_num_threads(1)
        return batch

    return threaded


def time_ways(ways: dict[str, Way], windows: int, batch: int, repeats: int) -> dict[str, list[float]]:
    """Seconds a batch, of every way in every round: each on 20 batches of its own, the slow ones on 2."""
    draw = torch.Generator().manual_seed(batch)
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, way in ways.items():
            indices = [torch.randint(windows, (batch,), generator=draw) for _ in range(2 if name in SLOW else 20)]
            way(indices.pop())  # buffers for this size

            def all_of(way=way, indices=indices) -> None:
                for index in indices:
                    way(index)

            seconds[name].append(measure.interleave({name: all_of}, 1)[name][0] / len(indices))
    return seconds


def main() -> None:
    args = measure.parser(__doc__, repeats=9).parse_args()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    print(measure.environment("numpy", "torch", "pandas"))
    with measure.scratch() as folder:
        store = measure.build_store(measure.data_dir(args.data, args.rows, folder), folder / "store")
        dataset = open_dataset(store, "demo")
        ways, windows = make_ways(dataset)
        index = torch.randint(windows, (100,))
        answer = [part.clone().numpy() for part in ways["gather"](index)]
        for name, way in ways.items():
            for ours, theirs in zip(answer, way(index), strict=True):
                assert np.asarray(theirs).tobytes() == ours.tobytes(), name
        timings = {batch: time_ways(ways, windows, batch, args.repeats) for batch in BATCHES}
        threaded = time_ways({"gather": on_threads(ways["gather"], threads)}, windows, 256, args.repeats)["gather"]

    print(f"{windows:,} windows × {len(answer)} streams, all ways give the same bytes\n")
    rows = []
    for batch, seconds in timings.items():
        produced = batch * sum(part[0].nbytes for part in answer)
        for name, taken in seconds.items():
            rate = produced / measure.median(taken) / 1e9
            rows.append(
                (
                    f"batch {batch}: {name}",
                    f"{measure.median(taken) * 1e3:.3f}",
                    f"{rate:.2f}",
                    f"{batch / measure.median(taken):,.0f}",
                    f"{measure.ratio(taken, seconds['gather']):.1f}",
                    measure.verdict(rate, at_least=6) if (batch, name) == (256, "gather") else "",
                )
            )
    measure.print_table(("", "ms a batch", "GB/s", "windows/s", "× gather", "bar"), rows)
    print(f"\nbatch 256: gather on {threads} threads takes {measure.median(threaded) * 1e3:.3f} ms")


if __name__ == "__main__":
    main()
