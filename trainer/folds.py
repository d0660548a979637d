"""All folds of a dataset, one after another in one process:

NAME/fold0 …     a run for every fold (trainer/runs.py)
NAME/oof.csv     what every fold's best weights make of the recordings it validates on, which together are all
NAME/folds.json  the measures of every fold, their mean and deviation, and those of oof.csv as a whole

The weights kept of a fold are those that did best on the very recordings that score it, which flatters the score;
beside it stands what the last epoch scored, which was not chosen. No PyTorch is imported before a fold is trained.
"""

import json
import statistics
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from cache.console import Console
from cache.reader import Dataset
from cache.tables import table
from configs.errors import UserError
from configs.loader import Config
from trainer.measures import MEASURES, in_words
from trainer.runs import check_run, read_summary, write_json

TrainOne = Callable[[Path, int, bool], dict[str, Any]]


def chosen_fold(asked: str | None, dataset: Dataset) -> int | None:
    """The fold that one run validates on: what was asked for, else the first; None where there are none.

    Raises UserError where there is no such fold.
    """
    count = len(dataset.folds)
    if not count:
        if asked is not None:
            raise UserError(f"--fold {asked}: {dataset.name} is made of bars, which are split by time; leave it out")
        return None
    if asked is not None and asked not in [str(k) for k in range(count)]:
        raise UserError(f"--fold {asked}: {dataset.name} has the folds 0 to {count - 1}; name one of them, or all")
    return int(asked or 0)


def check_folds(path: Path, config: Config, dataset: Dataset, resume: bool) -> None:
    """Whether runs of all folds may begin, or go on, in a directory. Raises UserError."""
    if not dataset.folds:
        raise UserError(f"--fold all: {dataset.name} is made of bars, which are split by time; leave it out")
    if (path / "config.yaml").exists():
        raise UserError(f"{path}: holds a run of one fold; name another --run for all of them")
    for fold, run in enumerate(fold_paths(path, dataset)):
        if (run / "config.yaml").exists():
            check_run(run, config, dataset, resume, fold)


def fold_paths(path: Path, dataset: Dataset) -> list[Path]:
    """The runs of all folds."""
    return [path / f"fold{fold}" for fold in range(len(dataset.folds))]


def train_folds(train_one: TrainOne, path: Path, dataset: Dataset, console: Console) -> None:
    """Train what is not finished yet by `train_one(run, fold, resume)`, and sum all of it up."""
    for fold, run in enumerate(fold_paths(path, dataset)):
        before = read_summary(run)
        summary = before or train_one(run, fold, (run / "config.yaml").exists())
        finished = ", finished before" if before else ""
        console.line(f"Fold {fold} of {len(dataset.folds)}{finished}: {_told(summary)}")
    sum_up(path, dataset, console)


def sum_up(path: Path, dataset: Dataset, console: Console) -> None:
    """Write oof.csv and folds.json, draw the confusion matrices, and print the measures of all folds."""
    from trainer.class_metrics import scores
    from trainer.predictions import counts_of, join_predictions

    folds = [measures_of(run) for run in fold_paths(path, dataset)]
    names = [name for name in folds[0] if all(name in one for one in folds)]
    mean = {name: statistics.fmean(one[name] for one in folds) for name in names}
    deviation = {name: statistics.stdev(one[name] for one in folds) for name in names}
    for line in _lines(folds, mean, deviation):
        console.line(line)
    result: dict[str, Any] = {"folds": folds, "mean": mean, "sd": deviation}
    parts = [run / "predictions.csv" for run in fold_paths(path, dataset)]
    if all(part.exists() for part in parts):
        classes, binary = dataset.entry.manifest["classes"], dataset.recipe["source"]["binary"]
        join_predictions(parts, path / "oof.csv")
        counts = counts_of(path / "oof.csv", classes)
        result["out_of_fold"] = scores(counts, binary and binary["name"])
        console.line(
            f"  all {counts[next(iter(counts))].sum():,} recordings at once: {in_words(result['out_of_fold'])}"
        )
        console.line(f"  predictions: {path / 'oof.csv'}")
        draw(path / "oof.csv", path / "confusion.png", dataset, console)
    write_json(path / "folds.json", result)


def draw(predictions: Path, picture: Path, dataset: Dataset, console: Console) -> None:
    """Draw the confusion matrices of predictions, where matplotlib is installed."""
    if find_spec("matplotlib") is None:
        console.line("  no picture of the confusion matrix: matplotlib is not installed (pip install matplotlib)")
        return
    with console.phase("draw"):
        from trainer.class_plots import plot_confusion
        from trainer.predictions import counts_of

        classes = dataset.entry.manifest["classes"]
        plot_confusion(counts_of(predictions, classes), classes, picture)
    console.line(f"  picture: {picture}")


def measures_of(run: Path) -> dict[str, Any]:
    """What a finished run measured, `best` of what it monitored, and `last`, the same after its last epoch."""
    summary = read_summary(run) or {}
    lines = (run / "metrics.jsonl").read_text().splitlines()
    validations = [record for record in map(json.loads, lines) if record["kind"] == "val"]
    known = (*MEASURES, "best", *(f"majority_{name}" for name in MEASURES))
    return {name: summary[name] for name in known if name in summary} | {"last": validations[-1][summary["monitor"]]}


def _lines(folds: list[dict[str, Any]], mean: dict[str, float], deviation: dict[str, float]) -> Iterator[str]:
    shown = {name: words for name, words in MEASURES.items() if name in mean} or {"best": "best"}
    shown |= {"last": "last epoch"} | ({"majority_score": "majority"} if "majority_score" in mean else {})
    rows = [(f"  {fold}", *(f"{one[name]:.3f}" for name in shown)) for fold, one in enumerate(folds)]
    rows.append(("  mean ± sd", *(f"{mean[name]:.3f} ± {deviation[name]:.3f}" for name in shown)))
    yield from table([("  fold", *shown.values()), *rows], right=set(range(1, len(shown) + 1)))


def _told(summary: dict[str, Any]) -> str:
    """The measures of a fold, or where there are none, what was monitored."""
    monitored = f"best validation {summary['monitor'].replace('_', ' ')} {summary['best']:.4f}"
    return f"{in_words(summary) or monitored}, at step {summary['best_step']:,}"
