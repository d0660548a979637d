"""A dataset as one file, and back: everything it was made from, packed, checked on the way out and on the way in."""

import fcntl
import hashlib
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from cache.archive import (
    INDEX,
    JSON_BYTES,
    Archive,
    PackedEntry,
    array_specs,
    in_order,
    index_bytes,
    manifest_bytes,
    manifest_fault,
    read_archive,
    ref_fault,
)
from cache.compress import block_count, chunk_names, pack_block, packed_metadata
from cache.console import Console
from cache.contents import Id, inputs
from cache.files import sync, write_atomically
from cache.layout import ArraySpec, body_path, chunk_rows, metadata_bytes
from cache.locks import REMOVER, building
from cache.members import END, member
from cache.reader import (
    UNKNOWN_DIR,
    Entry,
    StoreError,
    entry_exists,
    open_dataset,
    open_entry,
    open_symbols,
    read_ref,
    ref_names,
)
from cache.seal import canonical_json, sealed
from cache.unpack import Advance, Unpacking, in_turn, is_there


@dataclass(frozen=True)
class Transferred:
    """What an export or an import did: so many entries of all went over; bytes of their arrays, and of the file."""

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
    ref_names(store)  # before the lock, which would make a store where there is none
    with ExitStack() as stack:
        with suppress(OSError):  # a store that cannot be written: then nobody removes anything from it either
            stack.enter_context(building(store, console.waiting_for(REMOVER)))
        with console.phase("open the dataset"):
            ref, entries = _all_entries(store, name)
        size = sum(entry.bytes for entry in entries)
        seals = {(one.path.parent.name, one.key): str(sealed(one.manifest)["md5"]) for one in entries}
        index = index_bytes(ref, seals)
        if max(map(len, (index, *(manifest_bytes(one.manifest) for one in entries)))) > JSON_BYTES:
            raise StoreError(f"{store}: {name} has too many entries for one file; divide its symbols")
        file = stack.enter_context(_new_file(path))
        bar = stack.enter_context(console.bar("packing", "B", size))
        pool = stack.enter_context(ThreadPoolExecutor(workers))
        file.write(member(INDEX, index))
        for entry in entries:
            for data in _entry_members(entry, pool, workers + 1, bar.update):
                file.write(data)
        file.write(END)
        file_bytes = file.tell()
    return Transferred(name, len(entries), len(entries), size, file_bytes)


def _all_entries(store: Path, name: str) -> tuple[dict[str, Any], list[Entry]]:
    """The ref, and all entries that its dataset was made from, in an archive's order, whole as far as opening tells."""
    dataset = open_dataset(store, name)
    ref = read_ref(store, name)
    found: dict[Id, Entry] = {}
    waiting = [("datasets", dataset.entry.key)]
    while waiting:
        one = waiting.pop()
        if one not in found:
            found[one] = open_entry(store, *one)
            waiting.extend(inputs(found[one]))
    for one, entry in found.items():
        if wrong := manifest_fault(entry.manifest, one):
            raise StoreError(f"{entry.path}: cannot be exported: {wrong}")
    if wrong := ref_fault(ref):
        raise StoreError(
            f"{store}: {name} cannot be exported: {wrong}. Run bin/build-cache again, which renews the ref"
        )
    return ref, [found[one] for one in in_order(set(found))]


def _entry_members(entry: Entry, pool: ThreadPoolExecutor, ahead: int, advance: Advance) -> Iterator[bytes]:
    folder = f"{entry.path.parent.name}/{entry.key}"
    yield member(f"{folder}/zarr.json", manifest_bytes(entry.manifest))
    for spec, rows in array_specs(entry.manifest):
        yield member(f"{folder}/{spec.name}/zarr.json", metadata_bytes(packed_metadata(spec, rows)))
        packed = in_turn(pool, pack_block, _checked_blocks(entry, spec, rows, advance), ahead)
        for block, columns in enumerate(packed):
            for name, data in zip(chunk_names(spec, block), columns, strict=True):
                yield member(f"{folder}/{spec.name}/{name}", data)


