"""bin/train: train on a dataset of the store. Nothing heavy is imported before the first line is out."""

if __name__ == "__main__":  # before all that takes a while to load
    from cache.early import end_on_interrupt

    end_on_interrupt()

import json
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cache.console import Console, command, examples, run
from cache.reader import Dataset, StoreError, open_dataset, read_ref
from cache.recipe import Recipe
from cache.uses import record_use
from configs.errors import UserError
from configs.loader import Config, load_config
from trainer.config import parse_trainer
from trainer.runs import check_run, describe, record_run, run_directory, run_lock

if TYPE_CHECKING:
    from trainer.session import Session


@command(
    epilog=examples(
        "bin/train --config configs/demo.yaml",
        "bin/train --config configs/sse.yaml training.lr=3e-4 model.encoder.n_layers=6",
        "bin/train --config configs/sse.yaml --run runs/sse --resume",
    )
)
@click.option("--config", "config_path", required=True, help="YAML file.")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--store", type=click.Path(path_type=Path), default="store", show_default=True, help="The store.")
@click.option("--run", type=click.Path(path_type=Path), help="Run directory.  [default: runs/NAME, then runs/NAME-2 …]")
@click.option("--max-epochs", type=click.IntRange(1), help="Short for training.max_epochs=N.")
@click.option("--batch-size", type=click.IntRange(1), help="Short for training.batch_size=N.")
@click.option("--devices", type=click.IntRange(1), default=1, show_default=True, help="GPUs to train on.")
@click.option(
    "--fast-dev-run", is_flag=True, help="Three steps, a small validation, a checkpoint: does all of it work?"
)
@click.option("--overfit", type=click.IntRange(1), help="Train on so many windows only: does the model learn at all?")
@click.option("--find-lr", is_flag=True, help="Do not train; try learning rates and suggest one.")
@click.option("--resume", is_flag=True, help="Continue the run from its last checkpoint.")
def main(
    config_path: str,
    overrides: tuple[str, ...],
    store: Path,
    run: Path | None,
    max_epochs: int | None,
    batch_size: int | None,
    devices: int,
    fast_dev_run: bool,
    overfit: int | None,
    find_lr: bool,
    resume: bool,
) -> None:
    """Train the model that a configuration describes on the dataset that bin/build-cache made of it.

    Training never builds: a dataset that is missing or was built from another recipe is an error.
    """
    console = Console(sys.stdout)
    console.line(f"Training with {config_path}")
    with console.phase("read configuration"):
        shorts = {"max_epochs": max_epochs, "batch_size": batch_size, "overfit": overfit}
        shorts |= {"max_epochs": 1, "steps_per_epoch": 3, "val_windows": 64, "log_every": 1} if fast_dev_run else {}
        added = [f"training.{key}={value}" for key, value in shorts.items() if value is not None]
        config = load_config(config_path, [*overrides, *added])
        recipe, trainer = config.parse("data", Recipe), parse_trainer(config)
    if devices > 1:
        raise UserError(f"--devices {devices}: training on several devices is not possible yet; use --devices 1")
    with console.phase("open store"):
        dataset = open_checked(store, recipe, config)
    path = run or run_directory(recipe.name, resume)
    with run_lock(path):
        check_run(path, config, dataset, resume)
        if resume and (path / "summary.json").exists():
            summary = json.loads((path / "summary.json").read_text())
            console.line(f"The run {path} has finished: {describe(summary)}. Look at it: bin/evaluate {path}")
            return
        record_use(store, "train", dataset.entry.key, built_seconds(dataset))
        with console.phase("import torch"):
            import torch  # noqa: F401 - here, so that its seconds are told apart

        from trainer.session import open_session, run_session  # after torch, which it loads

        session = open_session(trainer, dataset, console)
        if find_lr:
            try_learning_rates(session, path, console)
            return
        if not resume:
            record_run(path, config, store, dataset)
        console.line(f"  run {path}")
        try:
            run_session(session, path, resume, console)
        except KeyboardInterrupt:
            words = ["bin/train", "--config", config_path, *config.overrides, "--store", str(store)]
            words += ["--run", str(path), "--resume"]
            raise UserError(f"interrupted. Continue from the last checkpoint:\n  {shlex.join(words)}") from None


def try_learning_rates(session: "Session", path: Path, console: Console) -> None:
    """Write lr_range.json and .png into the run directory, and tell what they suggest."""
    from trainer.find_lr import STEPS, find_lr, write_lr_range

    with console.bar("trying learning rates", "steps", STEPS) as bar:
        found = find_lr(session, bar.update)
    for written in write_lr_range(found, path):
        console.line(f"  {written}")
    rate = f"{found['suggestion']:.1e}"
    console.line(f"A tenth of the rate with the lowest loss: try training.lr={rate}")


def built_seconds(dataset: Dataset) -> float:
    """What it took to build the windows and streams of a dataset."""
    parts = {e.key: e for s in dataset.symbols.values() for e in (s.windows, *s.streams.values())}
    return sum(float(entry.manifest["built"]["seconds"]) for entry in parts.values())


def open_checked(store: Path, recipe: Recipe, config: Config) -> Dataset:
    """The dataset of the recipe. Raises StoreError with the command that builds it when it is missing or another's."""
    overrides = [override for override in config.overrides if override.startswith("data.")]
    words = ["bin/build-cache", "--config", str(config.path), *overrides, "--store", str(store), "--data-dir"]
    try:
        dataset = open_dataset(store, recipe.name)
    except StoreError as error:
        raise StoreError(f"{error}\nBuild it first:\n  {shlex.join([*words, _data_dir(store, recipe.name)])}") from None
    changed = list(recipe.differs_from(dataset.recipe))
    if changed:
        lines = [f"  {key}: the store has {old}, the configuration wants {new}" for key, old, new in changed]
        what = f"{store}: the dataset {recipe.name} was built from another recipe:"
        raise StoreError("\n".join([what, *lines, "Build it first:", f"  {shlex.join([*words, dataset.data_dir])}"]))
    return dataset


def _data_dir(store: Path, name: str) -> str:
    try:
        return str(read_ref(store, name)["data_dir"])
    except StoreError:
        return "DIR"


if __name__ == "__main__":
    run(main, "bin/train")
