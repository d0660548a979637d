"""The last entry of a build: where training ends for every symbol, what the sources look like, and the certificate."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from cache.entries import Entry, open_entry
from cache.layout import EVERY_SYMBOL
from cache.recipe import Recipe
from cache.timeframes import duration_ns
from pipeline.certify import certificate_error, certify
from pipeline.certify_earlier import with_proved
from pipeline.certify_evidence import Evidence
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
) -> dict[str, Any]:
    """What the manifest of a dataset says, given the keys of its entries by symbol, and why others were left out.

    What the certificate of an `earlier` dataset, of fewer files, has proved is not proved again.
    Raises UserError when a part of the split has no windows, or when the certificate fails.
    """
    features = feature_set(recipe.features.set, recipe.features.plugin)
    symbols = {symbol: _evidence(keys, store, recipe.features.plugin) for symbol, keys in entries.items()}
    splits, purged = _splits(recipe, symbols, store)
    symbols = with_proved(earlier, symbols, splits, store)
    known = any(evidence.proved for evidence in symbols.values())
    certificate = certify(recipe, symbols, splits, FURTHER_WINDOWS if known else CERTIFIED_WINDOWS, 0)
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
    return {
        "timeframes": recipe.timeframes,
        "seq_len": recipe.seq_lens,
        "splits": splits,
        "purged": purged,
        "features": list(features.columns),
        **features.told,
        "statistics": _statistics(recipe, symbols),
        "longest_gap": _longest_gap(recipe, symbols, int(splits["train"]["until"])),
        "lengths": {
            symbol: {
                "windows": one.windows.shape("time")[0],
                "streams": [stream.shape("values")[0] for stream in one.streams.values()],
            }
            for symbol, one in symbols.items()
        },
        "weights": weights(recipe, symbols),
        "left_out": dict(left_out),
        "recipe": recipe.model_dump(),
        "certificate": certificate,
        "consistency": {symbol: of_symbol for symbol, of_symbol in reports.items() if of_symbol},
        "warnings": [*doubts, *_constant_features(symbols)],
    }


def _evidence(keys: Mapping[str, Any], store: Path, plugin: str | None) -> Evidence:
    windows = open_entry(store, "windows", keys["windows"])
    return Evidence(
        windows,
        {name: open_entry(store, "streams", key) for name, key in keys["streams"].items()},
        {name: BarSeries(store, shards) for name, shards in windows.manifest["components"]["inputs"].items()},
        plugin,
    )


def _splits(recipe: Recipe, symbols: Mapping[str, Evidence], store: Path) -> tuple[dict[str, Any], dict[str, int]]:
    """The bounds of both parts, and how many windows of each symbol belong to neither."""
    a_stream = next(iter(next(iter(symbols.values())).streams.values()))
    start = train_end(store, a_stream.manifest["components"]["inputs"], recipe)
    bounds = {symbol: split_windows(one.windows, one.bars, recipe, start) for symbol, one in symbols.items()}
    counts = {symbol: one.windows.shape("time")[0] for symbol, one in symbols.items()}
    held = held_out(recipe, symbols)
    train = {symbol: [0, 0 if symbol in held else stop] for symbol, (stop, _) in bounds.items()}
    after = {symbol: [begin, counts[symbol]] for symbol, (_, begin) in bounds.items()}
    none = {symbol: [count, count] for symbol, count in counts.items()}
    val = after | {symbol: none[symbol] for symbol in held}
    hold_out = none | {symbol: after[symbol] for symbol in held}
    parts = [("training", train, symbols), ("validation", val, symbols), ("held-out", hold_out, held)]
    for part, ranges, of in parts if held else parts[:2]:
        if not any(stop > begin for begin, stop in ranges.values()):
            windows = {symbol: symbols[symbol].windows for symbol in of}
            raise explain_empty_part(part, start, windows, {symbol: symbols[symbol].bars for symbol in of}, recipe)
    splits: dict[str, dict[str, Any]] = {
        "train": {"until": start - duration_ns(recipe.split.embargo), "windows": train},
        "val": {"from": start, "windows": val},
        **({"hold_out": {"from": start, "windows": hold_out}} if held else {}),
    }
    used = [part["windows"] for part in splits.values()]
    return splits, {symbol: n - sum(of[symbol][1] - of[symbol][0] for of in used) for symbol, n in counts.items()}


def _statistics(recipe: Recipe, symbols: Mapping[str, Evidence]) -> dict[str, Any]:
    """By what streams are scaled: mean and deviation by timeframe, of every symbol, or of `*`, which is all."""
    pooled = recipe.features.statistics == "pooled"
    named = {EVERY_SYMBOL: next(iter(symbols.values()))} if pooled else symbols
    return {
        symbol: {
            moment: [list(stream.manifest["statistics"][moment].values()) for stream in one.streams.values()]
            for moment in ("mean", "std")
        }
        for symbol, one in named.items()
    }


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
