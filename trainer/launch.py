"""Several training processes on this machine, by torchrun's own launcher."""

import os
import sys
from collections.abc import Sequence

from configs.errors import UserError


def launched() -> bool:
    """Whether this process is one that torchrun has started."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def is_main() -> bool:
    """Whether this is the process that prints and writes."""
    return int(os.environ.get("RANK", "0")) == 0


def launch(devices: int, arguments: Sequence[str]) -> None:
    """Run bin/train with these arguments in `devices` processes, and wait. Raises UserError when one fails."""
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=devices,
        run_id=f"headstart-{os.getpid()}",  # or torchrun warns that it made one up
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
        monitor_interval=0.1,
    )
    try:
        elastic_launch(config, sys.executable)("-m", "trainer.train_command", *arguments)
    except ChildFailedError:
        raise UserError("one of the training processes failed; what it said stands above") from None
