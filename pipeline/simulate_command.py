"""The command that writes simulated bars, or recordings of gestures."""

if __name__ == "__main__":  # before all that takes a while to load
    from cache.early import end_on_interrupt

    end_on_interrupt()

import sys
from pathlib import Path
from time import perf_counter

import click
import numpy as np
import pyarrow.parquet as pq
from click.core import ParameterSource

from cache.console import Console, command, examples, run
from pipeline.simulate import MAX_ROWS, simulate_bars
from pipeline.simulate_imu import MAX_SEQUENCES, simulate_imu

BARS_FILE, IMU_FILE = "simfx_m1.parquet", "imu_sequences.csv"
UNIVERSE = "universe"


@command(
    epilog=examples(
        "bin/simulate --out data",
        "bin/build-cache --config configs/demo.yaml --data-dir data",
        "bin/simulate --symbols 20 --rows 30000 --out data",
        "bin/build-cache --config configs/universe.yaml --data-dir data",
        "bin/simulate --kind imu --out data",
        "bin/build-cache --config configs/imu.yaml --data-dir data",
    )
)
@click.option(
    "--out",
    "folder",
    type=click.Path(file_okay=False, path_type=Path),
    required=True,
    metavar="DIR",
    help="Folder for the file; made if it is not there.",
)
@click.option(
    "--kind",
    type=click.Choice(["bars", "imu"]),
    default="bars",
    show_default=True,
    help=f"bars: {BARS_FILE}; imu: recordings of gestures, {IMU_FILE}.",
)
@click.option(
    "--rows",
    type=click.IntRange(1, MAX_ROWS),
    default=90_000,
    show_default=True,
    help="Number of bars; 90,000 are about three months.",
)
@click.option(
    "--sequences",
    type=click.IntRange(1, MAX_SEQUENCES),
    default=1_000,
    show_default=True,
    help="Number of recordings, each of about 70 rows; 50 a person.",
)
@click.option(
    "--symbols",
    type=click.IntRange(1),
    default=None,
    help=f"Write so many symbols, each in a file {UNIVERSE}/SYMBOL/m1.parquet of --rows bars.",
)
@click.option(
    "--seed", type=click.IntRange(0), default=0, show_default=True, help="The same numbers and seed give the same file."
)
def main(folder: Path, kind: str, rows: int, sequences: int, symbols: int | None, seed: int) -> None:
    """Write simulated one-minute bars of a currency pair, or recordings of gestures, to a file in DIR.

    The bars look like EUR/USD: weeks from Sunday to Friday 17:00 New York time, calm and stressed days, busy and quiet
    hours, missing minutes. The timestamp is the bar's open, in UTC. The recordings are those of a watch: acceleration
    and pose (a quaternion) during one of eight gestures, of persons who differ, with gaps.
    """
    stated = click.get_current_context().get_parameter_source
    for other in ("sequences",) if kind == "bars" else ("rows", "symbols"):
        if stated(other) == ParameterSource.COMMANDLINE:
            raise click.UsageError(f"--{other} does not go with --kind {kind}; leave one out")
    folder.mkdir(parents=True, exist_ok=True)
    console = Console(sys.stdout)
    if kind == "bars" and symbols:
        _simulate_universe(folder, symbols, rows, seed, console)
    else:
        amount = rows if kind == "bars" else sequences
        (_simulate_bars if kind == "bars" else _simulate_imu)(folder, amount, seed, console)


def _simulate_bars(folder: Path, rows: int, seed: int, console: Console) -> None:
    path, start = folder / BARS_FILE, perf_counter()
    with console.bar("simulating", "rows", rows) as bar:
        simulate_bars(path, rows, seed, lambda written: bar.update(written - bar.n))
    seconds = perf_counter() - start
    first, last = _first_and_last(path)
    console.line(f"{path}: {rows:,} rows, {path.stat().st_size / 1e6:.1f} MB, {seconds:.1f} s")
    console.line(f"{first} to {last} UTC")
    console.line(f"Next: bin/build-cache --config configs/demo.yaml --data-dir {folder}")


def _simulate_universe(folder: Path, symbols: int, rows: int, seed: int, console: Console) -> None:
    start = perf_counter()
    with console.bar("simulating", "rows", symbols * rows) as bar:
        for number in range(symbols):
            path = folder / UNIVERSE / f"SIM{number:04}" / "m1.parquet"
            path.parent.mkdir(parents=True, exist_ok=True)
            simulate_bars(path, rows, seed + number, lambda written: None)
            bar.update(rows)
    seconds = perf_counter() - start
    console.line(f"{folder / UNIVERSE}: {symbols:,} symbols of {rows:,} rows, {seconds:.1f} s")
    console.line(f"Next: bin/build-cache --config configs/universe.yaml --data-dir {folder}")


def _simulate_imu(folder: Path, sequences: int, seed: int, console: Console) -> None:
    path, start = folder / IMU_FILE, perf_counter()
    with console.bar("simulating", "sequences", sequences) as bar:
        rows = simulate_imu(path, sequences, seed, lambda written: bar.update(written - bar.n))
    size, seconds = path.stat().st_size / 1e6, perf_counter() - start
    console.line(f"{path}: {sequences:,} sequences, {rows:,} rows, {size:.1f} MB, {seconds:.1f} s")
    console.line(f"Next: bin/build-cache --config configs/imu.yaml --data-dir {folder}")


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
