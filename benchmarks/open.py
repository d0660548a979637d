"""Opening a dataset of seven streams, and the way from process start to the first batch in memory.

Opening, imports done: every array of the windows and the streams is mapped by cache.reader, or opened by
zarr.open_group or xarray.open_zarr in the same store; none of them reads more than metadata. Shapes are compared.

First batch: new processes that read 256 random windows of 64 bars × 7 streams. `maps` is cache.reader with NumPy alone,
`torch` is what the trainer does, `zarr` slices every window through zarr-python from the same files.
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import xarray
import zarr

from benchmarks import measure
from cache.reader import open_dataset

READERS = {
    "nothing": "Python alone",
    "maps": "cache.reader, NumPy",
    "torch": "cache.reader, PyTorch",
    "zarr": "zarr-python",
}


def open_maps(store: Path) -> list[np.ndarray]:
    dataset = open_dataset(store, "demo")
    (entries,) = dataset.symbols.values()
    return [
        entry.array(name) for entry in (entries.windows, *entries.streams.values()) for name in entry.manifest["arrays"]
    ]


def open_with_zarr(paths: list[Path]) -> list[Any]:
    return [array for path in paths for array in zarr.open_group(path, mode="r").array_values()]


def open_with_xarray(paths: list[Path]) -> list[Any]:
    opened = [xarray.open_zarr(path, consolidated=False, chunks=None) for path in paths]
    return [array for dataset in opened for array in dataset.variables.values()]


def first_batches(store: Path, repeats: int) -> dict[str, list[tuple[float, float]]]:
    """(seconds until the imports were done, until the batch was there) of every reader, round by round."""
    moments: dict[str, list[tuple[float, float]]] = {name: [] for name in READERS}
    for _ in range(repeats):
        for name in READERS:
            chunks = measure.watch([sys.executable, "-m", "benchmarks.first_batch", name, store])
            text, at = "", {}
            for seconds, chunk in chunks:
                text += chunk
                for word in ("imported", "done"):
                    if word in text:
                        at.setdefault(word, seconds)
            moments[name].append((at["imported"], at["done"]))
    return moments


def main() -> None:
    args = measure.parser(__doc__, repeats=7).parse_args()
    print(measure.environment("numpy", "zarr", "xarray", "torch"))
    with measure.scratch() as folder:
        store = measure.build_store(measure.data_dir(args.data, args.rows, folder), folder / "store")
        (entries,) = open_dataset(store, "demo").symbols.values()
        paths = [entry.path for entry in (entries.windows, *entries.streams.values())]
        subjects = {
            "cache.reader": lambda: open_maps(store),
            "zarr.open_group": lambda: open_with_zarr(paths),
            "xarray.open_zarr": lambda: open_with_xarray(paths),
        }
        shapes = [sorted(array.shape for array in subject()) for subject in subjects.values()]
        assert shapes[0] == shapes[1] == shapes[2]
        seconds = measure.interleave(subjects, args.repeats * 10)
        batches = first_batches(store, args.repeats)

    print(f"{len(paths)} entries, {len(shapes[0])} arrays\n")
    ours = seconds["cache.reader"]
    rows = [
        (name, f"{measure.median(taken) * 1e3:.2f}", f"{measure.ratio(taken, ours):.1f}", bar)
        for (name, taken), bar in zip(
            seconds.items(), (measure.verdict(measure.median(ours) * 1e3, at_most=3), "", ""), strict=True
        )
    ]
    measure.print_table(("opening", "ms", "× ours", "bar"), rows)
    print()
    rows = []
    for name, label in READERS.items():
        imports, ready = zip(*batches[name], strict=True)
        after = [(done - begun) * 1e3 for begun, done in batches[name]]
        whole = measure.ratio(ready, [done for _, done in batches["maps"]])
        rows.append(
            (
                label,
                *(f"{measure.median(x) * 1e3:.0f}" for x in (imports, ready)),
                f"{measure.median(after):.1f}",
                f"{whole:.1f}",
            )
        )
    measure.print_table(("first batch", "imports ms", "batch ms", "between ms", "× NumPy"), rows)


if __name__ == "__main__":
    main()
