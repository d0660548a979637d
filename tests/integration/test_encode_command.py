"""bin/encode as its users run it."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray

from cache.reader import open_dataset
from configs.loader import load_config
from trainer import encode_windows
from trainer.checkpoint import save_weights
from trainer.clock import CLOCK_CHANNELS
from trainer.config import ModelConfig
from trainer.described import describe_encoder, identity
from trainer.encode import Encoder
from trainer.encode_dataset import encode_at, encode_dataset
from trainer.model import MaskedAutoencoder
from trainer.runs import record_run

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
IN_SMALL_PARTS = """
import sys
from trainer import encode_command, encode_windows
encode_windows.PART_BYTES = 1_000_000
encode_command.main(sys.argv[1:], prog_name="bin/encode")
"""


@dataclass(frozen=True)
class Place:
    """A folder with runs on the store of the tests."""

    folder: Path
    store: Path

    def call(self, *words: str | Path) -> subprocess.CompletedProcess[str]:
        settings: dict[str, Any] = {"capture_output": True, "text": True, "timeout": 120, "env": ENVIRONMENT}
        return subprocess.run([str(ROOT / "bin/encode"), *map(str, words)], cwd=self.folder, **settings)

    def output(self, *words: str | Path) -> str:
        done = self.call(*words)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def failure(self, *words: str | Path, code: int = 1) -> str:
        done = self.call(*words)
        assert done.returncode == code, done.stdout + done.stderr
        assert "Traceback" not in done.stdout + done.stderr
        return done.stderr

    def record(self, name: str, *overrides: str) -> Path:
        """A run with the weights that training begins with."""
        config, dataset = load_config(ROOT / "configs/test.yaml", overrides), open_dataset(self.store, "test")
        described = describe_encoder("reconstruct", config.values["model"], dataset)
        record_run(self.folder / name, config, self.store, dataset, described)
        lengths = (tuple(described[what].values()) for what in ("seq_lens", "bar_lengths"))
        model = MaskedAutoencoder(6, CLOCK_CHANNELS, *lengths, config.parse("model", ModelConfig))
        save_weights(self.folder / name / "best.safetensors", model, identity(described))
        return self.folder / name

    def opened(self, out: str) -> tuple[dict[str, Any], xarray.Dataset]:
        """encode.json, and all parts as the module says that they are opened."""
        described = json.loads((self.folder / out / "encode.json").read_text())
        parts = [self.folder / out / part["path"] for part in described["parts"]]
        return described, xarray.concat([xarray.open_zarr(part, consolidated=False) for part in parts], "window")


@pytest.fixture(scope="module")
def place(test_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Place:
    place = Place(tmp_path_factory.mktemp("place"), test_store)
    place.record("run", "model.encoder.n_layers=1")
    return place


def bodies(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("c.*")}


def test_embeddings_of_a_dataset(place: Place):
    printed = place.output("run", "--out", "all")
    dataset = open_dataset(place.store, "test")
    ((_, entries),) = dataset.symbols.items()
    count = entries.windows.shape("time")[0]
    order = [
        "Encoding with run\n",
        "  open run ",
        "  import torch, pandas, numba ",
        "  load encoder ",
        f"  test: {count:,} windows, 3 × 8 × 32 float32 each (timeframes × latents × channels)\n",
        f"  {count:,} windows in ",
        "Done: all/encode.json lists the parts\n",
    ]
    places = [printed.index(part) for part in order]
    assert places == sorted(places)
    assert re.search(r" windows in \d+\.\d\d s, [\d,]+ windows/s\n", printed)

    described, opened = place.opened("all")
    assert described["complete"] is True
    assert (described["dataset"], described["split"]) == (dataset.entry.key, "all")
    assert (described["run"], described["timeframes"]) == (str(place.folder / "run"), ["m1", "m5", "m15"])
    assert described["shape"] == list(opened.embedding.shape) == [count, 3, 8, 32]
    assert opened.embedding.dims == ("window", "timeframe", "latent", "channel")
    assert opened.embedding.dtype == np.float32
    assert "time" in opened.embedding.coords
    times = entries.windows.array("time")
    assert (opened.time.to_numpy() == times.view("datetime64[ns]")).all()
    chosen = np.arange(0, count, 997)
    expected = encode_at(Encoder.load(place.folder / "run"), dataset, times[chosen], batch_size=256)
    np.testing.assert_allclose(opened.embedding.to_numpy()[chosen], expected.numpy(), rtol=1e-4, atol=1e-6)

    part = described["parts"][0]
    folder = place.folder / "all" / part["path"]
    attributes = json.loads((folder / "zarr.json").read_text())["attributes"]
    fields = attributes["components"]["fields"]
    assert fields == {
        **{name: described[name] for name in ("weights", "dataset", "split")},
        "symbol": "TEST",
        "windows": part["windows"],
    }
    assert attributes["run"] == described["run"]
    windows = part["windows"][1]
    mapped = np.memmap(folder / "embedding/c.0.0.0.0", "<f4", "r", shape=(windows, 3, 8, 32))
    assert (mapped == opened.embedding.to_numpy()[:windows]).all()
    assert described["parts"][1]["windows"] == [windows, count]

    again = place.output("run", "--out", "all", "--batch-size", "7")
    assert f"  {count:,} windows were there already\n" in again
    assert "windows/s" not in again


def test_splits(place: Place):
    dataset = open_dataset(place.store, "test")
    start, stop = dataset.splits["val"]["windows"]["TEST"]
    place.output("run", "--out", "val", "--split", "val")
    described, opened = place.opened("val")
    assert described["parts"][0]["windows"] == [start, stop]
    assert len(opened.time) == stop - start


def test_a_killed_call_is_continued(place: Place):
    words = [sys.executable, "-c", IN_SMALL_PARTS, "run", "--split", "val", "--batch-size", "512", "--out"]
    settings: dict[str, Any] = {"cwd": place.folder, "env": {**ENVIRONMENT, "PYTHONPATH": str(ROOT)}}
    parts = place.folder / "killed" / "parts"
    with subprocess.Popen([*words, "killed"], stdout=subprocess.DEVNULL, **settings) as process:
        deadline = time.monotonic() + 60
        while len(list(parts.glob("[!.]*/zarr.json"))) < 3 and time.monotonic() < deadline:
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
    described = json.loads((place.folder / "killed" / "encode.json").read_text())
    there = [(place.folder / "killed" / part["path"]).exists() for part in described["parts"]]
    assert len(there) > 10
    assert there == sorted(there, reverse=True)
    assert 3 <= sum(there) < len(there)
    assert described["complete"] is False
    for out in ("killed", "whole"):
        done = subprocess.run([*words, out], capture_output=True, text=True, check=True, **settings)
        assert ("windows were there already" in done.stdout) == (out == "killed")
    assert bodies(place.folder / "killed") == bodies(place.folder / "whole")
    assert not list(parts.glob(".*"))
    assert place.opened("killed")[0] == place.opened("whole")[0]


def test_a_damaged_part_is_made_again(place: Place, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(encode_windows, "PART_BYTES", 1_000_000)
    encoder, dataset = Encoder.load(place.folder / "run"), open_dataset(place.store, "test")
    out = place.folder / "again"
    encode = partial(encode_dataset, encoder, dataset, out, "val", 512, lambda count: None)
    total = encode()
    before = bodies(out)
    parts = json.loads((out / "encode.json").read_text())["parts"]
    damages: list[Callable[[Path], object]] = [
        lambda part: os.truncate(part / "embedding/c.0.0.0.0", 100),
        lambda part: (part / "time/c.0").write_bytes((part / "time/c.0").read_bytes() + b"0"),
        lambda part: (part / "time/c.0").unlink(),
        lambda part: (part / "embedding/zarr.json").unlink(),
        lambda part: (part / "time/zarr.json").write_text("{}"),
        lambda part: (part / "zarr.json").write_text("{"),
    ]
    for damage, part in zip(damages, parts, strict=False):
        damage(out / part["path"])
    sizes = [stop - start for start, stop in (part["windows"] for part in parts)]
    assert encode() == sum(sizes[: len(damages)]) < sum(sizes) == total
    assert bodies(out) == before
    assert len(place.opened("again")[1].time) == total
    assert encode() == 0


def test_runs_are_not_mixed(place: Place):
    place.record("second", "model.encoder.n_layers=1", "model.n_heads=2")
    place.output("run", "--out", "mine", "--split", "val")
    message = place.failure("second", "--out", "mine", "--split", "train")
    assert f"error: mine: holds other embeddings, of {place.folder / 'run'}:" in message
    assert re.search(r"  weights: [0-9a-f]{32} there, [0-9a-f]{32} now\n  split: val there, train now\n", message)
    assert "Name another --out" in message
    (place.folder / "letters").mkdir()
    (place.folder / "letters" / "a.txt").touch()
    message = place.failure("run", "--out", "letters")
    assert "error: letters: holds a.txt, but no encode.json; name an empty or a new folder as --out" in message
    (place.folder / "mine" / "encode.json").write_text("{")
    assert "mine/encode.json: damaged; delete mine, or name another --out" in place.failure("run", "--out", "mine")


def test_latency_needs_no_store(place: Place, tmp_path: Path):
    for name in ("encoder.json", "best.safetensors"):
        shutil.copy(place.folder / "run" / name, tmp_path / name)
    printed = place.output(tmp_path, "--latency", "--windows", "20")
    line = (
        r"One window of m1×32 m5×32 m15×32, from frames to embedding on the CPU \(1 threads\): p50 \d+\.\d\d ms, p99 "
    )
    assert re.search(line + r"\d+\.\d\d ms of 20 windows\n", printed)


def test_wrong_usage(place: Place):
    assert "give either --out DIR, to write embeddings, or --latency" in place.failure("run", code=2)
    assert "give either" in place.failure("run", "--out", "x", "--latency", code=2)
    assert "error: none: no run there (it has no config.yaml)" in place.failure("none", "--out", "x")
    assert "error: none/encoder.json: missing (no run there)" in place.failure("none", "--latency")
    shown = place.output("--help")
    assert "bin/encode runs/demo --out embeddings/demo" in shown
    assert "DIR/encode.json tells what DIR holds" in shown


def test_what_training_records_is_enough(place: Place, simulated_dir: Path):
    words = [ROOT / "bin/train", "--config", "configs/test.yaml", "--store", place.store, "--run", "trained"]
    small = ["--fast-dev-run", "training.val_windows=16"]
    subprocess.run([*words, *small], cwd=place.folder, check=True, capture_output=True, env=ENVIRONMENT)
    assert "One window of" in place.output("trained", "--latency", "--windows", "2")
    torch.manual_seed(0)
    assert Encoder.load(place.folder / "trained").described["dataset"] == open_dataset(place.store, "test").entry.key
