"""bin/cache certify: prove that no window of a dataset holds anything that was not known at its time."""

import json
import sys
from pathlib import Path
from typing import Any

import click

from cache.console import Console, command, examples
from cache.reader import StoreError, open_dataset, ref_names


@command(name="certify", epilog=examples("bin/cache certify demo", "bin/cache certify demo --samples 1000 --seed 7"))
@click.argument("name")
@click.option("--samples", type=click.IntRange(1), default=200, show_default=True, help="Windows to make again.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Decides which windows.")
@click.option("--store", type=click.Path(path_type=Path), default="store", show_default=True, help="The store.")
@click.option("--json", "as_json", is_flag=True, help="Print the certificate as JSON, for scripts.")
def certify_command(name: str, samples: int, seed: int, store: Path, as_json: bool) -> None:
    """Prove that no window of a dataset knows its future.

    Checks all windows and splits, fits all statistics again, and makes a sample of windows again from bars that are cut
    off, or changed, after their decision times. Exits with 1 when something does not hold.
    """
    console = Console(sys.stderr if as_json else sys.stdout)
    ref_names(store)  # a missing store is a plainer fault than a missing dataset
    dataset = open_dataset(store, name)
    console.line(f"Certifying {name} {dataset.entry.key} in {store}")
    with console.phase("import numba"):
        from pipeline.certify import certify_dataset  # after the first line, so that nobody waits in silence
    with console.bar("certifying", "windows", samples) as bar:
        certificate = certify_dataset(dataset, store, samples, seed, bar.update)
    if as_json:
        click.echo(json.dumps(certificate, indent=2))
    else:
        for check, result in certificate["checks"].items():
            console.line(f"  {check:<14} {_verdict(result)}: {result['detail']}")
    if not certificate["passed"]:
        failed = [check for check, result in certificate["checks"].items() if not result["passed"]]
        raise StoreError(
            f"{name}: does not prove that its windows hold only what was known at their time; what fails: "
            f"{', '.join(failed)}. Remove the dataset's entries from the store and build it again"
        )
    console.line(f"{name} passes, in {console.since_start():.2f} s.")


def _verdict(result: dict[str, Any]) -> str:
    return "holds" if result["passed"] else "FAILS"
