"""The main path of a build: find sources → plan → make what is missing → point the ref at the dataset."""

import threading
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from cache.console import Console
from cache.files import write_atomically
from cache.keys import canonical_json, source_md5
from cache.reader import Dataset, StoreError, entry_exists, open_dataset, open_entry, read_ref
from cache.recipe import Recipe
from pipeline import kernels
from pipeline.bars import SourceError, find_files
from pipeline.execute import build_node
from pipeline.plan import Node, Plan, SourceFile, make_plan


class StoppedError(Exception):
    """Ends the work in progress after another part has failed."""


@dataclass(frozen=True)
class Outcome:
    """What a build did."""

    dataset: Dataset
    remarks: list[str]  # how sources were understood, where that was not plain
    hits: int
    built: list[str]


def build(recipe: Recipe, data_dir: Path, store: Path, workers: int, console: Console) -> Outcome:
    """Build the dataset of a recipe, reusing every entry that exists. Raises UserError and OSError."""
    with console.phase("fingerprint sources"):
        sources = fingerprint(recipe, data_dir, store)
    plan = make_plan(recipe, sources)
    tell_changes(recipe, store, console)
    missing = [node for node in plan.nodes if not entry_exists(store, node.components.stage, node.components.key)]
    built = make_entries(missing, recipe, store, workers, console) if missing else []
    point_ref(plan, data_dir, store)
    bars = [open_entry(store, "bars", node.components.key) for node in plan.nodes if node.path is not None]
    remarks = [remark for entry in bars for remark in entry.manifest["remarks"]]
    return Outcome(open_dataset(store, recipe.name), remarks, len(plan.nodes) - len(missing), built)


def fingerprint(recipe: Recipe, data_dir: Path, store: Path) -> dict[str, list[SourceFile]]:
    """The source files of every timeframe, with the MD5 of their content (remembered in the store).

    Raises SourceError when two files of a timeframe hold the same.
    """
    sources = {
        name: [SourceFile(path, source_md5(path, store / "sources")) for path in find_files(data_dir, pattern)]
        for name, pattern in sorted(recipe.source.files.items())
    }
    for files in sources.values():
        first: dict[str, Path] = {}
        for file in files:
            if (same := first.setdefault(file.md5, file.path)) != file.path:
                raise SourceError(f"{file.path}: the same content as {same.name}; remove one of them")
    return sources


def tell_changes(recipe: Recipe, store: Path, console: Console) -> None:
    """Say which fields of the recipe differ from the last build under this name."""
    try:
        last = read_ref(store, recipe.name)["recipe"]
    except StoreError:
        return
    for key, old, new in recipe.differs_from(last):
        console.line(f"  changed since the last build: {key} {old} → {new}")


def make_entries(nodes: list[Node], recipe: Recipe, store: Path, workers: int, console: Console) -> list[str]:
    """Make entries, `workers` at a time, each after those it needs. Returns the labels of those made here.

    After a fault or Ctrl-C the entries in progress are abandoned and the finished ones stay.
    """
    stop = threading.Event()
    made: dict[str, Future[bool]] = {}
    labels = []
    with (
        console.bar("building", "rows") as bar,
        ThreadPoolExecutor(workers) as pool,
    ):

        def advance(rows: int) -> None:
            if stop.is_set():
                raise StoppedError
            bar.update(rows)

        def make(node: Node, before: list[Future[bool]]) -> bool:
            for future in before:  # earlier in the queue, so never behind this one
                future.result()
            return build_node(node, recipe, store, advance)

        try:
            pool.submit(kernels.load)  # beside the first parsing, which needs none
            for node in nodes:
                made[node.components.key] = pool.submit(make, node, [made[key] for key in node.needs if key in made])
            for node in nodes:
                if made[node.components.key].result():
                    bar.write(f"  built {node.label}", file=console.stream)
                    labels.append(node.label)
        except BaseException:
            stop.set()
            pool.shutdown(cancel_futures=True)
            raise
    return labels


def point_ref(plan: Plan, data_dir: Path, store: Path) -> None:
    """Let the recipe's name stand for the dataset, and keep the recipe as it was asked for."""
    ref = {
        "name": plan.recipe.name,
        "dataset": plan.dataset.components.key,
        "recipe": plan.recipe.model_dump(),
        "data_dir": str(data_dir.resolve()),
        "updated": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    write_atomically(store / "refs" / f"{plan.recipe.name}.json", canonical_json(ref))
