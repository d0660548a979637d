"""The main path of a build: find sources → plan → explain → make what is missing → point the ref at the dataset."""

import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from cache.console import Console
from cache.files import write_atomically
from cache.locks import REMOVER, building
from cache.reader import Dataset, Entry, open_dataset, open_entry
from cache.recipes import AnyRecipe
from cache.seal import canonical_json, sealed
from cache.uses import record_use
from configs.errors import UserError
from pipeline.execute import build_node
from pipeline.explain import explain, in_short, source_paths
from pipeline.plan import Node, Plan, Sources
from pipeline.ways import way_of


class StoppedError(Exception):
    """Ends the work in progress after another part has failed."""


@dataclass(frozen=True)
class Outcome:
    """What a build did."""

    dataset: Dataset
    sources: list[Entry]  # what was read of files
    reused: int  # entries that were there, or that other processes built meanwhile
    built: list[str]


def build(recipe: AnyRecipe, data_dir: Path, store: Path, workers: int, console: Console) -> Outcome:
    """Build the dataset of a recipe, reusing every entry that exists. Raises UserError and OSError."""
    way = way_of(recipe)
    with building(store, console.waiting_for(REMOVER)):
        with console.phase("fingerprint sources"):
            sources = way.find_sources(recipe, data_dir, store)
        plan = way.make_plan(recipe, sources)
        explanation = explain(plan, sources, data_dir, store)
        for line in in_short(explanation):
            console.line(line)
        missing = explanation.missing
        built = make_entries(missing, recipe, store, workers, console) if missing else []
        point_ref(plan, sources, data_dir, store)
    hits = [open_entry(store, node.components.stage, key) for key, node in explanation.hits.items()]
    if hits:
        saved = sum(float(entry.manifest["built"]["seconds"]) for entry in hits)
        record_use(store, "build", plan.dataset.components.key, saved)
    read = [open_entry(store, n.components.stage, n.components.key) for n in plan.nodes if n.file is not None]
    return Outcome(open_dataset(store, recipe.name), read, len(plan.nodes) - len(built), built)


def make_entries(nodes: list[Node], recipe: AnyRecipe, store: Path, workers: int, console: Console) -> list[str]:
    """Make entries, `workers` at a time, each after those it needs. Returns the labels of those made here.

    After a fault or Ctrl-C the entries in progress are abandoned and the finished ones stay.
    """
    way = way_of(recipe)
    stop = threading.Event()
    made: dict[str, Future[bool]] = {}
    labels = []
    times: dict[str, list[float]] = {}  # by stage: when its entries were begun and finished
    with (
        console.bar("building", way.unit) as bar,
        ThreadPoolExecutor(workers) as pool,
    ):

        def advance(rows: int) -> None:
            if stop.is_set():
                raise StoppedError
            bar.update(rows)

        def make(node: Node, before: list[Future[bool]]) -> bool:
            for future in before:  # earlier in the queue, so never behind this one
                future.result()
            say = console.waiting_for(f"another process that builds {node.label}")

            def waiting() -> None:
                advance(0)
                say()

            began = time.perf_counter()
            try:
                return build_node(node, recipe, store, advance, waiting)
            finally:
                times.setdefault(node.components.stage, []).extend((began, time.perf_counter()))

        try:
            pool.submit(way.load)  # beside the first parsing, which needs none
            for node in nodes:
                made[node.components.key] = pool.submit(make, node, [made[key] for key in node.needs if key in made])
            for node in nodes:
                if made[node.components.key].result():
                    console.line(f"  built {node.label}")
                    labels.append(node.label)
        except BaseException as error:
            stop.set()
            pool.shutdown(cancel_futures=True)
            if isinstance(error, KeyboardInterrupt):
                done = sum(one.done() and not one.cancelled() and not one.exception() for one in made.values())
                raise UserError(
                    f"interrupted; {done} of {len(nodes)} entries to build are done and kept. Run the same command "
                    "again to go on from there"
                ) from None
            raise
    console.line(f"  seconds by stage: {', '.join(f'{one} {max(at) - min(at):.2f}' for one, at in times.items())}")
    return labels


def point_ref(plan: Plan, sources: Sources, data_dir: Path, store: Path) -> None:
    """Let the recipe's name stand for the dataset; keep the recipe as it was asked for, and what the sources were."""
    ref = {
        "name": plan.recipe.name,
        "dataset": plan.dataset.components.key,
        "recipe": plan.recipe.model_dump(),
        "data_dir": str(data_dir.resolve()),
        "sources": source_paths(sources, data_dir),
        "updated": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    write_atomically(store / "refs" / f"{plan.recipe.name}.json", canonical_json(sealed(ref)))
