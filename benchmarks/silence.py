"""The longest silence of a real `bin/train --config configs/imu.yaml`, from the start of the process to its end.

Simulated recordings, built before. Every piece of output is stamped as it comes, at a terminal, where bars move, and in
a pipe, as a log file gets it. A silence lies between two pieces, or before the first. Everything counts, the import of
torch too.
"""

import argparse
import os
import pty
import subprocess
import sys
import termios
import time

from benchmarks import measure

Pieces = list[tuple[float, str]]


def at_a_terminal(command: list[str]) -> Pieces:
    """What a process prints to a terminal, and when, in seconds since its start."""
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (40, 120))  # without a size, bars have no room
    began, pieces = time.perf_counter(), []
    process = subprocess.Popen(command, cwd=measure.ROOT, stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    while True:
        try:
            text = os.read(ours, 65536)
        except OSError:  # how a terminal ends on Linux
            break
        pieces.append((time.perf_counter() - began, text.decode(errors="replace")))
    if process.wait():
        sys.exit("".join(text for _, text in pieces))
    return pieces


def longest(pieces: Pieces) -> tuple[float, float, str]:
    """The longest silence in seconds, when it began, and the last words before it."""
    times, words = [0.0], ["the start of the process"]
    for seconds, text in pieces:
        times.append(seconds)
        shown = [line.strip() for line in text.replace("\r", "\n").splitlines() if line.strip()]
        words.append(shown[-1] if shown else words[-1])
    gaps = [(after - before, before, said) for before, after, said in zip(times, times[1:], words, strict=False)]
    return max(gaps)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sequences", type=int, default=8_000, metavar="N", help="recordings (8000)")
    parser.add_argument(
        "overrides", nargs="*", metavar="KEY=VALUE", help="as of bin/train, such as training.max_epochs=2"
    )
    args = parser.parse_args()
    print(measure.environment("torch", "numpy"))
    with measure.scratch() as folder:
        simulate = [measure.ROOT / "bin/simulate", "--kind", "imu", "--out", folder, "--sequences", args.sequences]
        measure.run(simulate)
        store = measure.build_store(folder, folder / "store", "imu", ())
        rows = []
        for name, watched in (("a terminal", at_a_terminal), ("a pipe", lambda command: measure.watch(command))):
            run = str(folder / f"run-{name[2:]}")
            train = [str(measure.ROOT / "bin/train"), "--config", "configs/imu.yaml", *args.overrides]
            pieces = watched([*train, "--store", str(store), "--run", run])
            gap, at, said = longest(pieces)
            total = pieces[-1][0]
            bar = measure.verdict(gap, at_most=1.0)
            rows.append((name, f"{total:.1f}", str(len(pieces)), f"{gap:.2f}", bar, f"{at:.1f} s, after: {said[-60:]}"))
    print()
    measure.print_table(("", "whole run, s", "pieces", "longest silence, s", "bar", "it began at"), rows)


if __name__ == "__main__":
    main()
