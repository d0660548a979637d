from pathlib import Path

import numpy as np
import pytest
import torch
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cache.reader import Dataset, open_dataset
from pipeline.build_command import main as build_cache
from trainer.carried import carry_last
from trainer.data import WindowSource
from trainer.prices import (
    Scale,
    denormalise,
    last_value,
    scales_of,
    straight_line,
    to_features,
    to_log_prices,
    true_log_prices,
)

CPU = torch.device("cpu")
SETS = ["returns", "price"]


@pytest.fixture(scope="module")
def datasets(test_store: Path, simulated_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Dataset]:
    store = tmp_path_factory.mktemp("price") / "store"
    options = ["--config", "configs/test.yaml", "--data-dir", str(simulated_dir), "--store", str(store)]
    build_cache([*options, "data.features.set=price"], standalone_mode=False)
    return {"returns": open_dataset(test_store, "test"), "price": open_dataset(store, "test")}


class Windows:
    """Some windows of a dataset: what the trainer sees, and the actual bars from the `bars` entries."""

    def __init__(self, dataset: Dataset, numbers: list[int]) -> None:
        (entries,) = dataset.symbols.values()
        self.scales = scales_of(dataset, entries.streams["m1"].manifest["feature_set"])
        index = torch.tensor(numbers)
        source = WindowSource(dataset, CPU)
        batch = source.gather(index)
        self.x, self.before = [part.clone() for part in batch.x], batch.log_before
        ends = zarr.open_group(entries.windows.path, mode="r")["ends"][:][numbers]
        self.bars, self.closes_before = [], []
        for j, stream in enumerate(entries.streams.values()):
            (key,) = stream.manifest["components"]["inputs"]["bars"]
            bars = zarr.open_group(stream.path.parents[1] / "bars" / key, mode="r")["ohlc"][:]
            length = source.seq_lens[j]
            self.bars.append(np.stack([bars[end - length : end] for end in ends[:, j]]))
            self.closes_before.append(np.array([bars[end - length - 1, 3] for end in ends[:, j]]))


@pytest.fixture(params=SETS)
def windows(request: pytest.FixtureRequest, datasets: dict[str, Dataset]) -> Windows:
    dataset = datasets[request.param]
    source = WindowSource(dataset, CPU)
    # not the very first windows: there is no m15 bar before theirs
    numbers = [
        20,
        1000,
        source.train[-1],
        source.val[0],
        *range(source.val[0] + 5, source.val[-1], 211),
        source.val[-1],
    ]
    return Windows(dataset, numbers)


def test_the_scale_is_read_in_the_order_of_the_columns(datasets: dict[str, Dataset]):
    for name, dataset in datasets.items():
        (entries,) = dataset.symbols.values()
        for stream, scale in zip(entries.streams.values(), scales_of(dataset, name), strict=True):
            assert scale.feature_set == name
            for part, values in (("mean", scale.mean), ("std", scale.std)):
                statistics = stream.manifest["statistics"][part]
                assert values.dtype == torch.float64
                assert values.tolist() == [[statistics[column] for column in stream.manifest["features"]]]


def test_denormalise_undoes_the_scaling():
    rng = np.random.default_rng(0)
    mean, std, raw = rng.normal(size=6), rng.uniform(0.1, 3, 6), rng.normal(size=(2, 5, 6))
    scale = Scale("price", torch.from_numpy(mean)[None], torch.from_numpy(std)[None])
    normalised = torch.from_numpy(((raw - mean) / std).astype(np.float32))
    found = denormalise(normalised, scale)
    assert found.dtype == torch.float64
    np.testing.assert_allclose(found.numpy(), raw, atol=1e-6)
    assert torch.equal(denormalise(normalised[..., :4], scale), found[..., :4])


def test_the_close_before_a_window_is_the_bars(windows: Windows):
    for before, closes in zip(windows.before, windows.closes_before, strict=True):
        assert before.dtype == torch.float64
        np.testing.assert_allclose(before.numpy(), np.log(closes), rtol=0, atol=1e-14)


def test_where_the_series_begins_its_first_close_stands_in(datasets: dict[str, Dataset]):
    windows = Windows(datasets["returns"], [0])
    assert windows.before[2].tolist() == [pytest.approx(np.log(windows.bars[2][0, 0, 3]), abs=1e-14)]


def test_features_become_the_actual_bars(windows: Windows):
    for x, before, scale, bars in zip(windows.x, windows.before, windows.scales, windows.bars, strict=True):
        found = true_log_prices(x, before, scale)
        assert found.dtype == torch.float64
        # what rounding a normalised feature to float32 can do to a price, and under `returns` to all later ones
        rounding = np.abs(x.numpy()[..., :4].astype(float)) * scale.std.numpy()[0, :4] * 2.0**-24
        if scale.feature_set == "price":
            bound = rounding / bars
        else:
            bound = rounding + np.cumsum(rounding[..., 3:], axis=1)
        error = np.abs(found.numpy() - np.log(bars))
        assert (error <= 1.01 * bound + 1e-13).all()
        assert error.max() < 1e-6 < np.log(bars).std()


