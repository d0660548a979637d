"""The tasks there are: those of the trainer, and those of a user's own file."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from cache.plugin import load_plugin
from cache.reader import Dataset
from configs.errors import UserError
from trainer.classify import classify_task
from trainer.config import TrainerConfig, is_own_task
from trainer.reconstruct import reconstruct_task
from trainer.task import Task

TASKS: dict[str, Callable[..., Task]] = {"reconstruct": reconstruct_task, "classify": classify_task}
_METHODS = [name for name in vars(Task) if not name.startswith("_")]
_OWN = ("build_model", "training_losses", "validate")  # which Task leaves to every task


def make_task(config: TrainerConfig, dataset: Dataset, device: torch.device, fold: int | None = None) -> Task:
    """The task that `training.task` names, for a dataset or a fold of it. Raises UserError."""
    named = config.training.task
    if not is_own_task(named):
        return TASKS[named](config, dataset, device, fold)
    plugin = load_plugin(named)
    make = plugin.get("make_task", "the function from (config, dataset, device, fold) to a task (trainer/task.py)")
    with plugin.blamed():
        task: Any = make(config, dataset, device, fold)
    if missing := [name for name in _METHODS if not hasattr(task, name)]:
        raise UserError(
            f"{named}: make_task() gives a {type(task).__name__}, which lacks {', '.join(missing)}; derive its class "
            "from trainer.task.Task, which has the usual ones"
        )
    if missing := [name for name in _OWN if getattr(type(task), name, None) is getattr(Task, name)]:
        raise UserError(
            f"{named}: make_task() gives a {type(task).__name__}, whose class does not define {', '.join(missing)}; "
            "trainer/task.py says what each of them does"
        )
    made: Task = task
    return made


def blamed(config: TrainerConfig) -> AbstractContextManager[None]:
    """A context in which the faults of a user's own task are errors that name its file and line."""
    named = config.training.task
    return load_plugin(named).blamed() if is_own_task(named) else nullcontext()
