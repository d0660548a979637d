import json
import os
import re
import resource
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save
from torch import nn

from cache.files import in_words, naming, write_atomically
from configs.errors import UserError
from trainer.checkpoint import Progress, load_checkpoint, load_weights, save_checkpoint, save_weights
from trainer.optim import AdamW, LossScaler
from trainer.runs import keep_metrics_until, write_json

ROOT = Path(__file__).parents[3]
RUN = {"task": "reconstruct", "dataset": "0" * 32}


def make_model(width: int = 7) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, width), nn.GELU(), nn.Linear(width, 3))


class Trained:
    """A model with its optimizer and loss scaler, some steps on its way."""

    def __init__(self, steps: int, width: int = 7) -> None:
        self.model = make_model(width)
        self.optimizer = AdamW(self.model.named_parameters(), 1e-2, 0.1)
        self.scaler = LossScaler(True, "cpu", growth_interval=4)
        for step in range(steps):
            self.step(step)

    def step(self, seed: int) -> None:
        x = torch.randn(9, 5, generator=torch.Generator().manual_seed(seed))
        if seed == 2:
            x[0, 0] = torch.inf
        self.model.zero_grad()
        self.scaler.scale(self.model(x).square().mean()).backward()
        found_inf = self.scaler.unscale(self.optimizer.gradients())
        self.optimizer.step(found_inf)
        self.scaler.update(found_inf)

    def state(self) -> dict[str, torch.Tensor]:
        parts = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_tensors(),
            "scaler": self.scaler.state_tensors(),
        }
        return {f"{part}.{name}": tensor for part, state in parts.items() for name, tensor in state.items()}

    def save(self, run: Path, progress: Progress) -> None:
        save_checkpoint(run, self.model, self.optimizer, self.scaler, progress)

    def load(self, run: Path) -> Progress | None:
        return load_checkpoint(run, self.model, self.optimizer, self.scaler)


