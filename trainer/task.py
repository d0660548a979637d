"""What the training loop asks of a task; it knows no other thing about it.

`Reconstruct` (trainer/reconstruct.py) and `Classify` (trainer/classify.py) are the two that come with Headstart; a task
of a user's own derives from `Task`, and takes over what stands here of some methods.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from trainer.data import Batch, WindowSource
from trainer.model import WindowModel

Advance = Callable[[int], object]


class Task(Protocol):
    """What to feed the model, its loss, and what validation compares it with."""

    @property
    def monitors(self) -> Mapping[str, int]:
        """The measures of validation that `training.monitor` may name; 1 where lower is better, −1 where higher is."""
        return {"loss": 1}

    @property
    def weights(self) -> Mapping[str, float]:
        """What each term of the loss counts."""
        return {}

    def compiled(self) -> "Task":
        """The same with what of its losses is many small kernels fused by torch.compile."""
        return self

    def build_model(self) -> WindowModel:
        """The model, initialised from the seed. Raises ValueError for dimensions that do not fit."""
        raise NotImplementedError

    def check(self, source: WindowSource) -> list[str]:
        """Raise ValueError where something that was asked for has nothing to work on, with the reason.

        Gives what is to be said about the rest before training begins.
        """
        return []

    def drawn(self, batch: Batch, epoch: int | Tensor) -> list[Tensor]:
        """What a step makes of a batch before the model sees it; on a GPU, beside the step before.

        Free of host synchronisation and of shapes that depend on data, and a function of seed, epoch and batch.
        """
        return []

    def training_losses(self, model: Any, batch: Batch, drawn: list[Tensor]) -> dict[str, Tensor]:
        """The terms of one batch's loss by name, and as `loss` what is to be lowered; float32 scalars.

        Free of host synchronisation too.
        """

    def validate(self, model: Any, source: WindowSource, advance: Advance) -> dict[str, float]:
        """The measures of the validation windows, among them those of `monitors`; `advance` hears of windows done."""
        raise NotImplementedError

    def baseline(self, source: WindowSource, advance: Advance) -> dict[str, float]:
        """Measures, by names of their own, of what needs no model, over the same windows."""
        return {}

    def told(self, validation: Mapping[str, float]) -> str:
        """A validation, with its baseline, in a line for people."""
        return "validation " + ", ".join(f"{name.replace('_', ' ')} {value:.4f}" for name, value in validation.items())

    def finish(self, model: Any, source: WindowSource, run: Path, advance: Advance) -> dict[str, float]:
        """Write what a finished run leaves besides its weights, given the model with the best ones; what to sum up."""
        return {}
