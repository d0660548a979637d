"""Packs what a dataset was made from: entries in the compressed profile, each array checked against its MD5."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cache.archive import array_specs, in_order, manifest_bytes, manifest_fault, ref_fault
from cache.compress import chunk_names, pack_block, packed_metadata
from cache.console import Console
from cache.contents import Id, inputs
from cache.entries import Entry, StoreError, open_entry
from cache.layout import ArraySpec, body_path, metadata_bytes, piece_md5s, shards
from cache.locks import REMOVER, building
from cache.members import member
from cache.parallel import Advance, in_turn
from cache.reader import open_dataset
from cache.refs import read_ref, ref_names


def all_entries(store: Path, name: str) -> tuple[dict[str, Any], list[Entry]]:
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


@contextmanager
def held_entries(store: Path, name: str, console: Console) -> Iterator[tuple[dict[str, Any], list[Entry]]]:
    """`all_entries` of a dataset that is to go elsewhere, and nobody removes any of them meanwhile."""
    ref_names(store)  # before the lock, which would make a store where there is none
    with ExitStack() as stack:
        with suppress(OSError):  # a store that cannot be written: then nobody removes anything from it either
            stack.enter_context(building(store, console.waiting_for(REMOVER)))
        with console.phase("open the dataset"):
            found = all_entries(store, name)
        yield found


def entry_members(entry: Entry, pool: ThreadPoolExecutor, ahead: int, advance: Advance) -> Iterator[bytes]:
    """An entry as members of a tar file, packed by the pool. Raises StoreError when an array is damaged."""
    folder = f"{entry.path.parent.name}/{entry.key}"
    yield member(f"{folder}/zarr.json", manifest_bytes(entry.manifest))
    for spec, rows in array_specs(entry.manifest):
        yield member(f"{folder}/{spec.name}/zarr.json", metadata_bytes(packed_metadata(spec, rows)))
        packed = in_turn(pool, pack_block, _checked_blocks(entry, spec, rows, advance), ahead)
        for block, columns in enumerate(packed):
            for name, data in zip(chunk_names(spec, block), columns, strict=True):
                yield member(f"{folder}/{spec.name}/{name}", data)


def _checked_blocks(entry: Entry, spec: ArraySpec, rows: int, advance: Advance) -> Iterator[NDArray[Any]]:
    """The rows of an array's files in blocks [chunk rows, width], padding included.

    Raises StoreError when the MD5 of rows is another than that of the manifest, or when they are not followed by what
    should follow them.
    """
    known = entry.manifest["arrays"][spec.name]["md5"]
    for shard in shards(rows):
        path = body_path(entry.path, spec.name, 1 + len(spec.columns), shard.number)
        size, md5s = shard.chunk * spec.row_bytes, [known[piece] for piece in shard.pieces()]
        ending = memoryview(shard.ending(spec))
        with path.open("rb") as file:
            for start in range(0, shard.rows, shard.chunk):
                data = memoryview(file.read(size))
                in_rows = min(shard.rows - start, shard.chunk) * spec.row_bytes
                found = piece_md5s(data[:in_rows], spec.row_bytes)
                if len(data) < size or found != md5s[: len(found)] or data[in_rows:] != ending[: size - in_rows]:
                    raise _damaged(path)
                md5s = md5s[len(found) :]
                yield np.frombuffer(data, spec.dtype).reshape(shard.chunk, -1)
                advance(len(data))
            if file.read() != ending[shard.padded * spec.row_bytes - shard.rows * spec.row_bytes :]:
                raise _damaged(path)


def _damaged(path: Path) -> StoreError:
    return StoreError(
        f"{path}: damaged, its MD5 is not that of the manifest; the dataset was not exported. `bin/cache "
        "verify` finds all that is damaged, with --repair removes it, and bin/build-cache then makes it again"
    )
