"""bin/train as its users run it."""

import errno
import itertools
import json
import math
import os
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from cache.reader import open_dataset
from configs.loader import load_config
from trainer.checkpoint import load_weights
from trainer.config import parse_trainer
from trainer.data import WindowSource
from trainer.described import identity
from trainer.reconstruct import reconstruct_task
from trainer.runs import run_lock
from trainer.train_command import main

ROOT = Path(__file__).parents[2]
TEST = ("--config", "configs/test.yaml")
PRICE = "data.features.set=price"  # under `price` a few steps teach a lot
LONG = (PRICE, "training.max_epochs=3", "training.steps_per_epoch=30", "training.log_every=3")
LONG = (*LONG, "training.checkpoint_every=13", "training.val_windows=48", "training.lr=3e-3", "model.dropout=0.1")
STEPS = 90
HEAVY = {"zarr", "numba", "pandas", "pyarrow", "dask", "sklearn", "sympy"}
# Several OpenMP threads that spin on busy cores would make these small runs ten times slower.
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def command(name: str, *arguments: str | Path) -> list[str]:
    return [str(ROOT / "bin" / name), *map(str, arguments)]


def run(cwd: Path, words: list[str], **environment: str) -> subprocess.CompletedProcess[str]:
    settings = {"capture_output": True, "text": True, "timeout": 120, "env": ENVIRONMENT | environment}
    return subprocess.run(words, cwd=cwd, **settings)


def train(cwd: Path, *arguments: str | Path) -> str:
    """What a successful run prints."""
    done = run(cwd, command("train", *TEST, *arguments))
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    return done.stdout


def failure(cwd: Path, *arguments: str | Path, code: int = 1) -> str:
    """What a run that fails prints to standard error."""
    done = run(cwd, command("train", *arguments))
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    return done.stderr


def metrics(path: Path) -> list[dict[str, Any]]:
    """The whole lines of metrics.jsonl, without what no two runs share."""
    file = path / "metrics.jsonl"
    lines = file.read_text().splitlines(keepends=True) if file.exists() else []
    records = [json.loads(line) for line in lines if line.endswith("\n")]
    vary = ("windows_per_second", "rss_mb")
    return [{key: value for key, value in record.items() if key not in vary} for record in records]


def of_kind(path: Path, kind: str) -> list[dict[str, Any]]:
    return [record for record in metrics(path) if record["kind"] == kind]


def summary(path: Path) -> dict[str, Any]:
    return json.loads((path / "summary.json").read_text())


def watch(cwd: Path, words: list[str], **environment: str) -> list[tuple[float, str]]:
    """What a successful command prints, in pieces: (seconds since its start, text)."""
    began = time.monotonic()
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    process = subprocess.Popen(words, cwd=cwd, env=ENVIRONMENT | environment, **streams)
    pieces = []
    while text := os.read(process.stdout.fileno(), 65536):
        pieces.append((time.monotonic() - began, text.decode()))
    assert process.wait(60) == 0, "".join(text for _, text in pieces)
    process.stdout.close()
    return pieces


