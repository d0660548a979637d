"""Bars from files: what the time stamps mean, and whether the prices can be true.

The main path of a source file: open_table → recognise → convert → true_rows → blocks of bars. Everything works in
blocks, so that memory does not grow with the file (but for `policy.unsorted = sort`).
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cache.recipe import BarsSource
from cache.timeframes import format_ns, format_time, timeframe_ns
from pipeline.columns import ROLES, Recognised, recognise, text_columns
from pipeline.convert import Refuse, in_units, nulls, prices, take
from pipeline.divide import read_divided
from pipeline.faults import Repaired, RowError, Rows, true_rows
from pipeline.files import SourceError
from pipeline.sessions import day_boundaries
from pipeline.symbols import check_symbol_columns, rows_of, symbols_in
from pipeline.tables import Table, open_table
from pipeline.times import CLAIMS_1970, YEAR_1971_NS, instants

__all__ = ["BLOCK_ROWS", "ROLES", "Block", "ReadLog", "SourceError", "bar_times", "read_bars", "symbols_in"]

BLOCK_ROWS = 131_072
_ENOUGH_ROWS = 20  # to tell bars of a longer timeframe from a few with gaps between them


@dataclass(frozen=True)
class Block:
    """Consecutive bars: times int64 ns UTC [n], ohlc float64 [n, 4]."""

    open_time: NDArray[np.int64]
    close_time: NDArray[np.int64]
    ohlc: NDArray[np.float64]


@dataclass
class ReadLog:
    """What there is to say about a file that was read; filled while it is read.

    `recognised` names the column and its type by role, and the file's `format`; `repaired` counts, by the names of
    cache.recipe.Policy, the rows that a policy changed, and tells the first of them.
    """

    remarks: list[str] = field(default_factory=list)
    recognised: dict[str, str] = field(default_factory=dict)
    repaired: dict[str, dict[str, int]] = field(default_factory=dict)


def read_bars(
    path: Path,
    source: BarsSource,
    timeframe: str,
    where: Mapping[str, str],
    log: ReadLog,
    divided: Path | None = None,
) -> Iterator[Block]:
    """Read and check the bars of one file, or those of one symbol in it.

    `where` maps symbol columns to the values of the symbol; empty: all rows. `divided` is where pipeline.divide has put
    the rows of each symbol by itself, so that those of the others are not read again. Bars come in increasing order of
    time. Raises SourceError naming file, column, row (counted from 0 in the file), value and remedy at the first row
    that cannot be true, unless `source.policy` repairs it. With `policy.unsorted = sort` all are held in memory.
    """
    table = open_table(path)
    check_symbol_columns(table, list(where))
    recognised = recognise(table, source)
    log.remarks.extend(recognised.remarks)
    log.recognised.update({role: f"{name} ({table.kind_of(name)})" for role, name in recognised.columns.items()})
    log.recognised["format"] = table.format
    length = timeframe_ns(timeframe)
    previous_close, count = np.iinfo(np.int64).min, 0
    try:
        for rows, closest in true_rows(_rows(table, recognised, source, where, divided), source.policy, log.repaired):
            label = rows.label
            if not count and 0 <= label[0] < YEAR_1971_NS:
                raise _fault(table, recognised, 0, int(rows.number[0]), f"{format_time(label[0])} {CLAIMS_1970}")
            open_time, close_time = bar_times(label, source, timeframe)
            if timeframe == "d" or closest < length:
                overlapping = np.flatnonzero(open_time < np.append(previous_close, close_time[:-1]))
                if len(overlapping):
                    at = int(overlapping[0])
                    what = (
                        f"{format_time(label[at])} begins before the bar in the row before has ended; are these "
                        f"{timeframe} bars? data.source.files says so"
                    )
                    raise _fault(table, recognised, 0, int(rows.number[at]), what)
            yield Block(open_time, close_time, rows.ohlc)
            previous_close, count = int(close_time[-1]), count + len(label)
    except RowError as fault:
        raise _worded(fault, table, recognised, source) from None
    if not count:
        raise SourceError(f"{path}: {_why_nothing(where, log.repaired)}")
    if count >= _ENOUGH_ROWS and closest > length and timeframe != "d":
        raise SourceError(
            f"{path}: no two of its {count:,} bars are as close as {timeframe} bars are, the closest being "
            f"{format_ns(closest)} apart. Name their timeframe in data.source.files; as {timeframe} they would "
            "count as closed too early"
        )


def bar_times(
    label: NDArray[np.int64], source: BarsSource, timeframe: str
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(open_time, close_time) of bars from their labels, all int64 ns UTC [n].

    Days reach to the next boundary of the session; other bars have the timeframe's length.
    """
    if timeframe == "d":
        bounds = day_boundaries(int(label[0]) - 1, int(label[-1]), source.session)
        if source.label == "left":
            return label, bounds[np.searchsorted(bounds, label, side="right")]
        return bounds[np.searchsorted(bounds, label, side="left") - 1], label
    length = timeframe_ns(timeframe)
    return (label, label + length) if source.label == "left" else (label - length, label)


