"""Windows of sequences: their labels, and where each stands among the sequences of a stream."""

import difflib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cache.entries import Entry
from cache.sequence_recipe import SequenceRecipe
from configs.errors import UserError


@dataclass(frozen=True)
class Placed:
    """By sequence, in the order of the streams: its window's number, its fold, and the first row that is no padding."""

    window: NDArray[np.int64]
    fold: NDArray[np.int8]
    first: NDArray[np.int64]


def placed(windows: Entry, length: int) -> Placed:
    """Put the arrays of a windows entry, which are ordered by fold, into the order of the streams."""
    ends = windows.array("ends")[:, 0].astype(np.int64)
    window = np.argsort(ends, kind="stable")
    first = np.zeros(len(ends), np.int64)
    if "starts" in windows.manifest["arrays"]:
        first = (windows.array("starts")[:, 0] - (ends - length))[window]
    return Placed(window, np.asarray(windows.array("fold"))[window], first)


def with_binary(
    labels: list[tuple[NDArray[np.int32], list[str]]], recipe: SequenceRecipe
) -> tuple[NDArray[np.int32], dict[str, list[str]]]:
    """All labels int32 [n, labels], that derived of one of them last, and the names of their classes.

    Raises UserError for a positive class that does not occur.
    """
    source = recipe.source
    columns = [codes for codes, _ in labels]
    classes = {name: known for name, (_, known) in zip(source.labels, labels, strict=True)}
    if binary := source.binary:
        codes, known = labels[source.labels.index(binary.label)]
        for name in binary.positive:
            if name not in known:
                close = difflib.get_close_matches(name, known, n=1)
                hint = f"did you mean {close[0]}?" if close else f"its classes are {', '.join(known)}"
                raise UserError(f"data.source.binary.positive has {name}, which no {binary.label} is; {hint}")
        positive = np.array([name in binary.positive for name in known], np.int32)
        columns.append(positive[codes])
        classes[binary.name] = [f"not {binary.name}", binary.name]
    return np.stack(columns, axis=1), classes
