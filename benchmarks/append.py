"""One percent more: what building again costs when a file of as many bars joins those of every symbol.

Training ends at a stated instant, in the past. Whole processes: a build of the past; the further files appended to its
store; a build of all from scratch; and one that finds everything done, which tells what starting takes. The second and
the third must make the same entries, to the MD5 of every array. Then both again, several times and in turns, each in
a process that has started: all modules are imported and all kernels loaded. Nothing is removed until all is measured:
ext4 is slow to make files for minutes after others were removed. A million rows take some GB of disk.
"""

import argparse
import os
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks import measure
from benchmarks.universe import contents

YEAR = 372_000  # bars of a currency pair, and of a file
CASES = ((1, YEAR), (1, 3_100_000), (1, 12_000_000), (8, 5 * YEAR), (100, 20_000))  # symbols, rows of each
OVERRIDES = (
    "data.timeframes=[m1,m5,m15,m30,h1,h4]",
    "data.window.seq_len={m1: 64, m5: 64, m15: 64, m30: 64, h1: 32, h4: 8}",
    "data.universe.failing=error",
)


def split(rows: int) -> str:
    """Where training ends: after two thirds of a year, or of two weeks."""
    return f"data.split={{val_fraction: null, train_end: 2024-{'09-01' if rows >= YEAR else '01-15'}, embargo: 1d}}"


def build(data: Path, store: Path, end: str) -> measure.Ended:
    command = [measure.ROOT / "bin/build-cache", "--config", "configs/universe.yaml", *OVERRIDES, end]
    return measure.run([*command, "--data-dir", data, "--store", store])


def build_started(data: Path, store: Path, end: str) -> tuple[float, float]:
    """Seconds and CPU seconds."""
    python = measure.ROOT / ".venv/bin/python"
    ended = measure.run([python, "-m", "benchmarks.append_process", data, store, *OVERRIDES, end])
    seconds, cpu = map(float, ended.output.split())
    return seconds, cpu


def write(table: pa.Table, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, row_group_size=131_072)


def stages(ended: measure.Ended) -> str:
    """Seconds by stage, as the build says."""
    return next((x.split("stage: ")[1] for x in ended.output.splitlines() if "seconds by stage" in x), "")


def sources(folder: Path, symbols: int, rows: int) -> tuple[Path, Path]:
    """Folders with the files of the past, and with those that join them: a hundredth as many bars."""
    past, more = folder / "past", folder / "more"
    measure.run(
        [measure.ROOT / "bin/simulate", "--out", folder / "all", "--symbols", symbols, "--rows", rows + rows // 100]
    )
    for path in sorted((folder / "all").rglob("*.parquet")):
        bars, name = pq.read_table(path), path.relative_to(folder / "all").with_suffix("")
        for at in range(0, rows, YEAR):
            write(bars.slice(at, min(YEAR, rows - at)), past / f"{name}-{at // YEAR}.parquet")
        write(bars.slice(rows), more / f"{name}-more.parquet")
    return past, more


def started(folder: Path, past: Path, end: str, repeats: int) -> list[tuple[tuple[float, float], ...]]:
    """(1 % more, from scratch), each (seconds, CPU seconds), in turns. `folder`/before is the store before it."""
    rounds = []
    for number in range(repeats):
        again, anew = folder / f"again-{number}", folder / f"anew-{number}"
        shutil.copytree(folder / "before", again, copy_function=os.link)  # entries never change
        os.sync()
        appended = build_started(past, again, end)
        os.sync()
        rounds.append((appended, build_started(past, anew, end)))
    return rounds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, nargs="+", default=range(len(CASES)), metavar="N", help=f"of {CASES}")
    parser.add_argument("--repeats", type=int, default=3, metavar="N", help="in a process that has started (3)")
    args = parser.parse_args()
    print(measure.environment("numpy", "numba", "pyarrow"))
    table, lines = [], []
    with measure.scratch() as scratch_folder:
        for symbols, rows in (CASES[number] for number in args.cases):
            folder = scratch_folder / f"{symbols}x{rows}"
            (past, more), end = sources(folder, symbols, rows), split(rows)
            build(past, folder / "store", end)
            shutil.copytree(folder / "store", folder / "before", copy_function=os.link)
            shutil.copytree(more, past, dirs_exist_ok=True)
            appended = build(past, folder / "store", end)
            nothing = build(past, folder / "store", end)
            scratch = build(past, folder / "whole", end)
            same = contents(folder / "whole").items() <= contents(folder / "store").items()
            what = f"{symbols} × {rows:,} rows"
            for name, ended in (("1 % more", appended), ("nothing to do", nothing), ("from scratch", scratch)):
                table.append((f"{what}: {name}", f"{ended.seconds:.2f}", f"{ended.cpu_seconds:.2f}", stages(ended)))
            rounds = started(folder, past, end, args.repeats)
            for number, name in enumerate(("1 % more", "from scratch")):
                seconds = [measure.median([one[number][of] for one in rounds]) for of in (0, 1)]
                table.append((f"{what}, started: {name}", *(f"{x:.3f}" for x in seconds), ""))
            whole = appended.seconds / scratch.seconds
            clock, cpu = (measure.ratio(*zip(*((a[of], b[of]) for a, b in rounds), strict=True)) for of in (0, 1))
            lines.append(
                f"{what}: whole processes {whole:.1%} of from scratch ({measure.verdict(whole, at_most=0.05)}), "
                f"without starting {clock:.1%} ({measure.verdict(clock, at_most=0.05)}), of its CPU seconds {cpu:.1%}; "
                f"the same bytes: {'yes' if same else 'NO'}"
            )
    print()
    measure.print_table(("", "s", "CPU s", "seconds by stage"), table)
    print("", *lines, sep="\n")


if __name__ == "__main__":
    main()
