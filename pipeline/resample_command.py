"""bin/resample: write the bars of a higher timeframe as a parquet file."""

if __name__ == "__main__":  # before all that takes a while to load
    from cache.early import end_on_interrupt

    end_on_interrupt()

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING

import click
import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from cache.console import Console, command, examples, run
from cache.recipe import BarsSource
from cache.timeframes import timeframe_ns
from configs.errors import UserError
from configs.loader import SHIPPED, load_config

if TYPE_CHECKING:
    from pipeline.bars import Block


def _timeframe(context: click.Context, parameter: click.Parameter, value: str) -> str:
    try:
        timeframe_ns(value)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None
    return value


@command(
    epilog=examples(
        "bin/resample data/simfx_m1.parquet --timeframe h1 --out data/simfx_h1.parquet",
        "bin/resample data/simfx_m1.parquet --timeframe d --session-tz America/New_York --session-at 17:00 "
        "--out data/simfx_d.parquet",
    )
)
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--timeframe", required=True, callback=_timeframe, help="What to make, for example m15, h1 or d.")
@click.option(
    "--out", required=True, type=click.Path(dir_okay=False, path_type=Path), help="The parquet file to write."
)
@click.option("--base", default="m1", show_default=True, callback=_timeframe, help="The timeframe of FILE.")
@click.option(
    "--label",
    type=click.Choice(["left", "right"]),
    default="left",
    show_default=True,
    help="Whether the time stamps of FILE mark where bars begin or end.",
)
@click.option("--timezone", default="UTC", show_default=True, help="Zone of time stamps that carry none.")
@click.option("--session-tz", help="Zone of trading days, for --timeframe d.  [default: UTC days]")
@click.option("--session-at", metavar="HH:MM", help="Local time at which trading days begin and end.")
def main(
    file: Path,
    timeframe: str,
    out: Path,
    base: str,
    label: str,
    timezone: str,
    session_tz: str | None,
    session_at: str | None,
) -> None:
    """Derive bars of a higher timeframe from FILE, a parquet, Arrow or text file of bars.

    The result has the columns timestamp (where the bar begins, in UTC), open, high, low and close. Intraday bars begin
    at whole multiples of their length since midnight UTC. A last bar that FILE does not finish is left out.
    """
    if timeframe_ns(timeframe) <= timeframe_ns(base) or timeframe_ns(timeframe) % timeframe_ns(base):
        raise click.UsageError(f"--timeframe {timeframe} is not a multiple of the bars of FILE; --base says {base}")
    if out.resolve() == file.resolve():
        raise click.UsageError(f"--out {out} is FILE itself, which is kept")
    source = _source(file, base, label, timezone, session_tz, session_at)
    console = Console(sys.stdout)
    console.line(f"Resampling {file} from {base} to {timeframe}")
    with console.phase("import pyarrow, numba"):
        from pipeline.bars import ROLES, ReadLog, read_bars  # after the first line, as in build_command
        from pipeline.bars_writer import write_bars
        from pipeline.columns import recognise
        from pipeline.derive import derive_bars
        from pipeline.tables import open_table
    began = perf_counter()
    table = open_table(file)
    recognised = recognise(table, source)
    console.line(f"  format: {table.format}, " + ", ".join(f"{role}: {recognised.columns[role]}" for role in ROLES))
    for remark in recognised.remarks:
        console.line(f"  {remark}")
    rows = 0
    out.parent.mkdir(parents=True, exist_ok=True)
    with console.bar("resampling", "rows", table.rows) as bar:

        def counted(blocks: Iterable["Block"]) -> Iterator["Block"]:
            nonlocal rows
            for block in blocks:
                yield block
                rows += len(block.ohlc)
                bar.update(len(block.ohlc))

        base_bars = counted(read_bars(file, source, base, {}, ReadLog()))
        written = write_bars(out, _columns(derive_bars(base_bars, timeframe, source.session), f"{file}: {timeframe}"))
    console.line(f"{out}: {rows:,} rows in, {written:,} out, {perf_counter() - began:.2f} s")


def _source(
    file: Path, base: str, label: str, timezone: str, session_tz: str | None, session_at: str | None
) -> BarsSource:
    if (session_tz is None) != (session_at is None):
        raise click.UsageError("--session-tz and --session-at go together")
    described = {
        **load_config(SHIPPED / "base.yaml").values["data"]["source"],
        "files": {base: str(file)},
        "label": label,
        "timezone": timezone,
        "session": {"tz": session_tz, "at": session_at} if session_tz else None,
    }
    try:
        return BarsSource.model_validate(described)
    except ValidationError as error:
        fault = error.errors()[0]
        option = "--" + "-".join(map(str, fault["loc"]))
        raise click.UsageError(f"{option} {fault['input']}: {fault['msg'].removeprefix('Value error, ')}") from None


def _columns(bars: Iterable["Block"], what: str) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float64]]]:
    empty = True
    for block in bars:
        empty = False
        yield block.open_time, block.ohlc.T
    if empty:
        raise UserError(f"{what} bars: the file does not finish a single one; give more rows or a shorter --timeframe")


if __name__ == "__main__":
    run(main, "bin/resample")
