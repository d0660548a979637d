"""bin/cache report: a dataset as a page to look at."""

import sys
from pathlib import Path

import click

from cache.console import Console, command, examples
from cache.files import write_atomically
from cache.inspect_command import store_option
from cache.reader import open_dataset
from cache.refs import check_store


@command(name="report", epilog=examples("bin/cache report demo", "bin/cache report demo --out report.html"))
@click.argument("name")
@click.option(
    "--out", type=click.Path(path_type=Path, dir_okay=False), default="report.html", show_default=True, help="The file."
)
@store_option
def report_command(name: str, out: Path, store: Path) -> None:
    """Draw a dataset as one HTML file.

    Of bars: coverage and gaps of every timeframe, windows dropped by rule, the split with its purge and embargo to
    scale, what one window sees, features in training against validation with drift marked, the certificate, and the
    keys of all entries. Of sequences: folds, lengths, channels, some recordings, the certificate and the keys. The file
    loads nothing from elsewhere and runs nothing.
    """
    console = Console(sys.stdout)
    check_store(store)  # a missing store is a plainer fault than a missing dataset
    dataset = open_dataset(store, name)
    console.line(f"Reporting on {name} {dataset.entry.key} in {store}")
    with console.phase("read and draw"):
        from pipeline.report import dataset_report  # after the first line, so that nobody waits in silence

        data = dataset_report(dataset, store).encode()
    write_atomically(out, data)
    console.line(f"report: {out} ({len(data) / 1e3:,.0f} kB); open it in a browser")
