"""What a run writes down as it goes: metrics.jsonl, and the same numbers for TensorBoard where that is asked for."""

import json
from pathlib import Path
from typing import Any

from cache.files import naming
from configs.errors import UserError
from trainer.runs import keep_metrics_until


class MetricsLog:
    """One JSON object a line in metrics.jsonl, from step `step` on; numbers that are not finite are null there.

    With `tensorboard`, scalars `train/NAME` and `val/NAME` go to the same folder. TensorBoard is imported after the
    first step, which it would delay. Raises UserError where it is not installed. `run` is None for processes that do
    not write.
    """

    def __init__(self, run: Path | None, step: int, tensorboard: bool) -> None:
        self._run = run
        self._tensorboard = tensorboard and run is not None
        self._writer: Any = None
        if run is not None:
            keep_metrics_until(run / "metrics.jsonl", step)

    def write(self, record: dict[str, Any]) -> None:
        """Add a record with its `kind` and `step`."""
        if self._run is None:
            return
        finite = {name: None if value != value else value for name, value in record.items()}
        path = self._run / "metrics.jsonl"
        with naming(path), path.open("a") as file:
            file.write(json.dumps(finite) + "\n")
        if self._tensorboard:
            self._writer = self._writer or _open_writer(self._run)
            for name, value in finite.items():
                if isinstance(value, int | float) and name not in ("step", "epoch"):
                    self._writer.add_scalar(f"{record['kind']}/{name}", value, record["step"])

    def close(self) -> None:
        """Write what TensorBoard still holds back."""
        if self._writer is not None:
            self._writer.close()


def _open_writer(run: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise UserError(
            "training.tensorboard = true needs TensorBoard, which is not there: run bin/install viz, or leave it out; "
            "metrics.jsonl has the same numbers"
        ) from None
    return SummaryWriter(str(run))
