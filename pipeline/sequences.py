"""Recordings from files: rows that belong together, in order, each sequence of one group and with its labels.

The main path of a file, or of a part of it: find_columns → read_rows → true_rows → true_values.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cache.sequence_recipe import SequencesSource
from pipeline.plan import SourceFile
from pipeline.sequences_columns import find_columns
from pipeline.sequences_faults import Repaired, names_in_order, true_rows, true_values
from pipeline.sequences_read import read_rows
from pipeline.tables import open_table


@dataclass(frozen=True)
class Recordings:
    """Sequences one behind another: n of them with R rows in all. Codes count names in alphabetical order.

    Attributes:
        id: uint8 [n, width], UTF-8, filled up with zeros.
        rows: int32 [n], rows of each.
        time: int64 [n], the order of each one's last row, rounded down.
        group: int32 [n], codes into `groups`.
        label: int32 [n, labels], codes into `classes`, column by column.
        values: float64 [R, C], NaN where nothing was measured.
        empty: how many sequences have no value in a channel, by channel; channels without such are left out.
        missing: how many values of a channel were not measured, by channel; complete channels are left out.
        unused: columns of the file that the recipe has no use for.
        repaired: rows and sequences that a policy changed.
    """

    id: NDArray[np.uint8]
    rows: NDArray[np.int32]
    time: NDArray[np.int64]
    group: NDArray[np.int32]
    label: NDArray[np.int32]
    values: NDArray[np.float64]
    channels: tuple[str, ...]
    groups: list[str]
    classes: dict[str, list[str]]
    empty: dict[str, int]
    missing: dict[str, int]
    unused: list[str]
    repaired: Repaired

    def __len__(self) -> int:
        return len(self.rows)


def read_recordings(file: SourceFile, source: SequencesSource) -> Recordings:
    """Read and check a file, or the part of it that `file.span` says.

    Raises SourceError naming file, column, row (from 0 after the header), value and remedy at the first row that cannot
    be taken as it is, unless `source.policy` says what to do with it.
    """
    table = open_table(file.path)
    columns = find_columns(table, source)
    raw = read_rows(file, columns)
    rows = true_rows(raw, source)
    values, empty = true_values(rows)
    starts, lengths = rows.starts, rows.lengths
    group, groups = names_in_order(rows.codes(source.group)[starts], raw.names[source.group].known)
    label, classes = np.empty((len(starts), len(source.labels)), np.int32), {}
    for k, name in enumerate(source.labels):
        label[:, k], classes[name] = names_in_order(rows.codes(name)[starts], raw.names[name].known)
    known = raw.names[source.id].known
    return Recordings(
        as_bytes([known[code] for code in rows.code[starts]]),
        lengths.astype(np.int32),
        np.floor(rows.order[starts + lengths - 1]).astype(np.int64),
        group,
        label,
        values,
        raw.columns.channels,
        groups,
        classes,
        empty,
        {name: int(count) for name, count in zip(columns.channels, np.isnan(values).sum(axis=0), strict=True) if count},
        [name for name in table.names if name not in (*columns.words, *columns.numbers)],
        rows.repaired,
    )


def as_bytes(names: list[str]) -> NDArray[np.uint8]:
    """Names as UTF-8, uint8 [n, width of the longest], filled up with zeros."""
    fixed = np.array([name.encode() for name in names] or [b""], np.bytes_)
    return fixed.view(np.uint8).reshape(len(fixed), -1)[: len(names)]


def as_names(id: NDArray[np.uint8]) -> list[str]:
    """The names again."""
    fixed = np.ascontiguousarray(id).view(f"S{id.shape[1]}").reshape(-1)
    return [name.decode() for name in fixed.tolist()]
