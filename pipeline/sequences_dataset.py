"""The last entry of a build of sequences: what is in every fold, what looks odd, and the certificate."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cache.entries import Entry, open_entry
from cache.layout import SEQUENCE
from cache.sequence_recipe import SequenceRecipe
from pipeline.certify_sequences import certify_sequences, evidence_of_sequences, sequence_certificate_error

CERTIFIED_SEQUENCES = 64  # what every build can afford; `bin/cache certify` makes more of them again


def describe_sequences(recipe: SequenceRecipe, keys: Mapping[str, Any], store: Path) -> dict[str, Any]:
    """What the manifest of a dataset says, given its entries' keys. Raises UserError when the certificate fails."""
    windows = open_entry(store, "windows", keys["windows"])
    streams = {name: open_entry(store, "streams", key) for name, key in keys["streams"].items()}
    ranges: list[list[int]] = windows.manifest["folds"]
    evidence = evidence_of_sequences(windows, streams, ranges, recipe, store)
    certificate = certify_sequences(recipe, evidence, CERTIFIED_SEQUENCES, 0)
    if not certificate["passed"]:
        raise sequence_certificate_error(certificate, recipe.name)
    label, classes = np.asarray(windows.array("label")), windows.manifest["classes"]
    folds = [
        {
            "windows": bounds,
            "groups": _named(windows.array("group")[slice(*bounds)], windows.manifest["groups"]),
            "classes": _counts(label[slice(*bounds)], classes),
        }
        for bounds in ranges
    ]
    warnings = [
        *_empty(evidence.series.entries, len(label)),
        *_alone(_counts(label, classes)),
        *_lacking(folds, _counts(label, classes)),
        *_constant(streams, len(folds)),
    ]
    return {
        "timeframes": [SEQUENCE],
        "seq_len": {SEQUENCE: recipe.length.seq_len},
        "classes": classes,
        "folds": folds,
        "recipe": recipe.model_dump(),
        "certificate": certificate,
        "warnings": warnings,
    }


def _named(codes: NDArray[np.int32], names: list[str]) -> list[str]:
    return [names[code] for code in np.unique(codes)]


def _counts(label: NDArray[np.int32], classes: Mapping[str, list[str]]) -> dict[str, dict[str, int]]:
    """How many windows each class of each label has."""
    return {
        name: dict(zip(known, np.bincount(label[:, k], minlength=len(known)).tolist(), strict=True))
        for k, (name, known) in enumerate(classes.items())
    }


def _empty(entries: list[Entry], sequences: int) -> Iterator[str]:
    empty: dict[str, int] = {}
    for entry in entries:
        for channel, count in entry.manifest["empty"].items():
            empty[channel] = empty.get(channel, 0) + count
    for channel, count in empty.items():
        yield f"{channel} has no value in {count:,} of {sequences:,} sequences, and is 0 there"


def _alone(total: Mapping[str, Mapping[str, int]]) -> Iterator[str]:
    """Labels that are the same everywhere."""
    for label, counts in total.items():
        if len(present := [name for name, count in counts.items() if count]) == 1:
            yield f"{label} is {present[0]} in all sequences, so there is nothing to tell apart"


def _lacking(folds: list[dict[str, Any]], total: Mapping[str, Mapping[str, int]]) -> Iterator[str]:
    """Classes that a part of a fold lacks."""
    for number, fold in enumerate(folds):
        for label, counts in fold["classes"].items():
            if absent := [name for name, count in counts.items() if total[label][name] > count == 0]:
                yield f"fold {number} validates on no {label} {', '.join(absent)}, so its scores say nothing about that"
            if unseen := [name for name, count in counts.items() if total[label][name] == count > 0]:
                yield f"fold {number} trains on no {label} {', '.join(unseen)}, because no other fold has it"


def _constant(streams: Mapping[str, Entry], count: int) -> Iterator[str]:
    where: dict[str, int] = {}
    for stream in streams.values():
        for channel in stream.manifest["statistics"].get("constant", ()):
            where[channel] = where.get(channel, 0) + 1
    for channel, number in where.items():
        yield f"{channel} does not vary over the training part of {number} of {count} folds, so it tells nothing there"
