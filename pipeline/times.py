"""What time stamps mean: timestamps and dates with or without a zone, integers since 1970, and text."""

import re
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.convert import Refuse, converted, is_text, numpy_of, shown

YEAR_1971_NS = 365 * 86400 * 10**9
_EPOCH_UNITS = ((10**11, "s", 10**9), (10**14, "ms", 10**6), (10**17, "us", 10**3), (2**63, "ns", 1))
_DATE = re.compile(r"\d{4}(?P<mark>[-./]?)\d\d(?P=mark)\d\d(?P<rest>.*)")
_OF_DAY = re.compile(r"[ T]\d\d:\d\d(:\d\d(\.\d{1,9})?)?(?P<offset>Z|[+-]\d\d(:?\d\d)?)?")
_OF_DAY_COMPACT = re.compile(r"[ T]\d{6}(\.\d{1,9})?(?P<offset>Z|[+-]\d\d(:?\d\d)?)?")
_DAY_OR_MONTH_FIRST = re.compile(r"\d{1,2}[-./ ]\d{1,2}[-./ ](\d{4}|\d\d)\b.*")
_HOURS = re.compile(r"\d{1,2}:\d\d(:\d\d(\.\d+)?)?")
_DIGITS = re.compile(r"(19|20)\d\d(0[1-9]|1[0-2])(0[1-9]|[12]\d|3[01])([01]\d|2[0-3])[0-5]\d([0-5]\d)?")
CLAIMS_1970 = (
    "lies in 1970; whatever wrote the file took integers for nanoseconds. Name the column with the true times in "
    "data.source.columns.time"
)
_NO_DAY = "is a time that does not exist, or outside the years 1678 to 2261; correct or remove the row"
_KNOWN = "2023-06-01 05:00:00, 2023.06.01 05:00, 2023/06/01 05:00, 20230601 050000 or whole seconds since 1970"


@dataclass(frozen=True)
class TimeForm:
    """How one file writes its times, decided on the first of them.

    Integers have a `unit`; text has what stands between year, month and day (`mark`: "-", ".", "/" or nothing), whether
    a time of the day follows, and an offset from UTC. `first` is the first time and `row` its row, for messages.
    """

    unit: str | None = None
    mark: str | None = None
    of_day: bool = False
    offset: bool = False
    first: str = ""
    row: int = 0

    def remark(self) -> str | None:
        """What should be said about it: nothing for true timestamps and ISO 8601."""
        if self.unit:
            return f"read as integers in {self.unit} since 1970"
        if self.mark in (None, "-"):
            return None
        return f"read as year, month and day, like {self.first} in row {self.row:,}"


def holds_dates(column: pa.Array) -> bool:
    """Whether the first value of a column is a date without a time of the day."""
    match = _DATE.fullmatch(_first_text(column))
    return bool(pa.types.is_date(column.type) or (match and not match["rest"]))


def holds_times_of_day(column: pa.Array) -> bool:
    """Whether the first value of a column is a time of the day without a date."""
    return bool(pa.types.is_time(column.type) or _HOURS.fullmatch(_first_text(column)))


