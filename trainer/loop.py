"""The training loop."""

import json
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from configs.errors import UserError
from trainer.checkpoint import Progress, load_checkpoint, save_checkpoint, save_weights
from trainer.config import TrainingConfig
from trainer.data import WindowSource
from trainer.losslog import LossLog
from trainer.memory import memory_use
from trainer.optim import AdamW, LossScaler, clip_gradients, one_cycle
from trainer.order import batch_indices
from trainer.progress import TrainingBar
from trainer.runs import keep_metrics_until, write_json
from trainer.tasks import Reconstruct

OVERFIT_STEPS = 100  # an epoch, where nothing else is said


def train(
    config: TrainingConfig,
    source: WindowSource,
    task: Reconstruct,
    model: torch.nn.Module,
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
    optimizer = AdamW(model.named_parameters(), config.lr, config.weight_decay, (config.betas[0], config.betas[1]))
    scaler = LossScaler(config.precision == "fp16", source.device)
    progress = (load_checkpoint(run, model, optimizer, scaler) if resume else None) or Progress()
    metrics = run / "metrics.jsonl"
    keep_metrics_until(metrics, progress.step)

    model.train()
    first_step = progress.step
    log, skipped_before = LossLog(source.device), int(optimizer.skipped)
    logged_at, logged_step = time.perf_counter(), progress.step
    stopped, baseline = stops_early(config, progress), None

    while progress.step < total_steps and not stopped:
        epoch, batch = divmod(progress.step, steps_per_epoch)
        torch.manual_seed((config.seed << 32) + progress.step)  # dropout, too, depends on nothing but seed and step
        optimizer.lr.fill_(one_cycle(progress.step, total_steps, config.lr, config.warmup))
        for part in range(config.accumulate):
            index = train_windows(config, source, epoch, batch * config.accumulate + part)
            with autocast(config.precision, source.device):
                losses = task.training_losses(model, source.gather(index), 0 if config.overfit else epoch)
            scaler.scale(losses["loss"] / config.accumulate).backward()
            log.add(losses, progress.step + 1)
        gradients = optimizer.gradients()
        found_inf = scaler.unscale(gradients)
        norm = clip_gradients(gradients, config.clip_norm)
        optimizer.step(found_inf)
        scaler.update(found_inf)
        model.zero_grad(set_to_none=True)
        progress.step += 1
        if progress.step == first_step + 1:
            on_first_step()
        bar.step(progress.step)

        end_of_epoch = batch + 1 == steps_per_epoch
        save = end_of_epoch or progress.step % config.checkpoint_every == 0
        if save or progress.step == 1 or progress.step % config.log_every == 0:
            steps, seconds = progress.step - logged_step, time.perf_counter() - logged_at
            record: dict[str, Any] = {
                "kind": "train",
                "step": progress.step,
                "epoch": epoch + 1,
                **with_shares(log.take(), task),
                "lr": float(optimizer.lr),
                "grad_norm": float(norm),
                "skipped": int(optimizer.skipped),
                "windows_per_second": round(steps * config.batch_size * config.accumulate / seconds, 1),
                **memory_use(source.device),
            }
            append(metrics, record)
            bar.show(record["loss"], record["windows_per_second"])
            check_skipped(config, record["skipped"] - skipped_before, steps, log.first_fault(), steps_per_epoch)
            skipped_before = record["skipped"]
            if end_of_epoch or progress.step == 1:  # the first shows where learning begins, and that validation works
                with bar.validating() as advance:
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
                save_checkpoint(run, model, optimizer, scaler, progress)
            logged_at, logged_step = time.perf_counter(), progress.step

    summary = {
        "steps": progress.step,
        "epochs": progress.step // steps_per_epoch,
        "best_loss": progress.best_loss,
        "best_step": progress.best_step,
        "stopped_early": stopped,
        "skipped_steps": int(optimizer.skipped),
    }
    write_json(run / "summary.json", summary)
    return summary


def epoch_steps(config: TrainingConfig, source: WindowSource) -> int:
    """Optimizer steps an epoch. Raises UserError when the training split does not fill one."""
    if config.overfit:
        return config.steps_per_epoch or OVERFIT_STEPS
    windows = config.batch_size * config.accumulate
    available = len(source.train) // windows
    if not available:
        raise UserError(
            f"the training split has {len(source.train):,} windows, fewer than one step takes ({config.batch_size} × "
            f"{config.accumulate}); lower training.batch_size or training.accumulate"
        )
    return min(config.steps_per_epoch or available, available)


def train_windows(config: TrainingConfig, source: WindowSource, epoch: int, batch: int) -> Tensor:
    """Window numbers of a batch, int64 [batch_size], where the source wants them; with `overfit` the same few ones."""
    device = source.device if source.placement == "device" else torch.device("cpu")
    if config.overfit:
        return torch.arange(config.batch_size, device=device) % config.overfit + source.train.start
    places = batch_indices(batch, config.batch_size, len(source.train), config.seed, epoch, device=device)
    return places + source.train.start


def autocast(precision: str, device: torch.device) -> AbstractContextManager[Any]:
    """Automatic mixed precision, or nothing for fp32."""
    if precision == "fp32":
        return nullcontext()
    return torch.autocast(device.type, torch.bfloat16 if precision == "bf16" else torch.float16)


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
