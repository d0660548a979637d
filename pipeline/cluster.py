"""Tasks as futures of Dask: on this machine's cores, or on a cluster whose workers see the same files.

Imported only where a scheduler is asked for: Dask is an extra, and takes half a second to load.
"""

import logging
import signal
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any

import dask
from distributed import Client, LocalCluster, as_completed

from cache.console import Console
from cache.durable import write_all
from configs.errors import UserError
from pipeline.tasks import Advance, Job, Receipt, Task, do

LOCAL = "local"
_SECONDS = 30  # to find a scheduler
_SETTINGS = {
    "distributed.scheduler.allowed-failures": 10,
    "distributed.admin.tick.limit": "60s",
    # Dask's own setting has malloc give freed memory back at once: half as much processor time again for page faults
    "distributed.nanny.pre-spawn-environ": {"OMP_NUM_THREADS": 1},
    "distributed.worker.profile.enabled": False,
}


class Cluster:
    """A client of a Dask scheduler. Workers get nodes and return receipts; entries go through the file system.

    A worker that dies costs the tasks it was at, which others do again, and nothing that it has finished.
    """

    def __init__(self, client: Client, workers: int) -> None:
        self.client = client
        self.groups: int | None = (
            16 * workers
        )  # a task costs some 4 ms, in the scheduler and here, as much as a small entry

    def write_all(self, store: Path) -> None:
        """See pipeline.tasks.Executor."""
        self.client.run(write_all, store)

    def run(self, job: Job, tasks: Sequence[Task], heard: Callable[[Receipt], None], advance: Advance) -> None:
        """See pipeline.tasks.Executor; rows count when their task is done."""
        build = uuid.uuid4().hex[:8]  # a scheduler may know tasks of earlier builds
        shared = self.client.scatter(job, broadcast=True, hash=False)
        made: dict[str, Any] = {}
        for order, task in enumerate(tasks):
            before = [made[name] for name in task.needs if name in made]
            made[task.name] = self.client.submit(
                do, shared, task, before, key=f"{task.name} {build}", priority=-order, pure=False, retries=2
            )
        try:
            for future in as_completed(made.values()):
                receipt = future.result()
                advance(receipt.rows)
                heard(receipt)
        except BaseException:
            self.client.cancel(list(made.values()), force=True)
            raise


@contextmanager
def cluster(scheduler: str, workers: int, console: Console) -> Iterator[Cluster]:
    """Connect to `tcp://…`, or start that many worker processes here (`local`); says where the dashboard is.

    Raises UserError when the scheduler cannot be reached.
    """
    logging.getLogger("distributed").setLevel(logging.ERROR)  # a lost worker is told by us
    with dask.config.set(_SETTINGS):
        if scheduler == LOCAL:
            with ExitStack() as stack:
                with console.phase("start Dask's workers"), _deaf_to_interrupts():
                    here = LocalCluster(
                        n_workers=workers,
                        threads_per_worker=1,
                        dashboard_address="127.0.0.1:0",
                        silence_logs=logging.CRITICAL,  # what fails in a worker is told by us, too
                    )
                    stack.enter_context(here)
                yield _told(stack.enter_context(Client(here)), console)
            return
        try:
            with console.phase(f"connect to {scheduler}"):
                client = Client(scheduler, timeout=_SECONDS)
        except (OSError, ValueError) as error:
            raise UserError(
                f"--scheduler {scheduler}: no Dask scheduler there ({error}); start one with `dask scheduler`, or use "
                "--scheduler local"
            ) from None
        with client:
            yield _told(client, console)


@contextmanager
def _deaf_to_interrupts() -> Iterator[None]:
    """Have threads and processes that are started here, and theirs, leave Ctrl-C to this one, which heeds it after."""
    heard: list[int] = []
    resource_tracker.ensure_running()  # which would end the blocking
    handler = signal.signal(signal.SIGINT, lambda number, frame: heard.append(number))  # threads before these hear it
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        signal.signal(signal.SIGINT, handler)
    if heard:
        raise KeyboardInterrupt


def _told(client: Client, console: Console) -> Cluster:
    count = len(client.scheduler_info(n_workers=-1)["workers"])
    console.line(f"  Dask: {count} worker{'s' * (count != 1)}, dashboard {client.dashboard_link}")
    return Cluster(client, count)
