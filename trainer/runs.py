"""Run directories. No PyTorch here: they are looked at before it is imported.

config.yaml          the resolved configuration, with its file and overrides in a comment
dataset.json         which store, dataset and fold the run read
encoder.json         all that live inference needs besides the weights (trainer/encode.py)
startup.json         how long each phase of the start took
metrics.jsonl        one object a logged step or validation
summary.json         how the run ended
best.safetensors     weights with the lowest validation loss
last/checkpoint.safetensors   weights, optimizer and counters: what --resume continues from
predictions.csv      of the task classify: what the best weights make of the validation part
features.py, task.py  a user's own files, as they were
"""

import json
import shlex
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import filelock

from cache.files import in_words, write_atomically
from cache.json_types import fault
from cache.plugin import features_plugin
from cache.reader import Dataset, open_dataset
from cache.recipes import parse_recipe
from configs.errors import UserError
from configs.loader import Config, differences, load_config
from trainer.config import TrainerConfig, is_own_task, parse_trainer

FEATURES, TASK = "features.py", "task.py"
_DIVERGED = 2.0  # times the loss of an untrained model; other measures may still get better while the loss gets worse
_SUMMARY = {
    "steps": int,
    "monitor": str,
    "best": float,
    "best_loss": float,
    "best_step": int,
    "overfit": bool,
    "stopped_early": bool,
    "untrained_loss": float,
}


def run_directory(name: str, resume: bool) -> Path:
    """runs/NAME, or the next free runs/NAME-2, …; with `resume` the newest one there is."""
    number, path = 1, Path("runs") / name
    while True:
        following = Path("runs") / f"{name}-{number + 1}"
        if resume and not following.exists():
            return path
        if not resume and not path.exists():
            return path
        number, path = number + 1, following


@contextmanager
def run_lock(path: Path) -> Iterator[None]:
    """Keep other processes from training into the same directory.

    Raises UserError when one does already, and for what can be no directory of a run.
    """
    if path.name in ("", ".."):
        raise UserError(f"--run {path}: a run needs a directory of its own; name one, such as runs/demo")
    if path.exists() and not path.is_dir():
        raise UserError(f"--run {path}: not a directory; name another, or one that is not there yet")
    lock = path.with_name(f".{path.name}.lock")
    lock.parent.mkdir(parents=True, exist_ok=True)
    try:
        with filelock.FileLock(lock, timeout=0):
            try:
                yield
            finally:
                lock.unlink(missing_ok=True)
    except filelock.Timeout:
        raise UserError(f"{path}: another process is training there; wait for it, or name another --run") from None


def check_run(path: Path, config: Config, dataset: Dataset, resume: bool, fold: int | None = None) -> None:
    """Whether a run may begin in, or go on from, this directory. Raises UserError when it holds another run."""
    saved = path / "config.yaml"
    if (path / "fold0").is_dir():
        raise UserError(f"{path}: holds a run for every fold; add --fold all, or name another --run")
    if not saved.exists():
        if resume:
            raise UserError(f"{path}: no run to resume there; leave out --resume, or name its directory with --run")
        return
    if not resume:
        raise UserError(f"{path}: holds a run already; add --resume to continue it, or name another --run")
    changed = list(differences(saved_config(path).values, config.values))
    if changed:
        lines = "\n".join(f"  {key}: {old} → {new}" for key, old, new in changed)
        raise UserError(f"{path}: the run was started with another configuration:\n{lines}\nStart a new run for that")
    trained_on = read_dataset(path)["key"]
    if trained_on != dataset.entry.key:
        raise UserError(
            f"{path}: the run was trained on dataset {trained_on}, but {dataset.name} is now {dataset.entry.key}: its "
            "sources have changed. Start a new run"
        )
    for name, own in own_files(config, dataset).items():
        if not (path / name).is_file() or own.read_bytes() != (path / name).read_bytes():
            raise UserError(f"{own}: not what it was when the run began ({path / name}). Start a new run for that")
    if (before := read_dataset(path)["fold"]) != fold:
        raise UserError(f"{path}: the run validates on fold {before}, not on fold {fold}; name another --run for that")


def record_run(path: Path, config: Config, store: Path, dataset: Dataset, described: Mapping[str, Any]) -> None:
    """Make the run directory and save what the run is; the configuration last, which makes it a run.

    `described` is what encoder.json is to say.
    """
    path.mkdir(parents=True, exist_ok=True)
    named = {"store": str(store.resolve()), "name": dataset.name, "key": dataset.entry.key}
    write_json(path / "dataset.json", {**named, "fold": described.get("fold")})
    for name, own in own_files(config, dataset).items():
        write_atomically(path / name, own.read_bytes())
    write_json(path / "encoder.json", described)
    header = f"# {config.path}" + "".join(f"\n#   {override}" for override in config.overrides)
    write_atomically(path / "config.yaml", f"{header}\n{config.dump()}".encode())


