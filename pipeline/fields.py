"""The fields of an entry: the part of the recipe that decides its bytes, under the recipe's own names."""

from collections.abc import Iterable
from typing import Any

from cache.recipe import Recipe
from cache.timeframes import duration_ns, format_ns, format_time
from pipeline.features import feature_set
from pipeline.universe import held_out, weights


def source_fields(recipe: Recipe, timeframe: str) -> dict[str, Any]:
    """What decides bars of a file, beside its content."""
    source = recipe.source
    return {
        "timeframe": timeframe,
        "source": {
            "label": source.label,
            "timezone": source.timezone,
            "columns": dict(source.columns),
            "symbol_columns": source.symbol_columns,
            "points_per_unit": source.points_per_unit,
            "policy": source.policy.model_dump(),
            **_session_fields(recipe, timeframe),
        },
    }


def derived_fields(recipe: Recipe, timeframe: str) -> dict[str, Any]:
    """What decides derived bars, beside the base."""
    return {"timeframe": timeframe, "derived_from": recipe.base, "source": _session_fields(recipe, timeframe)}


def _session_fields(recipe: Recipe, timeframe: str) -> dict[str, Any]:
    session = recipe.source.session
    return {"session": session.model_dump() if session else None} if timeframe == "d" else {}


def window_fields(recipe: Recipe) -> dict[str, Any]:
    """What decides windows, beside their bars."""
    window = recipe.window
    return {
        "timeframes": recipe.timeframes,
        "window": {
            "seq_len": recipe.seq_lens,
            "stride": window.stride,
            "min_coverage": window.min_coverage,
            "max_staleness": {name: format_ns(duration_ns(limit)) for name, limit in window.max_staleness.items()},
        },
    }


def stream_fields(recipe: Recipe, timeframe: str) -> dict[str, Any]:
    """What decides a stream, beside its bars."""
    chosen = recipe.features
    features = feature_set(chosen.set, chosen.plugin)
    return {
        "timeframe": timeframe,
        "features": {
            "set": chosen.set,
            "version": features.version,
            "statistics": chosen.statistics,
            **features.code,
        },
        "split": split_fields(recipe),
    }


def split_fields(recipe: Recipe) -> dict[str, Any]:
    """What decides where training ends, beside the base bars."""
    split, train_end = recipe.split, recipe.train_end_ns
    bound = {"val_fraction": split.val_fraction} if train_end is None else {"train_end": format_time(train_end)}
    return {**bound, "embargo": format_ns(duration_ns(split.embargo))}


def dataset_fields(recipe: Recipe, symbols: Iterable[str], left_out: Iterable[str]) -> dict[str, Any]:
    """What decides a dataset, beside its entries."""
    known = list(symbols)
    return {
        "split": split_fields(recipe),
        "universe": {
            "hold_out": held_out(recipe, known),
            "weights": {symbol: weight for symbol, weight in weights(recipe, known).items() if weight != 1},
            "left_out": sorted(left_out),
        },
    }
