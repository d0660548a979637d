"""What a build writes reaches the disk in one go at its end, not file by file: that would take longer than the rest.

A kill loses nothing by it, a power failure may: files that seem whole and are not. So a build leaves a mark in
`locks/` while it writes. A mark that nobody holds is of a build that did not end; the next build reads what was
published since then, compares it with its MD5s and removes what differs, before it builds on it.
"""

import ctypes
import fcntl
import os
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from cache.check import check_body, check_entry
from cache.console import Console
from cache.contents import is_held, stage_paths
from cache.files import listing, sync
from cache.locks import key_lock, marking
from cache.prune import discard

_MARK = ".unsynced"
_CHECKER = "another process that checks what an interrupted build left"


@contextmanager
def synced_at_the_end(store: Path, barrier: Callable[[], object], console: Console) -> Iterator[None]:
    """Write entries that are not synced one by one. At the end `barrier` has all of them written to the disk.

    Raises OSError.
    """
    mark = store / "locks" / f"{uuid.uuid4().hex}{_MARK}"
    with ExitStack() as stack:
        with marking(store, console.waiting_for(_CHECKER)):
            file = stack.enter_context(mark.open("wb"))
            fcntl.flock(file, fcntl.LOCK_EX)
            sync(mark)
            sync(mark.parent)
        try:
            yield
        finally:
            barrier()
            mark.unlink()


def write_all(store: Path) -> None:
    """Have the system write all that was written to the store's file system, from this machine."""
    syncfs = getattr(ctypes.CDLL(None, use_errno=True), "syncfs", None)
    if syncfs is None:  # not on Linux
        os.sync()
        return
    descriptor = os.open(store, os.O_RDONLY)
    try:
        if syncfs(descriptor):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(store))
    finally:
        os.close(descriptor)


def check_interrupted(store: Path, console: Console) -> None:
    """Check what builds that did not end have published, and remove what is damaged."""
    if any(path.suffix == _MARK for path in listing(store / "locks")):
        with marking(store, console.waiting_for(_CHECKER)):
            marks = [path for path in listing(store / "locks") if path.suffix == _MARK and not is_held(path)]
            if marks:
                _check_since(store, marks, console)


def _check_since(store: Path, marks: Sequence[Path], console: Console) -> None:
    since = min(mark.stat().st_mtime_ns for mark in marks)
    published = [
        (stage, path.name)
        for stage, path in stage_paths(store, [])
        if not path.name.startswith(".") and _changed(path) >= since
    ]
    with console.bar("checking what an interrupted build left", "entries", len(published)) as bar:
        for stage, key in published:
            with key_lock(store, stage, key):
                if _damaged(store, stage, key):
                    discard(store / stage / key)
                    console.line(f"  removed {stage}/{key}: it was not written to the disk")
            bar.update(1)
    write_all(store)
    for mark in marks:
        mark.unlink()


def _changed(entry: Path) -> int:
    try:
        return entry.stat().st_mtime_ns
    except FileNotFoundError:
        return 0


def _damaged(store: Path, stage: str, key: str) -> bool:
    found, bodies = check_entry(store, stage, key)
    return bool(found) or any(check_body(body, lambda count: None) for body in bodies)
