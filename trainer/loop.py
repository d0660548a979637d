"""The training loop."""

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from configs.errors import UserError
from trainer.batches import epoch_steps
from trainer.checkpoint import Progress, load_checkpoint, load_weights, save_checkpoint, save_weights
from trainer.config import TrainingConfig
from trainer.data import WindowSource
from trainer.memory import memory_use
from trainer.metrics_log import MetricsLog
from trainer.model import WindowModel
from trainer.optim import one_cycle
from trainer.progress import TrainingBar
from trainer.ranks import Ranks
from trainer.runs import write_json
from trainer.signals import StopRequest
from trainer.step import TrainingStep
from trainer.task import Task, check_measures


def train(
    config: TrainingConfig,
    source: WindowSource,
    task: Task,
    model: WindowModel,
    ranks: Ranks,
    run: Path,
    of: Mapping[str, Any],
    bar: TrainingBar,
    resume: bool,
    on_first_step: Callable[[], None],
    stop: StopRequest,
) -> dict[str, Any]:
    """Train into the directory `run` until `max_epochs` or until validation has not improved for
    `patience` epochs; returns the summary.

    `of` is what weights tell of their run (`trainer.described.identity`).

    Deterministic in (configuration, dataset, device): a resumed run repeats what an uninterrupted one would have done.
    Of several ranks the first writes, and validates while the others wait. Raises UserError when there are fewer
    windows than a batch has, or when gradients stay non-finite; KeyboardInterrupt, when all is saved, after `stop`.
    """
    steps_per_epoch = epoch_steps(config, source)
    total_steps = steps_per_epoch * config.max_epochs
    step = TrainingStep(config, source, task, model, one_cycle(total_steps, config.lr, config.warmup), ranks)
    progress = (
        load_checkpoint(run, model, step.optimizer, step.scaler, step.average) if resume else None
    ) or Progress()
    metrics = MetricsLog(run if ranks.main else None, progress.step, config.tensorboard)
    step.start_at(progress.step)

    model.train()
    first_step = progress.step
    skipped_before = int(step.optimizer.skipped)
    logged_at, logged_step = time.perf_counter(), progress.step
    stopped, baselines = stops_early(config, progress), dict[str, dict[str, float]]()
    measured = dict[str, dict[str, float]]()

    while progress.step < total_steps and not stopped:
        step.run()
        progress.step = step.done
        if progress.step == first_step + 1:
            on_first_step()
            if resume and ranks.main:
                bar.resumed(first_step)
        bar.step(progress.step)

        epoch, batch = divmod(progress.step - 1, steps_per_epoch)
        end_of_epoch = batch + 1 == steps_per_epoch
        save = end_of_epoch or progress.step % config.checkpoint_every == 0
        due = save or progress.step == 1 or progress.step % config.log_every == 0
        ending = ranks.any(stop.asked) if due or ranks.world == 1 else False  # several must agree, which takes a while
        if due or ending:
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
            metrics.write(record)
            bar.show(record["loss"], record["windows_per_second"])
            check_skipped(config, record["skipped"] - skipped_before, steps, step.log.first_fault(), steps_per_epoch)
            skipped_before = record["skipped"]
            if end_of_epoch or progress.step == 1:  # the first shows where learning begins, and that validation works
                validation: dict[str, float] = {"loss": 0.0, config.monitor: 0.0}
                if ranks.main:
                    with bar.validating() as advance, step.uncompiled(), step.averaged():
                        for name, part in source.parts().items():
                            if name not in baselines:
                                baselines[name] = task.baseline(part, advance)
                                check_measures(config.task, "baseline", baselines[name])
                            found = task.validate(model, part, advance)
                            check_measures(config.task, "validate", found, ("loss", config.monitor))
                            measured[name] = {**found, **baselines[name]}
                    for name, measures in measured.items():
                        metrics.write({"kind": name, "step": progress.step, "epoch": epoch + 1, **measures})
                    validation = measured["val"]
                    told = "; symbols held out: ".join(map(task.told, measured.values()))
                score = ranks.from_main(task.monitors[config.monitor] * validation[config.monitor])
                if score < progress.best_score - config.min_delta:
                    progress.best_score, progress.best_loss = score, validation["loss"]
                    progress.best_step, progress.stale_epochs = progress.step, 0
                    if ranks.main:
                        with step.averaged():
                            save_weights(run / "best.safetensors", model, of)
                else:
                    progress.stale_epochs += 1
                if ranks.main:
                    bar.result(progress.step, told, progress.stale_epochs == 0)
                stopped = stops_early(config, progress)
            if ranks.main and (save or ending):
                save_checkpoint(run, model, step.optimizer, step.scaler, progress, step.average)
            if ending:
                raise KeyboardInterrupt(f"interrupted at step {progress.step:,} of {total_steps:,}")
            logged_at, logged_step = time.perf_counter(), progress.step

    metrics.close()
    summary = {
        "steps": progress.step,
        "epochs": progress.step // steps_per_epoch,
        "monitor": config.monitor,
        "best": task.monitors[config.monitor] * progress.best_score,
        "best_loss": progress.best_loss,
        "best_step": progress.best_step,
        "overfit": config.overfit is not None,
        "stopped_early": stopped,
        "skipped_steps": int(step.optimizer.skipped),
    }
    if ranks.main:
        with bar.validating() as advance, step.uncompiled():
            untrained = task.build_model().to(source.device)
            summary["untrained_loss"] = task.validate(untrained, source, advance)["loss"]
            if progress.best_step:
                load_weights(run / "best.safetensors", model, of)
                finished = task.finish(model, source, run, advance)
                check_measures(config.task, "finish", finished)
                summary |= finished
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
        wider = ", or train with training.precision=bf16 or fp32" if config.precision == "fp16" else ""
        raise UserError(
            f"{skipped} of the last {steps} steps had non-finite gradients and were skipped{where}; lower training.lr"
            f"{wider}"
        )


def with_shares(losses: dict[str, float | None], task: Task) -> dict[str, float | None]:
    """The losses, and as `share/NAME` what part of the total each term makes up by its weight."""
    total, weights = losses["loss"], task.weights
    parts = {name: value for name, value in losses.items() if name != "loss"}
    shares = {
        f"share/{name}": weights[name] * value / total
        for name, value in parts.items()
        if name in weights and value and total
    }
    return {**losses, **shares}
