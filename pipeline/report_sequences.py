"""The parts of a report on a dataset of sequences: folds by group and class, lengths, channels, some recordings."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cache.charts import histogram_panel, stacked_lines
from cache.entries import Entry
from cache.html import figure, grid, legend, paragraph, subheading, table
from cache.layout import SEQUENCE
from cache.part import part_of
from cache.reader import Dataset
from cache.show import sources_of
from pipeline.report_features import panels, sample
from pipeline.sequences import as_names
from pipeline.sequences_windows import placed

Array = NDArray[Any]
_BLOCK = 512  # sequences read at once
_GROUPS = 60  # rows of the table
_DRAWN = 6  # recordings
_CHANNELS = 12  # of each of them


def folds_body(dataset: Dataset) -> str:
    """Training and validation of every fold, and how many recordings every group has of every class."""
    manifest, windows = dataset.entry.manifest, _windows(dataset)
    count = windows.shape("time")[0]
    group = dataset.recipe["source"]["group"]
    lines = [
        (f"fold {k}", f"{count - stop + start:,}", f"{stop - start:,}", f"{len(fold['groups'])}")
        for k, fold in enumerate(manifest["folds"])
        for start, stop in [fold["windows"]]
    ]
    parts = [table(("validates", "training", "validation", f"{group}s"), lines)]
    codes, label = np.asarray(windows.array("group")), np.asarray(windows.array("label"))
    for column, (name, known) in enumerate(manifest["classes"].items()):
        parts += [
            subheading(f"Recordings by {group} and {name}"),
            _groups(dataset, codes, label[:, column], known, group),
        ]
    return "".join(parts)


def lengths_body(dataset: Dataset, store: Path) -> str:
    """Rows of the recordings, as they were in the files."""
    found = [np.asarray(e.array("rows")) for e in sources_of(_windows(dataset), store) if e.manifest["sequences"]]
    wanted = dataset.seq_lens[SEQUENCE]
    if not found:
        return paragraph("The recordings are no longer in the store; training needs none of them.")
    rows = np.concatenate(found)
    edges = np.linspace(float(rows.min()), float(rows.max()) + 1, 31)
    counts = np.histogram(rows, edges)[0] / len(rows)
    numbers = [
        (f"{name}", f"{value:,.0f}")
        for name, value in zip(("shortest", "median", "longest"), np.quantile(rows, [0, 0.5, 1]), strict=True)
    ]
    how = f"each became {wanted} rows ({dataset.recipe['length']['mode']})"
    drawing = histogram_panel("Lengths of recordings", f"{len(rows):,} recordings.", edges, counts)
    return grid([figure(drawing, f"Rows a recording; {how}", "lengths"), table(("rows", ""), numbers)], "wide")


def channels_body(dataset: Dataset) -> str:
    """A panel a fold and channel."""
    parts = [legend({"train": "recordings that train", "val": "recordings that validate"})]
    windows, length = _windows(dataset), dataset.seq_lens[SEQUENCE]
    place = placed(windows, length)
    for fold in range(len(dataset.folds)):
        ((_, stream),) = part_of(dataset, fold).streams.items()
        features = stream.manifest["features"]
        train, val = (
            sample(_rows(stream, length, np.flatnonzero(among), place.first), len(features))
            for among in (place.fold != fold, place.fold == fold)
        )
        parts += [subheading(f"Fold {fold}"), panels(f"fold {fold}", features, train, val)]
    return "".join(parts)


def recordings_body(dataset: Dataset) -> str:
    """Some recordings of different classes, as the first fold sees them."""
    windows, length = _windows(dataset), dataset.seq_lens[SEQUENCE]
    ((_, stream),) = part_of(dataset, 0).streams.items()
    name, known = next(iter(dataset.entry.manifest["classes"].items()))
    label = np.asarray(windows.array("label"))[:, 0]
    first = [int(np.flatnonzero(label == code)[0]) for code in np.unique(label)]
    chosen = [first[int(k)] for k in np.linspace(0, len(first) - 1, min(_DRAWN, len(first)))]
    ids, ends = as_names(windows.array("id")), windows.array("ends")
    features = stream.manifest["features"][:_CHANNELS]
    figures = []
    groups = np.asarray(windows.array("group"))
    for window in chosen:
        values = stream.rows("values", int(ends[window, 0]) - length, int(ends[window, 0]))[:, :_CHANNELS]
        words = f"{known[label[window]]}: {ids[window]} of {windows.manifest['groups'][int(groups[window])]}"
        title = f"Channels of recording {ids[window]}, {name} {known[label[window]]}"
        figures.append(figure(stacked_lines(title, words, values, features, "row 1", f"row {length}"), words))
    return grid(figures)


def _groups(dataset: Dataset, group: Array, label: Array, known: Sequence[str], word: str) -> str:
    """A row a group, fold by fold; the more recordings, the darker."""
    names = _windows(dataset).manifest["groups"]
    counts = np.zeros((len(names), len(known)), int)
    np.add.at(counts, (group, label), 1)
    order = [
        (k, code) for k, part in enumerate(dataset.folds) for code in np.unique(group[part.start : part.stop]).tolist()
    ]
    most = max(int(counts.max()), 1)
    lines: list[tuple[str, ...]] = []
    heat: dict[str, int] = {}
    for row, (fold, code) in enumerate(order[:_GROUPS]):
        lines.append((f"{names[code]}", f"{fold}", *(f"{n:,}" if n else "·" for n in counts[code].tolist())))
        heat |= {f"{row},{c + 1}": -(-5 * n // most) for c, n in enumerate(counts[code].tolist()) if n}
    more = len(order) - len(lines)
    return table((word, "fold", *known), lines, f"{more:,} more are left out" if more > 0 else "", heat)


def _rows(stream: Entry, length: int, sequences: Array, first: Array) -> Iterator[Array]:
    """Rows of some sequences (rising numbers, in the order of the stream) in blocks, without padding."""
    for start in range(0, stream.shape("values")[0] // length, _BLOCK):
        wanted = sequences[(sequences >= start) & (sequences < start + _BLOCK)]
        if len(wanted):
            block = stream.rows("values", start * length, (start + _BLOCK) * length)
            cube = block.reshape(-1, length, block.shape[1])[wanted - start]
            yield cube[np.arange(length) >= first[wanted, None]]


def _windows(dataset: Dataset) -> Entry:
    (entries,) = dataset.symbols.values()
    return entries.windows
