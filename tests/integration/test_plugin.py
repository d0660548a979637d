"""A user's own file: columns beside a feature set, and a task, from the build to live inference; and what is wrong."""

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import click
import numpy as np
import pandas as pd
import pytest
import torch
from click.testing import CliRunner
from torch.nn.functional import pad

from cache.entries import Entry
from cache.reader import open_dataset
from configs.errors import UserError
from configs.loader import load_config
from pipeline.build_command import main as build_command
from pipeline.certify import certify_dataset
from tests.checkout import ROOT, blocks_of
from trainer.config import parse_trainer
from trainer.data import WindowSource
from trainer.encode import Encoder
from trainer.evaluate_command import main as evaluate_command
from trainer.inputs import without_own
from trainer.masking import Masks
from trainer.tasks import make_task
from trainer.train_command import main as train_command

FEATURES = """
import numpy as np

COLUMNS = ("trend", "activity")
LOOKBACK = 7


def features(bars):
    close = bars[:, :, 3]
    return np.stack([np.log(close[:, -1] / close[:, 0]), np.ptp(bars, axis=(1, 2)) / close[:, -1]], axis=1)
"""
CONFIG = """
defaults: [test]
data:
  name: own
  features: {plugin: mine.py}
  split: {embargo: 1h}
training: {task: task.py, max_epochs: 1, steps_per_epoch: 3, val_windows: 64}
"""
(TASK,) = (block.text for block in blocks_of(ROOT / "docs/own-model.md") if block.language == "python")
# what the training process has loaded, written down by the task itself
TELLING = """
    def finish(self, model, source, run, advance):
        import sys
        (run / "loaded.txt").write_text(" ".join(sys.modules))
        return {}
"""


