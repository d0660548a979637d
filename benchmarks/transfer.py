"""Packing a dataset for transport: configs/sse.yaml on the Shanghai bars in --data, or else simulated bars.

Codecs, in memory: blocks of 65,536 rows of every array are packed and unpacked by one thread and by two.

    ours    cache.compress, PCodec, column by column
    zstd    level 3, as it is
    blosc   as numcodecs has it: lz4 level 5 and shuffle; and zstd level 5 with bitshuffle

then whole exports and imports with all that belongs to them (MD5 of every array, checks, fsync), beside a plain copy of
the same entries with fsync; and bin/cache export and import as processes. MB are millions of bytes of the arrays as
they are mapped; a process's peak is measured before this one has grown.
"""

import argparse
import io
import shutil
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numcodecs.blosc
import numpy as np
from numcodecs import Blosc, Zstd

from benchmarks import measure
from cache.compress import pack_block, unpack_block
from cache.console import Console
from cache.contents import open_entries
from cache.files import sync
from cache.layout import CHUNK_ROWS, STAGES
from cache.transfer import export_dataset, import_dataset

KINDS = {
    "times": ("open_time", "close_time", "time"),
    "prices": ("ohlc", "close"),
    "features": ("values",),
    "windows": ("ends",),
}
Codec = tuple[Callable[[np.ndarray], Any], Callable[[Any, np.ndarray], np.ndarray]]


def whole(codec: Any) -> Codec:
    """A codec of numcodecs on the rows as they lie."""

    def unpack(data: Any, block: np.ndarray) -> np.ndarray:
        return np.frombuffer(codec.decode(data), block.dtype).reshape(block.shape)

    return codec.encode, unpack


def ours(data: list[bytes], block: np.ndarray) -> np.ndarray:
    return unpack_block(data, block.dtype.str, len(block))


CODECS: dict[str, Codec] = {
    "ours": (pack_block, ours),
    "zstd 3": whole(Zstd(3)),
    "blosc lz4 5 shuffle": whole(Blosc()),
    "blosc zstd 5 bitshuffle": whole(Blosc("zstd", 5, Blosc.BITSHUFFLE)),
}


def blocks_of(store: Path) -> dict[str, list[np.ndarray]]:
    """All arrays of a store by kind, but for a dataset's few numbers, in blocks [rows, columns] that are in memory."""
    blocks: dict[str, list[np.ndarray]] = {kind: [] for kind in KINDS}
    for _, entry in open_entries(store, []):
        for name in entry.manifest["arrays"]:
            kind = next((kind for kind, names in KINDS.items() if name in names), None)
            if kind is None:
                continue
            array = np.array(entry.array(name)).reshape(entry.shape(name)[0], -1)
            blocks[kind] += [array[start : start + CHUNK_ROWS] for start in range(0, len(array), CHUNK_ROWS)]
    return blocks


def packed_size(data: Any) -> int:
    return sum(map(len, data)) if isinstance(data, list) else len(data)


def in_threads(work: Callable[..., Any], *items: list[Any], threads: int) -> list[Any]:
    if threads == 1:
        return list(map(work, *items))
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(work, *items))


def copied(source: Path, target: Path) -> None:
    """Copy the entries file by file, each synced as the import syncs its own."""
    for stage in STAGES:
        for path in (source / stage).rglob("*"):
            if path.is_file():
                there = target / path.relative_to(source)
                there.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, there)
                sync(there)


def emptied(folder: Path) -> Path:
    """A folder's path, for something new."""
    shutil.rmtree(folder, ignore_errors=True)
    return folder


def removed(path: Path) -> Path:
    """A file's path, for something new."""
    path.unlink(missing_ok=True)
    return path


def transfers(store: Path, name: str, folder: Path) -> dict[str, Callable[[], Any]]:
    """Whole exports and imports in this process, by one thread and by two, and a copy."""
    tar, there = folder / "packed.tar", folder / "there"
    export_dataset(store, name, tar, 2, Console(io.StringIO()))
    subjects: dict[str, Callable[[], Any]] = {}
    for threads in (1, 2):
        subjects[f"export, threads {threads}"] = partial(whole_export, store, name, folder / "other.tar", threads)
        subjects[f"import, threads {threads}"] = partial(whole_import, tar, there, threads)
    subjects["plain copy"] = lambda: copied(store, emptied(there))
    return subjects


