"""Windows of many symbols: what is read, what is held, and what zarr-python finds are the same."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zarr

from cache.part import universe_of
from cache.reader import Dataset, open_dataset
from configs.loader import load_config
from pipeline.build import build
from tests.unit.pipeline.making import MINUTE, MONDAY, make_recipe, quiet, random_ohlc, write_parquet
from trainer import placement
from trainer.config import parse_trainer
from trainer.data import WindowSource
from trainer.evaluate import evaluate
from trainer.order import permute
from trainer.placement import Held, Read
from trainer.prices import scales_of, true_log_prices
from trainer.reconstruct import Reconstruct, reconstruct_task

CPU = torch.device("cpu")
ROWS = {"AAA": 2600, "BBB": 1900, "CCC": 2300, "DDD": 2200}
SETS = ("returns", "price")


@pytest.fixture(scope="module")
def datasets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Dataset]:
    """Four symbols of unequal lengths and prices, each scaled by itself; BBB is held out."""
    folder, found = tmp_path_factory.mktemp("symbols"), {}
    for seed, (name, rows) in enumerate(ROWS.items()):
        ohlc = random_ohlc(np.random.default_rng(seed), rows) * 10.0 ** (seed - 1)
        write_parquet(folder / f"{name}.parquet", MONDAY + MINUTE * np.arange(rows), ohlc)
    for name in SETS:
        overrides = ("source.files={m1: '{symbol}.parquet'}", "timeframes=[m1, m5]", f"features.set={name}")
        recipe = make_recipe(*overrides, "window.seq_len={m1: 24, m5: 16}", "universe={hold_out: [BBB]}")
        found[name] = build(recipe, folder, folder / name, 2, quiet()).dataset
    return found


@pytest.fixture(params=SETS)
def dataset(request: pytest.FixtureRequest, datasets: dict[str, Dataset]) -> Dataset:
    return datasets[request.param]


def all_windows(dataset: Dataset) -> torch.Tensor:
    return torch.arange(int(universe_of(dataset).first[-1]))


def made(dataset: Dataset) -> Reconstruct:
    return reconstruct_task(parse_trainer(load_config("configs/test.yaml")), dataset, CPU)


def test_windows_are_those_of_their_symbols(dataset: Dataset):
    source, index = WindowSource(dataset, CPU), all_windows(dataset)
    shuffled = index[permute(index, len(index), 0, 0)]
    batch = source.gather(shuffled)
    assert torch.equal(batch.index, shuffled)
    for number, (symbol, entries) in enumerate(dataset.symbols.items()):
        mine = torch.nonzero(batch.symbol == number)[:, 0]
        own = (shuffled[mine] - source.begins[symbol]).numpy()
        assert sorted(own.tolist()) == list(range(entries.windows.shape("time")[0]))
        ends = zarr.open_group(entries.windows.path, mode="r")["ends"][:][own]
        for j, (stream, length) in enumerate(zip(entries.streams.values(), source.seq_lens, strict=True)):
            stored = {name: array[:] for name, array in zarr.open_group(stream.path, mode="r").arrays()}
            stored.setdefault("base_rows", np.stack([np.arange(ROWS[symbol]), np.arange(ROWS[symbol]) + 1], axis=1))
            found = {"values": batch.x[j], "close_time": batch.close_time[j], "base_rows": batch.rows[j]}
            for name, windows in found.items():
                expected = np.stack([stored[name][end - length : end] for end in ends[:, j]])
                np.testing.assert_array_equal(windows[mine].numpy(), expected, err_msg=f"{symbol} {name}")
            before = stored["close"][np.maximum(ends[:, j] - length - 1, 0)]
            np.testing.assert_array_equal(batch.log_before[j][mine].numpy(), torch.from_numpy(before).log().numpy())


def test_what_is_held_is_what_is_read(dataset: Dataset, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(placement, "_PIECE", 50_000)  # so that arrays go over in several pieces
    source, universe = WindowSource(dataset, CPU), universe_of(dataset)
    assert isinstance(source._place, Read)
    wanted = [one for one, _ in source._buffers]
    held = Held(universe, source.seq_lens, wanted, CPU)
    index = all_windows(dataset)
    for some in (index, index.flip(0)[:300], index[::7].contiguous()):
        expected = [part.clone() for part in source.fetch(some)]
        symbol, first_row, found = held.fetch(some, None)
        for one, other in zip([some, symbol, first_row.int(), *found], expected, strict=True):
            assert one.dtype == other.dtype
            assert torch.equal(one, other)


def test_prices_are_told_by_the_scale_of_each_window(dataset: Dataset):
    source, task = WindowSource(dataset, CPU), made(dataset)
    index = torch.cat([torch.arange(begin + 100, begin + 110) for begin in source.begins.values()])
    batch = source.gather(index[torch.randperm(len(index), generator=torch.Generator().manual_seed(0))])
    assert len(set(batch.symbol.tolist())) == 4
    for j, scale in enumerate(task.scales_of(batch)):
        found = true_log_prices(batch.x[j], batch.log_before[j], scale)
        for row, (number, symbol) in enumerate(zip(batch.index.tolist(), batch.symbol.tolist(), strict=True)):
            entries = dataset.symbols[source.symbols[symbol]]
            stream = list(entries.streams.values())[j]
            end = int(entries.windows.array("ends")[number - source.begins[source.symbols[symbol]], j])
            close = np.log(stream.array("close")[end - source.seq_lens[j] : end])
            np.testing.assert_allclose(found[row, :, 3].numpy(), close, atol=2e-5)
    assert torch.isfinite(task.training_losses(task.build_model(), batch, task.drawn(batch, 0))["loss"])


def test_pooled_statistics_are_one_scale(tmp_path: Path, datasets: dict[str, Dataset]):
    for name in ROWS:
        (tmp_path / f"{name}.parquet").symlink_to(Path(datasets["price"].data_dir) / f"{name}.parquet")
    overrides = ("source.files={m1: '{symbol}.parquet'}", "timeframes=[m1, m5]", "window.seq_len=16")
    pooled = build(make_recipe(*overrides, "features.statistics=pooled"), tmp_path, tmp_path / "s", 2, quiet()).dataset
    assert pooled.per_symbol.scaled == ("*",)
    assert [tuple(scale.mean.shape) for scale in scales_of(pooled, "returns")] == [(1, 6)] * 2
    for symbol in pooled.symbols.values():
        for scale, stream in zip(scales_of(pooled, "returns"), symbol.streams.values(), strict=True):
            assert scale.std[0].tolist() == list(stream.manifest["statistics"]["std"].values())


def test_symbols_held_out_are_a_part_of_their_own(dataset: Dataset):
    source = WindowSource(dataset, CPU)
    of = {name: {symbol for symbol, _, _ in part.by_symbol(part.val)} for name, part in source.parts().items()}
    assert of == {"val": {"AAA", "CCC", "DDD"}, "hold_out": {"BBB"}}
    assert {symbol for symbol, _, _ in source.by_symbol(source.train)} == of["val"]
    for name, part in source.parts().items():
        for symbol, own, here in part.by_symbol(part.val):
            assert [own.start, own.stop] == dataset.splits[name]["windows"][symbol]
            assert here.start - own.start == source.begins[symbol]
    source.overfit(8)
    assert list(source.train) == list(source.parts()["val"].val) == list(range(8))
    assert list(source.parts()) == ["val"]


class Carries(torch.nn.Module):
    """A model that tells the same of every bar."""

    def forward(self, x: list[torch.Tensor]) -> list[torch.Tensor]:
        return [part[..., :4] * 0 + 0.1 for part in x]


def test_scores_of_several_symbols_are_those_of_each_together(dataset: Dataset):
    task, source = made(dataset), WindowSource(dataset, CPU)

    def scored(of: WindowSource) -> dict[str, Any]:
        return evaluate(Carries(), task, dataset, of, lambda count: None)

    together, alone = scored(source), []
    for here in source.val.ranges:
        source.val = type(source.val)(np.array([[here.start, here.stop]]))
        alone.append(scored(source))
    assert together["summary"]["windows"] == sum(one["summary"]["windows"] for one in alone)
    for name in ("m1", "m5"):
        counts = [one["correlation_per_tf"][name]["n"] for one in alone]
        assert together["correlation_per_tf"][name]["n"] == sum(counts)
        for predictor in ("model", "last_value", "straight_line"):
            errors = [one["reconstruction_quality"][name][predictor]["mse"] for one in alone]
            found = together["reconstruction_quality"][name][predictor]["mse"]
            assert found == pytest.approx(np.average(errors, weights=counts), rel=1e-9)
        # symbols at a tenth and a hundred of the price say nothing about how well levels are told
        levels = [one["correlation_per_tf"][name]["last_value"]["level"] for one in alone]
        assert together["correlation_per_tf"][name]["last_value"]["level"] < max(levels) + 0.02
    pair = "m1 → m5"
    eligible = [one["consistency_ratio"]["pairs"][pair]["eligible"] for one in alone]
    assert together["consistency_ratio"]["pairs"][pair]["eligible"] == sum(eligible) > 0
    gaps = [one["consistency_ratio"]["pairs"][pair]["last_value"]["gap_ticks"] for one in alone]
    found = together["consistency_ratio"]["pairs"][pair]["last_value"]["gap_ticks"]
    assert found == pytest.approx(np.average(gaps, weights=eligible), rel=1e-9)


def test_opening_many_symbols_reads_the_manifests_of_one(datasets: dict[str, Dataset], monkeypatch: pytest.MonkeyPatch):
    dataset, opened = datasets["returns"], []
    monkeypatch.setattr("cache.reader.AT_ONCE", 2)
    honest = open_dataset.__globals__["open_entry"]

    def counted(store: Path, stage: str, key: str) -> Any:
        opened.append(stage)
        return honest(store, stage, key)

    monkeypatch.setattr("cache.reader.open_entry", counted)
    again = open_dataset(dataset.entry.path.parents[1], "test")
    source = WindowSource(again, CPU)
    made(again)
    source.gather(source.train.at(torch.arange(0, len(source.train), 11)))
    assert opened == ["datasets", "windows", "streams", "streams"]
