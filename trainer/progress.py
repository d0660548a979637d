"""What training shows: a bar an epoch, a bar a validation, and one line that stays for every result."""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from cache.console import Console


class TrainingBar:
    """Shows steps, loss and windows per second; a context manager, so that no bar outlives a failure."""

    def __init__(self, console: Console, steps_per_epoch: int, epochs: int) -> None:
        self._console, self._steps, self._epochs = console, steps_per_epoch, epochs
        self._open = ExitStack()
        self._bar: Any = None
        self._began = time.perf_counter()

    def __enter__(self) -> "TrainingBar":
        return self

    def __exit__(self, *failure: object) -> None:
        self._open.close()

    def step(self, step: int) -> None:
        """Bring the bar to optimizer step `step`, counted over all epochs, from 1."""
        if self._bar is None:
            epoch = (step - 1) // self._steps + 1
            self._bar = self._open.enter_context(
                self._console.bar(f"epoch {epoch}/{self._epochs}", "steps", self._steps)
            )
        self._bar.update((step - 1) % self._steps + 1 - self._bar.n)

    def show(self, loss: float | None, windows_per_second: float) -> None:
        """Write the latest figures beside the bar."""
        shown = "not finite" if loss is None else f"{loss:.4f}"
        self._bar.set_postfix_str(f"loss {shown}, {windows_per_second:,.0f} windows/s", refresh=False)

    @contextmanager
    def validating(self) -> Iterator[Callable[[int], object]]:
        """A bar in place of the epoch's; yields what is to be called with windows done."""
        self._open.close()
        self._bar = None
        with self._console.bar("validating", "windows") as bar:
            yield bar.update

    def resumed(self, step: int) -> None:
        """Say behind which step a run goes on."""
        total = self._steps * self._epochs
        self._console.line(
            f"  goes on behind step {step:,} of {total:,}" if step else "  there was no checkpoint yet: begins again"
        )

    def result(self, step: int, told: str, best: bool) -> None:
        """A line that stays."""
        self._console.line(
            f"  step {step:>6,} of {self._steps * self._epochs:,}  {time.perf_counter() - self._began:6.1f} s  "
            f"{told}{'  best' if best else ''}"
        )
