"""The repairs, against a slow walk through the rows in plain Python."""

import itertools
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cache.recipe import Policy
from pipeline.faults import RowError, Rows, true_rows

ERRORS = dict.fromkeys(("missing", "not_finite", "not_positive", "high", "low", "duplicate", "unsorted"), "error")
WORDS = {
    "missing": "the value is missing",
    "not_finite": "is not a finite number",
    "not_positive": "is not positive",
    "high": "is below the bar's open or close",
    "low": "is above the bar's open or close",
    "duplicate": "repeats the time of the row before",
    "unsorted": "is earlier than the row before",
}
Row = tuple[int | None, float | None, float | None, float | None, float | None]


def policies() -> st.SearchStrategy[Policy]:
    drop = st.sampled_from(["error", "drop", "drop"])
    return st.fixed_dictionaries(
        {
            **dict.fromkeys(("missing", "not_finite", "not_positive", "high", "low"), drop),
            "duplicate": st.sampled_from(["error", "keep_first", "keep_last"]),
            "unsorted": st.sampled_from(["error", "sort", "sort"]),
        }
    ).map(Policy.model_validate)


PRICE = st.one_of(
    st.sampled_from([1.0, 1.5, 2.0, 3.0, 3.0, 3.0, 3.0]),
    st.sampled_from([None, math.nan, math.inf, -math.inf, 0.0, -1.0]),
)
GOOD = st.tuples(st.integers(0, 12), st.just(2.0), st.just(3.0), st.just(1.0), st.just(2.5))
BAD = st.tuples(st.one_of(st.integers(0, 12), st.none()), PRICE, PRICE, PRICE, PRICE)
TABLES = st.lists(st.one_of(GOOD, GOOD, GOOD, BAD), max_size=25)
RISING = st.lists(GOOD, max_size=25).map(lambda rows: sorted(rows, key=lambda row: row[0]))


def blocks_of(rows: list[Row], sizes: list[int]) -> Iterator[Rows]:
    """The rows in blocks of these sizes, over and over."""
    start, k = 0, 0
    while start < len(rows):
        part = rows[start : start + sizes[k % len(sizes)]]
        missing = np.array([[value is None for value in row] for row in part])
        yield Rows(
            np.arange(start, start + len(part)) + 1000,
            np.array([row[0] or 0 for row in part], np.int64),
            np.array([[math.nan if value is None else value for value in row[1:]] for row in part]),
            missing if missing.any() else None,
        )
        start, k = start + len(part), k + 1


def fault_in(row: Row) -> tuple[str, int] | None:
    """The first check that a row fails and the first column it fails in."""
    for column, value in enumerate(row):
        if value is None:
            return "missing", column
    _, open_, high, low, close = row
    for column, price in enumerate(row[1:], 1):
        if not math.isfinite(price):
            return "not_finite", column
    for column, price in enumerate(row[1:], 1):
        if price <= 0:
            return "not_positive", column
    if high < open_ or high < close:
        return "high", 2
    return ("low", 3) if low > open_ or low > close else None


def slowly(rows: list[Row], policy: Policy) -> tuple[list[tuple[int, Row]], dict, tuple | None]:
    """(rows kept with their numbers, repairs, the fault that ends it)."""
    repaired: dict[str, dict[str, int]] = {}

    def count(fault: str, number: int) -> None:
        known = repaired.setdefault(fault, {"rows": 0, "first_row": number})
        known["rows"] += 1
        known["first_row"] = min(known["first_row"], number)

    kept: list[tuple[int, Row]] = []
    end = None
    for number, row in enumerate(rows, 1000):
        fault = fault_in(row)
        if fault is None:
            kept.append((number, row))
        elif getattr(policy, fault[0]) == "drop":
            count(fault[0], number)
        else:
            end = (fault[0], number, fault[1])
            break
    if policy.unsorted == "sort":
        if end:
            return [], repaired, end
        for k, (number, row) in enumerate(kept):
            if any(earlier[0] > row[0] for _, earlier in kept[:k]):
                count("unsorted", number)
        kept.sort(key=lambda pair: pair[1][0])
    out: list[tuple[int, Row]] = []
    for number, row in kept:
        if out and row[0] < out[-1][1][0]:
            return out, repaired, ("unsorted", number, 0)
        if out and row[0] == out[-1][1][0]:
            if policy.duplicate == "error":
                return out, repaired, ("duplicate", number, 0)
            if policy.duplicate == "keep_last":
                count("duplicate", out[-1][0])
                out[-1] = number, row
            else:
                count("duplicate", number)
        else:
            out.append((number, row))
    return out, repaired, end


