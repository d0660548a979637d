"""Why an entry is not there: the nearest one that is, and what tells them apart, in the recipe's own words."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

from cache.entries import Entry
from cache.keys import Components
from cache.seal import content_md5
from cache.tables import few

_SAME = ("kind", "timeframe")  # fields without which entries have nothing in common
_FEW_PARTS = 6  # inputs of any entry but a dataset's
_LONG_LIST = 8


@dataclass
class _Alike:
    """Entries, by rank, that differ in the content of their inputs alone: what these are, by name, as MD5."""

    components: Mapping[str, Any]  # of the first
    names: frozenset[str]
    parts: list[tuple[int, Mapping[str, str]]] = field(default_factory=list)
    found_by: dict[tuple[str, ...], dict[tuple[str, ...], int]] = field(default_factory=dict)

    def with_same(self, names: tuple[str, ...], wanted: Mapping[str, str]) -> int | None:
        """The rank of the first entry with the same inputs of these names."""
        if names not in self.found_by:
            found = self.found_by[names] = {}
            for rank, parts in self.parts:
                found.setdefault(tuple(parts[name] for name in names), rank)
        return self.found_by[names].get(tuple(wanted[name] for name in names))

    def nearest(self, wanted: Mapping[str, str]) -> tuple[int, int]:
        """How many inputs tell `wanted` from the nearest of these entries, and its rank."""
        either, both = self.names | wanted.keys(), sorted(self.names & wanted.keys())
        if len(both) > _FEW_PARTS:  # a dataset, of which there are few
            return min((len(either) - sum(parts[n] == wanted[n] for n in both), rank) for rank, parts in self.parts)
        for size in range(len(both), 0, -1):
            ranks = [self.with_same(names, wanted) for names in combinations(both, size)]
            if found := [rank for rank in ranks if rank is not None]:
                return len(either) - size, min(found)
        return len(either), self.parts[0][0]


class Neighbours:
    """The entries of one stage, best first, and which of them is nearest to one that is not there.

    The time of a search does not grow with the number of symbols.
    """

    def __init__(self, entries: Iterable[Entry]) -> None:
        self._entries = list(entries)
        self._groups: dict[Any, dict[tuple[str, frozenset[str]], _Alike]] = defaultdict(dict)
        self._apart: dict[tuple[str, str], int] = {}
        for rank, entry in enumerate(self._entries):
            known = entry.manifest["components"]
            parts = _parts(known["stage"], known["inputs"])
            of = content_md5([known["version"], known["fields"]]), frozenset(parts)
            alike = self._groups[_kind(known["fields"])].setdefault(of, _Alike(known, of[1]))
            alike.parts.append((rank, parts))

    def nearest(self, wanted: Components) -> tuple[Entry, list[str]] | None:
        """The entry that differs least, the first of equals, and the differences as `field old → new`.

        None where no entry is of the same kind and timeframe.
        """
        parts, of = _parts(wanted.stage, wanted.inputs), content_md5([wanted.version, wanted.fields])
        found = []
        for (known, _), alike in self._groups[_kind(wanted.fields)].items():
            apart, rank = alike.nearest(parts)
            found.append((apart + self._fields_apart(known, alike.components, of, wanted), rank))
        if not found:
            return None
        entry = self._entries[min(found)[1]]
        return entry, list(differences(entry.manifest["components"], wanted.as_dict()))

    def _fields_apart(self, known: str, old: Mapping[str, Any], of: str, wanted: Components) -> int:
        if (known, of) not in self._apart:
            differ = list(_fields(old["fields"], wanted.fields, "data"))
            self._apart[known, of] = len(differ) + (old["version"] != wanted.version)
        return self._apart[known, of]


def _kind(fields: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(fields.get(name) for name in _SAME)


def _parts(stage: str, inputs: Mapping[str, Any]) -> dict[str, str]:
    """The inputs that count one by one."""
    if stage == "windows" and "recordings" not in inputs:
        inputs = {"bars": inputs}
    return {name: content_md5(value) for name, value in inputs.items()}


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[str]:
    """What tells two components (as dictionaries) of a stage apart."""
    if old["version"] != new["version"]:
        yield f"version of stage {new['stage']} {old['version']} → {new['version']}"
    for name, before, after in _fields(old["fields"], new["fields"], "data"):
        yield f"{name} {value_words(before)} → {value_words(after)}"
    yield from _inputs(str(new["stage"]), old["inputs"], new["inputs"])


def _fields(old: Any, new: Any, at: str) -> Iterator[tuple[str, Any, Any]]:
    """Dotted keys whose values differ; a number that is the same for every timeframe counts once."""
    if _uniform(old) and _uniform(new):
        old, new = next(iter(old.values())), next(iter(new.values()))
    if isinstance(old, dict) and isinstance(new, dict):
        for key in {**new, **old}:
            yield from _fields(old.get(key), new.get(key), f"{at}.{key}")
    elif old != new:
        yield at, old, new


def _uniform(value: Any) -> bool:
    """Whether this is one number, repeated for several timeframes."""
    numbers = list(value.values()) if isinstance(value, dict) else []
    return len(numbers) > 1 and isinstance(numbers[0], int) and len(set(numbers)) == 1


def _inputs(stage: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[str]:
    if stage == "datasets":
        for what, names in (("added", new.keys() - old.keys()), ("removed", old.keys() - new.keys())):
            if names:
                yield f"symbols {what}: {few(sorted(names))}"
        others = defaultdict(list)
        for symbol in sorted(name for name in new if name in old and old[name] != new[name]):
            parts = ["windows"] if old[symbol]["windows"] != new[symbol]["windows"] else []
            streams = new[symbol]["streams"]
            parts += [f"stream {name}" for name in streams if streams[name] != old[symbol]["streams"].get(name)]
            others[", ".join(parts) or "fewer streams"].append(symbol)
        for entries, symbols in others.items():
            yield f"{few(symbols)} {'has' if len(symbols) == 1 else 'have'} other entries: {entries}"
    elif stage == "windows" and "recordings" not in new:
        changed = [name for name in new if list(old.get(name, ())) != list(new[name])]
        if changed:
            yield f"other bars of {', '.join(changed)}"
    else:
        words = {
            "content": "new file",
            "span": "another part of the file",
            "recordings": "other recordings",
            "streams": "other values before they were normalised",
            "windows": "other labels or folds",
            "rows": "another symbol of the file",
            "bars": "other bars",
            "base": "other base bars",
            "split": "other base bars decide where training ends",
            "splits": "other base bars decide where training ends",
            "statistics": "other bars decide how it is scaled",
        }
        for name in {**new, **old}:
            if _plain(old.get(name)) != _plain(new.get(name)):
                yield words[name]


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def value_words(value: Any) -> str:
    """A value of the recipe in words."""
    if value is None:
        return "none"
    if not isinstance(value, list):
        return str(value)
    told = " ".join(map(str, value[:_LONG_LIST]))
    return told if len(value) <= _LONG_LIST else f"{told} … ({len(value):,})"
