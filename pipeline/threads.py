"""Tasks in threads of this process."""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from cache.console import Console
from cache.durable import write_all
from pipeline.tasks import Advance, Job, Receipt, Task, do


class StoppedError(Exception):
    """Ends the work in progress after another part has failed."""


class Threads:
    """So many threads; `load` runs in one of them, beside the first task. Each entry is a task."""

    groups: int | None = None

    def __init__(self, workers: int, load: Callable[[], None], console: Console) -> None:
        self.workers, self.load, self.console = workers, load, console

    def write_all(self, store: Path) -> None:
        """See pipeline.tasks.Executor."""
        write_all(store)

    def run(self, job: Job, tasks: Sequence[Task], heard: Callable[[Receipt], None], advance: Advance) -> None:
        """See pipeline.tasks.Executor."""
        stop = threading.Event()
        made: dict[str, Future[Receipt]] = {}

        def go_on(rows: int) -> None:
            if stop.is_set():
                raise StoppedError
            advance(rows)

        def waiting(label: str) -> Callable[[], None]:
            say = self.console.waiting_for(f"another process that builds {label}")

            def tick() -> None:
                go_on(0)
                say()

            return tick

        def work(task: Task, before: list[Future[Receipt]]) -> Receipt:
            receipts = [future.result() for future in before]  # earlier in the queue, so never behind this one
            return do(job, task, receipts, go_on, waiting)

        with ThreadPoolExecutor(self.workers) as pool:
            try:
                pool.submit(self.load)
                for task in tasks:
                    made[task.name] = pool.submit(work, task, [made[name] for name in task.needs if name in made])
                for task in tasks:
                    heard(made[task.name].result())
            except BaseException:
                stop.set()
                pool.shutdown(cancel_futures=True)
                raise
