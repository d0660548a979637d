"""The command that writes simulated bars."""

if __name__ == "__main__":  # before all that takes a while to load
    from cache.early import end_on_interrupt

    end_on_interrupt()

import sys
from pathlib import Path
from time import perf_counter

import click
import numpy as np
import pyarrow.parquet as pq

from cache.console import Console, command, examples, run
from pipeline.simulate import MAX_ROWS, simulate_bars

FILE_NAME = "simfx_m1.parquet"


@command(
    epilog=examples(
        "bin/simulate --out data",
        "bin/build-cache --config configs/demo.yaml --data-dir data",
    )
)
@click.option(
    "--out",
    "folder",
    type=click.Path(file_okay=False, path_type=Path),
    required=True,
    metavar="DIR",
    help=f"Folder for {FILE_NAME}; made if it is not there.",
)
@click.option(
    "--rows",
    type=click.IntRange(1, MAX_ROWS),
    default=90_000,
    show_default=True,
    help="Number of bars; 90,000 are about three months.",
)
@click.option(
    "--seed", type=click.IntRange(0), default=0, show_default=True, help="The same rows and seed give the same bars."
)
def main(folder: Path, rows: int, seed: int) -> None:
    """Write simulated one-minute bars of a currency pair to DIR/simfx_m1.parquet.

    The bars look like EUR/USD: weeks from Sunday to Friday 17:00 New York time, calm and stressed days, busy and quiet
    hours, missing minutes. The timestamp is the bar's open, in UTC.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / FILE_NAME
    start = perf_counter()
    console = Console(sys.stdout)
    with console.bar("simulating", "rows", rows) as bar:

        def show(written: int) -> None:
            bar.update(written - bar.n)

        simulate_bars(path, rows, seed, show)
    seconds = perf_counter() - start
    first, last = _first_and_last(path)
    console.line(f"{path}: {rows:,} rows, {path.stat().st_size / 1e6:.1f} MB, {seconds:.1f} s")
    console.line(f"{first} to {last} UTC")
    console.line(f"Next: bin/build-cache --config configs/demo.yaml --data-dir {folder}")


def _first_and_last(path: Path) -> tuple[str, str]:
    """Return the first and the last bar's open, to the minute."""
    file = pq.ParquetFile(path)
    first, last = (
        file.read_row_group(group, columns=["timestamp"]).column(0).to_numpy()[row]
        for group, row in ((0, 0), (file.num_row_groups - 1, -1))
    )
    return np.datetime_as_string(first, unit="m"), np.datetime_as_string(last, unit="m")


if __name__ == "__main__":
    run(main, "bin/simulate")
