"""bin/cache certify: prove that training knows nothing that it must not know."""

import json
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import click

from cache.console import Console, command, examples
from cache.contents import closure, open_entries
from cache.entries import StoreError, entry_path
from cache.keep_command import removed_lines
from cache.layout import SOURCES
from cache.locks import removing
from cache.prune import discard
from cache.reader import Dataset, open_dataset
from cache.refs import check_store

_HOLDS = {"passed": True}
_PROMISE = {
    "bars": "its windows hold only what was known at their time",
    "sequences": "training sees nothing of what validates",
}
_REMEDY = (
    ". `bin/cache certify {} --repair` removes the entries that it was made from (but for the bars of your files, "
    "unless these fail), and bin/build-cache with its configuration then makes them again"
)


@command(
    name="certify",
    epilog=examples(
        "bin/cache certify demo", "bin/cache certify demo --samples 1000 --seed 7", "bin/cache certify demo --repair"
    ),
)
@click.argument("name")
@click.option("--samples", type=click.IntRange(1), default=200, show_default=True, help="Windows to make again.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Decides which windows.")
@click.option(
    "--repair", "repairing", is_flag=True, help="Where something fails, remove the dataset's entries, to be made again."
)
@click.option("--store", type=click.Path(path_type=Path), default="store", show_default=True, help="The store.")
@click.option("--json", "as_json", is_flag=True, help="Print the certificate as JSON, for scripts.")
def certify_command(name: str, samples: int, seed: int, repairing: bool, store: Path, as_json: bool) -> None:
    """Prove that training knows nothing that it must not know.

    Of bars: that no window knows its future. Checks all windows and splits, fits all statistics again, makes all rows
    of all streams again from their bars, and a sample of windows from bars that are cut off, or changed, after their
    decision times. Of sequences: that no fold has seen what it validates on. Checks all windows, groups and folds, fits
    all statistics again, and makes a sample of sequences again. Exits with 1 when something does not hold, also when it
    could be repaired. What is taken for true are the bars and recordings read from files, which `bin/cache verify`
    checks.
    """
    console = Console(sys.stderr if as_json else sys.stdout)
    check_store(store)  # a missing store is a plainer fault than a missing dataset, and gets no folder for locks
    dropped: list[Path] = []
    with removing(store) if repairing else nullcontext():
        dataset = open_dataset(store, name)
        console.line(f"Certifying {name} {dataset.entry.key} in {store}")
        with console.phase("import numba"):
            if dataset.folds:  # after the first line, so that nobody waits in silence
                from pipeline.certify_sequences import certify_sequence_dataset as certify_any
            else:
                from pipeline.certify import certify_dataset as certify_any
        certificate = certify_any(dataset, store, samples, seed, console)
        if repairing and not certificate["passed"]:
            dropped = _made_of(dataset, store, with_files=not certificate["checks"].get("completion", _HOLDS)["passed"])
            for path in dropped:
                discard(path)
    if as_json:
        click.echo(json.dumps({**certificate, **({"dropped": [*map(str, dropped)]} if repairing else {})}, indent=2))
    else:
        for check, result in certificate["checks"].items():
            console.line(f"  {check:<14} {_verdict(result)}: {result['detail']}")
    if not certificate["passed"]:
        failed = [check for check, result in certificate["checks"].items() if not result["passed"]]
        if dropped and not as_json:
            console.line("\n".join(removed_lines(store, dropped)))
        raise StoreError(
            f"{name}: does not prove that {_PROMISE[dataset.kind]}; what fails: {', '.join(failed)}"
            f"{_REMEDY.format(name) * (not dropped)}"
        )
    console.line(f"{name} passes, in {console.since_start():.2f} s.")


def _made_of(dataset: Dataset, store: Path, with_files: bool) -> list[Path]:
    """The entries that a dataset was made from, itself included; those read from files only `with_files`."""
    entries = dict(open_entries(store, []))
    needed = closure(("datasets", dataset.entry.key), entries)
    derived = {
        one for one in needed & entries.keys() if "derived_from" in entries[one].manifest["components"]["fields"]
    }
    gone = {one for one in needed if one[0] not in SOURCES or one in derived or with_files}
    return [path for one in sorted(gone) if (path := entry_path(store, *one)).exists()]


def _verdict(result: dict[str, Any]) -> str:
    return "holds" if result["passed"] else "FAILS"