def whole_export(store: Path, name: str, path: Path, threads: int) -> None:
    export_dataset(store, name, removed(path), threads, Console(io.StringIO()))


def whole_import(path: Path, store: Path, threads: int) -> None:
    import_dataset(path, emptied(store), None, threads, Console(io.StringIO()))


def processes(store: Path, name: str, folder: Path) -> dict[str, measure.Ended]:
    """bin/cache export and import, once."""
    command, tar = [sys.executable, "-m", "cache.transfer_command"], folder / "process.tar"
    words = {"export": [name, tar, "--store", store], "import": [tar, "--store", emptied(folder / "there")]}
    removed(tar)
    return {f"bin/cache {verb}": measure.run([*command, verb, *rest]) for verb, rest in words.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, metavar="DIR", help="folder with sse_composite_m1.parquet")
    parser.add_argument("--rows", type=int, default=measure.ROWS, metavar="N", help="simulated bars, without --data")
    parser.add_argument("--repeats", type=int, default=7, metavar="N", help="rounds of each (7)")
    args = parser.parse_args()
    numcodecs.blosc.use_threads = False
    print(measure.environment("numpy", "pcodec", "numcodecs"))
    with measure.scratch() as folder:
        if args.data:
            dataset, store = "sse", measure.build_store(args.data.resolve(), folder / "store", "sse", ())
        else:
            dataset, store = "demo", measure.build_store(measure.data_dir(None, args.rows, folder), folder / "store")
        ended = [processes(store, dataset, folder) for _ in range(args.repeats)]
        kinds = blocks_of(store)
        blocks = [block for of_kind in kinds.values() for block in of_kind]
        size = sum(block.nbytes for block in blocks)
        packed = {name: in_threads(pack, blocks, threads=2) for name, (pack, _) in CODECS.items()}
        subjects = transfers(store, dataset, folder)
        for name, (pack, unpack) in CODECS.items():
            for data, block in zip(packed[name], blocks, strict=True):
                assert unpack(data, block).tobytes() == block.tobytes(), name
            for threads in (1, 2):
                subjects[f"pack {name} {threads}"] = partial(in_threads, pack, blocks, threads=threads)
                subjects[f"unpack {name} {threads}"] = partial(
                    in_threads, unpack, packed[name], blocks, threads=threads
                )
        seconds = measure.interleave(subjects, args.repeats)
        tar = (folder / "packed.tar").stat().st_size

    print(f"{len(blocks)} blocks, {size / 1e6:.1f} MB\n")
    rows = []
    for name in CODECS:
        ratios, start = [], 0
        for of_kind in kinds.values():
            part = packed[name][start : start + len(of_kind)]
            ratios.append(sum(block.nbytes for block in of_kind) / sum(map(packed_size, part)))
            start += len(of_kind)
        ratios.insert(0, size / sum(map(packed_size, packed[name])))
        speeds = [
            f"{size / 1e6 / measure.median(seconds[f'{what} {name} {threads}']):,.0f}"
            for what in ("pack", "unpack")
            for threads in (1, 2)
        ]
        rows.append((name, *(f"{ratio:.2f}" for ratio in ratios), *speeds))
    header = ("codec", "ratio", *KINDS, "pack MB/s", "2 threads", "unpack MB/s", "2 threads")
    measure.print_table(header, rows)

    print(f"\nThe file has {tar / 1e6:.1f} MB: ratio {size / tar:.2f}\n")
    rows = [
        (name, f"{measure.median(taken):.2f}", f"{size / 1e6 / measure.median(taken):,.0f}", "")
        for name, taken in seconds.items()
        if "pack " not in name
    ]
    for name in ended[0]:
        taken, peaks = [one[name].seconds for one in ended], [one[name].peak_mb for one in ended]
        speed = size / 1e6 / measure.median(taken)
        rows.append((name, f"{measure.median(taken):.2f}", f"{speed:,.0f}", f"{measure.median(peaks):.0f}"))
    measure.print_table(("whole", "s", "MB/s", "peak MB"), rows)


if __name__ == "__main__":
    main()
