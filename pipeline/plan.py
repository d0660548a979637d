"""What a build needs, as a pure function of the recipe and the sources' fingerprints. No file is touched here."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cache.keys import Components
from cache.recipe import Recipe
from cache.timeframes import duration_ns
from pipeline.features import feature_set

STAGE_VERSIONS = {"bars": 1, "streams": 1, "windows": 1, "datasets": 1}


@dataclass(frozen=True)
class SourceFile:
    """A source file and the MD5 of its content."""

    path: Path
    md5: str


@dataclass(frozen=True)
class Node:
    """One entry to have: its components, and what they do not say but its making needs."""

    components: Components
    needs: tuple[str, ...]  # keys of nodes that come before
    symbol: str
    timeframe: str | None = None
    path: Path | None = None

    @property
    def label(self) -> str:
        """For people: `streams SSE m5`."""
        parts = (self.components.stage, self.symbol, self.timeframe, self.path and self.path.name)
        return " ".join(str(part) for part in parts if part)


@dataclass(frozen=True)
class Plan:
    """The entries of one dataset, each after those that it needs; the last is the dataset's own."""

    recipe: Recipe
    nodes: tuple[Node, ...]

    @property
    def dataset(self) -> Node:
        """The last node."""
        return self.nodes[-1]


def make_plan(recipe: Recipe, sources: Mapping[str, Sequence[SourceFile]]) -> Plan:
    """Plan a dataset. `sources` holds the files of every timeframe that the recipe names files for."""
    shards = [
        Node(_component("bars", _source_fields(recipe, name), {"content": f.md5}), (), recipe.symbol, name, f.path)
        for name, files in sources.items()
        for f in files
    ]
    # sorted, so that the names of the files do not matter; a series orders its shards by time
    keys = {name: tuple(sorted(node.components.key for node in shards if node.timeframe == name)) for name in sources}
    base = keys[recipe.base]
    derived = [
        Node(_component("bars", _derived_fields(recipe, name), {"bars": base}), base, recipe.symbol, name)
        for name in recipe.timeframes
        if name not in sources
    ]
    keys |= {str(node.timeframe): (node.components.key,) for node in derived}

    streams = {
        name: Node(
            _component("streams", _stream_fields(recipe, name), {"bars": keys[name], "base": base}),
            (*keys[name], *base),
            recipe.symbol,
            name,
        )
        for name in recipe.timeframes
    }
    inputs = {name: keys[name] for name in recipe.timeframes}
    windows = Node(
        _component("windows", _window_fields(recipe), inputs),
        tuple(key for shard_keys in inputs.values() for key in shard_keys),
        recipe.symbol,
    )
    stream_keys = {name: node.components.key for name, node in streams.items()}
    entries = {"windows": windows.components.key, "streams": stream_keys}
    dataset = Node(
        _component("datasets", _split_fields(recipe), {recipe.symbol: entries}),
        (windows.components.key, *stream_keys.values()),
        recipe.name,
    )
    # the base stream is the longest work and waits for nothing but the base bars
    base_stream = streams.pop(recipe.base)
    return Plan(recipe, (*shards, base_stream, *derived, windows, *streams.values(), dataset))


def _component(stage: str, fields: dict[str, Any], inputs: dict[str, Any]) -> Components:
    return Components(stage, STAGE_VERSIONS[stage], fields, inputs)


def _source_fields(recipe: Recipe, timeframe: str) -> dict[str, Any]:
    source = recipe.source
    return {
        "timeframe": timeframe,
        "label": source.label,
        "timezone": source.timezone,
        "columns": dict(source.columns),
        **_session_fields(recipe, timeframe),
    }


def _derived_fields(recipe: Recipe, timeframe: str) -> dict[str, Any]:
    return {"timeframe": timeframe, "derived_from": recipe.base, **_session_fields(recipe, timeframe)}


def _session_fields(recipe: Recipe, timeframe: str) -> dict[str, Any]:
    session = recipe.source.session
    return {"session": session.model_dump() if session else None} if timeframe == "d" else {}


def _window_fields(recipe: Recipe) -> dict[str, Any]:
    window = recipe.window
    return {
        "timeframes": recipe.timeframes,
        "seq_len": recipe.seq_lens,
        "stride": window.stride,
        "min_coverage": window.min_coverage,
        "max_staleness": {name: duration_ns(limit) for name, limit in window.max_staleness.items()},
    }


def _stream_fields(recipe: Recipe, timeframe: str) -> dict[str, Any]:
    name = recipe.features.set
    return {
        "timeframe": timeframe,
        "features": name,
        "features_version": feature_set(name).version,
        **_split_fields(recipe),
    }


def _split_fields(recipe: Recipe) -> dict[str, Any]:
    split = recipe.split
    bound = {"val_fraction": split.val_fraction} if split.train_end is None else {"train_end": recipe.train_end_ns}
    return {**bound, "embargo": duration_ns(split.embargo)}
