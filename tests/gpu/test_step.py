"""The step on a GPU: graph, kernels and placements against each other. Skipped where there is no GPU."""

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from cache.console import Console
from cache.reader import open_dataset
from configs.loader import load_config
from trainer.config import parse_trainer
from trainer.optim import one_cycle
from trainer.session import Session, open_session
from trainer.step import TrainingStep

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
ROOT = Path(__file__).parents[2]
STEPS = 40
LONG = ("data.name=long", "data.window.seq_len=128")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Bars as `test` and, in windows of 384 bars, `long`; recordings as `imu`."""
    folder = tmp_path_factory.mktemp("gpu")

    def call(command: str, *options: object) -> None:
        subprocess.run([sys.executable, "-m", f"pipeline.{command}", *map(str, options)], check=True, cwd=ROOT)

    call("simulate_command", "--out", folder / "bars", "--rows", 30000)
    call("simulate_command", "--kind", "imu", "--out", folder / "imu", "--sequences", 300)
    for config, data, *more in (("test", "bars"), ("test", "bars", *LONG), ("imu", "imu")):
        source = ("--data-dir", folder / data, "--store", folder / "store")
        call("build_command", "--config", f"configs/{config}.yaml", *source, *more)
    return folder / "store"


def opened(store: Path, *overrides: str, config: str = "test") -> Session:
    settings = load_config(f"configs/{config}.yaml", ["training.steps_per_epoch=null", *overrides])
    dataset = open_dataset(store, settings.values["data"]["name"])
    return open_session(parse_trainer(settings), dataset, Console(io.StringIO()), fold=0 if config == "imu" else None)


def made(session: Session) -> TrainingStep:
    torch.cuda.empty_cache()
    session.model.train()
    rates = one_cycle(1000, session.config.lr, 0.1)
    return TrainingStep(session.config, session.source, session.task, session.model, rates, session.ranks)


def losses(step: TrainingStep, count: int = STEPS) -> list[float]:
    found = []
    for _ in range(count):
        step.run()
        found.append(float(step.log.take()["loss"]))
    return found


@pytest.mark.parametrize("data", [(), (*LONG, "model.d_model=128", "model.n_heads=2")], ids=["short", "long"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("step", ["eager", "graph"])
def test_the_same_seed_gives_the_same_losses(store: Path, data: tuple[str, ...], precision: str, step: str):
    settings = (f"training.precision={precision}", f"training.step={step}", "model.dropout=0.1", *data)
    first, second = (losses(made(opened(store, *settings))) for _ in range(2))
    assert first == second
    assert len(set(first)) == STEPS


@pytest.mark.parametrize("task", ["test", "imu"])
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_graph_and_single_kernels_agree(store: Path, task: str, precision: str):
    ways = ("training.step=eager", "training.step=graph")
    eager, graph = (losses(made(opened(store, f"training.precision={precision}", way, config=task))) for way in ways)
    assert graph == pytest.approx(eager, rel=1e-3 if precision == "fp32" else 0.03)


def test_compiled_losses_agree(store: Path):
    ways = ("training.step=graph", "training.step=compile")
    graph, compiled = (losses(made(opened(store, "training.precision=bf16", way))) for way in ways)
    assert compiled == pytest.approx(graph, rel=0.03)


@pytest.mark.parametrize("settings", [("training.step=graph",), ("training.step=eager", "training.accumulate=2")])
def test_batches_gathered_by_the_host_are_the_same(
    store: Path, settings: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
):
    def weights(placement: str) -> list[torch.Tensor]:
        session = opened(store, "training.precision=bf16", *settings)
        assert session.source.placement == placement
        step = made(session)
        for _ in range(3 * STEPS):  # without reading a loss in between, so the host runs ahead as far as it may
            step.run()
        return [one.clone() for one in step.model.state_dict().values()]

    expected = weights("device")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device=None: (0, 0))
    assert all(map(torch.equal, weights("host"), expected))


def test_going_on_from_any_step(store: Path):
    whole = made(opened(store, "training.precision=bf16", "model.dropout=0.1"))
    losses(whole, 17)
    state = [tensor.clone() for tensor in [*whole.optimizer.state_tensors().values()]]
    weights = {name: tensor.clone() for name, tensor in whole.model.state_dict().items()}
    expected = losses(whole, 20)

    session = opened(store, "training.precision=bf16", "model.dropout=0.1")
    session.model.load_state_dict(weights)
    other = made(session)
    for tensor, known in zip(other.optimizer.state_tensors().values(), state, strict=True):
        tensor.copy_(known)
    other.start_at(17)
    assert losses(other, 20) == expected


@pytest.mark.parametrize("before", [0, 10])  # the first step, which is none of a graph, and one that is
def test_an_overflow_is_skipped_and_recovered_from(store: Path, before: int):
    step = made(opened(store, "training.precision=fp16"))
    losses(step, before)
    weights = [weight.detach().clone() for weight in step.optimizer.parameters.values()]
    step.scaler.factor.fill_(2.0**40)
    step.run()
    assert int(step.optimizer.skipped) == 1 and float(step.scaler.factor) == 2.0**39
    assert all(map(torch.equal, weights, step.optimizer.parameters.values()))
    losses(step)
    assert 10 < int(step.optimizer.skipped) < 30 and 2**10 < float(step.scaler.factor) < 2**30
    assert not any(map(torch.equal, weights, step.optimizer.parameters.values()))


def test_too_little_memory_names_a_batch_that_fits(store: Path, tmp_path: Path):
    hoard = torch.empty(int(torch.cuda.mem_get_info()[0] - 3e9), dtype=torch.uint8, device="cuda")
    command = [sys.executable, "-m", "trainer.train_command", "--config", "configs/test.yaml", "--store", str(store)]
    options = ["--run", str(tmp_path / "run"), "training.step=eager", "training.batch_size=16384"]
    done = subprocess.run([*command, *options], cwd=ROOT, capture_output=True, text=True)
    del hoard
    assert done.returncode != 0
    assert "out of GPU memory with training.batch_size = 16384. Tried here: batches of " in done.stderr


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@pytest.mark.parametrize("way", ["eager", "graph"])
def test_two_gpus_learn_what_one_does(store: Path, tmp_path: Path, way: str):
    found = []
    for devices in ("1", "2"):
        run = tmp_path / devices
        command = [
            sys.executable,
            "-m",
            "trainer.train_command",
            "--config",
            "configs/test.yaml",
            "--store",
            str(store),
        ]
        settings = [f"training.step={way}", "training.precision=bf16", "training.steps_per_epoch=60"]
        options = ["--run", str(run), "--devices", devices, "--max-epochs", "1", "training.log_every=10"]
        subprocess.run([*command, *options, *settings], check=True, cwd=ROOT)
        records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        found.append([record["loss"] for record in records if record["kind"] == "train"])
    assert len(found[0]) >= 6
    assert found[1] == pytest.approx(found[0], rel=0.02)
