"""What lies in a store and what belongs together: entries, what they were built from, when each was of use last."""

import fcntl
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from cache.entries import Entry, StoreError, open_entry
from cache.files import in_words, listing
from cache.layout import SOURCES, STAGES
from cache.uses import read_uses

Id = tuple[str, str]  # stage, key
_KEY = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True)
class Abandoned:
    """A folder `.<key>.…` that nobody works on: a killed builder's, or half removed."""

    path: Path
    bytes: int


def stage_paths(store: Path, unread: list[OSError] | None = None) -> Iterator[tuple[str, Path]]:
    """All that lies in the stages' folders, hidden or not: (stage, path).

    A folder that cannot be read raises OSError, unless `unread` receives it: then nothing may be removed.
    """
    for stage in STAGES:
        try:
            paths = listing(store / stage)
        except OSError as error:
            if unread is None:
                raise
            unread.append(error)
            continue
        yield from ((stage, path) for path in paths)


def is_entry(path: Path) -> bool:
    """Whether this, in a stage's folder, is an entry, damaged or not."""
    return bool(_KEY.fullmatch(path.name)) and path.is_dir()


def entry_ids(store: Path, unread: list[OSError] | None = None) -> Iterator[Id]:
    """All published entries, damaged ones too. `unread`: see stage_paths."""
    for stage, path in stage_paths(store, unread):
        try:
            if is_entry(path):
                yield stage, path.name
        except OSError as error:
            if unread is None:
                raise
            unread.append(error)


def open_entries(
    store: Path,
    damaged: list[str],
    unread: list[OSError] | None = None,
    advance: Callable[[int], object] = lambda count: None,
) -> Iterator[tuple[Id, Entry]]:
    """All entries that can be opened; `damaged` receives what is wrong with the others, `advance` hears of each.

    `unread`: see stage_paths.
    """
    for one in entry_ids(store, unread):
        advance(1)
        try:
            yield one, open_entry(store, *one)
        except (StoreError, OSError) as error:  # OSError: a disk that fails, or no right to read
            damaged.append(in_words(error))


def inputs(entry: Entry) -> list[Id]:
    """The entries that this one was built from."""
    stage, named = entry.path.parent.name, entry.manifest["components"]["inputs"]
    if stage == "datasets":
        return [
            one
            for keys in named.values()
            for one in [("windows", keys["windows"]), *(("streams", key) for key in keys["streams"].values())]
        ]
    if stage in SOURCES:  # of a file, or derived from other bars
        return [("bars", key) for key in named.get("bars", [])]
    made_of = ((name if name in STAGES else "bars", key) for name, keys in named.items() for key in keys)
    return list(dict.fromkeys(made_of))


def closure(root: Id, entries: Mapping[Id, Entry]) -> set[Id]:
    """`root` and all that it was built from; what is not among `entries` is named, but not what that was built from."""
    found: set[Id] = set()
    waiting = [root]
    while waiting:
        one = waiting.pop()
        if one not in found:
            found.add(one)
            waiting.extend(inputs(entries[one]) if one in entries else ())
    return found


@dataclass(frozen=True)
class Diary:
    """By the key of a dataset: when it was last used, and the seconds of building that its uses saved."""

    last: Mapping[str, datetime]
    saved: Mapping[str, float]


def read_diary(store: Path) -> Diary:
    """The store's uses, summed up; what makes no sense there is passed over."""
    last: dict[str, datetime] = {}
    saved: dict[str, float] = {}
    for use in read_uses(store):
        with suppress(ValueError, TypeError):
            at, seconds, key = datetime.fromisoformat(use.at).astimezone(UTC), float(use.saved), str(use.dataset)
            last[key] = max(at, last.get(key, at))
            saved[key] = saved.get(key, 0.0) + (seconds if math.isfinite(seconds) else 0.0)
    return Diary(last, saved)


def built_at(entry: Entry) -> datetime:
    """When an entry was built."""
    return datetime.fromisoformat(entry.manifest["built"]["at"])


def last_uses(entries: Mapping[Id, Entry], diary: Diary) -> dict[Id, datetime]:
    """When every entry was of use last: used with a dataset, built, or read to build another."""
    moments = {one: built_at(entry) for one, entry in entries.items()}
    moments |= {one: max(at, diary.last.get(one[1], at)) for one, at in moments.items() if one[0] == "datasets"}
    last: dict[Id, datetime] = {}
    for one in sorted(moments, key=lambda one: moments[one], reverse=True):  # so that each is met by the latest first
        waiting = [one]
        while waiting:
            needed = waiting.pop()
            if needed not in last:
                last[needed] = moments[one]
                waiting.extend(inputs(entries[needed]) if needed in entries else ())
    return last


def names(dataset: Entry, entries: Mapping[Id, Entry]) -> Iterator[tuple[Id, str]]:
    """What the entries of a dataset are of, as far as these entries tell: `SIM0007 m5`."""
    for symbol, keys in dataset.manifest["components"]["inputs"].items():
        yield ("windows", keys["windows"]), symbol
        for timeframe, key in keys["streams"].items():
            one = ("streams", key)
            yield one, f"{symbol} {timeframe}"
            made_of = entries[one].manifest["components"]["inputs"] if one in entries else {}
            yield from ((("bars", bars), f"{symbol} {timeframe}") for bars in made_of.get("bars", ()))


def abandoned(store: Path, unread: list[OSError] | None = None) -> Iterator[Abandoned]:
    """What killed builders, and interrupted removals, left in the stages' folders. `unread`: see stage_paths."""
    for stage, path in stage_paths(store, unread):
        key = _KEY.match(path.name[1:]) if path.name.startswith(".") else None
        try:
            if key and not is_locked(store, (stage, key[0])):
                yield Abandoned(path, size_on_disk([path]))
        except OSError as error:
            if unread is None:
                raise
            unread.append(error)


def memos(store: Path) -> list[Path]:
    """What the builder remembers of source files."""
    return [p for p in listing(store / "sources") if p.suffix == ".json" and not p.name.startswith(".")]


def lock_path(store: Path, one: Id) -> Path:
    """The file whose lock is the right to build an entry."""
    return store / "locks" / f"{one[0]}-{one[1]}.lock"


def is_locked(store: Path, one: Id) -> bool:
    """Whether somebody is building an entry at this moment."""
    return is_held(lock_path(store, one))


def is_held(path: Path) -> bool:
    """Whether a process holds the lock of this file."""
    with suppress(FileNotFoundError), path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def size_on_disk(paths: Iterable[Path]) -> int:
    """Bytes of all files there and below; those that vanish meanwhile do not count."""
    total = 0
    for path in paths:
        with suppress(FileNotFoundError):
            if path.is_dir():
                total += size_on_disk(inner for inner in listing(path) if not inner.is_symlink())
            else:
                total += path.lstat().st_size
    return total
