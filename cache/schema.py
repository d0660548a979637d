"""What manifests and refs hold, in the types of cache/json_types.py, so that nobody who reads one has to doubt it."""

import re
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any

from cache import sequence_schema
from cache.json_types import fault
from cache.layout import FITTED, POOLED, SEQUENCES, array_spec, piece_count, shard_bytes

_KEY = re.compile(r"[0-9a-f]{32}")
_SEQ_LEN = {str: int}
_OWN = {"columns": [str], "lookback": int}  # columns that a user's file adds, the last ones
_MOMENTS = {"rows": int, "until": int, "mean": {str: float}, "std": {str: float}}

REF = {
    "name": str,
    "dataset": _KEY,
    "recipe": {"name": str},
    "data_dir": str,
    "sources": {str: {str: str}},
    "updated": datetime,
}
_ARRAY = {"shape": [int], "dtype": str, "dims": [str], "attributes": dict, "bytes": int, "md5": [_KEY]}
_MANIFEST = {
    "format": str,
    "stage": str,
    "stage_version": int,
    "key": _KEY,
    "components": {"stage": str, "version": int, "fields": dict, "inputs": dict},
    "arrays": {str: _ARRAY},
    "built": {"at": datetime, "seconds": float, "by": {str: str}},
}
_INPUTS = {
    "bars": {"bars?": [str]},
    "recordings": {"content": str, "span?": (int, int)},
    "splits": {"bars": [str]},
    "statistics": {str: [str]},
    "streams": {str: [str]},
    "windows": {str: [str]},
    "datasets": {str: {"windows": str, "streams": {str: str}}},
    "compiled": {},
    "parts": {},  # of embeddings, which lie in a folder of their own
}
_DETAILS: dict[str, dict[str, Any]] = {
    "bars": {
        "origin": str,
        "recognised": dict,
        "remarks": [str],
        "repaired": dict,
        "first_open": int,
        "last_close": int,
    },
    "splits": {"train_end": int},
    "statistics": {"timeframe": str, "until": int, "rows": int, "mean": [float], "scatter": [float]},
    "streams": {
        "timeframe": str,
        "nominal_length": int,
        "features": [str],
        "reveals": [str],
        "feature_set": str,
        "own?": _OWN,
        "statistics": _MOMENTS,
    },
    "windows": {"timeframes": [str], "seq_len": _SEQ_LEN, "candidates": int, "dropped": {str: {str: int}}},
    "compiled": {},
    "datasets": {
        "timeframes": [str],
        "seq_len": _SEQ_LEN,
        "splits": {"train": {"until": int}, "val": {"from": int}, "hold_out?": {"from": int}},
        "features": [str],
        "own?": _OWN,
        "longest_gap": {str: int},
        "left_out": {str: str},
        "recipe": dict,
        "warnings?": [str],
        "consistency?": dict,
        "certificate?": {"passed": bool, "checks": {str: dict}},
    },
}
_ARRAYS = {  # dtype and number of axes
    "bars": {"open_time": ("<i8", 1), "close_time": ("<i8", 1), "ohlc": ("<f8", 2)},
    "streams": {"values": ("<f4", 2), "close_time": ("<i8", 1), "close": ("<f8", 1)},
    "windows": {"ends": ("<i4", 2), "time": ("<i8", 1)},
    "splits": {},
    "statistics": {},
    "datasets": {
        "windows": ("<i8", 1),
        "rows": ("<i8", 2),
        "weight": ("<f8", 1),
        "train": ("<i8", 2),
        "val": ("<i8", 2),
        "mean": ("<f8", 3),
        "std": ("<f8", 3),
    },
    "compiled": {"artifacts": ("|u1", 1)},
}


def entry_fault(stage: str, manifest: dict[str, Any]) -> str:
    """What is wrong with what the manifest of any entry holds, enough to find its files and origins; "" for nothing."""
    if found := fault(manifest, _MANIFEST):
        return found
    if found := fault(manifest["components"]["inputs"], _INPUTS[stage]):
        return f"components.inputs.{found}"
    return next(filter(None, (_array_fault(*one) for one in manifest["arrays"].items())), "")


