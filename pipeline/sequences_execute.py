"""Makes the entries of a dataset of sequences: one function a stage."""

from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path

import numpy as np

from cache.entries import open_entry
from cache.keys import check_unchanged
from cache.layout import SEQUENCE, SEQUENCES, ArraySpec
from cache.sequence_recipe import SequenceRecipe
from cache.writer import EntryWriter
from configs.errors import UserError
from pipeline import sequences_kernels as kernels
from pipeline.channels import channels_of
from pipeline.plan import Node
from pipeline.sequences import read_recordings
from pipeline.sequences_dataset import describe_sequences
from pipeline.sequences_series import BLOCK_SEQUENCES, RecordingSeries
from pipeline.sequences_streams import fit_scaling, in_threads, of_one_length
from pipeline.sequences_windows import Placed, placed, with_binary
from pipeline.way import Advance, Builder


def _build_recordings(node: Node, recipe: SequenceRecipe, store: Path, entry: EntryWriter, advance: Advance) -> None:
    assert node.file is not None
    found = read_recordings(node.file, recipe.source)
    if node.file.identity:
        check_unchanged(node.file.path, node.file.identity)
    if len(found):
        dims = {"values": ("row", "channel"), "label": ("sequence", "column"), "id": ("sequence", "byte")}
        for name in ("values", "rows", "time", "label", "group", "id"):
            array = getattr(found, name)
            spec = ArraySpec(name, array.dtype.str, dims.get(name, ("sequence",)), array.shape[1:])
            entry.array(spec).append(array)
    advance(len(found))
    entry.publish(
        origin=node.file.path.name,
        sequences=len(found),
        channels=list(found.channels),
        groups=found.groups,
        classes=found.classes,
        empty=found.empty,
        missing=found.missing,
        unused=found.unused,
        repaired=found.repaired,
    )


def _build_windows(node: Node, recipe: SequenceRecipe, store: Path, entry: EntryWriter, advance: Advance) -> None:
    from pipeline.folds import assign_folds  # scikit-learn, which takes a second to load and is for this alone

    advance(0)
    series, length = RecordingSeries(store, node.components.inputs["recordings"]), recipe.length.seq_len
    group, groups = series.group
    label, classes = with_binary([series.label(k, name) for k, name in enumerate(recipe.source.labels)], recipe)
    fold = assign_folds(label[:, 0], group, recipe.folds, recipe.source.group)
    order = np.argsort(fold, kind="stable")
    ends = ((order + 1) * length).astype(np.int32)[:, None]
    if len(series) * length > np.iinfo(np.int32).max:
        raise UserError(
            f"{len(series):,} sequences of {length} rows are more rows than a stream holds; lower data.length.seq_len"
        )
    ids = series.ids
    entry.array(ArraySpec("ends", "<i4", ("window", "stream"), (1,))).append(ends)
    if recipe.length.mode == "pad":
        rows = np.minimum(series.rows, length)[order, None]
        entry.array(ArraySpec("starts", "<i4", ("window", "stream"), (1,))).append((ends - rows).astype(np.int32))
    entry.array(ArraySpec("time", "<i8", ("window",))).append(series.time[order])
    entry.array(ArraySpec("label", "<i4", ("window", "column"), label.shape[1:])).append(label[order])
    entry.array(ArraySpec("group", "<i4", ("window",))).append(group[order])
    entry.array(ArraySpec("fold", "|i1", ("window",))).append(fold[order])
    entry.array(ArraySpec("id", "|u1", ("window", "byte"), ids.shape[1:])).append(ids[order])
    bounds = np.concatenate([[0], np.cumsum(np.bincount(fold, minlength=recipe.folds.count))]).tolist()
    entry.publish(
        timeframes=[SEQUENCE],
        seq_len={SEQUENCE: length},
        classes=classes,
        groups=groups,
        folds=[list(pair) for pair in pairwise(bounds)],
    )


def _build_streams(node: Node, recipe: SequenceRecipe, store: Path, entry: EntryWriter, advance: Advance) -> None:
    if "fold" in node.components.fields:
        _build_scaled(node, recipe, store, entry, advance)
        return
    series = RecordingSeries(store, node.components.inputs["recordings"])
    channels = channels_of(series.channels, recipe.derive)
    values = entry.array(ArraySpec("values", "<f4", ("time", "feature"), (len(channels.names),)))
    for block in in_threads(lambda block: of_one_length(block, channels, recipe), series.blocks()):
        values.append(block.reshape(-1, len(channels.names)))
        advance(0)
    entry.publish(
        timeframe=SEQUENCE,
        features=list(channels.names),
        feature_set=SEQUENCES,
        statistics={"method": "none"},
    )


def _build_scaled(node: Node, recipe: SequenceRecipe, store: Path, entry: EntryWriter, advance: Advance) -> None:
    """The stream of one fold: the one of all folds, normalised by what the fold trains on."""
    (raw,) = (open_entry(store, "streams", key) for key in node.components.inputs["streams"])
    (windows,) = (open_entry(store, "windows", key) for key in node.components.inputs["windows"])
    at: Placed = placed(windows, recipe.length.seq_len)
    names: list[str] = raw.manifest["features"]
    values = raw.array("values").reshape(-1, recipe.length.seq_len, len(names))
    scaling = fit_scaling(values, at.fold != node.components.fields["fold"], at.first, recipe.normalise)
    array = entry.array(ArraySpec("values", "<f4", ("time", "feature"), (len(names),)))
    for start in range(0, len(values), BLOCK_SEQUENCES):
        block = values[start : start + BLOCK_SEQUENCES]
        out = np.empty(block.shape, np.float32)
        kernels.scale(np.asarray(block), scaling.center, scaling.scale, at.first[start : start + len(block)], out)
        array.append(out.reshape(-1, len(names)))
        advance(0)
    entry.publish(
        timeframe=SEQUENCE,
        features=names,
        feature_set=SEQUENCES,
        statistics=scaling.manifest(recipe.normalise, names),
    )


def _build_dataset(node: Node, recipe: SequenceRecipe, store: Path, entry: EntryWriter, advance: Advance) -> None:
    advance(0)
    ((_, keys),) = node.components.inputs.items()
    entry.publish(**describe_sequences(recipe, keys, store))


BUILDERS: Mapping[str, Builder] = {
    "recordings": _build_recordings,
    "windows": _build_windows,
    "streams": _build_streams,
    "datasets": _build_dataset,
}
