"""Rows of bars that cannot be true: found, and refused or repaired as the recipe's policy says."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cache.recipe import Policy

Repaired = dict[str, dict[str, int]]  # by fault: {"rows": how many a policy changed, "first_row": the first of them}
_CORRECT = "correct or remove the row"


@dataclass(frozen=True)
class Rows:
    """Rows of a file as they stand: their numbers int64 [n], labels int64 ns UTC [n] and ohlc float64 [n, 4].

    `missing` tells where the file holds nothing, bool [n, 5], time first; None: nowhere. Labels are then 0, prices NaN.
    """

    number: NDArray[np.int64]
    label: NDArray[np.int64]
    ohlc: NDArray[np.float64]
    missing: NDArray[np.bool_] | None = None

    def __len__(self) -> int:
        return len(self.label)

    def pick(self, which: Any) -> "Rows":
        """The rows that a slice, mask or array of positions picks."""
        missing = None if self.missing is None else self.missing[which]
        return Rows(self.number[which], self.label[which], self.ohlc[which], missing)


class RowError(Exception):
    """A row that is refused: its number, the column (0 the time, 1 to 4 the prices), the value and what is wrong."""

    def __init__(self, rows: Rows, at: int, column: int, fault: str, what: str, remedy: str) -> None:
        super().__init__(fault)
        self.row, self.column, self.fault = int(rows.number[at]), column, fault
        self.label, self.price = int(rows.label[at]), float(rows.ohlc[at, column - 1])
        self.what, self.remedy = what, remedy


def true_rows(blocks: Iterable[Rows], policy: Policy, repaired: Repaired) -> Iterator[tuple[Rows, int]]:
    """The rows that can be true, in strictly increasing order of time, and the closest distance of labels (ns) so far.

    Rows are checked for missing values, prices that are not finite or not positive, a high below or a low above the
    bar's open or close, an earlier time than the row before, and the same time; the first of these decides about a
    row. The policy says whether it is refused (RowError) or repaired; `repaired` counts that. Memory does not grow with
    the rows, except for unsorted=sort, which holds all of them.
    """
    plausible = _plausible(blocks, policy, repaired)
    if policy.unsorted == "sort":
        plausible = _sorted(plausible, repaired)
    return _once(plausible, policy, repaired)


def _plausible(blocks: Iterable[Rows], policy: Policy, repaired: Repaired) -> Iterator[Rows]:
    """The rows whose values can be true. Those before a refused one still come."""
    for rows in blocks:
        if _all_plausible(rows):
            yield rows
            continue
        gone = np.zeros(len(rows), np.bool_)
        refused: tuple[int, RowError] | None = None
        for fault, bad, column, what in _checks(rows):
            new = bad.any(axis=1) & ~gone
            if not new.any():
                continue
            first = int(new.argmax())
            if getattr(policy, fault) == "drop":
                _count(repaired, fault, rows.number[new])
                gone |= new
            elif refused is None or first < refused[0]:
                remedy = f"{_CORRECT}, or set data.source.policy.{fault}=drop"
                at = column + int(bad[first].argmax())
                refused = first, RowError(rows, first, at, fault, what, remedy)
        yield rows.pick(np.flatnonzero(~gone[: refused[0] if refused else None]))
        if refused:
            raise refused[1]


def _all_plausible(rows: Rows) -> bool:
    """Whether no check finds anything. The usual case, in few passes."""
    open_, high, low, close = rows.ohlc.T
    return bool(
        rows.missing is None
        and rows.ohlc.min(initial=np.inf) > 0
        and rows.ohlc.max(initial=0) < np.inf
        and (high >= open_).all()
        and (high >= close).all()
        and (low <= open_).all()
        and (low <= close).all()
    )


def _checks(rows: Rows) -> Iterator[tuple[str, NDArray[np.bool_], int, str]]:
    """Each fault: its name in the policy, where it is bool [n, k], the column of the first of the k, and the words."""
    open_, high, low, close = rows.ohlc.T
    if rows.missing is not None:
        yield "missing", rows.missing, 0, "the value is missing"
    yield "not_finite", ~np.isfinite(rows.ohlc), 1, "is not a finite number"
    yield "not_positive", rows.ohlc <= 0, 1, "is not positive"
    yield "high", (high < np.maximum(open_, close))[:, None], 2, "is below the bar's open or close"
    yield "low", (low > np.minimum(open_, close))[:, None], 3, "is above the bar's open or close"


def _sorted(blocks: Iterable[Rows], repaired: Repaired) -> Iterator[Rows]:
    """All rows by time, those of one time in the order of the file. Counts the rows that follow a later one."""
    held = list(blocks)
    if not held:
        return
    rows = _joined(held)
    size = max(map(len, held))
    held.clear()
    latest = np.maximum.accumulate(rows.label)
    late = rows.label < latest
    if late.any():
        _count(repaired, "unsorted", rows.number[late])
        rows = rows.pick(np.argsort(rows.label, kind="stable"))
    for start in range(0, len(rows), max(size, 1)):
        yield rows.pick(slice(start, start + size))


def _once(blocks: Iterable[Rows], policy: Policy, repaired: Repaired) -> Iterator[tuple[Rows, int]]:
    """One row a time, in order, and the closest distance of labels so far."""
    closest = np.iinfo(np.int64).max
    last: Rows | None = None  # the row before: given out already, unless the last of several is wanted
    keep_last = policy.duplicate == "keep_last"
    for block in blocks:
        if not len(block):
            continue
        rows = block if last is None or not keep_last else _joined([last, block])
        before = rows.label[:1] - 1 if last is None or keep_last else last.label
        step = np.diff(rows.label, prepend=before)
        known = step[1:] if last is None or keep_last else step
        nearest = int(known.min()) if len(known) else closest
        if nearest <= 0:
            _refuse(rows, step, policy)
            again = step == 0
            if keep_last:
                again = np.append(again[1:], False)
            _count(repaired, "duplicate", rows.number[again])
            rows = rows.pick(~again)
            nearest = int(known[known > 0].min(initial=closest))
        closest = min(closest, nearest)
        if len(rows):
            last = rows.pick(slice(-1, None))
        if keep_last:
            rows = rows.pick(slice(None, -1))
        if len(rows):
            yield rows, closest
    if keep_last and last is not None:
        yield last, closest


def _refuse(rows: Rows, step: NDArray[np.int64], policy: Policy) -> None:
    """Raise RowError for the first row that is earlier than the one before, or has its time where that is a fault."""
    bad = step < 0 if policy.duplicate != "error" else step <= 0
    if not bad.any():
        return
    at = int(bad.argmax())
    if step[at]:
        remedy = "sort the file by time, or set data.source.policy.unsorted=sort"
        raise RowError(rows, at, 0, "unsorted", "is earlier than the row before", remedy)
    remedy = "remove the duplicate, or set data.source.policy.duplicate=keep_first or keep_last"
    raise RowError(rows, at, 0, "duplicate", "repeats the time of the row before", remedy)


def _count(repaired: Repaired, fault: str, numbers: NDArray[np.int64]) -> None:
    if len(numbers):
        first = int(numbers.min())
        known = repaired.setdefault(fault, {"rows": 0, "first_row": first})
        known["rows"] += len(numbers)
        known["first_row"] = min(known["first_row"], first)


def _joined(parts: list[Rows]) -> Rows:
    joined: list[Any] = [
        np.concatenate([getattr(rows, name) for rows in parts]) for name in ("number", "label", "ohlc")
    ]
    return Rows(*joined)
