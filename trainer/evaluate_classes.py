"""Evaluation of a run of the task `classify` on the whole validation part: measures beside the majority class."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from cache.tables import table
from trainer.classify import Classify
from trainer.data import WindowSource
from trainer.measures import in_words
from trainer.task import Advance


def evaluate_classes(model: torch.nn.Module, task: Classify, source: WindowSource, advance: Advance) -> dict[str, Any]:
    """Score it, as it goes into JSON: "measures", "majority" and, by label, "confusion" (rows true) and "classes"."""
    predictions = task.predict(model, source, source.val.all(), advance)
    counts = task.confusions(predictions)
    return {
        "measures": task.measures(predictions),
        "majority": task.majority(predictions.truth),
        "confusion": {name: counts_CC.tolist() for name, counts_CC in counts.items()},
        "classes": {
            name: dict(zip(known, map(_of_class, counts[name], counts[name].T, range(len(known))), strict=True))
            for name, known in task.classes.items()
        },
    }


def class_table(result: dict[str, Any]) -> Iterator[str]:
    """The same for people."""
    yield f"model           {in_words(result['measures'])}"
    yield f"majority class  {in_words(result['majority'])}"
    for name, classes in result["classes"].items():
        rows = [
            (f"  {one}", f"{of['recordings']:,}", *(_share(of[word]) for word in ("precision", "recall", "f1")))
            for one, of in classes.items()
        ]
        yield ""
        yield from table([(name, "recordings", "precision", "recall", "F1"), *rows], right={1, 2, 3, 4})


def _of_class(row_C: Tensor, column_C: Tensor, number: int) -> dict[str, Any]:
    """A class's recordings, and its precision, recall and F1 (None without any that count)."""
    right, true, told = int(row_C[number]), int(row_C.sum()), int(column_C.sum())
    return {
        "recordings": true,
        "precision": right / told if told else None,
        "recall": right / true if true else None,
        "f1": 2 * right / (true + told) if true + told else None,
    }


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
