"""bin/cache export and import: a dataset as one file."""

import os
import sys
from pathlib import Path

import click

from cache.console import HELP_OPTIONS, Console, command, examples, run
from cache.tables import of_store

_store_option = click.option(
    "--store", type=click.Path(path_type=Path), default="store", show_default=True, help="The store."
)
_workers_option = click.option(
    "--workers", type=click.IntRange(1), default=None, help="Threads.  [default: one a core]"
)


@command(name="export", epilog=examples("bin/cache export demo demo.tar", "bin/cache export sse /backup/sse.tar"))
@click.argument("name")
@click.argument("file", metavar="FILE.tar", type=click.Path(path_type=Path))
@_store_option
@_workers_option
def export_command(name: str, file: Path, store: Path, workers: int | None) -> None:
    """Write a dataset to one file.

    With all that it was made from: windows, streams and bars, compressed. Every array is checked against its MD5 on the
    way. The same dataset always gives the same bytes.
    """
    console = Console(sys.stdout)
    console.line(f"Exporting {name} of {store} to {file}")
    from cache.transfer import export_dataset  # after the first line, so that nobody waits in silence

    done = export_dataset(store, name, file, workers or os.cpu_count() or 1, console)
    console.line(
        f"Done in {console.since_start():.2f} s: {done.entries} entries, {done.bytes / 1e6:,.1f} MB as "
        f"{done.file_bytes / 1e6:,.1f} MB. Where it is needed: bin/cache import {file.name}"
    )


@command(
    name="import",
    kept=True,
    epilog=examples("bin/cache import demo.tar", "bin/cache import demo.tar --as theirs"),
)
@click.argument("file", metavar="FILE.tar", type=click.Path(path_type=Path))
@click.option("--as", "rename", metavar="NEWNAME", help="Name the dataset so, and not as the file does.")
@_store_option
@_workers_option
def import_command(file: Path, rename: str | None, store: Path, workers: int | None) -> None:
    """Take a dataset from a file that bin/cache export wrote.

    Its structure is checked before anything is written, then each array against its MD5 before it appears. What the
    store holds already is not unpacked again.
    """
    console = Console(sys.stdout)
    console.line(f"Importing {file} into {store}")
    from cache.transfer import import_dataset  # after the first line, so that nobody waits in silence

    done = import_dataset(file, store, rename, workers or os.cpu_count() or 1, console)
    console.line(
        f"Done in {console.since_start():.2f} s: {done.entries} of {done.of_entries} entries unpacked, "
        f"{done.bytes / 1e6:,.1f} MB{'; the others were here' * (done.entries < done.of_entries)}. Look at it: "
        f"bin/cache show {done.name}{of_store(store)}"
    )


main = click.Group("cache", commands=[export_command, import_command], context_settings=HELP_OPTIONS)


if __name__ == "__main__":
    run(main, "bin/cache")
