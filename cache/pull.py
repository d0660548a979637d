"""Fetches a dataset from a remote store: the entries that are missing here, several at a time, then the ref."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from cache.archive import JSON_BYTES, closure_fault, read_entry
from cache.console import Console
from cache.entries import Entry, StoreError, entry_exists, entry_path, open_entry
from cache.files import write_atomically
from cache.locks import REMOVER, building, key_lock
from cache.members import ArchiveError, Members
from cache.parallel import Advance, several
from cache.push import AT_ONCE, read_remote_ref
from cache.receive import check_fit, check_space, new_ref, same_ref, with_kept
from cache.remote import Remote
from cache.remote_ref import Listed, listed
from cache.seal import canonical_json, sealed
from cache.transfer import Transferred
from cache.unpack import unpack_entry, waiting_for_entry


def pull_dataset(url: str, name: str, store: Path, rename: str | None, console: Console) -> Transferred:
    """Fetch the dataset `name`, and all that it was made from, from the remote store at `url`; then write the ref.

    Every array is checked by MD5 before its entry appears. A ref that came from elsewhere before is replaced. Raises
    StoreError when anything there is missing or damaged, when the store has another dataset of that name or other
    content under the same key; and OSError.
    """
    remote = Remote(url)
    with console.phase("read the ref"):
        found = read_remote_ref(remote, name)
    if found is None:
        raise StoreError(
            f"{remote.url}: there is no dataset named {name}; check the name and the URL to which it was pushed"
        )
    _, taken = found
    ref = new_ref(taken.ref, rename)
    with building(store, console.waiting_for(REMOVER)):
        known = same_ref(store, ref, renew=True)
        missing = [one for one in taken.entries if not _is_there(store, one, remote)]
        size = sum(one.bytes for one in missing)
        check_space(store, size)
        moved: list[int] = []
        try:
            with ThreadPoolExecutor(os.cpu_count()) as blocks, console.bar("fetching", "B", size) as bar:

                def fetch(one: Listed, advance: Advance) -> None:
                    with key_lock(store, *one.id, waiting_for_entry(console, one.id, advance)) as wanted:
                        if wanted:
                            moved.append(_fetch(remote, one, store, blocks, advance))
                        else:  # made by somebody else meanwhile
                            _is_there(store, one, remote)

                several(fetch, sorted(missing, key=lambda one: -one.bytes), AT_ONCE, bar.update)
            if wrong := closure_fault(ref["dataset"], {one.id: open_entry(store, *one.id) for one in taken.entries}):
                raise StoreError(f"{remote.url}: {name}: {wrong}. Push it again")
            check_fit(remote.url, store, ref["dataset"])
        except StoreError as error:
            raise with_kept(error, store, (one.id for one in missing)) from None
        if not known:
            write_atomically(store / "refs" / f"{ref['name']}.json", canonical_json(sealed(ref)))
    return Transferred(ref["name"], len(missing), len(taken.entries), size, sum(moved))


def _fetch(remote: Remote, one: Listed, store: Path, blocks: ThreadPoolExecutor, advance: Advance) -> int:
    """Fetch and unpack one entry, whose lock is held; the bytes of its object."""
    path = entry_path(store, *one.id)
    temporary = path.with_name(f".{path.name}.tar")  # if this is killed, the next try or bin/cache prune removes it
    temporary.parent.mkdir(parents=True, exist_ok=True)
    try:
        remote.fetch(one.object, temporary, one.bytes, 2 * one.bytes + JSON_BYTES, advance)
        with temporary.open("rb") as file:
            members = Members(temporary, file)
            entry = read_entry(members, one.id)
            members.end()
            if listed(Entry(path, entry.manifest)) != one:
                raise remote.damaged(one.object, "its arrays are not those that the ref lists")
            unpack_entry(temporary, file, store, entry, blocks, lambda size: advance(0))
            return temporary.stat().st_size
    except ArchiveError as error:
        raise remote.damaged(one.object, error.fault) from None
    finally:
        temporary.unlink(missing_ok=True)


def _is_there(store: Path, one: Listed, remote: Remote) -> bool:
    """Whether the store has an entry. Raises StoreError when it has the key with other arrays."""
    if not entry_exists(store, *one.id):
        return False
    if listed(open_entry(store, *one.id)) != one:
        raise StoreError(
            f"{entry_path(store, *one.id)}: {remote.url} has other content under this key. Pull into a store of its "
            "own: --store DIR; `bin/cache verify` tells whether the entry here is damaged"
        )
    return True
