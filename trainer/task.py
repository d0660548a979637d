"""What the training loop asks of a task; it knows no other thing about it.

`Reconstruct` (trainer/reconstruct.py) and `Classify` (trainer/classify.py) are the two that come with Headstart; a task
of a user's own derives from `Task`, and takes over what stands here of some methods.
"""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from configs.errors import UserError
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
        """The measures of the validation windows, among them `loss` and those of `monitors`.

        `advance` hears of windows done.
        """
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


def check_losses(task: str, losses: Any) -> None:
    """Raise UserError, which names the `task`, where what `training_losses` gave cannot be learnt from."""
    what = f"{task}: training_losses()"
    if not isinstance(losses, dict) or "loss" not in losses:
        raise UserError(f"{what} gives no `loss`; it gives a dict of terms, and as `loss` what is to be lowered")
    for name, value in losses.items():
        if not (isinstance(value, Tensor) and value.ndim == 0):
            kind = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else repr(value)
            raise UserError(f"{what} gives {kind} as `{name}`; give a tensor that is one number")
    if not losses["loss"].requires_grad:
        raise UserError(f"{what} gives a `loss` that depends on no weight of the model; it cannot be lowered")


def check_measures(task: str, method: str, measures: Any, needed: Iterable[str] = ()) -> None:
    """Raise UserError, which names the `task`, where measures are not numbers by name, or lack a `needed` one."""
    if not isinstance(measures, dict):
        raise UserError(f"{task}: {method}() gives {measures!r}; it gives a dict of numbers by name")
    for name, value in measures.items():
        if not isinstance(value, int | float):
            raise UserError(f"{task}: {method}() gives {value!r} as `{name}`; give a float")
    for name in needed:
        if name not in measures:
            raise UserError(f"{task}: {method}() gives no `{name}`; it gives {', '.join(measures) or 'nothing'}")
