"""bin/cache stats, list and show: look into a store."""

import json
import sys
from collections.abc import Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from cache.console import Console, command, examples
from cache.contents import read_diary
from cache.entries import StoreError
from cache.files import in_words
from cache.reader import Dataset, open_dataset
from cache.refs import check_store, read_ref
from cache.show import describe, show_lines
from cache.show_sequences import describe_sequences, sequence_lines
from cache.stats import Amount, DatasetAmount, Stats, diary_of, last_used, open_refs, store_stats
from cache.tables import age, first_of, mb, table

store_option = click.option(
    "--store", type=click.Path(path_type=Path), default="store", show_default=True, help="The store."
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON, for scripts.")

_LINES = 20  # of damaged entries


@command(name="stats", epilog=examples("bin/cache stats", "bin/cache stats --store /data/store --json"))
@store_option
@json_option
def stats_command(store: Path, as_json: bool) -> None:
    """Count entries and bytes.

    By stage, by dataset (with what it shares with others, when it was built and last used, and the seconds of building
    that its uses saved), and of what no dataset needs. Exits with 1 when something damaged was found; what is intact
    is counted all the same.
    """
    with Console(sys.stderr).bar("reading manifests", "entries") as bar:
        found = store_stats(store, bar.update)
    if as_json:
        print_json({"store": str(store.resolve()), **asdict(found)})
    else:
        click.echo("\n".join(_stats_lines(store, found, datetime.now(UTC))))
    if found.damaged:
        raise StoreError("\n".join([*first_of(found.damaged, _LINES), "What to do: bin/cache verify"]))


@command(name="list", epilog=examples("bin/cache list", "bin/cache list --store /data/store --json"))
@store_option
@json_option
def list_command(store: Path, as_json: bool) -> None:
    """List the datasets.

    Name, key, timeframes, number of windows, when each was last asked for, and when it was last used. Exits with 1
    when one of them is damaged; the others are listed all the same.
    """
    check_store(store)
    found, damaged = [], list[str]()
    diary = diary_of(store, damaged)
    for name, ref in open_refs(store, damaged):
        try:
            found.append(_listed(open_dataset(store, name), ref["updated"], last_used(ref, diary.last)))
        except (StoreError, OSError) as error:
            damaged.append(in_words(error))
    if as_json:
        print_json(found)
    elif found:
        now = datetime.now(UTC)
        rows = [
            (
                one["name"],
                one["key"],
                " ".join(one["timeframes"]),
                f"{one['windows']:,}",
                one["updated"],
                age(one["last_used"], now),
            )
            for one in found
        ]
        header = ("name", "key", "timeframes", "windows", "updated", "last used")
        click.echo("\n".join(table([header, *rows], right={3})))
    elif not damaged:
        click.echo(f"{store}: no datasets yet")
    if damaged:
        raise StoreError("\n".join(damaged))


@command(name="show", epilog=examples("bin/cache show demo", "bin/cache show demo --json | jq .splits"))
@click.argument("name")
@store_option
@json_option
def show_command(name: str, store: Path, as_json: bool) -> None:
    """Show one dataset.

    Its windows, splits or folds and features, how its sources were understood and what was repaired in them, what was
    checked, and where its entries lie.
    """
    check_store(store)  # a missing store is a plainer fault than a missing dataset
    dataset, ref = open_dataset(store, name), read_ref(store, name)
    used = last_used(ref, read_diary(store).last)
    if as_json:
        print_json((describe_sequences if dataset.folds else describe)(dataset, store, ref["updated"], used))
    else:
        click.echo("\n".join((sequence_lines if dataset.folds else show_lines)(dataset, store, ref["updated"], used)))


def print_json(value: Any) -> None:
    """For scripts."""
    click.echo(json.dumps(value, indent=2))


def _listed(dataset: Dataset, updated: str, used: str) -> dict[str, Any]:
    return {
        "name": dataset.name,
        "key": dataset.entry.key,
        "timeframes": dataset.timeframes,
        "windows": sum(entries.windows.shape("time")[0] for entries in dataset.symbols.values()),
        "updated": updated,
        "last_used": used,
    }


def _stats_lines(store: Path, found: Stats, now: datetime) -> Iterator[str]:
    yield f"{store.resolve()}"
    yield ""
    stages = [
        (stage, *_amount(amount), age(amount.oldest, now), age(amount.newest, now))
        for stage, amount in found.stages.items()
    ]
    total = ("total", *_amount(found.total), "", "")
    yield from table([("stage", "entries", "MB", "oldest", "newest"), *stages, total], right={1, 2})
    yield ""
    datasets = [
        (
            one.name,
            *_amount(one),
            mb(one.shared_bytes),
            age(one.built, now),
            age(one.last_used, now),
            f"{one.saved_seconds:,.1f}",
        )
        for one in found.datasets
    ]
    unused = [("(no dataset)", *_amount(found.unreferenced), "", "", "", "")]
    if found.abandoned.entries:
        unused.append(("(abandoned)", *_amount(found.abandoned), "", "", "", ""))
    header = ("dataset", "entries", "MB", "shared MB", "built", "last used", "saved s")
    yield from table([header, *datasets, *unused], right={1, 2, 3, 6})
    yield ""
    yield "MB: size of the array files, in millions of bytes (bin/cache prune counts their metadata, too). A dataset's"
    yield "entries are its windows, its streams and the bars or recordings they were made from; shared MB: the part of"
    yield "them that other datasets need as well."
    yield "saved s: seconds of building that later builds and trainings did not have to wait for, because it was done;"
    yield f"{found.saved_seconds:,.1f} in the whole store so far."
    if found.unreferenced.entries or found.abandoned.entries:
        yield "(no dataset): what no dataset needs; (abandoned): what killed builds left behind. To remove both:"
        yield "bin/cache prune --unreferenced"
    else:
        yield "(no dataset): what no dataset needs."


def _amount(amount: Amount | DatasetAmount) -> tuple[str, str]:
    return f"{amount.entries:,}", mb(amount.bytes)
