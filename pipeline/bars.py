"""Bars from parquet files: which column is what, what the time stamps mean, and whether the prices can be true.

Everything here works in blocks, so that memory does not grow with the file.
"""

import glob
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from cache.recipe import BarsSource
from cache.timeframes import format_ns, format_time, timeframe_ns
from configs.errors import UserError
from pipeline.sessions import day_boundaries

BLOCK_ROWS = 131_072
ROLES = ("time", "open", "high", "low", "close")
_ALIASES = {
    "time": ("time", "date", "datetime", "timestamp", "ts", "open_time", "close_time"),
    "open": ("open", "o"),
    "high": ("high", "h"),
    "low": ("low", "l"),
    "close": ("close", "c"),
}
_EPOCH_UNITS = ((10**11, "s", 10**9), (10**14, "ms", 10**6), (10**17, "us", 10**3), (2**63, "ns", 1))
_YEAR_1971_NS = 365 * 86400 * 10**9
_ENOUGH_ROWS = 20  # to tell bars of a longer timeframe from a few with gaps between them


class SourceError(UserError):
    """A fault in a source file."""


@dataclass(frozen=True)
class Recognised:
    """What was made of a file's columns: names by role, the unit of integer times, and remarks for the log."""

    columns: dict[str, str]
    epoch_unit: str | None
    remarks: tuple[str, ...]


@dataclass(frozen=True)
class Block:
    """Consecutive bars: times int64 ns UTC [n], ohlc float64 [n, 4]."""

    open_time: NDArray[np.int64]
    close_time: NDArray[np.int64]
    ohlc: NDArray[np.float64]


def find_files(data_dir: Path, pattern: str) -> list[Path]:
    """The parquet files that a recipe's `files` value means: a file, a directory of them, or a glob. Sorted by name.

    Raises SourceError when there is none.
    """
    path = data_dir / pattern
    if path.is_file():
        return [path]
    if path.is_dir() and not any(path.glob("*.parquet")):
        raise SourceError(f"{path}: there is no *.parquet in this directory")
    matches = glob.glob(pattern, root_dir=data_dir, recursive=True)  # noqa: PTH207 - Path.glob refuses absolute ones
    found = sorted(path.glob("*.parquet") if path.is_dir() else (data_dir / match for match in matches))
    if not found:
        raise SourceError(f"{path}: no such file, directory or pattern; --data-dir says where the recipe's paths begin")
    return found


def open_parquet(path: Path) -> pq.ParquetFile:
    """Open a parquet file. Raises SourceError for what is none, and for empty ones."""
    with path.open("rb") as start:
        if start.read(4) != b"PAR1":
            raise SourceError(
                f"{path}: not a parquet file; convert it, for example by pandas.read_csv(…).to_parquet(…)"
            )
    try:
        file = pq.ParquetFile(path)
    except (pa.ArrowException, OSError) as error:
        if getattr(error, "errno", None):  # the system's own, such as a missing file; Arrow's for damage have none
            raise
        raise SourceError(f"{path}: not a readable parquet file, perhaps truncated ({error}); fetch it again") from None
    if file.metadata.num_rows == 0:
        raise SourceError(f"{path}: holds no rows")
    return file


