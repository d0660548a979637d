import io
import json
import math
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from cache.console import Console
from cache.reader import open_dataset
from configs.errors import UserError
from configs.loader import load_config
from trainer.config import TrainingConfig, parse_trainer
from trainer.loop import check_skipped
from trainer.losslog import LossLog
from trainer.memory import memory_use, out_of_memory_advice
from trainer.profile import profile_session
from trainer.ranks import Ranks
from trainer.runs import describe
from trainer.session import open_session
from trainer.train_command import main as train

CPU = torch.device("cpu")


def training(*overrides: str) -> TrainingConfig:
    return parse_trainer(load_config("configs/test.yaml", [f"training.{one}" for one in overrides])).training


def terms(**values: float) -> dict[str, torch.Tensor]:
    return {name: torch.tensor(value) for name, value in values.items()}


def test_the_log_gives_means_since_the_last_time():
    log = LossLog(Ranks(0, 1, CPU))
    log.add(terms(loss=1.0, huber=0.5), torch.tensor(1))
    log.add(terms(loss=3.0, huber=1.5), torch.tensor(2))
    assert log.take() == {"loss": 2.0, "huber": 1.0}
    log.add(terms(loss=7.0, huber=7.0), torch.tensor(3))
    assert log.take() == {"loss": 7.0, "huber": 7.0}
    assert log.first_fault() is None


def test_a_term_that_is_not_finite_is_named_and_left_out_of_the_mean():
    log = LossLog(Ranks(0, 1, CPU))
    log.add(terms(loss=1.0, huber=1.0, stft=1.0), torch.tensor(4))
    log.add(terms(loss=math.nan, huber=2.0, stft=math.inf), torch.tensor(5))
    log.add(terms(loss=math.nan, huber=math.nan, stft=3.0), torch.tensor(6))
    assert log.take() == {"loss": 1.0, "huber": 1.5, "stft": 2.0}
    assert log.first_fault() == ("stft", torch.tensor(5))
    log.add(terms(loss=math.nan, huber=1.0, stft=math.nan), torch.tensor(7))
    assert log.take() == {"loss": None, "huber": 1.0, "stft": None}
    assert log.first_fault() == ("stft", torch.tensor(5))


def test_too_many_skipped_steps_name_the_term_and_the_batch():
    settings = training("max_skipped=20", "precision=fp16")
    check_skipped(settings, 19, 50, ("stft", 13), 10)
    with pytest.raises(UserError) as caught:
        check_skipped(settings, 20, 50, ("stft", 13), 10)
    assert str(caught.value) == (
        "20 of the last 50 steps had non-finite gradients and were skipped. The first term of the loss that was not "
        "finite: stft, at step 13 (epoch 2, batch 3); lower training.lr, or train with training.precision=bf16 or fp32"
    )
    with pytest.raises(UserError, match=r"^5 of the last 5 steps had .* and were skipped; lower training\.lr$"):
        check_skipped(training("precision=fp32"), 5, 5, None, 10)


@pytest.mark.parametrize(
    ("monitor", "best", "advised"),
    [("score", 0.9, True), ("score", 1.0, False), ("loss", 1.0, True), ("loss", 0.0, False)],
)
def test_a_best_first_step_wants_another_rate_unless_nothing_better_can_be(monitor: str, best: float, advised: bool):
    summary = {"steps": 9, "monitor": monitor, "best": best, "best_loss": 0.5, "best_step": 1, "untrained_loss": 1.0}
    told = describe({**summary, "overfit": False, "stopped_early": False})
    assert told.startswith(f"9 steps, best validation {monitor} {best:.4f} at step 1")
    assert told.endswith(", and never better since: lower training.lr") == advised


def attempt(largest: int, tried: list[int]):
    """A step that fits up to a number of windows."""

    def step(size: int) -> None:
        tried.append(size)
        if size > largest:
            raise torch.OutOfMemoryError("CUDA out of memory")

    return step


@pytest.mark.parametrize(("largest", "size", "accumulate"), [(300, 256, 4), (1, 1, 1000), (512, 500, 2)])
def test_out_of_memory_is_answered_with_a_size_that_was_tried(largest: int, size: int, accumulate: int):
    tried: list[int] = []
    asked = 1024 if largest == 300 else 1000
    settings = training(f"batch_size={asked}", "precision=bf16")
    said = str(out_of_memory_advice(settings, CPU, attempt(largest, tried)))
    assert tried[-1] == size
    assert said == (
        f"out of GPU memory with training.batch_size = {asked}. Tried here: batches of {size} fit. The same steps with "
        f"less memory: training.batch_size={size} training.accumulate={accumulate}"
    )
    assert size * accumulate >= asked


def test_out_of_memory_at_any_size():
    said = str(out_of_memory_advice(training("batch_size=8"), CPU, attempt(0, [])))
    assert said.startswith("out of GPU memory even with batches of 1 (training.batch_size = 8 was asked for); make the")


def test_memory_use():
    use = memory_use(CPU)
    assert set(use) == {"rss_mb"}
    assert 50 < use["rss_mb"] < 50_000


def test_a_model_learns_a_few_windows_by_heart(test_store: Path, tmp_path: Path):
    options = ["--config", "configs/test.yaml", "--store", str(test_store), "--run", str(tmp_path / "run")]
    options += ["--overfit", "4", "--batch-size", "4", "training.max_epochs=1", "training.steps_per_epoch=150"]
    train([*options, "training.weight_decay=0.0", "training.log_every=150"], standalone_mode=False)
    records = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    losses = [record["huber"] for record in records if record["kind"] == "train"]
    assert losses[-1] < losses[0] / 2


class Another(Ranks):
    """A process that does what the first does, but is not the first."""

    @property
    def main(self) -> bool:
        return False


def test_of_several_ranks_the_first_writes_the_profile(test_store: Path, tmp_path: Path):
    config, dataset = parse_trainer(load_config("configs/test.yaml")), open_dataset(test_store, "test")
    session = open_session(config, dataset, Console(io.StringIO()))
    for name, ranks in (("first", Ranks(0, 1, CPU)), ("another", Another(0, 1, CPU))):
        lines = profile_session(replace(session, ranks=ranks), tmp_path / name, 1, lambda count: None)
        assert "ms a step" in lines[0]
    assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.json")] == ["first/trace.json"]


def test_learning_rates_are_tried_without_training(test_store: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    run = tmp_path / "run"
    options = ["--config", "configs/test.yaml", "--store", str(test_store), "--run", str(run), "--find-lr"]
    train(options, standalone_mode=False)
    found = json.loads((run / "lr_range.json").read_text())
    assert set(found) == {"lr", "loss", "suggestion"}
    assert len(found["lr"]) == len(found["loss"]) > 50
    assert found["lr"][0] == 1e-6
    assert found["suggestion"] == pytest.approx(found["lr"][found["loss"].index(min(found["loss"]))] / 10)
    assert (run / "lr_range.png").stat().st_size > 5000
    assert {path.name for path in run.iterdir()} == {"lr_range.json", "lr_range.png"}
    assert re.search(r"try training\.lr=\d\.\de-\d\d\n", capsys.readouterr().out)