def parse_safetensors(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """By the format's definition: length of the header (uint64), header (JSON), then nothing but the numbers."""
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    metadata = header.pop("__metadata__", {})
    body = content[8 + length :]
    types = {"F32": "<f4", "F64": "<f8", "I64": "<i8", "I32": "<i4"}
    arrays, end = {}, 0
    for name, described in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        start, stop = described["data_offsets"]
        assert start == end
        end = stop
        arrays[name] = np.frombuffer(body[start:stop], types[described["dtype"]]).reshape(described["shape"])
    assert end == len(body)
    return arrays, metadata


def test_a_checkpoint_restores_everything(tmp_path: Path):
    trained = Trained(6)
    progress = Progress(step=6, best_loss=0.25, best_step=3, stale_epochs=2)
    trained.save(tmp_path, progress)
    # the state is not the one that everything begins with
    assert float(trained.scaler.factor) != 2.0**16
    assert (int(trained.optimizer.steps), int(trained.optimizer.skipped)) == (5, 1)

    fresh = Trained(0)
    assert fresh.load(tmp_path) == progress
    for name, tensor in trained.state().items():
        assert torch.equal(fresh.state()[name], tensor), name
    for seed in range(6, 12):
        trained.step(seed)
        fresh.step(seed)
    for name, tensor in trained.state().items():
        assert torch.equal(fresh.state()[name], tensor), name


def test_the_beginning_can_be_saved_too(tmp_path: Path):
    Trained(0).save(tmp_path, Progress())
    progress = Trained(3).load(tmp_path)
    assert progress == Progress(0, float("inf"), 0, 0)


def test_without_a_checkpoint_there_is_nothing_to_load(tmp_path: Path):
    trained = Trained(2)
    before = {name: tensor.clone() for name, tensor in trained.state().items()}
    assert trained.load(tmp_path) is None
    assert all(torch.equal(trained.state()[name], tensor) for name, tensor in before.items())
    assert list(tmp_path.iterdir()) == []


def test_files_hold_numbers_and_text_only(tmp_path: Path):
    trained = Trained(5)
    trained.save(tmp_path, Progress(5, 0.5, 4, 0, 0.5))
    save_weights(tmp_path / "best.safetensors", trained.model, RUN)

    arrays, metadata = parse_safetensors(tmp_path / "last" / "checkpoint.safetensors")
    assert arrays.keys() == trained.state().keys()
    for name, tensor in trained.state().items():
        np.testing.assert_array_equal(arrays[name], tensor.detach().numpy())
    assert metadata.keys() == {"headstart"}
    assert json.loads(metadata["headstart"])["progress"] == {
        "step": 5,
        "best_loss": 0.5,
        "best_step": 4,
        "stale_epochs": 0,
        "best_score": 0.5,
    }

    arrays, metadata = parse_safetensors(tmp_path / "best.safetensors")
    assert arrays.keys() == trained.model.state_dict().keys()
    assert json.loads(metadata["headstart"])["of"] == RUN
    for name, tensor in trained.model.state_dict().items():
        np.testing.assert_array_equal(arrays[name], tensor.numpy())
    files = [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()]
    assert sorted(files) == ["best.safetensors", "last/checkpoint.safetensors"]


def test_weights_round_trip_whatever_their_memory_layout(tmp_path: Path):
    model, other = make_model(), make_model()
    with torch.no_grad():
        model[0].weight = nn.Parameter(torch.arange(35.0).reshape(5, 7).t())
        other[2].bias.fill_(9)
    assert not model[0].weight.is_contiguous()
    save_weights(tmp_path / "w.safetensors", model, RUN)
    load_weights(tmp_path / "w.safetensors", other, RUN)
    for name, tensor in model.state_dict().items():
        assert torch.equal(other.state_dict()[name], tensor)


def test_equal_weights_make_equal_bytes(tmp_path: Path):
    for name in ("a", "b"):
        save_weights(tmp_path / name, Trained(3).model, RUN)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_another_model_is_refused_and_nothing_is_changed(tmp_path: Path):
    trained, wider = Trained(3), Trained(2, width=8)
    trained.save(tmp_path, Progress(step=3))
    save_weights(tmp_path / "best.safetensors", trained.model, RUN)
    before = {name: tensor.clone() for name, tensor in wider.state().items()}
    shapes = r"0\.weight has shape \(7, 5\), not \(8, 5\)"
    with pytest.raises(UserError, match=shapes) as error:
        load_weights(tmp_path / "best.safetensors", wider.model, RUN)
    assert str(error.value).startswith(f"{tmp_path / 'best.safetensors'}: ")
    with pytest.raises(UserError, match=r"model\." + shapes) as error:
        wider.load(tmp_path)
    assert str(error.value).startswith(f"{tmp_path / 'last' / 'checkpoint.safetensors'}: ")
    assert all(torch.equal(wider.state()[name], tensor) for name, tensor in before.items())
    with pytest.raises(UserError, match=r"1\.weight is missing; 2\.bias is unknown; 2\.weight is unknown"):
        load_weights(tmp_path / "best.safetensors", nn.Sequential(nn.Linear(5, 7), nn.Linear(7, 3)), RUN)


@pytest.mark.parametrize("kept", [0, 5, 200, -1])
def test_a_truncated_file_is_named(tmp_path: Path, kept: int):
    trained = Trained(3)
    trained.save(tmp_path, Progress(step=3))
    path = tmp_path / "last" / "checkpoint.safetensors"
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(UserError) as error:
        Trained(0).load(tmp_path)
    remedy = "delete it, and --resume begins at the first step; or start a new run"
    assert re.fullmatch(rf"{re.escape(str(path))}: damaged \(.*\); {remedy}", str(error.value))


def test_a_damaged_number_is_found(tmp_path: Path):
    """The format has no checksum: without one, a flipped bit is another number."""
    trained, path = Trained(3), tmp_path / "best.safetensors"
    save_weights(path, trained.model, RUN)
    good = path.read_bytes()
    (length,) = struct.unpack("<Q", good[:8])
    for at in range(8 + length, len(good), 37):
        path.write_bytes(good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :])
        with pytest.raises(UserError) as error:
            load_weights(path, make_model(), RUN)
        assert str(error.value) == (
            f"{path}: damaged (its content is not what was written); copy it again from where the run was trained, or "
            "train again"
        )
    path.write_bytes(good)
    load_weights(path, make_model(), RUN)
    path.write_bytes(save(trained.model.state_dict()))  # by somebody else
    with pytest.raises(UserError, match="its header does not tell what was written"):
        load_weights(path, make_model(), RUN)


def test_weights_of_another_run_are_refused(tmp_path: Path):
    path = tmp_path / "best.safetensors"
    save_weights(path, make_model(), RUN)
    with pytest.raises(UserError) as error:
        load_weights(path, make_model(), RUN | {"dataset": "1" * 32})
    assert str(error.value) == (
        f"{path}: holds the weights of another run:\n  dataset: {'0' * 32} there, {'1' * 32} here\n"
        "Copy the file again from where this run was trained, or train again"
    )


@pytest.mark.parametrize("number", [torch.nan, torch.inf])
def test_weights_that_are_not_finite_are_refused(tmp_path: Path, number: float):
    model, path = make_model(), tmp_path / "best.safetensors"
    with torch.no_grad():
        model[2].weight[1, 2] = number
    save_weights(path, model, RUN)
    with pytest.raises(UserError, match=r"best\.safetensors: 2\.weight holds numbers that are not finite, so that all"):
        load_weights(path, make_model(), RUN)


def test_a_full_disk_names_the_file(tmp_path: Path):
    path = Path("/dev/full")
    with pytest.raises(OSError, match="No space left") as error, naming(tmp_path / "x.json"), path.open("wb") as file:
        file.write(b"x" * 10_000_000)
    assert in_words(error.value) == f"{tmp_path / 'x.json'}: no space left on device"


