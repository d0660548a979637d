"""Which entries of a store may go, and their removal. What a ref's dataset needs stays, its bars included.

A removed entry disappears at once: it gets another name before its files go. Who has mapped them reads on, because the
system keeps an unlinked file until its last map is closed.
"""

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cache.contents import (
    Id,
    abandoned,
    closure,
    entry_ids,
    is_held,
    is_locked,
    last_uses,
    memos,
    open_entries,
    read_diary,
    size_on_disk,
)
from cache.entries import Entry, StoreError, entry_path, open_entry
from cache.files import listing, sync
from cache.layout import FITTED, SOURCES, STAGES
from cache.refs import read_ref, ref_names
from cache.seal import unsealed

_UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}
_KILLED = "left by a process that was killed"
_LONG_AGO = datetime.min.replace(tzinfo=UTC)
_UNIT_OF = {name.lower(): size for name, size in _UNITS.items()}


@dataclass(frozen=True)
class Limits:
    """What may go: see `bin/cache prune --help`."""

    unreferenced: bool = False
    older_than: timedelta | None = None
    max_bytes: int | None = None


@dataclass(frozen=True)
class Removal:
    """Something to remove: an entry, or what killed processes and lost files left behind."""

    path: Path
    why: str
    bytes: int
    last_used: datetime | None = None  # of an entry that can be read


@dataclass(frozen=True)
class Plan:
    """What goes, and what stays: `stays` bytes in entries, `excess` of them above the limit because refs need them."""

    removals: tuple[Removal, ...]
    stays: int
    excess: int


def parse_size(text: str) -> int:
    """Bytes of a size such as `500MB`, `1.5 GB` (thousands) or `10GiB` (1,024s). Raises ValueError for other texts."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]i?B)", text.strip(), re.IGNORECASE)
    if not match:
        raise ValueError(f"{text!r} is not a size; write for example 500MB, 10GB, 1.5TB or 10GiB")
    return round(float(match[1]) * _UNIT_OF[match[2].lower()])


def plan_removal(
    store: Path, limits: Limits, now: datetime, advance: Callable[[int], object] = lambda count: None
) -> Plan:
    """What the limits let go; nothing is touched. `advance` hears of the entries looked at.

    Raises StoreError when a ref, or a manifest that it leads to, cannot be read: then nobody can tell what is needed.
    """
    entries = dict(open_entries(store, [], advance=advance))
    needed = _needed(store, entries)
    used = {one: last for one, last in last_uses(entries, read_diary(store)).items() if one in entries}
    free = [
        Removal(path, _why(used.get(one)), size_on_disk([path]), used.get(one))
        for one in entry_ids(store)
        for path in [entry_path(store, *one)]
        if one not in needed and not is_locked(store, one)
    ]
    # the least recently used first, and what was made of others before them; damaged entries are of no use at all
    free.sort(key=lambda r: (r.last_used or _LONG_AGO, -STAGES.index(r.path.parent.name)))
    left = [Removal(one.path, _KILLED, one.bytes) for one in abandoned(store)]
    chosen: list[Removal] = list(left) if limits.unreferenced else []
    if limits.older_than is not None:
        chosen += [r for r in free if (r.last_used or _LONG_AGO) < now - limits.older_than]
    elif limits.unreferenced:
        chosen += free
    stays = size_on_disk(store / stage for stage in STAGES) - sum(removal.bytes for removal in chosen)
    if limits.max_bytes is not None:
        known = {removal.path for removal in chosen}
        for removal in (*left, *free):
            if removal.path not in known and stays > limits.max_bytes:
                chosen.append(removal)
                stays -= removal.bytes
    chosen += _leftovers(store) if limits.unreferenced else []
    return Plan(tuple(chosen), stays, max(stays - limits.max_bytes, 0) if limits.max_bytes is not None else 0)


def remove(removals: tuple[Removal, ...], done: Callable[[Removal], None] = lambda removal: None) -> None:
    """Remove what was planned; `done` hears of each. Hold cache.locks.removing, and plan inside it."""
    for removal in removals:
        discard(removal.path)
        done(removal)


def discard(path: Path) -> None:
    """Remove an entry so that nobody ever sees part of it, or a file, or a folder that is no entry."""
    if path.is_dir() and not path.is_symlink():
        if not path.name.startswith("."):
            hidden = path.with_name(f".{path.name}.{os.getpid()}.removed")
            path.rename(hidden)
            sync(path.parent)
            path = hidden
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _needed(store: Path, entries: dict[Id, Entry]) -> set[Id]:
    """All that refs need, by name."""
    needed: set[Id] = set()
    for name in ref_names(store):
        words = "Nothing is removed while it is unknown what that dataset needs. Build it again, or let it go: delete"
        try:
            ids = closure(("datasets", read_ref(store, name)["dataset"]), entries)
            for one in sorted(ids - entries.keys()):
                if one[0] not in (
                    *SOURCES,
                    *FITTED,
                ):  # windows name the bars of every timeframe, so that these hide nothing
                    open_entry(store, *one)
        except StoreError as error:
            raise StoreError(f"{error}.\n{words} {store / 'refs' / name}.json") from None
        needed |= ids
    return needed


def _why(last_used: datetime | None) -> str:
    return "no dataset needs it" if last_used else "damaged, and no dataset needs it"


def _leftovers(store: Path) -> Iterator[Removal]:
    """Locks that nobody holds, memos of source files that are gone, and files that a kill left half written."""
    for path in listing(store / "locks"):
        if path.suffix == ".lock" and not is_held(path):
            yield Removal(path, "a lock that nobody holds", path.stat().st_size)
    for path in memos(store):
        with suppress(OSError, ValueError, KeyError, TypeError, IndexError):
            source = Path(unsealed(json.loads(path.read_bytes()))["file"][0])
            if not source.exists():
                yield Removal(path, "remembers a source file that is gone", path.stat().st_size)
    for folder in ("refs", "sources"):
        for path in listing(store / folder):
            if path.name.startswith(".") and path.suffix == ".partial":
                yield Removal(path, _KILLED, path.stat().st_size)