def test_log_prices_become_the_same_features_again(windows: Windows):
    for x, before, scale in zip(windows.x, windows.before, windows.scales, strict=True):
        found = to_features(true_log_prices(x, before, scale), before, scale)
        np.testing.assert_allclose(found.numpy(), x[..., :4].numpy(), rtol=0, atol=1e-9)


def test_actual_bars_become_the_stored_features(windows: Windows):
    for x, scale, bars, closes in zip(windows.x, windows.scales, windows.bars, windows.closes_before, strict=True):
        found = to_features(torch.from_numpy(np.log(bars)), torch.from_numpy(np.log(closes)), scale)
        np.testing.assert_allclose(found.numpy(), x[..., :4].numpy(), rtol=1e-6, atol=1e-6)


def make_bars(seed: int, batch: int, length: int) -> tuple[Tensor, Tensor]:
    """Log prices of valid bars [batch, length, 4] with gaps between them, and the close before them [batch]."""
    rng = np.random.default_rng(seed)
    path = np.cumsum(rng.normal(size=(batch, length + 1, 4)), axis=1) + 3
    bars = np.stack([path[..., 0], path.max(axis=-1), path.min(axis=-1), path[..., 3]], axis=-1)
    return torch.from_numpy(bars[:, 1:].copy()), torch.from_numpy(bars[:, 0, 3].copy())


@st.composite
def hidden_bars(draw: st.DrawFn) -> Tensor:
    """Masks bool [B, L]: any, all but one bar, a block at the beginning or at the end."""
    batch, length = draw(st.integers(1, 3)), draw(st.integers(1, 12))
    rows = []
    for _ in range(batch):
        kind, place = (
            draw(st.sampled_from(["any", "all but one", "beginning", "end"])),
            draw(st.integers(0, length - 1)),
        )
        if kind == "any":
            rows.append(draw(st.lists(st.booleans(), min_size=length, max_size=length)))
        elif kind == "all but one":
            rows.append([t != place for t in range(length)])
        else:
            rows.append([(t <= place) == (kind == "beginning") for t in range(length)])
    return torch.tensor(rows)


MASKS = hidden_bars()
SEEDS = st.integers(0, 2**32)


def slow_baseline(bars: list[list[float]], before: float, hidden: list[bool], line: bool) -> list[list[float]]:
    """One window, bar by bar: [[open, high, low, close], …]."""
    result: list[list[float]] = []
    for t, bar in enumerate(bars):
        if not hidden[t]:
            result.append(bar)
            continue
        earlier = [s for s in range(t) if not hidden[s]]
        later = [s for s in range(t + 1, len(bars)) if not hidden[s]]

        def known(s: int) -> tuple[float, float, float]:
            """Close, and how far high and low are from the middle of the body."""
            open_, high, low, close = bars[s]
            return close, high - (open_ + close) / 2, (open_ + close) / 2 - low

        place, values = (earlier[-1], known(earlier[-1])) if earlier else (-1, (before, 0.0, 0.0))
        if line and later:
            share = (t - place) / (later[0] - place)
            values = tuple((1 - share) * a + share * b for a, b in zip(values, known(later[0]), strict=True))
        close, up, down = values
        open_ = result[-1][3] if result else before
        middle = (open_ + close) / 2
        result.append([open_, max(middle + up, open_, close), min(middle - down, open_, close), close])
    return result


@settings(max_examples=150, deadline=None)
@given(hidden=MASKS, seed=SEEDS)
def test_baselines_equal_a_bar_by_bar_oracle(hidden: Tensor, seed: int):
    bars, before = make_bars(seed, *hidden.shape)
    for function, line in ((last_value, False), (straight_line, True)):
        found = function(bars, before, hidden)
        assert found.dtype == torch.float64
        for row in range(len(hidden)):
            expected = slow_baseline(bars[row].tolist(), float(before[row]), hidden[row].tolist(), line)
            np.testing.assert_allclose(found[row].numpy(), expected, rtol=0, atol=1e-12)


@settings(max_examples=100, deadline=None)
@given(hidden=MASKS, seed=SEEDS)
def test_baselines_are_bars_true_where_visible_and_alike_at_the_end(hidden: Tensor, seed: int):
    bars, before = make_bars(seed, *hidden.shape)
    carried, straight = last_value(bars, before, hidden), straight_line(bars, before, hidden)
    for found in (carried, straight):
        assert torch.equal(found[~hidden], bars[~hidden])
        open_, high, low, close = found.unbind(-1)
        assert (high >= torch.maximum(open_, close)).all()
        assert (low <= torch.minimum(open_, close)).all()
        # a hidden bar opens at the close before it
        closes_before = torch.cat([before[:, None], close[:, :-1]], dim=1)
        assert torch.equal(open_[hidden], closes_before[hidden])
    for row in range(len(hidden)):
        visible = [t for t, is_hidden in enumerate(hidden[row].tolist()) if not is_hidden]
        after = visible[-1] + 1 if visible else 0
        assert torch.equal(carried[row, after:], straight[row, after:])


