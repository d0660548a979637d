"""Embeddings of a whole dataset, on disk:

    DIR/encode.json     which run, weights, dataset and windows DIR is of, and its parts by symbol, in order of time
    DIR/parts/<md5>/    an entry as those of the store: a Zarr v3 group that is there whole or not at all
    DIR/recordings.csv  of recordings id, group, fold and labels, a row each, in the order of the parts

A part holds up to 64 MB of consecutive windows of a symbol: `embedding` float32 [window, timeframe, latent, channel]
and `time` int64 [window], the decision times as CF has them. Each array is one chunk and one file, which begins with
the plain array, so that a part can be mapped: `np.memmap(part / "embedding/c.0.0.0.0", "<f4", "r", shape=…)`. With
xarray, all parts of a symbol are one dataset:

    parts = [part for part in json.loads(Path("DIR/encode.json").read_text())["parts"] if part["symbol"] == "EURUSD"]
    xarray.concat([xarray.open_zarr(f"DIR/{part['path']}", consolidated=False) for part in parts], "window")

Of recordings there is no `time` but `padding` uint8 [window, latent], 1 where a latent is of padding alone. What the
encoder makes of those that it trained on flatters it; `fold` of encode.json tells which it did not.

A killed call leaves whole parts; the next one makes those that are not there, or not as they were written, as far as
metadata and sizes tell.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import filelock
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cache.entries import StoreError, open_entry
from cache.keys import Components
from cache.layout import TIME_ATTRIBUTES, ArraySpec, array_metadata, array_spec, metadata_bytes
from cache.part import part_of
from cache.reader import Dataset
from cache.timeframes import format_time
from cache.writer import EntryWriter
from configs.errors import UserError
from configs.loader import differences
from trainer.classify import padding_of
from trainer.data import WindowSource
from trainer.described import describe_inputs
from trainer.encode import Encoder
from trainer.encode_windows import padding_latents, part_ranges, window_numbers, window_ranges, write_recordings
from trainer.predictions import known_of
from trainer.runs import write_json

PART_VERSION = 2
RECORDINGS = "recordings.csv"
Advance = Callable[[int], object]


def encode_at(
    encoder: Encoder, dataset: Dataset, times: Any, batch_size: int = 64, symbol: str | None = None
) -> Tensor:
    """Embeddings of a dataset's windows at given decision times: float32 [N, S, latent_len, d_model], on the CPU.

    Args:
        encoder: of a run on the same kind of windows.
        dataset: of bars.
        times: N decision times in any order: a pandas.DatetimeIndex with a zone, or whole ns since 1970 UTC.
        batch_size: windows at a time; the last bits of an embedding depend on it.
        symbol: whose windows, where the dataset has several symbols.

    Raises:
        UserError: for a time without a window (naming the nearest), a symbol that is not there, or a dataset that the
            encoder was not made for.
    """
    if batch_size < 1:
        raise UserError(f"batch_size is {batch_size}; it must be 1 at least")
    check_dataset(encoder, dataset)
    symbol = _named(dataset, symbol)
    numbers = window_numbers(dataset, times, symbol)
    source = WindowSource(dataset, encoder.device)
    batches = numbers.split(batch_size) if len(numbers) else ()
    return torch.cat([torch.empty(0, *shape_of(encoder)), *_embedded(encoder, dataset, source, symbol, batches)])


def check_dataset(encoder: Encoder, dataset: Dataset) -> None:
    """Raise UserError when a dataset's windows are not made and scaled as those of the run."""
    if dataset.entry.key == encoder.described["dataset"]:
        return
    here = describe_inputs(dataset, encoder.described.get("fold"))
    parts = ("timeframes", "seq_lens", "bar_lengths", "features", "fill", "derive", "length")
    then, now = ({part: of.get(part) for part in parts} for of in (encoder.described, here))
    changed = [f"  {key}: {old} then, {new} now" for key, old, new in differences(then, now)]
    if encoder.described["statistics"] != here["statistics"]:
        changed.append("  statistics, by which features are scaled: of other training data")
    if changed:
        raise UserError(
            "\n".join([f"{dataset.name}: not what {encoder.run} was trained on:", *changed])
            + "\nName the dataset that it was trained on, or train on this one"
        )


def encode_dataset(
    encoder: Encoder, dataset: Dataset, out: str | Path, split: str, batch_size: int, advance: Advance
) -> int:
    """Write the embeddings of a split of a dataset into a folder, as told above. Returns how many were made now.

    Goes on where an earlier call was stopped, with any batch size. `advance` hears of windows done, also of those found
    done. Raises UserError when the folder holds anything else, or another process is at work there.
    """
    check_dataset(encoder, dataset)
    out = Path(out)
    fold = encoder.described.get("fold")
    source, windows = WindowSource(dataset, encoder.device, fold=fold), window_ranges(dataset, split, fold)
    of = {"weights": encoder.weights, "dataset": dataset.entry.key, "split": split}
    ranges = [(symbol, one) for symbol, own in windows for one in part_ranges(own, shape_of(encoder))]
    parts = [
        Components("parts", PART_VERSION, {**of, "symbol": symbol, "windows": [one.start, one.stop]}, {})
        for symbol, one in ranges
    ]
    record = {
        **of,
        "run": str(encoder.run.resolve()),
        "timeframes": dataset.timeframes,
        **({"fold": fold, "recordings": RECORDINGS} if dataset.folds else {}),
        "shape": [sum(len(own) for _, own in windows), *shape_of(encoder)],
        "parts": [
            {"path": f"parts/{part.key}", "symbol": symbol, "windows": [one.start, one.stop]}
            for part, (symbol, one) in zip(parts, ranges, strict=True)
        ],
    }
    made = 0
    with _claimed(out, of):
        write_json(out / "encode.json", {**record, "complete": False})
        if dataset.folds:
            write_recordings(out / RECORDINGS, part_of(dataset, fold).windows, [own for _, own in windows])
        for part, (symbol, one) in zip(parts, ranges, strict=True):
            if _is_whole(out, part.key):
                advance(len(one))
                continue
            with EntryWriter(out, part) as entry:
                batches = torch.arange(one.start, one.stop).split(batch_size)
                beside = _beside(encoder, dataset, symbol, one)
                _fill(entry, shape_of(encoder), *beside, _embedded(encoder, dataset, source, symbol, batches), advance)
                details = {name: record[name] for name in ("run", "dataset", "timeframes")}
                entry.publish(**details, batch_size=batch_size, device=encoder.device.type)
            made += len(one)
        write_json(out / "encode.json", {**record, "complete": True})
    return made


