"""bin/train: train on a dataset of the store. Nothing heavy is imported before the first line is out."""

if __name__ == "__main__":  # before all that takes a while to load
    from cache.early import end_on_interrupt

    end_on_interrupt()

import errno
import os
import shlex
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cache.console import Console, command, examples, run
from cache.entries import StoreError
from cache.files import in_words
from cache.plugin import features_plugin
from cache.reader import AT_ONCE, Dataset, open_dataset
from cache.recipes import AnyRecipe, parse_recipe
from cache.refs import read_ref
from cache.uses import record_use
from configs.errors import UserError
from configs.loader import Config, load_config
from trainer.config import parse_trainer
from trainer.folds import check_folds, chosen_fold, draw, train_folds
from trainer.launch import is_main, launch, launched, launched_process
from trainer.runs import check_run, describe, read_summary, record_run, run_directory, run_lock

if TYPE_CHECKING:
    from trainer.session import Session


@command(
    epilog=examples(
        "bin/train --config configs/demo.yaml",
        "bin/train --config configs/sse.yaml training.lr=3e-4 model.encoder.n_layers=6",
        "bin/train --config configs/imu.yaml --fold all",
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
@click.option("--fold", metavar="K|all", help="Of recordings: the fold to validate on, or all in turn.  [default: 0]")
@click.option(
    "--init-from", metavar="RUN", help="Begin with the encoder of this run; short for training.init_from=RUN."
)
@click.option("--find-lr", is_flag=True, help="Do not train; try learning rates and suggest one.")
@click.option(
    "--profile", type=click.IntRange(1), metavar="N", help="Do not train; say where N steps spend their time."
)
@click.option("--resume", is_flag=True, help="Continue the run from its last checkpoint.")
@launched_process
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
    fold: str | None,
    init_from: str | None,
    find_lr: bool,
    profile: int | None,
    resume: bool,
) -> None:
    """Train the model that a configuration describes on the dataset that bin/build-cache made of it.

    Training never builds: a dataset that is missing or was built from another recipe is an error.
    """
    console = Console(sys.stdout if is_main() else open(os.devnull, "w"))  # noqa: PTH123, SIM115 - open until the end
    console.line(f"Training with {config_path}")
    with console.phase("read configuration"):
        shorts: dict[str, Any] = {"max_epochs": max_epochs, "batch_size": batch_size, "overfit": overfit}
        shorts |= {"init_from": init_from}
        for key in [key for key, value in shorts.items() if value is not None]:
            check_once(key, overrides)
        shorts |= {"max_epochs": 1, "steps_per_epoch": 3, "val_windows": 64, "log_every": 1} if fast_dev_run else {}
        added = [f"training.{key}={value}" for key, value in shorts.items() if value is not None]
        config = load_config(config_path, [*overrides, *added])
        recipe, trainer = parse_recipe(config), parse_trainer(config)
    with console.phase("open store"):
        dataset = open_checked(store, recipe, config)
    one = None if fold == "all" else chosen_fold(fold, dataset)
    if fold == "all" and (devices > 1 or launched() or find_lr or profile):
        raise UserError("--fold all trains on one device, and goes with neither --find-lr nor --profile; name one fold")
    path = run or run_directory(recipe.name, resume)
    a_run = path / "fold0" if fold == "all" else path
    further = f"Look at it: bin/evaluate {a_run}"
    if dataset.folds and trainer.training.task == "reconstruct":
        further = f"Learn labels from there: bin/train with --init-from {a_run}"
    if devices > 1 and not launched():
        launch(devices, [*sys.argv[1:], *([] if run else ["--run", str(path)])], console)
        return
    if launched() and not run:
        raise UserError(
            "torchrun starts several processes, which must agree on a directory: name one with --run, and write "
            "torchrun … -m -- trainer.train_command …, or torchrun takes --run for an option of its own"
        )
    if find_lr and profile:
        raise UserError("--find-lr and --profile are two things to do; leave out one of the two")
    if resume and find_lr:
        raise UserError("--find-lr tries rates on a model that has learnt nothing yet; leave out --resume")

    def train_one(at: Path, fold: int | None, resume: bool) -> dict[str, Any]:
        from trainer.session import initialise, open_session, run_session  # after torch, which they load
        from trainer.tasks import blamed

        with blamed(trainer):
            session = open_session(trainer, dataset, console, fold)
            described = initialise(session, at, resume, console)
            if find_lr:
                try_learning_rates(session, at, console)
                return {}
            if profile:
                profile_steps(session, at, profile, console)
                return {}
            if is_main() and not resume:
                record_run(at, config, store, dataset, described)
            console.line(f"  run {at}")
            return run_session(session, at, resume, console)

    with run_lock(path) if is_main() else nullcontext():
        if fold == "all":
            check_folds(path, config, dataset, resume)
        elif is_main():
            check_run(path, config, dataset, resume, one)
        if resume and (summary := read_summary(path)):
            console.line(f"The run {path} has finished: {describe(summary)}. {further}")
            return
        if is_main():
            record_use(store, "train", dataset.entry.key, built_seconds(dataset))
        with console.phase("import torch"):
            import torch  # noqa: F401 - here, so that its seconds are told apart
        try:
            if fold == "all":
                train_folds(train_one, path, dataset, console)
                console.line(further)
            elif (ended := train_one(path, one, resume)) and is_main():
                if (path / "predictions.csv").exists():
                    draw(path / "predictions.csv", path / "confusion.png", dataset, console)
                console.line(f"Done: {describe(ended)}. {further}")
        except (KeyboardInterrupt, OSError) as error:
            foreseen = isinstance(error, KeyboardInterrupt) or error.errno in (errno.ENOSPC, errno.EDQUOT)
            begun = any((at / "config.yaml").exists() for at in (path, path / "fold0"))
            if not (foreseen and begun):
                raise
            if isinstance(error, KeyboardInterrupt) and not is_main():
                sys.exit(1)  # rank 0 tells it
            words = ["bin/train", "--config", config_path, *config.overrides, "--store", str(store)]
            words += ["--run", str(path), *(["--devices", str(devices)] if devices > 1 else [])]
            words += [*(["--fold", fold] if fold else []), "--resume"]
            what = f"{in_words(error)}; free some" if isinstance(error, OSError) else str(error) or "interrupted"
            raise UserError(f"{what}. Continue from the last checkpoint:\n  {shlex.join(words)}") from None
        except RuntimeError as error:
            if not (launched() and "gloo/transport" in str(error)):
                raise
            raise UserError("another process of this run has ended, and this one with it") from None


def check_once(key: str, overrides: Sequence[str]) -> None:
    """Raise UserError where a short option and an override both set something."""
    if twice := [one for one in overrides if one.startswith(f"training.{key}=")]:
        raise UserError(f"{twice[0]}: --{key.replace('_', '-')} sets it too; leave out one of the two")


def try_learning_rates(session: "Session", path: Path, console: Console) -> None:
    """Write lr_range.json and .png into the run directory, and tell what they suggest."""
    from trainer.find_lr import STEPS, find_lr, write_lr_range

    with console.bar("trying learning rates", "steps", STEPS) as bar:
        found = find_lr(session, bar.update)
    with console.phase("draw"):
        written = write_lr_range(found, path)
    for one in written:
        console.line(f"  {one}")
    rate = f"{found['suggestion']:.1e}"
    console.line(f"A tenth of the rate with the lowest loss: try training.lr={rate}")


def profile_steps(session: "Session", path: Path, steps: int, console: Console) -> None:
    """Tell where the time of a step goes."""
    from trainer.profile import WARM_UP, profile_session

    with console.bar("profiling", "steps", WARM_UP + steps) as bar:
        lines = profile_session(session, path, steps, bar.update)
    for line in lines:
        console.line(f"  {line}")


def built_seconds(dataset: Dataset) -> float:
    """What it took to build the windows and streams of a dataset; of many symbols, by what it took for the first."""
    known = [dataset.symbols[symbol] for symbol in list(dataset.symbols)[:AT_ONCE]]
    parts = {e.key: e for s in known for e in (s.windows, *s.streams.values())}
    return (
        sum(float(entry.manifest["built"]["seconds"]) for entry in parts.values()) * len(dataset.symbols) / len(known)
    )


def open_checked(store: Path, recipe: AnyRecipe, config: Config) -> Dataset:
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
    features_plugin(dataset, recipe.model_dump())
    return dataset


def _data_dir(store: Path, name: str) -> str:
    try:
        return str(read_ref(store, name)["data_dir"])
    except StoreError:
        return "DIR"


if __name__ == "__main__":
    run(main, "bin/train")
