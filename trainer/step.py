"""One optimizer step: gather → mask → forward → loss → backward → unscale → clip → update.

It depends on nothing but the seed and the step's number, changes only tensors that stay where they are, and never waits
for the device. So on a GPU it is captured once, as a CUDA graph, and from then on replayed: one launch instead of
thousands. With `training.step: compile`, torch.compile fuses its parts before they are captured.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from trainer.average import WeightAverage
from trainer.batches import Batches, Drawn
from trainer.config import TrainingConfig
from trainer.data import WindowSource
from trainer.losslog import LossLog
from trainer.model import WindowModel
from trainer.optim import AdamW, LossScaler, clip_gradients
from trainer.ranks import Ranks
from trainer.task import Task, check_losses

# Before the graph is captured: libraries choose their kernels, and allocate, in the first ones. DistributedDataParallel
# wants eleven.
_EAGER_STEPS = {False: 3, True: 11}


class TrainingStep:
    """The step of one run, and all that it changes besides the model.

    Attributes:
        done: steps done, as the host counts them.
        optimizer, scaler, log: theirs are the tensors that checkpoints and log lines tell of.
        average: of the weights, where it is asked for.
        norm: of the last gradients before clipping, a float32 scalar tensor.
    """

    def __init__(
        self,
        config: TrainingConfig,
        source: WindowSource,
        task: Task,
        model: WindowModel,
        rates: Tensor,
        ranks: Ranks,
    ) -> None:
        """`rates`: the learning rate of every step, float [steps]."""
        self.config, self.source, self.ranks = config, source, ranks
        self.task: Task = task
        self._compiled = config.step == "compile" and source.device.type == "cuda"
        if kernels_wanted(config, source.device) and not model.without_kernels():
            model.use_kernels()
        if self._compiled:
            self.task = task.compiled()
            model.compile_regions()
        betas = config.betas[0], config.betas[1]
        self.optimizer = AdamW(model.named_parameters(), config.lr, config.weight_decay, betas)
        self.scaler = LossScaler(config.precision == "fp16", source.device)
        self.average = WeightAverage(model, config.ema_decay) if config.ema_decay else None
        self.model = ranks.wrap(model)
        self.log = LossLog(ranks)
        self.norm = torch.zeros((), device=source.device)
        self.done = 0
        self._rates = rates.to(source.device, torch.float32)
        self._number = torch.zeros((), dtype=torch.int64, device=source.device)
        self._graph: torch.cuda.CUDAGraph | None = None
        self._eager_steps = 0
        self._batches = Batches(config, source, self.task, ranks)
        self._ready: list[Drawn] = []  # the batches of the next step
        self._side = torch.cuda.Stream(source.device) if source.device.type == "cuda" else None

    def start_at(self, step: int) -> None:
        """Do this step, counted from 0, next."""
        self.done = step
        self._ready = []
        self._number.fill_(step)

    def uncompiled(self) -> AbstractContextManager[Any]:
        """For validation: the model as it is, since other batch sizes would be compiled anew."""
        return torch.compiler.set_stance("force_eager") if self._compiled else nullcontext()

    def averaged(self) -> AbstractContextManager[Any]:
        """The model with averaged weights, if any."""
        return self.average.applied() if self.average else nullcontext()

    def run(self) -> None:
        """Do the next step."""
        torch.manual_seed((self.config.seed << 32) + self.done)  # dropout, too, depends on nothing but seed and step
        if self._side is None or not self._ready:
            self._ready = self._batches.first(self.done, self._number)
        if self._side is not None:
            self._batches.provide(self.done + 1)
        if self._graph is not None:
            self._graph.replay()
        elif self._captures and self._eager_steps == _EAGER_STEPS[self.ranks.world > 1]:
            self._capture()
        else:
            self._body()
            self._eager_steps += 1
        self.done += 1

    @property
    def _captures(self) -> bool:
        return self.source.device.type == "cuda" and self.config.step != "eager"

    def _capture(self) -> None:
        """Capture the step, and do it."""
        self.model.zero_grad(set_to_none=True)  # gradients belong to the graph from now on
        torch.cuda.empty_cache()  # of the eager steps, for the graph has its own memory
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):  # NCCL's own thread may go on
            self._body()
        self._graph.replay()

    def _body(self) -> None:
        """What the device does in a step: train on the batches that are ready and, beside it, draw the next ones."""
        if self._side is None:
            self._train()
        else:
            self._side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self._side):
                following = self._batches.draw(self._number + 1)
            self._train()
            torch.cuda.current_stream().wait_stream(self._side)
            for ready, drawn in zip(self._ready, following, strict=True):  # where the graph finds them
                torch._foreach_copy_(ready.tensors(), drawn.tensors())
        self._number += 1

    def _train(self) -> None:
        config, optimizer = self.config, self.optimizer
        self.model.zero_grad(set_to_none=True)
        optimizer.lr.copy_(self._rates.index_select(0, self._number.view(1)).view(()))
        for part, ready in enumerate(self._ready, start=1):
            with self.ranks.unsynchronised(self.model, last=part == config.accumulate):
                with autocast(config.precision, self.source.device):
                    losses = self.task.training_losses(self.model, ready.batch, ready.of_task)
                if not self.done:
                    check_losses(config.task, losses)
                self.scaler.scale(losses["loss"] / config.accumulate).backward()
            self.log.add(losses, self._number + 1)
        gradients = optimizer.gradients()
        found_inf = self.scaler.unscale(gradients)
        self.norm.copy_(clip_gradients(gradients, config.clip_norm))
        optimizer.step(found_inf)
        self.scaler.update(found_inf)
        if self.average:
            self.average.update(self._number)

    def load_next(self) -> None:
        """Fetch the batches of a step and drop them: what fetching costs."""
        self._batches.provide(self.done)
        self._batches.load(self._number)


def kernels_wanted(config: TrainingConfig, device: torch.device) -> bool:
    """Whether the model's blocks are to be done by Triton kernels, if they can be."""
    return device.type == "cuda" and config.precision != "fp32" and config.step != "eager"


def autocast(precision: str, device: torch.device) -> AbstractContextManager[Any]:
    """Automatic mixed precision, or nothing for fp32."""
    if precision == "fp32":
        return nullcontext()
    return torch.autocast(device.type, torch.bfloat16 if precision == "bf16" else torch.float16)