@contextmanager
def files_limited_to(size: int) -> Iterator[None]:
    """What a full disk does: no file grows beyond `size` bytes in this process."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_failing_write_leaves_the_old_checkpoint(tmp_path: Path):
    trained = Trained(2)
    trained.save(tmp_path, Progress(step=2))
    save_weights(tmp_path / "best.safetensors", trained.model, RUN)
    before = {name: tensor.clone() for name, tensor in trained.state().items()}
    old = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    trained.step(3)
    with files_limited_to(200):
        with pytest.raises(OSError, match="File too large"):
            trained.save(tmp_path, Progress(step=3))
        with pytest.raises(OSError, match="File too large"):
            save_weights(tmp_path / "best.safetensors", trained.model, RUN)
    assert len(old) == 2
    assert all(path.read_bytes() == content for path, content in old.items())
    assert Trained(0).load(tmp_path) == Progress(step=2)

    # what the failure left behind does not stand in the way of the next one
    trained.save(tmp_path, Progress(step=3))
    again = Trained(0)
    assert again.load(tmp_path) == Progress(step=3)
    assert not torch.equal(again.state()["model.0.weight"], before["model.0.weight"])
    assert [path.name for path in (tmp_path / "last").iterdir()] == ["checkpoint.safetensors"]


def test_a_kill_while_writing_leaves_the_old_file_or_the_new_one(tmp_path: Path):
    path, size = tmp_path / "file", 20_000_000
    code = f"""
import itertools, pathlib
from cache.files import in_words, naming, write_atomically
for letter in itertools.cycle("ab"):
    write_atomically(pathlib.Path({str(path)!r}), letter.encode() * {size})
"""
    for delay in (0.0, 0.031, 0.077):
        path.unlink(missing_ok=True)
        writer = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT)
        deadline = time.monotonic() + 60
        while not path.exists() and writer.poll() is None and time.monotonic() < deadline:
            time.sleep(0.002)
        time.sleep(delay)
        writer.send_signal(signal.SIGKILL)
        assert writer.wait() == -signal.SIGKILL
        content = path.read_bytes()
        assert content in (b"a" * size, b"b" * size)


def test_files_are_made_with_their_folder_and_replaced(tmp_path: Path):
    path = tmp_path / "deep" / "er" / "x.json"
    write_json(path, {"a": [1, None, 2.5]})
    assert json.loads(path.read_text()) == {"a": [1, None, 2.5]}
    # an open reader keeps the file it opened
    with path.open() as reader:
        write_atomically(path, b"new")
        assert json.loads(reader.read()) == {"a": [1, None, 2.5]}
    assert path.read_bytes() == b"new"
    assert os.listdir(path.parent) == ["x.json"]  # noqa: PTH208 - hidden files too


def records(steps: list[int]) -> list[str]:
    return [json.dumps({"kind": "train", "step": step, "loss": 1 / (step + 1)}) + "\n" for step in steps]


@pytest.mark.parametrize(
    ("written", "step", "kept"),
    [
        (records([1, 3, 6, 9]), 6, records([1, 3, 6])),
        (records([1, 3, 6, 9]), 9, records([1, 3, 6, 9])),
        (records([1, 3, 6, 9]), 8, records([1, 3, 6])),
        (records([1, 1, 3, 3]), 1, records([1, 1])),
        (records([1, 3]), 0, []),
        ([], 5, []),
        ([*records([1, 3]), '{"kind": "train", "st'], 3, records([1, 3])),
        ([*records([1, 3]), '{"kind": "train", "st'], 20, records([1, 3])),
        ([*records([1]), records([3])[0].rstrip("\n")], 3, records([1, 3])),
    ],
)
def test_metrics_end_with_the_checkpoint(tmp_path: Path, written: list[str], step: int, kept: list[str]):
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(written))
    keep_metrics_until(path, step)
    assert path.read_text() == "".join(kept)


def test_without_metrics_none_are_made(tmp_path: Path):
    keep_metrics_until(tmp_path / "metrics.jsonl", 5)
    assert list(tmp_path.iterdir()) == []


@settings(max_examples=100, deadline=None)
@given(steps=st.lists(st.integers(1, 40), max_size=12).map(sorted), cut=st.integers(0, 1000), until=st.integers(0, 45))
def test_metrics_after_a_kill_at_any_byte(tmp_path_factory: pytest.TempPathFactory, steps, cut, until):
    path = tmp_path_factory.mktemp("cut") / "metrics.jsonl"
    lines = records(steps)
    whole = "".join(lines)
    path.write_text(whole[:cut])
    keep_metrics_until(path, until)
    expected, length = "", 0
    for step, line in zip(steps, lines, strict=True):
        length += len(line)
        # a line that lacks nothing but its end is whole
        if step <= until and length - 1 <= cut:
            expected += line
    assert path.read_text() == expected
