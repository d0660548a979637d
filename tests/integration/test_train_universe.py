"""Training on many symbols: one order over all of them, weights, symbols held out, and a real file of seven venues."""

import json
import struct
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from cache.reader import open_dataset
from configs.errors import UserError
from configs.loader import load_config
from pipeline.build import build
from pipeline.build_command import main as build_cache
from tests.unit.pipeline.making import MINUTE, MONDAY, make_recipe, quiet, random_ohlc, write_parquet
from trainer.batches import train_windows
from trainer.config import parse_trainer
from trainer.data import WindowSource
from trainer.encode import Encoder
from trainer.encode_command import main as encode
from trainer.encode_dataset import encode_at
from trainer.evaluate_command import main as evaluate
from trainer.progress import TrainingBar
from trainer.train_command import main as train

BARS = Path(__file__).parents[2].parent / "shared" / "data" / "bars"
ROWS = {"AAA": 3000, "BBB": 2600, "CCC": 2800, "DDD": 1500}
DATA = ("data.source.files={m1: '{symbol}.parquet'}", "data.timeframes=[m1, m5]", "data.window.seq_len=16")
HELD_OUT = ("data.universe.hold_out=[BBB]", "data.universe.weights={'C*': 2, DDD: 0.5}")
LONG = ("training.max_epochs=2", "training.steps_per_epoch=8", "training.log_every=1", "training.val_windows=32")
LONG = (*LONG, "training.checkpoint_every=5", "model.dropout=0.1", "training.accumulate=2")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("symbols")
    for seed, (name, rows) in enumerate(ROWS.items()):
        write_parquet(
            path / f"{name}.parquet", MONDAY + MINUTE * np.arange(rows), random_ohlc(np.random.default_rng(seed), rows)
        )
    return path


