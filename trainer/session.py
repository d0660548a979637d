"""One training session: from an open dataset to the summary, with the start explained line by line."""

from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from cache.console import Console
from cache.reader import Dataset
from configs.errors import UserError
from trainer.config import TrainerConfig, TrainingConfig
from trainer.data import WindowSource
from trainer.loop import train
from trainer.memory import out_of_memory_advice
from trainer.model import MaskedAutoencoder, model_info
from trainer.progress import TrainingBar
from trainer.runs import describe, write_json
from trainer.step import autocast, epoch_steps
from trainer.tasks import Reconstruct, reconstruct_task


@dataclass(frozen=True)
class Session:
    """A run that is ready to begin."""

    config: TrainingConfig
    source: WindowSource
    task: Reconstruct
    model: MaskedAutoencoder
    steps_per_epoch: int


def open_session(config: TrainerConfig, dataset: Dataset, console: Console) -> Session:
    """Map the windows and build the model. Raises UserError for settings that cannot work on this data or machine."""
    training = config.training
    with console.phase("map windows"):
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        if training.precision == "fp16" and device.type == "cpu":
            raise UserError("training.precision = fp16 needs a CUDA GPU, and there is none; use fp32 or bf16")
        source = WindowSource(dataset, device, training.accumulate)
        if training.overfit:  # what it is trained on is what it is tried on
            source.train = source.val = source.train[: training.overfit]
        steps_per_epoch = epoch_steps(training, source)
    with console.phase("build model"):
        task = reconstruct_task(config, dataset, device)
        try:
            model = task.build_model().to(device)
            task.check(source)
        except ValueError as error:
            raise UserError(str(error)) from None
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    console.line(
        f"  {dataset.name}: {len(source.train):,} training windows, {len(source.val):,} validation windows of "
        f"{' '.join(f'{name}×{length}' for name, length in dataset.seq_lens.items())}"
    )
    if device.type == "cuda":
        console.line(f"  batches are gathered on the {source.placement}: {source.reason}")
    console.line(f"  {model_info(model)} · {where} · {training.precision}")
    return Session(training, source, task, model, steps_per_epoch)


def one_batch(session: Session, size: int) -> None:
    """Forward and backward of a batch of `size` windows, as in training."""
    session.model.zero_grad(set_to_none=True)
    index = torch.arange(size) % len(session.source.train) + session.source.train.start
    with autocast(session.config.precision, session.source.device):
        loss = session.task.training_losses(session.model, session.source.gather(index), 0)["loss"]
    loss.backward()


def run_session(session: Session, path: Path, resume: bool, console: Console) -> None:
    """Train into the run directory `path`."""
    config, source = session.config, session.source
    with TrainingBar(console, session.steps_per_epoch, config.max_epochs) as bar, ExitStack() as until_first_step:
        until_first_step.enter_context(console.phase("first step"))

        def on_first_step() -> None:
            if source.device.type == "cuda":
                torch.cuda.synchronize()
            until_first_step.close()
            seconds = console.since_start()
            console.line(f"  {seconds:.2f} s from process start to the first step")
            write_json(path / "startup.json", {"phases": console.phases, "seconds_to_first_step": seconds})

        summary = None
        with suppress(torch.OutOfMemoryError):  # left before advice is sought: what it holds would not be freed
            summary = train(config, source, session.task, session.model, path, bar, resume, on_first_step)
        if summary is None:
            raise out_of_memory_advice(config, source.device, partial(one_batch, session))
    console.line(f"Done: {describe(summary)}. Look at it: bin/evaluate {path}")
