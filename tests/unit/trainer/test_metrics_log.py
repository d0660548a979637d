import json
import math
import sys
from pathlib import Path

import pytest

from configs.errors import UserError
from trainer.metrics_log import MetricsLog


def test_lines_of_json_with_null_for_what_is_not_finite(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path, 0, tensorboard=False)
    log.write({"kind": "train", "step": 1, "loss": 0.5})
    log.write({"kind": "train", "step": 2, "loss": math.nan})
    log.close()
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["loss"] for line in lines] == [0.5, None]
    MetricsLog(tmp_path, 1, tensorboard=False)  # a resumed run writes the second line again
    assert (tmp_path / "metrics.jsonl").read_text().splitlines() == lines[:1]


def test_other_processes_write_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    log = MetricsLog(None, 0, tensorboard=True)
    log.write({"kind": "train", "step": 1, "loss": 0.5})
    log.close()
    assert not list(tmp_path.iterdir())


def test_without_tensorboard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(UserError, match=r"needs TensorBoard, which is not there: run bin/install viz, or leave it out"):
        MetricsLog(tmp_path, 0, tensorboard=True).write({"kind": "train", "step": 1, "loss": 0.5})


def test_scalars_for_tensorboard(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    log = MetricsLog(tmp_path, 0, tensorboard=True)
    log.write({"kind": "train", "step": 3, "epoch": 1, "loss": 0.25, "note": "text"})
    log.write({"kind": "val", "step": 3, "epoch": 1, "loss": 0.5})
    log.close()
    events = accumulator.EventAccumulator(str(tmp_path))
    events.Reload()
    assert events.Tags()["scalars"] == ["train/loss", "val/loss"]
    assert [(one.step, one.value) for one in events.Scalars("train/loss")] == [(3, 0.25)]
