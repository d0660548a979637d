"""Averages of the loss terms between two log lines, kept on the device so that no step waits for them."""

import torch
from torch import Tensor


class LossLog:
    """Sums of every term over the steps in which it was finite, and where one was not for the first time."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, Tensor] = {}
        self._first_bad: dict[str, Tensor] = {}

    def add(self, losses: dict[str, Tensor], step: int) -> None:
        """Take in the terms (float scalars) of one batch of optimizer step `step`, counted from 1."""
        for name, value in losses.items():
            if name not in self._sums:
                self._sums[name], self._counts[name] = (torch.zeros((), device=self._device) for _ in range(2))
            if name not in self._first_bad:
                self._first_bad[name] = torch.zeros((), dtype=torch.int64, device=self._device)
            finite = torch.isfinite(value)
            self._sums[name] += torch.where(finite, value.detach(), 0)
            self._counts[name] += finite
            first = self._first_bad[name]
            first.copy_(torch.where(finite | (first > 0), first, step))

    def take(self) -> dict[str, float | None]:
        """The means since the last call (None where a term was never finite)."""
        means = {name: total / self._counts[name] for name, total in self._sums.items()}
        found = {name: float(mean) for name, mean in means.items()}
        self._sums, self._counts = {}, {}
        return {name: None if mean != mean else mean for name, mean in found.items()}

    def first_fault(self) -> tuple[str, int] | None:
        """The term that was not finite first, and the step; terms come before the total that they make."""
        faults = {name: int(step) for name, step in self._first_bad.items()}
        bad = [(step, name == "loss", name) for name, step in faults.items() if step]
        if not bad:
            return None
        step, _, name = min(bad)
        return name, step
