"""Unpacks the entries of an archive into a store, several entries and several blocks of rows at a time."""

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from numpy.typing import NDArray

from cache.archive import PackedEntry, array_specs
from cache.compress import unpack_block
from cache.console import Console
from cache.layout import ArraySpec, chunk_rows
from cache.locks import entry_lock
from cache.members import Span, archive_error, read_span
from cache.reader import StoreError, entry_exists, entry_path, open_entry
from cache.writer import EntryWriter

Advance = Callable[[int], object]
Task = TypeVar("Task")
Result = TypeVar("Result")


class StoppedError(Exception):
    """Ends the work in progress after another part has failed."""


class Unpacking:
    """Unpacks entries from the file of an archive, several at a time; each appears in the store when it is whole."""

    def __init__(self, path: Path, file: BinaryIO, store: Path) -> None:
        self.path = path
        self._file = file
        self._store = store
        self._stop = threading.Event()

    def run(self, entries: list[PackedEntry], workers: int, advance: Advance, console: Console) -> None:
        """Unpack all. After a fault or Ctrl-C those in progress are abandoned, and the finished ones stay."""

        def go_on(size: int) -> None:
            if self._stop.is_set():
                raise StoppedError
            advance(size)

        with ThreadPoolExecutor(workers) as blocks, ThreadPoolExecutor(workers) as pool:
            largest_first = sorted(entries, key=lambda one: -one.bytes)
            futures = [pool.submit(self._unpack, entry, blocks, go_on, console) for entry in largest_first]
            try:
                for future in wait(futures, return_when=FIRST_EXCEPTION).done:
                    future.result()
            except BaseException:
                self._stop.set()
                pool.shutdown(cancel_futures=True)
                raise

    def _unpack(self, entry: PackedEntry, blocks: ThreadPoolExecutor, advance: Advance, console: Console) -> None:
        say = console.waiting_for(f"another process that makes {'/'.join(entry.id)}")

        def waiting() -> None:
            advance(0)
            say()

        with entry_lock(self._store, entry.components, waiting) as wanted:
            if not wanted:  # built by somebody else meanwhile
                is_there(self._store, entry)
                return
            with EntryWriter(self._store, entry.components) as writer:
                for spec, rows in array_specs(entry.manifest):
                    array = writer.array(spec)
                    tasks = ((spec, rows, spans) for spans in entry.chunks[spec.name])
                    for block in in_turn(blocks, self._read_block, tasks, ahead=2):
                        array.append(block[: rows - array.rows])
                        advance(block.nbytes)
                try:
                    writer.publish_as(entry.manifest)
                except ValueError as names:
                    what = f"unpacked, {names} does not have the MD5 of the manifest"
                    raise archive_error(self.path, "/".join(entry.id), what) from None

    def _read_block(self, task: tuple[ArraySpec, int, list[Span]]) -> NDArray[Any]:
        """A block of rows, [chunk rows, *columns]."""
        spec, rows, spans = task
        try:
            columns = [read_span(self._file, span) for span in spans]
            block = unpack_block(columns, spec.dtype, chunk_rows(rows))
        except ValueError as error:
            raise archive_error(self.path, f"{spans[0].name} …", str(error)) from None
        return block.reshape(-1, *spec.columns)


def is_there(store: Path, entry: PackedEntry) -> bool:
    """Whether the store has an entry. Raises StoreError when it has the key with other arrays."""
    if not entry_exists(store, *entry.id):
        return False
    here, there = open_entry(store, *entry.id).manifest["arrays"], entry.manifest["arrays"]
    if here != there:
        names = ", ".join(name for name in {**here, **there} if here.get(name) != there.get(name))
        raise StoreError(
            f"{entry_path(store, *entry.id)}: the archive has other content under this key ({names}). Import it into a "
            "store of its own: --store DIR; `bin/cache verify` tells whether the entry here is damaged"
        )
    return True


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
