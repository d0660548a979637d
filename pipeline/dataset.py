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
from pipeline.plausible import warnings
from pipeline.series import BarSeries
from pipeline.split import explain_empty_part, split_windows, train_end

CERTIFIED_WINDOWS = 16  # what every build can afford; `bin/cache certify` makes more of them again


def describe_dataset(recipe: Recipe, entries: Mapping[str, Any], store: Path) -> dict[str, Any]:
    """What the manifest of a dataset says, given the keys of its entries by symbol.

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
    base_keys = sorted({entry.key for one in symbols.values() for entry in one.bars[recipe.base].entries})
    start = train_end(store, base_keys, recipe)
    bounds = {symbol: split_windows(one.windows, one.bars, recipe, start) for symbol, one in symbols.items()}
    train = {symbol: [0, stop] for symbol, (stop, _) in bounds.items()}
    val = {symbol: [begin, symbols[symbol].windows.shape("time")[0]] for symbol, (_, begin) in bounds.items()}
    for part, ranges in (("training", train), ("validation", val)):
        if not any(stop > begin for begin, stop in ranges.values()):
            windows = {symbol: one.windows for symbol, one in symbols.items()}
            raise explain_empty_part(
                part, start, windows, {symbol: one.bars for symbol, one in symbols.items()}, recipe
            )
    splits = {
        "train": {"until": start - duration_ns(recipe.split.embargo), "windows": train},
        "val": {"from": start, "windows": val},
    }
    return splits, {symbol: begin - stop for symbol, (stop, begin) in bounds.items()}


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
