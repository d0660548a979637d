"""The main path of a build: find sources → plan → explain → make what is missing → point the ref at the dataset."""

import shutil
import uuid
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path

from cache.console import Console
from cache.durable import check_interrupted, synced_at_the_end
from cache.entries import Entry, StoreError, open_entry
from cache.files import write_atomically
from cache.locks import REMOVER, building
from cache.reader import Dataset, open_dataset
from cache.recipes import AnyRecipe
from cache.refs import read_ref
from cache.seal import canonical_json, sealed
from cache.uses import record_use
from configs.errors import UserError
from pipeline.explain import Explanation, in_short, left_out_before, look_up, source_paths
from pipeline.plan import Node, Plan, Sources, blame
from pipeline.tasks import Executor, Job, Receipt, tasks_of
from pipeline.threads import Threads
from pipeline.ways import way_of

_DETAILED = 3  # symbols; of more, each has a line when all of it is built …
_TOLD = 20  # … and of more than these, every other, third and so on
_WITHOUT_SPLIT = ("bars", "windows")


@dataclass(frozen=True)
class Outcome:
    """What a build did."""

    dataset: Dataset
    sources: list[Entry]  # what was read of files
    reused: int  # entries that were there, or that other processes built meanwhile
    built: list[str]


@dataclass
class Made:
    """Labels of the entries made, and by key what was wrong with others."""

    labels: list[str] = field(default_factory=list)
    faults: dict[str, UserError] = field(default_factory=dict)


def build(
    recipe: AnyRecipe, data_dir: Path, store: Path, workers: int, console: Console, scheduler: str | None = None
) -> Outcome:
    """Build the dataset of a recipe, reusing every entry that exists. Raises UserError and OSError.

    The work is done by threads, or by a Dask `scheduler`: `local`, or its address.
    """
    way = way_of(recipe)
    with (
        building(store, console.waiting_for(REMOVER)),
        scratch_folder(store) as scratch,
        executor_of(scheduler, workers, recipe, console) as executor,
    ):
        check_interrupted(store, console)
        with console.phase("fingerprint sources"):
            sources = way.find_sources(recipe, data_dir.absolute() if scheduler else data_dir, store)
        job = Job(recipe, store.absolute() if scheduler else store, scratch.absolute())
        known = known_files(store, recipe.name)
        left_out: dict[str, str] = {}
        built: list[str] = []
        while True:
            plan = way.continued(way.make_plan(recipe, sources, left_out), sources, known, left_out)
            explanation = look_up(plan, sources, data_dir, store)
            if not built and not left_out:
                for line in opening_lines(plan, explanation, sources, data_dir, store):
                    console.line(line)
            missing = to_begin_with(plan, explanation.missing)
            made = Made()
            if missing:
                with synced_at_the_end(store, lambda: executor.write_all(job.store), console):
                    made = make_entries(missing, job, executor, console)
            built += made.labels
            if made.faults:
                left_out |= {symbol: str(error) for symbol, error in blame(plan, made.faults).items()}
            elif len(missing) == len(explanation.missing):
                break
        point_ref(plan, sources, data_dir, store)
    hits = [open_entry(store, node.components.stage, key) for key, node in explanation.hits.items()]
    if hits:
        saved = sum(float(entry.manifest["built"]["seconds"]) for entry in hits)
        record_use(store, "build", plan.dataset.components.key, saved)
    read = [open_entry(store, n.components.stage, n.components.key) for n in plan.nodes if n.file is not None]
    reused = len({node.label for node in plan.nodes} - set(built))
    return Outcome(open_dataset(store, recipe.name), read, reused, built)


def opening_lines(plan: Plan, explanation: Explanation, sources: Sources, data_dir: Path, store: Path) -> Iterator[str]:
    """Which symbols' files are of no use, what has changed, and what is to be built if the others are as they were."""
    yield from (f"  failed {symbol}: {why}" for symbol, why in plan.left_out.items())
    before = left_out_before(plan.recipe, sources, data_dir, store)
    if again := {symbol: why for symbol, why in before.items() if symbol not in plan.left_out}:
        likely = way_of(plan.recipe).make_plan(plan.recipe, sources, again)
        explanation = look_up(likely, sources, data_dir, store)
    yield from in_short(explanation, again)


def known_files(store: Path, name: str) -> dict[str, set[str]]:
    """By timeframe the MD5s of the files that the last dataset of a name was made of."""
    try:
        sources = read_ref(store, name)["sources"]
    except StoreError:
        return {}
    return {timeframe: set(paths.values()) for timeframe, paths in sources.items()}


@contextmanager
def executor_of(scheduler: str | None, workers: int, recipe: AnyRecipe, console: Console) -> Iterator[Executor]:
    """Threads, or a Dask cluster. Raises UserError where Dask is not installed, or cannot be reached."""
    if scheduler is None:
        yield Threads(workers, way_of(recipe).load, console)
        return
    if find_spec("distributed") is None:
        raise UserError("--scheduler needs Dask, which is not there: run bin/install scale")
    from pipeline.cluster import cluster  # Dask is an extra

    with cluster(scheduler, workers, console) as executor:
        yield executor


@contextmanager
def scratch_folder(store: Path) -> Iterator[Path]:
    """A place beside the entries that all workers see, while the build lasts; prune takes what a kill leaves."""
    folder = store / "bars" / f".{uuid.uuid4().hex}.divided"
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def to_begin_with(plan: Plan, missing: list[Node]) -> list[Node]:
    """What to make first: where symbols may be left out, what tells so before it is known where training ends."""
    first = [node for node in missing if node.components.stage in _WITHOUT_SPLIT]
    return first if first and plan.may_leave_out else missing


def make_entries(nodes: Sequence[Node], job: Job, executor: Executor, console: Console) -> Made:
    """Make entries, each after those it needs. What is wrong with the data of one does not keep others from being made.

    Any other fault, and Ctrl-C, ends the entries in progress; the finished ones stay.
    """
    made, times = Made(), dict[str, list[float]]()
    of_key = {node.components.key: node for node in nodes}
    left = Counter(node.symbol for node in nodes)
    detailed = len(left) <= _DETAILED
    done = symbols_done = 0
    with console.bar("building", way_of(job.recipe).unit) as bar:

        def heard(receipt: Receipt) -> None:
            nonlocal done, symbols_done
            done += len(receipt.built)
            for key in receipt.built:
                made.labels.append(of_key[key].label)
                if detailed:
                    console.line(f"  built {of_key[key].label}")
            for key, fault in receipt.faults:
                if key in of_key:
                    made.faults[key] = fault
                    console.line(f"  failed {of_key[key].label}: {fault}")
            for stage, began, ended in receipt.spans:
                times.setdefault(stage, []).extend((began, ended))
            ended_keys = {*receipt.built, *receipt.skipped, *dict(receipt.faults)} & of_key.keys()
            for symbol, count in Counter(of_key[key].symbol for key in ended_keys).items():
                left[symbol] -= count
                if left[symbol]:
                    continue
                symbols_done += 1
                if not detailed and symbols_done % (len(left) // _TOLD + 1) == 0:
                    console.line(f"  {symbol} done, {symbols_done:,} of {len(left):,}")

        try:
            executor.run(job, tasks_of(job, nodes, executor.groups), heard, bar.update)
        except KeyboardInterrupt:
            raise UserError(
                f"interrupted; {done} of {len(nodes)} entries to build are done and kept. Run the same command "
                "again to go on from there"
            ) from None
    console.line(f"  seconds by stage: {', '.join(f'{one} {max(at) - min(at):.2f}' for one, at in times.items())}")
    return made


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
