"""What a build would do, and why: the state of every source file and of every entry of a plan. Nothing is changed."""

import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from cache.entries import Entry, StoreError, entry_exists, entry_path, open_entry
from cache.explain import Neighbours, value_words
from cache.files import listing
from cache.reader import open_dataset
from cache.recipes import AnyRecipe
from cache.refs import check_folder, read_ref
from cache.tables import few, first_of
from pipeline.files import is_url, url_of
from pipeline.plan import Node, Plan, Sources
from pipeline.universe import Faults

Paths = dict[str, dict[str, str]]  # MD5 by timeframe and path
UNCHANGED, CHANGED = "unchanged", "content changed"


@dataclass(frozen=True)
class FileState:
    """A source file against the last build under this name."""

    timeframe: str
    path: str
    state: str


@dataclass(frozen=True)
class Verdict:
    """`hit`, `build`, or `stale source`: an entry to be built anew because the content of a source file changed."""

    node: Node
    state: str
    reasons: tuple[str, ...] = ()
    nearest: str | None = None  # key of the entry that the reasons compare with


@dataclass(frozen=True)
class Explanation:
    """All that a build finds before it works. `changes` compares the recipe with that of the last build."""

    files: tuple[FileState, ...]
    changes: tuple[str, ...]
    verdicts: tuple[Verdict, ...]

    @property
    def hits(self) -> dict[str, Node]:
        """Nodes whose entry is there, by key."""
        return {one.node.components.key: one.node for one in self.verdicts if one.state == "hit"}

    @property
    def missing(self) -> list[Node]:
        """Nodes to build."""
        return [one.node for one in self.verdicts if one.state != "hit"]


def explain(plan: Plan, sources: Sources, data_dir: Path, store: Path) -> Explanation:
    """Look up every entry of a plan, and for those that are missing what is nearest to them."""
    found = look_up(plan, sources, data_dir, store)
    return replace(found, verdicts=tuple(_with_reasons(found, plan, store)))


def look_up(plan: Plan, sources: Sources, data_dir: Path, store: Path) -> Explanation:
    """The same without reasons, for which all entries of the store must be read."""
    check_folder(store)
    last: dict[str, Any] | None = None
    with suppress(StoreError):
        last = read_ref(store, plan.recipe.name)
    files = tuple(_file_states(sources, data_dir, last["sources"])) if last else ()
    differ = plan.recipe.differs_from(last["recipe"]) if last else ()
    changes = [f"{field} {value_words(old)} → {value_words(new)}" for field, old, new in differ]
    if last:
        changes += _changed_plugin(plan, store)
    return Explanation(files, tuple(changes), tuple(_verdicts(plan, files, data_dir, store)))


def left_out_before(recipe: AnyRecipe, sources: Sources, data_dir: Path, store: Path) -> dict[str, str]:
    """Symbols that the last build under this name left out, and why; not those read, or given, otherwise now."""
    try:
        last = read_ref(store, recipe.name)
        left_out = open_entry(store, "datasets", last["dataset"]).manifest.get("left_out", {})
    except StoreError:
        return {}
    if any(
        field.startswith(("data.source", "data.universe.failing")) for field, *_ in recipe.differs_from(last["recipe"])
    ):
        return {}
    return {
        symbol: why
        for symbol, why in left_out.items()
        if symbol in sources
        and all(
            files.items() <= last["sources"].get(timeframe, {}).items()
            for timeframe, files in source_paths({symbol: sources[symbol]}, data_dir).items()
        )
    }


def _changed_plugin(plan: Plan, store: Path) -> Iterator[str]:
    """Whether the user's file of columns has another content than when the dataset was built."""
    wanted = {code for node in plan.nodes if (code := _plugin_code(node.components.fields))}
    if not wanted:
        return
    with suppress(StoreError):
        symbol = next(iter(open_dataset(store, plan.recipe.name).symbols.values()))
        before = _plugin_code(next(iter(symbol.streams.values())).manifest["components"]["fields"])
        if before and before not in wanted:
            yield f"data.features.plugin.code {before} → {' '.join(wanted)}"


def _plugin_code(fields: dict[str, Any]) -> str | None:
    code: str | None = (fields.get("features") or {}).get("plugin", {}).get("code")
    return code


def in_short(explanation: Explanation, left_out: Faults = MappingProxyType({})) -> Iterator[str]:
    """Lines for people: what has changed since the last build, and what is to be built.

    `left_out` are the symbols that the last build left out, and the explanation is of a plan without them.
    """
    told = [f"{file.path}: {file.state}" for file in explanation.files if file.state != UNCHANGED]
    yield from (f"  {line}" for line in first_of(told, 5))
    yield from (f"  changed since the last build: {change}" for change in explanation.changes)
    missing, total = explanation.missing, len(explanation.verdicts)
    if explanation.hits and missing:
        yield f"  {total - len(missing):,} of {total:,} entries are in the store; to build:"
        yield from (f"    {line}" for line in first_of([node.label for node in missing], 8))
    if left_out:
        yield f"  tried again, because the last build left out: {few(sorted(left_out))}"


