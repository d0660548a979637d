"""bin/cache verify and prune: keep a store whole and small."""

import shlex
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import click

from cache.console import Console, command, examples
from cache.entries import StoreError
from cache.inspect_command import json_option, print_json, store_option
from cache.locks import REMOVER, building, removing
from cache.prune import Limits, Plan, Removal, discard, parse_size, plan_removal
from cache.refs import UNKNOWN_DIR, check_store
from cache.stats import store_stats
from cache.tables import age, counted, mb, table
from cache.timeframes import duration_ns
from cache.verify import check_content, check_metadata, incomplete, repair
from cache.verify_lines import fault_lines, intact_line, of_what

_IN_FULL = 20  # things removed


def _parsed(parse: Any) -> Any:
    """A click callback that parses an option's text, and refuses it in the parser's words."""

    def callback(context: click.Context, parameter: click.Parameter, text: str | None) -> Any:
        try:
            return None if text is None else parse(text)
        except ValueError as error:
            raise click.BadParameter(str(error)) from None

    return callback


@command(
    name="verify",
    epilog=examples(
        "bin/cache verify", "bin/cache verify demo", "bin/cache verify --repair", "bin/cache verify --json"
    ),
)
@click.argument("name", required=False)
@click.option(
    "--repair", "repairing", is_flag=True, help="Remove what is damaged, so that the next build makes it again."
)
@store_option
@json_option
def verify_command(name: str | None, repairing: bool, store: Path, as_json: bool) -> None:
    """Read everything and check it.

    Every manifest, every name, and every byte of every array against its MD5, in the whole store or in all that the
    dataset NAME needs, the bars it was made from included. Of more than 10 faults those of a kind are counted, and the
    first are named; --json names all. Exits with 0 when all is intact, and with 1 otherwise, also when it could be
    repaired. What is missing or was removed is made again by bin/build-cache; nothing else is.
    """
    check_store(store)  # a missing one gets no folder for locks
    console, dropped = Console(sys.stderr), list[Path]()
    with ExitStack() as stack:
        if repairing:
            stack.enter_context(removing(store))
        else:
            with suppress(OSError):  # a store that is only read can be verified, too
                stack.enter_context(building(store, console.waiting_for(REMOVER)))  # nothing is removed meanwhile
        with console.bar("checking manifests", "entries") as bar:
            checked = check_metadata(store, name, bar.update)
        with console.bar("reading", "B", checked.bytes) as bar:
            findings = check_content(checked, bar.update)
        if repairing:
            dropped = repair(findings)
    if as_json:
        print_json(
            {
                "store": str(store.resolve()),
                "entries": len(checked.entries),
                "bytes": checked.bytes,
                "findings": [
                    {"file": str(one.file), "of": of_what(checked, one), "what": one.what, "remedy": one.remedy}
                    for one in findings
                ],
                "dropped": [str(path) for path in dropped],
            }
        )
    elif not findings:
        click.echo(intact_line(checked))
    elif repairing:
        click.echo("\n".join(removed_lines(store, dropped)))
    if findings:
        before = "as it was before: " if repairing else ""
        raise StoreError(before + "\n".join(fault_lines(checked, findings)))


