"""A universe of simulated symbols, whole processes: one thread, two threads, Dask with two workers.

All three must make the same dataset, to the MD5 of every array. From runs on half of the symbols, half of the rows, and
both, a cost model is fitted (CPU seconds = start + a · entries + b · rows) to foretell the largest run: processor time,
because seconds on the wall depend on how fast the disk confirms what was written. Every run begins with free memory,
and stores are removed at the end, but for those of the largest run: ext4 is slow to make files where many were just
removed. A million rows take 1 GB of disk.
"""

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import measure

OVERRIDES = (
    "data.timeframes=[m1,m5,m15,m30,h1,h4]",
    "data.window.seq_len={m1: 64, m5: 64, m15: 64, m30: 64, h1: 32, h4: 8}",
    "data.universe.failing=error",
)
WAYS = {
    "one thread": ["--workers", "1"],
    "two threads": ["--workers", "2"],
    "Dask, two workers": ["--scheduler", "local", "--workers", "2"],
}


def build(data: Path, store: Path, *options: str) -> measure.Ended:
    command = [measure.ROOT / "bin/build-cache", "--config", "configs/universe.yaml", *OVERRIDES]
    return measure.run([*command, "--data-dir", data, "--store", store, *options])


def contents(store: Path) -> dict[str, dict[str, str]]:
    """MD5s of all arrays, by entry."""
    found = {}
    for path in store.glob("*/[!.]*/zarr.json"):
        arrays: dict[str, Any] = json.loads(path.read_bytes())["attributes"]["arrays"]
        found[str(path.parent.relative_to(store))] = {name: array["md5"] for name, array in arrays.items()}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--symbols", type=int, default=40, metavar="N", help="symbols of the largest run (40)")
    parser.add_argument("--rows", type=int, default=100_000, metavar="N", help="base bars a symbol (100,000)")
    args = parser.parse_args()
    print(measure.environment("numpy", "numba", "pyarrow", "dask"))
    with measure.scratch() as folder:
        sizes = {}  # (symbols, rows) → folder of the sources
        few, short = args.symbols // 2, args.rows // 2
        for symbols, rows in ((few, short), (few, args.rows), (args.symbols, short), (args.symbols, args.rows)):
            sizes[symbols, rows] = folder / f"{symbols}-{rows}"
            simulate = [measure.ROOT / "bin/simulate", "--symbols", symbols, "--rows", rows]
            measure.run([*simulate, "--out", sizes[symbols, rows]])
        build(sizes[few, args.rows], folder / "warm")  # compiles the kernels, if they are not
        shutil.rmtree(folder / "warm")
        seconds: dict[str, dict[tuple[int, int], float]] = {}
        work: dict[str, dict[tuple[int, int], float]] = {}
        known: dict[tuple[int, int], dict[str, dict[str, str]]] = {}
        entries = {}
        table = []
        largest = (args.symbols, args.rows)
        for size, data in sizes.items():
            for number, (way, options) in enumerate(WAYS.items()):
                store = folder / f"store-{size[0]}-{size[1]}-{number}"
                ended = build(data, store, *options)
                same = known.setdefault(size, contents(store)) == contents(store)
                entries[size] = len(known[size])
                disk = sum(path.stat().st_size for path in store.rglob("*") if path.is_file())
                seconds.setdefault(way, {})[size] = ended.seconds
                work.setdefault(way, {})[size] = ended.cpu_seconds
                total = size[0] * size[1]
                table.append(
                    (
                        f"{size[0]} × {size[1]:,}, {way}",
                        f"{ended.seconds:.1f}",
                        f"{ended.cpu_seconds:.1f}",
                        f"{ended.seconds / total * 1e6:.2f}",
                        f"{disk / total:.0f}",
                        f"{ended.peak_mb:.0f}",
                        "yes" if same else "NO",
                    )
                )
                measure.drop_from_page_cache(store)
                if size == largest:
                    shutil.rmtree(store)
    print()
    header = ("", "s", "CPU s", "s a million rows", "bytes a row", "peak MB a process", "same bytes")
    measure.print_table(header, table)
    efficiency = seconds["two threads"][largest] / seconds["Dask, two workers"][largest]
    print(f"\nDask against threads: {efficiency:.2f}; {measure.verdict(efficiency, at_least=0.85)}")
    for way, of in work.items():
        known_runs = np.array([[1, entries[size], size[0] * size[1] / 1e6] for size in of])
        cost = np.linalg.solve(known_runs[:3], list(of.values())[:3])
        foretold = float(known_runs[3] @ cost)
        error = foretold / of[largest] - 1
        print(
            f"{way}: {cost[0]:.2f} s + {cost[1] * 1e3:.2f} ms an entry + {cost[2]:.2f} s a million rows foretells "
            f"{foretold:.1f} CPU s for {known_runs[3][1]:.0f} entries, measured {of[largest]:.1f}: {error:+.0%}; "
            f"{measure.verdict(abs(error), at_most=0.2)}"
        )


if __name__ == "__main__":
    main()
