"""Run directories. No PyTorch here: they are looked at before it is imported.

config.yaml          the resolved configuration, with its file and overrides in a comment
dataset.json         which store and dataset the run read
encoder.json         all that live inference needs besides the weights (trainer/encode.py)
startup.json         how long each phase of the start took
metrics.jsonl        one object a logged step or validation
summary.json         how the run ended
best.safetensors     weights with the lowest validation loss
last/checkpoint.safetensors   weights, optimizer and counters: what --resume continues from
"""

import json
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import filelock
import yaml

from cache.files import write_atomically
from cache.reader import Dataset, StoreError, open_dataset
from configs.errors import UserError
from configs.loader import Config, differences
from trainer.config import TrainerConfig, parse_trainer

ENCODER_FORMAT = 2


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
    """Keep other processes from training into the same directory. Raises UserError when one does already."""
    lock = path.with_name(f".{path.name}.lock")
    lock.parent.mkdir(parents=True, exist_ok=True)
    try:
        with filelock.FileLock(lock, timeout=0):
            yield
            lock.unlink(missing_ok=True)
    except filelock.Timeout:
        raise UserError(f"{path}: another process is training there; wait for it, or name another --run") from None


def check_run(path: Path, config: Config, dataset: Dataset, resume: bool) -> None:
    """Whether a run may begin in, or go on from, this directory. Raises UserError when it holds another run."""
    saved = path / "config.yaml"
    if not saved.exists():
        if resume:
            raise UserError(f"{path}: no run to resume there")
        return
    if not resume:
        raise UserError(f"{path}: holds a run already; add --resume to continue it, or name another --run")
    changed = list(differences(yaml.safe_load(saved.read_text()), config.values))
    if changed:
        lines = "\n".join(f"  {key}: {old} → {new}" for key, old, new in changed)
        raise UserError(f"{path}: the run was started with another configuration:\n{lines}\nStart a new run for that")
    trained_on = read_dataset(path)["key"]
    if trained_on != dataset.entry.key:
        raise UserError(
            f"{path}: the run was trained on dataset {trained_on}, but {dataset.name} is now {dataset.entry.key}: its "
            "sources have changed. Start a new run"
        )


def record_run(path: Path, config: Config, store: Path, dataset: Dataset) -> None:
    """Make the run directory and save what the run is; the configuration last, which makes it a run."""
    path.mkdir(parents=True, exist_ok=True)
    write_json(path / "dataset.json", {"store": str(store.resolve()), "name": dataset.name, "key": dataset.entry.key})
    if described := describe_encoder(config, dataset):
        write_json(path / "encoder.json", described)
    header = f"# {config.path}" + "".join(f"\n#   {override}" for override in config.overrides)
    write_atomically(path / "config.yaml", f"{header}\n{config.dump()}".encode())


def describe_encoder(config: Config, dataset: Dataset) -> dict[str, Any]:
    """encoder.json: how windows are made and scaled, and the model's dimensions; {} where they are not of bars.

    JSON gives every float back as it was, so that a window made from it is the store's to the last bit.
    """
    if dataset.recipe["source"]["kind"] != "bars":
        return {}
    inputs = describe_inputs(dataset)
    return {"format": ENCODER_FORMAT, "dataset": dataset.entry.key, **inputs, "model": config.values["model"]}


def describe_inputs(dataset: Dataset) -> dict[str, Any]:
    """The part of encoder.json that tells of the windows of a dataset of bars."""
    source, window = dataset.recipe["source"], dataset.recipe["window"]
    streams = {symbol: entries.streams for symbol, entries in dataset.symbols.items()}
    one = {name: stream.manifest for name, stream in next(iter(streams.values())).items()}
    base = one[dataset.timeframes[0]]
    return {
        "timeframes": dataset.timeframes,
        "seq_lens": dataset.seq_lens,
        "bar_lengths": {
            name: int(manifest["nominal_length"]) // int(base["nominal_length"]) for name, manifest in one.items()
        },
        "features": {
            "set": base["feature_set"],
            "version": base["components"]["fields"]["features"]["version"],
            "columns": base["features"],
        },
        "source": {"label": source["label"], "session": source["session"], "files": list(source["files"])},
        "window": {"min_coverage": window["min_coverage"], "max_staleness": window["max_staleness"]},
        "statistics": {
            symbol: {
                name: {k: stream.manifest["statistics"][k] for k in ("mean", "std")} for name, stream in of.items()
            }
            for symbol, of in streams.items()
        },
    }


def open_run(run: Path) -> tuple[TrainerConfig, Dataset]:
    """The configuration of a run, and the dataset it was trained on. Raises UserError when either is gone."""
    if not (run / "config.yaml").is_file():
        raise UserError(f"{run}: no run there (it has no config.yaml); bin/train makes runs")
    if not (run / "best.safetensors").is_file():
        raise UserError(f"{run}: the run has no best.safetensors yet; it is written after the first epoch")
    config = Config(run / "config.yaml", yaml.safe_load((run / "config.yaml").read_text()), {}, ())
    described = read_dataset(run)
    try:
        dataset = open_dataset(Path(described["store"]), described["name"])
    except StoreError as error:
        said = run / "dataset.json"
        raise UserError(f"{error}\n{said} says where the store was; mend it there if it has moved") from None
    if dataset.entry.key != described["key"]:
        words = ["bin/build-cache", "--config", str(run / "config.yaml")]
        words += ["--data-dir", dataset.data_dir, "--store", described["store"]]
        raise UserError(
            f"{run}: trained on dataset {described['key']}, but {described['name']} is now {dataset.entry.key}. Unless "
            f"its sources have changed, this makes it the old one again in a moment:\n  {shlex.join(words)}"
        )
    return parse_trainer(config), dataset


def read_dataset(run: Path) -> dict[str, str]:
    """dataset.json of a run: {"store", "name", "key"}. Raises UserError when it is gone or damaged."""
    path = run / "dataset.json"
    try:
        described = json.loads(path.read_text())
        return {name: str(described[name]) for name in ("store", "name", "key")}
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
    return (
        f"{summary['steps']:,} steps{early}, best validation loss {summary['best_loss']:.4f} at step "
        f"{summary['best_step']:,}"
    )


def write_json(path: Path, value: Any) -> None:
    """Write JSON for people and scripts."""
    write_atomically(path, (json.dumps(value, indent=2) + "\n").encode())