@pytest.fixture(scope="module")
def store(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("store") / "store"
    words = ["--config", "configs/test.yaml", "--data-dir", str(folder), "--store", str(path), *DATA, *HELD_OUT]
    build_cache(words, standalone_mode=False)
    return path


def trained(store: Path, run: Path, *overrides: str) -> Path:
    words = ["--config", "configs/test.yaml", "--store", str(store), "--run", str(run), *DATA, *HELD_OUT, *LONG]
    train([*words, *overrides], standalone_mode=False)
    return run


@pytest.fixture(scope="module")
def run(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(store, tmp_path_factory.mktemp("runs") / "run")


def records(run: Path, kind: str) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    vary = ("windows_per_second", "rss_mb")
    return [{k: v for k, v in one.items() if k not in vary} for one in found if one["kind"] == kind]


def test_symbols_held_out_are_validated_apart(run: Path, store: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    val, hold_out = records(run, "val"), records(run, "hold_out")
    assert [one["step"] for one in val] == [one["step"] for one in hold_out] == [1, 8, 16]
    assert all(one["loss"] != other["loss"] for one, other in zip(val, hold_out, strict=True))
    assert json.loads((run / "summary.json").read_text())["best_loss"] == min(one["loss"] for one in val)
    trained(store, tmp_path / "again")
    said = capsys.readouterr().out
    drawn = len(WindowSource(open_dataset(store, "test"), torch.device("cpu")).train)
    assert f" {drawn:,} training windows, as weights have it, " in said
    assert "  3 of 4 symbols train; 381 windows of 1 held out validate too\n" in said
    told = f"validation loss {hold_out[-1]['loss']:.4f} (last value carried: {hold_out[-1]['last_value_loss']:.4f})"
    assert f"; symbols held out: {told}, correlation " in said
    assert records(tmp_path / "again", "hold_out") == hold_out


def test_resuming_repeats_what_would_have_been(run: Path, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    stopped = tmp_path / "stopped"

    class StoppedError(Exception):
        """A kill in the middle of the second epoch."""

    honest = TrainingBar.step

    def step(bar: TrainingBar, step: int) -> None:
        if step == 13:
            raise StoppedError
        honest(bar, step)

    monkeypatch.setattr(TrainingBar, "step", step)
    with pytest.raises(StoppedError):
        trained(store, stopped)
    monkeypatch.undo()
    trained(store, stopped, "--resume")
    for kind in ("train", "val", "hold_out"):
        assert records(stopped, kind) == records(run, kind)
    one, other = (load_file(path / "best.safetensors") for path in (run, stopped))
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("block", ["null", "300"])
def test_an_epoch_draws_each_symbol_by_its_weight(store: Path, block: str):
    dataset = open_dataset(store, "test")
    source = WindowSource(dataset, torch.device("cpu"))
    overrides = ["training.batch_size=10", f"training.shuffle_block={block}"]
    config = parse_trainer(load_config("configs/test.yaml", overrides)).training
    counts = {symbol: stop - start for symbol, (start, stop) in dataset.splits["train"]["windows"].items()}
    steps, both = len(source.train) // 10, Counter[int]()
    assert len(source.train) == counts["AAA"] + 2 * counts["CCC"] + round(counts["DDD"] / 2)
    for epoch in range(2):
        batches = [train_windows(config, source, torch.tensor(epoch), torch.tensor(step)) for step in range(steps)]
        drawn = Counter(torch.cat(batches).tolist())
        of = Counter(source.symbols[k] for k in source.locate(np.array(list(drawn.elements())))[0])
        assert "BBB" not in of
        for symbol, weight in (("AAA", 1), ("CCC", 2), ("DDD", 0.5)):
            assert weight * counts[symbol] - 10 < of[symbol] < weight * counts[symbol] + 1
            begin = source.begins[symbol]
            assert max(drawn[begin + k] for k in range(counts[symbol])) == max(weight, 1)
        both += drawn
    begin = source.begins["DDD"]
    assert sum(both[begin + k] == 1 for k in range(counts["DDD"])) > 0.6 * counts["DDD"]  # of two halves


def test_blocks_train(store: Path, tmp_path: Path):
    run = trained(store, tmp_path / "run", "training.shuffle_block=500", "training.max_epochs=1")
    assert json.loads((run / "summary.json").read_text())["steps"] == 8


def test_evaluation_scores_both_parts(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    words = ["--output", tmp_path / "e.json", "--report", tmp_path / "r.html", "--plots", tmp_path, "--probe"]
    evaluate([*map(str, (run, *words))], standalone_mode=False)
    said = capsys.readouterr().out
    assert "Symbols held out of training (1):\nOn the hidden bars of 381 validation windows" in said
    scores = json.loads((tmp_path / "e.json").read_text())
    assert scores["hold_out"]["summary"]["windows"] == 381
    assert scores["summary"]["windows"] > 381
    assert scores["probes"].get("symbols") == 4
    page = (tmp_path / "r.html").read_text()
    assert "bars of CCC until" in page or "bars of AAA until" in page
    assert "<dt>symbols held out</dt><dd>1</dd></div><div><dt>their windows</dt><dd>381</dd>" in page
    for carried, class_ in (("", "held"), (", last value carried", "carried")):
        assert f'<i class="key {class_}"></i>symbols held out{carried}</span>' in page
        assert f'class="line {class_}"' in page
    width, height = struct.unpack(">II", (tmp_path / "correlations.png").read_bytes()[16:24])
    assert height > 0.45 * width  # two rows of panels
    trained_on, held_out = page.split('<section id="held-out">')
    for part, found in ((trained_on, scores), (held_out.split("</section>")[0], scores["hold_out"])):
        for timeframe, of in found["correlation_per_tf"].items():
            for predictor in ("model", "last_value", "straight_line"):
                row = "".join(f"<td>{'–' if r is None else f'{r:.4f}'}</td>" for r in of[predictor].values())
                assert f'<th scope="row">{timeframe} {predictor.replace("_", " ")}</th>{row}' in part
        assert f"<td>{found['consistency_ratio']['pairs']['m1 → m5']['eligible']:,}</td>" in part
        lead = found["correlation_per_tf"]["m1"]["model_minus_best_baseline"]["level"]
        assert f'<th scope="row">m1</th><td>{lead["difference"]:+.3f}' in part


def test_embeddings_of_all_symbols(run: Path, store: Path, tmp_path: Path):
    encode([str(run), "--out", str(tmp_path / "all")], standalone_mode=False)
    encode([str(run), "--out", str(tmp_path / "held"), "--split", "hold_out"], standalone_mode=False)
    dataset, encoder = open_dataset(store, "test"), Encoder.load(run)
    parts = json.loads((tmp_path / "all/encode.json").read_text())["parts"]
    assert [part["symbol"] for part in parts] == list(ROWS)
    for part in parts:
        group = tmp_path / "all" / part["path"]
        times = dataset.symbols[part["symbol"]].windows.array("time")
        attributes = json.loads((group / "zarr.json").read_text())["attributes"]
        shape = attributes["arrays"]["embedding"]["shape"]
        found = np.memmap(group / "embedding/c.0.0.0.0", "<f4", "r", shape=tuple(shape))
        chosen = np.arange(0, len(times), 97)
        expected = encode_at(encoder, dataset, times[chosen], 256, part["symbol"])
        np.testing.assert_allclose(found[chosen], expected.numpy(), rtol=1e-4, atol=1e-6)
    (part,) = json.loads((tmp_path / "held/encode.json").read_text())["parts"]
    assert (part["symbol"], part["windows"]) == ("BBB", dataset.splits["hold_out"]["windows"]["BBB"])


def test_live_bars_of_any_symbol_where_statistics_are_pooled(folder: Path, tmp_path: Path):
    words = ["--config", "configs/test.yaml", "--store", str(tmp_path / "store"), *DATA, *HELD_OUT]
    words.append("data.features.statistics=pooled")
    build_cache([*words, "--data-dir", str(folder)], standalone_mode=False)
    train([*words, "--run", str(tmp_path / "run"), "--fast-dev-run"], standalone_mode=False)
    encoder, dataset = Encoder.load(tmp_path / "run"), open_dataset(tmp_path / "store", "test")
    for symbol in ("AAA", "BBB"):  # one that trained, and one held out: no name is needed
        bars = pd.read_parquet(folder / f"{symbol}.parquet").set_index("timestamp")
        last = dataset.symbols[symbol].windows.array("time")[-1:]
        embedding = encoder.encode({"m1": bars})
        np.testing.assert_array_equal(embedding.numpy(), encode_at(encoder, dataset, last, 256, symbol).numpy())


def test_a_split_without_windows(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    dataset = build(
        make_recipe(*(one.removeprefix("data.") for one in DATA)), folder, tmp_path / "s", 2, quiet()
    ).dataset
    assert "hold_out" not in dataset.splits
    words = ["--config", "configs/test.yaml", "--store", str(tmp_path / "s"), "--run", str(tmp_path / "run"), *DATA]
    train([*words, *LONG, "training.max_epochs=1"], standalone_mode=False)
    count = sum(stop - start for start, stop in dataset.splits["train"]["windows"].values())
    validated = sum(stop - start for start, stop in dataset.splits["val"]["windows"].values())
    assert f" {count:,} training windows, {validated:,} validation windows of " in capsys.readouterr().out
    with pytest.raises(SystemExit):
        encode([str(tmp_path / "run"), "--out", str(tmp_path / "o"), "--split", "hold_out"], standalone_mode=False)
    assert "error: test: the split hold_out has no windows; choose another --split\n" in capsys.readouterr().err


# --- a hold-out that cannot be


def test_symbols_held_out_that_have_no_windows_after_training(folder: Path, tmp_path: Path):
    overrides = ("source.files={m1: '{symbol}.parquet'}", "timeframes=[m1]", "universe.hold_out=[DDD]")
    with pytest.raises(UserError) as caught:
        build(make_recipe(*overrides), folder, tmp_path / "store", 2, quiet())
    assert str(caught.value).startswith("test: the split leaves no held-out windows. Training ends at 2024-01-0")
    assert "the last window, at 2024-01-09T01:00:00 UTC, " in str(caught.value)  # of those held out


def test_symbols_held_out_that_are_left_out(folder: Path, tmp_path: Path):
    for name in ("AAA", "CCC"):
        (tmp_path / f"{name}.parquet").symlink_to(folder / f"{name}.parquet")
    write_parquet(tmp_path / "EEE.parquet", MONDAY + MINUTE * np.arange(20), random_ohlc(np.random.default_rng(0), 20))
    overrides = ("source.files={m1: '{symbol}.parquet'}", "timeframes=[m1]", "universe.failing=leave_out")
    with pytest.raises(UserError) as caught:
        build(make_recipe(*overrides, "universe.hold_out=[E*]"), tmp_path, tmp_path / "store", 2, quiet())
    assert str(caught.value) == (
        "test: data.universe.hold_out names E*, and none of these is left: they are excluded, or left out because they "
        "cannot be built; hold out others"
    )


# --- seven venues, five coins, unequal histories


@pytest.mark.skipif(not BARS.is_dir(), reason=f"{BARS} is not there")
def test_crypto_venues_train_as_one_universe(tmp_path: Path):
    words = ["--config", "configs/crypto.yaml", "--store", str(tmp_path / "store")]
    build_cache([*words, "--data-dir", str(BARS)], standalone_mode=False)
    dataset = open_dataset(tmp_path / "store", "crypto")
    assert len(dataset.symbols) == 35
    held = {symbol for symbol, (start, stop) in dataset.splits["hold_out"]["windows"].items() if stop > start}
    assert held == {f"{venue}-HYPE" for venue in ("binance", "bybit", "dydx", "kraken", "okx")}
    short = ["training.max_epochs=1", "training.steps_per_epoch=60", "training.val_windows=256"]
    train([*words, "--run", str(tmp_path / "run"), *short], standalone_mode=False)
    for part in ("val", "hold_out"):
        before, after = records(tmp_path / "run", part)
        assert after["loss"] < before["loss"]
        assert after["loss"] < after["last_value_loss"]
