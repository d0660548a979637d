from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs.errors import UserError
from pipeline.bars import Block
from pipeline.build import build
from pipeline.features import FEATURE_SETS, compute_features, feature_set, fit_statistics, normalised
from tests.unit.pipeline.making import MINUTE, MONDAY, MemorySeries, make_recipe, quiet, random_ohlc, write_parquet


def features_by_numpy(name: str, ohlc: np.ndarray) -> np.ndarray:
    """Both feature sets over the whole series at once, column by column."""
    opened, high, low, close = ohlc.T
    before = np.concatenate([opened[:1], close[:-1]])
    height = high - low
    body = np.divide(100 * np.abs(close - opened), height, out=np.zeros(len(ohlc)), where=height > 0)
    if name == "price":
        return np.column_stack([opened, high, low, close, close - before, body])
    logs = [np.log(price / before) for price in (opened, high, low, close)]
    return np.column_stack([*logs, np.log(high / low), body])


def series(ohlc: np.ndarray, block_rows: int = 7) -> MemorySeries:
    opened = MONDAY + MINUTE * np.arange(len(ohlc))
    return MemorySeries(Block(opened, opened + MINUTE, ohlc), block_rows)


def computed(name: str, ohlc: np.ndarray, block_rows: int, stop: int | None = None) -> np.ndarray:
    blocks = list(compute_features(series(ohlc, block_rows), FEATURE_SETS[name], len(ohlc) if stop is None else stop))
    np.testing.assert_array_equal(np.concatenate([prices for prices, _ in blocks]), ohlc[:stop])
    return np.concatenate([values for _, values in blocks])


bars = st.tuples(st.integers(1, 80), st.integers(0, 2**32), st.sampled_from([1e-4, 1.0, 5e4])).map(
    lambda drawn: random_ohlc(np.random.default_rng(drawn[1]), drawn[0]) * drawn[2]
)
names = st.sampled_from(sorted(FEATURE_SETS))
block_sizes = st.sampled_from([1, 2, 7, 1000])


@settings(max_examples=150, deadline=None)
@given(name=names, ohlc=bars, block_rows=block_sizes)
def test_features_are_what_numpy_makes_of_the_whole_series(name: str, ohlc: np.ndarray, block_rows: int):
    np.testing.assert_allclose(computed(name, ohlc, block_rows), features_by_numpy(name, ohlc), rtol=1e-12, atol=1e-12)


@settings(max_examples=50, deadline=None)
@given(name=names, ohlc=bars, block_rows=block_sizes, stop=st.integers(1, 80))
def test_features_depend_neither_on_blocks_nor_on_later_rows(name: str, ohlc: np.ndarray, block_rows: int, stop: int):
    stop = min(stop, len(ohlc))
    whole = computed(name, ohlc, len(ohlc))
    np.testing.assert_array_equal(computed(name, ohlc, block_rows), whole)
    np.testing.assert_array_equal(computed(name, ohlc, block_rows, stop), whole[:stop])
    changed = ohlc.copy()
    changed[stop:] *= 2
    np.testing.assert_array_equal(computed(name, changed, block_rows)[:stop], whole[:stop])


def test_the_columns_have_their_names():
    assert FEATURE_SETS["price"].columns == ("open", "high", "low", "close", "delta_close", "body_pct")
    assert FEATURE_SETS["returns"].columns == (
        "log_open",
        "log_high",
        "log_low",
        "log_close",
        "log_range",
        "body_pct",
    )


@settings(max_examples=60, deadline=None)
@given(name=names, ohlc=bars, factor=st.sampled_from([0.97, 1.04]))
def test_only_what_reveals_tells_the_close_of_the_bar_before(name: str, ohlc: np.ndarray, factor: float):
    """Another close, the later prices kept (price) or scaled like it (returns), is seen in those columns alone."""
    row = len(ohlc) // 3
    other = ohlc.copy()
    other[row, 3] *= factor
    if name == "returns":
        other[row + 1 :] *= factor
    moved = ~np.isclose(features_by_numpy(name, other), features_by_numpy(name, ohlc), rtol=1e-9, atol=1e-12)
    later = moved[row + 1 :].any(axis=0)
    seen = {column for column, change in zip(FEATURE_SETS[name].columns, later, strict=True) if change}
    assert seen <= set(FEATURE_SETS[name].reveals)
    assert seen or row + 1 == len(ohlc) or name == "returns"


