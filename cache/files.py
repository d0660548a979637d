"""Files that are there whole or not at all, folders as they are, and the words for what the system refuses."""

import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from configs.errors import UserError

_BLOCK = 1 << 20


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
    with naming(path), temporary.open("wb") as file, becoming(path, file):
        file.write(data)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Name the file in what the system refuses while it is written: of a full disk it says none."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


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


def share(there: Path, here: Path) -> None:
    """Let a file that never changes have a second name; where the file system knows no hard links, copy it."""
    try:
        os.link(there, here)
    except OSError:
        shutil.copyfile(there, here)
        sync(here)


def copy_beginning(there: Path, here: BinaryIO, size: int) -> None:
    """Write the first `size` bytes of a file to a new one, inside the system where it can do so."""
    with there.open("rb", buffering=0) as file:
        try:
            while size and (count := os.copy_file_range(file.fileno(), here.fileno(), size)):
                size -= count
        except (OSError, AttributeError):  # some file systems, and not Linux
            while size and (data := file.read(min(size, _BLOCK))):
                here.write(data)
                size -= len(data)


def check_output(option: str, path: Path, folder: bool = False) -> None:
    """Raise UserError where nothing can be written to what an option names, before the work that makes it."""
    if folder and path.exists() and not path.is_dir():
        raise UserError(f"{option} {path}: a file, not a folder; name another")
    if not folder and path.is_dir():
        raise UserError(f"{option} {path}: a folder; name a file in it")
    there = next(one for one in (path, *path.absolute().parents) if one.exists())
    if not folder and there == path:  # it is replaced, not written into
        there = path.absolute().parent
    if not there.is_dir():
        raise UserError(f"{option} {path}: {there} is a file, not a folder; name another place")
    if not os.access(there, os.W_OK | os.X_OK):
        raise UserError(f"{option} {path}: nothing can be written to {there}; name another place")


def in_words(error: Exception) -> str:
    """What the system refused, and where, as `store/refs: permission denied`; other errors in their own words."""
    if not isinstance(error, OSError):
        return str(error)
    return f"{error.filename or 'input/output'}: {(error.strerror or str(error)).lower()}"
