"""What a store holds: entries and bytes by stage, by dataset, and of what nothing refers to.

Only manifests and file sizes are read. Bytes are those of the array files; metadata is not counted.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from cache.layout import STAGES
from cache.reader import Entry, StoreError, open_entry, read_ref, ref_names

Id = tuple[str, str]  # stage, key


@dataclass(frozen=True)
class Amount:
    """A number of entries and the bytes of their arrays."""

    entries: int
    bytes: int


@dataclass(frozen=True)
class DatasetAmount:
    """What a ref needs: its dataset, windows and streams, and the bars they were made from."""

    name: str
    key: str
    entries: int
    bytes: int
    shared_bytes: int  # of entries that another ref needs too


@dataclass(frozen=True)
class Stats:
    """`total` is the sum of `stages`; `damaged` says what is wrong with what could not be counted."""

    stages: dict[str, Amount]
    datasets: list[DatasetAmount]
    unreferenced: Amount
    total: Amount
    damaged: list[str]


def store_stats(store: Path) -> Stats:
    """Count a store. Raises StoreError where there is none; damaged entries and refs are named in the result."""
    names = ref_names(store)
    damaged: list[str] = []
    entries = dict(_open_all(store, damaged))
    needed: dict[str, set[Id]] = {}
    keys: dict[str, str] = {}
    for name in names:
        try:
            keys[name] = read_ref(store, name)["dataset"]
        except StoreError as error:
            damaged.append(str(error))
            continue
        needed[name] = _closure(("datasets", keys[name]), store, entries, damaged)
    users = Counter(one for ids in needed.values() for one in ids)
    return Stats(
        {stage: _amount((one for one in entries if one[0] == stage), entries) for stage in STAGES},
        [
            DatasetAmount(
                name,
                keys[name],
                len(ids),
                _amount(ids, entries).bytes,
                _amount((one for one in ids if users[one] > 1), entries).bytes,
            )
            for name, ids in needed.items()
        ],
        _amount((one for one in entries if one not in users), entries),
        _amount(entries, entries),
        list(dict.fromkeys(damaged)),
    )


def inputs(entry: Entry) -> list[Id]:
    """The entries that this one was built from. Raises StoreError when its manifest does not tell."""
    stage = entry.path.parent.name
    try:
        named = entry.manifest["components"]["inputs"]
        if stage == "datasets":
            return [
                one
                for keys in named.values()
                for one in [("windows", keys["windows"]), *(("streams", key) for key in keys["streams"].values())]
            ]
        if stage == "bars":  # of a file, or derived from other bars
            return [("bars", key) for key in named.get("bars", [])]
        return [("bars", key) for keys in named.values() for key in keys]
    except (KeyError, TypeError, AttributeError):
        raise StoreError(
            f"{entry.path}: damaged, its manifest does not say what it was built from. Run bin/build-cache "
            "again to remake it; nothing else is lost"
        ) from None


def _open_all(store: Path, damaged: list[str]) -> Iterator[tuple[Id, Entry]]:
    for stage in STAGES:
        for path in sorted((store / stage).glob("[!.]*")):  # names with a dot are entries under construction
            try:
                yield (stage, path.name), open_entry(store, stage, path.name)
            except StoreError as error:
                damaged.append(str(error))


def _closure(root: Id, store: Path, entries: Mapping[Id, Entry], damaged: list[str]) -> set[Id]:
    """`root` and all that it was built from, as far as it is there. Missing bars are no fault: training needs none."""
    found: set[Id] = set()
    waiting = [root]
    while waiting:
        one = waiting.pop()
        if one in found:
            continue
        try:
            if one in entries:
                found.add(one)
                waiting.extend(inputs(entries[one]))
            elif one[0] != "bars":
                open_entry(store, *one)  # for its words
        except StoreError as error:
            damaged.append(str(error))
    return found


def _amount(ids: Iterable[Id], entries: Mapping[Id, Entry]) -> Amount:
    sizes = [entries[one].bytes for one in ids]
    return Amount(len(sizes), sum(sizes))