@settings(max_examples=60, deadline=None)
@given(name=names, ohlc=bars, seed=st.integers(0, 2**32))
def test_a_row_reads_no_bar_further_back_than_the_lookback(name: str, ohlc: np.ndarray, seed: int):
    row = len(ohlc) // 2
    lookback = FEATURE_SETS[name].lookback
    other = ohlc.copy()
    other[: max(row - lookback, 0)] *= np.random.default_rng(seed).uniform(0.5, 2)
    np.testing.assert_array_equal(computed(name, other, 7)[row], computed(name, ohlc, 7)[row])


def test_a_bar_without_height_has_no_body():
    flat = np.full((3, 4), 1.25)
    np.testing.assert_array_equal(computed("price", flat, 2)[:, 4:], 0)
    np.testing.assert_array_equal(computed("returns", flat, 2), 0)


def test_an_unknown_feature_set_is_an_error_that_lists_the_known_ones():
    with pytest.raises(UserError) as caught:
        feature_set("prices")
    assert str(caught.value) == "data.features.set = 'prices' is not a feature set; known ones: price, returns"


@settings(max_examples=80, deadline=None)
@given(
    name=names, seed=st.integers(0, 2**32), rows=st.integers(20, 300), block_rows=block_sizes, share=st.floats(0.2, 1)
)
def test_statistics_are_those_of_the_training_rows(name: str, seed: int, rows: int, block_rows: int, share: float):
    ohlc = random_ohlc(np.random.default_rng(seed), rows)
    train = max(int(share * rows), 5)
    fitted = fit_statistics(series(ohlc, block_rows), FEATURE_SETS[name], train, "X m1")
    expected = features_by_numpy(name, ohlc)[:train]
    np.testing.assert_allclose(fitted.mean, expected.mean(axis=0), rtol=1e-9, atol=1e-14)
    np.testing.assert_allclose(fitted.std, expected.std(axis=0), rtol=1e-9)
    assert fitted.rows == train

    changed = ohlc.copy()
    changed[train:] *= np.random.default_rng(seed).uniform(0.1, 10, (rows - train, 1))
    again = fit_statistics(series(changed, block_rows), FEATURE_SETS[name], train, "X m1")
    np.testing.assert_array_equal(again.mean, fitted.mean)
    np.testing.assert_array_equal(again.std, fitted.std)


