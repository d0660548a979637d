"""bin/encode: embeddings of a whole dataset, and how long one window takes."""

if __name__ == "__main__":  # before all that takes a while to load
    from cache.early import end_on_interrupt

    end_on_interrupt()

import sys
from pathlib import Path
from time import perf_counter

import click

from cache.console import Console, command, examples, run
from cache.files import check_output
from configs.errors import UserError
from trainer.runs import open_run


@command(
    epilog=examples(
        "bin/encode runs/demo --out embeddings/demo",
        "bin/encode runs/sse --out embeddings/sse-val --split val --batch-size 1024",
        "bin/encode runs/imu/fold0 --out embeddings/imu-0 --split val",
        "bin/encode runs/demo --latency --windows 1000",
    )
)
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--store", type=click.Path(path_type=Path), help="The store.  [default: the one it was trained on]")
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), help="The folder to write embeddings to.")
@click.option("--batch-size", type=click.IntRange(1), default=256, show_default=True, help="Windows at a time.")
@click.option(
    "--split",
    type=click.Choice(["all", "train", "val", "hold_out"]),
    default="all",
    show_default=True,
    help="Which windows; `all` has also those purged between the others, `hold_out` those of symbols that never train. "
    "Of recordings `val` is the fold that RUN validates on.",
)
@click.option("--latency", is_flag=True, help="Measure how long one window takes on the CPU; needs no store.")
@click.option("--windows", type=click.IntRange(1), default=200, show_default=True, help="Windows for --latency.")
def main(
    run: Path, store: Path | None, out: Path | None, batch_size: int, split: str, latency: bool, windows: int
) -> None:
    """Embed the windows of the dataset that RUN was trained on, with its best weights.

    DIR/encode.json tells what DIR holds, and lists its parts, by symbol and in order of time. Each part,
    DIR/parts/<md5>, is a Zarr v3 group of `embedding` float32 [window, timeframe, latent, channel] and `time`, the
    decision times; xarray opens it, and it is there whole or not at all. When a call is stopped, the same call goes on
    with what is missing. A folder with embeddings of other weights, another dataset or another split is refused.

    Recordings have no `time` but `padding` [window, latent], which latents are of padding alone, and their id, group,
    fold and labels stand in DIR/recordings.csv, a row each, in the order of the parts.
    """
    if latency == (out is not None):
        raise click.UsageError("give either --out DIR, to write embeddings, or --latency")
    if out:
        check_output("--out", out, folder=True)
    console = Console(sys.stdout)
    console.line(f"Encoding with {run}")
    if out is None:
        measure(console, run, windows)
        return
    with console.phase("open run"):
        _, dataset, fold = open_run(run, store)
    with console.phase("import torch, pandas, numba"):
        import torch

        from trainer.encode import Encoder
        from trainer.encode_dataset import encode_dataset, shape_of
        from trainer.encode_windows import window_ranges
    with console.phase("load encoder"):
        encoder = Encoder.load(run, "cuda" if torch.cuda.is_available() else "cpu")
    total = sum(len(own) for _, own in window_ranges(dataset, split, fold))
    what = "recordings" if dataset.folds else "windows"
    shape = " × ".join(map(str, shape_of(encoder)))
    console.line(f"  {dataset.name}: {total:,} {what}, {shape} float32 each (timeframes × latents × channels)")
    began = perf_counter()
    with console.bar("encode", what, total) as bar:
        made = encode_dataset(encoder, dataset, out, split, batch_size, bar.update)
    seconds = perf_counter() - began
    if made < total:
        console.line(f"  {total - made:,} {what} were there already")
    if made:
        console.line(f"  {made:,} {what} in {seconds:.2f} s, {made / seconds:,.0f} {what}/s")
    console.line(f"Done: {out / 'encode.json'} lists the parts")


def measure(console: Console, run: Path, windows: int) -> None:
    """Print the latency of one window on the CPU, frames in, tensor out."""
    with console.phase("import torch, pandas, numba"):
        import numpy as np
        import torch

        from trainer.encode import Encoder
        from trainer.encode_latency import latencies
    with console.phase("load encoder"):
        encoder = Encoder.load(run)
        if encoder.described["kind"] != "bars":
            raise UserError(f"{run}: was trained on recordings, and --latency is that of windows of bars; leave it out")
    with console.bar("encode", "windows", windows) as bar:
        p50, p99 = np.percentile(latencies(encoder, windows, bar.update), [50, 99])
    lengths = " ".join(f"{name}×{length}" for name, length in encoder.inputs.recipe.seq_lens.items())
    console.line(
        f"One window of {lengths}, from frames to embedding on the CPU ({torch.get_num_threads()} threads): p50 "
        f"{p50:.2f} ms, p99 {p99:.2f} ms of {windows:,} windows"
    )


if __name__ == "__main__":
    run(main, "bin/encode")
