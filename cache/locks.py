"""Who may do what at the same time. All locks are the operating system's: those of a dead process are free.

locks/store                    builders share it; whoever removes entries holds it alone
locks/<stage>-<key>.lock       the one right to build an entry
"""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import filelock

from cache.keys import Components
from cache.reader import StoreError, entry_exists


@contextmanager
def entry_lock(store: Path, components: Components) -> Iterator[bool]:
    """Hold the one right to build an entry; yields whether it still has to be built.

    Waits while another process builds the same entry.
    """
    path = store / "locks" / f"{components.stage}-{components.key}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(path, thread_local=False):
        yield not entry_exists(store, components.stage, components.key)
        if entry_exists(store, components.stage, components.key):
            path.unlink(missing_ok=True)  # whoever still waits for it, or makes it anew, finds the entry there


@contextmanager
def building(store: Path) -> Iterator[None]:
    """Add to a store: what is found there, or made, stays there until the end. Waits while something is removed."""
    with _store_lock(store, fcntl.LOCK_SH):
        yield


@contextmanager
def removing(store: Path) -> Iterator[None]:
    """Remove from a store. Raises StoreError while anyone builds there, or reads all of it."""
    try:
        with _store_lock(store, fcntl.LOCK_EX | fcntl.LOCK_NB):
            yield
    except BlockingIOError:
        raise StoreError(
            f"{store}: in use: something is being built, imported or verified there. Nothing is removed meanwhile; try "
            "again after it"
        ) from None


@contextmanager
def _store_lock(store: Path, how: int) -> Iterator[None]:
    path = store / "locks" / "store"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as file:
        fcntl.flock(file, how)
        yield
