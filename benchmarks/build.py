"""Building a dataset of seven timeframes, whole processes: seconds and peak memory.

cold    bin/build-cache into a new store, its kernels compiled before (the source file is in the page cache)
first   the same on a machine that has never run it: the kernels are compiled
rerun   the same again, when all is in the store
pandas  benchmarks/pandas_build.py: the same dataset by pandas and zarr-python, without checks, hashes or fsync

then cold and pandas again on about three times the rows. The pandas result is compared with the store, once.
"""

import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks import measure
from benchmarks.measure import Ended

Round = dict[str, Ended]
LARGE = 9 / 3.1


def one_round(data: Path, folder: Path, compiled: Path, subjects: Sequence[str], check: bool = False) -> Round:
    """Run each subject once, in turn; nothing stays but the kernels in `compiled`."""
    store, fresh, by_pandas = folder / "store", folder / "fresh", folder / "pandas"
    build = [measure.ROOT / "bin/build-cache", "--config", "configs/demo.yaml", *measure.OVERRIDES, "--data-dir", data]
    script = [sys.executable, "-m", "benchmarks.pandas_build", data / measure.FILE_NAME, by_pandas]
    commands = {
        "cold": ([*build, "--store", store], compiled),
        "rerun": ([*build, "--store", store], compiled),
        "first": ([*build, "--store", fresh / "store"], fresh / "compiled"),
        "pandas": ([*script, "--check", store] if check else script, compiled),
    }
    ended = {}
    for name in subjects:
        os.sync()  # what the one before left to be written is not this one's to wait for
        command, kernels = commands[name]
        ended[name] = measure.run(command, NUMBA_CACHE_DIR=str(kernels))
    for path in (store, fresh, by_pandas):
        shutil.rmtree(path, ignore_errors=True)
    return ended


def row(label: str, runs: list[Round], name: str, bar: str = "", peak_bar: str = "") -> tuple[str, ...]:
    seconds = [ended[name].seconds for ended in runs]
    relative = measure.ratio(seconds, [ended["cold"].seconds for ended in runs])
    cpu = measure.median([ended[name].cpu_seconds for ended in runs])
    times = (f"{measure.median(seconds):.2f}", f"{min(seconds):.2f}", f"{cpu:.2f}")
    return label, *times, f"{relative:.2f}", bar, f"{peak_mb(runs, name):.0f}", peak_bar


def peak_mb(runs: list[Round], name: str) -> float:
    return measure.median([ended[name].peak_mb for ended in runs])


def main() -> None:
    parser = measure.parser(__doc__, repeats=7)
    parser.add_argument("--large-data", type=Path, metavar="DIR", help="as --data, for the three times larger run")
    args = parser.parse_args()
    print(measure.environment("numpy", "numba", "pyarrow", "zarr", "pandas"))
    with measure.scratch() as folder:
        data = measure.data_dir(args.data, args.rows, folder)
        large_data = measure.data_dir(args.large_data, round(args.rows * LARGE), folder)
        compiled = folder / "compiled"
        one_round(data, folder, compiled, ("cold", "pandas"), check=True)  # and the kernels are compiled
        names = ("cold", "rerun", "first", "pandas")
        rounds = [one_round(data, folder, compiled, names) for _ in range(args.repeats)]
        large = [one_round(large_data, folder, compiled, ("cold", "pandas")) for _ in range(max(args.repeats // 2, 1))]

    bars = {"cold": 1.5, "rerun": 0.7, "first": 5}
    verdicts = {
        name: measure.verdict(measure.median([ended[name].seconds for ended in rounds]), at_most)
        for name, at_most in bars.items()
    }
    peak, growth = peak_mb(rounds, "cold"), peak_mb(large, "cold") / peak_mb(rounds, "cold")
    print("pandas made the same dataset: windows, bars and splits equal, features to 1e-4\n")
    rows = [
        row("cold", rounds, "cold", verdicts["cold"], measure.verdict(peak, 450)),
        row("first run ever", rounds, "first", verdicts["first"]),
        row("rerun", rounds, "rerun", verdicts["rerun"]),
        row("pandas + zarr", rounds, "pandas"),
        row("2.9 × the rows: cold", large, "cold"),
        row("2.9 × the rows: pandas + zarr", large, "pandas"),
    ]
    measure.print_table(("", "s", "best s", "CPU s", "× cold", "bar", "peak MB", "bar"), rows)
    print(f"\nPeak memory, 2.9 × the rows: {growth:.2f} × as much; {measure.verdict(growth, 1.3)}")


if __name__ == "__main__":
    main()