def read_bars(path: Path, source: BarsSource, timeframe: str, remarks: list[str]) -> Iterator[Block]:
    """Read and check the bars of one file.

    `remarks` receives what was recognised. Raises SourceError naming file, column, row (counted from 0), value and
    remedy at the first row that cannot be true; rows must be in increasing order of time.
    """
    file = open_parquet(path)
    recognised = recognise(file, path, source)
    remarks.extend(recognised.remarks)
    names = [recognised.columns[role] for role in ROLES]
    for name in names[1:]:
        kind = file.schema_arrow.field(name).type
        if not (pa.types.is_floating(kind) or pa.types.is_integer(kind)):
            raise SourceError(f"{path}: column {name} holds {kind}, not numbers; store prices as float64")
    length = timeframe_ns(timeframe)
    previous: int | None = None
    closest = np.iinfo(np.int64).max
    previous_close = np.iinfo(np.int64).min
    row = 0
    try:
        for batch in file.iter_batches(BLOCK_ROWS, columns=names):
            for name in names:
                if batch.column(name).null_count:
                    at = row + pc.index(batch.column(name).is_null(), True).as_py()
                    raise SourceError(
                        f"{path}: column {name}, row {at:,}: the value is missing; correct or remove the row"
                    )
            label = _time_ns(batch.column(names[0]), path, names[0], row, source, recognised.epoch_unit)
            prices = [_numpy(batch.column(name), pa.float64()) for name in names[1:]]
            ohlc = np.stack(prices, axis=1)
            fault = first_fault(label, ohlc, previous)
            if fault:
                at, column, what, remedy = fault
                texts = [field.name for field in file.schema_arrow if str(field.type) in ("string", "large_string")]
                if column == 0 and texts:
                    remedy = f"if {', '.join(texts)} tell symbols apart, split the file: one symbol a dataset"
                value = format_time(label[at]) if column == 0 else ohlc[at, column - 1]
                raise SourceError(f"{path}: column {names[column]}, row {row + at:,}: {value} {what}; {remedy}")
            open_time, close_time = bar_times(label, source, timeframe)
            overlapping = np.flatnonzero(open_time < np.append(previous_close, close_time[:-1]))
            if len(overlapping):
                at = int(overlapping[0])
                raise SourceError(
                    f"{path}: column {names[0]}, row {row + at:,}: {format_time(label[at])} begins before the bar "
                    f"in the row before has ended; are these {timeframe} bars? data.source.files says so"
                )
            steps = np.diff(label) if previous is None else np.diff(label, prepend=previous)
            closest = min(closest, int(steps.min())) if len(steps) else closest
            yield Block(open_time, close_time, ohlc)
            previous, previous_close, row = int(label[-1]), int(close_time[-1]), row + len(label)
    except (pa.ArrowException, OSError) as error:
        raise SourceError(f"{path}: cannot be read beyond row {row:,} ({error}); fetch the file again") from None
    if row >= _ENOUGH_ROWS and closest > length and timeframe != "d":
        raise SourceError(
            f"{path}: no two of its {row:,} bars are as close as {timeframe} bars are, the closest being "
            f"{format_ns(closest)} apart. Name their timeframe in data.source.files; as {timeframe} they would "
            "count as closed too early"
        )


def recognise(file: pq.ParquetFile, path: Path, source: BarsSource) -> Recognised:
    """Decide which columns hold time and prices. Raises SourceError listing what was found when it is unclear."""
    schema = file.schema_arrow
    stated = {str(role): name for role, name in source.columns.items()}
    for role, name in stated.items():
        if name not in schema.names:
            raise SourceError(f"{path}: data.source.columns.{role} names {name}, but the columns are {schema.names}")
    columns: dict[str, str] = dict(stated)
    remarks: list[str] = []
    for role in ROLES[1:]:
        if role not in stated:
            columns[role] = _only(path, role, [n for n in schema.names if n.lower() in _ALIASES[role]], schema.names)
    rest = [n for n in schema.names if n not in columns.values() or n in stated.values()]
    try:
        first = next(file.iter_batches(1, columns=rest))
    except (pa.ArrowException, OSError) as error:
        raise SourceError(f"{path}: cannot be read ({error}); fetch the file again") from None
    if "time" not in stated:
        named = [n for n in schema.names if n.lower() in _ALIASES["time"]]
        index = [n for n in _index_columns(schema) if pa.types.is_timestamp(schema.field(n).type)]
        false_index = [n for n in index if 0 <= _first_ns(first, n) < _YEAR_1971_NS]
        better = [n for n in named if n not in false_index]
        if false_index and better:
            remarks.append(f"the index of {path.name} claims 1970; column {', '.join(better)} is used instead")
        candidates = better or [n for n in index if n not in false_index] or named or index
        columns["time"] = _only(path, "time", candidates, schema.names)
    kind = schema.field(columns["time"]).type
    unit = None
    if pa.types.is_integer(kind):
        stamp = first.column(columns["time"])[0].as_py()
        unit, scale = next((u, s) for limit, u, s in _EPOCH_UNITS if abs(stamp or 0) < limit)
        if stamp is not None and stamp * scale < _YEAR_1971_NS:
            raise SourceError(
                f"{path}: column {columns['time']}, row 0: {stamp} is not a time (it would be in 1970); "
                "name the right column in data.source.columns.time"
            )
        remarks.append(f"times of {path.name} are read as integers in {unit} since 1970")
    elif pa.types.is_timestamp(kind) or pa.types.is_date(kind):
        if 0 <= _first_ns(first, columns["time"]) < _YEAR_1971_NS:
            raise SourceError(
                f"{path}: column {columns['time']}, row 0: {first.column(columns['time'])[0]} lies in 1970; whatever "
                "wrote the file took integers for nanoseconds. Name the column with the true times in "
                "data.source.columns.time"
            )
    else:
        raise SourceError(
            f"{path}: column {columns['time']} holds {kind}, not times; store timestamps, or integers since 1970"
        )
    return Recognised(columns, unit, tuple(remarks))


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


