"""The certificate of sequences: proof that nothing of what validates has been seen in training.

windows      every window has the id, the labels and the group of its recording
groups       no group is in the validation part of two folds; each fold is one range of windows
statistics   what a fold's stream was normalised by was fitted on the other folds alone
streams      sampled sequences, made again each by itself, are the same to the byte in every stream
"""

import io
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cache.console import Console
from cache.entries import Entry, open_entry
from cache.layout import ALL_FOLDS, fold_name
from cache.reader import Dataset
from cache.sequence_recipe import SequenceRecipe
from configs.errors import UserError
from pipeline.certify_evidence import Finding
from pipeline.channels import channels_of
from pipeline.sequences import as_names
from pipeline.sequences_series import RecordingSeries
from pipeline.sequences_streams import QUARTILES_OF_NORMAL, in_threads, of_one_length
from pipeline.sequences_windows import Placed, placed, with_binary

Certificate = dict[str, Any]
_TOLERANCE = 1e-6  # of a scale: what sums in another order may differ by


@dataclass(frozen=True)
class SequenceEvidence:
    """What a dataset of sequences rests on. `raw` is the stream before it was normalised."""

    windows: Entry
    streams: Mapping[str, Entry]
    raw: Entry
    series: RecordingSeries
    folds: list[list[int]]
    at: Placed


def evidence_of_sequences(
    windows: Entry, streams: Mapping[str, Entry], folds: list[list[int]], recipe: SequenceRecipe, store: Path
) -> SequenceEvidence:
    """Open what windows and streams were made of. Raises StoreError where that is gone."""
    first = next(iter(streams.values()))
    raw = first
    if ALL_FOLDS not in streams:
        raw = open_entry(store, "streams", first.manifest["components"]["inputs"]["streams"][0])
    series = RecordingSeries(store, windows.manifest["components"]["inputs"]["recordings"])
    return SequenceEvidence(windows, streams, raw, series, folds, placed(windows, recipe.length.seq_len))


def certify_sequences(
    recipe: SequenceRecipe,
    evidence: SequenceEvidence,
    samples: int,
    seed: int,
    advance: Callable[[int], object] = lambda sequences: None,
) -> Certificate:
    """Prove a dataset, published or about to be: {"passed", "samples", "seed", "checks": {name: {"passed", …}}}.

    `samples` sequences are made again, `seed` decides which; the first and the last window of every fold are among
    them. Nothing is raised for what does not pass.
    """
    chosen = _draw(evidence, samples, seed)
    findings = {
        "windows": _check_windows(recipe, evidence),
        "groups": _check_groups(recipe, evidence),
        "statistics": _check_statistics(recipe, evidence),
        "streams": _check_streams(recipe, evidence, chosen, advance),
    }
    return {
        "passed": not any(finding.faults for finding in findings.values()),
        "samples": len(chosen),
        "seed": seed,
        "checks": {name: finding.as_dict() for name, finding in findings.items()},
    }


def certify_sequence_dataset(
    dataset: Dataset, store: Path, samples: int, seed: int, console: Console | None = None
) -> Certificate:
    """The certificate of a published dataset. Raises StoreError where its recordings are gone."""
    console = console or Console(io.StringIO())
    recipe = SequenceRecipe.model_validate(dataset.entry.manifest["recipe"])
    ((_, entries),) = dataset.symbols.items()
    folds = [[fold.start, fold.stop] for fold in dataset.folds]
    evidence = evidence_of_sequences(entries.windows, entries.streams, folds, recipe, store)
    with console.bar("certifying", "sequences", samples) as bar:
        return certify_sequences(recipe, evidence, samples, seed, bar.update)


def sequence_certificate_error(certificate: Certificate, name: str) -> UserError:
    """The error for a dataset that does not pass: it must not be published."""
    failed = {check: result for check, result in certificate["checks"].items() if not result["passed"]}
    lines = "".join(f"\n  {check}: {result['detail']}" for check, result in failed.items())
    return UserError(
        f"{name}: not published, because it does not prove that training sees nothing of what validates.{lines}\n"
        "Your data cannot cause this: either an entry of the store was changed, and building into a new one (--store) "
        "helps, or Headstart has a fault; please report these lines"
    )


def _check_windows(recipe: SequenceRecipe, evidence: SequenceEvidence) -> Finding:
    found, series, manifest = Finding(), evidence.series, evidence.windows.manifest
    found.checked, window = len(series), evidence.at.window
    length = recipe.length.seq_len
    ends = np.asarray(evidence.windows.array("ends"))[window, 0]
    if len(window) != len(series) or (ends != np.arange(1, len(series) + 1) * length).any():
        found.faults.append(f"{recipe.name}: the windows are not one for every sequence")
        return found
    group, groups = series.group
    label, classes = with_binary([series.label(k, name) for k, name in enumerate(recipe.source.labels)], recipe)
    ids = series.ids
    for name, expected, known, names in (
        ("id", ids, None, None),
        ("group", group, manifest["groups"], groups),
        ("label", label, manifest["classes"], classes),
    ):
        different = np.asarray(evidence.windows.array(name))[window] != expected
        if known != names:
            found.faults.append(f"{recipe.name}: the names of {name} are not those of the recordings")
        elif different.any():
            at = int(different.reshape(len(window), -1).any(axis=1).argmax())
            found.faults.append(f"sequence {as_names(ids[at : at + 1])[0]}: its window has another {name}")
    found.detail = (
        f"all {found.checked:,} windows have the id, the labels and the {recipe.source.group} of their recording"
    )
    return found


