"""One training session: from an open dataset to the summary, with the start explained line by line."""

from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from cache.console import Console
from cache.reader import Dataset
from configs.errors import UserError
from trainer.batches import epoch_steps
from trainer.checkpoint import has_checkpoint
from trainer.compiled import CompiledEntry
from trainer.config import TrainerConfig, TrainingConfig
from trainer.data import WindowSource
from trainer.described import describe_encoder, identity, uneven_latents
from trainer.initialise import load_backbone
from trainer.loop import train
from trainer.memory import out_of_memory_advice
from trainer.model import WindowModel
from trainer.model_size import model_info
from trainer.progress import TrainingBar
from trainer.ranks import Ranks, join_ranks, part_ways
from trainer.runs import write_json
from trainer.signals import stop_request
from trainer.step import autocast, kernels_wanted
from trainer.task import Task
from trainer.tasks import make_task


@dataclass(frozen=True)
class Session:
    """A run that is ready to begin."""

    config: TrainingConfig
    source: WindowSource
    task: Task
    model: WindowModel
    ranks: Ranks
    steps_per_epoch: int
    compiled: CompiledEntry | None
    described: dict[str, Any]


def open_session(config: TrainerConfig, dataset: Dataset, console: Console, fold: int | None = None) -> Session:
    """Map the windows and build the model. Raises UserError for settings that cannot work on this data or machine."""
    training = config.training
    with console.phase("map windows"):
        ranks = join_ranks()
        device = ranks.device
        if training.precision == "fp16" and device.type == "cpu":
            raise UserError("training.precision = fp16 needs a CUDA GPU, and there is none; use fp32 or bf16")
        torch.backends.cuda.enable_cudnn_sdp(False)  # its attention adds up gradients in any order
        if training.batch_size % ranks.world:
            raise UserError(
                f"training.batch_size = {training.batch_size} does not divide among {ranks.world} devices; it counts "
                "the windows of all of them"
            )
        source = WindowSource(dataset, device, training.accumulate, fold)
        if training.overfit:  # what it is trained on is what it is tried on
            if training.overfit > len(source.train):
                console.line(f"  training.overfit = {training.overfit}: there are only {len(source.train):,} windows")
            source.overfit(training.overfit)
        steps_per_epoch = epoch_steps(training, source)
    with console.phase("build model"):
        task = make_task(config, dataset, device, fold)
        if training.monitor not in task.monitors:
            raise UserError(
                f"training.monitor = {training.monitor} is not measured by training.task = {training.task} on "
                f"{dataset.name}; choose {', '.join(task.monitors)}"
            )
        try:
            model = task.build_model().to(device)
            remarks = task.check(source)
        except ValueError as error:
            raise UserError(str(error)) from None
    where = f"CPU, {torch.get_num_threads()} threads"
    if device.type == "cuda":
        memory = torch.cuda.get_device_properties(device).total_memory / 2**30
        where = f"{torch.cuda.get_device_name(device)} ({memory:.0f} GiB)"
    where = where if ranks.world == 1 else f"{ranks.world} × {where}"
    compiled = None
    if device.type == "cuda" and training.step == "compile":
        compiled = CompiledEntry(dataset, config, where)
        with console.phase("load what was compiled"):
            compiled.load()
    weighted = len(source.train) != sum(map(len, source.train.ranges))
    console.line(
        f"  {dataset.name}{'' if fold is None else f', fold {fold} of {len(dataset.folds)}'}: {len(source.train):,} "
        f"training windows{', as weights have it' * weighted}, {len(source.val):,} validation windows of "
        f"{' '.join(f'{name}×{length}' for name, length in dataset.seq_lens.items())}"
    )
    if len(source.symbols) > 1:
        held_out = source.parts()["hold_out"].val if "hold_out" in source.parts() else None
        told = f"; {len(held_out):,} windows of {len(held_out.ranges)} held out validate too" if held_out else ""
        console.line(f"  {len(source.train.ranges)} of {len(source.symbols)} symbols train{told}")
    if device.type == "cuda":
        console.line(f"  batches are gathered on the {source.placement}: {source.reason}")
    console.line(f"  {model_info(model)} · {where} · {training.precision} · batches of {training.batch_size}")
    if counts := uneven_latents(dataset.seq_lens, config.model.latent_stride):
        remarks.append(f"windows have different numbers of latents ({counts}): Encoder and bin/encode need one for all")
    if kernels_wanted(training, device) and (reason := model.without_kernels()):
        remarks.append(f"steps take about twice as long without Triton's kernels: {reason}")
    for remark in remarks:
        console.line(f"  {remark}")
    described = describe_encoder(training.task, config.model.model_dump(), dataset, fold)
    return Session(training, source, task, model, ranks, steps_per_epoch, compiled, described)


def one_batch(session: Session, size: int) -> None:
    """Forward and backward of a batch of `size` windows, as in training."""
    session.model.zero_grad(set_to_none=True)
    index = session.source.train.at(torch.arange(size) % len(session.source.train))
    batch = session.source.gather(index)
    with autocast(session.config.precision, session.source.device):
        loss = session.task.training_losses(session.model, batch, session.task.drawn(batch, 0))["loss"]
    loss.backward()


def initialise(session: Session, path: Path, resume: bool, console: Console) -> dict[str, Any]:
    """Give the model the encoder that `training.init_from` names, if any, unless there is a checkpoint to go on from.

    Returns what encoder.json is to say, with what that encoder has seen. Raises UserError for a run whose encoder is of
    another kind.
    """
    if not session.config.init_from or (resume and has_checkpoint(path)):
        return session.described
    told, seen = load_backbone(Path(session.config.init_from), session.model, session.described)
    console.line(f"  {told}")
    return {**session.described, "seen": [*session.described["seen"], *seen]}


def run_session(session: Session, path: Path, resume: bool, console: Console) -> dict[str, Any]:
    """Train into the run directory `path`; the summary."""
    config, source = session.config, session.source
    first = "first step" not in console.phases
    with (
        TrainingBar(console, session.steps_per_epoch, config.max_epochs) as bar,
        stop_request() as stop,
        ExitStack() as until_first_step,
    ):
        until_first_step.enter_context(console.phase("compile and first step" if session.compiled else "first step"))

        def on_first_step() -> None:
            if source.device.type == "cuda":
                torch.cuda.synchronize()
            until_first_step.close()
            if not first:  # of several runs in one process
                return
            seconds = console.since_start()
            console.line(f"  {seconds:.2f} s from process start to the first step")
            if session.ranks.main:
                write_json(path / "startup.json", {"phases": console.phases, "seconds_to_first_step": seconds})
                if session.compiled:
                    session.compiled.save()

        summary = None
        with suppress(torch.OutOfMemoryError):  # left before advice is sought: what it holds would not be freed
            summary = train(
                config,
                source,
                session.task,
                session.model,
                session.ranks,
                path,
                identity(session.described),
                bar,
                resume,
                on_first_step,
                stop,
            )
        if summary is None:
            raise out_of_memory_advice(config, source.device, partial(one_batch, session))
    part_ways(session.ranks)
    return summary