def _checked_blocks(entry: Entry, spec: ArraySpec, rows: int, advance: Advance) -> Iterator[NDArray[Any]]:
    """The array file in blocks [chunk rows, width], padding included. Raises StoreError when its MD5 is another."""
    path = body_path(entry.path, spec.name, 1 + len(spec.columns))
    md5 = hashlib.md5(usedforsecurity=False)
    with path.open("rb") as file:
        for _ in range(block_count(rows)):
            data = file.read(chunk_rows(rows) * spec.row_bytes)
            md5.update(data)
            if len(data) < chunk_rows(rows) * spec.row_bytes:
                break
            yield np.frombuffer(data, spec.dtype).reshape(chunk_rows(rows), -1)
            advance(len(data))
        md5.update(file.read())
    if md5.hexdigest() != entry.manifest["arrays"][spec.name]["md5"]:
        raise StoreError(
            f"{path}: damaged, its MD5 is not that of the manifest; nothing was exported. `bin/cache verify` finds all "
            "that is damaged, with --repair removes it, and bin/build-cache then makes it again"
        )


@contextmanager
def _new_file(path: Path) -> Iterator[BinaryIO]:
    """A file that appears under its name when it is whole; otherwise it leaves nothing."""
    temporary = path.with_name(f".{path.name}.partial")
    with temporary.open("ab") as file:  # it may be there, left by an export that was killed
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StoreError(f"{path}: another export is writing it; wait for that, or name another file") from None
        try:
            if os.path.lexists(path):  # the other has just ended, and this may be its file
                raise _exists(path)
            file.truncate(0)
            yield file
            file.flush()
            os.fsync(file.fileno())
            temporary.rename(path)
        finally:
            temporary.unlink(missing_ok=True)
    sync(path.parent)


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
        ref = _new_ref(archive, rename)
        with building(store, console.waiting_for(REMOVER)):
            known = _same_ref(store, ref)
            missing = [one for one in archive.entries if not is_there(store, one)]
            size = sum(entry.bytes for entry in missing)
            _check_space(store, size)
            unpacking = Unpacking(path, file, store)
            try:
                with console.bar("unpacking", "B", size) as bar:
                    unpacking.run(missing, workers, bar.update, console)
                _check_fit(path, store, ref["dataset"])
            except StoreError as error:
                raise _with_kept(error, store, missing) from None
            if not known:
                write_atomically(store / "refs" / f"{ref['name']}.json", canonical_json(sealed(ref)))
        return Transferred(ref["name"], len(missing), len(archive.entries), size, os.fstat(file.fileno()).st_size)


def _new_ref(archive: Archive, rename: str | None) -> dict[str, Any]:
    """The ref to write. Raises StoreError when `rename` is not a name."""
    ref = dict(archive.ref)
    if rename is not None:
        ref |= {"name": rename, "recipe": {**ref["recipe"], "name": rename}}
        if wrong := ref_fault(ref):
            raise StoreError(f"--as {rename}: not a name for a dataset: {wrong}")
    return {**ref, "data_dir": UNKNOWN_DIR, "updated": datetime.now(UTC).isoformat(timespec="seconds")}


def _same_ref(store: Path, ref: dict[str, Any]) -> bool:
    """Whether the store has this ref. Raises StoreError when it has another of that name."""
    if not (store / "refs" / f"{ref['name']}.json").exists():
        return False
    found = read_ref(store, ref["name"])["dataset"]
    if found != ref["dataset"]:
        raise StoreError(
            f"{store}: has a dataset named {ref['name']} already, {found}, and the archive's is {ref['dataset']}. Give "
            "it another name: --as NEWNAME"
        )
    return True


def _check_fit(path: Path, store: Path, dataset: str) -> None:
    try:
        open_symbols(store, open_entry(store, "datasets", dataset))
    except StoreError as error:
        raise StoreError(f"{path}: the dataset is not given a name, its entries do not fit: {error}") from None


def _with_kept(error: StoreError, store: Path, entries: list[PackedEntry]) -> StoreError:
    """The error, and what was unpacked before it."""
    kept = sum(entry_exists(store, *one.id) for one in entries)
    if not kept:
        return error
    what = f"{kept} intact entries stay" if kept > 1 else "1 intact entry stays"
    return StoreError(
        f"{error}\n{what} in {store}: importing a whole archive goes on from there, and bin/cache prune --unreferenced "
        "removes what no dataset needs"
    )


def _check_space(store: Path, size: int) -> None:
    free = shutil.disk_usage(store).free
    if free < size:
        raise StoreError(f"{store}: the import needs {size / 1e6:,.1f} MB, and its disk has {free / 1e6:,.1f} MB free")
