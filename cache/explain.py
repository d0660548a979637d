"""Why an entry is not there: the nearest one that is, and what tells them apart, in the recipe's own words."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from cache.entries import Entry
from cache.keys import Components

_SAME = ("kind", "timeframe")  # fields without which entries have nothing in common


def nearest(wanted: Components, entries: Iterable[Entry]) -> tuple[Entry, list[str]] | None:
    """The entry that differs least, the first of equals, and the differences as `field old → new`.

    None where no entry is of the same stage, kind and timeframe.
    """
    best: tuple[Entry, list[str]] | None = None
    for entry in entries:
        known = entry.manifest["components"]
        if entry.path.parent.name == wanted.stage and all(
            known["fields"].get(name) == wanted.fields.get(name) for name in _SAME
        ):
            found = list(differences(known, wanted.as_dict()))
            if best is None or len(found) < len(best[1]):
                best = entry, found
            if len(best[1]) <= 1:  # none is nearer; of thousands of symbols, nearly all have one that is as near
                break
    return best


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[str]:
    """What tells two components (as dictionaries) of a stage apart."""
    if old["version"] != new["version"]:
        yield f"version of stage {new['stage']} {old['version']} → {new['version']}"
    for field, before, after in _fields(old["fields"], new["fields"], "data"):
        yield f"{field} {value_words(before)} → {value_words(after)}"
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
                yield f"symbols {what}: {', '.join(sorted(names))}"
        for symbol in (name for name in new if name in old and old[name] != new[name]):
            parts = ["windows"] if old[symbol]["windows"] != new[symbol]["windows"] else []
            streams = new[symbol]["streams"]
            parts += [f"stream {name}" for name in streams if streams[name] != old[symbol]["streams"].get(name)]
            yield f"{symbol} has other entries: {', '.join(parts) or 'fewer streams'}"
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
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)