@settings(max_examples=80, deadline=None)
@given(
    name=names, seed=st.integers(0, 2**32), rows=st.integers(20, 300), block_rows=block_sizes, share=st.floats(0.3, 1)
)
def test_streams_are_the_features_scaled_by_the_training_rows(
    name: str, seed: int, rows: int, block_rows: int, share: float
):
    ohlc, train = random_ohlc(np.random.default_rng(seed), rows), max(int(share * rows), 6)
    features, bars_ = FEATURE_SETS[name], series(ohlc, block_rows)
    statistics = fit_statistics(bars_, features, train, "X m1")
    blocks = list(normalised(bars_, features, statistics, "X m1"))
    values = np.concatenate([block for _, block in blocks])
    assert values.dtype == np.float32
    np.testing.assert_array_equal(np.concatenate([prices for prices, _ in blocks]), ohlc)
    expected = features_by_numpy(name, ohlc)
    mean, std = expected[:train].mean(axis=0), expected[:train].std(axis=0)
    np.testing.assert_allclose(values, (expected - mean) / std, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(values[:train].mean(axis=0, dtype=float), 0, atol=1e-3)
    np.testing.assert_allclose(values[:train].std(axis=0, dtype=float), 1, atol=1e-3)
    np.testing.assert_allclose(values * statistics.std + statistics.mean, expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("value", [1.0, 1.1, 1234.5678, 0.3])
@pytest.mark.parametrize(("name", "column"), [("price", "close"), ("returns", "log_close")])
def test_a_close_that_does_not_vary_is_an_error(value: float, name: str, column: str):
    ohlc = random_ohlc(np.random.default_rng(0), 2000)
    ohlc[:1000] = value
    with pytest.raises(UserError) as caught:
        fit_statistics(series(ohlc, 300), FEATURE_SETS[name], 1000, "EURUSD m1")
    assert str(caught.value) == (
        f"EURUSD m1: feature {column} does not vary over its 1,000 training rows; check the prices, or give more data"
    )


def test_another_column_that_does_not_vary_is_only_centred():
    """Every bar opens at the close before; after the training rows, one percent above it."""
    ohlc = random_ohlc(np.random.default_rng(0), 2000)
    ohlc[1:, 0] = ohlc[:-1, 3]
    ohlc[1500:, 0] *= 1.01
    ohlc[:, 1], ohlc[:, 2] = ohlc.max(axis=1), ohlc.min(axis=1)
    bars, features = series(ohlc, 300), FEATURE_SETS["returns"]
    statistics = fit_statistics(bars, features, 1400, "X m1")
    assert (statistics.constant, statistics.std[0]) == ((0,), 1)
    assert statistics.manifest(features.columns, 0)["constant"] == ["log_open"]
    values = np.concatenate([block for _, block in normalised(bars, features, statistics, "X m1")])
    np.testing.assert_allclose(values[:1500, 0], 0, atol=1e-12)
    np.testing.assert_allclose(values[1500:, 0], np.log(1.01), atol=1e-6)
    np.testing.assert_allclose(values[:1400, 1:].std(axis=0, dtype=float), 1, atol=1e-3)


def test_no_training_rows_are_an_error():
    ohlc = random_ohlc(np.random.default_rng(0), 20)
    with pytest.raises(UserError, match="X d: no bar had closed by the end of training"):
        fit_statistics(series(ohlc), FEATURE_SETS["price"], 0, "X d")


def test_values_too_extreme_for_float32_are_an_error():
    ohlc = random_ohlc(np.random.default_rng(0), 100)
    statistics = fit_statistics(series(ohlc), FEATURE_SETS["price"], 100, "X m1")
    skewed = type(statistics)(statistics.mean + statistics.std, statistics.std, statistics.rows)
    with pytest.raises(UserError) as caught:
        list(normalised(series(ohlc), FEATURE_SETS["price"], skewed, "X m1"))
    assert str(caught.value) == (
        "X m1: feature open has mean -1 and standard deviation 1 over its training rows after scaling, not 0 and 1; "
        "its values are too extreme for float32. Check the prices"
    )


def test_a_build_fits_on_nothing_that_closed_after_the_training_cut_off(tmp_path: Path):
    rng = np.random.default_rng(3)
    label, ohlc = MONDAY + MINUTE * np.arange(4000), random_ohlc(rng, 4000)
    other = ohlc.copy()
    other[2941:] = 3 * random_ohlc(rng, 4000 - 2941)  # from 01:01 of the third day: the embargo ends training at 01:01
    recipe = make_recipe(
        "split.train_end='2024-01-10T02:01'", "split.embargo=1h", "window.seq_len=8", "features.set=price"
    )
    manifests = {}
    for name, prices in (("one", ohlc), ("other", other)):
        write_parquet(tmp_path / name / "simfx_m1.parquet", label, prices)
        dataset = build(recipe, tmp_path / name, tmp_path / name / "store", 1, quiet()).dataset
        manifests[name] = {tf: entry.manifest for tf, entry in dataset.symbols["TEST"].streams.items()}
    for timeframe, rows in (("m1", 2941), ("m5", 588), ("m15", 196)):
        statistics = manifests["one"][timeframe]["statistics"]
        assert statistics == manifests["other"][timeframe]["statistics"]
        assert statistics["rows"] == rows
        assert statistics["until"] == MONDAY + 2941 * MINUTE
        assert manifests["one"][timeframe]["arrays"] != manifests["other"][timeframe]["arrays"]
    expected = features_by_numpy("price", ohlc)[:2941]
    found = manifests["one"]["m1"]["statistics"]
    np.testing.assert_allclose(list(found["mean"].values()), expected.mean(axis=0), rtol=1e-9)
    np.testing.assert_allclose(list(found["std"].values()), expected.std(axis=0), rtol=1e-9)


OWN = Path(__file__).with_name("own_columns.py")


@settings(max_examples=40, deadline=None)
@given(ohlc=bars, block_rows=block_sizes, stop=st.integers(1, 80), first=st.integers(0, 79))
def test_own_columns_depend_neither_on_blocks_nor_on_later_rows(
    ohlc: np.ndarray, block_rows: int, stop: int, first: int
):
    features, stop = feature_set("returns", str(OWN)), min(stop, len(ohlc))
    assert (features.columns[-2:], features.lookback) == (("own_level", "own_height"), 3)
    whole, some, last = (
        np.concatenate(
            [np.empty((0, 8)), *(v for _, v in compute_features(series(ohlc, rows), features, until, begin))]
        )
        for rows, until, begin in ((len(ohlc), len(ohlc), 0), (block_rows, stop, 0), (block_rows, len(ohlc), first))
    )
    np.testing.assert_array_equal(some, whole[:stop])
    np.testing.assert_array_equal(last, whole[first:])
    np.testing.assert_array_equal(whole[:, :-2], computed("returns", ohlc, 7))
    before = np.concatenate([np.full((3, 4), ohlc[0, 0]), ohlc])
    each = [before[i : i + 4] for i in range(len(ohlc))]
    expected = [(np.log(sum(four[:, 3]) / 4), four.max() - four.min()) for four in each]
    np.testing.assert_allclose(whole[:, -2:], expected, rtol=1e-12, atol=1e-12)
