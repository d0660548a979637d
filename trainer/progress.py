"""The progress bar of training: one bar an epoch, one line that stays when it ends."""

from typing import Any, TextIO

from tqdm import tqdm


class EpochBar:
    """Shows steps, loss and windows per second while an epoch runs, then one line beside the baseline."""

    def __init__(self, stream: TextIO, steps_per_epoch: int, epochs: int) -> None:
        self._stream, self._steps, self._epochs = stream, steps_per_epoch, epochs
        self._bar: Any = None

    def show(self, step: int, loss: float, windows_per_second: float) -> None:
        """Bring the bar to optimizer step `step` (counted over all epochs, from 1)."""
        if self._bar is None:
            self._bar = tqdm(total=self._steps, file=self._stream, leave=False, unit=" steps")
            self._bar.set_description(f"  epoch {(step - 1) // self._steps + 1}/{self._epochs}", refresh=False)
        self._bar.set_postfix_str(f"loss {loss:.4f}, {windows_per_second:,.0f} windows/s", refresh=False)
        self._bar.update((step - 1) % self._steps + 1 - self._bar.n)

    def end_epoch(self, epoch: int, validation: dict[str, float], best: bool) -> None:
        """Replace the bar by the epoch's result."""
        seconds = 0.0
        if self._bar is not None:
            seconds = self._bar.format_dict["elapsed"]
            self._bar.close()
            self._bar = None
        self._stream.write(
            f"  epoch {epoch}/{self._epochs}  validation loss {validation['loss']:.4f}  "
            f"(last value carried: {validation['last_value_loss']:.4f}){'  best' if best else ''}  {seconds:.0f} s\n"
        )
        self._stream.flush()
