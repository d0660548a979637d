"""Times as they are written, against datetime."""

from datetime import UTC, date, datetime, timedelta, timezone
from zoneinfo import ZoneInfo

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.files import SourceError
from pipeline.times import TimeForm, holds_dates, holds_times_of_day, in_1970, instants, time_form

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def refuse(at: int, what: str) -> SourceError:
    return SourceError(f"at {at}: {what}")


def read(values: list, zone: str = "UTC", kind: pa.DataType | None = None) -> tuple[np.ndarray, TimeForm]:
    column = pa.array(values, kind)
    form = time_form(column, 0, 0, refuse)
    return instants(column, form, zone, refuse), form


def fault_of(values: list, zone: str = "UTC", kind: pa.DataType | None = None) -> str:
    with pytest.raises(SourceError) as caught:
        read(values, zone, kind)
    return str(caught.value)


def ns(moment: datetime) -> int:
    return (moment.replace(tzinfo=moment.tzinfo or UTC) - EPOCH) // timedelta(microseconds=1) * 1000


MINUTES = st.datetimes(datetime(1971, 1, 1), datetime(2261, 12, 31)).map(lambda t: t.replace(second=0, microsecond=0))
SECONDS = st.datetimes(datetime(1971, 1, 1), datetime(2261, 12, 31)).map(lambda t: t.replace(microsecond=0))
FORMS = {
    "%Y-%m-%d %H:%M": MINUTES,
    "%Y-%m-%dT%H:%M": MINUTES,
    "%Y-%m-%d %H:%M:%S": SECONDS,
    "%Y-%m-%dT%H:%M:%S": SECONDS,
    "%Y-%m-%dT%H:%M:%SZ": SECONDS,
    "%Y-%m-%d %H:%M:%S+00:00": SECONDS,
    "%Y-%m-%d %H:%M:%S.%f": st.datetimes(datetime(1971, 1, 1), datetime(2261, 12, 31)),
    "%Y.%m.%d %H:%M": MINUTES,
    "%Y.%m.%d %H:%M:%S": SECONDS,
    "%Y/%m/%d %H:%M": MINUTES,
    "%Y/%m/%d %H:%M:%S": SECONDS,
    "%Y%m%d %H%M%S": SECONDS,
    "%Y%m%dT%H%M%S": SECONDS,
    "%Y-%m-%d": MINUTES.map(lambda t: t.replace(hour=0, minute=0)),
    "%Y.%m.%d": MINUTES.map(lambda t: t.replace(hour=0, minute=0)),
    "%Y/%m/%d": MINUTES.map(lambda t: t.replace(hour=0, minute=0)),
    "%Y%m%d": MINUTES.map(lambda t: t.replace(hour=0, minute=0)),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.string_view()])
@settings(max_examples=20)
@given(data=st.data())
def test_text_means_what_strptime_says(form: str, kind: pa.DataType, data: st.DataObject):
    moments = data.draw(st.lists(FORMS[form], min_size=1, max_size=6))
    values = [moment.strftime(form) for moment in moments]
    expected = [ns(datetime.strptime(value, form.replace("+00:00", "%z").replace("Z", "%z"))) for value in values]
    got, decided = read(values, kind=kind)
    assert got.tolist() == expected
    iso = form.startswith("%Y-")
    assert (decided.remark() is None) == iso
    if not iso:
        assert decided.remark() == f"read as year, month and day, like {values[0]!r} in row 0"
    padded, _ = read([f" {value}\t" for value in values], kind=kind)
    assert padded.tolist() == expected


def test_parts_of_a_larger_column_are_read_too():
    text = pa.array(["x", "2023.06.01 05:00", "2023.06.01 05:01", None])
    form = time_form(text, 1, 1, refuse)
    np.testing.assert_array_equal(np.diff(instants(text.slice(1, 2), form, "UTC", refuse)), [60 * 10**9])


@given(st.lists(st.tuples(SECONDS, st.integers(-14 * 60, 14 * 60)), min_size=1, max_size=5))
def test_offsets_are_taken_off(pairs: list):
    moments = [t.replace(tzinfo=timezone(timedelta(minutes=shift))) for t, shift in pairs]
    got, _ = read([moment.isoformat(sep=" ") for moment in moments], "America/New_York")
    assert got.tolist() == [ns(moment) for moment in moments]