@pytest.fixture(scope="module")
def price_store(simulated_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    store = tmp_path_factory.mktemp("price") / "store"
    done = run(ROOT, command("build-cache", *TEST, PRICE, "--data-dir", simulated_dir, "--store", store))
    assert done.returncode == 0, done.stderr
    return store


@pytest.fixture(scope="module")
def long_run(price_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of LONG that nothing disturbed."""
    path = tmp_path_factory.mktemp("long") / "run"
    train(ROOT, *LONG, "--store", price_store, "--run", path)
    return path


@pytest.fixture
def elsewhere(test_store: Path, tmp_path: Path) -> Path:
    """A folder to work in, with the store where commands look for it."""
    (tmp_path / "store").symlink_to(test_store)
    return tmp_path


def test_a_run_leaves_what_is_promised(long_run: Path, price_store: Path):
    files = {path.relative_to(long_run).as_posix() for path in long_run.rglob("*") if path.is_file()}
    assert files == {
        "config.yaml",
        "dataset.json",
        "startup.json",
        "metrics.jsonl",
        "summary.json",
        "encoder.json",
        "best.safetensors",
        "last/checkpoint.safetensors",
    }
    startup = json.loads((long_run / "startup.json").read_text())
    assert startup.keys() == {"phases", "seconds_to_first_step"}
    phases = ["read configuration", "open store", "import torch", "map windows", "build model", "first step"]
    assert list(startup["phases"]) == phases
    assert all(seconds > 0 for seconds in startup["phases"].values())
    # 20 ms, because the process's start is known to a hundredth of a second
    assert sum(startup["phases"].values()) < startup["seconds_to_first_step"] + 0.02 < 60

    dataset = json.loads((long_run / "dataset.json").read_text())
    key = json.loads((price_store / "refs" / "test.json").read_text())["dataset"]
    assert dataset == {"store": str(price_store), "name": "test", "key": key, "fold": None}


def test_the_configuration_is_saved_with_its_overrides(long_run: Path):
    text = (long_run / "config.yaml").read_text()
    header = [line.removeprefix("#").strip() for line in text.splitlines() if line.startswith("#")]
    assert header == ["configs/test.yaml", *LONG]
    values = yaml.safe_load(text)
    assert values["data"]["features"]["set"] == "price"
    assert values["data"]["timeframes"] == ["m1", "m5", "m15"]
    training = values["training"]
    assert (training["max_epochs"], training["steps_per_epoch"], training["log_every"]) == (3, 30, 3)
    assert (training["checkpoint_every"], training["lr"], training["batch_size"]) == (13, 0.003, 16)
    # it is a configuration itself
    assert load_config(long_run / "config.yaml").values == load_config("configs/test.yaml", LONG).values


def test_metrics_tell_the_whole_story(long_run: Path):
    logged = sorted({1, *range(3, 91, 3), *range(13, 91, 13), 30, 60, 90})
    trained, validated = of_kind(long_run, "train"), of_kind(long_run, "val")
    assert [record["step"] for record in trained] == logged
    assert [record["epoch"] for record in trained] == [(step - 1) // 30 + 1 for step in logged]
    assert [(record["step"], record["epoch"]) for record in validated] == [(1, 1), (30, 1), (60, 2), (90, 3)]
    terms = {"huber", "stft", "cross_timeframe", "amplitude_phase"}
    told = {"kind", "step", "epoch", "loss", "lr", "grad_norm", "skipped"} | terms | {f"share/{name}" for name in terms}
    assert all(record.keys() == told for record in trained)
    ratios = {"mask_ratio/m1", "mask_ratio/m5", "mask_ratio/m15"}
    told = {"kind", "step", "epoch", "loss", "correlation", "last_value_loss"} | terms | ratios
    assert all(record.keys() == told for record in validated)
    assert all(math.isfinite(value) for record in metrics(long_run) for key, value in record.items() if key != "kind")

    rates = {record["step"]: record["lr"] for record in trained}
    assert rates[1] == pytest.approx(0.003 / 25, rel=1e-5)
    assert rates[9] == max(rates.values()) == pytest.approx(0.003, rel=1e-5)
    assert rates[90] == pytest.approx(0.003 / 25e4, rel=1e-4)
    # masks and windows of validation never change, so neither does what is not learnt
    for key in (*ratios, "last_value_loss"):
        assert len({record[key] for record in validated}) == 1
    assert all(0.25 < validated[0][key] < 0.35 for key in ratios)


def test_training_learns(long_run: Path):
    losses = [record["loss"] for record in of_kind(long_run, "train")]
    assert sum(losses[-10:]) < 0.5 * sum(losses[:5]) * 10 / 5
    validated = [record["loss"] for record in of_kind(long_run, "val")]
    assert validated[-1] < 0.9 * validated[0]


def test_the_best_weights_are_those_of_the_best_validation(long_run: Path, price_store: Path):
    validated = {record["loss"]: record["step"] for record in of_kind(long_run, "val")}
    told = summary(long_run)
    assert told == {
        "steps": STEPS,
        "epochs": 3,
        "monitor": "loss",
        "best": min(validated),
        "best_loss": min(validated),
        "best_step": validated[min(validated)],
        "stopped_early": False,
        "skipped_steps": 0,
        "overfit": False,
        "untrained_loss": told["untrained_loss"],
    }
    dataset = open_dataset(price_store, "test")
    task = reconstruct_task(parse_trainer(load_config("configs/test.yaml", LONG)), dataset, torch.device("cpu"))
    model = task.build_model()
    load_weights(long_run / "best.safetensors", model, identity(json.loads((long_run / "encoder.json").read_text())))
    again = task.validate(model, WindowSource(dataset, torch.device("cpu")), lambda windows: None)
    assert again["loss"] == pytest.approx(told["best_loss"], rel=1e-5)
    untrained = task.validate(task.build_model(), WindowSource(dataset, torch.device("cpu")), lambda windows: None)
    assert told["untrained_loss"] == pytest.approx(untrained["loss"], rel=1e-5)

    best = load_file(long_run / "best.safetensors")
    last = load_file(long_run / "last" / "checkpoint.safetensors")
    assert int(last["optimizer.steps"]) == STEPS
    same = [torch.equal(tensor, last[f"model.{name}"]) for name, tensor in best.items()]
    assert all(same) == (told["best_step"] == STEPS)


def test_the_first_line_comes_before_torch_and_no_heavy_import_ever(long_run: Path, price_store: Path, tmp_path: Path):
    words = command("train", *TEST, *LONG, "--store", price_store, "--run", tmp_path / "run")
    text = "".join(piece for _, piece in watch(tmp_path, words, PYTHONPROFILEIMPORTTIME="1"))
    imports = [(match.start(), match[1]) for match in re.finditer(r"import time: +\d+ \| +\d+ \| +(\S+)", text)]
    names = {name for _, name in imports}
    assert {"torch", "numpy", "safetensors", "trainer.loop"} <= names
    assert not HEAVY & {name.split(".")[0] for name in names}

    first_torch = min(at for at, name in imports if name.split(".")[0] == "torch")
    first_step = text.index("from process start to the first step")
    order = [text.index(part) for part in ("Training with", "read configuration", "open store", "import torch")]
    assert [*order, first_torch, first_step] == sorted([*order, first_torch, first_step])
    until_first_step = {name for at, name in imports if at < first_step}
    assert not {name for name in until_first_step if name.startswith(("torch._dynamo", "torch._inductor"))}
    assert "trainer.loop" in until_first_step

    # and, with the same configuration, it is the same run
    assert metrics(tmp_path / "run") == metrics(long_run)
    assert summary(tmp_path / "run") == summary(long_run)
    assert (tmp_path / "run" / "best.safetensors").read_bytes() == (long_run / "best.safetensors").read_bytes()


def test_the_trainer_imports_nothing_heavy():
    modules = "trainer.loop, trainer.session, trainer.train_command, trainer.evaluate, trainer.evaluate_command"
    code = f"import {modules}, sys; print(*sorted({{name.split('.')[0] for name in sys.modules}}))"
    done = run(ROOT, [sys.executable, "-c", code])
    loaded = set(done.stdout.split())
    assert {"torch", "numpy", "trainer"} <= loaded, done.stderr
    assert not HEAVY & loaded


def test_nothing_is_silent_for_long(elsewhere: Path):
    small = ("training.steps_per_epoch=1", "training.max_epochs=1", "training.val_windows=5518", "model.d_model=48")
    pieces = watch(elsewhere, command("train", *TEST, *small))
    text = "".join(piece for _, piece in pieces)
    assert text.startswith("Training with configs/test.yaml\n")
    starts = [at for at, piece in pieces if "first step" in piece]
    ends = [at for at, piece in pieces if "validation loss" in piece]
    between = [starts[-1], *(at for at, _ in pieces if starts[-1] < at < ends[0]), ends[0]]
    gaps = [later - earlier for earlier, later in itertools.pairwise(between)]
    # relative, because all takes longer on a busy machine
    assert max(gaps) < max((ends[0] - starts[-1]) / 2, 6)
    assert "validating" in text


class Interrupted:
    """A run that is stopped again and again."""

    def __init__(self, path: Path, words: list[str]) -> None:
        self.path, self.words = path, words

    def start(self, *more: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [*self.words, *more],
            env=ENVIRONMENT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            # a shell without job control starts its background processes deaf to Ctrl-C
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )

    def last_step(self) -> int:
        return max((record["step"] for record in metrics(self.path)), default=0)

    def wait(self, process: subprocess.Popen[str], reached: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 60
        while not reached():
            assert process.poll() is None, process.communicate()[0]
            assert time.monotonic() < deadline
            time.sleep(0.002)

    def kill(self, process: subprocess.Popen[str]) -> None:
        assert process.poll() is None, "it ended before the kill"
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL


def test_a_run_killed_again_and_again_ends_like_one_that_was_not(long_run: Path, price_store: Path, tmp_path: Path):
    rng = random.Random(1)
    path = tmp_path / "run"
    interrupted = Interrupted(path, command("train", *TEST, *LONG, "--store", price_store, "--run", path))
    # before the first checkpoint; a slow test on a fast machine may come too late for that
    for _ in range(5):
        shutil.rmtree(path, ignore_errors=True)
        process = interrupted.start()
        interrupted.wait(process, lambda: interrupted.last_step() >= 1)
        interrupted.kill(process)
        if not (path / "last").exists():
            break
    assert not (path / "last").exists()
    assert metrics(path)[0] == metrics(long_run)[0]

    seen = []
    for _ in range(3):
        before = interrupted.last_step()
        process = interrupted.start("--resume")
        # the lines after the checkpoint go first, and are written again
        target = before + rng.randint(2, 15)
        interrupted.wait(process, lambda target=target: interrupted.last_step() >= target)
        time.sleep(rng.uniform(0, 0.1))
        interrupted.kill(process)
        seen.append(interrupted.last_step())
        assert not (path / "summary.json").exists()
    assert seen == sorted(set(seen))
    with (path / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "train", "step": 8')  # as a kill can leave it

    process = interrupted.start("--resume")
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    assert "goes on behind step " in output
    assert metrics(path) == metrics(long_run)
    assert summary(path) == summary(long_run)
    assert (path / "best.safetensors").read_bytes() == (long_run / "best.safetensors").read_bytes()
    ours, theirs = (load_file(run_ / "last" / "checkpoint.safetensors") for run_ in (path, long_run))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_ctrl_c_before_there_is_a_run_promises_none(test_store: Path, tmp_path: Path):
    words = command("train", *TEST, "--profile", "100000", "--store", test_store, "--run", tmp_path / "run")
    process = Interrupted(tmp_path / "run", words).start()
    while "profiling" not in process.stdout.readline():
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    assert output.endswith("\nerror: interrupted\n")


def test_ctrl_c_ends_with_the_command_that_continues(test_store: Path, tmp_path: Path):
    path = tmp_path / "a run"  # a path that the command must quote
    settings = ("training.steps_per_epoch=60", "training.checkpoint_every=5", "training.val_windows=16")
    words = command("train", *TEST, *settings, "--max-epochs", "1", "--store", test_store, "--run", path)
    interrupted = Interrupted(path, words)
    process = interrupted.start()
    interrupted.wait(process, lambda: interrupted.last_step() >= 10)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 1, output
    assert "Traceback" not in output
    assert "KeyboardInterrupt" not in output
    saved = interrupted.last_step()
    assert f"error: interrupted at step {saved} of 60. Continue from the last checkpoint:" in output
    (said,) = re.findall(r"bin/train .*--resume", output)
    done = run(tmp_path, shlex.split(f"{ROOT}/{said}"))
    assert done.returncode == 0, done.stderr
    assert f"\n  goes on behind step {saved} of 60\n" in done.stdout + done.stderr
    assert summary(path)["steps"] == 60
    steps = [record["step"] for record in metrics(path)]
    due = set(range(5, 61, 5))
    (*stopped_at,) = set(steps) - due - {1}  # saved and logged there, unless it was due anyway
    assert len(stopped_at) <= 1
    assert steps == [1, 1, *sorted(due.union(stopped_at)), 60]


def test_a_finished_run_is_left_as_it_is(long_run: Path, price_store: Path):
    files = [path for path in long_run.rglob("*") if path.is_file()]
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in files}
    output = train(ROOT, *LONG, "--store", price_store, "--run", long_run, "--resume")
    assert f"The run {long_run} has finished: 90 steps, best validation loss" in output
    assert f"bin/evaluate {long_run}" in output
    assert "import torch" not in output
    assert {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in files} == before


def test_a_run_does_not_go_on_with_other_data(tmp_path: Path):
    for rows in ("20000", "20001"):
        assert run(tmp_path, command("simulate", "--out", "data", "--rows", rows)).returncode == 0
        assert run(tmp_path, command("build-cache", *TEST, "--data-dir", "data")).returncode == 0
        if rows == "20000":
            train(tmp_path, "--fast-dev-run", "--run", "run")
    message = failure(tmp_path, *TEST, "--fast-dev-run", "--run", "run", "--resume")
    assert re.search(
        r"run: the run was trained on dataset \w{32}, but test is now \w{32}: its sources have changed", message
    )


def test_two_trainings_do_not_share_a_directory(test_store: Path, tmp_path: Path):
    path = tmp_path / "run"
    with run_lock(path):
        message = failure(ROOT, *TEST, "--store", test_store, "--run", path)
    assert f"{path}: another process is training there; wait for it, or name another --run" in message
    assert not path.exists()


def test_a_run_is_not_overwritten(long_run: Path, price_store: Path):
    before = (long_run / "config.yaml").stat().st_mtime_ns
    options = (*TEST, "--store", price_store, "--run", long_run)
    message = failure(ROOT, *options, *LONG)
    assert f"error: {long_run}: holds a run already; add --resume to continue it, or name another --run" in message
    message = failure(ROOT, *options, *LONG, "training.lr=1e-4", "--batch-size", "8", "--resume")
    assert f"error: {long_run}: the run was started with another configuration:" in message
    changes = re.findall(r"^  (\S+): (.*) → (.*)$", message, re.MULTILINE)
    assert sorted(changes) == [("training.batch_size", "16", "8"), ("training.lr", "0.003", "0.0001")]
    assert (long_run / "config.yaml").stat().st_mtime_ns == before
    message = failure(ROOT, *TEST, *LONG, "--store", price_store, "--run", long_run.parent / "none", "--resume")
    assert f"error: {long_run.parent / 'none'}: no run to resume there" in message
    assert not (long_run.parent / "none").exists()


def test_runs_are_numbered_and_short_options_and_precisions_work(elsewhere: Path):
    """From a working directory that is not the project's."""
    output = train(elsewhere, "--fast-dev-run")
    assert "run runs/test\n" in output
    first = elsewhere / "runs" / "test"
    assert [(record["kind"], record["step"]) for record in metrics(first)] == [
        ("train", 1),
        ("val", 1),
        ("train", 2),
        ("train", 3),
        ("val", 3),
    ]
    assert (summary(first)["steps"], summary(first)["epochs"]) == (3, 1)
    assert (first / "last" / "checkpoint.safetensors").exists()

    # the same windows in two halves: the first loss, of an untrained model, differs by how hidden bars are averaged
    output = train(elsewhere, "--fast-dev-run", "--batch-size", "8", "training.accumulate=2")
    second = elsewhere / "runs" / "test-2"
    assert "run runs/test-2\n" in output
    whole, halves = of_kind(first, "train"), of_kind(second, "train")
    assert [record["step"] for record in halves] == [1, 2, 3]
    assert [record["lr"] for record in halves] == [record["lr"] for record in whole]
    assert halves[0]["loss"] == pytest.approx(whole[0]["loss"], rel=0.05)
    assert halves[0]["grad_norm"] == pytest.approx(whole[0]["grad_norm"], rel=0.3)
    assert of_kind(second, "val")[-1]["loss"] == pytest.approx(of_kind(first, "val")[-1]["loss"], rel=0.3)

    short = ("--max-epochs", "2", "--batch-size", "16", "training.steps_per_epoch=2", "training.val_windows=16")
    output = train(elsewhere, *short, "training.precision=bf16")
    third = elsewhere / "runs" / "test-3"
    assert "· bf16 · batches of 16\n  run runs/test-3\n" in output
    saved = yaml.safe_load((third / "config.yaml").read_text())["training"]
    assert (saved["max_epochs"], saved["batch_size"], saved["precision"]) == (2, 16, "bf16")
    assert (summary(third)["steps"], summary(third)["epochs"]) == (4, 2)
    # nearly what it is in float32, and yet not the same
    loss, grad_norm = (of_kind(third, "train")[0][key] for key in ("loss", "grad_norm"))
    assert loss == pytest.approx(whole[0]["loss"], rel=0.01)
    assert grad_norm == pytest.approx(whole[0]["grad_norm"], rel=0.1)
    assert grad_norm != whole[0]["grad_norm"]

    # without --run the newest run is the one to continue
    output = train(elsewhere, *short, "training.precision=bf16", "--resume")
    assert "The run runs/test-3 has finished: 4 steps" in output
    assert {path.name for path in (elsewhere / "runs").iterdir()} == {"test", "test-2", "test-3"}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["training.precision=fp16"],
            "training.precision = fp16 needs a CUDA GPU, and there is none; use fp32 or bf16",
        ),
        (
            ["training.batch_size=20000", "training.accumulate=2"],
            "the training split has 23,568 windows, fewer than one step takes (20000 × 2); lower "
            "training.batch_size or training.accumulate",
        ),
        (["model.d_model=30"], "model.d_model (30) must be a multiple of 2 · model.n_heads (2 · 4)"),
        (["masking.span_max=33"], "m1: masking.span_max = 33, and a window has 32 bars only; lower it, or lengthen"),
        (["loss.stft.n_ffts=[64]"], "m1: loss.stft.n_ffts = [64], and none of them fits a window of 32 bars; add one"),
    ],
)
def test_what_cannot_be_trained_ends_with_1(
    test_store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], overrides: list[str], message: str
):
    if "fp16" in message and torch.cuda.is_available():
        pytest.skip("there is one")
    # in this process, which has imported torch already
    with pytest.raises(SystemExit) as ended:
        main([*TEST, *overrides, "--store", str(test_store), "--run", str(tmp_path / "run")], standalone_mode=False)
    assert ended.value.code == 1
    assert capsys.readouterr().err.startswith(f"\nerror: {message}")
    assert not (tmp_path / "run").exists()  # a start that failed does not take the name


