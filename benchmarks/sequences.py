"""Building a dataset of recordings from CSV, and its per-sequence work against the same by pandas, one by one.

cold       find, read, check, fill, interpolate, normalise for every fold, certify and write, into a new store; all that
           is imported has been before, and kernels are compiled
reading    the part of it that parses and checks the CSV
sequences  the part of it that fills gaps, derives channels and interpolates
pandas     that part, recording by recording: ffill, bfill, fillna and numpy.interp

The pandas result is compared with the store, once.
"""

import argparse
import io
import shutil
from pathlib import Path

import numpy as np
import pandas as pd

from benchmarks import measure
from cache.console import Console
from cache.entries import open_entry
from cache.recipes import parse_recipe
from cache.sequence_recipe import SequenceRecipe
from configs.loader import load_config
from pipeline import sequences_way
from pipeline.build import build
from pipeline.channels import channels_of
from pipeline.sequences import read_recordings
from pipeline.sequences_series import RecordingSeries
from pipeline.sequences_streams import in_threads, of_one_length

ORIGINAL = 775  # sequences a second, of what this stands in for
OVERRIDES = ("data.derive=[]", "data.length.seq_len=200")


def make_recipe() -> SequenceRecipe:
    recipe = parse_recipe(load_config("configs/imu.yaml", OVERRIDES))
    assert isinstance(recipe, SequenceRecipe)
    return recipe


def read(recipe: SequenceRecipe, data: Path, store: Path) -> list[object]:
    files = sequences_way.SEQUENCES.find_sources(recipe, data, store)[recipe.name]["recordings"]
    return list(in_threads(lambda file: read_recordings(file, recipe.source), files))


def by_pandas(frame: pd.DataFrame, recipe: SequenceRecipe) -> np.ndarray:
    channels, length = [name for name in frame if name.startswith(("acc_", "rot_"))], recipe.length.seq_len
    sequences = []
    for _, recording in frame.groupby("sequence_id", sort=False):
        filled = recording[channels].ffill().bfill().fillna(0)
        at, before = np.linspace(0, len(filled) - 1, length), np.arange(len(filled))
        sequences.append(np.stack([np.interp(at, before, filled[name]) for name in channels], axis=1))
    return np.stack(sequences).astype(np.float32)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5, metavar="N", help="rounds of each (5)")
    parser.add_argument("--sequences", type=int, default=8_000, metavar="N", help="recordings to simulate (8000)")
    args = parser.parse_args()
    print(measure.environment("numpy", "numba", "pyarrow", "pandas", "scikit-learn"))
    recipe = make_recipe()
    sequences_way.load()
    with measure.scratch() as folder:
        measure.run([measure.ROOT / "bin/simulate", "--kind", "imu", "--out", folder, "--sequences", args.sequences])
        frame = pd.read_csv(folder / str(recipe.source.files))
        kept = folder / "kept"
        build(recipe, folder, kept, 2, Console(io.StringIO()))
        streams = [open_entry(kept, "streams", path.name) for path in kept.glob("streams/*")]
        (raw,) = (stream for stream in streams if stream.manifest["statistics"]["method"] == "none")
        series = RecordingSeries(kept, raw.manifest["components"]["inputs"]["recordings"])
        channels = channels_of(series.channels, recipe.derive)

        def cold() -> None:
            shutil.rmtree(folder / "store", ignore_errors=True)
            build(recipe, folder, folder / "store", 2, Console(io.StringIO()))

        subjects = {
            "cold": cold,
            "reading": lambda: read(recipe, folder, kept),
            "sequences": lambda: list(in_threads(lambda b: of_one_length(b, channels, recipe), series.blocks())),
            "pandas": lambda: by_pandas(frame, recipe),
        }
        assert np.array_equal(by_pandas(frame, recipe).reshape(-1, 7), raw.array("values"))
        seconds = measure.interleave(subjects, args.repeats)

    rate = {name: args.sequences / measure.median(of) for name, of in seconds.items()}
    bars = {
        "cold": measure.verdict(measure.median(seconds["cold"]), at_most=2.5),
        "sequences": measure.verdict(rate["sequences"], at_least=100 * ORIGINAL),
    }
    print(f"{args.sequences:,} sequences, {len(frame):,} rows; pandas made the same streams, to the bit\n")
    rows = [
        (name, f"{measure.median(of):.3f}", f"{min(of):.3f}", f"{rate[name]:,.0f}", bars.get(name, ""))
        for name, of in seconds.items()
    ]
    measure.print_table(("", "s", "best s", "sequences/s", "bar"), rows)
    print(f"\nPer sequence, {measure.ratio(seconds['pandas'], seconds['sequences']):,.0f} × as fast as pandas")


if __name__ == "__main__":
    main()
