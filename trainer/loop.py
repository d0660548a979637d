"""The training loop."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from configs.errors import UserError
from trainer.checkpoint import Progress, load_checkpoint, save_checkpoint, save_weights
from trainer.config import TrainingConfig
from trainer.data import WindowSource
from trainer.memory import memory_use
from trainer.model import MaskedAutoencoder
from trainer.optim import one_cycle
from trainer.progress import TrainingBar
from trainer.runs import keep_metrics_until, write_json
from trainer.step import TrainingStep, epoch_steps
from trainer.tasks import Reconstruct


def train(
    config: TrainingConfig,
    source: WindowSource,
    task: Reconstruct,
    model: MaskedAutoencoder,
    run: Path,
    bar: TrainingBar,
    resume: bool,
    on_first_step: Callable[[], None],
) -> dict[str, Any]:
    """Train into the directory `run` until `max_epochs` or until validation has not improved for
    `patience` epochs; returns the summary.

    Deterministic in (configuration, dataset, device): a resumed run repeats what an uninterrupted one would have done.
    Raises UserError when there are fewer windows than a batch has, or when gradients stay non-finite.
    """
    steps_per_epoch = epoch_steps(config, source)
    total_steps = steps_per_epoch * config.max_epochs
    step = TrainingStep(config, source, task, model, one_cycle(total_steps, config.lr, config.warmup))
    progress = (load_checkpoint(run, model, step.optimizer, step.scaler) if resume else None) or Progress()
    metrics = run / "metrics.jsonl"
    keep_metrics_until(metrics, progress.step)
    step.start_at(progress.step)

    model.train()
    first_step = progress.step
    skipped_before = int(step.optimizer.skipped)
    logged_at, logged_step = time.perf_counter(), progress.step
    stopped, baseline = stops_early(config, progress), None

    while progress.step < total_steps and not stopped:
        step.run()
        progress.step = step.done
        if progress.step == first_step + 1:
            on_first_step()
        bar.step(progress.step)

        epoch, batch = divmod(progress.step - 1, steps_per_epoch)
        end_of_epoch = batch + 1 == steps_per_epoch
        save = end_of_epoch or progress.step % config.checkpoint_every == 0
        if save or progress.step == 1 or progress.step % config.log_every == 0:
            means = step.log.take()  # waits for the device
            steps, seconds = progress.step - logged_step, time.perf_counter() - logged_at
            record: dict[str, Any] = {
                "kind": "train",
                "step": progress.step,
                "epoch": epoch + 1,
                **with_shares(means, task),
                "lr": float(step.optimizer.lr),
                "grad_norm": float(step.norm),
                "skipped": int(step.optimizer.skipped),
                "windows_per_second": round(steps * config.batch_size * config.accumulate / seconds, 1),
                **memory_use(source.device),
            }
            append(metrics, record)
            bar.show(record["loss"], record["windows_per_second"])
            check_skipped(config, record["skipped"] - skipped_before, steps, step.log.first_fault(), steps_per_epoch)
            skipped_before = record["skipped"]
            if end_of_epoch or progress.step == 1:  # the first shows where learning begins, and that validation works
                with bar.validating() as advance, step.uncompiled():
                    baseline = baseline or task.baseline(source, advance)
                    validation = {**task.validate(model, source, advance), "last_value_loss": baseline}
                append(metrics, {"kind": "val", "step": progress.step, "epoch": epoch + 1, **validation})
                score = validation["loss"] if config.monitor == "loss" else -validation["correlation"]
                if score < progress.best_score - config.min_delta:
                    progress.best_score, progress.best_loss = score, validation["loss"]
                    progress.best_step, progress.stale_epochs = progress.step, 0
                    save_weights(run / "best.safetensors", model)
                else:
                    progress.stale_epochs += 1
                bar.result(progress.step, validation, progress.stale_epochs == 0)
                stopped = stops_early(config, progress)
            if save:
                save_checkpoint(run, model, step.optimizer, step.scaler, progress)
            logged_at, logged_step = time.perf_counter(), progress.step

    summary = {
        "steps": progress.step,
        "epochs": progress.step // steps_per_epoch,
        "best_loss": progress.best_loss,
        "best_step": progress.best_step,
        "stopped_early": stopped,
        "skipped_steps": int(step.optimizer.skipped),
    }
    write_json(run / "summary.json", summary)
    return summary


def stops_early(config: TrainingConfig, progress: Progress) -> bool:
    """Whether validation has not improved for too long."""
    return config.patience is not None and progress.stale_epochs >= config.patience


def check_skipped(
    config: TrainingConfig, skipped: int, steps: int, fault: tuple[str, int] | None, steps_per_epoch: int
) -> None:
    """Raise UserError when too many of the last steps had non-finite gradients; `fault` is a loss term and its step."""
    if skipped >= config.max_skipped or skipped == steps > 1:
        where = ""
        if fault:
            term, step = fault
            epoch, batch = divmod(step - 1, steps_per_epoch)
            where = (
                f". The first term of the loss that was not finite: {term}, at step {step:,} (epoch {epoch + 1}, "
                f"batch {batch + 1:,})"
            )
        raise UserError(
            f"{skipped} of the last {steps} steps had non-finite gradients and were skipped{where}; lower training.lr, "
            "or train with training.precision=bf16 or fp32"
        )


def with_shares(losses: dict[str, float | None], task: Reconstruct) -> dict[str, float | None]:
    """The losses, and as `share/NAME` what part of the total each term makes up by its weight."""
    total, weights = losses["loss"], task.config.loss.weights.model_dump()
    parts = {name: value for name, value in losses.items() if name != "loss"}
    shares = {f"share/{name}": weights[name] * value / total for name, value in parts.items() if value and total}
    return {**losses, **shares}


def append(path: Path, record: dict[str, Any]) -> None:
    """Add a line to metrics.jsonl."""
    with path.open("a") as file:
        file.write(json.dumps(record) + "\n")
