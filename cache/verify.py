"""Checks a whole store, or all that one dataset needs, and removes what is damaged, so that a build makes it again."""

import os
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from cache.check import Body, Finding, check_body, check_entry, check_memo, check_ref, unread
from cache.contents import Id, closure, entry_ids, is_entry, memos, names, open_entries, stage_paths
from cache.entries import StoreError, entry_path, open_entry
from cache.prune import discard
from cache.reader import open_symbols
from cache.refs import check_store, read_ref, ref_names

_MAKE = "the next bin/build-cache makes it"


@dataclass(frozen=True)
class Checked:
    """All but the content of the arrays: what is wrong, and the arrays still to be read.

    `entries` are those there, `missing` those that a dataset needs; `names` tells what they are of, where it is known.
    """

    store: Path
    entries: tuple[Id, ...]
    missing: tuple[Id, ...]
    names: Mapping[Id, str]
    findings: tuple[Finding, ...]
    bodies: tuple[Body, ...]

    @property
    def bytes(self) -> int:
        """Of the arrays."""
        return sum(body.size for body in self.bodies)


def check_metadata(
    store: Path, name: str | None = None, advance: Callable[[int], object] = lambda count: None
) -> Checked:
    """Check the whole store, or all that the dataset `name` needs; `advance` hears of the entries.

    Raises StoreError where there is no such thing.
    """
    check_store(store)
    findings: list[Finding] = []
    closed: list[OSError] = []
    try:
        refs = ref_names(store)
    except OSError as error:
        refs = []
        closed.append(error)
    if name is not None and name not in refs:
        read_ref(store, name)  # for its words
    roots: dict[Id, str] = {}
    for of in refs if name is None else [name]:
        key, finding = check_ref(store / "refs" / f"{of}.json")
        if finding:
            findings.append(finding)
        else:
            roots.setdefault(("datasets", key), of)
    there, opened = list(entry_ids(store, closed)), dict(open_entries(store, [], []))
    needed: dict[Id, str] = {}
    for root, of in roots.items():
        needed.update(dict.fromkeys(sorted(closure(root, opened)), of))
    if name is None:
        try:
            findings += filter(None, map(check_memo, memos(store)))
        except OSError as error:
            closed.append(error)
        findings += _strangers(store, {Path(error.filename) for error in closed})
    else:
        there = [one for one in there if one in needed]
    findings += [unread(error, Path(error.filename)) for error in closed]
    bodies: list[Body] = []
    for one in there:
        advance(1)
        found, files = check_entry(store, *one)
        findings += found
        bodies += files
    silent = {Path(error.filename) for error in closed}
    missing = [
        one for one in sorted(needed.keys() - set(there)) if not silent & {entry_path(store, *one), store / one[0]}
    ]
    for one in missing:
        what = f"it is missing, and the dataset {needed[one]} needs it"
        findings.append(Finding(entry_path(store, *one), what, _MAKE))
    known = dict(item for root in roots if root in opened for item in names(opened[root], opened))
    return Checked(store, tuple(there), tuple(missing), known, tuple(findings), tuple(bodies))


def check_content(checked: Checked, advance: Callable[[int], object] = lambda count: None) -> tuple[Finding, ...]:
    """Read all arrays, several at a time, and complete the findings; `advance` hears of the bytes read."""
    lock = threading.Lock()

    def locked(count: int) -> None:
        with lock:
            advance(count)

    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        try:
            found = [one for one in pool.map(lambda body: check_body(body, locked), checked.bodies) if one]
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    findings = (*checked.findings, *found)
    return (*findings, *_misfits(checked, findings))


def repair(findings: tuple[Finding, ...]) -> list[Path]:
    """Remove what is damaged; what was removed. Hold cache.locks.removing, and check inside it."""
    to_drop = dict.fromkeys(finding.drop for finding in findings if finding.drop)
    dropped = [path for path in to_drop if to_drop.keys().isdisjoint(path.parents)]
    for path in dropped:
        discard(path)
    return dropped


def incomplete(store: Path) -> dict[str, str]:
    """The datasets that lack something, by name: the folder where the sources were when they were built last."""
    found: dict[str, str] = {}
    with suppress(OSError):  # a store that cannot be read: verify has said so
        opened = dict(open_entries(store, []))
        for name in ref_names(store):
            with suppress(StoreError):
                ref = read_ref(store, name)
                if closure(("datasets", ref["dataset"]), opened) - opened.keys():
                    found[name] = str(ref["data_dir"])
    return found


def _strangers(store: Path, closed: set[Path]) -> Iterator[Finding]:
    """What is no entry; a build may be making others meanwhile."""
    for _, path in stage_paths(store, []):
        if path not in closed and not path.name.startswith(".") and not is_entry(path):
            yield Finding(path, "it is no entry", "move it out of the store, or delete it")


def _misfits(checked: Checked, findings: tuple[Finding, ...]) -> Iterator[Finding]:
    """Datasets whose parts are whole but do not belong together, as far as opening one tells."""
    dropped, known = {finding.drop for finding in findings}, set(checked.entries)
    for stage, key in checked.entries:
        path = entry_path(checked.store, stage, key)
        if stage != "datasets" or path in dropped:
            continue
        try:
            dataset = open_entry(checked.store, stage, key)
        except (StoreError, OSError):  # told already
            continue
        parts = closure((stage, key), {(stage, key): dataset})
        if parts <= known and not any(entry_path(checked.store, *one) in dropped for one in parts):
            try:
                open_symbols(checked.store, dataset)
            except OSError:  # told already, too
                continue
            except StoreError as error:
                yield Finding(
                    path, f"its parts do not fit together ({error})", "bin/cache verify --repair removes it", path
                )
