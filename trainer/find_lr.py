"""The learning-rate range test (Smith 2017, "Cyclical learning rates", section 3.3).

The rate rises by a constant factor a step from far too low to far too high; the loss first stays, then falls, then
explodes. A good peak for One-Cycle lies well before its lowest point.
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from trainer.loop import autocast, train_windows
from trainer.optim import AdamW, LossScaler, clip_gradients
from trainer.runs import write_json
from trainer.session import Session

LOWEST, HIGHEST, STEPS = 1e-6, 1.0, 150
SMOOTHING = 0.9
EXPLODED = 4.0  # times the lowest loss


def find_lr(session: Session, advance: Callable[[int], object]) -> dict[str, Any]:
    """{"lr": [...], "loss": [...] (smoothed), "suggestion": …}; the model is worthless afterwards.

    The suggestion is a tenth of the rate with the lowest smoothed loss. `advance` hears of every step.
    """
    config, source, task, model = session.config, session.source, session.task, session.model
    optimizer = AdamW(model.named_parameters(), LOWEST, config.weight_decay, (config.betas[0], config.betas[1]))
    scaler = LossScaler(config.precision == "fp16", source.device)
    rates: list[float] = []
    losses: list[float] = []
    smooth = 0.0
    model.train()
    for step in range(STEPS):
        rate = LOWEST * (HIGHEST / LOWEST) ** (step / (STEPS - 1))
        optimizer.lr.fill_(rate)
        index = train_windows(config, source, 0, step % session.steps_per_epoch)
        with autocast(config.precision, source.device):
            loss = task.training_losses(model, source.gather(index), 0)["loss"]
        scaler.scale(loss).backward()
        found_inf = scaler.unscale(optimizer.gradients())
        clip_gradients(optimizer.gradients(), config.clip_norm)
        optimizer.step(found_inf)
        scaler.update(found_inf)
        model.zero_grad(set_to_none=True)
        advance(1)
        value = float(loss.detach())
        if not math.isfinite(value):
            break
        smooth = SMOOTHING * smooth + (1 - SMOOTHING) * value
        rates.append(rate)
        losses.append(smooth / (1 - SMOOTHING ** (step + 1)))
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