def in_1970(column: pa.Array) -> bool:
    """Whether the first value of a column of timestamps, dates or text lies in 1970."""
    if is_text(column.type):
        return bool(_DATE.fullmatch(text := _first_text(column))) and text.startswith("1970")
    first = column.drop_null()[:1].cast(pa.timestamp("s", getattr(column.type, "tz", None)), safe=False)
    return any(0 <= second < YEAR_1971_NS // 10**9 for second in first.cast(pa.int64()).to_pylist())


def _first_text(column: pa.Array) -> str:
    first = column.drop_null()[:1].to_pylist() if is_text(column.type) else []
    return str(first[0]).strip() if first else ""


def time_form(column: pa.Array, at: int, row: int, refuse: Refuse) -> TimeForm:
    """Decide how times are written, on the value at position `at` of a column, in row `row` of its file.

    `refuse` makes the error from a position and what is wrong there: for what is no time, for what could be day/month
    as well as month/day, and for integers that would be in 1970.
    """
    kind = column.type
    if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
        return TimeForm(first=shown(column, at), row=row)
    if pa.types.is_integer(kind):
        return _epoch(int(column[at].as_py()), at, row, refuse)
    text = str(column[at].as_py()).strip()
    match = _DATE.fullmatch(text)
    if match:
        rest = match["rest"]
        of_day = (_OF_DAY if match["mark"] else _OF_DAY_COMPACT).fullmatch(rest)
        if of_day or not rest:
            form = TimeForm(None, match["mark"], bool(rest), bool(of_day and of_day["offset"]), shown(column, at), row)
            try:
                _nanoseconds(pc.utf8_trim_whitespace(column.slice(at, 1).cast(pa.string())), form, "UTC")
            except ValueError:
                raise refuse(at, f"{shown(column, at)} {_NO_DAY}") from None
            return form
    if re.fullmatch(r"-?\d{1,19}", text):
        return _epoch(int(text), at, row, refuse)
    if _DAY_OR_MONTH_FIRST.fullmatch(text):
        raise refuse(at, f"{text!r} could be day/month or month/day; write the year first, as in 2023-02-01 05:00:00")
    if _HOURS.fullmatch(text):
        raise refuse(at, f"{text!r} is a time without a date; join date and time in one column: 2023-06-01 05:00:00")
    raise refuse(at, f"{shown(column, at)} is not a time in a known form; write {_KNOWN}")


def instants(column: pa.Array, form: TimeForm, timezone: str, refuse: Refuse) -> NDArray[np.int64]:
    """Times without nulls as int64 ns UTC [n]; those without a zone are in `timezone`.

    `refuse` makes the error for the first that is not written as `form` says, lies beyond what nanoseconds reach, or
    falls into an hour that the zone skips or repeats.
    """
    if is_text(column.type):
        column = column.cast(pa.string())
    if form.unit:
        stamps = converted(column, lambda part: numpy_of(part, pa.int64()), lambda *_: _unlike(form), refuse)
        return _since_1970(stamps, form.unit, refuse)

    def why(_: str, error: ValueError) -> str:
        if isinstance(error, _ClockError):
            return f"falls into an hour that {timezone} {error} when clocks change; store the times in UTC"
        if form.mark is None:
            return "is outside the years 1678 to 2261, which nanoseconds reach; correct or remove the row"
        return _unlike(form)

    return converted(column, lambda part: _nanoseconds(part, form, timezone), why, refuse)


class _ClockError(ValueError):
    """A local time that does not exist, or exists twice."""


def _nanoseconds(column: pa.Array, form: TimeForm, timezone: str) -> NDArray[np.int64]:
    zone = getattr(column.type, "tz", None)
    if form.mark is not None:
        column, zone = _iso(column, form), "UTC" if form.offset else None
    stamps = column.cast(pa.timestamp("ns", zone))
    if zone is None and timezone != "UTC":
        try:
            stamps = pc.assume_timezone(stamps, timezone)
        except pa.ArrowInvalid:
            raise _ClockError("repeats" if _exist(stamps, timezone) else "skips") from None
    return numpy_of(stamps, pa.int64())


def _exist(stamps: pa.Array, timezone: str) -> bool:
    try:
        pc.assume_timezone(stamps, timezone, ambiguous="earliest")
    except pa.ArrowInvalid:
        return False
    return True


def _unlike(form: TimeForm) -> str:
    return f"is not a time written like {form.first} in row {form.row:,}; write all times alike"


def _iso(text: pa.Array, form: TimeForm) -> pa.Array:
    """Dates and times of one form as ISO 8601. Raises ValueError for some of those that are not of the form."""
    if not len(text):
        return text
    mark = form.mark or ""
    lengths = np.from_dlpack(pc.binary_length(text))
    date = 8 + 2 * len(mark)
    if int(lengths.min()) < date + 6 * form.of_day or (not form.of_day and int(lengths.max()) > date):
        raise ValueError("too short or too long")
    if not mark:
        text = pc.binary_replace_slice(pc.binary_replace_slice(text, 4, 4, b"-"), 7, 7, b"-")
        return (
            pc.binary_replace_slice(pc.binary_replace_slice(text, 13, 13, b":"), 16, 16, b":") if form.of_day else text
        )
    if mark == "-":
        return text
    _, offsets, data = text.buffers()
    starts = np.frombuffer(offsets, np.int32)[text.offset : text.offset + len(text)]
    characters = np.frombuffer(data, np.uint8)
    if (characters[starts + 4] != ord(mark)).any() or (characters[starts + 7] != ord(mark)).any():
        raise ValueError("another mark")
    return pc.binary_replace_slice(pc.binary_replace_slice(text, 4, 5, b"-"), 7, 8, b"-")


def _epoch(stamp: int, at: int, row: int, refuse: Refuse) -> TimeForm:
    limits = (u for u in _EPOCH_UNITS if abs(stamp) < u[0])
    _, unit, scale = next(limits, _EPOCH_UNITS[-1])
    if stamp * scale < YEAR_1971_NS:
        raise refuse(
            at,
            f"{stamp} is not a time (it would be in 1970); name the right column in data.source.columns.time",
        )
    if _DIGITS.fullmatch(str(stamp)):
        raise refuse(
            at, f"{stamp} looks like a date written in digits, not like {unit} since 1970; write 2023-06-01 05:00:00"
        )
    if stamp * scale >= 2**63:
        raise refuse(at, f"{stamp} is not a time (in {unit} since 1970 it would be beyond 2262); correct it")
    return TimeForm(unit=unit, first=str(stamp), row=row)


def _since_1970(stamps: NDArray[np.int64], unit: str, refuse: Refuse) -> NDArray[np.int64]:
    limit, scale = next((limit, scale) for limit, name, scale in _EPOCH_UNITS if name == unit)
    limit = min(limit, 2**63 // scale)
    if len(stamps) and (int(stamps.min()) * scale < YEAR_1971_NS or int(stamps.max()) >= limit):
        at = int(((stamps < -(-YEAR_1971_NS // scale)) | (stamps >= limit)).argmax())
        raise refuse(
            at,
            f"{stamps[at]} is not a time in {unit} since 1970, as the rows before it are; correct or remove the row",
        )
    return stamps * scale
