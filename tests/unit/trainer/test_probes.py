import itertools
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import zarr
from torch import Tensor, nn

from cache.reader import Dataset, open_dataset
from configs.loader import load_config
from pipeline.build_command import main as build_cache
from trainer.config import parse_trainer
from trainer.data import WindowSource
from trainer.probes import embed, probe_encoder, probe_windows, raw_windows, thinned
from trainer.reconstruct import Reconstruct, reconstruct_task
from trainer.report import probe_table
from trainer.ridge import PENALTIES, area_under_curve, correlation, effective_rank, r_squared, ranks, ridge

CPU = torch.device("cpu")
HORIZON = 32


@pytest.fixture(scope="module")
def dataset(test_store: Path) -> Dataset:
    return open_dataset(test_store, "test")


@pytest.fixture(scope="module")
def source(dataset: Dataset) -> WindowSource:
    return WindowSource(dataset, CPU)


@pytest.fixture(scope="module")
def task(dataset: Dataset) -> Reconstruct:
    return reconstruct_task(parse_trainer(load_config("configs/test.yaml")), dataset, torch.device("cpu"))


def base_bars(dataset: Dataset) -> pd.Series:
    """Closes of the base, by the time they are known."""
    (entries,) = dataset.symbols.values()
    stream = zarr.open_group(entries.streams["m1"].path, mode="r")
    return pd.Series(stream["close"][:], pd.to_datetime(stream["close_time"][:], utc=True))


def test_targets_equal_pandas_on_times(dataset: Dataset, source: WindowSource):
    closes = base_bars(dataset)
    returns = np.log(closes).diff()
    (entries,) = dataset.symbols.values()
    times = pd.to_datetime(zarr.open_group(entries.windows.path, mode="r")["time"][:], utc=True)
    begin = pd.Timestamp(dataset.splits["val"]["from"], tz="UTC")
    train, val = probe_windows(dataset, source)
    assert min(len(train.index), len(val.index)) > 100
    for part, windows in ((train, source.train), (val, source.val)):
        assert set(part.index) <= set(windows)
        taken_until = pd.Timestamp(0, tz="UTC")
        for w, index in enumerate(part.index):
            past, future = returns[: times[index]], returns[times[index] :].iloc[1:][:HORIZON]
            assert len(future) == HORIZON
            assert times[index] >= taken_until  # no two horizons share a bar
            taken_until = future.index[-1]
            assert part is val or taken_until <= begin
            assert part.volatility[w] == pytest.approx(math.log(math.sqrt((future**2).sum())), abs=1e-9)
            assert part.log_return[w] == pytest.approx(future.sum(), abs=1e-12)
            for k, n in enumerate((1, 5, 22)):
                expected = math.log(math.sqrt((past.iloc[-n * HORIZON :] ** 2).sum()))
                assert part.har[w, k] == pytest.approx(expected, abs=1e-9)
            assert part.hour[w] == times[index].hour


