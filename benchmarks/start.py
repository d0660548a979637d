"""From process start to the first optimizer step of bin/train, against `import torch` alone.

Both in new processes, in turn, with everything compiled and in the page cache. Clocks start with the process; the
first step is the line that says so, the import is over when the process prints a word (its exit comes later).
The longest silence is the longest time between two pieces of output, or before the first one, of the whole training
run, without what falls into the import of torch.
"""

import json
import re
import sys
from pathlib import Path

from benchmarks import measure

FIRST_STEP = "from process start to the first step"
IMPORTING, IMPORTED = "import torch ", re.compile(r"import torch \.*\d+\.\d+ s")


def train(store: Path, run: Path) -> tuple[float, float, dict[str, float], list[tuple[float, str]]]:
    """Seconds to the first line and to the first step, the phases, and all silences with what they followed."""
    chunks = measure.watch(
        [measure.ROOT / "bin/train", "--config", "configs/test.yaml", "--store", store, "--run", run]
    )
    startup = json.loads((run / "startup.json").read_text())
    text, before, first_step, silences = "", 0.0, 0.0, []
    for seconds, chunk in chunks:
        if IMPORTING not in text or IMPORTED.search(text):
            silences.append((seconds - before, text))
        text, before = text + chunk, seconds
        if FIRST_STEP in text and not first_step:
            first_step = seconds
    phases = startup["phases"] | {"startup.json: first step": startup["seconds_to_first_step"]}
    return chunks[0][0], first_step, phases, silences


def import_torch() -> tuple[float, float]:
    """Seconds until it is imported, and until the process has ended."""
    chunks = measure.watch([sys.executable, "-c", "import torch; print('imported', flush=True)"])
    return chunks[0][0], chunks[-1][0]


def last_line(text: str) -> str:
    lines = [line.strip() for line in text.replace("\r", "\n").splitlines() if line.strip()]
    return lines[-1][:60] if lines else "the start of the process"


def main() -> None:
    args = measure.parser(__doc__, repeats=9, smallest=10_000).parse_args()
    print(measure.environment("torch", "numpy"))
    with measure.scratch() as folder:
        store = measure.build_store(measure.data_dir(args.data, args.rows, folder), folder / "store", "test", ())
        import_torch()
        train(store, folder / "warm")
        imports, runs = [], []
        for number in range(args.repeats):
            imports.append(import_torch())
            runs.append(train(store, folder / f"run-{number}"))

    lines, steps, phases, silences = zip(*runs, strict=True)
    imported, ended = zip(*imports, strict=True)
    relative = measure.ratio(steps, imported)

    def row(name: str, seconds: tuple[float, ...], bar: str = "") -> tuple[str, ...]:
        median = measure.median(seconds)
        return name, f"{median:.3f}", f"{min(seconds):.3f}", f"{measure.ratio(seconds, imported):.2f}", bar

    print(f"{args.repeats} rounds\n")
    rows = [
        row("python -c 'import torch'", imported),
        row("  until the process has ended", ended),
        row("bin/train: first line", lines),
        row("bin/train: first step", steps, measure.verdict(relative, at_most=1.6)),
        *(row(f"  {name}", tuple(one[name] for one in phases)) for name in phases[0]),
        row("bin/train: longest silence", tuple(max(one)[0] for one in silences)),
    ]
    measure.print_table(("", "s", "best s", "× import torch", "bar"), rows)
    longest, after = max(max(one) for one in silences)
    print(f"\nThe longest silence of all, {longest:.2f} s, came after: {last_line(after)}")


if __name__ == "__main__":
    main()