def source_paths(sources: Sources, data_dir: Path) -> Paths:
    """The source files as a ref keeps them: {timeframe: {path: MD5}}, paths relative to `data_dir`."""
    paths: Paths = {}
    for of_symbol in sources.values():
        for timeframe, files in of_symbol.items():
            paths.setdefault(timeframe, {}).update((_told(f.path, data_dir), f.md5) for f in files if not f.fault)
    return paths


def _told(path: Path, data_dir: Path) -> str:
    """A path relative to `data_dir`, or a URL."""
    return url_of(path) if is_url(path) else os.path.relpath(path, data_dir)


def _file_states(sources: Sources, data_dir: Path, before: Paths) -> Iterator[FileState]:
    now = source_paths(sources, data_dir)
    touched = {_told(f.path, data_dir) for s in sources.values() for files in s.values() for f in files if f.touched}
    for timeframe, files in now.items():
        old = before.get(timeframe, {})
        gone = {md5: path for path, md5 in old.items() if path not in files}
        for path, md5 in files.items():
            if old.get(path) == md5:
                state = "touched only, a hit" if path in touched else UNCHANGED
            elif path in old:
                state = CHANGED
            elif md5 in gone:
                state = f"renamed from {gone.pop(md5)}, a hit"
            else:
                state = "new file"
            yield FileState(timeframe, path, state)
        for path in gone.values():
            if path not in files:
                yield FileState(timeframe, path, "no longer there")


def _verdicts(plan: Plan, files: tuple[FileState, ...], data_dir: Path, store: Path) -> Iterator[Verdict]:
    changed = {file.path for file in files if file.state == CHANGED}
    stale: set[str] = set()
    for node in plan.nodes:
        components = node.components
        if entry_exists(store, components.stage, components.key):
            yield Verdict(node, "hit")
            continue
        of_changed = node.file is not None and _told(node.file.path, data_dir) in changed
        if of_changed or not stale.isdisjoint(node.needs):
            stale.add(components.key)
        reasons = (f"the content of {node.file.path.name} changed",) if node.file and of_changed else ()
        yield Verdict(node, "stale source" if components.key in stale else "build", reasons)


def _with_reasons(explanation: Explanation, plan: Plan, store: Path) -> Iterator[Verdict]:
    had, last = _last_build(plan, store)
    stages: dict[str, tuple[Neighbours, str]] = {}
    if last:
        stages["datasets"] = Neighbours([last]), "yet"
    for verdict in explanation.verdicts:
        components = verdict.node.components
        if verdict.state == "hit":
            yield verdict
            continue
        if components.key in had:
            there = entry_path(store, components.stage, components.key).exists()
            what = "cannot be read: bin/cache verify says why" if there else "is gone"
            yield replace(verdict, reasons=(f"the last build under this name had it, and it {what}",))
            continue
        if components.stage not in stages:
            entries, unread = _entries(store, components.stage)
            none = "that can be read: bin/cache verify says why" if unread and not entries else "yet"
            stages[components.stage] = Neighbours(entries), none
        neighbours, none = stages[components.stage]
        found = neighbours.nearest(components)
        reasons = tuple(found[1]) if found else (f"the store holds no {_kind(verdict.node)} {none}",)
        yield replace(verdict, reasons=verdict.reasons or reasons, nearest=found[0].key if found else None)


def _last_build(plan: Plan, store: Path) -> tuple[set[str], Entry | None]:
    """The keys of entries that the last build under this name had, as far as is known, and its dataset, if it is there.

    Of another dataset than that of the plan its windows and streams are known.
    """
    keys, last = set[str](), None
    with suppress(StoreError):
        key = read_ref(store, plan.recipe.name)["dataset"]
        if key == plan.dataset.components.key:
            keys = {node.components.key for node in plan.nodes}
        last = open_entry(store, "datasets", key)
        for of in last.manifest["components"]["inputs"].values():
            keys |= {of["windows"], *of["streams"].values()}
    return keys, last


def _entries(store: Path, stage: str) -> tuple[list[Entry], int]:
    """All whole entries of a stage, the newest first, and how many others there are: damaged, or of another format."""
    found, unread = list[Entry](), 0
    for path in listing(store / stage):
        if not path.name.startswith("."):
            try:
                found.append(open_entry(store, stage, path.name))
            except StoreError:
                unread += 1
    return sorted(found, key=lambda entry: str(entry.manifest["built"]["at"]), reverse=True), unread


def _kind(node: Node) -> str:
    stage = node.components.stage
    return f"{stage} of {node.timeframe}" if node.timeframe else stage
