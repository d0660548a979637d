"""Who may do what at the same time. All locks are the operating system's: those of a dead process are free.

locks/store                    builders share it; whoever removes entries holds it alone
locks/<stage>-<key>.lock       the one right to build an entry
locks/marks                    whoever makes marks, or takes those of others away, holds it alone

Waiting is trying again and again, so that Ctrl-C ends it, and `waiting` hears of every failed try: it may say what is
waited for, or raise to give up.
"""

import fcntl
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path

from cache.entries import StoreError, entry_exists
from cache.files import listing
from cache.keys import Components
from cache.refs import check_folder

REMOVER = "another process that removes something from the store"
_POLL_SECONDS = 0.1
Waiting = Callable[[], object]


def _nothing() -> None:
    pass


def entry_lock(store: Path, components: Components, waiting: Waiting = _nothing) -> AbstractContextManager[bool]:
    """Hold the one right to build an entry; yields whether it still has to be built.

    Waits while another process builds the same entry.
    """
    return key_lock(store, components.stage, components.key, waiting)


@contextmanager
def key_lock(store: Path, stage: str, key: str, waiting: Waiting = _nothing) -> Iterator[bool]:
    """The same for an entry of which only stage and key are known."""
    with _lock(store / "locks" / f"{stage}-{key}.lock", fcntl.LOCK_EX, waiting):
        yield not entry_exists(store, stage, key)


@contextmanager
def building(store: Path, waiting: Waiting = _nothing) -> Iterator[None]:
    """Add to a store: what is found there, or made, stays there until the end. Waits while something is removed.

    Raises StoreError where the store cannot be a folder.
    """
    check_folder(store)
    with _lock(store / "locks" / "store", fcntl.LOCK_SH, waiting):
        yield
        _forget(store)


def _forget(store: Path) -> None:
    """Remove the locks of entries that are there: whoever still waits for one, or makes it anew, finds the entry.

    Not one by one when each is made: ext4 passes over the places of files that were just removed, one after another,
    and every further file and folder of a build took three times as long.
    """
    for path in listing(store / "locks"):
        if path.suffix == ".lock":
            with suppress(BlockingIOError), path.open("ab") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if (store / path.stem.replace("-", "/", 1) / "zarr.json").exists():
                    path.unlink(missing_ok=True)


def marking(store: Path, waiting: Waiting = _nothing) -> AbstractContextManager[None]:
    """Make a mark of a build in progress, or see to those that builds left which did not end; one at a time."""
    return _lock(store / "locks" / "marks", fcntl.LOCK_EX, waiting)


@contextmanager
def removing(store: Path) -> Iterator[None]:
    """Remove from a store. Raises StoreError while anyone builds there, or reads all of it."""

    def refuse() -> None:
        raise StoreError(
            f"{store}: in use: something is being built, imported or verified there. Nothing is removed meanwhile; try "
            "again after it"
        )

    with _lock(store / "locks" / "store", fcntl.LOCK_EX, refuse):
        yield


@contextmanager
def _lock(path: Path, how: int, waiting: Waiting) -> Iterator[None]:
    try:
        file = path.open("ab")
    except FileNotFoundError:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("ab")
    with file:
        while True:
            try:
                fcntl.flock(file, how | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                waiting()
                time.sleep(_POLL_SECONDS)
        yield