def _is_whole(out: Path, key: str) -> bool:
    """Whether a part is there, with all its metadata and with files of the sizes that it tells."""
    try:
        part = open_entry(out, "parts", key)
        return all(
            (part.path / name / "zarr.json").read_bytes()
            == metadata_bytes(array_metadata(array_spec(name, told), told["shape"][0]))
            for name, told in part.manifest["arrays"].items()
        )
    except (StoreError, FileNotFoundError):
        return False


def _named(dataset: Dataset, symbol: str | None) -> str:
    """The symbol that is meant. Raises UserError where that is not said, or is none of the dataset's."""
    known = list(dataset.symbols)
    if symbol is None and len(known) == 1:
        return known[0]
    if symbol not in known:
        listed = ", ".join(known[:20]) + (f" and {len(known) - 20} more" if len(known) > 20 else "")
        what = f"has no symbol {symbol}" if symbol else "has several symbols; name one as `symbol`"
        raise UserError(f"{dataset.name} {what}; they are {listed}")
    return symbol


def shape_of(encoder: Encoder) -> tuple[int, int, int]:
    """(S, latent_len, d_model) of an embedding."""
    backbone = encoder.model.backbone
    return len(backbone.seq_lens), backbone.latent_lens[0], backbone.d_model


def _embedded(
    encoder: Encoder, dataset: Dataset, source: WindowSource, symbol: str, batches: Iterable[Tensor]
) -> Iterator[Tensor]:
    """Embeddings of batches of a symbol's own windows, on the CPU. Raises UserError where one is not finite."""
    for index in batches:
        batch = source.gather(index if dataset.folds else index + source.begins[symbol])
        embedded = encoder.embed(batch.x, [padding_of(batch)] if dataset.folds else batch.close_time).cpu()
        whole = embedded.isfinite().flatten(1).all(dim=1)
        if not whole.all():
            windows, at = dataset.symbols[symbol].windows, int(index[int((~whole).int().argmax())])
            which = f"at {format_time(int(windows.array('time')[at]))}"
            if dataset.folds:
                which = f"that is recording {known_of(windows, np.array([at]))[0][0]}"
            raise UserError(
                f"{encoder.run / 'best.safetensors'}: makes numbers that are not finite of the window of "
                f"{dataset.name} {which}; train again, with a lower training.lr"
            )
        yield embedded


def _beside(encoder: Encoder, dataset: Dataset, symbol: str, own: range) -> tuple[ArraySpec, NDArray[Any]]:
    """What stands beside the embeddings of windows: their times, or which latents of recordings are padding."""
    windows = dataset.symbols[symbol].windows
    if not dataset.folds:
        spec = ArraySpec("time", "<i8", ("window",), attributes=TIME_ATTRIBUTES)
        return spec, windows.rows("time", own.start, own.stop)
    padding = padding_latents(windows, own, encoder.model.backbone.latent_stride)
    return ArraySpec("padding", "|u1", ("window", "latent"), padding.shape[1:]), padding


def _fill(
    entry: EntryWriter,
    shape: tuple[int, ...],
    spec: ArraySpec,
    known: NDArray[Any],
    embedded: Iterable[Tensor],
    advance: Advance,
) -> None:
    """Write the arrays of a part."""
    axes = ("window", "timeframe", "latent", "channel")
    embedding = entry.array(ArraySpec("embedding", "<f4", axes, shape, {"coordinates": spec.name}))
    entry.array(spec).append(known)
    for values in embedded:
        embedding.append(values.numpy())
        advance(len(values))


@contextmanager
def _claimed(out: Path, of: Mapping[str, str]) -> Iterator[None]:
    """Keep other processes out of a folder, and refuse one that holds something else."""
    out.mkdir(parents=True, exist_ok=True)
    try:
        with filelock.FileLock(out / ".lock", timeout=0):
            try:
                _check_folder(out, of)
                yield
            finally:
                (out / ".lock").unlink(missing_ok=True)
    except filelock.Timeout:
        raise UserError(f"{out}: another process is encoding there; wait for it, or name another --out") from None


def _check_folder(out: Path, of: Mapping[str, str]) -> None:
    path = out / "encode.json"
    if not path.exists():
        if others := sorted(one.name for one in out.iterdir() if one.name != ".lock"):
            raise UserError(f"{out}: holds {others[0]}, but no encode.json; name an empty or a new folder as --out")
        return
    try:
        found = json.loads(path.read_bytes())
        changed = [(name, found[name], value) for name, value in of.items() if found[name] != value]
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{path}: damaged; delete {out}, or name another --out") from None
    if changed:
        lines = "\n".join(f"  {name}: {old} there, {new} now" for name, old, new in changed)
        raise UserError(
            f"{out}: holds other embeddings, of {found.get('run')}:\n{lines}\nName another --out for those asked for"
        )
