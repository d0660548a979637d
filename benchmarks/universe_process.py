"""One process on a dataset named `universe`; prints a JSON object. For benchmarks/universe_train.py.

first    milliseconds to open it and to have a first batch, after imports, and the memory that is the process's own
train    some steps of bin/train, and that memory at their end
order    what batches take from files that are not in the page cache, in an order, and how long
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks import measure
from cache.reader import open_dataset
from configs.loader import load_config
from trainer.batches import train_windows
from trainer.config import parse_trainer
from trainer.data import WindowSource
from trainer.reconstruct import reconstruct_task
from trainer.train_command import main as train

CPU = torch.device("cpu")
CONFIG = "configs/universe.yaml"


def own_mb() -> float:
    """Resident memory without pages of files, in MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) * 1024 / 1e6


def first(store: Path, batch: int) -> dict[str, float]:
    config = parse_trainer(load_config(CONFIG, [f"training.batch_size={batch}"]))
    began = time.perf_counter()
    dataset = open_dataset(store, "universe")
    opened = time.perf_counter()
    source = WindowSource(dataset, CPU)
    reconstruct_task(config, dataset, CPU)
    made = time.perf_counter()
    source.gather(train_windows(config.training, source, torch.tensor(0), torch.tensor(0)))
    ended = time.perf_counter()
    parts = {"open": opened - began, "source and task": made - opened, "batch": ended - made, "all": ended - began}
    return {name: seconds * 1e3 for name, seconds in parts.items()} | {"own MB": own_mb()}


def steps(store: Path, run: Path, overrides: list[str]) -> dict[str, float]:
    short = ["training.max_epochs=1", "training.steps_per_epoch=30", "training.val_windows=256"]
    train(["--config", CONFIG, "--store", str(store), "--run", str(run), *overrides, *short], standalone_mode=False)
    return {"own MB": own_mb()}


def order(store: Path, batches: int, block: str) -> dict[str, float]:
    overrides = ["training.batch_size=256", f"training.shuffle_block={block}"]
    config = parse_trainer(load_config(CONFIG, overrides)).training
    source = WindowSource(open_dataset(store, "universe"), CPU)
    measure.drop_from_page_cache(store)
    before, began = read_mb(), time.perf_counter()
    for batch in range(batches):
        source.gather(train_windows(config, source, torch.tensor(0), torch.tensor(batch)))
    return {"read MB": read_mb() - before, "seconds": time.perf_counter() - began}


def read_mb() -> float:
    """What came from disks for this process, in MB."""
    lines = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(lines["read_bytes"]) / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["first", "train", "order"])
    parser.add_argument("store", type=Path)
    parser.add_argument(
        "rest", nargs="*", help="first: batch size; train: run directory, overrides; order: batches, block"
    )
    args = parser.parse_args()
    found: dict[str, Any]
    if args.what == "first":
        found = first(args.store, int(args.rest[0]))
    elif args.what == "train":
        found = steps(args.store, Path(args.rest[0]), args.rest[1:])
    else:
        found = order(args.store, int(args.rest[0]), args.rest[1])
    print(json.dumps(found))


if __name__ == "__main__":
    main()
