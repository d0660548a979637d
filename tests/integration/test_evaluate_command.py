"""bin/evaluate as its users run it."""

import json
import os
import re
import shlex
import shutil
import struct
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from tests.chromium import FOUND, REASON, chromium
from tests.page_faults import FAULTS
from trainer.checkpoint import save_weights
from trainer.evaluate_command import identity_of
from trainer.evaluate_command import main as evaluate
from trainer.plots import plot_correlations
from trainer.reconstruct import reconstruct_task
from trainer.report_scores import scores_section
from trainer.runs import open_run

ROOT = Path(__file__).parents[2]
SMALL = "data.split.val_fraction=0.1"  # few validation windows, because all of them are evaluated
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
    """What evaluating prints; it leaves scores/test.json, pictures/ and run.html."""
    kept = ("--output", "scores/test.json", "--plots", "pictures", "--report", "run.html")
    return place.output("evaluate", "runs/test", "--probe", *kept)


def test_scores(place: Place, printed: str):
    text = (place.folder / "scores" / "test.json").read_text()
    scores = json.loads(text, parse_constant=lambda constant: pytest.fail(f"{constant} is not JSON"))
    dataset = json.loads((place.folder / "store" / "refs" / "test.json").read_text())["dataset"]
    parts = ["correlation_per_tf", "reconstruction_quality", "spectral_delta", "consistency_ratio", "summary", "probes"]
    assert list(scores) == parts
    summary = scores["summary"]
    assert (summary["run"], summary["dataset"]) == ("runs/test", dataset)
    first, stop = np.fromfile(place.folder / "store" / "datasets" / dataset / "val/c.0.0", "<i8", 2)
    assert summary["windows"] == stop - first > 100

    for part in parts[:3]:
        assert list(scores[part]) == ["m1", "m5", "m15"]
    for timeframe, of in scores["correlation_per_tf"].items():
        quality, delta = scores["reconstruction_quality"][timeframe], scores["spectral_delta"][timeframe]
        assert 0.25 < of["n"] / (summary["windows"] * 32) < 0.35
        for predictor in ("model", "last_value", "straight_line"):
            score = quality[predictor]
            assert score.keys() == {"mse", "mae", "rmse", "ohlc_validity"}
            assert score["rmse"] ** 2 == pytest.approx(score["mse"])
            assert 0 < score["mae"] <= score["rmse"]
            assert 0 <= score["ohlc_validity"] <= 1
            assert 0 < delta[predictor] < 10
            assert list(of[predictor]) == ["level", "log_return", "log_range"]
            assert all(r is None or -1 <= r <= 1 for r in of[predictor].values())
            # because a level is as good as any level near it
            assert of[predictor]["level"] > 0.9
        assert of["last_value"]["log_return"] is None
        assert 0 < of["time_of_week"]["log_range"] < 1
        assert of["straight_line"]["level"] > of["last_value"]["level"]
        assert of["model_minus_best_baseline"]["level"]["baseline"] == "straight_line"
    pairs = scores["consistency_ratio"]["pairs"]
    assert list(pairs) == ["m1 → m5", "m5 → m15"]
    assert all(of["truth"]["ratio"] == 1 and of["eligible"] > 100 for of in pairs.values())
    assert scores["consistency_ratio"]["tick"] == pytest.approx(1e-5)
    assert "scores: scores/test.json\n" in printed


def test_the_table_holds_the_scores(place: Place, printed: str):
    scores = json.loads((place.folder / "scores" / "test.json").read_text())
    assert f"On the hidden bars of {scores['summary']['windows']:,} validation windows" in printed
    lines = printed.splitlines()
    for timeframe, of in scores["correlation_per_tf"].items():
        quality = scores["reconstruction_quality"][timeframe]
        start = lines.index(f"{timeframe}  ({of['n']:,} hidden bars)")
        predictors = ("model", "last_value", "straight_line")
        for line, predictor in zip(lines[start + 1 : start + 4], predictors, strict=True):
            numbers = [*of[predictor].values(), *(quality[predictor][error] for error in ("mse", "mae", "rmse"))]
            expected = ["–" if number is None else f"{number:.4f}" for number in numbers]
            assert line.split()[-9:-3] == expected
            assert line.split()[:-9] == predictor.split("_")
    first = next(i for i, line in enumerate(lines) if line.startswith("On the hidden bars"))
    assert max(len(line) for line in lines[first:] if "picture" not in line) <= 100


