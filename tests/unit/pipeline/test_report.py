"""The numbers behind a report's drawings, against the bars themselves."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from cache.reader import Dataset, open_dataset
from cache.timeframes import DAY_NS
from pipeline import report_coverage, report_features
from pipeline.build import build
from pipeline.certify import evidence_of
from pipeline.report_coverage import HOUR_NS, column_days, cover, lasting, spans
from pipeline.report_features import drift, sample, verdict
from pipeline.report_split import opened
from pipeline.report_view import prices_of, telling_window, unfinished
from pipeline.series import BarSeries
from tests.unit.pipeline.making import make_recipe, quiet


@pytest.fixture(scope="module")
def dataset(test_store: Path) -> Dataset:
    return open_dataset(test_store, "test")


@pytest.fixture(scope="module")
def bars(dataset: Dataset, test_store: Path) -> dict[str, BarSeries]:
    ((_, evidence),) = evidence_of(dataset, test_store).items()
    return dict(evidence.bars)


@pytest.fixture(params=[700, 1 << 20])
def block(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Small blocks and one."""
    monkeypatch.setattr(report_coverage, "CHUNK_ROWS", request.param)
    monkeypatch.setattr(report_features, "CHUNK_ROWS", request.param)


@pytest.mark.usefixtures("block")
@pytest.mark.parametrize("name", ["m1", "m15"])
def test_coverage_and_pauses_are_those_of_the_bars(dataset: Dataset, bars: dict[str, BarSeries], name: str):
    ((_, entries),) = dataset.symbols.items()
    found = cover(entries.streams[name])
    opens, closes = (bars[name].rows(which, 0, len(bars[name])) for which in ("open_time", "close_time"))
    told = [np.concatenate(part) for part in zip(*spans(entries.streams[name]), strict=True)]
    np.testing.assert_array_equal(told[0], opens)
    np.testing.assert_array_equal(told[1], closes)
    expected = np.zeros(len(found.hours))
    for open_, close in zip(opens.tolist(), closes.tolist(), strict=True):
        while open_ < close:  # what of it lies in each hour
            hour = open_ // HOUR_NS
            until = min(close, (hour + 1) * HOUR_NS)
            expected[hour - found.first_hour] += (until - open_) / HOUR_NS
            open_ = until
    np.testing.assert_allclose(found.hours, expected, atol=1e-6)
    gaps = [(a, b) for a, b in zip(closes[:-1].tolist(), opens[1:].tolist(), strict=True) if b > a]
    assert gaps  # weekends
    assert found.pauses == Counter(b - a for a, b in gaps)
    assert [b - a for a, b in found.longest] == sorted((b - a for a, b in gaps), reverse=True)[:6]
    assert set(found.longest) <= set(gaps)


def test_columns_are_few_and_lengths_of_time_readable():
    for days in (1, 30, 109, 110, 365, 1500, 9000, 40_000):
        assert days / column_days(days) <= 110
    assert column_days(100) == 1
    assert [lasting(n * 10**9) for n in (1, 60, 5400, 86400, 129600)] == ["1 s", "1 min", "1.5 h", "1 day", "1.5 days"]
    assert lasting(2 * DAY_NS) == "2 days"


@pytest.mark.parametrize("name", ["m1", "m5", "m15"])
@pytest.mark.parametrize("start", [0, 1, 400])
def test_candles_are_the_bars(dataset: Dataset, bars: dict[str, BarSeries], name: str, start: int):
    ((_, entries),) = dataset.symbols.items()
    prices = prices_of(entries.streams[name], start, start + 50)
    expected = bars[name].rows("ohlc", start, start + 50)
    if start:
        np.testing.assert_allclose(prices, expected, rtol=1e-6)
    else:  # the first bar stands for its own predecessor
        np.testing.assert_allclose(prices[1:], expected[1:], rtol=1e-6)
    assert opened(entries.streams[name], start) == bars[name].rows("open_time", start, start + 1)[0]


def test_candles_of_a_dataset_of_prices_are_the_bars(simulated_dir: Path, tmp_path: Path):
    dataset = build(make_recipe("features.set=price"), simulated_dir, tmp_path / "store", 2, quiet()).dataset
    ((_, entries),), ((_, evidence),) = dataset.symbols.items(), evidence_of(dataset, tmp_path / "store").items()
    for name, stream in entries.streams.items():
        expected = evidence.bars[name].rows("ohlc", 400, 450)
        np.testing.assert_allclose(prices_of(stream, 400, 450), expected, rtol=1e-6)


def test_unfinished_bars_have_opened_and_not_closed(dataset: Dataset, bars: dict[str, BarSeries]):
    ((_, entries),) = dataset.symbols.items()
    times, ends = (np.asarray(entries.windows.array(which)[-3000:]) for which in ("time", "ends"))
    counts = np.zeros(len(times), int)
    for j, (name, stream) in enumerate(entries.streams.items()):
        opens, closes = (bars[name].rows(which, 0, len(bars[name])) for which in ("open_time", "close_time"))
        expected = [bool(((opens < t) & (t < closes)).any()) for t in times.tolist()]
        found = unfinished(stream, ends[:, j].astype(np.int64), times)
        assert found.tolist() == expected
        assert any(expected) == (name != "m1")
        counts += found
    among = range(entries.windows.shape("time")[0] - 3000, entries.windows.shape("time")[0])
    assert counts[telling_window(entries, among) - among.start] == len(entries.streams) - 1


def psi(train: np.ndarray, val: np.ndarray) -> float:
    """By quantiles of the values themselves."""
    edges = np.concatenate([[-np.inf], np.quantile(train, np.arange(1, 10) / 10), [np.inf]])
    p, q = (np.histogram(values, edges)[0] / len(values) for values in (train, val))
    return float(((q - p) * np.log(q / p)).sum()) - 9 * (1 / len(train) + 1 / len(val))


@pytest.mark.parametrize(("shift", "stretch", "word"), [(0, 1, ""), (0.4, 1, "shift"), (0.0, 2.2, "strong")])
def test_drift_is_the_population_stability_index(shift: float, stretch: float, word: str):
    rng = np.random.default_rng(0)
    train, val = rng.normal(size=(40_000, 1)), shift + stretch * rng.normal(size=(8_000, 1))
    found = drift(sample([train[:123], train[123:]], 1), sample([val], 1), 0)
    assert found == pytest.approx(max(psi(train, val), 0), abs=0.01)
    assert verdict(found) == word


def test_drift_by_chance_is_taken_off_and_single_values_are_borne():
    rng = np.random.default_rng(1)
    found = [
        drift(sample([rng.normal(size=(900, 1))], 1), sample([rng.normal(size=(90, 1))], 1), 0) for _ in range(200)
    ]
    assert np.mean(found) < 0.04  # without that, 0.11
    constant = sample([np.zeros((50, 1))], 1)
    assert drift(constant, constant, 0) == 0
    assert drift(constant, sample([np.ones((50, 1))], 1), 0) > 1
    assert np.isnan(drift(constant, sample([], 1), 0))


def test_samples_know_moments_and_every_value():
    values = np.concatenate([np.random.default_rng(2).standard_cauchy((5000, 3)), [[1e30, -1e30, 0]]]).astype(
        np.float32
    )
    found = sample([values[:1000], values[1000:]], 3)
    assert found.counts.sum(axis=1).tolist() == [5001] * 3
    np.testing.assert_allclose(found.mean, values.mean(axis=0, dtype=np.float64), rtol=1e-9)
    np.testing.assert_allclose(found.std, values.std(axis=0, dtype=np.float64), rtol=1e-6)