def test_training_keeps_clear_of_validation(dataset: Dataset, source: WindowSource):
    """Windows are left out although they are training windows, because what they should predict is not."""
    closes = base_bars(dataset)
    early = int(closes.index[source.train[-1] // 2].as_unit("ns").value)
    splits = {**dataset.splits, "val": {**dataset.splits["val"], "from": early}}
    entry = replace(dataset.entry, manifest={**dataset.entry.manifest, "splits": splits})
    train, val = probe_windows(replace(dataset, entry=entry), source)
    (entries,) = dataset.symbols.values()
    ends = entries.windows.array("ends")[:, 0]
    last = closes.index[ends[train.index] + HORIZON - 1].as_unit("ns").asi8
    assert last.max() <= early < last.max() + HORIZON * 60 * 10**9 * 2
    assert np.array_equal(val.index, probe_windows(dataset, source)[1].index)


def test_thinning():
    ends = np.cumsum(np.random.default_rng(0).integers(1, 5, size=500))
    kept = ends[thinned(ends, 17)]
    assert np.diff(kept).min() >= 17
    assert kept[0] == ends[0]
    for one, following in itertools.pairwise(kept):  # as early as can be
        assert not ((ends >= one + 17) & (ends < following)).any()
    assert thinned(np.array([], dtype=np.int64), 3).tolist() == []


@pytest.mark.parametrize("columns", [5, 80])  # tall and wide
def test_ridge_equals_least_squares_with_extra_rows(columns: int):
    rng = np.random.default_rng(columns)
    train, val = rng.normal(2, 3, size=(50, columns)), rng.normal(2, 3, size=(20, columns))
    train[:, 1] = val[:, 1] = 7.0  # says nothing
    y = train[:, :1] * [[0.5, -1.0]] + rng.normal(size=(50, 2)) + 4

    def fit(x: np.ndarray, y: np.ndarray, new: np.ndarray, penalty: float) -> np.ndarray:
        spread = np.where(x.std(axis=0) > 0, x.std(axis=0), 1)
        x, new = (x - x.mean(axis=0)) / spread, (new - x.mean(axis=0)) / spread
        rows = np.vstack([x, math.sqrt(len(x) * penalty) * np.eye(columns)])
        solved = np.linalg.lstsq(rows, np.vstack([y - y.mean(axis=0), np.zeros((columns, 2))]))[0]
        return new @ solved + y.mean(axis=0)

    errors = {penalty: ((fit(train[:40], y[:40], train[40:], penalty) - y[40:]) ** 2).sum() for penalty in PENALTIES}
    best = min(errors, key=errors.get)
    (found,) = ridge((train, val), [y])
    np.testing.assert_allclose(found, fit(train, y, val, best), rtol=1e-6, atol=1e-6)


def test_ridge_finds_what_is_there_and_nothing_where_there_is_nothing():
    rng = np.random.default_rng(6)
    train, val = rng.normal(size=(600, 40)), rng.normal(size=(300, 40))
    truth = val[:, :3].sum(axis=1)
    linear, noise = ridge((train, val), [train[:, :1] + train[:, 1:2] + train[:, 2:3], rng.normal(size=(600, 1))])
    assert r_squared(linear[:, 0], truth, 0) > 0.999
    other = rng.normal(size=300)
    assert -0.1 < r_squared(noise[:, 0], other, 0) < 0.02


def test_scores_of_predictions_equal_slow_ones():
    rng = np.random.default_rng(7)
    score, y = rng.integers(0, 9, size=200).astype(float), rng.random(200) < 0.4
    wins = [(a > b) + (a == b) / 2 for a in score[y] for b in score[~y]]
    assert area_under_curve(score, y) == pytest.approx(np.mean(wins))
    assert math.isnan(area_under_curve(score, np.ones(200, dtype=bool)))
    assert ranks(score).tolist() == pd.Series(score).rank().tolist()
    x = score + rng.normal(size=200)
    spearman = pd.Series(x).rank().corr(pd.Series(score).rank())
    assert correlation(ranks(x), ranks(score)) == pytest.approx(spearman)
    assert math.isnan(correlation(np.full(200, 0.1), x))
    assert r_squared(x, score, 3.0) == pytest.approx(1 - ((score - x) ** 2).sum() / ((score - 3.0) ** 2).sum())


@pytest.mark.parametrize("rank", [1, 3, 10])
def test_effective_rank_counts_equal_directions(rank: int):
    rng = np.random.default_rng(8)
    left = np.linalg.qr(rng.normal(size=(100, rank)) - 0)[0]
    left = np.linalg.qr(left - left.mean(axis=0))[0]
    right = np.linalg.qr(rng.normal(size=(20, rank)))[0]
    assert effective_rank(5 + 2 * left @ right.T) == pytest.approx(rank, rel=1e-6)
    unequal = effective_rank(left * np.linspace(1, 0.01, rank) @ right.T)
    assert unequal <= rank + 1e-9


class Stub(nn.Module):
    """An encoder that tells the last close feature of every timeframe, and in training something else."""

    def latents(self, x: list[Tensor]) -> list[Tensor]:
        assert all((one[..., 6] == 0).all() for one in x)  # nothing is hidden
        return [one[..., 3:4] + 100 * self.training for one in x]


def test_embeddings_are_of_visible_windows(task: Reconstruct, source: WindowSource):
    index = source.val.first(300).all().numpy()
    found = embed(Stub(), task, source, index)
    x = [one.double().numpy() for one in source.gather(torch.from_numpy(index)).x]
    expected = np.stack([part for one in x for part in (one[:, -1, 3], one[..., 3].mean(axis=1))], axis=1)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    raw = raw_windows(source, index)
    assert raw.shape == (300, sum(one[0].size for one in x))
    np.testing.assert_array_equal(raw[:, : x[0][0].size], x[0].reshape(300, -1))


def test_probes_of_a_fresh_encoder(task: Reconstruct, dataset: Dataset, source: WindowSource):
    probes = probe_encoder(task.build_model(), task, dataset, source)
    json.dumps(probes, allow_nan=False)
    assert probes.keys() >= {"pooling", "horizon_bars", "train_windows", "volatility", "direction", "session"}
    for name in ("volatility", "direction", "session", "effective_rank"):
        assert probes[name]["encoder"] == probes[name]["untrained"]
    assert set(probes["volatility"]) == {
        *("encoder", "untrained", "raw_window", "har", "har_and_hour", "har_and_encoder")
    }
    # volatility clusters in these bars, so the past tells some of it
    assert probes["volatility"]["har"]["r2"] > 0.1
    assert probes["direction"]["encoder"]["auc_error"] == pytest.approx(0.5 / math.sqrt(3) / 6, rel=0.5)
    assert abs(probes["direction"]["encoder"]["rank_ic"]) < 5 * probes["direction"]["encoder"]["rank_ic_error"]
    assert 1 < probes["effective_rank"]["encoder"]["rank"] < probes["effective_rank"]["encoder"]["of"]
    assert probes["session"]["majority"] < 0.2
    lines = probe_table(probes)
    assert max(map(len, lines)) <= 100
    text = "\n".join(lines)
    assert f"{probes['volatility']['har']['r2']:.4f}" in text
    assert all(words in text for words in ("HAR", "untrained", "chance", "majority class", "Effective rank"))


def test_an_encoder_that_says_nothing(
    task: Reconstruct, dataset: Dataset, source: WindowSource, monkeypatch: pytest.MonkeyPatch
):
    model = task.build_model()
    monkeypatch.setattr(model, "latents", lambda x: [torch.ones(len(x[0]), 2, 3)])
    probes = probe_encoder(model, task, dataset, source)
    json.dumps(probes, allow_nan=False)
    assert abs(probes["volatility"]["encoder"]["correlation"] or 0) < 1e-9
    assert probes["volatility"]["encoder"]["r2"] <= 1e-9
    assert probes["direction"]["encoder"]["auc"] == 0.5
    assert probes["direction"]["encoder"]["rank_ic"] is None
    assert probes["effective_rank"]["encoder"]["rank"] == pytest.approx(1)
    assert "Direction, rank IC: cannot be told" in "\n".join(probe_table(probes))


def test_too_few_windows_are_said(task: Reconstruct, dataset: Dataset):
    source = WindowSource(dataset, CPU)
    source.val = source.val.first(100)
    probes = probe_encoder(task.build_model(), task, dataset, source)
    assert "volatility" not in probes
    assert "probes need 50 of both" in probe_table(probes)[0]


@pytest.mark.parametrize("feature_set", ["returns", "price"])
def test_a_random_walk_has_no_direction(feature_set: str, tmp_path: Path):
    """Nothing of the future reaches the inputs: otherwise the sign of the next returns would be told here."""
    rng = np.random.default_rng(11)
    steps = (1e-4 * rng.normal(size=(30_000, 4))).cumsum(axis=1)
    before = np.append(0, steps[:-1, -1].cumsum())[:, None]
    path = 1.1 * np.exp(before + np.hstack([np.zeros((30_000, 1)), steps]))
    columns = {"open": path[:, 0], "high": path.max(axis=1), "low": path.min(axis=1), "close": path[:, -1]}
    times = pd.date_range("2024-01-01", periods=30_000, freq="1min", tz="UTC")
    pd.DataFrame({"time": times, **columns}).to_parquet(tmp_path / "simfx_m1.parquet")
    options = ["--config", "configs/test.yaml", "--data-dir", str(tmp_path), "--store", str(tmp_path / "store")]
    build_cache([*options, f"data.features.set={feature_set}"], standalone_mode=False)
    walk = open_dataset(tmp_path / "store", "test")
    task = reconstruct_task(parse_trainer(load_config("configs/test.yaml")), walk, torch.device("cpu"))
    probes = probe_encoder(task.build_model(), task, walk, WindowSource(walk, CPU))
    for name in ("encoder", "raw_window"):
        of = probes["direction"][name]
        assert abs(of["accuracy"] - 0.5) < 3 * of["accuracy_error"]
        if feature_set == "returns":
            assert abs(of["auc"] - 0.5) < 3 * of["auc_error"]
            assert abs(of["rank_ic"]) < 3 * of["rank_ic_error"]
    assert ("Stambaugh" in "\n".join(probe_table(probes))) == (feature_set == "price")
    # and volatility, which never changes, cannot be told either
    assert abs(probes["volatility"]["encoder"]["r2"]) < 0.1
