"""Predicted classes as CSV: one row a recording.

id, group, fold, then for every label LABEL (the true class), LABEL_predicted and, class by class, LABEL_p_CLASS.
"""

import csv
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cache.entries import Entry
from cache.files import write_atomically
from trainer.class_metrics import confusion

KNOWN = ("id", "group", "fold")


@dataclass(frozen=True)
class Predictions:
    """What a model makes of W windows.

    Attributes:
        index: int64 [W], their numbers.
        truth: int64 [W, labels].
        logits: float32 [W, C] a label.
    """

    index: Tensor
    truth: Tensor
    logits: tuple[Tensor, ...]


def write_predictions(
    path: Path, predictions: Predictions, windows: Entry, classes: Mapping[str, Sequence[str]]
) -> None:
    """Write them; ids, groups and folds are those of the windows."""
    columns, header = known_of(windows, predictions.index.numpy()), [*KNOWN]
    for k, (name, known) in enumerate(classes.items()):
        probability_WC = predictions.logits[k].double().softmax(dim=1)
        header += [name, f"{name}_predicted", *(f"{name}_p_{one}" for one in known)]
        columns.append([known[code] for code in predictions.truth[:, k].tolist()])
        columns.append([known[code] for code in predictions.logits[k].argmax(dim=1).tolist()])
        columns += [[f"{value:.6f}" for value in column] for column in probability_WC.T.tolist()]
    write_table(path, header, zip(*columns, strict=True))


def known_of(windows: Entry, index_W: NDArray[np.int64]) -> list[Sequence[object]]:
    """The columns KNOWN of windows."""
    ids = [bytes(row).rstrip(b"\0").decode() for row in windows.array("id")[index_W]]
    groups = [windows.manifest["groups"][code] for code in windows.array("group")[index_W]]
    return [ids, groups, windows.array("fold")[index_W].tolist()]


def join_predictions(paths: Sequence[Path], out: Path) -> None:
    """Write those of several folds, one behind another."""
    tables = [list(_read(path)) for path in paths]
    write_table(out, list(tables[0][0]), (list(row.values()) for table in tables for row in table))


def counts_of(path: Path, classes: Mapping[str, Sequence[str]]) -> dict[str, Tensor]:
    """How often which class was predicted for which: int64 [C, C] a label, row the true class."""
    rows = list(_read(path))
    counts = {}
    for name, known in classes.items():
        truth, predicted = (
            torch.tensor([known.index(row[column]) for row in rows]) for column in (name, f"{name}_predicted")
        )
        counts[name] = confusion(truth, predicted, len(known))
    return counts


def _read(path: Path) -> Iterator[dict[str, str]]:
    yield from csv.DictReader(io.StringIO(path.read_text(encoding="utf-8"), newline=""))


def write_table(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Write rows with the names of their columns above them."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    write_atomically(path, text.getvalue().encode())
