"""Files that are there whole or not at all, folders as they are, and the words for what the system refuses."""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


def listing(folder: Path) -> list[Path]:
    """What a folder holds, sorted; nothing where there is none.

    Raises OSError naming the folder where it cannot be read: nobody may take it for an empty one, as Path.glob does.
    """
    try:
        return sorted(folder.iterdir())
    except FileNotFoundError:
        if folder.is_symlink():  # to a disk that is not there
            raise
        return []


def write_atomically(path: Path, data: bytes) -> None:
    """Replace a file so that a kill, or a full disk, at any moment leaves the old one or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.partial")
    with temporary.open("wb") as file, becoming(path, file):
        file.write(data)


@contextmanager
def becoming(path: Path, file: BinaryIO) -> Iterator[None]:
    """Give an open temporary file beside `path` that name when the block ends well, and remove it when it does not."""
    temporary = Path(file.name)
    try:
        yield
        file.flush()
        os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    sync(path.parent)


def sync(path: Path) -> None:
    """Have the system write a file, or the names in a directory, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def in_words(error: Exception) -> str:
    """What the system refused, and where, as `store/refs: permission denied`; other errors in their own words."""
    if not isinstance(error, OSError):
        return str(error)
    return f"{error.filename or 'input/output'}: {(error.strerror or str(error)).lower()}"
