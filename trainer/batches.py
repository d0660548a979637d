"""The batches of training steps, one step ahead of the device.

Which windows a step takes depends on nothing but the seed and the step's number. On a GPU that holds the streams, the
device looks their numbers up in a table and gathers. Where the host gathers, a batch goes through pinned memory while
the step before runs.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from configs.errors import UserError
from trainer.config import TrainingConfig
from trainer.data import Batch, WindowSource
from trainer.order import batch_indices
from trainer.ranks import Ranks
from trainer.task import Task

OVERFIT_STEPS = 100  # an epoch, where nothing else is said
_AHEAD = 32  # steps whose window numbers are drawn at once: it takes some hundred kernels, however many


@dataclass(frozen=True)
class Drawn:
    """A batch, and what the task has drawn for it."""

    batch: Batch
    of_task: list[Tensor]

    def tensors(self) -> list[Tensor]:
        """All of them."""
        return [*self.batch.tensors(), *self.of_task]


class Batches:
    """The batches of every step of one run and rank: `provide` for a step on the host, then `draw` on the device."""

    def __init__(self, config: TrainingConfig, source: WindowSource, task: Task, ranks: Ranks) -> None:
        self._config, self._source, self._task, self._ranks = config, source, task, ranks
        self._steps_per_epoch = epoch_steps(config, source)
        self._numbers = torch.empty(0)  # window numbers, int64 [_AHEAD, accumulate, B], of the steps of this table:
        self._table: int | None = None
        staged = source.device.type == "cuda" and source.placement == "host"
        self._copies = torch.cuda.Stream(source.device) if staged else None
        self._staged: list[list[Tensor]] = []  # what the host has fetched of the batches of a step

    def provide(self, step: int) -> None:
        """Put where the device finds it what `draw` needs for a step: the windows' numbers or, from the host, all."""
        self._tabulate(step)
        if self._copies is None:
            return
        here = torch.cuda.current_stream()
        with torch.cuda.stream(self._copies):  # beside the step before
            fetched = [self._source.fetch(part) for part in self._numbers[step % _AHEAD]]
        here.wait_stream(self._copies)
        for tensors in fetched:
            tensors[0].record_stream(here)  # their memory, which they share, stays until it is copied
        self._staged = self._staged or [[torch.empty_like(one) for one in tensors] for tensors in fetched]
        for staged, tensors in zip(self._staged, fetched, strict=True):
            torch._foreach_copy_(staged, tensors)

    def load(self, number: Tensor) -> list[list[Tensor]]:
        """What the store holds of the batches of step `number` (an int64 scalar), on the device."""
        if self._copies is not None:
            return self._staged
        index = self._numbers.index_select(0, (number % _AHEAD).view(1))[0]
        return [self._source.fetch(part) for part in index]

    def draw(self, number: Tensor) -> list[Drawn]:
        """The batches of step `number`, one for each part that is accumulated."""
        epoch = torch.zeros_like(number) if self._config.overfit else number // self._steps_per_epoch
        batches = [self._source.batch(fetched) for fetched in self.load(number)]
        return [Drawn(batch, self._task.drawn(batch, epoch)) for batch in batches]

    def first(self, step: int, number: Tensor) -> list[Drawn]:
        """The batches of step `step`, by which others can be replaced: they share no memory with those."""
        self.provide(step)
        drawn = self.draw(number)
        self._staged = []
        return drawn

    def _tabulate(self, step: int) -> None:
        """Tell the window numbers of all steps that share a table with this one, unless they are there."""
        if step // _AHEAD == self._table:
            return
        self._table, config, source = step // _AHEAD, self._config, self._source
        steps = torch.arange(_AHEAD, device=source.home)[:, None, None] + self._table * _AHEAD
        parts = torch.arange(config.accumulate, device=source.home)[:, None]
        epoch, step_of_epoch = steps // self._steps_per_epoch, steps % self._steps_per_epoch
        batch = step_of_epoch * config.accumulate + parts
        found = train_windows(config, source, epoch, batch, self._ranks.rank, self._ranks.world)
        if self._numbers.numel():
            self._numbers.copy_(found)  # where the graph reads them
        else:
            self._numbers = found.contiguous()


def train_windows(
    config: TrainingConfig, source: WindowSource, epoch: Tensor, batch: Tensor, rank: int = 0, world: int = 1
) -> Tensor:
    """A rank's window numbers of batches of epochs [..., 1], int64 [..., batch_size / world], on their device.

    With `overfit`, the same few windows always.
    """
    size, device = config.batch_size // world, batch.device
    if config.overfit:
        same = (torch.arange(size, device=device) + rank * size) % len(source.train)
        return source.train.at(same).expand(*batch.shape[:-1], -1)
    block = config.shuffle_block
    places = batch_indices(batch, size, len(source.train), config.seed, epoch, rank, world, device, block)
    return source.train.at(places, epoch)


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
