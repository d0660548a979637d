"""The work of a build in pieces that any executor can do, in any process: what each needs, and what it reports."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from cache.recipe import Recipe
from cache.recipes import AnyRecipe
from configs.errors import UserError
from pipeline.divide import divide
from pipeline.execute import build_node
from pipeline.plan import Node, SourceFile

Advance = Callable[[int], None]


@dataclass(frozen=True)
class Job:
    """What all tasks of a build have in common. `scratch` is a folder that lasts as long as the build."""

    recipe: AnyRecipe
    store: Path
    scratch: Path


@dataclass(frozen=True)
class Task:
    """Entries to be made one after another, or a file of many symbols to be divided, after the tasks it needs."""

    name: str
    needs: tuple[str, ...]
    nodes: tuple[Node, ...] = ()
    divides: tuple[SourceFile, ...] = ()


@dataclass(frozen=True)
class Receipt:
    """What became of a task: keys of entries made here, rows, seconds by stage as (begun, finished), faults by key.

    Only faults of the data are reported; others end the build. An entry whose needs have a fault is not tried.
    """

    name: str
    built: tuple[str, ...] = ()
    rows: int = 0
    spans: tuple[tuple[str, float, float], ...] = ()
    faults: tuple[tuple[str, UserError], ...] = ()
    skipped: tuple[str, ...] = ()


class Executor(Protocol):
    """Whatever does tasks: those that a task needs first, several at a time."""

    groups: int | None  # about how many tasks a stage is divided into, by symbols; None: each entry is a task

    def write_all(self, store: Path) -> None:
        """Have every machine that tasks ran on write to the disk what they wrote to the store."""

    def run(self, job: Job, tasks: Sequence[Task], heard: Callable[[Receipt], None], advance: Advance) -> None:
        """Do all tasks. `heard` gets every receipt, in this thread, and `advance` rows, in any, as they are done.

        What a task or `heard` raises, and Ctrl-C, ends those in progress and is raised.
        """


def tasks_of(job: Job, nodes: Sequence[Node], groups: int | None) -> list[Task]:
    """Tasks for these nodes, each after those that it needs, which make every file of many symbols be read once.

    With `groups`, the symbols are divided into about so many, and a task holds a group's entries of a stage; windows go
    with their bars.
    """
    shared: dict[tuple[Path, str | None], list[Node]] = {}
    for node in nodes:
        if node.file and node.file.rows:
            shared.setdefault((node.file.path, node.timeframe), []).append(node)
    divided: dict[str, Node] = {}
    tasks = []
    for (_, timeframe), of_file in shared.items():
        first = of_file[0].file
        assert first is not None
        if len(of_file) > 1:
            into = job.scratch / f"{first.md5}-{timeframe}.arrow"
            files = [replace(node.file, divided=into) for node in of_file if node.file]
            tasks.append(Task(into.name, (), divides=tuple(files)))
            divided |= {n.components.key: replace(n, file=f) for n, f in zip(of_file, files, strict=True)}
    nodes = [divided.get(node.components.key, node) for node in nodes]
    symbols = list(dict.fromkeys(node.symbol for node in nodes if node.symbol != job.recipe.name))
    size = max(len(symbols) // groups, 1) if groups else 1
    leader = {symbol: symbols[number - number % size] for number, symbol in enumerate(symbols)}
    entries: dict[str, list[Node]] = {}
    for node in nodes:
        one = node.components
        stage = "bars" if one.stage == "windows" else one.stage
        entries.setdefault(f"{stage} {leader.get(node.symbol, node.symbol)}" if groups else one.key, []).append(node)
    of_key = {node.components.key: name for name, group in entries.items() for node in group}
    made = {name: Task(name, tuple(_needs(name, group, of_key)), tuple(group)) for name, group in entries.items()}
    return tasks + list(_in_order(made))


def _needs(name: str, group: Iterable[Node], of_key: dict[str, str]) -> dict[str, None]:
    files = [node.file.divided.name for node in group if node.file and node.file.divided]
    entries = [of_key[key] for node in group for key in node.needs if key in of_key and of_key[key] != name]
    return dict.fromkeys([*files, *entries])


def _in_order(tasks: dict[str, Task]) -> Iterator[Task]:
    done: set[str] = set()
    for first in tasks.values():
        waiting = [first]
        while waiting:
            task = waiting[-1]
            ahead = [tasks[name] for name in task.needs if name in tasks and name not in done]
            if ahead:
                waiting.extend(reversed(ahead))
                continue
            waiting.pop()
            if task.name not in done:
                done.add(task.name)
                yield task


def do(
    job: Job,
    task: Task,
    before: Iterable[Receipt],
    advance: Advance = lambda rows: None,
    waiting: Callable[[str], Callable[[], None]] = lambda label: lambda: None,
) -> Receipt:
    """Do a task, given the receipts of those that it needs. `waiting` says what is waited for."""
    faulty = {key for receipt in before for key in (*dict(receipt.faults), *receipt.skipped)}
    rows = 0

    def count(more: int) -> None:
        nonlocal rows
        rows += more
        advance(more)

    if task.divides:
        files = task.divides
        assert files[0].divided is not None
        assert isinstance(job.recipe, Recipe)
        try:
            divide(files[0].path, job.recipe.source, [tuple(f.rows.values()) for f in files], files[0].divided)
        except UserError as error:
            return Receipt(task.name, faults=((task.name, error),))
        return Receipt(task.name)
    failed_files = {key: fault for receipt in before for key, fault in receipt.faults}
    built, spans, skipped = [], [], []
    faults: dict[str, UserError] = {}
    for node in task.nodes:
        key = node.components.key
        if node.file and node.file.divided and node.file.divided.name in failed_files:
            faults[key] = failed_files[node.file.divided.name]
            continue
        if any(need in faulty for need in node.needs):
            skipped.append(key)
            faulty.add(key)
            continue
        began = time.time()
        try:
            if build_node(node, job.recipe, job.store, count, waiting(node.label)):
                built.append(key)
        except UserError as error:
            faults[key] = error
            faulty.add(key)
        spans.append((node.components.stage, began, time.time()))
    return Receipt(task.name, tuple(built), rows, tuple(spans), tuple(faults.items()), tuple(skipped))
