"""Several training processes on this machine, by torchrun's own launcher."""

import ctypes
import functools
import logging
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

from cache.console import Console
from configs.errors import UserError

_RUN = "headstart-{}"  # what torchrun's launcher calls the run that a process, by its number, has launched
_PR_SET_PDEATHSIG = 1  # of linux/prctl.h
_FIRST_SAYS = 5.0  # seconds for rank 0 to fail, too, whose end is that of the others


def launched() -> bool:
    """Whether this process is one that torchrun has started."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def is_main() -> bool:
    """Whether this is the process that prints and writes."""
    return int(os.environ.get("RANK", "0")) == 0


def launched_process(main: Callable[..., None]) -> Callable[..., None]:
    """For what torchrun may run in several processes: ends them with their launcher, even where that is killed.

    Where all fail alike, rank 0 alone tells of it.
    """

    @functools.wraps(main)
    def guarded(**arguments: Any) -> None:
        if launched() and sys.platform == "linux":
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            run = os.environ["TORCHELASTIC_RUN_ID"]
            if run.startswith(_RUN.format("")) and run != _RUN.format(os.getppid()):
                sys.exit(1)  # it was gone before
        try:
            main(**arguments)
        except Exception:
            if launched() and not is_main():
                time.sleep(_FIRST_SAYS)  # torchrun's launcher ends this process as soon as another has failed
            raise

    return guarded


def launch(devices: int, arguments: Sequence[str], console: Console) -> None:
    """Run bin/train with these arguments in `devices` processes, and wait. Raises UserError when one fails.

    Ends this process, too, where a signal ended them; they have told it.
    """
    with console.phase(f"start {devices} processes"):
        from torch.distributed.elastic.multiprocessing.api import DefaultLogsSpecs, SignalException
        from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
        from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logging.disable(logging.ERROR)  # of what happens to the processes, which is told below
    try:
        with tempfile.TemporaryDirectory(prefix="headstart-") as logs:  # or torchrun leaves one behind
            config = LaunchConfig(
                min_nodes=1,
                max_nodes=1,
                nproc_per_node=devices,
                run_id=_RUN.format(os.getpid()),  # or torchrun warns that it made one up
                rdzv_backend="c10d",
                rdzv_endpoint="localhost:0",
                max_restarts=0,
                monitor_interval=0.1,
                logs_specs=DefaultLogsSpecs(log_dir=logs),
            )
            elastic_launch(config, sys.executable)("-m", "trainer.train_command", *arguments)
    except SignalException:
        sys.exit(1)
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        if failure.exitcode < 0:
            what = f"was ended by {failure.signal_name()}; go on from the last checkpoint with --resume"
            raise UserError(f"training process {rank} of {devices} {what}") from None
        raise UserError("one of the training processes failed; what it said stands above") from None
