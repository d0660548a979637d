"""One percent more: what building again costs when a file of as many bars joins those of every symbol.

Training ends at a stated instant, in the past. Whole processes: a build of the past; the further files appended to its
store; a build of all from scratch; and one that finds everything done, which tells what starting takes. The second and
the third must make the same entries, to the MD5 of every array. A million rows take some 400 MB of disk.
"""

import argparse
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks import measure
from benchmarks.universe import contents

YEAR = 372_000  # bars of a currency pair
CASES = ((1, 1), (1, 10), (8, 5))  # symbols, years of each
OVERRIDES = (
    "data.timeframes=[m1,m5,m15,m30,h1,h4]",
    "data.window.seq_len={m1: 64, m5: 64, m15: 64, m30: 64, h1: 32, h4: 8}",
    "data.universe.failing=error",
    "data.split={val_fraction: null, train_end: 2024-09-01, embargo: 1d}",
)


def build(data: Path, store: Path) -> measure.Ended:
    command = [measure.ROOT / "bin/build-cache", "--config", "configs/universe.yaml", *OVERRIDES]
    return measure.run([*command, "--data-dir", data, "--store", store])


def write(table: pa.Table, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, row_group_size=131_072)


def stages(ended: measure.Ended) -> str:
    """Seconds by stage, as the build says."""
    return next((x.split("stage: ")[1] for x in ended.output.splitlines() if "seconds by stage" in x), "")


def sources(folder: Path, symbols: int, years: int) -> tuple[Path, Path]:
    """Folders with the files of the past, and with those that join them: a hundredth as many bars."""
    past, more, rows = folder / "past", folder / "more", years * YEAR
    measure.run(
        [measure.ROOT / "bin/simulate", "--out", folder / "all", "--symbols", symbols, "--rows", rows + rows // 100]
    )
    for path in sorted((folder / "all").rglob("*.parquet")):
        bars, name = pq.read_table(path), path.relative_to(folder / "all").with_suffix("")
        for year in range(years):
            write(bars.slice(year * YEAR, YEAR), past / f"{name}-{year}.parquet")
        write(bars.slice(rows), more / f"{name}-{years}.parquet")
    shutil.rmtree(folder / "all")
    return past, more


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, nargs="+", default=range(len(CASES)), metavar="N", help=f"of {CASES}")
    args = parser.parse_args()
    print(measure.environment("numpy", "numba", "pyarrow"))
    table, lines = [], []
    for symbols, years in (CASES[number] for number in args.cases):
        with measure.scratch() as folder:
            past, more = sources(folder, symbols, years)
            build(past, folder / "store")
            shutil.copytree(more, past, dirs_exist_ok=True)
            appended = build(past, folder / "store")
            nothing = build(past, folder / "store")
            scratch = build(past, folder / "whole")
            same = contents(folder / "whole").items() <= contents(folder / "store").items()
            what = f"{symbols} × {years} year{'s' * (years > 1)}"
            for name, ended in (("1 % more", appended), ("nothing to do", nothing), ("from scratch", scratch)):
                table.append((f"{what}: {name}", f"{ended.seconds:.2f}", f"{ended.cpu_seconds:.2f}", stages(ended)))
            shares = (
                appended.seconds / scratch.seconds,
                (appended.seconds - nothing.seconds) / (scratch.seconds - nothing.seconds),
            )
            lines.append(
                f"{what}: {shares[0]:.1%} of from scratch ({measure.verdict(shares[0], at_most=0.05)}), without "
                f"starting {shares[1]:.1%} ({measure.verdict(shares[1], at_most=0.05)}); the same bytes: "
                f"{'yes' if same else 'NO'}"
            )
    print()
    measure.print_table(("", "s", "CPU s", "seconds by stage"), table)
    print("", *lines, sep="\n")


if __name__ == "__main__":
    main()
