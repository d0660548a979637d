"""Unpacks the entries of an archive into a store, several entries and several blocks of rows at a time."""

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO

from numpy.typing import NDArray

from cache.archive import PackedEntry, array_specs
from cache.compress import unpack_block
from cache.console import Console
from cache.contents import Id
from cache.entries import StoreError, entry_exists, entry_path, open_entry
from cache.layout import ArraySpec, chunk_rows
from cache.locks import Waiting, entry_lock
from cache.members import Span, archive_error, read_span
from cache.parallel import Advance, in_turn, several
from cache.writer import EntryWriter


def unpack_all(
    path: Path,
    file: BinaryIO,
    store: Path,
    entries: Iterable[PackedEntry],
    workers: int,
    advance: Advance,
    console: Console,
) -> None:
    """Unpack all; each appears in the store when it is whole. After a fault or Ctrl-C the finished ones stay."""
    with ThreadPoolExecutor(workers) as blocks:

        def unpack(entry: PackedEntry, go_on: Advance) -> None:
            with entry_lock(store, entry.components, waiting_for_entry(console, entry.id, go_on)) as wanted:
                if wanted:
                    unpack_entry(path, file, store, entry, blocks, go_on)
                else:  # built by somebody else meanwhile
                    is_there(store, entry)

        several(unpack, sorted(entries, key=lambda one: -one.bytes), workers, advance)


def unpack_entry(
    path: Path, file: BinaryIO, store: Path, entry: PackedEntry, blocks: ThreadPoolExecutor, advance: Advance
) -> None:
    """Unpack one entry, whose lock is held. Raises ArchiveError when its arrays are not what its manifest says."""

    def read_block(task: tuple[ArraySpec, int, list[Span]]) -> NDArray[Any]:
        """A block of rows, [chunk rows, *columns]."""
        spec, rows, spans = task
        try:
            columns = [read_span(file, span) for span in spans]
            block = unpack_block(columns, spec.dtype, chunk_rows(rows))
        except ValueError as error:
            raise archive_error(path, f"{spans[0].name} …", str(error)) from None
        return block.reshape(-1, *spec.columns)

    with EntryWriter(store, entry.components) as writer:
        for spec, rows in array_specs(entry.manifest):
            array = writer.array(spec)
            tasks = ((spec, rows, spans) for spans in entry.chunks[spec.name])
            for block in in_turn(blocks, read_block, tasks, ahead=2):
                array.append(block[: rows - array.rows])
                advance(block.nbytes)
        try:
            writer.publish_as(entry.manifest)
        except ValueError as names:
            what = f"unpacked, {names} does not have the MD5 of the manifest"
            raise archive_error(path, "/".join(entry.id), what) from None


def waiting_for_entry(console: Console, one: Id, go_on: Advance) -> Waiting:
    """To be called while another process makes an entry: says so, and ends with the other work."""
    say = console.waiting_for(f"another process that makes {'/'.join(one)}")

    def waiting() -> None:
        go_on(0)
        say()

    return waiting


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