def test_training_stops_when_validation_does_not_improve(
    test_store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    wild = ["training.lr=1", "training.patience=1", "training.steps_per_epoch=4", "training.max_epochs=5"]
    main([*TEST, *wild, "--store", str(test_store), "--run", str(tmp_path / "run")], standalone_mode=False)
    first, second = (record["loss"] for record in of_kind(tmp_path / "run", "val"))
    assert second > 2 * first
    told = summary(tmp_path / "run")
    assert (told["steps"], told["best_step"], told["stopped_early"]) == (4, 1, True)
    assert told["best_loss"] == first
    assert "Done: 4 steps, stopped early, best validation loss" in capsys.readouterr().out


def said_build_command(message: str) -> list[str]:
    (said,) = re.findall(r"^  (bin/build-cache .*)$", message, re.MULTILINE)
    return shlex.split(f"{ROOT}/{said}")


def test_a_missing_dataset_names_the_command_that_builds_it(simulated_dir: Path, test_store: Path, tmp_path: Path):
    override = "data.window.seq_len={m1: 16, m5: 12, m15: 8}"
    message = failure(tmp_path, *TEST, override, "training.lr=1e-4", "--fast-dev-run")
    assert "error: store: no store here; --store says where it is, and bin/build-cache makes one" in message
    assert not (tmp_path / "runs").exists()
    words = said_build_command(message)
    assert words[-2:] == ["--data-dir", "DIR"]
    done = run(tmp_path, [*words[:-1], str(simulated_dir)])
    assert done.returncode == 0, done.stderr
    assert "m1×16 m5×12 m15×8" in train(tmp_path, override, "training.lr=1e-4", "--fast-dev-run")

    message = failure(tmp_path, *TEST, "data.name=other", "--store", test_store)
    assert f"error: {test_store}: no dataset named other (there are: test)" in message
    assert said_build_command(message)[-5:] == ["data.name=other", "--store", str(test_store), "--data-dir", "DIR"]


def test_another_recipe_names_what_differs_and_the_command_that_mends_it(test_store: Path, tmp_path: Path):
    store = tmp_path / "a store"
    shutil.copytree(test_store, store)
    options = ("data.window.seq_len=24", "data.split.embargo=1d", "--fast-dev-run", "--store", store)
    message = failure(tmp_path, *TEST, *options)
    assert f"error: {store}: the dataset test was built from another recipe:" in message
    assert "  data.window.seq_len: the store has 32, the configuration wants 24\n" in message
    assert len(re.findall(r"the store has", message)) == 2
    assert not (tmp_path / "runs").exists()
    done = run(tmp_path, said_build_command(message))
    assert done.returncode == 0, done.stderr
    assert "m1×24 m5×24 m15×24" in train(tmp_path, *options)
    # nothing was trained on what the store held before
    assert "the configuration wants 32" in failure(tmp_path, *TEST, "--fast-dev-run", "--store", store)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["training.batchsize=8"],
            "command line: training.batchsize is not a known key; did you mean training.batch_size?",
        ),
        (["data.windw.stride=2"], "command line: data.windw is not a known key; did you mean data.window?"),
        (["trainig.lr=1"], "command line: trainig is not a known section; did you mean training?"),
        (["training.lr"], "'training.lr' is not an override; write key=value"),
        (["training.lr=fast"], "command line: training.lr = 'fast': input should be a valid number"),
        (
            ["--config", "configs/none.yaml"],
            "configs/none.yaml: no such configuration file. Shipped ones: configs/base",
        ),
    ],
)
def test_wrong_configurations_end_with_1(elsewhere: Path, arguments: list[str], message: str):
    assert f"error: {message}" in failure(elsewhere, *TEST, *arguments)
    assert not (elsewhere / "runs").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Missing option '--config'"),
        ([*TEST, "--fast"], "No such option '--fast'"),
        ([*TEST, "--batch-size", "0"], "Invalid value for '--batch-size'"),
        ([*TEST, "--max-epochs", "many"], "Invalid value for '--max-epochs'"),
    ],
)
def test_wrong_usage_ends_with_2(tmp_path: Path, arguments: list[str], message: str):
    output = failure(tmp_path, *arguments, code=2)
    assert message in output
    assert "Usage: bin/train [OPTIONS]" in output


