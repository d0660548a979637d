"""What manifests of entries made of recordings hold, in the words of cache.schema."""

from collections.abc import Callable, Iterator, Mapping
from itertools import pairwise
from typing import Any

from cache.layout import ALL_FOLDS, SEQUENCE, fold_name

_NAMES = {str: [str]}
_STATISTICS = {"method": str, "rows?": int, "center?": {str: float}, "scale?": {str: float}, "constant?": [str]}
_FOLD = {"windows": (int, int), "groups": [str], "classes": {str: {str: int}}}

DETAILS: dict[str, dict[str, Any]] = {
    "recordings": {
        "origin": str,
        "sequences": int,
        "channels": [str],
        "groups": [str],
        "classes": _NAMES,
        "empty": {str: int},
        "missing": {str: int},
        "unused": [str],
        "repaired": {str: dict},
    },
    "streams": {"timeframe": str, "features": [str], "feature_set": str, "statistics": _STATISTICS},
    "windows": {
        "timeframes": [str],
        "seq_len": {str: int},
        "classes": _NAMES,
        "groups": [str],
        "folds": [(int, int)],
    },
    "datasets": {
        "timeframes": [str],
        "seq_len": {str: int},
        "classes": _NAMES,
        "folds": [_FOLD],
        "recipe": dict,
        "warnings?": [str],
        "certificate?": {"passed": bool, "checks": {str: dict}},
    },
}
ARRAYS: dict[str, dict[str, tuple[str, int]]] = {  # dtype and number of axes
    "recordings": {},
    "streams": {"values": ("<f4", 2)},
    "windows": {
        "ends": ("<i4", 2),
        "time": ("<i8", 1),
        "label": ("<i4", 2),
        "group": ("<i4", 1),
        "fold": ("|i1", 1),
        "id": ("|u1", 2),
    },
    "datasets": {},
}
_OF_RECORDINGS = {
    "values": ("<f8", 2),
    "rows": ("<i4", 1),
    "time": ("<i8", 1),
    "label": ("<i4", 2),
    "group": ("<i4", 1),
    "id": ("|u1", 2),
}


def _recordings(manifest: dict[str, Any]) -> Iterator[str]:
    arrays, count = manifest["arrays"], manifest["sequences"]
    if not count and not arrays:  # a policy dropped all of them
        return
    for name, (dtype, axes) in _OF_RECORDINGS.items():
        if name not in arrays:
            yield f"arrays.{name} is missing"
        elif (arrays[name]["dtype"], len(arrays[name]["shape"])) != (dtype, axes):
            yield f"arrays.{name} is not {dtype} of {axes} axes"
        elif name != "values" and arrays[name]["shape"][0] != count:
            yield f"arrays.{name} is not of {count:,} sequences"
    if arrays["values"]["shape"][1] != len(manifest["channels"]):
        yield "channels are not as many as arrays.values has columns"
    if arrays["label"]["shape"][1] != len(manifest["classes"]):
        yield "classes are not of as many labels as arrays.label has columns"


def _streams(manifest: dict[str, Any]) -> Iterator[str]:
    features, statistics = manifest["features"], manifest["statistics"]
    if len(features) != manifest["arrays"]["values"]["shape"][1]:
        yield "features are not as many as arrays.values has columns"
    for name in ("center", "scale"):
        if statistics["method"] != "none" and list(statistics.get(name, ())) != features:
            yield f"statistics.{name} is not of the features"


def _windows(manifest: dict[str, Any]) -> Iterator[str]:
    yield from _one_stream(manifest)
    arrays, folds = manifest["arrays"], manifest["folds"]
    if arrays["ends"]["shape"][1] != 1:
        yield "arrays.ends does not have one column"
    if arrays["label"]["shape"][1] != len(manifest["classes"]):
        yield "classes are not of as many labels as arrays.label has columns"
    yield from _ranges(folds, arrays["time"]["shape"][0])


def _datasets(manifest: dict[str, Any]) -> Iterator[str]:
    yield from _one_stream(manifest)
    folds = [fold["windows"] for fold in manifest["folds"]]
    yield from _ranges(folds, folds[-1][1] if folds else 0)
    inputs = manifest["components"]["inputs"]
    if len(inputs) != 1:
        yield "components.inputs are not of one name"
    for name, keys in inputs.items():
        if list(keys["streams"]) not in ([ALL_FOLDS], [fold_name(k) for k in range(len(folds))]):
            yield f"components.inputs.{name}.streams are not of the folds"


def _one_stream(manifest: Mapping[str, Any]) -> Iterator[str]:
    if manifest["timeframes"] != [SEQUENCE] or list(manifest["seq_len"]) != [SEQUENCE]:
        yield f"timeframes and seq_len are not those of one stream, {SEQUENCE}"
    elif manifest["seq_len"][SEQUENCE] < 2:
        yield "seq_len is below 2"


def _ranges(folds: list[list[int]], windows: int) -> Iterator[str]:
    bounds = [(0, 0), *folds, (windows, windows)]
    whole = all(left[1] == right[0] <= right[1] for left, right in pairwise(bounds))
    if len(folds) < 2 or not whole or any(start == stop for start, stop in folds):
        yield "folds are not ranges that follow each other and hold all windows"


CONTRADICTIONS: dict[str, Callable[[dict[str, Any]], Iterator[str]]] = {
    "recordings": _recordings,
    "streams": _streams,
    "windows": _windows,
    "datasets": _datasets,
}
