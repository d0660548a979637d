"""The moving average of a model's weights, which validation and the kept weights may use in place of the last ones."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class WeightAverage:
    """Exponential moving average of a model's parameters.

    At update n it keeps min(decay, (1 + n) / (10 + n)) of itself, so that the first weights are soon forgotten (as
    TensorFlow's ExponentialMovingAverage does).
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self._live = [parameter.detach() for parameter in model.parameters()]
        self._names = [name for name, _ in model.named_parameters()]
        self._average = [one.clone() for one in self._live]

    @torch.no_grad()
    def update(self, number: Tensor) -> None:
        """Take in the weights after step `number` (an int64 scalar tensor, counted from 0)."""
        share = 1 - ((1 + number) / (10 + number)).clamp(max=self.decay)
        difference = torch._foreach_sub(self._live, self._average)
        torch._foreach_mul_(difference, share)
        torch._foreach_add_(self._average, difference)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Have the model use the average."""
        kept = [one.clone() for one in self._live]
        torch._foreach_copy_(self._live, self._average)
        try:
            yield
        finally:
            torch._foreach_copy_(self._live, kept)

    def state_tensors(self) -> dict[str, Tensor]:
        """Give the average by name, for a checkpoint: the live tensors."""
        return dict(zip(self._names, self._average, strict=True))
