"""bin/build-cache: turn raw bars, or recordings of sensors, into a dataset in the store."""

if __name__ == "__main__":  # before all that takes a while to load
    from cache.early import end_on_interrupt

    end_on_interrupt()

import json
import os
import shlex
import sys
from pathlib import Path

import click

from cache.console import Console, command, examples, run
from cache.recipes import parse_recipe
from cache.tables import of_store
from configs.loader import load_config


@command(
    kept=True,
    epilog=examples(
        "bin/build-cache --config configs/demo.yaml --data-dir data",
        "bin/build-cache --config configs/sse.yaml --data-dir ~/bars data.window.seq_len=48",
        "bin/build-cache --config configs/imu.yaml --data-dir data",
        "bin/build-cache --config configs/universe.yaml --data-dir data --scheduler local --workers 8",
    ),
)
@click.option("--config", "config_path", required=True, help="YAML file with a data: section.")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--data-dir", type=click.Path(path_type=Path), default=".", help="Where the recipe's paths begin.")
@click.option("--store", type=click.Path(path_type=Path), default="store", show_default=True, help="The store.")
@click.option("--workers", type=click.IntRange(1), default=None, help="Threads, or processes.  [default: one a core]")
@click.option(
    "--scheduler",
    metavar="local|tcp://…",
    default=None,
    help="Let Dask do the work: --workers processes here, or the cluster at an address that sees the same files.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the outcome as JSON; progress goes to standard error.")
def main(
    config_path: str,
    overrides: tuple[str, ...],
    data_dir: Path,
    store: Path,
    workers: int | None,
    scheduler: str | None,
    as_json: bool,
) -> None:
    """Build the dataset that a configuration describes.

    What the store already holds is reused, however it came there. Values of the configuration can be changed on the
    command line: data.window.seq_len=48.
    """
    console = Console(sys.stderr if as_json else sys.stdout)
    recipe = parse_recipe(load_config(config_path, overrides))
    console.line(f"Building {recipe.name} into {store}")
    with console.phase("import pyarrow, numba"):
        from pipeline.build import build  # after the first line, so that nobody waits in silence
        from pipeline.summary import summarise
    outcome = build(recipe, data_dir, store, workers or os.cpu_count() or 1, console, scheduler)
    manifest = outcome.dataset.entry.manifest
    if as_json:
        click.echo(
            json.dumps(
                {
                    "name": recipe.name,
                    "key": outcome.dataset.entry.key,
                    "reused": outcome.reused,
                    "built": outcome.built,
                    "windows": {name: one.windows.shape("time")[0] for name, one in outcome.dataset.symbols.items()},
                    **({"folds": manifest["folds"]} if "folds" in manifest else {"splits": outcome.dataset.splits}),
                    **({"left_out": manifest["left_out"]} if manifest.get("left_out") else {}),
                    "warnings": manifest["warnings"],
                    "certified": manifest["certificate"]["passed"],
                    "seconds": round(console.since_start(), 3),
                }
            )
        )
        return
    for line in summarise(outcome):
        console.line(line)
    words = shlex.join(["bin/train", "--config", config_path, *overrides])
    told = f"{words}{of_store(store)}{' --fold all' * bool(outcome.dataset.folds)}"
    console.line(f"Done in {console.since_start():.2f} s. Train on it: {told}")


if __name__ == "__main__":
    run(main, "bin/build-cache")
