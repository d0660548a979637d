"""Which column of a table is what to bars: the time and the four prices."""

from dataclasses import dataclass

import pyarrow as pa

from cache.recipe import BarsSource
from pipeline.convert import is_text, nulls, shown
from pipeline.files import SourceError
from pipeline.tables import Table
from pipeline.times import CLAIMS_1970, TimeForm, holds_dates, holds_times_of_day, in_1970, time_form

ROLES = ("time", "open", "high", "low", "close")
_ALIASES = {
    "time": ("time", "date", "datetime", "timestamp", "ts", "open_time", "close_time"),
    "open": ("open", "o"),
    "high": ("high", "h"),
    "low": ("low", "l"),
    "close": ("close", "c"),
}
_PEEK_ROWS = 1024


@dataclass(frozen=True)
class Recognised:
    """What was made of a file's columns: names by role, how times are written, and remarks for the log."""

    columns: dict[str, str]
    form: TimeForm
    remarks: tuple[str, ...]


def recognise(table: Table, source: BarsSource) -> Recognised:
    """Decide which columns hold time and prices. Raises SourceError listing what was found when it is unclear."""
    path, names = table.path, table.names
    columns: dict[str, str] = {str(role): name for role, name in source.columns.items()}
    for role, name in columns.items():
        if name not in names:
            raise SourceError(f"{path}: data.source.columns.{role} names {name}, but the columns are {names}")
    for role in ROLES[1:]:
        columns[role] = columns.get(role) or _only(table, role, _named(names, role))
    remarks: list[str] = []
    columns["time"] = columns.get("time") or _time_column(table, remarks)
    for role in ROLES:
        if names.count(columns[role]) > 1:
            raise SourceError(f"{path}: {names.count(columns[role])} columns are called {columns[role]}; rename one")
    for role in ROLES[1:]:
        kind = table.type_of(columns[role])
        numeric = pa.types.is_floating(kind) or pa.types.is_integer(kind) or pa.types.is_decimal(kind)
        if not (numeric or table.is_text):
            raise SourceError(f"{path}: column {columns[role]} holds {kind}, not numbers; store prices as float64")
    form = _form(table, columns["time"])
    if said := form.remark():
        remarks.append(f"times of {path.name} are {said}")
    if source.points_per_unit:
        remarks.append(f"prices of {path.name} are divided by data.source.points_per_unit = {source.points_per_unit:g}")
    return Recognised(columns, form, tuple(remarks))


def text_columns(table: Table, besides: set[str]) -> list[str]:
    """Columns that hold words, and so may name symbols, leaving out `besides`."""
    others = [name for name in table.names if name not in besides and table.names.count(name) == 1]
    texts = [name for name in others if is_text(table.type_of(name))]
    if not (table.is_text and texts):
        return texts
    first = next(table.batches(texts, 1))
    return [name for name in texts if str(first.column(name)[0].as_py() or "0")[0] not in "+-.0123456789"]


def _named(names: list[str], role: str) -> list[str]:
    return [name for name in names if name.strip().strip("<>").lower() in _ALIASES[role]]


def _only(table: Table, role: str, candidates: list[str]) -> str:
    if len(set(candidates)) == 1:
        return candidates[0]
    found = f"several columns could be it: {candidates}" if candidates else f"none is called so: {table.names}"
    raise SourceError(f"{table.path}: which column is the {role}? {found}. Name it in data.source.columns.{role}")


def _time_column(table: Table, remarks: list[str]) -> str:
    named = _named(table.names, "time")
    index = [name for name in table.index if _may_be_index(table.type_of(name))]
    unique = [name for name in dict.fromkeys([*named, *index]) if table.names.count(name) == 1]
    if not index and len(unique) < 2:  # nothing to look at
        return _only(table, "time", named)
    head = next(table.batches(unique, _PEEK_ROWS))
    false_index = [name for name in index if in_1970(head.column(name))]
    better = [name for name in named if name not in false_index]
    if false_index and better:
        remarks.append(f"the index of {table.path.name} claims 1970; column {', '.join(better)} is used instead")
    candidates = better or [name for name in index if name not in false_index] or named or index
    dates = [name for name in candidates if name in unique and holds_dates(head.column(name))]
    hours = [name for name in candidates if name in unique and holds_times_of_day(head.column(name))]
    if dates and hours:
        raise SourceError(
            f"{table.path}: column {dates[0]} holds dates and column {hours[0]} times of the day; join them in one "
            "column, such as 2023-06-01 05:00:00"
        )
    return _only(table, "time", candidates)


def _may_be_index(kind: pa.DataType) -> bool:
    return bool(pa.types.is_timestamp(kind)) or is_text(kind)


def _form(table: Table, name: str) -> TimeForm:
    """How the times are written, decided on the first that is there."""
    kind = table.type_of(name)
    if pa.types.is_time(kind):
        raise SourceError(f"{table.path}: column {name} holds {kind}, times without a date; join it with the dates")
    if not (pa.types.is_timestamp(kind) or pa.types.is_date(kind) or pa.types.is_integer(kind) or is_text(kind)):
        raise SourceError(
            f"{table.path}: column {name} holds {kind}, not times; store timestamps, or integers since 1970"
        )
    row = 0
    for batch in table.batches([name], _PEEK_ROWS):
        column = batch.column(name)
        if column.null_count == len(column):
            row += len(column)
            continue
        at = int(nulls(column).argmin())
        where = f"{table.path}: column {name}, row {row + at:,}: "
        form = time_form(column, at, row + at, lambda _, what: SourceError(where + what))  # noqa: B023 - returned from
        if form.unit is None and in_1970(column):
            raise SourceError(f"{where}{shown(column, at)} {CLAIMS_1970}")
        return form
    return TimeForm()
