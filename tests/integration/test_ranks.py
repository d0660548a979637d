"""Training in several processes, here on the CPU with gloo: the same windows, and nearly the same losses."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from configs.loader import load_config
from trainer.batches import train_windows
from trainer.config import parse_trainer
from trainer.data import WindowSource
from trainer.runs import run_lock

ROOT = Path(__file__).parents[2]
SHORT = ("training.max_epochs=2", "training.steps_per_epoch=6", "training.log_every=1", "training.val_windows=32")
OPTIONS = ("--config", str(ROOT / "configs/test.yaml"), *SHORT)
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, simulated_dir: Path) -> Path:
    store = tmp_path_factory.mktemp("ranks") / "store"
    build = [ROOT / "bin/build-cache", "--config", ROOT / "configs/test.yaml"]
    subprocess.run([*build, "--data-dir", simulated_dir, "--store", store], check=True, capture_output=True)
    return store


def train(store: Path, run: str, *more: str, **environment: str) -> subprocess.CompletedProcess[str]:
    words = [ROOT / "bin/train", *OPTIONS, "--store", store, "--run", store.parent / run, *more]
    env = ENVIRONMENT | environment
    return subprocess.run(words, cwd=store.parent, env=env, capture_output=True, text=True, timeout=200)


def records(store: Path, run: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (store.parent / run / "metrics.jsonl").read_text().splitlines()]


def losses(store: Path, run: str) -> list[float]:
    return [record["loss"] for record in records(store, run)]


def test_ranks_share_every_batch_in_the_order_of_one(store: Path) -> None:
    config = parse_trainer(load_config(ROOT / "configs/test.yaml", ["training.batch_size=24"])).training
    source = WindowSource.__new__(WindowSource)
    source.train = _Places()
    for epoch, batch in ((0, 0), (2, 7)):
        at = torch.tensor(epoch), torch.tensor(batch)
        whole = train_windows(config, source, *at)
        for world in (2, 3, 4):
            parts = [train_windows(config, source, *at, rank, world) for rank in range(world)]
            assert torch.cat(parts).tolist() == whole.tolist()


class _Places:
    """Windows that are their places."""

    def __len__(self) -> int:
        return 5000

    def at(self, places: torch.Tensor, epoch: torch.Tensor) -> torch.Tensor:
        return places


def test_two_processes_learn_as_one(store: Path, tmp_path: Path) -> None:
    one, two = train(store, "one"), train(store, "two", "--devices", "2", TMPDIR=str(tmp_path))
    assert one.returncode == two.returncode == 0, one.stderr + two.stderr
    assert two.stdout.count("first step") == one.stdout.count("first step")  # one of them talks
    assert "2 × CPU" in two.stdout
    assert len(records(store, "two")) == len(records(store, "one")) == 15
    # a term of the loss is a mean over hidden bars, of half a batch or of all of it: close, and not the same
    assert losses(store, "two") == pytest.approx(losses(store, "one"), rel=0.05)
    assert losses(store, "two") != losses(store, "one")
    assert not [path for path in tmp_path.iterdir() if not path.name.startswith("torchinductor_")]


def test_a_run_goes_on_with_another_number_of_processes(store: Path) -> None:
    words = [ROOT / "bin/train", *OPTIONS, "--store", store, "--run", store.parent / "stopped", "--devices", "2"]
    with subprocess.Popen(
        words, cwd=store.parent, env=ENVIRONMENT, start_new_session=True, stdout=-1, stderr=-1
    ) as two:
        await_records(store.parent / "stopped/metrics.jsonl")
        os.killpg(two.pid, signal.SIGTERM)
        printed, said = two.communicate(timeout=100)
    assert two.returncode == 1
    assert [line.split(b" at ")[0] for line in said.splitlines()[1:2]] == [b"error: interrupted"]
    assert said.splitlines()[2].endswith(b"stopped --devices 2 --resume")
    assert len(said.splitlines()) == 3
    assert printed.count(b"import torch") == printed.count(b"start 2 processes") == 1
    done = train(store, "stopped", "--resume")
    assert done.returncode == 0, done.stderr
    found = {(one["kind"], one["step"]): one["loss"] for one in records(store, "stopped")}
    expected = {(one["kind"], one["step"]): one["loss"] for one in records(store, "one")}
    assert found.keys() == expected.keys()
    assert list(found.values()) == pytest.approx(list(expected.values()), rel=0.05)


def test_a_process_that_is_killed_is_named(store: Path) -> None:
    with subprocess.Popen(
        [ROOT / "bin/train", *OPTIONS, "--store", store, "--run", store.parent / "killed", "--devices", "2"],
        cwd=store.parent,
        env=ENVIRONMENT,
        stdout=-1,
        stderr=-1,
    ) as two:
        await_records(store.parent / "killed/metrics.jsonl")
        children = Path(f"/proc/{two.pid}/task/{two.pid}/children").read_text().split()
        os.kill(int(children[0]), signal.SIGKILL)
        _, said = two.communicate(timeout=100)
    assert two.returncode == 1
    assert b"was ended by SIGKILL; go on from the last checkpoint with --resume" in said
    assert b"Traceback" not in said
    assert b"multiprocessing/api.py" not in said  # torchrun's own words


def test_processes_end_with_the_one_that_started_them(store: Path) -> None:
    run, long = store.parent / "orphaned", ("training.max_epochs=200", "training.checkpoint_every=1")
    words = [ROOT / "bin/train", *OPTIONS, *long, "--store", store, "--run", run, "--devices", "2"]
    with subprocess.Popen(words, cwd=store.parent, env=ENVIRONMENT, stdout=-1, stderr=-1) as two:
        await_records(run / "metrics.jsonl")
        os.kill(two.pid, signal.SIGKILL)
        two.communicate(timeout=10)  # until nobody has its output open any more
    assert load_file(run / "last/checkpoint.safetensors")
    with run_lock(run):  # which one that trains would hold
        pass


def await_records(metrics: Path) -> None:
    deadline = time.monotonic() + 100
    while time.monotonic() < deadline and (not metrics.exists() or metrics.read_text().count("\n") < 4):
        time.sleep(0.02)


def test_batches_that_do_not_divide_and_torchrun_without_a_directory_are_errors(store: Path) -> None:
    failed = train(store, "odd", "--devices", "2", "training.batch_size=15")
    assert failed.returncode == 1
    said = "training.batch_size = 15 does not divide among 2 devices; it counts the windows of all of them"
    assert failed.stderr.count(said) == failed.stderr.count("error:") - 1 == 1  # rank 0, and what started it
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "--"]
    torchrun += ["trainer.train_command", *OPTIONS, "--store", str(store)]
    for more, expected in (
        ([], "must agree on a directory: name one with --run, and write torchrun … -m -- trainer.train_command …"),
        (["--run", str(store.parent / "odd"), "training.batch_size=15"], "does not divide among 2 devices"),
    ):
        done = subprocess.run(
            [*torchrun, *more], cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=200
        )
        assert done.returncode != 0
        assert expected in done.stderr