def _check_groups(recipe: SequenceRecipe, evidence: SequenceEvidence) -> Finding:
    """Groups are taken from the recordings, and the part of a window from the ranges that training uses."""
    found, windows = Finding(), evidence.windows
    group, groups = evidence.series.group
    part = _part(evidence)
    found.checked = len(part)
    if (part != evidence.at.fold).any():
        found.faults.append(f"{recipe.name}: the folds are not the ranges of windows that the windows name")
    elif evidence.folds != windows.manifest["folds"] or len(evidence.folds) != recipe.folds.count:
        found.faults.append(f"{recipe.name}: the folds are not those of the windows, or not {recipe.folds.count}")
    pairs = np.unique(np.stack([group[: len(part)], part], axis=1), axis=0)
    for code in np.flatnonzero(np.bincount(pairs[:, 0]) > 1):
        parts = ", ".join(str(fold) for which, fold in pairs if which == code)
        found.faults.append(f"{recipe.source.group} {groups[code]} is in the validation parts of folds {parts}")
    found.detail = f"each of {len(groups):,} groups ({recipe.source.group}) is in the validation part of one fold"
    return found


def _check_statistics(recipe: SequenceRecipe, evidence: SequenceEvidence) -> Finding:
    """Fit again on all sequences of groups that do not validate, channel by channel."""
    found, names = Finding(), evidence.raw.manifest["features"]
    if recipe.normalise == "none":
        found.detail = "nothing was fitted"
        return found
    group, _ = evidence.series.group
    part, length = _part(evidence), recipe.length.seq_len
    values = evidence.raw.array("values").reshape(-1, length, len(names))
    valid = np.arange(length) >= evidence.at.first[:, None]
    trains = {fold: ~np.isin(group, group[part == fold]) for fold in range(len(evidence.folds))}
    if untrained := [fold for fold, train in trains.items() if not train.any()]:
        found.faults.append(f"fold {untrained[0]}: no {recipe.source.group} is left to train on")
        return found

    def faults(k: int) -> list[str]:
        column = np.ascontiguousarray(values[:, :, k])
        wrong = []
        for fold, train in trains.items():
            center, scale = _fitted(column[train][valid[train]], recipe.normalise)
            statistics = evidence.streams[fold_name(fold)].manifest["statistics"]
            claimed = statistics["center"][names[k]], statistics["scale"][names[k]]
            if max(abs(claimed[0] - center), abs(claimed[1] - scale)) > _TOLERANCE * scale:
                wrong.append(
                    f"fold {fold}, {names[k]}: normalised by {claimed[0]:.6g} and {claimed[1]:.6g}, but what the fold "
                    f"trains on gives {center:.6g} and {scale:.6g}"
                )
        return wrong

    found.faults += [fault for of_channel in in_threads(faults, range(len(names))) for fault in of_channel]
    found.checked = len(names) * len(trains)
    found.detail = f"{found.checked:,} centers and scales are those of the training part of their fold alone"
    return found


def _check_streams(
    recipe: SequenceRecipe, evidence: SequenceEvidence, chosen: list[int], advance: Callable[[int], object]
) -> Finding:
    found, channels = Finding(), channels_of(evidence.series.channels, recipe.derive)
    for number in chosen:
        (made,) = of_one_length(evidence.series.one(number), channels, recipe)
        first = int(evidence.at.first[number])
        for name, expected in _expected(made, first, evidence):
            stream = evidence.streams.get(name, evidence.raw)
            start = number * recipe.length.seq_len
            if stream.rows("values", start, start + recipe.length.seq_len).tobytes() != expected.tobytes():
                found.faults.append(f"{name}: rows {start:,} on are not what sequence number {number:,} gives")
        found.checked += 1
        advance(1)
    found.detail = f"{found.checked:,} sequences, made again each by itself, are the same to the byte in every stream"
    return found


def _expected(made: NDArray[np.float32], first: int, evidence: SequenceEvidence) -> Iterator[tuple[str, NDArray[Any]]]:
    """What each stream should hold of a sequence, the one before normalisation first."""
    yield ALL_FOLDS, made
    for name, stream in evidence.streams.items():
        statistics = stream.manifest["statistics"]
        if statistics["method"] != "none":
            center, scale = (np.array(list(statistics[key].values())) for key in ("center", "scale"))
            scaled = ((made - center) / scale).astype(np.float32)
            scaled[:first] = 0
            yield name, scaled


def _fitted(column: NDArray[np.float32], method: str) -> tuple[float, float]:
    """Center and scale of values [n], by NumPy's own functions."""
    if column.min() == column.max():
        return float(column[0]), 1.0
    if method == "robust":
        low, center, high = np.quantile(column, (0.25, 0.5, 0.75)).astype(np.float64)
        if high > low:
            return float(center), float((high - low) / QUARTILES_OF_NORMAL)
        return float(center), float(column.std(dtype=np.float64))
    return float(column.mean(dtype=np.float64)), float(column.std(dtype=np.float64))


def _part(evidence: SequenceEvidence) -> NDArray[np.int8]:
    """The fold of every sequence by the ranges of windows, in the order of the streams."""
    of_window = np.full(evidence.windows.shape("time")[0], -1, np.int8)
    for fold, (start, stop) in enumerate(evidence.folds):
        of_window[start:stop] = fold
    return of_window[evidence.at.window]


def _draw(evidence: SequenceEvidence, samples: int, seed: int) -> list[int]:
    """Numbers of sequences: those of the first and last window of every fold, and others."""
    place = np.argsort(evidence.at.window)
    ends = [int(place[window]) for start, stop in evidence.folds for window in (start, stop - 1)]
    others = np.random.default_rng(seed).permutation(len(place)).tolist()
    return list(dict.fromkeys([*ends, *others]))[: max(samples, 2)]
