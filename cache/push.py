"""Sends a dataset to a remote store: the entries that are not there, several at a time, then the ref."""

import io
import json
import os
import tarfile
import tempfile
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import chain
from pathlib import Path

from cache.archive import JSON_BYTES
from cache.console import Console
from cache.entries import Entry, StoreError
from cache.members import END
from cache.packing import entry_members, held_entries
from cache.parallel import Advance, several
from cache.remote import Remote
from cache.remote_ref import Listed, RemoteRef, listed, parse_record, record_bytes, ref_object
from cache.seal import content_md5, unsealed
from cache.transfer import Transferred

AT_ONCE = 4  # objects on their way
_HEAD_BYTES = 2**16  # holds the manifest of most entries


def push_dataset(store: Path, name: str, url: str, console: Console) -> Transferred:
    """Send the dataset `name`, and all that it was made from, to the remote store at `url`.

    The ref there is replaced when it is of another dataset. Raises StoreError when anything is missing or damaged here,
    or has other content there, or the server does not do what it is asked; and OSError.
    """
    remote = Remote(url)
    remote.check_writable()
    with held_entries(store, name, console) as (ref, entries), ThreadPoolExecutor(os.cpu_count()) as blocks:
        record = record_bytes(ref, map(listed, entries))
        with console.phase(f"ask {remote.protocol}:// what is there"):
            before = _ref_there(remote, name)
            missing = _missing(remote, entries)
        size = sum(entry.bytes for entry in missing)
        moved: list[int] = []

        def send(entry: Entry, advance: Advance) -> None:
            what = listed(entry)
            parts = entry_members(entry, blocks, 2, lambda size: advance(size // 2))
            moved.append(_send(remote, what.object, chain(parts, [END]), what.bytes // 2, advance))

        with console.bar("packing and sending", "B", size) as bar:
            several(send, sorted(missing, key=lambda one: -one.bytes), AT_ONCE, bar.update)
        if before != record:
            _send(remote, ref_object(name), [record], 0, lambda size: None)
    return Transferred(name, len(missing), len(entries), size, sum(moved))


def read_remote_ref(remote: Remote, name: str) -> tuple[bytes, RemoteRef] | None:
    """What a remote store says of the dataset `name`, as it is there and parsed; None when it says nothing."""
    data = remote.read(ref_object(name))
    if data is None:
        return None
    try:
        return data, parse_record(data, name)
    except ValueError as error:
        raise remote.damaged(ref_object(name), str(error)) from None


def _ref_there(remote: Remote, name: str) -> bytes | None:
    found = read_remote_ref(remote, name)
    return found[0] if found else None


def _send(remote: Remote, name: str, parts: Iterable[bytes], size: int, advance: Advance) -> int:
    """Make an object of all parts; its bytes. They wait in a file without a name, of which a kill leaves nothing."""
    with tempfile.TemporaryFile() as file:
        file.writelines(parts)
        file.seek(0)
        remote.write(name, Path(f"/dev/fd/{file.fileno()}"), size, advance)
        return os.fstat(file.fileno()).st_size


def _missing(remote: Remote, entries: list[Entry]) -> list[Entry]:
    """The entries that the remote store does not have. Raises StoreError when it has a key with other arrays."""
    missing = []

    def ask(entry: Entry, advance: Advance) -> None:
        advance(0)
        found = _arrays_there(remote, listed(entry))
        if found is None:
            missing.append(entry)
        elif found != listed(entry).arrays:
            raise StoreError(
                f"{remote.where(listed(entry).object)}: has other content than {entry.path}. Push to a URL of its own; "
                "`bin/cache verify` tells whether the entry here is damaged"
            )

    several(ask, entries, AT_ONCE, lambda size: None)
    return missing


def _arrays_there(remote: Remote, entry: Listed) -> str | None:
    """The MD5 of what an object's manifest says of its arrays; None where there is no such object, or no manifest."""
    data = remote.read(entry.object, _HEAD_BYTES) or b""
    with suppress(tarfile.TarError, ValueError, RecursionError, KeyError, TypeError):
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as tar:
            first = tar.next()
        if first and first.name == f"{'/'.join(entry.id)}/zarr.json" and first.size < JSON_BYTES:
            end = first.offset_data + first.size
            if end > len(data):
                data = remote.read(entry.object, end) or b""
            return content_md5(unsealed(json.loads(data[first.offset_data : end])["attributes"])["arrays"])
    return None
