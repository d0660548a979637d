"""What training shows: one bar an epoch, and one line that stays for every validation."""

import time
from typing import Any

from cache.console import Console


class EpochBar:
    """Shows steps, loss and windows per second while an epoch runs, then its result beside the baseline."""

    def __init__(self, console: Console, steps_per_epoch: int, epochs: int) -> None:
        self._console, self._steps, self._epochs = console, steps_per_epoch, epochs
        self._bar: Any = None
        self._began = time.perf_counter()

    def show(self, step: int, loss: float, windows_per_second: float) -> None:
        """Bring the bar to optimizer step `step` (counted over all epochs, from 1)."""
        if self._bar is None:
            epoch = (step - 1) // self._steps + 1
            self._bar = self._console.bar(f"  epoch {epoch}/{self._epochs}", "steps", self._steps)
        self._bar.set_postfix_str(f"loss {loss:.4f}, {windows_per_second:,.0f} windows/s", refresh=False)
        self._bar.update((step - 1) % self._steps + 1 - self._bar.n)

    def validated(self, step: int, validation: dict[str, float], best: bool) -> None:
        """Replace the bar by the result."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None
        self._console.line(
            f"  step {step:>6,} of {self._steps * self._epochs:,}  {time.perf_counter() - self._began:6.1f} s  "
            f"validation loss {validation['loss']:.4f} (last value carried: {validation['last_value_loss']:.4f})"
            f"{'  best' if best else ''}"
        )
