"""Training on many symbols: open and first batch, memory of the trainer, and what an order takes from the disk.

Simulated symbols, six timeframes (m1 to h4), each symbol scaled by itself. Every figure is of a process of its own
(benchmarks/universe_process.py), on a store of one symbol, of all, and of ten times as many, whose entries are links
to those of all under other keys. Memory is the process's own, without pages of files. For the orders the store's files
are dropped from the page cache before, which only works where nobody else holds them.
"""

import argparse
import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import measure
from cache.entries import open_entry
from cache.keys import Components
from cache.per_symbol import read_per_symbol
from cache.refs import read_ref
from cache.seal import canonical_json, sealed
from cache.writer import EntryWriter

OVERRIDES = (
    "data.timeframes=[m1,m5,m15,m30,h1,h4]",
    "data.window.seq_len={m1: 64, m5: 64, m15: 64, m30: 64, h1: 32, h4: 8}",
    "data.universe.failing=error",
    "data.features.statistics=symbol",
    "data.split.embargo=0s",
)
BATCHES, BLOCK = 150, 40_000
TIMES = 10


def build(data: Path, store: Path, *overrides: str) -> Path:
    command = [measure.ROOT / "bin/build-cache", "--config", "configs/universe.yaml", *OVERRIDES, *overrides]
    measure.run([*command, "--data-dir", data, "--store", store])
    return store


def child(*arguments: Any) -> dict[str, float]:
    ended = measure.run([sys.executable, "-m", "benchmarks.universe_process", *arguments], OMP_NUM_THREADS="1")
    found: dict[str, float] = json.loads(ended.output.splitlines()[-1])
    return found


def multiplied(store: Path, into: Path) -> Path:
    """A store with every symbol ten times: entries are linked under other keys, and only the dataset is written."""
    ref = read_ref(store, "universe")
    dataset = open_entry(store, "datasets", ref["dataset"])
    manifest = dict(dataset.manifest)

    def other(stage: str, key: str, copy: int) -> str:
        if not copy:
            link(store / stage / key, into / stage / key)
            return key
        new = hashlib.md5(f"{key}{copy}".encode(), usedforsecurity=False).hexdigest()
        link(store / stage / key, into / stage / new)
        return new

    symbols = manifest["components"]["inputs"]
    # names of copies sort behind those of simulated symbols, whose entries the trainer opens some of
    inputs = {
        f"copy {copy} of {symbol}" if copy else symbol: {
            "windows": other("windows", keys["windows"], copy),
            "streams": {tf: other("streams", key, copy) for tf, key in keys["streams"].items()},
        }
        for copy in range(TIMES)
        for symbol, keys in symbols.items()
    }
    components = Components("datasets", manifest["stage_version"], manifest["components"]["fields"], inputs)
    kept = {
        k: v
        for k, v in manifest.items()
        if k not in ("format", "stage", "stage_version", "key", "components", "arrays", "built")
    }
    with EntryWriter(into, components) as entry:
        for spec, values in read_per_symbol(dataset).arrays():
            entry.array(spec).append(np.concatenate([values] * TIMES))
        entry.publish(**kept)
    (into / "refs").mkdir()
    (into / "refs/universe.json").write_bytes(canonical_json(sealed({**ref, "dataset": components.key})))
    return into


def link(entry: Path, at: Path) -> None:
    """A symbolic link: what is read is the same."""
    at.parent.mkdir(parents=True, exist_ok=True)
    at.symlink_to(entry)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--symbols", type=int, default=500, metavar="N", help="symbols (500)")
    parser.add_argument("--rows", type=int, default=12_000, metavar="N", help="base bars a symbol (12,000)")
    parser.add_argument("--repeats", type=int, default=5, metavar="N", help="processes a figure (5)")
    args = parser.parse_args()
    print(measure.environment("torch", "numpy"))
    with measure.scratch() as folder:
        data = folder / "bars"
        simulate = [measure.ROOT / "bin/simulate", "--symbols", args.symbols, "--rows", args.rows]
        measure.run([*simulate, "--out", data])
        symbol = sorted(path.name for path in (data / "universe").iterdir())[0]
        only = f"data.source.symbols=[{symbol}]"
        stores = {1: build(data, folder / "one", only), args.symbols: build(data, folder / "all")}
        stores[args.symbols * TIMES] = multiplied(stores[args.symbols], folder / "many")
        firsts = {n: [child("first", store, 256) for _ in range(args.repeats)] for n, store in stores.items()}
        own = {}
        for n, store in stores.items():
            for repeat in range(args.repeats):
                overrides = (*OVERRIDES, *([only] if n == 1 else []))
                trained = child("train", store, folder / f"run-{n}-{repeat}", *overrides)
                own.setdefault(n, []).append(trained["own MB"])
        orders = {
            block: [child("order", stores[args.symbols], BATCHES, block) for _ in range(args.repeats)]
            for block in ("null", BLOCK)
        }

    print(
        f"\n{args.rows:,} rows a symbol; medians of {args.repeats} processes; a batch of 256 windows of all symbols\n"
    )
    rows = []
    for n, found in firsts.items():
        middle = {name: measure.median([one[name] for one in found]) for name in found[0]}
        bar = {args.symbols: 100, args.symbols * TIMES: 1000}.get(n)
        rows.append(
            (
                f"{n:,} symbols",
                *(f"{middle[name]:.1f}" for name in ("open", "source and task", "batch", "all")),
                measure.verdict(middle["all"], at_most=bar) if bar else "",
                f"{measure.median(own[n]):.0f}",
                f"{measure.median(own[n]) / measure.median(own[1]):.2f}",
            )
        )
    header = ("", "open ms", "source, task ms", "batch ms", "all ms", "bar", "trainer MB", "× one symbol")
    measure.print_table(header, rows)
    growth = measure.median(own[args.symbols]) / measure.median(own[1])
    print(f"\nmemory of the trainer on {args.symbols} symbols: {measure.verdict(growth, at_most=1.1)}")
    print(f"\n{BATCHES} batches of 256 from files that are not in the page cache:")
    for block, found in orders.items():
        read, seconds = (measure.median([one[name] for one in found]) for name in ("read MB", "seconds"))
        name = "random" if block == "null" else f"blocks of {block:,}"
        print(f"  {name}: {read:.0f} MB read, {seconds:.2f} s, {read * 1e3 / BATCHES / 256:.1f} kB a window")


if __name__ == "__main__":
    main()
