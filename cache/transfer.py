"""A dataset as one file, and back: everything it was made from, packed, checked on the way out and on the way in."""

import fcntl
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from cache.archive import INDEX, JSON_BYTES, index_bytes, manifest_bytes, read_archive
from cache.console import Console
from cache.entries import StoreError
from cache.files import becoming, write_atomically
from cache.locks import REMOVER, building
from cache.members import END, member
from cache.packing import entry_members, held_entries
from cache.receive import check_fit, check_space, new_ref, same_ref, with_kept
from cache.seal import canonical_json, sealed
from cache.unpack import is_there, unpack_all


@dataclass(frozen=True)
class Transferred:
    """So many entries of all went over: bytes of their arrays in a store, and of what was read or written elsewhere."""

    name: str
    entries: int
    of_entries: int
    bytes: int
    file_bytes: int


# Export


def export_dataset(store: Path, name: str, path: Path, workers: int, console: Console) -> Transferred:
    """Write the dataset `name` and all that it was made from to a new tar file. The same dataset gives the same bytes.

    Raises StoreError when the file exists, or when anything to be exported is missing or damaged, and OSError.
    """
    if os.path.lexists(path):
        raise _exists(path)
    if not path.parent.is_dir():
        raise StoreError(f"{path}: there is no folder {path.parent}; make it first")
    with held_entries(store, name, console) as (ref, entries):
        size = sum(entry.bytes for entry in entries)
        seals = {(one.path.parent.name, one.key): str(sealed(one.manifest)["md5"]) for one in entries}
        index = index_bytes(ref, seals)
        if max(map(len, (index, *(manifest_bytes(one.manifest) for one in entries)))) > JSON_BYTES:
            raise StoreError(f"{store}: {name} has too many entries for one file; divide its symbols")
        with (
            _new_file(path) as file,
            console.bar("packing", "B", size) as bar,
            ThreadPoolExecutor(workers) as pool,
        ):
            file.write(member(INDEX, index))
            for entry in entries:
                for data in entry_members(entry, pool, workers + 1, bar.update):
                    file.write(data)
            file.write(END)
            file_bytes = file.tell()
    return Transferred(name, len(entries), len(entries), size, file_bytes)


@contextmanager
def _new_file(path: Path) -> Iterator[BinaryIO]:
    """A file that appears under its name when it is whole; otherwise it leaves nothing."""
    temporary = path.with_name(f".{path.name}.partial")
    with temporary.open("ab") as file:  # it may be there, left by an export that was killed
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StoreError(f"{path}: another export is writing it; wait for that, or name another file") from None
        with becoming(path, file):
            if os.path.lexists(path):  # the other has just ended, and this may be its file
                raise _exists(path)
            file.truncate(0)
            yield file


def _exists(path: Path) -> StoreError:
    return StoreError(f"{path}: exists already, and an export overwrites nothing; remove it, or name another file")


# Import


def import_dataset(path: Path, store: Path, rename: str | None, workers: int, console: Console) -> Transferred:
    """Unpack an archive into the store: what is missing there, then the ref, which may be given another name.

    Raises StoreError when the archive is not just what an export writes, when the store has another dataset of that
    name or other content under the same key, and OSError. Each entry appears whole or not at all.
    """
    if path.exists() and not path.is_file():
        raise StoreError(f"{path}: not a file; give the tar file that bin/cache export wrote")
    with path.open("rb") as file:
        with console.phase("check the archive"):
            archive = read_archive(path, file)
        ref = new_ref(archive.ref, rename)
        with building(store, console.waiting_for(REMOVER)):
            known = same_ref(store, ref)
            missing = [one for one in archive.entries if not is_there(store, one)]
            size = sum(entry.bytes for entry in missing)
            check_space(store, size)
            try:
                with console.bar("unpacking", "B", size) as bar:
                    unpack_all(path, file, store, missing, workers, bar.update, console)
                check_fit(path, store, ref["dataset"])
            except StoreError as error:
                raise with_kept(error, store, (one.id for one in missing)) from None
            if not known:
                write_atomically(store / "refs" / f"{ref['name']}.json", canonical_json(sealed(ref)))
        return Transferred(ref["name"], len(missing), len(archive.entries), size, os.fstat(file.fileno()).st_size)
