"""The last entry of a build: where training ends for every symbol, what the sources look like, and the certificate."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from cache.entries import Entry, open_entry
from cache.per_symbol import PerSymbol, splits_of
from cache.recipe import Recipe
from cache.timeframes import duration_ns
from pipeline.certify import certificate_error, certify
from pipeline.certify_earlier import with_proved
from pipeline.certify_evidence import Evidence, scale_of
from pipeline.consistency import consistency, describe
from pipeline.features import feature_set
from pipeline.plausible import warnings
from pipeline.series import BarSeries
from pipeline.split import explain_empty_part, split_windows, train_end
from pipeline.universe import Faults, held_out, weights

FURTHER_WINDOWS = 4  # where an earlier dataset has proved the others
CERTIFIED_WINDOWS = 16  # what every build can afford; `bin/cache certify` makes more of them again


def describe_dataset(
    recipe: Recipe, entries: Mapping[str, Any], left_out: Faults, store: Path, earlier: Entry | None
) -> tuple[dict[str, Any], PerSymbol]:
    """What a dataset says: its manifest, and its arrays. `entries` are the keys by symbol, in the order of the names.

    `left_out` tells why other symbols are not in it. What the certificate of an `earlier` dataset, of fewer files, has
    proved is not proved again. Raises UserError when a part of the split has no windows, or when the certificate fails.
    """
    features = feature_set(recipe.features.set, recipe.features.plugin)
    symbols = {symbol: _evidence(keys, store, recipe.features.plugin) for symbol, keys in entries.items()}
    limits, known = _per_symbol(recipe, symbols, store)
    splits = splits_of(limits, known)
    symbols = with_proved(earlier, symbols, splits, store)
    certified = FURTHER_WINDOWS if any(evidence.proved for evidence in symbols.values()) else CERTIFIED_WINDOWS
    certificate = certify(recipe, symbols, splits, certified, 0)
    if not certificate["passed"]:
        raise certificate_error(certificate, recipe.name, recipe.features.plugin)
    reports = {symbol: _consistency(recipe, evidence) for symbol, evidence in symbols.items()}
    doubts = [text for symbol, evidence in symbols.items() for text in warnings(symbol, evidence.bars[recipe.base])]
    doubts += [
        describe(report, symbol)
        for symbol, of_symbol in reports.items()
        for report in of_symbol.values()
        if report["different"] or not report["both"]
    ]
    manifest = {
        "timeframes": recipe.timeframes,
        "seq_len": recipe.seq_lens,
        "splits": limits,
        "features": list(features.columns),
        **features.told,
        "longest_gap": _longest_gap(recipe, symbols, limits["train"]["until"]),
        "left_out": dict(left_out),
        "recipe": recipe.model_dump(),
        "certificate": certificate,
        "consistency": {symbol: of_symbol for symbol, of_symbol in reports.items() if of_symbol},
        "warnings": [*doubts, *_constant_features(symbols)],
    }
    return manifest, known


def _evidence(keys: Mapping[str, Any], store: Path, plugin: str | None) -> Evidence:
    windows = open_entry(store, "windows", keys["windows"])
    return Evidence(
        windows,
        {name: open_entry(store, "streams", key) for name, key in keys["streams"].items()},
        {name: BarSeries(store, shards) for name, shards in windows.manifest["components"]["inputs"].items()},
        plugin,
    )


def _per_symbol(
    recipe: Recipe, symbols: Mapping[str, Evidence], store: Path
) -> tuple[dict[str, dict[str, int]], PerSymbol]:
    """The limits of the parts of the split, and what is known of each symbol."""
    a_stream = next(iter(next(iter(symbols.values())).streams.values()))
    start = train_end(store, a_stream.manifest["components"]["inputs"], recipe)
    bounds = {symbol: split_windows(one.windows, one.bars, recipe, start) for symbol, one in symbols.items()}
    held = held_out(recipe, symbols)
    counts = np.array([one.windows.shape("time")[0] for one in symbols.values()])
    train_stop, after = np.array(list(bounds.values())).T
    parts = {
        "train": np.stack([np.zeros_like(counts), train_stop], axis=1),
        "val": np.stack([after, counts], axis=1),
    }
    limits = {"train": {"until": start - duration_ns(recipe.split.embargo)}, "val": {"from": start}}
    if held:
        of_held = np.isin(list(symbols), held)
        none = np.stack([counts, counts], axis=1)
        parts["train"][of_held] = 0
        parts["hold_out"] = np.where(of_held[:, None], parts["val"], none)
        parts["val"] = np.where(of_held[:, None], none, parts["val"])
        limits["hold_out"] = {"from": start}
    for name, words in (("train", "training"), ("val", "validation"), ("hold_out", "held-out")):
        if name in parts and not (parts[name][:, 1] > parts[name][:, 0]).any():
            windows = {symbol: symbols[symbol].windows for symbol in (held if name == "hold_out" else symbols)}
            raise explain_empty_part(
                words, start, windows, {symbol: symbols[symbol].bars for symbol in windows}, recipe
            )
    rows = np.array([[stream.shape("values")[0] for stream in one.streams.values()] for one in symbols.values()])
    weight = np.array(list(weights(recipe, symbols).values()))
    return limits, PerSymbol(tuple(symbols), counts, rows, weight, parts, *scale_of(recipe, symbols))


def _longest_gap(recipe: Recipe, symbols: Mapping[str, Evidence], until: int) -> dict[str, int]:
    """The longest time in training from the close of a bar to that of the next, ns, of every timeframe but the base.

    In no training window a timeframe's newest bar was as old as that.
    """
    longest = dict.fromkeys(recipe.timeframes[1:], 0)
    for one in symbols.values():
        for name in longest:
            close_time = one.streams[name].array("close_time")
            known = close_time[: np.searchsorted(close_time, until, side="right")]
            longest[name] = max(longest[name], int(np.diff(known).max(initial=0)))
    return longest


def _consistency(recipe: Recipe, evidence: Evidence) -> dict[str, Any]:
    """Reports on the timeframes that were given as files beside the base."""
    base = evidence.bars[recipe.base]
    return {
        name: consistency(base, bars, name, recipe.source.session)
        for name, bars in evidence.bars.items()
        if name != recipe.base and not evidence.derived(name)
    }


def _constant_features(symbols: Mapping[str, Evidence]) -> list[str]:
    """Features that do not vary, each with the streams where."""
    streams: dict[str, list[str]] = {}
    for symbol, evidence in symbols.items():
        for name, stream in evidence.streams.items():
            for feature in stream.manifest["statistics"]["constant"]:
                streams.setdefault(feature, []).append(f"{symbol} {name}")
    return [
        f"{feature} does not vary over the training bars of {', '.join(where[:3])}"
        f"{f' and {len(where) - 3} more streams' if len(where) > 3 else ''}, so it tells nothing there"
        for feature, where in streams.items()
    ]