@settings(max_examples=100, deadline=None)
@given(hidden=MASKS, seed=SEEDS, garbage=st.sampled_from([0.0, -7.5, 1e300, float("inf"), float("nan")]))
def test_baselines_do_not_know_what_is_hidden(hidden: Tensor, seed: int, garbage: float):
    bars, before = make_bars(seed, *hidden.shape)
    other = bars.masked_fill(hidden[..., None], garbage)
    for function in (last_value, straight_line):
        assert torch.equal(function(other, before, hidden), function(bars, before, hidden))


def test_a_straight_line_is_straight():
    bars, before = make_bars(3, 1, 6)
    hidden = torch.tensor([[False, True, True, True, False, False]])
    closes = straight_line(bars, before, hidden)[0, :5, 3]
    steps = closes.diff()
    assert steps.abs().min() > 1e-3
    np.testing.assert_allclose(steps.numpy(), steps.mean().expand(4).numpy(), atol=1e-12)
    assert torch.equal(last_value(bars, before, hidden)[0, 1:4, 3], bars[0, 0, 3].expand(3))


def scale_for(name: str) -> Scale:
    rng = np.random.default_rng(5)
    mean = np.full(6, 100.0) if name == "price" else rng.normal(size=6) * 1e-3
    return Scale(name, torch.from_numpy(mean)[None], torch.from_numpy(rng.uniform(0.5, 2, 6))[None])


@settings(max_examples=100, deadline=None)
@given(hidden=MASKS, seed=SEEDS, name=st.sampled_from(SETS))
def test_predictions_of_hidden_bars_are_chained_from_the_visible_ones(hidden: Tensor, seed: int, name: str):
    truth, before = make_bars(seed, *hidden.shape)
    scale = scale_for(name)
    x = torch.from_numpy(np.random.default_rng(seed).normal(size=(*hidden.shape, 4)).astype(np.float32))
    found = to_log_prices(x, before, scale, hidden, truth)
    for row in range(len(hidden)):
        close = float(before[row])
        for t in range(hidden.shape[1]):
            if not hidden[row, t]:
                expected = truth[row, t].tolist()
            else:
                raw = [float(x[row, t, p]) * float(scale.std[0, p]) + float(scale.mean[0, p]) for p in range(4)]
                expected = [close + value for value in raw] if name == "returns" else np.log(raw).tolist()
            np.testing.assert_allclose(found[row, t].numpy(), expected, rtol=0, atol=1e-12)
            close = expected[3]


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("planted", [50.0, -1e6, float("nan"), float("inf")])
def test_predictions_of_visible_bars_are_not_read(name: str, planted: float):
    truth, before = make_bars(1, 4, 10)
    hidden = torch.from_numpy(np.random.default_rng(2).random((4, 10)) < 0.5)
    x = torch.from_numpy(np.random.default_rng(3).normal(size=(4, 10, 4)).astype(np.float32))
    expected = to_log_prices(x, before, scale_for(name), hidden, truth)
    found = to_log_prices(
        torch.where(hidden[..., None], x, planted),
        before,
        scale_for(name),
        hidden,
        torch.where(hidden[..., None], 0, truth),
    )
    assert torch.equal(found[~hidden], truth[~hidden])
    assert torch.equal(found, expected)


def test_a_price_below_zero_is_no_logarithm_of_one():
    scale = scale_for("price")
    x = torch.full((1, 2, 4), -1e4)
    found = to_log_prices(
        x, torch.zeros(1).double(), scale, torch.tensor([[True, True]]), torch.zeros(1, 2, 4).double()
    )
    assert torch.isfinite(found).all()
    assert (found < np.log(1e-6)).all()


@pytest.mark.parametrize("first_hidden", [False, True])
def test_the_last_value_in_units_of_the_loss(windows: Windows, first_hidden: bool):
    for x, before, scale in zip(windows.x, windows.before, windows.scales, strict=True):
        hidden = torch.from_numpy(np.random.default_rng(4).random(x.shape[:2]) < 0.4)
        hidden[:, 0], hidden[:, 1] = first_hidden, False
        found = carry_last(x, hidden, before, scale)
        assert found.shape == (*x.shape[:2], 4)
        if scale.feature_set == "price":
            np.testing.assert_allclose(found[~hidden].numpy(), x[..., :4][~hidden].numpy(), rtol=0, atol=1e-6)
        # it sees visible bars only
        np.testing.assert_allclose(
            carry_last(x.masked_fill(hidden[..., None], 2.5), hidden, before, scale)[hidden].numpy(),
            found[hidden].numpy(),
            rtol=0,
            atol=1e-6,
        )
        if scale.feature_set == "returns":
            # a price that stays: no return from open or close
            still = (0 - scale.mean[0, [0, 3]]) / scale.std[0, [0, 3]]
            np.testing.assert_allclose(found[hidden][:, [0, 3]].numpy(), still.expand(int(hidden.sum()), 2), atol=1e-6)