def test_probes(place: Place, printed: str):
    scores = json.loads((place.folder / "scores" / "test.json").read_text())
    probes = scores["probes"]
    assert min(probes["train_windows"], probes["val_windows"]) > 50
    assert "What the frozen encoder knows" in printed
    for name in ("encoder", "untrained", "raw_window"):
        assert f"{probes['volatility'][name]['r2']:.4f}" in printed
        assert f"{probes['direction'][name]['auc']:.4f}" in printed
    # it has been trained, a little
    assert probes["volatility"]["encoder"] != probes["volatility"]["untrained"]
    done = place.output("evaluate", "runs/test", "--output", "short.json")
    assert "encoder" not in done
    short = json.loads((place.folder / "short.json").read_text())
    assert short == {name: part for name, part in scores.items() if name != "probes"}


def test_it_is_never_silent(printed: str):
    order = [
        "Evaluating runs/test\n",
        "  open run ",
        "  import torch ",
        "reconstruct",
        "On the hidden bars",
        "  probe ",
        "What the frozen encoder knows",
        "  draw ",
        "picture:",
    ]
    places = [printed.index(part) for part in order]
    assert places == sorted(places)


# twice as much as empty axes take
@pytest.mark.parametrize(
    ("name", "wide", "high", "heavy"),
    [
        ("reconstructions", 1000, 700, 130_000),
        ("candles", 1000, 700, 30_000),
        ("masks", 1000, 200, 12_000),
        ("correlations", 1000, 300, 20_000),
        ("losses", 400, 300, 20_000),
    ],
)
def test_the_pictures(place: Place, printed: str, name: str, wide: int, high: int, heavy: int):
    assert f"picture: pictures/{name}.png\n" in printed
    content = (place.folder / "pictures" / f"{name}.png").read_bytes()
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", content[16:24])
    assert width > wide
    assert height > high
    assert len(content) > heavy


def test_the_report_holds_the_scores(place: Place, printed: str):
    assert "report: run.html; open it in a browser\n" in printed
    page = (place.folder / "run.html").read_text()
    scores = json.loads((place.folder / "scores" / "test.json").read_text())
    sections = ["scores", "candles", "losses", "leads", "consistency", "probes"]
    assert re.findall(r'<section id="(.*?)">', page) == sections
    for timeframe, of in scores["correlation_per_tf"].items():
        for predictor in ("model", "last_value", "straight_line"):
            row = "".join(f"<td>{'–' if r is None else f'{r:.4f}'}</td>" for r in of[predictor].values())
            assert f'<th scope="row">{timeframe} {predictor.replace("_", " ")}</th>{row}' in page
        row = f"<td></td><td></td><td>{of['time_of_week']['log_range']:.4f}</td>"
        assert f'<th scope="row">{timeframe} time of week</th>{row}' in page
    assert f"<td>{scores['probes']['volatility']['encoder']['r2']:.4f}</td>" in page
    assert all(note.replace("'", "&#x27;") in page for note in scores["summary"]["notes"])
    truth, reconstruction = (page.count(f"</strong>{what}<") for what in ("truth", "reconstruction"))
    assert truth == reconstruction == 3
    assert len(re.findall(r'class="(?:rose|fell) model"', page)) > 3 * 32 * 0.2  # hidden bars, as the model has them


def test_intervals_are_drawn_where_there_are_weeks_enough(place: Place, printed: str, tmp_path: Path):
    scores = json.loads((place.folder / "scores" / "test.json").read_text())
    plain = plot_correlations(scores, tmp_path).read_bytes()
    assert "val pale" not in scores_section(scores).body
    for of in [*scores["correlation_per_tf"].values(), *scores["reconstruction_quality"].values()]:
        assert not any(of["model_interval"].values())
        around = {name: [of["model"][name] - 0.1, of["model"][name] + 0.1] for name in of["model_interval"]}
        of["model_interval"] = around
    body = scores_section(scores).body
    assert body.count('class="piece val pale"') == 3 * 4  # timeframes × measures
    low = scores["correlation_per_tf"]["m5"]["model_interval"]["log_range"]
    assert f"<title>{low[0]:.4f} to {low[1]:.4f}</title>" in body
    assert plot_correlations(scores, tmp_path).read_bytes() != plain


