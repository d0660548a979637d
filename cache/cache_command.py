"""bin/cache: look into a store."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from cache.console import HELP_OPTIONS, command, examples, run
from cache.reader import Dataset, Entry, StoreError, open_dataset, open_entry, read_ref, ref_names
from cache.stats import Stats, inputs, store_stats
from cache.timeframes import format_time

_store_option = click.option(
    "--store", type=click.Path(path_type=Path), default="store", show_default=True, help="The store."
)
_json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON, for scripts.")


@command(name="stats", epilog=examples("bin/cache stats", "bin/cache stats --store /data/store --json"))
@_store_option
@_json_option
def stats_command(store: Path, as_json: bool) -> None:
    """Count entries and bytes.

    By stage, by dataset (with what it shares with others), and of what no dataset needs. Exits with 1 when something
    damaged was found; what is intact is counted all the same.
    """
    found = store_stats(store)
    if as_json:
        _print_json({"store": str(store.resolve()), **asdict(found)})
    else:
        click.echo("\n".join(_stats_lines(store, found)))
    if found.damaged:
        raise StoreError("\n".join(found.damaged))


@command(name="list", epilog=examples("bin/cache list", "bin/cache list --store /data/store --json"))
@_store_option
@_json_option
def list_command(store: Path, as_json: bool) -> None:
    """List the datasets.

    Name, key, timeframes, number of windows, and when each was last asked for. Exits with 1 when one of them is
    damaged; the others are listed all the same.
    """
    found, damaged = [], []
    for name in ref_names(store):
        try:
            found.append(_listed(open_dataset(store, name), read_ref(store, name)["updated"]))
        except StoreError as error:
            damaged.append(str(error))
    if as_json:
        _print_json(found)
    elif found:
        rows = [
            (one["name"], one["key"], " ".join(one["timeframes"]), f"{one['windows']:,}", one["updated"])
            for one in found
        ]
        click.echo("\n".join(_table([("name", "key", "timeframes", "windows", "updated"), *rows], right={3})))
    elif not damaged:
        click.echo(f"{store}: no datasets yet")
    if damaged:
        raise StoreError("\n".join(damaged))


@command(name="show", epilog=examples("bin/cache show demo", "bin/cache show demo --json | jq .splits"))
@click.argument("name")
@_store_option
@_json_option
def show_command(name: str, store: Path, as_json: bool) -> None:
    """Show one dataset.

    Its windows, splits and features, how its sources were understood, and where its entries lie.
    """
    ref_names(store)  # a missing store is a plainer fault than a missing dataset
    dataset = open_dataset(store, name)
    if as_json:
        _print_json(_shown(dataset))
    else:
        click.echo("\n".join(_show_lines(dataset, store, read_ref(store, name)["updated"])))


main = click.Group(
    "cache",
    commands=[stats_command, list_command, show_command],
    help="Look into the store of datasets.",
    epilog=examples("bin/cache list", "bin/cache show demo", "bin/cache stats --store /data/store"),
    context_settings=HELP_OPTIONS,
)


def _listed(dataset: Dataset, updated: str) -> dict[str, Any]:
    return {
        "name": dataset.name,
        "key": dataset.entry.key,
        "timeframes": dataset.timeframes,
        "windows": sum(entries.windows.shape("time")[0] for entries in dataset.symbols.values()),
        "updated": updated,
    }


def _shown(dataset: Dataset) -> dict[str, Any]:
    return {
        "name": dataset.name,
        "key": dataset.entry.key,
        "timeframes": dataset.timeframes,
        "seq_len": dataset.seq_lens,
        "symbols": {
            symbol: {
                "windows": str(entries.windows.path.resolve()),
                "streams": {timeframe: str(entry.path.resolve()) for timeframe, entry in entries.streams.items()},
            }
            for symbol, entries in dataset.symbols.items()
        },
        "splits": dataset.splits,
        "recipe": dataset.recipe,
    }


def _stats_lines(store: Path, found: Stats) -> Iterator[str]:
    yield f"{store.resolve()}"
    yield ""
    stages = [(stage, f"{amount.entries:,}", _mb(amount.bytes)) for stage, amount in found.stages.items()]
    total = ("total", f"{found.total.entries:,}", _mb(found.total.bytes))
    yield from _table([("stage", "entries", "MB"), *stages, total], right={1, 2})
    yield ""
    datasets = [(one.name, f"{one.entries:,}", _mb(one.bytes), _mb(one.shared_bytes)) for one in found.datasets]
    unused = ("(no dataset)", f"{found.unreferenced.entries:,}", _mb(found.unreferenced.bytes), "")
    yield from _table([("dataset", "entries", "MB", "shared MB"), *datasets, unused], right={1, 2, 3})
    yield ""
    yield "MB: size of the array files, in millions of bytes. A dataset's entries are its windows, its streams and the"
    yield "bars they were made from; shared MB: the part of them that other datasets need as well."
    yield "(no dataset): what no dataset needs."


def _show_lines(dataset: Dataset, store: Path, updated: str) -> Iterator[str]:
    manifest, source = dataset.entry.manifest, dataset.recipe["source"]
    built, stream = manifest["built"], _any_stream(dataset)
    by = ", ".join(f"{name} {version}" for name, version in built["by"].items())
    statistics = stream.manifest["statistics"]
    yield f"{dataset.name}  {dataset.entry.path.resolve()}"
    yield f"  built       {built['at']} by {by}; last asked for {updated}"
    yield f"  features    {stream.manifest['feature_set']}: {', '.join(stream.manifest['features'])}"
    yield f"  statistics  fitted on bars closed by {format_time(statistics['until'])}"
    yield f"  sources     {dataset.data_dir}"
    yield f"  meaning     label {source['label']}, timezone {source['timezone']}, session {source['session']}"
    for part, bounds in dataset.splits.items():
        limit = f"until {format_time(bounds['until'])}" if "until" in bounds else f"from {format_time(bounds['from'])}"
        yield f"  {part:<11} {limit}"
    for symbol, entries in dataset.symbols.items():
        time = entries.windows.array("time")
        yield ""
        yield f"{symbol}: {len(time):,} windows  {entries.windows.path.resolve()}"
        for part, bounds in dataset.splits.items():
            start, stop = bounds["windows"][symbol]
            first, last = format_time(time[start]), format_time(time[stop - 1])
            yield f"  {part:<11} {stop - start:,} windows, decided from {first} to {last}"
        rows = [
            (f"  {name}", str(dataset.seq_lens[name]), f"{one.shape('values')[0]:,}", str(one.path.resolve()))
            for name, one in entries.streams.items()
        ]
        yield from _table([("  timeframe", "bars a window", "bars", "stream"), *rows], right={1, 2})
        for entry in _bars(entries.windows, store):
            yield "; ".join([f"  bars of {entry.manifest['origin']}", *entry.manifest["remarks"]])


def _bars(windows: Entry, store: Path) -> Iterator[Entry]:
    for stage, key in inputs(windows):
        try:
            yield open_entry(store, stage, key)
        except StoreError:  # training does not need them, so they may be gone
            continue


def _any_stream(dataset: Dataset) -> Entry:
    return next(iter(next(iter(dataset.symbols.values())).streams.values()))


def _table(rows: Sequence[Sequence[str]], right: set[int]) -> Iterator[str]:
    """Lines of a table whose columns are as wide as they need to be; those in `right` are flush right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = [
            cell.rjust(width) if index in right else cell.ljust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        yield "  ".join(cells).rstrip()


def _mb(size: int) -> str:
    return f"{size / 1e6:,.1f}"


def _print_json(value: Any) -> None:
    click.echo(json.dumps(value, indent=2))


if __name__ == "__main__":
    run(main, "bin/cache")
