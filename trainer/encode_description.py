"""Reads encoder.json of a run: what live inference must know besides the weights."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from cache.json_types import fault
from cache.keys import file_md5
from cache.layout import SEQUENCES
from cache.recipe import BarsSource, Recipe, Session, Window
from configs.errors import UserError
from pipeline.features import FEATURE_SETS, FeatureSet, feature_set
from trainer.described import ENCODER_FORMAT, SEEN
from trainer.encode_inputs import Inputs, Scaling
from trainer.runs import FEATURES

_MADE = {
    "kind": str,
    "dataset": str,
    "task": str,
    "timeframes": [str],
    "seq_lens": {str: int},
    "bar_lengths": {str: int},
    "model": dict,
    "seen": [SEEN],
}
_OF_BARS = {
    **_MADE,
    "features": {"set": str, "version": int, "columns": [str], "code?": str},
    "statistics": {str: {str: {"mean": {str: float}, "std": {str: float}}}},
    "source": {"label": str, "files": [str]},
    "window": {"min_coverage": float, "max_staleness": {str: str}, "longest_gap": {str: int}},
}
_OF_RECORDINGS = {
    **_MADE,
    "features": {"set": str, "columns": [str]},
    "statistics": {"center": {str: float}, "scale": {str: float}},
    "source": {"order": str, "sentinels": [float]},
    "fill": [str],
    "derive": list,
    "length": {"mode": str, "seq_len": int},
    "classes": {str: [str]},
}


def read_description(run: Path) -> dict[str, Any]:
    """encoder.json of a run. Raises UserError when it is missing, damaged, or of features that this version lacks."""
    path = run / "encoder.json"
    try:
        described = json.loads(path.read_bytes())
        found = described["format"]
    except (FileNotFoundError, NotADirectoryError):
        what = "no run there" if not (run / "config.yaml").is_file() else "recorded by a version that did not write it"
        raise UserError(f"{path}: missing ({what}); bin/train makes runs that have it") from None
    except (ValueError, KeyError, TypeError, RecursionError):
        raise UserError(f"{path}: damaged; copy it again from where the run was trained") from None
    if found != ENCODER_FORMAT:
        raise UserError(f"{path}: has format {found}, and this version reads {ENCODER_FORMAT}; train the run again")
    of_recordings = described.get("kind") == SEQUENCES
    wrong = (
        fault(described, _OF_RECORDINGS) if of_recordings else fault(described, _OF_BARS) or _contradiction(described)
    )
    if wrong:
        raise UserError(f"{path}: damaged, {wrong}; copy it again from where the run was trained")
    if not of_recordings:
        features_of(run, described["features"])
    return dict(described)


def features_of(run: Path, features: dict[str, Any]) -> FeatureSet:
    """What encoder.json says of features; a user's own columns by the run's copy of their file. Raises UserError."""
    path, own = run / "encoder.json", run / FEATURES
    known = FEATURE_SETS.get(features["set"])
    if known and "code" in features:
        if not own.is_file() or file_md5(own) != features["code"]:
            raise UserError(f"{own}: missing, or not what it was; copy it again from where the run was trained")
        known = feature_set(features["set"], str(own))
    if known is None or (known.version, list(known.columns)) != (features["version"], features["columns"]):
        here = f"version {known.version}" if known else "none of that name"
        raise UserError(
            f"{path}: trained on version {features['version']} of the feature set {features['set']}, and this version "
            f"of Headstart has {here}; use the one it was trained with, or train again"
        )
    return known


def _contradiction(described: dict[str, Any]) -> str:
    names, columns = described["timeframes"], described["features"]["columns"]
    parts = [described["seq_lens"], described["bar_lengths"], *described["statistics"].values()]
    if not names or not described["statistics"] or any(list(part) != names for part in parts):
        return "its parts are not of the same timeframes"
    if list(described["window"]["longest_gap"]) != names[1:]:
        return "its longest gaps are not of its timeframes"
    moments = [moment for of in described["statistics"].values() for both in of.values() for moment in both.values()]
    return "" if all(list(moment) == columns for moment in moments) else "its statistics are not of its features"


def inputs_of(run: Path, described: dict[str, Any]) -> Inputs:
    """How windows of bars are made, from what encoder.json says."""
    source, limits = described["source"], described["window"]
    window = Window(
        seq_len=described["seq_lens"],
        span=None,
        min_bars=1,
        stride=1,  # it would count from the first bar of a series
        min_coverage=limits["min_coverage"],
        max_staleness=limits["max_staleness"],
    )
    session = Session(**source["session"]) if source.get("session") else None
    scaling = {
        symbol: {
            name: Scaling(*(np.array(list(both[kind].values()), np.float64) for kind in ("mean", "std")))
            for name, both in of.items()
        }
        for symbol, of in described["statistics"].items()
    }
    read: dict[str, Any] = {"label": source["label"], "session": session}
    made: dict[str, Any] = {"timeframes": described["timeframes"], "window": window}
    return Inputs(
        BarsSource.model_construct(**read),
        Recipe.model_construct(**made),
        described["bar_lengths"],
        frozenset(source["files"]),
        limits["longest_gap"],
        features_of(run, described["features"]),
        scaling,
    )