@command(
    name="prune",
    epilog=examples(
        "bin/cache prune --unreferenced",
        "bin/cache prune --unreferenced --older-than 30d --yes",
        "bin/cache prune --max-size 10GB --yes",
    ),
)
@click.option(
    "--unreferenced", is_flag=True, help="Entries that no dataset needs, and what killed processes left behind."
)
@click.option(
    "--older-than",
    metavar="AGE",
    callback=_parsed(lambda text: timedelta(microseconds=duration_ns(text) // 1000)),
    help="Of these entries only those neither used nor built for so long: 12h, 30d, 8w.",
)
@click.option(
    "--max-size",
    metavar="SIZE",
    callback=_parsed(parse_size),
    help="Of these entries the least recently used ones, until the store is no larger: 500MB, 10GB, 10GiB.",
)
@click.option("--yes", is_flag=True, help="Remove them. Without it, what would go is only shown.")
@store_option
@json_option
def prune_command(
    unreferenced: bool, older_than: timedelta | None, max_size: int | None, yes: bool, store: Path, as_json: bool
) -> None:
    """Remove what no dataset needs.

    Shows what would go; --yes removes it. What a dataset in `bin/cache list` needs always stays, the bars it was made
    from included: to let a dataset go, delete its file refs/NAME.json first. Training that is under way is not
    disturbed. MB are those of all files, metadata included. Exits with 1 when --max-size cannot be reached.
    """
    if not unreferenced and older_than is None and max_size is None:
        raise click.UsageError("say what may go: --unreferenced, --older-than AGE, --max-size SIZE, or several of them")
    check_store(store)  # as above
    now, limits = datetime.now(UTC), Limits(unreferenced, older_than, max_size)
    console = Console(sys.stderr)
    with ExitStack() as stack:
        if yes:
            stack.enter_context(removing(store))
        with console.bar("reading manifests", "entries") as bar:
            plan = plan_removal(store, limits, now, bar.update)
        if yes:
            with console.bar("removing", "B", sum(removal.bytes for removal in plan.removals)) as bar:
                for removal in plan.removals:
                    discard(removal.path)
                    bar.update(removal.bytes)
    if as_json:
        print_json(
            {
                "store": str(store.resolve()),
                "removed": yes,
                "removals": [_removal_json(removal) for removal in plan.removals],
                "stays_bytes": plan.stays,
                "excess_bytes": plan.excess,
            }
        )
    else:
        click.echo("\n".join(_prune_lines(store, plan, yes, now)))
    if plan.excess:
        raise StoreError(_too_large(store, plan))


def removed_lines(store: Path, dropped: list[Path]) -> Iterator[str]:
    """What was removed from a store, and how it comes back."""
    yield "Removed:" if dropped else "There was nothing to remove."
    if len(dropped) <= _IN_FULL:
        yield from (f"  {path}" for path in dropped)
    else:
        yield from (f"  {folder}: {count:,}" for folder, count in Counter(path.parent for path in dropped).items())
    if any(path.parent.name == "refs" for path in dropped):
        yield (
            "A dataset whose name was removed gets it back from bin/build-cache with its configuration, or when its "
            "archive is imported again.\nIts entries count as unreferenced until then: do that before bin/cache prune."
        )
    waiting = incomplete(store)
    if waiting:
        yield "Build again, each with the configuration that it was built with; only what is missing is made:"
    for name, data_dir in waiting.items():
        words = ["--data-dir", data_dir, "--store", str(store)]
        yield f"  bin/build-cache --config CONFIG.yaml {shlex.join(words)}    # {name}"
    if UNKNOWN_DIR in waiting.values():
        yield "What was imported comes back, too, when its archive is imported again: bin/cache import FILE.tar"


def _removal_json(removal: Removal) -> dict[str, Any]:
    last_used = removal.last_used.isoformat(timespec="seconds") if removal.last_used else None
    return {"path": str(removal.path), "why": removal.why, "bytes": removal.bytes, "last_used": last_used}


def _prune_lines(store: Path, plan: Plan, done: bool, now: datetime) -> Iterator[str]:
    if not plan.removals:
        yield f"Nothing to remove; {mb(plan.stays)} MB in entries stay"
        return
    if len(plan.removals) <= _IN_FULL:
        rows = [
            (str(one.path.relative_to(store)), mb(one.bytes), age(one.last_used, now), one.why) for one in plan.removals
        ]
        yield from table([("path", "MB", "last used", "why"), *rows], right={1})
    else:
        yield from _kinds_table(plan, now)
    freed = f"{counted(len(plan.removals), 'item')}, {mb(sum(one.bytes for one in plan.removals))} MB"
    yield ""
    if done:
        yield f"Removed: {freed}; {mb(plan.stays)} MB in entries stay"
    else:
        yield f"Would be removed: {freed}; {mb(plan.stays)} MB in entries would stay"
        yield f"Nothing has been removed yet: --yes does it{'; --json lists each' * (len(plan.removals) > _IN_FULL)}"


def _kinds_table(plan: Plan, now: datetime) -> Iterator[str]:
    """What goes, by where it lies and why."""
    kinds: dict[tuple[str, str], list[Removal]] = {}
    for one in plan.removals:
        kinds.setdefault((one.path.parent.name, one.why), []).append(one)
    rows = []
    for (folder, why), of_kind in kinds.items():
        last = max((one.last_used for one in of_kind if one.last_used), default=None)
        rows.append((folder, f"{len(of_kind):,}", mb(sum(one.bytes for one in of_kind)), age(last, now), why))
    yield from table([("folder", "items", "MB", "last used", "why"), *rows], right={1, 2})


def _too_large(store: Path, plan: Plan) -> str:
    """Why a store does not fit, and which dataset may be the one to let go."""
    datasets = sorted(store_stats(store).datasets, key=lambda one: datetime.fromisoformat(one.last_used))
    what = f"{store}: {mb(plan.stays)} MB stay, {mb(plan.excess)} MB too many, because datasets need them"
    rows = [(f"  {one.name}", f"{mb(one.bytes - one.shared_bytes)} MB", age(one.last_used)) for one in datasets]
    lines = table([("  dataset", "needed by it alone", "last used"), *rows], right={1})
    how = f"To let one go, delete {store}/refs/NAME.json and prune again:"
    return "\n".join([f"{what}. {how}", *lines])