def stage_fault(stage: str, manifest: dict[str, Any]) -> str:
    """What is wrong with the rest of a manifest that has no `entry_fault`: the arrays and details of its stage."""
    named = manifest["components"]["fields"].get("kind")
    kind = _KINDS.get(named if isinstance(named, str) else None)
    if kind is None or stage not in kind[0]:
        return "components.fields.kind is none of this stage's"
    details, wanted, contradictions = (of_stage[stage] for of_stage in kind)
    if found := fault(manifest, details):
        return found
    arrays = manifest["arrays"]
    for name, (dtype, axes) in wanted.items():
        if name not in arrays:
            return f"arrays.{name} is missing"
        if (arrays[name]["dtype"], len(arrays[name]["shape"])) != (dtype, axes):
            return f"arrays.{name} is not {dtype} of {axes} axes"
    if stage not in ("recordings", "datasets") and len({described["shape"][0] for described in arrays.values()}) > 1:
        return "the arrays differ in their number of rows"
    return next(contradictions(manifest), "")


def _array_fault(name: str, described: Any) -> str:
    try:
        spec, rows = array_spec(name, described), described["shape"][0]
        known = spec.dtype == described["dtype"] and spec.dtype[0] in "<|" and spec.dtype[1] in "iuf"
        sound = known and name.isidentifier()
        known_size = min((rows, *spec.columns)) > 0 and described["bytes"] == shard_bytes(rows, spec.row_bytes)
        if sound and known_size and len(described["md5"]) == piece_count(rows):
            return ""
    except (KeyError, TypeError, ValueError, IndexError, OverflowError):
        pass
    return f"arrays.{name} is not an array as this format has them"


def _bars(manifest: dict[str, Any]) -> Iterator[str]:
    if manifest["arrays"]["ohlc"]["shape"][1] != 4:
        yield "arrays.ohlc does not have four columns"


def _streams(manifest: dict[str, Any]) -> Iterator[str]:
    features, moments = manifest["features"], manifest["statistics"]
    if len(features) != manifest["arrays"]["values"]["shape"][1]:
        yield "features are not as many as arrays.values has columns"
    for name in ("mean", "std"):
        if list(moments[name]) != features:
            yield f"statistics.{name} is not of the features"
    children = manifest["arrays"].get("base_rows")
    if children and (children["dtype"], children["shape"][1:]) != ("<i4", [2]):
        yield "arrays.base_rows is not <i4 of two columns"


def _windows(manifest: dict[str, Any]) -> Iterator[str]:
    if len(manifest["timeframes"]) != manifest["arrays"]["ends"]["shape"][1]:
        yield "timeframes are not as many as arrays.ends has columns"
    yield from _lengths(manifest)


def _datasets(manifest: dict[str, Any]) -> Iterator[str]:
    symbols, timeframes = manifest["components"]["inputs"], manifest["timeframes"]
    if not symbols or not timeframes:
        yield "there is no symbol, or no timeframe"
    if list(symbols) != sorted(symbols):
        yield "components.inputs are not in the order of the symbols' names"
    yield from _lengths(manifest)
    if list(manifest["longest_gap"]) != timeframes[1:]:
        yield "longest_gap is not of the timeframes but the base"
    for symbol, keys in symbols.items():
        if list(keys["streams"]) != timeframes:
            yield f"components.inputs.{symbol}.streams are not of the timeframes"
    count, parts, moments = len(symbols), manifest["splits"], [len(timeframes), len(manifest["features"])]
    shapes = {"windows": ["<i8", count], "rows": ["<i8", count, len(timeframes)], "weight": ["<f8", count]}
    shapes |= {part: ["<i8", count, 2] for part in parts}
    pooled = manifest["arrays"]["mean"]["dims"][0] == POOLED
    shapes |= {moment: ["<f8", 1 if pooled else count, *moments] for moment in ("mean", "std")}
    if {name: [array["dtype"], *array["shape"]] for name, array in manifest["arrays"].items()} != shapes:
        yield "the arrays are not of its symbols, timeframes and features, and of the parts of its split"


def _lengths(manifest: dict[str, Any]) -> Iterator[str]:
    if list(manifest["seq_len"]) != manifest["timeframes"] or min(manifest["seq_len"].values(), default=1) < 1:
        yield "seq_len does not give every timeframe its bars"


_CONTRADICTIONS = {
    "bars": _bars,
    "streams": _streams,
    "windows": _windows,
    "datasets": _datasets,
    **dict.fromkeys((*FITTED, "compiled"), lambda manifest: iter(())),
}
_KINDS: dict[Any, tuple[Mapping[str, Any], ...]] = {
    None: (_DETAILS, _ARRAYS, _CONTRADICTIONS),
    SEQUENCES: (sequence_schema.DETAILS, sequence_schema.ARRAYS, sequence_schema.CONTRADICTIONS),
}
