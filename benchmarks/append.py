"""One day more: what building again costs when a file of 1,440 bars joins one year of them, and ten.

Training ends at a stated instant, in the files of the past. Three builds of whole processes: all from scratch; the day
appended to the store of the past; and, to compare with, all from scratch with the day. The second and the third must
make the same entries, to the MD5 of every array.
"""

import argparse
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks import measure
from benchmarks.universe import contents

YEAR, DAY = 372_000, 1_440  # bars of a currency pair
OVERRIDES = (
    'data.source.files={m1: "bars/*.parquet"}',
    "data.timeframes=[m1,m5,m15,m30,h1,h4]",
    "data.window.seq_len=64",
    "data.split={val_fraction: null, train_end: 2024-10-01, embargo: 1d}",
)


def build(data: Path, store: Path) -> measure.Ended:
    command = [measure.ROOT / "bin/build-cache", "--config", "configs/demo.yaml", *OVERRIDES]
    return measure.run([*command, "--data-dir", data, "--store", store])


def write(table: pa.Table, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, row_group_size=131_072)


def stages(ended: measure.Ended) -> str:
    """Seconds by stage, as the build says."""
    return next((x.split("stage: ")[1] for x in ended.output.splitlines() if "seconds by stage" in x), "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--years", type=int, nargs="+", default=[1, 10], metavar="N")
    args = parser.parse_args()
    print(measure.environment("numpy", "numba", "pyarrow"))
    table = []
    for years in args.years:
        with measure.scratch() as folder:
            rows = years * YEAR
            measure.run([measure.ROOT / "bin/simulate", "--out", folder, "--rows", rows + DAY])
            bars = pq.read_table(folder / measure.FILE_NAME)
            for year in range(years):
                write(bars.slice(year * YEAR, YEAR), folder / f"past/bars/{year}.parquet")
            build(folder / "past", folder / "warm")
            shutil.rmtree(folder / "warm")
            past = build(folder / "past", folder / "store")
            write(bars.slice(rows), folder / "past/bars/day.parquet")
            appended = build(folder / "past", folder / "store")
            scratch = build(folder / "past", folder / "whole")
            made, whole = contents(folder / "store"), contents(folder / "whole")
            same = whole.items() <= made.items()
            for name, ended in (("past", past), ("one day more", appended), ("from scratch", scratch)):
                share = f"{ended.seconds / scratch.seconds:.0%}"
                table.append((f"{years} × {YEAR:,} bars: {name}", f"{ended.seconds:.2f}", share, stages(ended)))
            table.append((f"  the same bytes: {'yes' if same else 'NO'}", "", "", ""))
    print()
    measure.print_table(("", "s", "of from scratch", "seconds by stage"), table)


if __name__ == "__main__":
    main()