@settings(max_examples=600)
@given(st.one_of(TABLES, RISING), policies(), st.lists(st.integers(1, 6), min_size=1, max_size=4))
@example([(0, 2.0, 3.0, 1.0, 2.5)] * 7, Policy.model_validate({**ERRORS, "duplicate": "keep_last"}), [2])
@example([(0, 2.0, 3.0, 1.0, 2.5)] * 7, Policy.model_validate({**ERRORS, "duplicate": "keep_first"}), [2])
@example(
    [(label, 2.0, 3.0, 1.0, 2.5) for label in (9, 9, 0, 0)],
    Policy.model_validate({**ERRORS, "duplicate": "keep_first", "unsorted": "sort"}),
    [2],
)
def test_rows_are_kept_dropped_or_refused_as_a_slow_walk_does(rows: list[Row], policy: Policy, sizes: list[int]):
    expected, repairs, end = slowly(rows, policy)
    repaired: dict[str, dict[str, int]] = {}
    got: list[tuple[int, int]] = []
    closest = []
    try:
        for part, nearest in true_rows(blocks_of(rows, sizes), policy, repaired):
            assert len(part)
            got += zip(part.number.tolist(), part.label.tolist(), strict=True)
            closest.append(nearest)
            for number, ohlc in zip(part.number, part.ohlc, strict=True):
                assert tuple(ohlc) == rows[number - 1000][1:]
    except RowError as fault:
        assert end is not None
        assert (fault.fault, fault.row, fault.column) == end
        assert fault.what == WORDS[end[0]]
        row = rows[end[1] - 1000]
        if fault.column == 0:
            assert fault.label == (row[0] or 0)
        elif row[fault.column] is not None:
            np.testing.assert_equal(fault.price, float(row[fault.column]))
        assert got == [(number, row[0]) for number, row in expected][: len(got)]
    else:
        assert end is None
        assert got == [(number, row[0]) for number, row in expected]
        assert repaired == repairs
        if len(got) > 1:
            assert closest[-1] == min(b[1] - a[1] for a, b in itertools.pairwise(got))


@pytest.mark.parametrize("fault", ["missing", "not_finite", "not_positive", "high", "low"])
def test_the_remedy_names_the_policy(fault: str):
    bad: dict[str, Row] = {
        "missing": (1, None, 3.0, 1.0, 2.5),
        "not_finite": (1, 2.0, math.inf, 1.0, 2.5),
        "not_positive": (1, 2.0, 3.0, 0.0, 2.5),
        "high": (1, 2.0, 2.2, 1.0, 2.5),
        "low": (1, 2.0, 3.0, 2.2, 2.5),
    }
    assert refusal([bad[fault]], ERRORS).remedy == (
        f"correct or remove the row, or set data.source.policy.{fault}=drop"
    )
    assert list(true_rows(blocks_of([bad[fault]], [1]), Policy.model_validate({**ERRORS, fault: "drop"}), {})) == []


@pytest.mark.parametrize(
    ("row", "fault", "column"),
    [
        ((1, 3.1, 3.0, 1.0, 2.5), "high", 2),
        ((1, 2.0, 3.0, 1.0, 3.1), "high", 2),
        ((1, 0.9, 3.0, 1.0, 2.5), "low", 3),
        ((1, 2.0, 3.0, 1.0, 0.9), "low", 3),
        *(((1, *(2.0 if k != at else math.inf for k in range(4))), "not_finite", at + 1) for at in range(4)),
        *(((1, *(2.0 if k != at else 0.0 for k in range(4))), "not_positive", at + 1) for at in range(4)),
    ],
)
def test_each_price_is_compared_with_each(row: Row, fault: str, column: int):
    refused = refusal([(0, 2.0, 3.0, 1.0, 2.5), row], ERRORS)
    assert (refused.fault, refused.row, refused.column) == (fault, 1001, column)


def refusal(rows: list[Row], policy: dict[str, str]) -> RowError:
    with pytest.raises(RowError) as caught:
        list(true_rows(blocks_of(rows, [10]), Policy.model_validate(policy), {}))
    return caught.value


def test_the_remedy_for_times_names_the_policy():
    good: Any = (2.0, 3.0, 1.0, 2.5)
    assert refusal([(5, *good), (5, *good)], ERRORS).remedy == (
        "remove the duplicate, or set data.source.policy.duplicate=keep_first or keep_last"
    )
    assert refusal([(5, *good), (4, *good)], ERRORS).remedy == (
        "sort the file by time, or set data.source.policy.unsorted=sort"
    )


def test_nothing_is_held_unless_rows_are_sorted():
    given_out = 0

    def many() -> Iterator[Rows]:
        nonlocal given_out
        for k in range(50):
            given_out += 1
            yield Rows(np.arange(10), np.arange(10) + 10 * k, np.full((10, 4), 2.0))

    for duplicate in ("error", "keep_first", "keep_last"):
        given_out = 0
        out = true_rows(many(), Policy.model_validate({**ERRORS, "duplicate": duplicate}), {})
        for k in range(50):
            next(out)
            assert given_out == k + 1
    given_out = 0
    next(true_rows(many(), Policy.model_validate({**ERRORS, "unsorted": "sort"}), {}))
    assert given_out == 50
