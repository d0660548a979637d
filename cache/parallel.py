"""Work in threads: several tasks at a time until one fails, or one after the other but begun ahead."""

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from typing import TypeVar

Advance = Callable[[int], object]
Task = TypeVar("Task")
Result = TypeVar("Result")


class StoppedError(Exception):
    """Ends the work in progress after another part has failed."""


def several(work: Callable[[Task, Advance], object], tasks: Iterable[Task], workers: int, advance: Advance) -> None:
    """`work(task, advance)` of every task. After a fault or Ctrl-C, `advance` ends those in progress."""
    stop = threading.Event()

    def go_on(size: int) -> None:
        if stop.is_set():
            raise StoppedError
        advance(size)

    with ThreadPoolExecutor(workers) as pool:
        futures = [pool.submit(work, task, go_on) for task in tasks]
        try:
            for future in wait(futures, return_when=FIRST_EXCEPTION).done:
                future.result()
        except BaseException:
            stop.set()
            pool.shutdown(cancel_futures=True)
            raise


def in_turn(
    pool: ThreadPoolExecutor, work: Callable[[Task], Result], tasks: Iterable[Task], ahead: int
) -> Iterator[Result]:
    """`work` of every task, in order, done by the pool up to `ahead` tasks before they are asked for."""
    waiting: deque[Future[Result]] = deque()
    for task in tasks:
        waiting.append(pool.submit(work, task))
        if len(waiting) > ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()
