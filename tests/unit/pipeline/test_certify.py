"""The parts of a certificate, each against a slow oracle; tests/integration/test_certificate.py has the whole."""

import itertools
import tempfile
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cache.entries import Entry
from cache.reader import Dataset, open_dataset
from cache.recipe import Session
from configs.errors import UserError
from pipeline import certify_evidence
from pipeline.bars import Block
from pipeline.build import build
from pipeline.certify import certificate_error, certify, evidence_of
from pipeline.certify_completion import _session_end, _wrong_ends, check_completion
from pipeline.certify_evidence import Evidence, Finding
from pipeline.certify_purge import check_purge, end_of_training
from pipeline.certify_streams import Beginning, check_masks, check_statistics
from pipeline.certify_windows import Moment, _randomised_futures, check_moment, draw_moments
from pipeline.features import FEATURE_SETS
from pipeline.sessions import day_boundaries
from tests.unit.pipeline.making import (
    DAY,
    HOUR,
    MINUTE,
    MONDAY,
    MemorySeries,
    make_recipe,
    quiet,
    random_ohlc,
    store_bars,
    write_parquet,
)

SETTINGS = ("timeframes=[m1, m5, h1]", "window.seq_len={m1: 9, m5: 4, h1: 2}", "split.embargo=1h")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with a dataset of four symbols, of which D is over before validation begins."""
    folder, rng = tmp_path_factory.mktemp("four"), np.random.default_rng(0)
    for symbol, rows in (("A", 4000), ("B", 3900), ("C", 3000), ("D", 900)):
        opened = MONDAY + MINUTE * np.cumsum(rng.integers(1, 3, rows))
        write_parquet(folder / f"{symbol}.parquet", opened, random_ohlc(rng, rows))
    recipe = make_recipe("source.files={m1: '{symbol}.parquet'}", *SETTINGS)
    build(recipe, folder, folder / "store", 2, quiet())
    return folder / "store"


@pytest.fixture
def made(store: Path) -> tuple[Dataset, Path]:
    """The same, opened anew for every test, which may change what it has opened."""
    return open_dataset(store, "test"), store


FEATURES = FEATURE_SETS["price"]
RECIPE = make_recipe("source.files={m1: '{symbol}.parquet'}", *SETTINGS)


@dataclass(frozen=True)
class Changed(Entry):
    """An entry some of whose arrays hold something else."""

    changed: dict[str, np.ndarray]

    def rows(self, name: str, start: int, stop: int) -> np.ndarray:
        return self.changed[name][start:stop] if name in self.changed else super().rows(name, start, stop)


def copied(splits: dict[str, Any]) -> dict[str, Any]:
    return {part: {**of_part, "windows": dict(of_part["windows"])} for part, of_part in splits.items()}


@settings(max_examples=40, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 50), min_size=1, max_size=3),
    starts=st.lists(st.integers(0, 60), min_size=3, max_size=3),
    fraction=st.floats(0.01, 0.99),
    claimed=st.integers(-5, 200),
)
def test_the_end_of_training_does_not_depend_on_what_is_claimed(
    lengths: list[int], starts: list[int], fraction: float, claimed: int
):
    closes, symbols = [], {}
    with tempfile.TemporaryDirectory() as folder:
        for number, (rows, start) in enumerate(zip(lengths, starts, strict=False)):
            opened = MONDAY + MINUTE * (start + np.arange(rows) * (number + 1))
            series = store_bars(Path(folder), Block(opened, opened + MINUTE, np.ones((rows, 4))), f"bars{number}")
            symbols[f"S{number}"] = symbols[f"again{number}"] = Evidence(None, {}, {"m1": series})  # type: ignore[arg-type]
            closes += (opened + MINUTE).tolist()
        recipe = make_recipe(f"split.val_fraction={fraction}")
        expected = sorted(closes)[max(int((1 - fraction) * len(closes)), 1) - 1]
        assert end_of_training(recipe, symbols, MONDAY + claimed * MINUTE) == expected
        assert end_of_training(recipe, symbols, expected) == expected
    stated = make_recipe("split.train_end='2024-01-09T01:00'")
    assert end_of_training(stated, {}, 0) == MONDAY + 25 * HOUR


@pytest.mark.parametrize("zone", ["America/New_York", "Europe/London", "America/Sao_Paulo", "UTC", "Asia/Kolkata"])
@pytest.mark.parametrize("at", ["17:00", "00:00", "02:30", "01:30"])
@pytest.mark.parametrize("year", [2017, 2024])
def test_days_end_where_the_sessions_say(zone: str, at: str, year: int):
    begin = int(np.datetime64(f"{year}-01-01", "ns").astype(int))
    bounds = day_boundaries(begin, begin + 400 * DAY, Session(tz=zone, at=at))
    for start, stop in itertools.pairwise(bounds):
        assert _session_end(int(start), zone, at) == stop
        assert _session_end(int(stop) - 1, zone, at) == stop


@settings(max_examples=200, deadline=None)
@given(
    closes=st.lists(st.integers(0, 60), min_size=3, max_size=40, unique=True),
    times=st.lists(st.integers(0, 70), min_size=1, max_size=60, unique=True),
    length=st.integers(1, 3),
    at=st.integers(0, 100),
    by=st.sampled_from([-2, -1, 0, 0, 1, 2]),
)
@example(closes=[5, 10, 15], times=[8, 10, 12], length=1, at=1, by=-1)  # a bar that is over at t itself
@example(closes=[5, 10, 15], times=[8, 9, 12], length=1, at=1, by=1)
def test_wrong_ends_are_found_wherever_they_are(closes: list[int], times: list[int], length: int, at: int, by: int):
    close, time = np.sort(np.array(closes, np.int64)), np.sort(np.array(times, np.int64))
    ends = np.array([sum(c <= t for c in close) for t in time], np.int32)
    time, ends = time[ends >= length], ends[ends >= length]
    if not len(ends):
        return
    ends[at % len(ends)] += by
    bars = Block(close - 1, close, np.ones((len(close), 4)))
    faults = list(_wrong_ends("X", "m1", length, MemorySeries(bars), time, ends))  # type: ignore[arg-type]
    assert bool(faults) == (by != 0)
    assert all(fault.startswith("X m1 at 1970-01-01T00:00:00") for fault in faults)


@pytest.mark.parametrize("samples", [1, 4, 16, 60, 100_000])
def test_moments_are_the_edges_of_the_parts_and_more_between(made: tuple[Dataset, Path], samples: int):
    dataset, store = made
    symbols, splits = evidence_of(dataset, store), dataset.splits
    drawn = draw_moments(RECIPE, symbols, splits, samples, np.random.default_rng(1))
    assert len(set(drawn)) == len(drawn)
    edges: dict[str, set] = {"train": set(), "val": set()}
    for moment in drawn:
        (part,) = [
            name
            for name, one in splits.items()
            if one["windows"][moment.symbol][0] <= moment.window < one["windows"][moment.symbol][1]
        ]
        first, stop = splits[part]["windows"][moment.symbol]
        if moment.window in (first, stop - 1):
            edges[part].add(moment)
    assert all(len(of_part) >= 2 for of_part in edges.values())
    if samples >= 16:
        total = sum(stop - first for one in splits.values() for first, stop in one["windows"].values())
        assert len(drawn) == min(samples, total)
        assert {moment.symbol for moment in drawn} == {"A", "B", "C", "D"}
    if samples >= 60:
        assert sum(map(len, edges.values())) >= 14  # all seven parts that are not empty
    assert drawn == draw_moments(RECIPE, symbols, splits, samples, np.random.default_rng(1))
    assert samples in (1, 100_000) or drawn != draw_moments(RECIPE, symbols, splits, samples, np.random.default_rng(2))


def test_moments_lie_at_the_bounds_of_longer_bars_and_before(made: tuple[Dataset, Path]):
    dataset, store = made
    symbols = evidence_of(dataset, store)
    at, before = 0, 0
    for moment in draw_moments(RECIPE, symbols, dataset.splits, 200, np.random.default_rng(1)):
        ends = symbols[moment.symbol].windows.array("ends")
        at += moment.window > 0 and ends[moment.window, 2] > ends[moment.window - 1, 2]
        before += moment.window + 1 < len(ends) and ends[moment.window + 1, 2] > ends[moment.window, 2]
    assert at > 20
    assert before > 20


def test_what_is_stored_is_compared_to_the_byte(made: tuple[Dataset, Path]):
    dataset, store = made
    evidence = evidence_of(dataset, store)["A"]
    rng = np.random.default_rng(0)
    for window in (0, 1, 777, evidence.windows.shape("time")[0] - 1):
        assert check_moment(RECIPE, evidence, Moment("A", window), rng) == {"truncation": [], "randomisation": []}
    ends = evidence.windows.array("ends")[777]
    for column, (name, length) in enumerate(RECIPE.seq_lens.items()):
        for array, words in (("values", "log_range of"), ("close", "close of"), ("close_time", "close_time of")):
            for bar in (0, length - 1):
                stream = evidence.streams[name]
                changed = stream.array(array)  # a private map
                at = (ends[column] - length + bar, 4) if array == "values" else ends[column] - length + bar
                changed[at] = np.nextafter(changed[at], np.float32(9)) if array == "values" else changed[at] + 1
                other = Changed(stream.path, stream.manifest, {array: changed})
                forged = replace(evidence, streams={**evidence.streams, name: other})
                for check, faults in check_moment(RECIPE, forged, Moment("A", 777), rng).items():
                    (fault,) = faults
                    assert fault.startswith(f"A {name} at 2024-01-0"), (check, fault)
                    which = "its last bar" if bar == length - 1 else f"its bar {bar + 1} of {length}"
                    assert f"{words} {which} is " in fault


def test_a_statistic_that_is_off_by_one_bit_is_told(made: tuple[Dataset, Path]):
    dataset, store = made
    symbols = deepcopy(evidence_of(dataset, store))
    cutoff = dataset.splits["train"]["until"]
    found = check_statistics(symbols, cutoff)
    assert (found.checked, found.faults) == (12, [])
    stored = symbols["B"].streams["m5"].manifest["statistics"]
    value = stored["std"]["log_range"]
    stored["std"]["log_range"] = float(np.nextafter(value, 1))
    (fault,) = check_statistics(symbols, cutoff).faults
    assert fault.startswith(f"B m5: the std of log_range is {stored['std']['log_range']!r}, where the ")
    assert fault.endswith(f"have {value!r}: it was fitted on other bars")


def test_a_beginning_hides_the_rest():
    bars = MemorySeries(Block(np.arange(20), np.arange(1, 21), random_ohlc(np.random.default_rng(0), 20)))
    seen = Beginning(bars, 12)  # type: ignore[arg-type]
    assert len(seen) == 12
    assert list(seen.ranges()) == [(0, 12)]
    np.testing.assert_array_equal(seen.rows("close_time", 5, 20), np.arange(6, 13))


def test_windows_out_of_order_are_told_where_blocks_meet_too(
    made: tuple[Dataset, Path], monkeypatch: pytest.MonkeyPatch
):
    dataset, store = made
    symbols = evidence_of(dataset, store)
    monkeypatch.setattr(certify_evidence, "_ROWS", 100)
    assert check_completion(RECIPE, symbols).faults == []
    windows = symbols["B"].windows
    for at in (150, 199):
        time = windows.array("time")
        time[at + 1] = time[at]
        forged = replace(symbols["B"], windows=Changed(windows.path, windows.manifest, {"time": time}))
        assert (
            "B: the windows are not in order of their decision times" in check_completion(RECIPE, {"B": forged}).faults
        )


@pytest.mark.parametrize("block", [100, 100_000])
def test_any_window_out_of_its_part_is_told(made: tuple[Dataset, Path], monkeypatch: pytest.MonkeyPatch, block: int):
    monkeypatch.setattr(certify_evidence, "_ROWS", block)
    dataset, store = made
    symbols, start = evidence_of(dataset, store), dataset.splits["val"]["from"]
    assert check_purge(RECIPE, symbols, dataset.splits, start).faults == []
    for part, index, by, words in (
        ("train", 1, 1, "A m1 at 2024-01-1"),
        ("val", 0, -1, "A h1 at 2024-01-1"),
        ("train", 0, -1, "these ranges overlap or lie outside"),
        ("val", 1, 1, "these ranges overlap or lie outside"),
    ):
        splits = copied(dataset.splits)
        splits[part]["windows"]["A"] = [*splits[part]["windows"]["A"]]
        splits[part]["windows"]["A"][index] += by
        faults = check_purge(RECIPE, symbols, splits, start).faults
        assert faults, (part, index)
        assert words in faults[0], faults
    splits = copied(dataset.splits)
    splits["val"]["windows"]["A"] = splits["train"]["windows"]["A"]
    assert "training takes windows 0 to" in check_purge(RECIPE, symbols, splits, start).faults[0]
    for part, bound, words in (("train", "until", "training ends at"), ("val", "from", "validation begins at")):
        splits = copied(dataset.splits)
        splits[part][bound] -= 1
        (fault,) = check_purge(RECIPE, symbols, splits, start).faults
        assert fault.startswith(f"test: {words} ")


def test_masks_look_at_every_stream(made: tuple[Dataset, Path]):
    dataset, store = made
    found = check_masks(evidence_of(dataset, store), 20, np.random.default_rng(0))
    assert (found.checked, found.faults) == (24, [])
    assert check_masks(evidence_of(dataset, store), 5, np.random.default_rng(0)).checked == 5


def test_a_feature_that_remembers_longer_gives_the_hidden_close_away(
    made: tuple[Dataset, Path], monkeypatch: pytest.MonkeyPatch
):
    """The difference to the close two bars ago: hidden after the block, it tells in the bar after that."""

    def remembering(ohlc, previous_close, out):
        FEATURES.kernel(ohlc, previous_close, out)
        out[2:, 4] = ohlc[2:, 3] - ohlc[:-2, 3]

    dataset, store = made
    symbols = deepcopy(evidence_of(dataset, store))
    for one in symbols.values():
        for stream in one.streams.values():
            stream.manifest.update(feature_set="price", reveals=["delta_close"])
            stream.manifest["statistics"]["std"] = dict.fromkeys(FEATURES.columns, 1.0)
    assert check_masks(symbols, 12, np.random.default_rng(0)).faults == []
    monkeypatch.setitem(FEATURE_SETS, "price", replace(FEATURES, lookback=2, kernel=remembering))
    faults = check_masks(symbols, 12, np.random.default_rng(0)).faults
    assert len(faults) == 12
    assert all("when this bar is hidden, delta_close of the bars after it" in fault for fault in faults)


def test_a_feature_that_does_not_know_the_close_proves_nothing(
    made: tuple[Dataset, Path], monkeypatch: pytest.MonkeyPatch
):
    dataset, store = made
    constant = replace(FEATURE_SETS["returns"], kernel=lambda ohlc, previous_close, out: out.fill(1))
    monkeypatch.setitem(FEATURE_SETS, "returns", constant)
    fault, *_ = check_masks(evidence_of(dataset, store), 12, np.random.default_rng(0)).faults
    assert fault.endswith(": another close of this bar changes none of its features")


def test_the_future_is_another_one_from_the_first_bar_on(made: tuple[Dataset, Path]):
    dataset, store = made
    evidence = evidence_of(dataset, store)["A"]
    base = evidence.bars["m1"]
    closes, ohlc = (base.rows(name, 0, len(base)) for name in ("close_time", "ohlc"))
    found = []
    for seed in range(20):
        t = int(closes[1000 + seed])
        future = _randomised_futures(RECIPE, evidence, t, np.random.default_rng(seed))["m1"]
        rows = np.searchsorted(closes, future.close_time)
        assert rows[0] > 1000 + seed
        assert future.close_time[-1] >= t + 2 * HOUR  # the hour in progress is over
        assert (future.ohlc != ohlc[rows]).all()
        found.append((rows[0] - 1000 - seed, len(rows) / (rows[-1] - 1000 - seed)))
        assert set(_randomised_futures(RECIPE, evidence, t, np.random.default_rng(seed))) == {"m1"}
    assert min(first for first, _ in found) == 1
    assert 0.6 < np.mean([share for _, share in found]) < 0.73


def test_the_certificate_says_what_it_took(made: tuple[Dataset, Path]):
    dataset, store = made
    seen: list[int] = []
    found = certify(RECIPE, evidence_of(dataset, store), dataset.splits, 12, 9, seen.append)
    assert found["passed"]
    assert (found["seed"], found["samples"], sum(seen)) == (9, 12, 12)
    assert found["checks"]["statistics"]["checked"] == 12
    assert found["checks"]["truncation"]["checked"] == 12


def test_a_finding_tells_its_first_fault():
    assert Finding(3, "all well").as_dict() == {"passed": True, "checked": 3, "detail": "all well"}
    assert Finding(3, "all well", ["a"]).as_dict() == {"passed": False, "checked": 3, "detail": "a"}
    assert Finding(3, "all well", ["a", "b", "c"]).as_dict()["detail"] == "a (and 2 more)"


def test_the_error_names_what_fails():
    checks = {
        "purge": {"passed": True, "checked": 1, "detail": "fine"},
        "truncation": {
            "passed": False,
            "checked": 1,
            "detail": "SSE h1 at 2018-05-02T02:31:00 UTC: the window changes",
        },
    }
    error = certificate_error({"passed": False, "checks": checks}, "sse")
    assert isinstance(error, UserError)
    assert str(error) == (
        "sse: not published, because it does not prove that every window holds only what was known at its time.\n"
        "  truncation: SSE h1 at 2018-05-02T02:31:00 UTC: the window changes\n"
        "Your data cannot cause this: either an entry of the store was changed, and building into a new one (--store) "
        "helps, or Headstart has a fault; please report these lines"
    )
