"""The learning-rate range test (Smith 2017, "Cyclical learning rates", section 3.3).

The rate rises by a constant factor a step from far too low to far too high; the loss first stays, then falls, then
explodes. A good peak for One-Cycle lies well before its lowest point.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from trainer.runs import write_json
from trainer.session import Session
from trainer.step import TrainingStep

LOWEST, HIGHEST, STEPS = 1e-6, 1.0, 150
SMOOTHING = 0.9
EXPLODED = 4.0  # times the lowest loss


def find_lr(session: Session, advance: Callable[[int], object]) -> dict[str, Any]:
    """{"lr": [...], "loss": [...] (smoothed), "suggestion": …}; the model is worthless afterwards.

    The suggestion is a tenth of the rate with the lowest smoothed loss. `advance` hears of every step.
    """
    wanted = LOWEST * (HIGHEST / LOWEST) ** torch.linspace(0, 1, STEPS, dtype=torch.float64)
    step = TrainingStep(session.config, session.source, session.task, session.model, wanted, session.ranks)
    rates: list[float] = []
    losses: list[float] = []
    smooth = 0.0
    session.model.train()
    for rate in wanted.tolist():
        step.run()
        advance(1)
        value = step.log.take()["loss"]
        if value is None:
            break
        smooth = SMOOTHING * smooth + (1 - SMOOTHING) * value
        rates.append(rate)
        losses.append(smooth / (1 - SMOOTHING**step.done))
        if losses[-1] > EXPLODED * min(losses):
            break
    return {"lr": rates, "loss": losses, "suggestion": rates[losses.index(min(losses))] / 10}


def write_lr_range(found: dict[str, Any], folder: Path) -> list[Path]:
    """lr_range.json and, where matplotlib is installed, lr_range.png. Returns the paths."""
    folder.mkdir(parents=True, exist_ok=True)
    written = [folder / "lr_range.json"]
    write_json(written[0], found)
    try:
        from matplotlib.figure import Figure  # an extra: the figures are in the JSON too
    except ImportError:
        return written
    figure = Figure(figsize=(6, 3.6), layout="constrained")
    axes = figure.subplots()
    axes.plot(found["lr"], found["loss"])
    label = f"a tenth of the best: {found['suggestion']:.1e}"
    axes.axvline(found["suggestion"], color="tab:orange", linestyle="--", label=label)
    axes.set(xscale="log", xlabel="learning rate", ylabel="training loss (smoothed)")
    axes.legend(frameon=False)
    written.append(folder / "lr_range.png")
    figure.savefig(written[1], dpi=120)
    return written