@pytest.mark.skipif(FOUND is None, reason=REASON)
def test_the_report_is_to_be_seen(place: Place, printed: str, tmp_path: Path):
    with chromium(tmp_path) as browser:
        for width, dark in ((390, False), (390, True), (1200, False), (1200, True)):
            browser.open(place.folder / "run.html", width, dark)
            assert browser.ask(FAULTS) == []
        assert browser.complaints == []


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
    config, dataset, fold = open_run(run)
    model = reconstruct_task(config, dataset, torch.device("cpu")).build_model()
    for parameter in model.parameters():
        torch.nn.init.zeros_(parameter)
    save_weights(run / "best.safetensors", model, identity_of(config, dataset, fold))
    place.output("evaluate", "blank", "--output", "blank.json")
    before, after = (json.loads((place.folder / name).read_text()) for name in ("scores/test.json", "blank.json"))
    for timeframe, of in after["reconstruction_quality"].items():
        was = before["reconstruction_quality"][timeframe]
        assert of["model"]["mse"] != pytest.approx(was["model"]["mse"], rel=1e-6)
        assert of["last_value"] == was["last_value"]
        # always the same answer: closes that drift, and bars of one height
        assert after["correlation_per_tf"][timeframe]["model"]["log_range"] is None


def test_a_store_that_is_gone(place: Place, tmp_path: Path):
    run = tmp_path / "run"
    shutil.copytree(place.folder / "runs" / "test", run)
    described = json.loads((run / "dataset.json").read_text())
    (run / "dataset.json").write_text(json.dumps(described | {"store": str(tmp_path / "gone")}))
    message = place.failure(run)
    assert f"error: {tmp_path / 'gone'}: no store here; --store says where it is" in message


def test_a_run_that_has_lost_its_dataset(place: Place, tmp_path: Path):
    run = tmp_path / "run"
    shutil.copytree(place.folder / "runs" / "test", run)
    (run / "dataset.json").write_text("{}")
    message = place.failure(run)
    assert (
        f"error: {run / 'dataset.json'}: missing or damaged, so that the run's dataset is unknown; start a" in message
    )


def test_a_store_that_moved_on_and_the_command_that_helps(place: Place, printed: str):
    before = json.loads((place.folder / "scores" / "test.json").read_text())
    run = place.folder / "a run"  # a path that the command must quote
    shutil.copytree(place.folder / "runs" / "test", run)
    place.build("data.window.seq_len=24")
    now = json.loads((place.folder / "store" / "refs" / "test.json").read_text())["dataset"]
    message = place.failure("a run")
    assert f"error: a run: trained on dataset {before['summary']['dataset']}, but test is now {now}." in message
    (said,) = re.findall(r"^  bin/(build-cache .*)$", message, re.MULTILINE)
    assert "nothing was built" in place.output(*shlex.split(said))
    place.output("evaluate", "a run", "--output", "again.json")
    after = json.loads((place.folder / "again.json").read_text())
    summary = before["summary"] | {"run": "a run"}
    assert after == {name: part for name, part in before.items() if name != "probes"} | {"summary": summary}


def test_a_store_elsewhere_is_named(place: Place, tmp_path: Path):
    run = tmp_path / "run"
    shutil.copytree(place.folder / "runs" / "test", run)
    described = json.loads((run / "dataset.json").read_text())
    (run / "dataset.json").write_text(json.dumps(described | {"store": str(tmp_path / "gone")}))
    said = f"error: {tmp_path / 'gone'}: no store here; --store says where it is"
    assert said in place.failure(run)
    assert said in place.call("encode", run, "--out", tmp_path / "out").stderr
    store = place.folder / "store"
    place.output("encode", run, "--store", store, "--out", tmp_path / "out", "--split", "val")
    assert not (tmp_path / "out" / ".lock").exists()
    place.output("evaluate", run, "--store", store, "--output", tmp_path / "s.json")
    assert (tmp_path / "s.json").exists()


def test_outputs_are_checked_before_the_work(place: Place, tmp_path: Path):
    file = tmp_path / "file"
    file.touch()
    for words, said in (
        (("--output", tmp_path), f"--output {tmp_path}: a folder; name a file in it"),
        (("--output", file / "x"), f"--output {file / 'x'}: {file} is a file, not a folder; name another place"),
        (("--plots", file), f"--plots {file}: a file, not a folder; name another"),
    ):
        done = place.call("evaluate", "none", *words)  # before the run is looked at
        assert (done.returncode, done.stderr) == (1, f"\nerror: {said}\n")


def test_without_matplotlib(place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    done = CliRunner().invoke(evaluate, [str(place.folder / "runs" / "test"), "--plots", str(tmp_path)])
    assert done.exit_code == 1
    assert done.stderr == "\nerror: --plots needs matplotlib, which is not there: run bin/install viz\n"


def test_wrong_usage_ends_with_2(place: Place):
    done = place.call("evaluate")
    assert done.returncode == 2
    assert "Missing argument 'RUN'" in done.stderr
    assert "Usage: bin/evaluate [OPTIONS] RUN" in done.stderr