@given(st.lists(st.datetimes(datetime(2000, 1, 1), datetime(2030, 1, 1)), min_size=1, max_size=8), st.booleans())
def test_local_times_mean_what_zoneinfo_says(moments: list[datetime], as_text: bool):
    zone = ZoneInfo("America/New_York")
    local = [moment.replace(microsecond=0) for moment in moments]
    odd = [
        i
        for i, t in enumerate(local)
        if t.replace(tzinfo=zone, fold=0).utcoffset() != t.replace(tzinfo=zone, fold=1).utcoffset()
    ]
    values: list = [t.strftime("%Y-%m-%d %H:%M:%S") for t in local] if as_text else local
    if odd:
        assert fault_of(values, "America/New_York").startswith(f"at {odd[0]}: ")
    else:
        expected = [ns(t.replace(tzinfo=zone).astimezone(UTC)) for t in local]
        assert read(values, "America/New_York")[0].tolist() == expected


@pytest.mark.parametrize("mark", ["-", ".", "/"])
@pytest.mark.parametrize(("day", "hour", "verb"), [("03{}10", "02:30", "skips"), ("11{}03", "01:30", "repeats")])
def test_hours_of_a_clock_change_are_named(mark: str, day: str, hour: str, verb: str):
    odd = f"2024{mark}{day.format(mark)} {hour}"
    for before in range(5):
        values = [f"2024{mark}01{mark}01 0{k}:00" for k in range(before)] + [odd, odd, f"2024{mark}12{mark}01 00:00"]
        assert fault_of(values, "America/New_York") == (
            f"at {before}: {odd!r} falls into an hour that America/New_York {verb} when clocks change; store the times "
            "in UTC"
        )


@pytest.mark.parametrize(
    ("first", "later"),
    [
        ("2023-06-01 05:00", "2023.06.01 05:01"),
        ("2023.06.01 05:00", "2023-06-01 05:01"),
        ("2023.06.01 05:00", "2023/06/01 05:01"),
        ("2023.06.01 05:00", "2023.06-01 05:01"),
        ("2023.06.01 05:00", "2023-06.01 05:01"),
        ("2023/06/01 05:00", "2023.06.01 05:01"),
        ("20230601 050000", "20230601 0501"),
        ("20230601 050000", "2023-06-01 05:01"),
        ("20230601", "20230601 050000"),
        ("20230601", "2023"),
        ("20230601", "202306011"),
        ("2023-06-01", "2023-06-01 00:00"),
        ("2023-06-01 00:00", "2023-06-02"),
        ("2023-06-01 00:00", "2023-06-02 05"),
        ("2023-06-01 00:00", "2023-06-31 00:00"),
        ("2023-06-01 00:00", "2023-06-01 24:00"),
        ("2023-06-01 00:00", "2023-06-01 05:00Z"),
        ("2023-06-01 00:00+00:00", "2023-06-01 05:00"),
        ("2023-06-01 00:00", "1685595600"),
        ("2023-06-01 00:00", "x"),
        ("2023-06-01 00:00", "2500-06-01 00:00"),
        ("2023.06.01 00:00", "é023.06.01 00:0é"),
        ("1685595600", "1685595660.0"),
        ("1685595600", "2023-06-01 05:01"),
        ("1685595600", "99999999999999999999"),
    ],
)
def test_a_later_time_that_is_written_otherwise_is_named(first: str, later: str):
    for before in (1, 2, 5, 30):
        assert fault_of([*[first] * before, later, first]) == (
            f"at {before}: {later!r} is not a time written like {first if first.startswith('16') else repr(first)} in "
            "row 0; write all times alike"
        )


@pytest.mark.parametrize(
    ("value", "what"),
    [
        ("01/02/2023", "could be day/month or month/day; write the year first, as in 2023-02-01 05:00:00"),
        ("1.2.2023 05:00", "could be day/month or month/day; write the year first, as in 2023-02-01 05:00:00"),
        ("13-02-23 05:00:00", "could be day/month or month/day; write the year first, as in 2023-02-01 05:00:00"),
        ("01.02.2023 00:00:00.000 GMT+0100", "could be day/month or month/day; write the year first, as in "),
        ("05:00", "is a time without a date; join date and time in one column: 2023-06-01 05:00:00"),
        ("5:00:01.5", "is a time without a date; join date and time in one column: 2023-06-01 05:00:00"),
        ("2023-13-01 00:00", "is a time that does not exist, or outside the years 1678 to 2261; correct or remove the"),
        ("2023-02-29", "is a time that does not exist, or outside the years 1678 to 2261; correct or remove the row"),
        ("0001-01-01 00:00", "is a time that does not exist, or outside the years 1678 to 2261; correct or remove the"),
        ("2023-06-01 5:00", "is not a time in a known form; write 2023-06-01 05:00:00, 2023.06.01 05:00, 2023/06/01 0"),
        ("2023-06.01 05:00", "is not a time in a known form; write "),
        ("2023-6-1", "is not a time in a known form; write "),
        ("2023-06-01 05:00 UTC", "is not a time in a known form; write "),
        ("June 1, 2023", "is not a time in a known form; write "),
        ("1685595600.0", "is not a time in a known form; write "),
        ("45078.2083", "is not a time in a known form; write "),
        ("12345678901234567890", "is not a time in a known form; write "),
        ("", "is not a time in a known form; write "),
    ],
)
def test_what_cannot_be_understood_is_refused(value: str, what: str):
    message = fault_of([value, "2023-06-01 05:00"])
    assert message.startswith(f"at 0: {value!r} {what}")