def test_help_ends_with_examples(tmp_path: Path):
    done = run(tmp_path, command("train", "-h"))
    assert done.returncode == 0
    assert done.stdout.rstrip().endswith("bin/train --config configs/sse.yaml --run runs/sse --resume")


@pytest.fixture(scope="module")
def short_run(test_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("short") / "run"
    train(ROOT, "--fast-dev-run", "--store", test_store, "--run", path)
    return path


def refused(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    """What a command says that ends with 1, in this process."""
    with pytest.raises(SystemExit) as ended:
        main([*TEST, *map(str, arguments)], standalone_mode=False)
    assert ended.value.code == 1
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--run", "."], "--run .: a run needs a directory of its own; name one, such as runs/demo"),
        (["--run", ""], "--run .: a run needs a directory of its own; name one, such as runs/demo"),
        (["--run", "/dev/null"], "--run /dev/null: not a directory; name another, or one that is not there yet"),
        (["--resume", "--find-lr"], "--find-lr tries rates on a model that has learnt nothing yet; leave out --resume"),
        (["--find-lr", "--profile", "2"], "--find-lr and --profile are two things to do; leave out one of the two"),
        (
            ["--batch-size", "8", "training.batch_size=16"],
            "training.batch_size=16: --batch-size sets it too; leave out one of the two",
        ),
        (["masking.mask_ratio=1.5"], "command line: masking.mask_ratio = 1.5: input should be less than 1\n"),
        (
            ["masking.mask_ratio={m1:0.3}"],
            "command line: masking.mask_ratio.m1:0.3 = None: input should be a valid number; write a space behind the "
            "colon\n",
        ),
    ],
)
def test_what_cannot_be_meant_is_refused(
    test_store: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
):
    assert refused(capsys, *arguments, "--store", test_store).startswith(f"\nerror: {message}")
    assert not Path("/dev/.null.lock").exists()


