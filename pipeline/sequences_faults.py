"""Recordings that cannot be taken as they are: found, and refused or mended as the recipe's policy says."""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from cache.sequence_recipe import SequencesSource
from pipeline.channels import LARGEST
from pipeline.files import SourceError
from pipeline.sequences_read import NOTHING, Raw

Repaired = dict[
    str, dict[str, int]
]  # by fault: {"rows" or "sequences": how many a policy changed, "first_row": number}
Mask = NDArray[np.bool_]


@dataclass
class Rows:
    """Rows under examination: their places int64 [n] in `raw`, those of one sequence side by side."""

    raw: Raw
    source: SequencesSource
    place: NDArray[np.int64]
    repaired: Repaired = field(default_factory=dict)

    @property
    def code(self) -> NDArray[np.int32]:
        """The sequence of each row."""
        return self.codes(self.source.id)

    @property
    def order(self) -> NDArray[np.float64]:
        """The order of each row."""
        return self.raw.order[self.place]

    @property
    def starts(self) -> NDArray[np.int64]:
        """Rows that begin a sequence."""
        return np.flatnonzero(np.diff(self.code, prepend=np.int32(NOTHING - 1)))

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Rows of each sequence."""
        return np.diff(self.starts, append=len(self.place))

    def codes(self, column: str) -> NDArray[np.int32]:
        """A column of names."""
        return self.raw.names[column].codes[self.place]

    def name(self, column: str, at: int) -> str:
        """The name in a column of names at a row, for messages."""
        code = self.raw.names[column].codes[self.place[at]]
        return self.raw.names[column].known[code] if code != NOTHING else "nothing"

    def fault(self, at: int, column: str, what: str) -> SourceError:
        """An error about a row."""
        number = self.raw.first_row() + int(self.place[at])
        return SourceError(f"{self.raw.path}: column {column}, row {number:,}: {what}")

    def count(self, fault: str, rows: Mask, unit: str, count: int) -> None:
        """Note that a policy changed these rows, `count` of `unit`; several columns may have the same fault."""
        first = self.raw.first_row() + int(self.place[rows].min())
        known = self.repaired.get(fault, {unit: 0, "first_row": first})
        self.repaired[fault] = {unit: known[unit] + count, "first_row": min(known["first_row"], first)}

    def drop(self, fault: str, bad: Mask) -> None:
        """Leave out the sequences that are bad [n sequences]."""
        gone = np.repeat(bad, self.lengths)
        self.count(fault, gone, "sequences", int(bad.sum()))
        self.place = self.place[~gone]


def true_rows(raw: Raw, source: SequencesSource) -> Rows:
    """The rows that make whole sequences, in order, each of one group and with one name of every label.

    Raises SourceError at the first row that is refused.
    """
    rows = Rows(raw, source, np.arange(len(raw.order)))
    _check_keys(rows)
    _put_in_order(rows)
    _keep_one(rows)
    for column in (source.group, *source.labels):
        _check_constant(rows, column)
    for column in (source.group, *source.labels):
        _check_named(rows, column)
    _check_single(rows)
    return rows


def true_values(rows: Rows) -> tuple[NDArray[np.float64], dict[str, int]]:
    """The channels [R, C] with NaN where nothing was measured, and how many sequences lack each channel altogether.

    Raises SourceError at the first value that is refused; sequences may be dropped from `rows`.
    """
    source, channels = rows.source, rows.raw.columns.channels
    values = rows.raw.channels[rows.place]
    if source.sentinels:
        values[np.isin(values, source.sentinels)] = np.nan
    beyond = np.abs(values) > LARGEST
    if beyond.any():
        if source.policy.not_finite == "error":
            at, column = np.argwhere(beyond)[0]
            what = "not a finite number" if np.isinf(values[at, column]) else f"beyond {LARGEST:g}, and no measurement"
            remedy = "correct it, or set data.source.policy.not_finite=missing"
            raise rows.fault(at, channels[column], f"{values[at, column]} is {what}; {remedy}")
        wrong = np.asarray(beyond.any(axis=1))
        rows.count("not_finite", wrong, "rows", int(wrong.sum()))
        values[beyond] = np.nan
    absent = np.isnan(values)
    if not len(values) or not absent.any():
        return values, {}
    empty = np.logical_and.reduceat(absent, rows.starts, axis=0)
    if empty.any() and source.policy.empty_channel == "error":
        sequence, column = np.argwhere(empty)[0]
        at = int(rows.starts[sequence])
        what = f"sequence {rows.name(source.id, at)} has no value in this channel"
        raise rows.fault(at, channels[column], f"{what}; set data.source.policy.empty_channel=zero or drop")
    if empty.any() and source.policy.empty_channel == "drop":
        bad = np.asarray(empty.any(axis=1))
        values = values[~np.repeat(bad, rows.lengths)]
        rows.drop("empty_channel", bad)
        return values, {}
    return values, {name: int(count) for name, count in zip(channels, empty.sum(axis=0), strict=True) if count}


def _check_keys(rows: Rows) -> None:
    nameless, orderless = rows.code == NOTHING, ~np.isfinite(rows.order)
    for wrong, column, what in (
        (nameless, rows.source.id, "no id says which sequence this row belongs to"),
        (orderless, rows.source.order, "no number says where in its sequence this row stands"),
    ):
        if wrong.any():
            raise rows.fault(int(wrong.argmax()), column, f"{what}; fill it in, or remove the row")


def _put_in_order(rows: Rows) -> None:
    source, order = rows.source, rows.order
    back, apart = _earlier(rows), _apart(rows)
    wrong = np.asarray(back | apart)
    if not wrong.any():
        return
    if source.policy.unsorted == "sort":
        rows.count("unsorted", wrong, "rows", int(wrong.sum()))
        rows.place = np.lexsort((order, rows.code))  # stable, and codes are in order of appearance
        return
    remedy = f"sort the file by {source.id} and {source.order}, or set data.source.policy.unsorted=sort"
    at = int(wrong.argmax())
    sequence = rows.name(source.id, at)
    if apart[at]:
        raise rows.fault(at, source.id, f"{sequence} goes on here after rows of another sequence; {remedy}")
    now, before = _shown(order[at]), _shown(order[at - 1])
    raise rows.fault(at, source.order, f"{now} comes after {before} in sequence {sequence}; {remedy}")


def _earlier(rows: Rows) -> Mask:
    """Rows of a smaller order than the row before, of the same sequence."""
    return np.append(False, (np.diff(rows.order) < 0) & (np.diff(rows.code) == 0))


def _apart(rows: Rows) -> Mask:
    """Rows that begin a sequence which has been there before."""
    starts = rows.starts
    again = np.ones(len(starts), np.bool_)
    again[np.unique(rows.code[starts], return_index=True)[1]] = False
    found = np.zeros(len(rows.place), np.bool_)
    found[starts[again]] = True
    return found


def _keep_one(rows: Rows) -> None:
    again = np.append(False, (np.diff(rows.order) == 0) & (np.diff(rows.code) == 0))
    if not again.any():
        return
    source = rows.source
    if source.policy.duplicate == "error":
        at = int(again.argmax())
        what = f"{_shown(rows.order[at])} comes twice in sequence {rows.name(source.id, at)}"
        remedy = "remove one row, or set data.source.policy.duplicate=keep_first or keep_last"
        raise rows.fault(at, source.order, f"{what}; {remedy}")
    gone = again if source.policy.duplicate == "keep_first" else np.append(again[1:], False)
    rows.count("duplicate", gone, "rows", int(gone.sum()))
    rows.place = rows.place[~gone]


def _check_constant(rows: Rows, column: str) -> None:
    if not len(rows.place):
        return
    changed = np.append(False, (np.diff(rows.codes(column)) != 0) & (np.diff(rows.code) == 0))
    if not changed.any():
        return
    if rows.source.policy.changing == "error":
        at = int(changed.argmax())
        what = f"{rows.name(column, at - 1)} becomes {rows.name(column, at)} inside {rows.name(rows.source.id, at)}"
        raise rows.fault(at, column, f"{what}; correct it, or set data.source.policy.changing=drop")
    rows.drop("changing", np.logical_or.reduceat(changed, rows.starts))


def _check_named(rows: Rows, column: str) -> None:
    starts = rows.starts
    nameless = rows.codes(column)[starts] == NOTHING
    if not nameless.any():
        return
    if rows.source.policy.unlabelled == "error":
        at = int(starts[nameless.argmax()])
        of = "" if column == rows.source.group else f" of {rows.source.group} {rows.name(rows.source.group, at)}"
        what = f"sequence {rows.name(rows.source.id, at)}{of} has no {column}"
        raise rows.fault(at, column, f"{what}; fill it in, or set data.source.policy.unlabelled=drop")
    rows.drop("unlabelled", nameless)


def _check_single(rows: Rows) -> None:
    single = rows.lengths == 1
    policy, source = rows.source.policy.single_row, rows.source
    if not single.any() or policy == "keep":
        return
    if policy == "error":
        at = int(rows.starts[single.argmax()])
        what = f"sequence {rows.name(source.id, at)} has this one row, which tells of no movement"
        raise rows.fault(at, source.id, f"{what}; remove it, or set data.source.policy.single_row=drop or keep")
    rows.drop("single_row", single)


def _shown(number: float) -> str:
    """A number for messages: 3, not 3.0."""
    return str(int(number)) if float(number).is_integer() else str(number)


def names_in_order(codes: NDArray[np.int32], known: list[str]) -> tuple[NDArray[np.int32], list[str]]:
    """Codes int32 [n] of names that occur, in alphabetical order, and these names."""
    used, inverse = np.unique(codes, return_inverse=True)
    names = [known[code] for code in used]
    rank = {name: number for number, name in enumerate(sorted(set(names)))}
    return np.array([rank[name] for name in names], np.int32)[inverse], list(rank)