def _rows(
    table: Table, recognised: Recognised, source: BarsSource, where: Mapping[str, str], divided: Path | None
) -> Iterator[Rows]:
    """The rows of the symbol, converted but not checked."""
    if divided is not None:
        for batch, number in read_divided(divided, tuple(where.values())):
            yield _converted(batch, number, table, recognised, source)
        return
    names = [recognised.columns[role] for role in ROLES]
    start = 0
    for batch in table.batches(list(dict.fromkeys([*names, *where])), BLOCK_ROWS):
        number = np.arange(start, start + batch.num_rows)
        start += batch.num_rows
        if where:
            chosen = rows_of(batch, where)
            if not len(chosen):
                continue
            batch, number = take(batch, chosen), number[chosen]
        yield _converted(batch, number, table, recognised, source)


def _converted(
    batch: pa.RecordBatch, number: NDArray[np.int64], table: Table, recognised: Recognised, source: BarsSource
) -> Rows:
    columns = [batch.column(recognised.columns[role]) for role in ROLES]

    def values(k: int, convert: Callable[[pa.Array, Refuse], NDArray[Any]], empty: float) -> NDArray[Any]:
        there, numbers = columns[k], number
        if columns[k].null_count:
            present = ~nulls(columns[k])
            there, numbers = columns[k].drop_null(), number[present]
        found = convert(there, lambda at, what: _fault(table, recognised, k, int(numbers[at]), what))
        if not columns[k].null_count:
            return found
        whole = np.full(len(number), empty, found.dtype)
        whole[present] = found
        return whole

    def price(column: pa.Array, refuse: Refuse) -> NDArray[np.float64]:
        found = prices(column, refuse)
        return in_units(found, source.points_per_unit, refuse) if source.points_per_unit else found

    label = values(0, lambda column, refuse: instants(column, recognised.form, source.timezone, refuse), 0)
    ohlc = np.stack([values(k, price, np.nan) for k in range(1, 5)], axis=1)
    missing = np.stack([nulls(column) for column in columns], axis=1) if any(c.null_count for c in columns) else None
    return Rows(number, label, ohlc, missing)


def _fault(table: Table, recognised: Recognised, column: int, row: int, what: str) -> SourceError:
    return SourceError(f"{table.path}: column {recognised.columns[ROLES[column]]}, row {row:,}: {what}")


def _worded(fault: RowError, table: Table, recognised: Recognised, source: BarsSource) -> SourceError:
    remedy = fault.remedy
    others = text_columns(table, {*recognised.columns.values(), *source.symbol_columns})
    if fault.fault in ("duplicate", "unsorted") and others:
        remedy = (
            f"if {', '.join(others)} {'tells' if len(others) == 1 else 'tell'} symbols apart, set "
            f"data.source.symbol_columns: [{', '.join([*source.symbol_columns, *others])}]; otherwise {remedy}"
        )
    value = ""
    if fault.fault in ("duplicate", "unsorted"):
        value = f"{format_time(fault.label)} "
    elif fault.fault != "missing":
        points = source.points_per_unit
        value = f"{fault.price * points:.0f} " if points else f"{fault.price} "
    return _fault(table, recognised, fault.column, fault.row, f"{value}{fault.what}; {remedy}")


def _why_nothing(where: Mapping[str, str], repaired: Repaired) -> str:
    if repaired:
        dropped = ", ".join(f"{count['rows']:,} for {fault}" for fault, count in repaired.items())
        return f"data.source.policy leaves none of its rows: it drops {dropped}. Look at the file, or fetch it again"
    if where:
        return f"no row has {' and '.join(f'{name} = {value}' for name, value in where.items())}"
    return "holds no rows"
