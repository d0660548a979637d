"""encoder.json: how a run's windows are made and scaled, and the model's dimensions.

With the weights, it is all that live inference needs (trainer/encode.py). JSON gives every float back as it was, so
that a window made from it is the store's to the last bit.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cache.entries import Entry, StoreError, open_entry
from cache.keys import file_md5
from cache.part import part_of
from cache.per_symbol import PerSymbol
from cache.reader import Dataset
from trainer.config import is_own_task

ENCODER_FORMAT = 6
OWN_TASK = "plug-in"
SEEN = {"task": str, "windows": str, "fold": int, "recordings": [str]}


def describe_encoder(task: str, model: dict[str, Any], dataset: Dataset, fold: int | None = None) -> dict[str, Any]:
    """All of encoder.json; `model` is that section of the configuration.

    `seen` tells of the recordings that weights have learnt from, in the words of `SEEN`: those of the run itself, to
    which it adds what the run that it begins with has seen (trainer/initialise.py).
    """
    made = {"format": ENCODER_FORMAT, "dataset": dataset.entry.key, "task": told_task(task)}
    seen = [_seen(told_task(task), dataset, fold)] if dataset.folds else []
    return {**made, **describe_inputs(dataset, fold), "model": model, "seen": seen}


def told_task(task: str) -> str:
    """A task by its name, or by the MD5 of a user's own file, wherever that lies."""
    return f"{OWN_TASK} {file_md5(Path(task))}" if is_own_task(task) else task


def identity(described: dict[str, Any]) -> dict[str, Any]:
    """What of encoder.json the weights beside it cannot do without; they tell it, too."""
    return {name: described.get(name) for name in ("task", "dataset", "fold", "model")}


def uneven_latents(seq_lens: Mapping[str, int], latent_stride: int) -> str:
    """How many latents each timeframe has, `8 of m1, 4 of h1`, where they differ, so that they make no one array."""
    latents = {name: -(-length // latent_stride) for name, length in seq_lens.items()}
    return ", ".join(f"{count} of {name}" for name, count in latents.items()) if len({*latents.values()}) > 1 else ""


def _seen(task: str, dataset: Dataset, fold: int | None) -> dict[str, Any]:
    """A run's own part: its task, and the keys of the recordings and of the windows, which divide them into folds."""
    windows = part_of(dataset, fold).windows
    recordings = windows.manifest["components"]["inputs"]["recordings"]
    return {"task": task, "windows": windows.key, "fold": fold, "recordings": recordings}


def describe_inputs(dataset: Dataset, fold: int | None = None) -> dict[str, Any]:
    """The part of it that tells of the windows of a dataset, or of a fold of it."""
    return {"kind": dataset.kind, **(_of_recordings(dataset, fold) if dataset.folds else _of_bars(dataset))}


def _of_bars(dataset: Dataset) -> dict[str, Any]:
    source, window = dataset.recipe["source"], dataset.recipe["window"]
    one = {name: stream.manifest for name, stream in next(iter(dataset.symbols.values())).streams.items()}
    base = one[dataset.timeframes[0]]
    return {
        "timeframes": dataset.timeframes,
        "seq_lens": dataset.seq_lens,
        "bar_lengths": {
            name: int(manifest["nominal_length"]) // int(base["nominal_length"]) for name, manifest in one.items()
        },
        "features": {
            "set": base["feature_set"],
            "version": base["components"]["fields"]["features"]["version"],
            "columns": base["features"],
            **base["components"]["fields"]["features"].get("plugin", {}),
        },
        "source": {"label": source["label"], "session": source["session"], "files": list(source["files"])},
        "window": {
            "min_coverage": window["min_coverage"],
            "max_staleness": window["max_staleness"],
            "longest_gap": dataset.entry.manifest["longest_gap"],
        },
        "statistics": _statistics(dataset.per_symbol, list(one), base["features"]),
    }


def _statistics(known: PerSymbol, timeframes: Sequence[str], features: Sequence[str]) -> dict[str, Any]:
    """By symbol and timeframe mean and standard deviation of every feature."""
    return {
        symbol: {
            name: {"mean": dict(zip(features, mean[j], strict=True)), "std": dict(zip(features, std[j], strict=True))}
            for j, name in enumerate(timeframes)
        }
        for symbol, mean, std in zip(known.scaled, known.mean.tolist(), known.std.tolist(), strict=True)
    }


def _of_recordings(dataset: Dataset, fold: int | None) -> dict[str, Any]:
    part = part_of(dataset, fold)
    ((name, stream),) = part.streams.items()
    source = dataset.recipe["source"]
    return {
        "timeframes": [name],
        "seq_lens": dataset.seq_lens,
        "bar_lengths": {name: 1},
        "features": {"set": stream.manifest["feature_set"], "columns": stream.manifest["features"]},
        "source": {"order": source["order"], "sentinels": source["sentinels"]},
        "fill": dataset.recipe["fill"],
        "derive": _derivations(dataset, stream),
        "length": dataset.recipe["length"],
        "normalise": dataset.recipe["normalise"],
        "statistics": {name: stream.manifest["statistics"].get(name, {}) for name in ("center", "scale")},
        "classes": part.windows.manifest["classes"],
        "fold": fold,
    }


def _derivations(dataset: Dataset, stream: Entry) -> list[list[Any]]:
    """Names of derived channels with their versions, as the stream has them that nothing was fitted on."""
    fields = stream.manifest["components"]["fields"]
    if "derive" not in fields:
        (key,) = stream.manifest["components"]["inputs"]["streams"]
        try:
            fields = open_entry(stream.path.parents[1], "streams", key).manifest["components"]["fields"]
        except StoreError:  # what was built of it is all that training needs
            return [[name, None] for name in dataset.recipe["derive"]]
    found: list[list[Any]] = fields["derive"]
    return found
