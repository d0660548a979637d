"""What the benchmarks share: simulated data, processes with their seconds and peak memory, medians, tables.

Only the standard library is imported here. Linux counts what the parent held when it started a process into that
process's peak, so a benchmark that measures memory must stay small itself.
"""

import argparse
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
ROWS = 3_100_000
FILE_NAME = "simfx_m1.parquet"
TIMEFRAMES = ("m1", "m5", "m15", "m30", "h1", "h4", "d")
SEQ_LEN = 64
PAGE = ROOT / "docs/benchmarks.md"
OVERRIDES = (f"data.timeframes=[{','.join(TIMEFRAMES)}]", f"data.window.seq_len={SEQ_LEN}")


@dataclass(frozen=True)
class Ended:
    """A process that ended well: wall and CPU seconds, peak resident memory in MB (10⁶ bytes), what it printed."""

    seconds: float
    cpu_seconds: float
    peak_mb: float
    output: str


def parser(text: str, repeats: int, smallest: int = 600_000) -> argparse.ArgumentParser:
    """--rows, --data and --repeats. The smallest number of rows is what a 64-day window in both splits needs."""
    made = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--rows", type=int, default=ROWS, metavar="N", help=f"base bars, at least {smallest} ({ROWS})")
    made.add_argument("--data", type=Path, metavar="DIR", help=f"folder with {FILE_NAME}; its rows count, not --rows")
    made.add_argument("--repeats", type=int, default=repeats, metavar="N", help=f"rounds of each ({repeats})")
    return made


def environment(*packages: str) -> str:
    """Machine, cores and versions in a line."""
    cpu = platform.processor() or platform.machine()
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []:
        if line.startswith("model name"):
            cpu = line.split(":", 1)[1].strip()
            break
    known = ", ".join(f"{name} {version(name)}" for name in packages)
    load = f"load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    return f"{cpu}, {len(os.sched_getaffinity(0))} cores, {load} · Python {platform.python_version()}, {known}"


def run(command: Sequence[Any], **environ: str) -> Ended:
    """Run a process from the project's root. Exits with its output when it fails."""
    env = os.environ | {"PYTHONPATH": str(ROOT)} | environ
    with tempfile.TemporaryFile() as output:
        began = time.perf_counter()
        process = subprocess.Popen(list(map(str, command)), cwd=ROOT, env=env, stdout=output, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - began
        process.returncode = os.waitstatus_to_exitcode(status)
        output.seek(0)
        printed = output.read().decode()
    if process.returncode:
        sys.exit(f"{' '.join(map(str, command))} failed:\n{printed}")
    peak = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return Ended(seconds, usage.ru_utime + usage.ru_stime, peak / 1e6, printed)


def watch(command: Sequence[Any], **environ: str) -> list[tuple[float, str]]:
    """What a process printed and when: (seconds since its start, text) for every chunk, and at last its end ("")."""
    env = os.environ | {"PYTHONPATH": str(ROOT)} | environ
    read, write = os.pipe()
    began = time.perf_counter()
    process = subprocess.Popen(list(map(str, command)), cwd=ROOT, env=env, stdout=write, stderr=subprocess.STDOUT)
    os.close(write)
    chunks = []
    while chunk := os.read(read, 65536):
        chunks.append((time.perf_counter() - began, chunk.decode(errors="replace")))
    code = process.wait()
    chunks.append((time.perf_counter() - began, ""))
    os.close(read)
    if code:
        sys.exit(f"{' '.join(map(str, command))} failed:\n{''.join(text for _, text in chunks)}")
    return chunks


@contextmanager
def scratch() -> Iterator[Path]:
    """A temporary folder."""
    with tempfile.TemporaryDirectory(prefix="headstart-") as folder:
        yield Path(folder)


def drop_from_page_cache(store: Path) -> None:
    """Let the system forget the bodies of all arrays; what others have mapped, or is not on the disk yet, stays."""
    for path in store.glob("*/*/*/c.*"):
        descriptor = os.open(path, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def data_dir(given: Path | None, rows: int, folder: Path) -> Path:
    """The folder with simulated bars: the one given, or a new one inside `folder`."""
    if given is None:
        given = folder / f"bars-{rows}"
        run([ROOT / "bin/simulate", "--out", given, "--rows", rows, "--seed", 1])
    return given.resolve()


def build_store(data: Path, store: Path, config: str = "demo", overrides: Sequence[str] = OVERRIDES) -> Path:
    """Build a dataset of configs/`config`.yaml into `store`."""
    build = [ROOT / "bin/build-cache", "--config", f"configs/{config}.yaml", "--data-dir", data, "--store", store]
    run([*build, *overrides])
    return store


def interleave(subjects: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, list[float]]:
    """Seconds of every subject, `repeats` times; the subjects take turns, so that all meet the same weather."""
    seconds: dict[str, list[float]] = {name: [] for name in subjects}
    for _ in range(repeats):
        for name, subject in subjects.items():
            began = time.perf_counter()
            result = subject()
            seconds[name].append(time.perf_counter() - began)
            del result
    return seconds


def median(values: Sequence[float]) -> float:
    return statistics.median(values)


def ratio(slow: Sequence[float], fast: Sequence[float]) -> float:
    """Median over the rounds of slow / fast, each pair from the same round."""
    return statistics.median(s / f for s, f in zip(slow, fast, strict=True))


def verdict(value: float, at_most: float | None = None, at_least: float | None = None) -> str:
    """`≤ 1.5 met`, or MISSED."""
    limit = f"≤ {at_most:g}" if at_most is not None else f"≥ {at_least:g}"
    met = value <= at_most if at_most is not None else value >= (at_least or 0)
    return f"{limit} {'met' if met else 'MISSED'}"


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Columns as wide as needed, the first flush left."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    for row in (header, *rows):
        cells = [
            cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        ]
        print("  ".join(cells).rstrip())


def replace_section(page: Path, title: str, text: str) -> None:
    """Put a section into a Markdown page, in place of an earlier one of that title."""
    old = page.read_text() if page.exists() else "# Benchmarks\n"
    before, _, rest = old.partition(f"## {title}\n")
    _, mark, after = rest.partition("\n## ")
    page.write_text(f"{before.rstrip()}\n\n## {title}\n\n{text}\n" + (f"\n## {after}" if mark else ""))
