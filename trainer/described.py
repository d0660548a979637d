"""encoder.json: how a run's windows are made and scaled, and the model's dimensions.

With the weights, it is all that live inference needs (trainer/encode.py). JSON gives every float back as it was, so
that a window made from it is the store's to the last bit.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from cache.part import part_of
from cache.reader import Dataset, Entry, StoreError, SymbolEntries, open_entry

ENCODER_FORMAT = 4


def describe_encoder(task: str, model: dict[str, Any], dataset: Dataset, fold: int | None = None) -> dict[str, Any]:
    """All of encoder.json; `model` is that section of the configuration."""
    made = {"format": ENCODER_FORMAT, "dataset": dataset.entry.key, "task": task}
    return {**made, **describe_inputs(dataset, fold), "model": model}


def identity(described: dict[str, Any]) -> dict[str, Any]:
    """What of encoder.json the weights beside it cannot do without; they tell it, too."""
    return {name: described.get(name) for name in ("task", "dataset", "fold", "model")}


def uneven_latents(seq_lens: Mapping[str, int], latent_stride: int) -> str:
    """How many latents each timeframe has, `8 of m1, 4 of h1`, where they differ, so that they make no one array."""
    latents = {name: -(-length // latent_stride) for name, length in seq_lens.items()}
    return ", ".join(f"{count} of {name}" for name, count in latents.items()) if len({*latents.values()}) > 1 else ""


def describe_inputs(dataset: Dataset, fold: int | None = None) -> dict[str, Any]:
    """The part of it that tells of the windows of a dataset, or of a fold of it."""
    return {"kind": dataset.kind, **(_of_recordings(dataset, fold) if dataset.folds else _of_bars(dataset))}


def _of_bars(dataset: Dataset) -> dict[str, Any]:
    source, window = dataset.recipe["source"], dataset.recipe["window"]
    streams = {symbol: entries.streams for symbol, entries in dataset.symbols.items()}
    one = {name: stream.manifest for name, stream in next(iter(streams.values())).items()}
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
        },
        "source": {"label": source["label"], "session": source["session"], "files": list(source["files"])},
        "window": {
            "min_coverage": window["min_coverage"],
            "max_staleness": window["max_staleness"],
            "longest_gap": _longest_gaps(dataset),
        },
        "statistics": {
            symbol: {
                name: {k: stream.manifest["statistics"][k] for k in ("mean", "std")} for name, stream in of.items()
            }
            for symbol, of in streams.items()
        },
    }


def _longest_gaps(dataset: Dataset) -> dict[str, int]:
    """The longest time in training from the close of a bar to that of the next, ns, of every timeframe but the base.

    In no training window a timeframe's newest bar was as old as that.
    """
    until = int(dataset.splits["train"]["until"])

    def longest(entries: SymbolEntries, name: str) -> int:
        close_time = entries.streams[name].array("close_time")
        return int(np.diff(close_time[: np.searchsorted(close_time, until, side="right")]).max(initial=0))

    return {name: max(longest(of, name) for of in dataset.symbols.values()) for name in dataset.timeframes[1:]}


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