@pytest.mark.parametrize(
    ("stamp", "what"),
    [
        (0, "is not a time (it would be in 1970); name the right column in data.source.columns.time"),
        (-5, "is not a time (it would be in 1970); name the right column in data.source.columns.time"),
        (20240601, "is not a time (it would be in 1970); name the right column in data.source.columns.time"),
        (202306010500, "looks like a date written in digits, not like ms since 1970; write 2023-06-01 05:00:00"),
        (20230601050000, "looks like a date written in digits, not like ms since 1970; write 2023-06-01 05:00:00"),
        (10_000_000_000, "is not a time (in s since 1970 it would be beyond 2262); correct it"),
        (9_999_999_999_999, "is not a time (in ms since 1970 it would be beyond 2262); correct it"),
    ],
)
@pytest.mark.parametrize("kind", [pa.int64(), pa.string()])
def test_integers_that_are_no_times_are_refused(stamp: int, what: str, kind: pa.DataType):
    if kind == pa.string() and stamp == 20240601:
        assert read(["20240601"])[0][0] == ns(datetime(2024, 6, 1))
    else:
        assert fault_of([stamp if kind == pa.int64() else str(stamp)]) == f"at 0: {stamp} {what}"


@given(st.sampled_from([("s", 10**9), ("ms", 10**6), ("us", 10**3), ("ns", 1)]), st.data())
def test_integers_keep_their_unit(unit: tuple[str, int], data: st.DataObject):
    name, scale = unit
    year = 365 * 86400 * 10**9
    low = {"s": year, "ms": 10**11 * 10**6, "us": 10**14 * 10**3, "ns": 10**17}[name]
    first = data.draw(st.integers(max(low, year) // scale + 1, 9 * 10**18 // scale))
    later = data.draw(st.integers(-(2**62), 2**63 - 1))
    digits = str(first)
    if len(digits) in (12, 14) and digits[:2] in ("19", "20"):  # could look like a date
        return
    limit = {"s": 2**63 // 10**9, "ms": 2**63 // 10**6, "us": 2**63 // 10**3, "ns": 2**63}[name]
    limit = min(limit, {"s": 10**11, "ms": 10**14, "us": 10**17, "ns": 2**63}[name])
    if first >= limit:
        return
    for values in ([first, later], [str(first), str(later)]):
        if values[0] == digits and len(digits) == 8:  # a date, where it is text
            continue
        if year <= later * scale and later < limit:
            assert read(values)[0].tolist() == [first * scale, later * scale]
        else:
            assert fault_of(values) == (
                f"at 1: {later} is not a time in {name} since 1970, as the rows before it are; correct or remove the "
                "row"
            )


def test_what_a_column_may_hold_is_seen_from_its_first_value():
    assert holds_dates(pa.array([None, "2023.06.01"])) and holds_dates(pa.array([date(2023, 6, 1)]))
    assert not holds_dates(pa.array(["2023.06.01 05:00"])) and not holds_dates(pa.array([5]))
    assert holds_times_of_day(pa.array([None, " 5:00"])) and holds_times_of_day(pa.array([5], pa.time64("us")))
    assert not holds_times_of_day(pa.array(["2023.06.01 05:00"])) and not holds_times_of_day(pa.array([], pa.string()))
    for value in (datetime(1970, 1, 1), datetime(1970, 12, 31, 23, 59), date(1970, 1, 1), "1970.01.01", "19700101"):
        assert in_1970(pa.array([None, value]))
    for value in (datetime(1969, 12, 31), datetime(1971, 1, 1), "1971-01-01", "1970"):
        assert not in_1970(pa.array([value]))


def test_timestamps_beyond_nanoseconds_are_named():
    assert fault_of([datetime(2023, 6, 1), datetime(2300, 1, 1)]) == (
        "at 1: 2300-01-01 00:00:00 is outside the years 1678 to 2261, which nanoseconds reach; correct or remove the "
        "row"
    )
