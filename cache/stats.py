"""What a store holds: entries and bytes by stage, by dataset, and of what nothing refers to.

Only manifests and file sizes are read. Bytes are those of the array files; metadata is not counted, as it is by prune.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from cache.contents import Diary, Id, abandoned, built_at, closure, open_entries, read_diary
from cache.entries import Entry, StoreError, open_entry
from cache.files import in_words
from cache.layout import FITTED, SOURCES, STAGES
from cache.refs import check_store, read_ref, ref_names


@dataclass(frozen=True)
class Amount:
    """A number of entries and the bytes of their arrays."""

    entries: int
    bytes: int


@dataclass(frozen=True)
class StageAmount(Amount):
    """The same, with the instants (ISO 8601) when the oldest and the newest of them were built; None without any."""

    oldest: str | None
    newest: str | None


@dataclass(frozen=True)
class DatasetAmount:
    """What a ref needs: its dataset, windows and streams, and the bars or recordings they were made from."""

    name: str
    key: str
    entries: int
    bytes: int
    shared_bytes: int  # of entries that another ref needs too
    built: str | None  # ISO 8601; None where the dataset's entry is missing or damaged
    last_used: str  # ISO 8601: in the diary, else when it was last asked for
    saved_seconds: float  # of building, over all its uses


@dataclass(frozen=True)
class Stats:
    """`total` is the sum of `stages`; `damaged` says what is wrong with what could not be counted."""

    stages: dict[str, StageAmount]
    datasets: list[DatasetAmount]
    unreferenced: Amount
    abandoned: Amount  # folders that killed builders left, and all that is in them
    total: Amount
    saved_seconds: float  # of building, over all uses of datasets that are, or were, in the store
    damaged: list[str]


def store_stats(store: Path, advance: Callable[[int], object] = lambda count: None) -> Stats:
    """Count a store; `advance` hears of the entries.

    Raises StoreError where there is none; damaged entries and refs are named in the result.
    """
    check_store(store)
    damaged: list[str] = []
    unread: list[OSError] = []
    entries = dict(open_entries(store, damaged, unread, advance))
    diary = diary_of(store, damaged)
    left = [one.bytes for one in abandoned(store, unread)]
    refs = dict(open_refs(store, damaged))
    damaged += map(in_words, unread)
    needed = {name: _needed(("datasets", ref["dataset"]), store, entries, damaged) for name, ref in refs.items()}
    users = Counter(one for ids in needed.values() for one in ids)
    return Stats(
        {stage: _stage_amount([entry for one, entry in entries.items() if one[0] == stage]) for stage in STAGES},
        [
            DatasetAmount(
                name,
                ref["dataset"],
                len(needed[name]),
                _amount(needed[name], entries).bytes,
                _amount((one for one in needed[name] if users[one] > 1), entries).bytes,
                _built(entries.get(("datasets", ref["dataset"]))),
                last_used(ref, diary.last),
                round(diary.saved.get(ref["dataset"], 0.0), 3),
            )
            for name, ref in refs.items()
        ],
        _amount((one for one in entries if one not in users), entries),
        Amount(len(left), sum(left)),
        _amount(entries, entries),
        round(sum(diary.saved.values()), 3),
        list(dict.fromkeys(damaged)),
    )


def open_refs(store: Path, damaged: list[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """All refs that can be read, by name; `damaged` receives what is wrong with the others."""
    try:
        names = ref_names(store)
    except OSError as error:
        names = []
        damaged.append(in_words(error))
    for name in names:
        try:
            yield name, read_ref(store, name)
        except (StoreError, OSError) as error:
            damaged.append(in_words(error))


def diary_of(store: Path, damaged: list[str]) -> Diary:
    """The store's diary, an empty one where it cannot be read: then `damaged` receives why."""
    try:
        return read_diary(store)
    except OSError as error:
        damaged.append(in_words(error))
        return Diary({}, {})


def last_used(ref: Mapping[str, str], in_diary: Mapping[str, datetime]) -> str:
    """When a dataset was last used (ISO 8601): by its latest line in the diary, else when its ref was written."""
    found = in_diary.get(ref["dataset"])
    return found.isoformat(timespec="seconds") if found else ref["updated"]


def _needed(root: Id, store: Path, entries: Mapping[Id, Entry], damaged: list[str]) -> set[Id]:
    """What `root` needs, as far as it is there. Missing sources are no fault here: training needs none."""
    ids = closure(root, entries)
    for one in sorted(ids - entries.keys()):
        if one[0] not in (*SOURCES, *FITTED):
            try:
                open_entry(store, *one)
            except (StoreError, OSError) as error:
                damaged.append(in_words(error))
    return ids & entries.keys()


def _amount(ids: Iterable[Id], entries: Mapping[Id, Entry]) -> Amount:
    sizes = [entries[one].bytes for one in ids]
    return Amount(len(sizes), sum(sizes))


def _stage_amount(entries: list[Entry]) -> StageAmount:
    built = sorted(map(built_at, entries))
    oldest, newest = (built[0].isoformat(), built[-1].isoformat()) if built else (None, None)
    return StageAmount(len(entries), sum(entry.bytes for entry in entries), oldest, newest)


def _built(entry: Entry | None) -> str | None:
    return built_at(entry).isoformat() if entry else None
