"""The last entry of a build: where training ends for every symbol, what the sources look like, and the certificate."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cache.reader import open_entry
from cache.recipe import Recipe
from cache.timeframes import duration_ns
from pipeline.certify import certificate_error, certify
from pipeline.certify_checks import Evidence
from pipeline.consistency import consistency, describe
from pipeline.features import feature_set
from pipeline.plausible import warnings
from pipeline.series import BarSeries
from pipeline.split import explain_empty_part, split_windows, train_end
from pipeline.universe import Faults, held_out, weights

CERTIFIED_WINDOWS = 16  # what every build can afford; `bin/cache certify` makes more of them again


def describe_dataset(recipe: Recipe, entries: Mapping[str, Any], left_out: Faults, store: Path) -> dict[str, Any]:
    """What the manifest of a dataset says, given the keys of its entries by symbol, and why others were left out.

    Raises UserError when a part of the split has no windows, or when the certificate fails.
    """
    symbols = {symbol: _evidence(keys, store) for symbol, keys in entries.items()}
    splits, purged = _splits(recipe, symbols, store)
    certificate = certify(recipe, symbols, splits, CERTIFIED_WINDOWS, 0)
    if not certificate["passed"]:
        raise certificate_error(certificate, recipe.name)
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
        "features": list(feature_set(recipe.features.set).columns),
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


def _evidence(keys: Mapping[str, Any], store: Path) -> Evidence:
    windows = open_entry(store, "windows", keys["windows"])
    return Evidence(
        windows,
        {name: open_entry(store, "streams", key) for name, key in keys["streams"].items()},
        {name: BarSeries(store, shards) for name, shards in windows.manifest["components"]["inputs"].items()},
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
    for part, ranges in (("training", train), ("validation", val)):
        if not any(stop > begin for begin, stop in ranges.values()):
            windows = {symbol: one.windows for symbol, one in symbols.items()}
            raise explain_empty_part(
                part, start, windows, {symbol: one.bars for symbol, one in symbols.items()}, recipe
            )
    splits: dict[str, dict[str, Any]] = {
        "train": {"until": start - duration_ns(recipe.split.embargo), "windows": train},
        "val": {"from": start, "windows": val},
        **({"hold_out": {"from": start, "windows": none | {symbol: after[symbol] for symbol in held}}} if held else {}),
    }
    used = [part["windows"] for part in splits.values()]
    return splits, {symbol: n - sum(of[symbol][1] - of[symbol][0] for of in used) for symbol, n in counts.items()}


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
