"""What a build needs, as a pure function of the recipe and the sources' fingerprints. No file is touched here."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cache.keys import Components, Identity
from cache.recipe import Recipe
from cache.recipes import AnyRecipe
from cache.timeframes import duration_ns, format_ns, format_time
from pipeline.features import feature_set

STAGE_VERSIONS = {"bars": 2, "streams": 3, "windows": 2, "datasets": 2}


@dataclass(frozen=True)
class SourceFile:
    """A source file, or the part of it that one entry is made of.

    `md5` is that of the file's whole content, `identity` what the file was when it was hashed, `touched` says that its
    content is what it was before while its identity is not. `rows` holds the values of the symbol columns in the rows
    that count, `span` the bytes [first, past the last) where they lie; empty, and None: all rows.
    """

    path: Path
    md5: str
    identity: Identity | None = None
    touched: bool = False
    rows: Mapping[str, str] = field(default_factory=dict)
    span: tuple[int, int] | None = None


Sources = Mapping[str, Mapping[str, Sequence[SourceFile]]]  # by symbol and timeframe


@dataclass(frozen=True)
class Node:
    """One entry to have: its components, and what they do not say but its making needs."""

    components: Components
    needs: tuple[str, ...]  # keys of nodes that come before
    symbol: str
    timeframe: str | None = None
    file: SourceFile | None = None

    @property
    def label(self) -> str:
        """For people: `streams SSE m5`."""
        parts = [self.components.stage, self.symbol, self.timeframe, self.file and self.file.path.name]
        if self.file and self.file.span:
            parts.append("from {:.0f} to {:.0f} MB".format(*(at / 1e6 for at in self.file.span)))
        return " ".join(str(part) for part in parts if part)


@dataclass(frozen=True)
class Plan:
    """The entries of one dataset, each after those that it needs; the last is the dataset's own."""

    recipe: AnyRecipe
    nodes: tuple[Node, ...]

    @property
    def dataset(self) -> Node:
        """The last node."""
        return self.nodes[-1]


def make_plan(recipe: Recipe, sources: Sources) -> Plan:
    """Plan a dataset of every symbol that there are files for."""
    shards = {symbol: _shards(recipe, symbol, files) for symbol, files in sources.items()}
    keys = {  # sorted, so that the names of the files do not matter; a series orders its shards by time
        symbol: {name: tuple(sorted(n.components.key for n in nodes if n.timeframe == name)) for name in files}
        for (symbol, files), nodes in zip(sources.items(), shards.values(), strict=True)
    }
    # val_fraction divides the time of all symbols together; a stated train_end needs no bars at all
    all_base = sorted({key for of_symbol in keys.values() for key in of_symbol[recipe.base]})
    split_bars = all_base if recipe.train_end_ns is None else []
    nodes = [node for of_symbol in shards.values() for node in of_symbol]
    entries: dict[str, dict[str, Any]] = {}
    for symbol in sources:
        made = list(_symbol_nodes(recipe, symbol, keys[symbol], split_bars))
        nodes += made
        windows = next(node for node in made if node.components.stage == "windows")
        streams = {str(node.timeframe): node.components.key for node in made if node.components.stage == "streams"}
        entries[symbol] = {
            "windows": windows.components.key,
            "streams": {name: streams[name] for name in recipe.timeframes},
        }
    needs = tuple(key for one in entries.values() for key in (one["windows"], *one["streams"].values()))
    nodes.append(Node(_component("datasets", {"split": split_fields(recipe)}, entries), needs, recipe.name))
    unique: dict[str, Node] = {}  # symbols with the same bars share their entries
    for node in nodes:
        unique.setdefault(node.components.key, node)
    return Plan(recipe, tuple(unique.values()))


def _shards(recipe: Recipe, symbol: str, files: Mapping[str, Sequence[SourceFile]]) -> list[Node]:
    nodes = []
    for timeframe, of_timeframe in files.items():
        for file in of_timeframe:
            inputs = {"content": file.md5, **({"rows": dict(file.rows)} if file.rows else {})}
            nodes.append(
                Node(_component("bars", _source_fields(recipe, timeframe), inputs), (), symbol, timeframe, file)
            )
    return nodes


def _symbol_nodes(
    recipe: Recipe, symbol: str, given: Mapping[str, tuple[str, ...]], split_bars: list[str]
) -> Iterator[Node]:
    """What is made of one symbol's shards, whose keys `given` holds by timeframe."""
    base = given[recipe.base]
    derived = [
        Node(_component("bars", _derived_fields(recipe, name), {"bars": base}), base, symbol, name)
        for name in recipe.timeframes
        if name not in given
    ]
    keys = {**given, **{str(node.timeframe): (node.components.key,) for node in derived}}
    streams = {}
    for name in recipe.timeframes:
        inputs = {"bars": keys[name]}
        inputs |= {"base": base} if name != recipe.base else {}
        inputs |= {"split": tuple(split_bars)} if split_bars else {}
        needs = tuple(key for some in inputs.values() for key in some)
        streams[name] = Node(_component("streams", stream_fields(recipe, name), inputs), needs, symbol, name)
    shards = {name: keys[name] for name in recipe.timeframes}
    yield streams.pop(recipe.base)  # the longest work, and it waits for nothing but the base bars
    yield from derived
    yield Node(
        _component("windows", window_fields(recipe), shards),
        tuple(key for shard_keys in shards.values() for key in shard_keys),
        symbol,
    )
    yield from streams.values()


def _component(stage: str, fields: dict[str, Any], inputs: dict[str, Any]) -> Components:
    return Components(stage, STAGE_VERSIONS[stage], fields, inputs)


# The fields of an entry: the part of the recipe that decides its bytes, under the recipe's own names.


def _source_fields(recipe: Recipe, timeframe: str) -> dict[str, Any]:
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


def _derived_fields(recipe: Recipe, timeframe: str) -> dict[str, Any]:
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
    name = recipe.features.set
    return {
        "timeframe": timeframe,
        "features": {"set": name, "version": feature_set(name).version},
        "split": split_fields(recipe),
    }


def split_fields(recipe: Recipe) -> dict[str, Any]:
    """What decides where training ends, beside the base bars."""
    split, train_end = recipe.split, recipe.train_end_ns
    bound = {"val_fraction": split.val_fraction} if train_end is None else {"train_end": format_time(train_end)}
    return {**bound, "embargo": format_ns(duration_ns(split.embargo))}
