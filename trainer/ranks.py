"""Several processes, with a GPU each, that train one model: which of them this is, and what they tell each other.

They are started by torchrun, or by `bin/train --devices N`, which uses torchrun's own launcher. PyTorch's
DistributedDataParallel averages their gradients while the backward pass still runs.
"""

import os
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from configs.errors import UserError


@dataclass(frozen=True)
class Ranks:
    """This process among `world`; rank 0 validates, and writes whatever is written."""

    rank: int
    world: int
    device: torch.device

    @property
    def main(self) -> bool:
        """Whether this is rank 0."""
        return self.rank == 0

    def wrap(self, model: nn.Module) -> nn.Module:
        """The model as the step calls it: its gradients are the average over all ranks."""
        if self.world == 1:
            return model
        if self.device.type == "cpu":
            return DistributedDataParallel(model)
        torch.autograd.graph.set_warn_on_accumulate_grad_stream_mismatch(False)  # the mismatch is wanted:
        with torch.cuda.stream(torch.cuda.Stream()):  # not the default one, so that the step can be captured
            return DistributedDataParallel(model, device_ids=[self.device])

    def unsynchronised(self, model: nn.Module, last: bool) -> AbstractContextManager[Any]:
        """Leave averaging gradients to the last of several accumulated batches."""
        if last or not isinstance(model, DistributedDataParallel):
            return nullcontext()
        return model.no_sync()

    def add_up(self, tensor: Tensor) -> None:
        """Replace a tensor by its sum over all ranks, in place."""
        if self.world > 1:
            dist.all_reduce(tensor)

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on any rank; all must ask."""
        count = torch.tensor(float(flag), device=self.device)
        self.add_up(count)
        return float(count) > 0

    def from_main(self, value: float) -> float:
        """Rank 0's value, on all ranks; all must ask."""
        if self.world == 1:
            return value
        shared = torch.tensor(value, dtype=torch.float64, device=self.device)
        dist.broadcast(shared, 0)
        return float(shared)


def join_ranks() -> Ranks:
    """Meet the other processes, where torchrun has started several. Raises UserError for more than there are GPUs."""
    rank, world, local = (int(os.environ.get(name, default)) for name, default in _ENVIRONMENT)
    gpus = torch.cuda.device_count()
    if world > 1 and local >= gpus > 0:
        raise UserError(f"--devices wants a GPU for each process, and this machine has {gpus}; ask for that many")
    device = torch.device("cuda", local) if gpus else torch.device("cpu")
    if gpus:
        torch.cuda.set_device(device)
    if world > 1:
        dist.init_process_group("nccl" if gpus else "gloo", device_id=device if gpus else None)
    return Ranks(rank, world, device)


_ENVIRONMENT = (("RANK", "0"), ("WORLD_SIZE", "1"), ("LOCAL_RANK", "0"))


def part_ways(ranks: Ranks) -> None:
    """The end of `join_ranks`."""
    if ranks.world > 1:
        dist.destroy_process_group()
