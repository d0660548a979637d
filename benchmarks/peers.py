"""Headstart beside other ways to read the same windows: shuffled, on one core, each a process of its own.

Bars by bin/simulate, six timeframes, windows of 64 bars. Headstart prepares them from the bars; all others begin with
what it made of them: normalised streams, and for every window the row at which it ends in each stream. None of them
aligns timeframes itself. Libraries are installed into environments of their own first (--environments), beside a build
of PyTorch without CUDA; where pip does not find that, set PIP_EXTRA_INDEX_URL to PyTorch's index of such builds.

    python -m benchmarks.peers          prints a table, and writes it into docs/benchmarks.md

How each way reads stands in benchmarks/peer_loaders.py.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import measure

TORCH = "torch==2.13.0+cpu"
BATCHES = (64, 256)
SLOW = 30  # seconds to the first batch: a way that takes longer is measured in one round only
OVERRIDES = ("data.name=peers", f"data.source.files={{m1: {measure.FILE_NAME}}}")
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "ARROW_NUM_THREADS"), "1")
QUIET = {"LITDATA_DISABLE_VERSION_CHECK": "1", "HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "ignore"}  # no network


@dataclass(frozen=True)
class Way:
    """A way to read windows; `written`: they are written out one by one, which the disk has no room for."""

    label: str
    shuffled: str = "all windows"
    packages: tuple[str, ...] = ()
    written: bool = False


WAYS = {
    "headstart": Way("Headstart"),
    "pandas": Way("pandas slices"),
    "memmap": Way("NumPy memmap, a window at a time"),
    "memmap_batches": Way("NumPy memmap, a batch at a time"),
    "tensors": Way("TensorDataset", written=True),
    "litdata": Way("LitData", "chunks, then in blocks of 256", ("litdata==0.2.76",), written=True),
    "streaming": Way(
        "MosaicML Streaming", "shards, each spread over 4,000,000", ("mosaicml-streaming==0.13.0",), written=True
    ),
    "webdataset": Way("WebDataset", "shards, then in a buffer of 1,000", ("webdataset==1.0.2",), written=True),
    "datasets": Way("HF datasets", packages=("datasets==5.2.0",), written=True),
    "xarray": Way("xarray", packages=("xbatcher==0.4.0", "xarray==2026.9.0", "zarr==3.1.6")),
    "xbatcher": Way(
        "xbatcher, a generator a timeframe", packages=("xbatcher==0.4.0", "xarray==2026.9.0", "zarr==3.1.6")
    ),
    "qlib": Way("Qlib, a TSDataSampler a timeframe", packages=("pyqlib==0.9.7",)),
}
Rounds = list[dict[Any, Any]]  # of one way: what each round found


def main() -> None:
    parser = measure.parser(__doc__, repeats=3, smallest=120_000)
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=WAYS, metavar="WAY", help=", ".join(WAYS))
    parser.add_argument("--windows", type=int, default=50_000, help="how many are written out, where they are")
    parser.add_argument("--seconds", type=float, default=2.0, help="how long each way reads (2)")
    parser.add_argument("--environments", type=Path, default=Path.home() / ".cache/headstart-peers", metavar="DIR")
    parser.add_argument("--page", type=Path, default=measure.PAGE, help="the page to write a section of")
    args = parser.parse_args()
    ways = [name for name in WAYS if name in ("headstart", *args.ways)]
    pythons, failed = install({name: WAYS[name].packages for name in ways}, args.environments.absolute())
    machine = measure.environment("numpy", "torch", "pandas")
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})  # inherited by every process from here on
    found: dict[str, Rounds] = {name: [] for name in pythons}
    with measure.scratch() as folder:
        data = measure.data_dir(args.data, args.rows, folder)
        arrays = folder / "arrays"
        measure.build_store(data, folder / "headstart", "production", OVERRIDES)
        loader(sys.executable, "export", "headstart", arrays, folder / "headstart")
        rows, windows = (count(arrays / name) for name in ("x0.npy", "ends.npy"))
        some = min(args.windows, windows)
        for number in range(args.repeats):
            for name in [name for name in found if name not in failed and not too_slow(found[name])]:
                try:
                    one = prepared(pythons[name], name, arrays, folder / name, some, data)
                    for batch in BATCHES:
                        one[batch] = read(pythons[name], name, arrays, folder / name, batch, args.seconds)
                except SystemExit as error:  # the way's process said why; the others go on
                    failed[name] = str(error).strip().splitlines()[-1]
                    print(f"{name}: {error}", file=sys.stderr)
                    continue
                found[name].append(one)
                print(f"round {number + 1}, {name}: {one}", file=sys.stderr)
    measured = {name: rounds for name, rounds in found.items() if name not in failed}
    told = "\n".join(verdicts(measured)), versions(measured, failed)
    text = "\n\n".join((method(machine, rows, windows, some, args.repeats), as_table(measured, windows / some), *told))
    print(text)
    measure.replace_section(args.page, "Peers, side by side", text)


def install(
    wanted: dict[str, tuple[str, ...]], folder: Path, beside: tuple[str, ...] = (TORCH,)
) -> tuple[dict[str, str], dict[str, str]]:
    """A Python for every way, and why there is none for some. Nothing is done for what is installed already."""
    pythons, failed = {}, {}
    for name, packages in wanted.items():
        if not packages:
            pythons[name] = sys.executable
            continue
        home = folder / packages[0]
        stamp, lines = home / "installed", "\n".join((*beside, *packages))
        if not stamp.exists() or stamp.read_text() != lines:
            print(f"installing {' '.join(packages)} into {home}", file=sys.stderr)
            shutil.rmtree(home, ignore_errors=True)
            subprocess.run([sys.executable, "-m", "venv", home], check=True)
            pip = [home / "bin/pip", "install", "-qq", "--disable-pip-version-check", *beside, *packages]
            done = subprocess.run(pip, capture_output=True, text=True)
            if done.returncode:
                failed[name] = done.stderr.strip().splitlines()[-1]
                continue
            stamp.write_text(lines)
        pythons[name] = str(home / "bin/python")
    return pythons, failed


def too_slow(rounds: Rounds) -> bool:
    return any(one[BATCHES[0]]["first"] > SLOW for one in rounds)


def loader(python: str, job: str, name: str, *more: Any) -> measure.Ended:
    """Run benchmarks/peer_process.py."""
    return measure.run([python, "-m", "benchmarks.peer_process", job, name, *more], **ONE_THREAD, **QUIET)


def prepared(python: str, name: str, arrays: Path, made: Path, windows: int, data: Path) -> dict[Any, Any]:
    """Prepare a way anew: seconds, and bytes on disk."""
    shutil.rmtree(made, ignore_errors=True)
    began = time.monotonic()
    if name == "headstart":
        measure.build_store(data, made, "production", OVERRIDES)
    else:
        loader(python, "prepare", name, arrays, made, "--windows", windows)
    seconds = time.monotonic() - began
    return {"prepare": seconds, "bytes": sum(path.stat().st_size for path in made.rglob("*") if path.is_file())}


def read(python: str, name: str, arrays: Path, made: Path, batch: int, seconds: float) -> dict[str, Any]:
    """What a process that reads found of itself: see `timed` in benchmarks/peer_process.py."""
    options = ("--batch", batch, "--seconds", seconds, "--began", time.monotonic())
    printed = loader(python, "read", name, arrays, made, *options).output.splitlines()
    result: dict[str, Any] = json.loads(next(line for line in reversed(printed) if line.startswith("{")))
    return result


def count(array: Path) -> int:
    """Rows of an .npy file, from its header."""
    with array.open("rb") as file:
        header = file.read(128).decode("latin-1")
    return int(header.split("'shape': (")[1].split(",")[0])


def spread(values: Sequence[float], form: str = ",.0f") -> str:
    """`median (lowest–highest)`, or the one value there is."""
    if len(values) == 1:
        return f"{values[0]:{form}} (once)"
    return f"{measure.median(values):{form}} ({min(values):{form}}–{max(values):{form}})"


def size(number: float) -> str:
    """Bytes in words."""
    return f"{number / 1e9:.1f} GB" if number >= 1e9 else f"{number / 1e6:.0f} MB"


def method(machine: str, rows: int, windows: int, some: int, rounds: int) -> str:
    lines = [
        f"{rows:,} simulated one-minute bars, six timeframes, {windows:,} training windows of {measure.SEQ_LEN} bars,",
        "6 features each. A batch is one float32 tensor a timeframe; every process checks its first one against the",
        "arrays. Headstart prepares from the file of bars (checks, features, alignment, certificate) and brings times,",
        "rows and closes along with a batch; the others begin with its finished streams and its alignment, which none",
        f"of them makes. New processes on one core, no workers, one thread, in turns: medians of {rounds} rounds",
        f"(lowest–highest); once where the first batch took more than {SLOW} s. That batch, of 64, counts from process",
        "start. Windows are counted by the second of CPU, which other processes hardly change, as they do the clock.",
        "Memory is the most that was resident at batch 256, pages of mapped files included, and what was not such",
        "pages at the end.",
        "",
        f"† {some:,} windows written out one by one: seconds and memory are of those, which stay in the page cache, as",
        "all would not.",
        "",
        f"{machine} at the start, {os.getloadavg()[0]:.1f} at the end.",
    ]
    return "\n".join(lines)


def as_table(found: dict[str, Rounds], scale: float) -> str:
    """Markdown."""
    head = ["way", "shuffled", "prepare, s", "on disk", "first batch, s", "of CPU, s"]
    head += [f"windows/s, batch {batch}" for batch in BATCHES] + ["memory, MB", "of it not mapped, MB"]
    lines = [head, ["---"] * 2 + ["--:"] * (len(head) - 2)]
    for name, rounds in found.items():
        way = WAYS[name]
        written = rounds[-1]["bytes"]
        cells = [f"{way.label}{' †' if way.written else ''}", way.shuffled]
        cells.append(spread([one["prepare"] for one in rounds], ",.1f"))
        cells.append(f"{size(written)}, all {size(written * scale)}" if way.written else size(written))
        cells += [spread([one[BATCHES[0]][kind] for one in rounds], ".2f") for kind in ("first", "first_cpu")]
        cells += [spread([one[batch]["rate"] for one in rounds]) for batch in BATCHES]
        cells += [spread([one[BATCHES[-1]][kind] for one in rounds]) for kind in ("peak", "private")]
        lines.append(cells)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def verdicts(found: dict[str, Rounds]) -> list[str]:
    """What was claimed, and who is better than Headstart."""
    lines = []
    for batch in BATCHES:
        rates = {name: measure.median([one[batch]["rate"] for one in rounds]) for name, rounds in found.items()}
        lines.append(f"* Windows a second at batch {batch}: {compared(rates, lambda rate, ours: rate > ours)}")
        libraries = {name: rate for name, rate in rates.items() if WAYS[name].packages}
        if libraries:
            best = max(libraries, key=libraries.__getitem__)
            times = rates["headstart"] / rates[best]
            lines[-1] += f" × {times:.1f} of the fastest library, {WAYS[best].label}: "
            lines[-1] += f"{measure.verdict(times, at_least=10)}."
    for text, batch, kind in (
        ("Seconds to the first batch", BATCHES[0], "first"),
        ("Seconds of CPU to the first batch", BATCHES[0], "first_cpu"),
        ("MB resident", BATCHES[-1], "peak"),
        ("MB not mapped", BATCHES[-1], "private"),
    ):
        values = {name: measure.median([one[batch][kind] for one in rounds]) for name, rounds in found.items()}
        lines.append(f"* {text}: {compared(values, lambda value, ours: value < ours)}")
    return lines


def compared(values: dict[str, float], better: Any) -> str:
    """`Headstart is best.`, or who is better."""
    winners = [name for name in values if better(values[name], values["headstart"])]
    if not winners:
        return "Headstart is best."
    told = [f"{WAYS[name].label} (× {values[name] / values['headstart']:.2f})" for name in winners]
    return f"better than Headstart: {', '.join(told)}."


def versions(found: dict[str, Rounds], failed: dict[str, str]) -> str:
    """What was installed for the libraries, and those that could not be measured."""
    pins = [(*WAYS[name].packages, f"numpy=={rounds[-1][BATCHES[0]]['numpy']}") for name, rounds in found.items()]
    told = [", ".join(pin.replace("==", " ") for pin in one) for one in pins if len(one) > 1]
    lines = [f"Beside {TORCH.replace('==', ' ')}: {'; '.join(dict.fromkeys(told))}."] if told else []
    lines += [f"{WAYS[name].label} could not be measured: {reason}." for name, reason in failed.items()]
    return "\n\n".join(lines)


if __name__ == "__main__":
    main()