def first_fault(
    label: NDArray[np.int64], ohlc: NDArray[np.float64], previous: int | None
) -> tuple[int, int, str, str] | None:
    """The first row of a block that cannot be true: (row, column, what is wrong, remedy), or None.

    label int64 [n] and ohlc float64 [n, 4]; `previous` is the label before the block, if any. Column 0 is the time, 1
    to 4 are open, high, low and close.
    """
    open_, high, low, close = ohlc.T
    step = np.diff(label, prepend=label[0] - 1 if previous is None else previous)
    remove = "correct or remove the row"
    checks = [
        (step < 0, 0, "is earlier than the row before", "sort the file by time"),
        (step == 0, 0, "repeats the time of the row before", "remove the duplicate"),
        *((~np.isfinite(ohlc[:, k]), k + 1, "is not a finite number", remove) for k in range(4)),
        *((ohlc[:, k] <= 0, k + 1, "is not positive", remove) for k in range(4)),
        (high < np.maximum(open_, close), 2, "is below the bar's open or close", remove),
        (low > np.minimum(open_, close), 3, "is above the bar's open or close", remove),
    ]
    faults = [(int(bad.argmax()), order) for order, (bad, *_) in enumerate(checks) if bad.any()]
    if not faults:
        return None
    at, order = min(faults)
    _, column, what, remedy = checks[order]
    return at, column, what, remedy


def _only(path: Path, role: str, candidates: list[str], names: list[str]) -> str:
    if len(candidates) == 1:
        return candidates[0]
    found = f"several columns could be it: {candidates}" if candidates else f"none of the columns is known: {names}"
    raise SourceError(f"{path}: which column is the {role}? {found}. Name it in data.source.columns.{role}")


def _index_columns(schema: pa.Schema) -> list[str]:
    described = (schema.pandas_metadata or {}).get("index_columns", [])
    return [name for name in described if isinstance(name, str) and name in schema.names]


def _first_ns(first: pa.RecordBatch, name: str) -> int:
    value = first.column(name).cast(pa.timestamp("ns"), safe=False)[0].value
    return int(value) if value is not None else _YEAR_1971_NS


def _numpy(column: pa.Array, kind: pa.DataType) -> NDArray[Any]:
    """A column without nulls as NumPy sees it. (pyarrow's `to_numpy` imports pandas: 0.2 s.)"""
    return np.from_dlpack(column.cast(kind))


def _time_ns(
    column: pa.Array, path: Path, name: str, row: int, source: BarsSource, unit: str | None
) -> NDArray[np.int64]:
    if unit is not None:
        limit, scale = next((limit, s) for limit, u, s in _EPOCH_UNITS if u == unit)
        since_1970 = _numpy(column, pa.int64())
        beyond = np.flatnonzero(np.abs(since_1970) >= limit)
        if len(beyond):
            raise SourceError(
                f"{path}: column {name}, row {row + int(beyond[0]):,}: {since_1970[beyond[0]]} is not a time in {unit} "
                "since 1970, as the rows before it are; correct or remove the row"
            )
        return since_1970 * scale
    stamps = column.cast(pa.timestamp("ns", getattr(column.type, "tz", None)))
    if stamps.type.tz is None and source.timezone != "UTC":
        try:
            stamps = pc.assume_timezone(stamps, source.timezone)
        except pa.ArrowInvalid as error:
            raise SourceError(
                f"{path}: column {name}, rows {row:,} to {row + len(column):,}: {error}. In {source.timezone} that "
                "hour is skipped or repeated when clocks change; store the times in UTC"
            ) from None
    return _numpy(stamps, pa.int64())
