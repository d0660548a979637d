"""bin/evaluate as its users run it."""

import json
import os
import re
import shlex
import shutil
import struct
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

ROOT = Path(__file__).parents[2]
SMALL = "data.split.val_fraction=0.05"  # few validation windows, because all of them are evaluated
# Several OpenMP threads that spin on busy cores would make such small models ten times slower.
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


@dataclass(frozen=True)
class Place:
    """A folder with a store and a trained run."""

    folder: Path
    data: Path

    def call(self, *words: str | Path) -> subprocess.CompletedProcess[str]:
        name, *arguments = words
        settings: dict[str, Any] = {"capture_output": True, "text": True, "timeout": 120, "env": ENVIRONMENT}
        return subprocess.run([str(ROOT / "bin" / name), *map(str, arguments)], cwd=self.folder, **settings)

    def output(self, *words: str | Path) -> str:
        done = self.call(*words)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def failure(self, *words: str | Path) -> str:
        done = self.call("evaluate", *words)
        assert done.returncode == 1, done.stdout + done.stderr
        assert "Traceback" not in done.stdout + done.stderr
        return done.stderr

    def build(self, *overrides: str) -> None:
        self.output("build-cache", "--config", "configs/test.yaml", SMALL, *overrides, "--data-dir", self.data)