@pytest.fixture(scope="module")
def made(simulated_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a user's files, the store and a run made with them. Read only."""
    folder = tmp_path_factory.mktemp("plugin")
    (folder / "mine.py").write_text(FEATURES)
    (folder / "task.py").write_text(TASK + TELLING)
    (folder / "own.yaml").write_text(CONFIG)
    shutil.copy2(simulated_dir / "simfx_m1.parquet", folder)
    build(folder)
    command(folder, "train", "--config", "own.yaml", "--run", "run")
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    """The same, to be changed."""
    shutil.copytree(made, tmp_path / "copy", symlinks=True)
    return tmp_path / "copy"


def command(folder: Path, name: str, *arguments: str) -> str:
    """A command in a process of its own."""
    words = [ROOT / "bin" / name, *arguments]
    done = subprocess.run(words, cwd=folder, env=os.environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def built(folder: Path) -> list[str]:
    return ["--config", str(folder / "own.yaml"), "--data-dir", str(folder), "--store", str(folder / "store")]


def build(folder: Path) -> None:
    build_command(built(folder), standalone_mode=False)


def refused(call: Callable[[], object]) -> str:
    with pytest.raises(UserError) as caught:
        call()
    return str(caught.value)


def failed(command: click.Command, *arguments: str | Path) -> str:
    done = CliRunner().invoke(command, list(map(str, arguments)))
    assert done.exit_code == 1, done.output
    return done.stderr.partition("error: ")[2].strip()


def entries(folder: Path) -> set[str]:
    return {path.parent.name for path in folder.glob("store/*/*/zarr.json")}


def streams(folder: Path) -> dict[str, Entry]:
    (symbol,) = open_dataset(folder / "store", "own").symbols.values()
    return symbol.streams


def test_columns_are_what_the_function_makes_of_each_bar_alone(made: Path) -> None:
    bars = pd.read_parquet(made / "simfx_m1.parquet")[["open", "high", "low", "close"]].to_numpy()
    bars = np.concatenate([np.full((7, 4), bars[0, 0]), bars])
    own = np.array(
        [
            (np.log(bars[i + 7, 3] / bars[i, 3]), (bars[i : i + 8].max() - bars[i : i + 8].min()) / bars[i + 7, 3])
            for i in range(len(bars) - 7)
        ]
    )
    manifest = streams(made)["m1"].manifest
    assert manifest["features"][-2:] == ["trend", "activity"]
    assert manifest["own"] == {"columns": ["trend", "activity"], "lookback": 7}
    mean, std = (np.array([manifest["statistics"][k][name] for name in ("trend", "activity")]) for k in ("mean", "std"))
    np.testing.assert_allclose(streams(made)["m1"].array("values")[:, -2:], (own - mean) / std, rtol=1e-4, atol=1e-5)


def test_the_certificate_holds_for_them(made: Path) -> None:
    found = certify_dataset(open_dataset(made / "store", "own"), made / "store", 40, 3)
    assert found["passed"] and found["checks"]["masks"]["checked"] >= 40


def test_a_run_with_own_columns_and_task(made: Path) -> None:
    run = made / "run"
    assert (run / "features.py").read_text() == FEATURES
    assert (run / "task.py").read_text() == TASK + TELLING
    assert json.loads((run / "encoder.json").read_text())["task"].startswith("plug-in ")
    loaded = (run / "loaded.txt").read_text().split()
    assert not {"zarr", "numba", "pandas", "pyarrow", "pipeline"} & {*loaded}
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert {"loss", "correlation", "last_correlation"} <= {*next(one for one in records if one["kind"] == "val")}


def test_evaluation_uses_the_runs_own_copy(folder: Path) -> None:
    (folder / "task.py").write_text("raise RuntimeError('not this one')")
    output = folder / "scores.json"
    evaluate_command([str(folder / "run"), "--output", str(output)], standalone_mode=False)
    scores = json.loads(output.read_text())
    dataset = open_dataset(folder / "store", "own")
    start, stop = dataset.splits["val"]["windows"]["OWN"]
    assert scores["summary"]["windows"] == stop - start
    assert {"loss", "correlation", "last_loss", "last_correlation"} == {*scores["measures"]}
    said = failed(evaluate_command, folder / "run", "--plots", folder)
    assert said == "--plots: there are no pictures of a task of your own; --output writes its measures"
    said = failed(evaluate_command, folder / "run", "--probe")
    assert said.startswith("--probe asks what an encoder of bars knows")


def test_live_windows_are_those_of_the_store(folder: Path) -> None:
    """Made by the run's copy of the file: the original is gone."""
    (folder / "mine.py").unlink()
    encoder = Encoder.load(folder / "run")
    dataset = open_dataset(folder / "store", "own")
    windows, known = dataset.symbols["OWN"].windows, streams(folder)
    bars = pd.read_parquet(folder / "simfx_m1.parquet").set_index("timestamp")
    for number in (3000, 20_000):
        t = pd.Timestamp(int(windows.array("time")[number]), tz="UTC")
        x, _ = encoder.windows({"m1": bars[bars.index < t].tail(3000)})
        for found, stream, end in zip(x, known.values(), windows.array("ends")[number], strict=True):
            np.testing.assert_array_equal(found[0].numpy(), stream.array("values")[end - 32 : end])
        assert encoder.encode({"m1": bars[bars.index < t].tail(3000)}).shape == (1, 3, 8, 32)
    (folder / "run/features.py").write_text(FEATURES + "\n")
    assert refused(lambda: Encoder.load(folder / "run")) == (
        f"{folder}/run/features.py: missing, or not what it was; copy it again from where the run was trained"
    )


def test_a_changed_file_makes_just_what_it_feeds_again(folder: Path) -> None:
    build(folder)  # so that the dataset knows where its file lies now
    (folder / "mine.py").write_text(FEATURES + "# changed\n")
    options = ["explain", "--config", "own.yaml", "--data-dir", ".", "--json"]
    found = json.loads(command(folder, "cache", *options))
    verdicts = found["entries"]
    states = {(one["stage"], one["state"]) for one in verdicts}
    assert states == {("bars", "hit"), ("windows", "hit"), ("streams", "build"), ("datasets", "build")}
    (reason,) = {tuple(one["reasons"]) for one in verdicts if one["stage"] == "streams"}
    assert reason[0].startswith("data.features.plugin.code ")
    assert found["changes"] == [reason[0]]

    train = ["--config", str(folder / "own.yaml"), "--store", str(folder / "store")]
    said = failed(train_command, *train, "--run", folder / "other")
    assert said == (
        f"{folder}/mine.py: changed since own was built with it; put it back as it was, or build again with "
        "bin/build-cache"
    )
    assert refused(lambda: certify_dataset(open_dataset(folder / "store", "own"), folder / "store", 9, 0)) == said
    (folder / "mine.py").rename(folder / "gone.py")
    said = refused(lambda: certify_dataset(open_dataset(folder / "store", "own"), folder / "store", 9, 0))
    assert said.startswith(f"{folder}/mine.py: no such file, and columns of own were made by it; put it back as it was")
    (folder / "gone.py").rename(folder / "mine.py")
    before = entries(folder)
    build(folder)
    assert len(entries(folder) - before) == 4


def test_one_file_more_makes_what_a_build_of_both_makes(simulated_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(FEATURES)
    (tmp_path / "own.yaml").write_text(
        CONFIG.replace("name: own", "name: own\n  source: {files: {m1: 'part*.parquet'}}")
    )
    bars = pd.read_parquet(simulated_dir / "simfx_m1.parquet")
    bars[:21_000].to_parquet(tmp_path / "part1.parquet")
    train_end = "data.split.train_end=2024-01-20"
    build_command([*built(tmp_path), train_end], standalone_mode=False)
    bars[21_000:].to_parquet(tmp_path / "part2.parquet")
    build_command([*built(tmp_path), train_end], standalone_mode=False)
    build_command([*built(tmp_path)[:-1], str(tmp_path / "other"), train_end], standalone_mode=False)
    for part, stream in streams(tmp_path).items():
        again = Entry(tmp_path / "other/streams" / stream.key, stream.manifest)
        assert again.array("values").tobytes() == stream.array("values").tobytes(), part


def test_a_run_goes_on_with_the_same_file_only(folder: Path) -> None:
    (folder / "task.py").write_text(TASK)
    (folder / "run/summary.json").unlink()
    config = (folder / "run/config.yaml").read_text().replace(str(folder.parent / "copy"), str(folder))
    (folder / "run/config.yaml").write_text(config)
    words = [
        "--config",
        str(folder / "run/config.yaml"),
        "--store",
        str(folder / "store"),
        "--run",
        str(folder / "run"),
    ]
    overrides = [f"training.task={folder}/task.py", f"data.features.plugin={folder}/mine.py"]
    told = load_config(words[1], overrides).values
    (folder / "run/config.yaml").write_text(load_config(words[1], overrides).dump())
    assert told["training"]["task"] == str(folder / "task.py")
    said = failed(train_command, *words, "--resume")
    assert said == (
        f"{folder}/task.py: not what it was when the run began ({folder}/run/task.py). Start a new run for that"
    )


def test_the_same_file_elsewhere_is_the_same(folder: Path) -> None:
    (folder / "sub").mkdir()
    (folder / "mine.py").rename(folder / "sub/mine.py")
    (folder / "own.yaml").write_text(CONFIG.replace("plugin: mine.py", "plugin: sub/mine.py"))
    train = ["--config", str(folder / "own.yaml"), "--store", str(folder / "store"), "--run", str(folder / "other")]
    train_command([*train, "--fast-dev-run"], standalone_mode=False)
    assert (folder / "other/summary.json").exists()
    before = entries(folder)
    build(folder)
    assert entries(folder) == before


def body(expression: str, columns: str = '"trend", "activity"') -> str:
    lines = ["import numpy as np", f"COLUMNS = [{columns}]", "LOOKBACK = 7", "def features(bars):"]
    return "\n".join([*lines, "    close = bars[:, -1, 3]", f"    return {expression}"])


PAIR = "np.stack([{}, close], axis=1)"
FEATURE_FAULTS = {
    "missing": (None, "mine.py: no such file; a plug-in is a Python file, named from where the configuration lies"),
    "no function": (
        FEATURES.replace("def features", "def other"),
        "mine.py: does not define features, the function from bars [n, LOOKBACK + 1, 4] to columns [n, len(COLUMNS)]",
    ),
    "no columns": (
        FEATURES.replace("COLUMNS", "NAMES"),
        "mine.py: does not define COLUMNS, the names of the columns that features() gives, such as ('trend',)",
    ),
    "columns of no names": (
        FEATURES.replace('("trend", "activity")', '"trend"'),
        "mine.py: COLUMNS = 'trend' is not a list of names, such as ('trend',)",
    ),
    "name taken": (
        body("close", '"log_range"'),
        "mine.py: COLUMNS has log_range, and there is a column of that name already; they are log_open, log_high, "
        "log_low, log_close, log_range, body_pct",
    ),
    "name twice": (body("close", '"a", "a"'), "mine.py: COLUMNS has a, and there is a column of that name already; "),
    "lookback": (FEATURES.replace("= 7", "= -1"), "mine.py: LOOKBACK = -1 is not a whole number from 0 to 4,096"),
    "a number": (FEATURES + "\nfeatures = 3", "mine.py: features = 3 is not a function"),
    "no Python": (FEATURES + "def", "mine.py, line 11: not Python: "),
    "fails at once": (FEATURES + "1 / 0", "mine.py, line 11, in <module>: ZeroDivisionError: division by zero"),
    "fails later": (body("clsoe"), "mine.py, line 6, in features: NameError: name 'clsoe' is not defined"),
    "wrong shape": (
        body("close"),
        "mine.py: features() gives an array of shape (512,) for bars of shape (512, 8, 4), not (512, 2): a row a bar, "
        "a column for each of COLUMNS",
    ),
    "not a number": (
        body(PAIR.format("np.log(close - close)")),
        "mine.py: features() gives -inf as trend of the bar that closed at 2024-01-",
    ),
    "looks ahead": (
        body(PAIR.format("np.roll(close, -1)")),
        ": the window changes when bars after it are cut off: trend",
    ),
    "mixes rows": (
        body(PAIR.format("close / close.mean()")),
        "mine.py: features() must make row i of bars[i] and of nothing else, without chance and without memory of "
        "earlier calls",
    ),
}


@pytest.mark.parametrize("name", FEATURE_FAULTS)
def test_faults_of_own_columns(name: str, simulated_dir: Path, tmp_path: Path) -> None:
    text, words = FEATURE_FAULTS[name]
    if text is not None:
        (tmp_path / "mine.py").write_text(text)
    (tmp_path / "own.yaml").write_text(CONFIG)
    shutil.copy2(simulated_dir / "simfx_m1.parquet", tmp_path)
    said = failed(build_command, *built(tmp_path))
    assert words in said.replace(f"{tmp_path}/", "")
    assert f"{tmp_path}/mine.py" in said
    assert not list(tmp_path.glob("store/datasets/[0-9a-f]*"))


TASK_FAULTS = {
    "missing": (
        None,
        "task.py: no such file; a plug-in is a Python file, named from where the configuration lies, or on the command "
        "line from the working directory",
    ),
    "no function": (
        "",
        "task.py: does not define make_task, the function from (config, dataset, device, fold) to a task "
        "(trainer/task.py)",
    ),
    "no task": (
        "def make_task(config, dataset, device, fold):\n    return 3",
        "task.py: make_task() gives a int, which lacks monitors, weights, ",
    ),
    "nothing defined": (
        TASK.replace("def validate(", "def judged(").replace("def build_model(", "def model("),
        "task.py: make_task() gives a Volatility, whose class does not define build_model, validate; "
        "trainer/task.py says what each of them does",
    ),
    "fails": (
        "def make_task(config, dataset, device, fold):\n    return dataset.nothing",
        "task.py, line 2, in make_task: AttributeError: 'Dataset' object has no attribute 'nothing'",
    ),
    "fails in training": (
        TASK.replace("error = (self", "error = (sel"),
        "in training_losses: NameError: name 'sel' is not defined",
    ),
    "no loss": (
        TASK.replace('return {"loss": (error', 'return {"mse": (error'),
        "task.py: training_losses() gives no `loss`; it gives a dict of terms, and as `loss` what is to be lowered",
    ),
    "a loss of each window": (
        TASK.replace('{"loss": (error * there).sum() / there.sum().clamp(min=1)}', '{"loss": error * there}'),
        "task.py: training_losses() gives a tensor of shape (16,) as `loss`; give a tensor that is one number",
    ),
    "a term that is no tensor": (
        TASK.replace('return {"loss": (error', 'return {"mse": 0.5, "loss": (error'),
        "task.py: training_losses() gives 0.5 as `mse`; give a tensor that is one number",
    ),
    "a loss of no weight": (
        TASK.replace("error = (self.predict(model, batch) -", "error = (self.predict(model, batch).detach() -"),
        "task.py: training_losses() gives a `loss` that depends on no weight of the model; it cannot be lowered",
    ),
    "lacks what is monitored": (
        TASK.replace('"correlation": float(', '"r": float('),
        "task.py: validate() gives no `correlation`; it gives loss, r",
    ),
    "lacks the loss of validation": (
        TASK.replace('return {"loss": float(', 'return {"mse": float('),
        "task.py: validate() gives no `loss`; it gives mse, correlation",
    ),
    "a measure that is text": (
        TASK.replace('"correlation": float(', '"quality": "high", "correlation": float('),
        "task.py: baseline() gives 'high' as `last_quality`; give a float",
    ),
    "no measures": (
        TASK.replace("return self.measures(torch.cat(told), windows)", "return None"),
        "task.py: validate() gives None; it gives a dict of numbers by name",
    ),
    "no summary": (
        TASK
        + """
    def finish(self, model, source, run, advance):
        return {"kept": run}
""",
        "as `kept`; give a float",
    ),
    "measures something else": (
        TASK.replace('"correlation": -1', '"r": -1'),
        "training.monitor = correlation is not measured by training.task = ",
    ),
}


@pytest.mark.parametrize("name", TASK_FAULTS)
def test_faults_of_an_own_task(name: str, folder: Path) -> None:
    text, words = TASK_FAULTS[name]
    (folder / "task.py").unlink()
    if text is not None:
        (folder / "task.py").write_text(text)
    train = ["--config", str(folder / "own.yaml"), "--store", str(folder / "store"), "--run", str(folder / "other")]
    said = failed(train_command, *train, "training.monitor=correlation")
    assert words in said and "task.py" in said


def test_a_path_that_is_no_python_file() -> None:
    for key, words in (
        ("data.features.plugin", "a plug-in is a Python file, whose name ends in .py"),
        ("training.task", "a task is reconstruct, classify, or a Python file, whose name ends in .py"),
    ):
        command = build_command if key.startswith("data") else train_command
        said = failed(command, "--config", "configs/test.yaml", f"{key}=mine")
        assert said == f"command line: {key} = 'mine': {words}"


def test_columns_that_tell_of_hidden_bars_are_blank() -> None:
    """Against a loop: what an own column of a bar is made of is hidden, or lies before the window."""
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(5, 20, 6, generator=generator)
    hidden = torch.rand(5, 20, generator=generator) < 0.1
    for lookback in (0, 1, 4):
        (found,) = without_own([x], Masks([hidden]), 2, lookback)
        for b in range(5):
            for bar in range(20):
                told = range(bar - lookback, bar + 1)
                blank = any(k < 0 or bool(hidden[b, k]) for k in told)
                assert torch.equal(found[b, bar, :4], x[b, bar, :4])
                assert torch.equal(found[b, bar, 4:], torch.zeros(2) if blank else x[b, bar, 4:])


def test_reconstruction_hides_them(made: Path) -> None:
    """Another value of them where they tell of hidden bars changes nothing."""
    config = parse_trainer(load_config(made / "own.yaml", ["training.task=reconstruct"]))
    dataset = open_dataset(made / "store", "own")
    task, source = make_task(config, dataset, torch.device("cpu")), WindowSource(dataset, torch.device("cpu"))
    batch = source.gather(torch.arange(8))
    masks = task.masks(0, batch)
    inputs = task.inputs(batch, masks)
    for x, seen, hidden in zip(batch.x, inputs, masks.hidden, strict=True):
        told = pad(hidden, (7, 0)).unfold(1, 8, 1).any(dim=2)
        assert told.any() and (seen[told][:, 6:8] == 0).all()
        shown = ~told & (torch.arange(32) >= 7)
        assert torch.equal(seen[shown][:, :8], x[shown])
