"""Averages of the loss terms between two log lines, kept on the device so that no step waits for them."""

import torch
from torch import Tensor

from trainer.ranks import Ranks


class LossLog:
    """Sums of every term over the steps in which it was finite, and where one was not for the first time.

    All of it is updated in place, so that a CUDA graph of the step can do it.
    """

    def __init__(self, ranks: Ranks) -> None:
        self._ranks = ranks
        self._names: tuple[str, ...] = ()
        self._sums = self._counts = self._first_bad = torch.empty(0)

    def add(self, losses: dict[str, Tensor], step: Tensor) -> None:
        """Take in the terms (float scalars, always the same) of one batch of optimizer step `step`, counted from 1."""
        if not self._names:
            self._names = tuple(losses)
            self._sums, self._counts = torch.zeros(2, len(losses), device=self._ranks.device)
            self._first_bad = torch.zeros(len(losses), dtype=torch.int64, device=self._ranks.device)
        values = torch.stack([losses[name].detach().float() for name in self._names])
        finite = torch.isfinite(values)
        self._sums += torch.where(finite, values, 0)
        self._counts += finite
        self._first_bad.copy_(torch.where(finite | (self._first_bad > 0), self._first_bad, step))

    def take(self) -> dict[str, float | None]:
        """The means since the last call, over all ranks, which must all ask (None where a term was never finite)."""
        for part in (self._sums, self._counts):
            self._ranks.add_up(part)
        means = (self._sums / self._counts).tolist()
        self._sums.zero_()
        self._counts.zero_()
        return {name: None if mean != mean else mean for name, mean in zip(self._names, means, strict=True)}

    def first_fault(self) -> tuple[str, int] | None:
        """The term that was not finite first, and the step; terms come before the total that they make."""
        faults = dict(zip(self._names, self._first_bad.tolist(), strict=True))
        bad = [(step, name == "loss", name) for name, step in faults.items() if step]
        if not bad:
            return None
        step, _, name = min(bad)
        return name, step