def own_files(config: Config, dataset: Dataset) -> dict[str, Path]:
    """A user's own files, by what a run calls its copies. Raises UserError where one is gone or has changed."""
    task = config.values["training"]["task"]
    named = {FEATURES: features_plugin(dataset, config.values["data"]), TASK: Path(task) if is_own_task(task) else None}
    return {name: path for name, path in named.items() if path}


def saved_config(run: Path) -> Config:
    """config.yaml of a run. Raises UserError when it is damaged."""
    path = run / "config.yaml"
    try:
        config = load_config(path)
        parse_recipe(config)
        parse_trainer(config)
    except (UserError, OSError) as error:
        what = in_words(error).splitlines()[0].partition(" (`")[0]
        raise UserError(
            f"{path}: damaged, or of another version; copy it again from where the run was trained, or start a new "
            f"run\n  {what}"
        ) from None
    return config


def read_summary(run: Path) -> dict[str, Any] | None:
    """summary.json of a run; None where the run has not ended. Raises UserError when it is damaged."""
    path = run / "summary.json"
    if not path.exists():
        return None
    try:
        summary: dict[str, Any] = json.loads(path.read_bytes())
        if wrong := fault(summary, _SUMMARY):
            raise ValueError(wrong)
    except ValueError:
        raise UserError(
            f"{path}: damaged; delete it, and the same command with --resume writes it again from the last checkpoint"
        ) from None
    return summary


def open_run(run: Path, store: Path | None = None) -> tuple[TrainerConfig, Dataset, int | None]:
    """The configuration of a run, the dataset it was trained on, and the fold. Raises UserError when any is gone.

    `store`: where the dataset is now, if it has moved.
    """
    if (run / "fold0").is_dir():
        raise UserError(f"{run}: holds a run for every fold; name one of them, such as {run / 'fold0'}")
    if not (run / "config.yaml").is_file():
        raise UserError(f"{run}: no run there (it has no config.yaml); bin/train makes runs")
    if not (run / "best.safetensors").is_file():
        raise UserError(f"{run}: the run has no best.safetensors yet; it is written after the first epoch")
    config = saved_config(run)
    described = read_dataset(run)
    store = store or Path(described["store"])
    dataset = open_dataset(store, described["name"])
    if dataset.entry.key != described["key"]:
        words = ["bin/build-cache", "--config", str(run / "config.yaml")]
        words += ["--data-dir", dataset.data_dir, "--store", str(store)]
        raise UserError(
            f"{run}: trained on dataset {described['key']}, but {described['name']} is now {dataset.entry.key}. Unless "
            f"its sources have changed, this makes it the old one again in a moment:\n  {shlex.join(words)}"
        )
    trainer = parse_trainer(config)
    if is_own_task(trainer.training.task):  # as it was
        trainer = replace(trainer, training=trainer.training.model_copy(update={"task": str(run / TASK)}))
    return trainer, dataset, described["fold"]


def read_dataset(run: Path) -> dict[str, Any]:
    """dataset.json of a run: {"store", "name", "key", "fold"}. Raises UserError when it is gone or damaged."""
    path = run / "dataset.json"
    try:
        described = json.loads(path.read_text())
        fold = described["fold"]
        return {name: str(described[name]) for name in ("store", "name", "key")} | {"fold": fold and int(fold)}
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f"{path}: missing or damaged, so that the run's dataset is unknown; start a new run") from None


def keep_metrics_until(path: Path, step: int) -> None:
    """Drop the lines of metrics.jsonl that a killed run wrote after its last checkpoint; they will be written again."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text().splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            continue  # cut off by the kill
        if record["step"] <= step:
            kept.append(line + "\n")
    write_atomically(path, "".join(kept).encode())


def describe(summary: dict[str, Any]) -> str:
    """A summary for people."""
    early = ", stopped early" if summary["stopped_early"] else ""
    steps, best_step = summary["steps"], summary["best_step"]
    monitored = f"validation {summary['monitor'].replace('_', ' ')}"
    if not best_step:
        return f"{steps:,} steps{early}, and {monitored} never was a number: no weights are kept. Lower training.lr"
    found = f"{steps:,} steps{early}, best {monitored} {summary['best']:.4f} at step {best_step:,}"
    perfect = summary["best"] == (0.0 if summary["monitor"] == "loss" else 1.0)
    if best_step == 1 < steps and not perfect:
        return f"{found}, and never better since: lower training.lr"
    best, untrained = summary["best_loss"], summary["untrained_loss"]  # of the same windows
    if best > _DIVERGED * untrained:
        return f"{found}, but the untrained model had a loss of {untrained:.4f}: lower training.lr"
    if summary["overfit"]:
        return f"{found}, where the loss is {best / untrained:.1%} of the untrained model's"
    return found


def write_json(path: Path, value: Any) -> None:
    """Write JSON for people and scripts."""
    write_atomically(path, (json.dumps(value, indent=2) + "\n").encode())
