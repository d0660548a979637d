"""One process of benchmarks/peers.py: prepares or reads windows in one of the ways of benchmarks/peer_loaders.py."""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.peer_loaders import NAME, PREPARE, READ
from benchmarks.peer_windows import SEQ_LEN, Batches, open_arrays

WARM_SECONDS = 0.5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("job", choices=("export", "prepare", "read"))
    parser.add_argument("way", choices=READ)
    parser.add_argument("arrays", type=Path)
    parser.add_argument("made", type=Path, help="what was prepared, or is to be; a store where the way is headstart")
    parser.add_argument("--windows", type=int, default=0, help="how many of them are written out")
    parser.add_argument("--batch", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=0)
    parser.add_argument("--began", type=float, default=0, help="time.monotonic() when the process was started")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.job == "export":
        export(args.made, args.arrays)
    elif args.job == "prepare":
        PREPARE[args.way](args.arrays, args.made, args.windows)
    else:
        print(json.dumps(timed(args.way, args.arrays, args.made, args.batch, args.seconds, args.began)))


def timed(way: str, arrays: Path, made: Path, batch: int, seconds: float, began: float) -> dict[str, Any]:
    """What a way costs this process.

    `first`, `first_cpu`: seconds from its start to the first batch, by the clock and of CPU. `rate`: windows a second
    of CPU, all threads and the kernel's part counted. `peak`: MB resident at the most. `private`: MB at the end, files
    that are mapped left out.
    """
    batches = READ[way](arrays, made, batch)
    numbers, x = next(batches)
    first, first_cpu = time.monotonic() - began, time.process_time()
    kept = numbers.clone(), [one.clone() for one in x]
    for _ in until(min(WARM_SECONDS, seconds), batches):
        pass
    start, count = time.process_time(), 0
    for numbers, _ in until(seconds, batches):
        count += len(numbers)
    rate = count / (time.process_time() - start)
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    peak, private = (int(status[field].split()[0]) * 1024 / 1e6 for field in ("VmHWM", "RssAnon"))
    check(arrays, *kept, batch)
    return {
        "first": first,
        "first_cpu": first_cpu,
        "rate": rate,
        "peak": peak,
        "private": private,
        "numpy": np.__version__,
    }


def until(seconds: float, batches: Batches) -> Batches:
    """Batches for so long, at least two."""
    end = time.perf_counter() + seconds
    yield next(batches)
    yield next(batches)
    while time.perf_counter() < end:
        yield next(batches)


def check(arrays: Path, numbers: torch.Tensor, x: list[torch.Tensor], batch: int) -> None:
    """Exit unless a batch is what the arrays hold of its windows, to 1e-6, each of them once and not in order."""
    values, ends = open_arrays(arrays)
    chosen = numbers.tolist()
    wrong = len(set(chosen)) != batch or chosen == sorted(chosen) or len(x) != len(values)
    for j, one in enumerate(x if not wrong else []):
        truth = np.stack([values[j][end - SEQ_LEN : end] for end in ends[chosen, j]])
        wrong |= one.dtype != torch.float32 or one.shape != truth.shape or np.abs(one.numpy() - truth).max() > 1e-6
    if wrong:
        sys.exit("the windows are not those that were asked for")


def export(store: Path, arrays: Path) -> None:
    """Write what the peers begin with: the normalised streams, their times, and where the training windows end."""
    from cache.reader import open_dataset  # not in the environments of the libraries

    dataset = open_dataset(store, NAME)
    ((symbol, entries),) = dataset.symbols.items()
    first, stop = dataset.splits["train"]["windows"][symbol]
    assert first == 0 and set(dataset.seq_lens.values()) == {SEQ_LEN}
    arrays.mkdir()
    np.save(arrays / "ends.npy", entries.windows.array("ends")[:stop])
    for j, stream in enumerate(entries.streams.values()):
        np.save(arrays / f"x{j}.npy", stream.array("values"))
        np.save(arrays / f"time{j}.npy", stream.array("close_time"))


if __name__ == "__main__":
    main()