def test_damaged_files_of_a_run_are_named(
    short_run: Path, test_store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    run_ = tmp_path / "run"
    shutil.copytree(short_run, run_)
    options = ("--fast-dev-run", "--store", test_store, "--run", run_, "--resume")
    (run_ / "summary.json").write_text('{"steps": 3')
    said = f"{run_ / 'summary.json'}: damaged; delete it, and the same command with --resume writes it again from the"
    assert said in refused(capsys, *options)
    whole = (run_ / "config.yaml").read_text()
    for content in ("", "a: [", whole[: len(whole) // 2], "\x00"):
        (run_ / "config.yaml").write_text(content)
        said = refused(capsys, *options)
        assert (
            f"error: {run_ / 'config.yaml'}: damaged, or of another version; copy it again from where the run" in said
        )
    assert not list(tmp_path.glob(".*.lock"))


def test_overfitting_is_tried_on_what_it_trains_on(
    test_store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    options = ["--overfit", "3", "--batch-size", "3", "--max-epochs", "2", "training.steps_per_epoch=20"]
    main([*TEST, *options, "--store", str(test_store), "--run", str(tmp_path / "run")], standalone_mode=False)
    trained, validated = of_kind(tmp_path / "run", "train"), of_kind(tmp_path / "run", "val")
    # after the last steps, whose rates are next to nothing, both are of one model, and of the same windows and masks
    assert validated[-1]["loss"] == pytest.approx(trained[-1]["loss"], rel=0.02)
    told = summary(tmp_path / "run")
    assert told["untrained_loss"] == pytest.approx(trained[0]["loss"], rel=0.1)  # of the same windows, other masks
    share = f"{told['best_loss'] / told['untrained_loss']:.1%}"
    assert f", where the loss is {share} of the untrained model's. Look at it" in capsys.readouterr().out


def test_what_is_odd_is_said_before_training(test_store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    odd = ["masking.mask_ratio=0.05", "--overfit", "30000", "--fast-dev-run"]
    main([*TEST, *odd, "--store", str(test_store), "--run", str(tmp_path / "run")], standalone_mode=False)
    said = capsys.readouterr().out
    assert "  training.overfit = 30000: there are only 23,568 windows\n" in said
    assert re.search(
        r"  masks hide \d\d% of m1, and masking.mask_ratio asks for 5%: blocks have 3 to 8 bars, and", said
    )


def test_a_run_that_diverged_says_so(test_store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    wild = ["training.lr=30", "training.clip_norm=1e9", "training.steps_per_epoch=3", "--max-epochs", "1"]
    main([*TEST, *wild, "--store", str(test_store), "--run", str(tmp_path / "run")], standalone_mode=False)
    assert re.search(r"Done: .*(never better since|had a loss of \d\.\d+): lower training.lr", capsys.readouterr().out)


@pytest.mark.parametrize(("rate", "diverged"), [(1e-3, False), (30, True)])
def test_one_window_is_no_measure_of_the_untrained_model(
    rate: float, diverged: bool, test_store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    options = ["--batch-size", "1", "--max-epochs", "1", "training.steps_per_epoch=30", "training.clip_norm=1e9"]
    store = ["--store", str(test_store), "--run", str(tmp_path / "run")]
    main([*TEST, *options, f"training.lr={rate}", *store], standalone_mode=False)
    first, found = of_kind(tmp_path / "run", "train")[0]["loss"], summary(tmp_path / "run")
    assert first < found["untrained_loss"] / 2  # the first window happens to be a quiet one
    said = f", but the untrained model had a loss of {found['untrained_loss']:.4f}: lower training.lr. Look at it"
    assert (said in capsys.readouterr().out) == diverged


def test_a_full_disk_names_the_file_and_the_command_that_goes_on(
    test_store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    path, fsync = tmp_path / "run", os.fsync

    def full(descriptor: int) -> None:
        if "checkpoint" in os.readlink(f"/proc/self/fd/{descriptor}"):  # noqa: PTH115
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    said = refused(capsys, "--fast-dev-run", "--store", test_store, "--run", path)
    file = path / "last" / "checkpoint.safetensors"
    assert f"error: {file}: no space left on device; free some. Continue from the last checkpoint:\n" in said
    assert said.endswith(f"--store {test_store} --run {path} --resume\n")
