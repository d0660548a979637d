"""The main path of a build: find sources → plan → make what is missing → point the ref at the dataset."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from tqdm import tqdm

from cache.console import Console
from cache.keys import canonical_json, source_md5
from cache.reader import Dataset, StoreError, entry_exists, open_dataset, read_ref
from cache.recipe import Recipe
from cache.writer import write_json
from pipeline.bars import find_files
from pipeline.execute import build_node
from pipeline.plan import Node, Plan, SourceFile, make_plan


@dataclass(frozen=True)
class Outcome:
    """What a build did."""

    dataset: Dataset
    hit: list[str]
    built: list[str]


def build(recipe: Recipe, data_dir: Path, store: Path, workers: int, console: Console) -> Outcome:
    """Build the dataset of a recipe, reusing every entry that exists. Raises UserError and OSError."""
    with console.phase("fingerprint sources"):
        sources = fingerprint(recipe, data_dir, store)
    plan = make_plan(recipe, sources)
    tell_changes(recipe, store, console)
    hit = [node.label for step in plan.steps for node in step if _exists(node, store)]
    built: list[str] = []
    for step in plan.steps:
        missing = [node for node in step if not _exists(node, store)]
        if missing:
            built += run_step(missing, plan, store, workers, console)
    point_ref(plan, store)
    return Outcome(open_dataset(store, recipe.name), hit, built)


def fingerprint(recipe: Recipe, data_dir: Path, store: Path) -> dict[str, list[SourceFile]]:
    """The source files of every timeframe, with the MD5 of their content (remembered in the store)."""
    return {
        name: [SourceFile(path, source_md5(path, store / "sources")) for path in find_files(data_dir, pattern)]
        for name, pattern in sorted(recipe.source.files.items())
    }


def tell_changes(recipe: Recipe, store: Path, console: Console) -> None:
    """Say which fields of the recipe differ from the last build under this name."""
    try:
        last = read_ref(store, recipe.name)["recipe"]
    except StoreError:
        return
    for key, old, new in recipe.differences(last):
        console.line(f"  changed since the last build: {key} {old} → {new}")


def run_step(nodes: list[Node], plan: Plan, store: Path, workers: int, console: Console) -> list[str]:
    """Make the entries of one step, several at a time. Returns the labels of those made here."""
    with tqdm(
        unit=" rows", unit_scale=True, leave=False, file=console.stream, desc=f"  {nodes[0].components.stage}"
    ) as bar:

        def make(node: Node) -> bool:
            return build_node(node, plan.recipe, store, lambda rows: bar.update(rows) and None)

        made = parallel(make, nodes, workers)
    labels = [node.label for node, new in zip(nodes, made, strict=True) if new]
    for label in labels:
        console.line(f"  built {label}")
    return labels


def parallel(function: Callable[[Node], bool], nodes: list[Node], workers: int) -> list[bool]:
    """Apply `function` to every node; serially, through the same call, with one worker."""
    if workers == 1:
        return [function(node) for node in nodes]
    with ThreadPoolExecutor(workers) as pool:
        return list(pool.map(function, nodes))


def point_ref(plan: Plan, store: Path) -> None:
    """Let the recipe's name stand for the dataset, and keep the recipe as it was asked for."""
    ref = {
        "name": plan.recipe.name,
        "dataset": plan.dataset.components.key,
        "recipe": plan.recipe.model_dump(),
        "updated": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    write_json(store / "refs" / f"{plan.recipe.name}.json", canonical_json(ref))


def _exists(node: Node, store: Path) -> bool:
    return entry_exists(store, node.components.stage, node.components.key)
