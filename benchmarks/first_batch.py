"""From a store to a batch of windows in memory, by one reader; prints `imported` and `done`. For benchmarks/open.py."""

import argparse
import random
from pathlib import Path

BATCH, SEED = 256, 1


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("reader", choices=READERS)
    arguments.add_argument("store", type=Path, help="a store with the dataset demo")
    args = arguments.parse_args()
    batch = READERS[args.reader](args.store)
    assert all(len(windows) == BATCH for windows in batch)
    print("done", flush=True)


def imported() -> None:
    print("imported", flush=True)


def choose(windows: int) -> list[int]:
    return random.Random(SEED).sample(range(windows), BATCH)


def nothing(store: Path) -> list[list[int]]:
    imported()
    return [choose(1000)]


def with_maps(store: Path):
    import numpy as np

    from cache.reader import open_dataset

    imported()
    dataset = open_dataset(store, "demo")
    (entries,) = dataset.symbols.values()
    all_ends = entries.windows.array("ends")
    ends = all_ends[choose(len(all_ends))]
    return [
        stream.array("values")[ends[:, j, None] + np.arange(-length, 0)]
        for j, (stream, length) in enumerate(zip(entries.streams.values(), dataset.seq_lens.values(), strict=True))
    ]


def with_torch(store: Path):
    import torch

    from cache.reader import open_dataset
    from trainer.data import WindowSource

    imported()
    source = WindowSource(open_dataset(store, "demo"), torch.device("cpu"))
    return source.gather(torch.tensor(choose(source.val[-1] + 1))).x


def with_zarr(store: Path):
    import zarr

    from cache.reader import open_dataset

    imported()
    dataset = open_dataset(store, "demo")
    ((_, entries),) = dataset.symbols.items()
    all_ends = zarr.open_group(entries.windows.path, mode="r")["ends"]
    ends = all_ends.oindex[choose(all_ends.shape[0])]
    batch = []
    for j, (stream, length) in enumerate(zip(entries.streams.values(), dataset.seq_lens.values(), strict=True)):
        values = zarr.open_group(stream.path, mode="r")["values"]
        batch.append([values[end - length : end] for end in ends[:, j].tolist()])
    return batch


READERS = {"nothing": nothing, "maps": with_maps, "torch": with_torch, "zarr": with_zarr}

if __name__ == "__main__":
    main()