@pytest.fixture(scope="module")
def place(simulated_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Place:
    place = Place(tmp_path_factory.mktemp("place"), simulated_dir)
    place.build()
    settings = ("training.max_epochs=1", "training.steps_per_epoch=20", "training.val_windows=32")
    place.output("train", "--config", "configs/test.yaml", SMALL, *settings)
    return place


@pytest.fixture(scope="module")
def printed(place: Place) -> str:
    """What evaluating prints; it leaves scores/test.json and pictures/."""
    return place.output("evaluate", "runs/test", "--output", "scores/test.json", "--plots", "pictures")


def test_scores(place: Place, printed: str):
    text = (place.folder / "scores" / "test.json").read_text()
    scores = json.loads(text, parse_constant=lambda constant: pytest.fail(f"{constant} is not JSON"))
    dataset = json.loads((place.folder / "store" / "refs" / "test.json").read_text())["dataset"]
    assert scores.keys() == {"run", "dataset", "windows", "timeframes"}
    assert (scores["run"], scores["dataset"]) == ("runs/test", dataset)
    manifest = json.loads((place.folder / "store" / "datasets" / dataset / "zarr.json").read_text())["attributes"]
    first, stop = manifest["splits"]["val"]["windows"]["TEST"]
    assert scores["windows"] == stop - first > 100

    assert list(scores["timeframes"]) == ["m1", "m5", "m15"]
    for of in scores["timeframes"].values():
        assert list(of) == ["n", "model", "last_value", "straight_line"]
        assert 0.25 < of["n"] / (scores["windows"] * 32) < 0.35
        for predictor in ("model", "last_value", "straight_line"):
            score = of[predictor]
            assert score.keys() == {"correlation", "mse", "mae", "rmse"}
            assert score["rmse"] ** 2 == pytest.approx(score["mse"])
            assert 0 < score["mae"] <= score["rmse"]
            correlation = score["correlation"]
            assert list(correlation) == ["level", "log_return", "log_range"]
            assert all(r is None or -1 <= r <= 1 for r in correlation.values())
            # because a level is as good as any level near it
            assert correlation["level"] > 0.9
        assert of["last_value"]["correlation"]["log_return"] is None
        assert of["straight_line"]["correlation"]["level"] > of["last_value"]["correlation"]["level"]
    assert "scores: scores/test.json\n" in printed


def test_the_table_holds_the_scores(place: Place, printed: str):
    scores = json.loads((place.folder / "scores" / "test.json").read_text())
    assert f"On the hidden bars of {scores['windows']:,} validation windows" in printed
    lines = printed.splitlines()
    for timeframe, of in scores["timeframes"].items():
        start = lines.index(f"{timeframe}  ({of['n']:,} hidden bars)")
        predictors = ("model", "last_value", "straight_line")
        for line, predictor in zip(lines[start + 1 : start + 4], predictors, strict=True):
            score = of[predictor]
            numbers = [*score["correlation"].values(), score["mse"], score["mae"], score["rmse"]]
            expected = ["–" if number is None else f"{number:.4f}" for number in numbers]
            assert line.split()[-6:] == expected
            assert line.split()[:-6] == predictor.split("_")


def test_it_is_never_silent(printed: str):
    order = [
        "Evaluating runs/test\n",
        "  open run ",
        "  import torch ",
        "reconstruct",
        "On the hidden bars",
        "picture:",
    ]
    places = [printed.index(part) for part in order]
    assert places == sorted(places)


def test_the_picture(place: Place, printed: str):
    assert "picture: pictures/reconstructions.png\n" in printed
    content = (place.folder / "pictures" / "reconstructions.png").read_bytes()
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", content[16:24])
    assert width > 1000
    assert height > 700
    # twice as much as empty axes take
    assert len(content) > 130_000


def test_a_run_that_is_not_there(place: Place):
    message = place.failure("runs/none")
    assert "error: runs/none: no run there (it has no config.yaml); bin/train makes runs" in message


def test_a_run_without_best_weights(place: Place):
    shutil.copytree(place.folder / "runs" / "test", place.folder / "young")
    (place.folder / "young" / "best.safetensors").unlink()
    message = place.failure("young")
    assert "error: young: the run has no best.safetensors yet; it is written after the first epoch" in message


def test_it_is_the_best_weights_that_are_scored(place: Place, printed: str):
    run = place.folder / "blank"
    shutil.copytree(place.folder / "runs" / "test", run)
    weights = load_file(run / "best.safetensors")
    save_file({name: tensor.zero_() for name, tensor in weights.items()}, run / "best.safetensors")
    place.output("evaluate", "blank", "--output", "blank.json")
    before, after = (json.loads((place.folder / name).read_text()) for name in ("scores/test.json", "blank.json"))
    for timeframe, of in after["timeframes"].items():
        assert of["model"]["mse"] != pytest.approx(before["timeframes"][timeframe]["model"]["mse"], rel=1e-4)
        # always the same answer: closes that drift, and bars of one height
        assert of["model"]["correlation"]["log_range"] is None
        assert of["last_value"] == before["timeframes"][timeframe]["last_value"]


def test_a_store_that_is_gone(place: Place, tmp_path: Path):
    run = tmp_path / "run"
    shutil.copytree(place.folder / "runs" / "test", run)
    described = json.loads((run / "dataset.json").read_text())
    (run / "dataset.json").write_text(json.dumps(described | {"store": str(tmp_path / "gone")}))
    message = place.failure(run)
    assert f"error: {tmp_path / 'gone'}: no store here; --store says where it is" in message


def test_a_store_that_moved_on_and_the_command_that_helps(place: Place, printed: str):
    before = json.loads((place.folder / "scores" / "test.json").read_text())
    run = place.folder / "a run"  # a path that the command must quote
    shutil.copytree(place.folder / "runs" / "test", run)
    place.build("data.window.seq_len=24")
    now = json.loads((place.folder / "store" / "refs" / "test.json").read_text())["dataset"]
    message = place.failure("a run")
    assert f"error: a run: trained on dataset {before['dataset']}, but test is now {now}." in message
    (said,) = re.findall(r"^  bin/(build-cache .*)$", message, re.MULTILINE)
    assert "nothing was built" in place.output(*shlex.split(said))
    place.output("evaluate", "a run", "--output", "again.json")
    after = json.loads((place.folder / "again.json").read_text())
    assert after == before | {"run": "a run"}


def test_wrong_usage_ends_with_2(place: Place):
    done = place.call("evaluate")
    assert done.returncode == 2
    assert "Missing argument 'RUN'" in done.stderr
    assert "Usage: bin/evaluate [OPTIONS] RUN" in done.stderr
