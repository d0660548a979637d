"""What a build needs, as a pure function of the recipe and the sources' fingerprints. No file is touched here."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from cache.entries import StoreError
from cache.keys import Components, Identity
from cache.recipe import Recipe
from cache.recipes import AnyRecipe
from configs.errors import UserError
from pipeline.fields import dataset_fields, derived_fields, source_fields, stream_fields, window_fields
from pipeline.universe import Faults, held_out, unusable

STAGE_VERSIONS = {"bars": 2, "splits": 1, "statistics": 2, "streams": 3, "windows": 2, "datasets": 5}


@dataclass(frozen=True)
class SourceFile:
    """A source file, or the part of it that one entry is made of.

    `md5` is that of the file's whole content, `identity` what the file was when it was hashed, `touched` says that its
    content is what it was before while its identity is not. `rows` holds the values of the symbol columns in the rows
    that count, `span` the bytes [first, past the last) where they lie; empty, and None: all rows. `divided` is
    where the rows of several symbols lie apart while a build lasts.
    """

    path: Path
    md5: str
    identity: Identity | None = None
    touched: bool = False
    rows: Mapping[str, str] = field(default_factory=dict)
    span: tuple[int, int] | None = None
    divided: Path | None = None


Sources = Mapping[str, Mapping[str, Sequence[SourceFile]]]  # by symbol and timeframe; without any: they are missing


Shards = Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]]


@dataclass(frozen=True)
class Earlier:
    """An entry of fewer files. `shards` has by timeframe the keys of the bars of files: its own, and all there are."""

    key: str
    shards: Shards


@dataclass(frozen=True)
class Node:
    """One entry to have: its components, and what they do not say but its making needs.

    If the `earlier` entry is there, its rows need not be made again.
    """

    components: Components
    needs: tuple[str, ...]  # keys of nodes that come before
    symbol: str
    timeframe: str | None = None
    file: SourceFile | None = None
    left_out: Faults = field(default_factory=dict)
    earlier: Earlier | None = None

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
    left_out: Faults = field(default_factory=dict)

    @property
    def dataset(self) -> Node:
        """The last node."""
        return self.nodes[-1]

    @property
    def may_leave_out(self) -> bool:
        """Whether it goes without the symbols that cannot be built."""
        return isinstance(self.recipe, Recipe) and self.recipe.universe.failing == "leave_out"


def blame(plan: Plan, faults: Mapping[str, UserError]) -> dict[str, UserError]:
    """Which symbols have these faults, given by key.

    Raises a fault that is no symbol's own, or of the only symbol, and StoreError: no data is at fault there.
    """
    for fault in faults.values():
        if isinstance(fault, StoreError):
            raise fault
    nodes = {node.components.key: node for node in plan.nodes}
    found: dict[str, UserError] = {}
    symbols = plan.dataset.components.inputs
    for symbol, keys in symbols.items():
        own = {keys["windows"], *nodes[keys["windows"]].needs, *keys["streams"].values()}
        if faulty := [fault for key, fault in faults.items() if key in own]:
            found[symbol] = faulty[0]
    if not found or len(symbols) == 1:
        raise next(iter(faults.values()))
    return found


def make_plan(recipe: Recipe, sources: Sources, left_out: Faults = MappingProxyType({})) -> Plan:
    """Plan a dataset of every symbol that there are files for, but for those `left_out`.

    Raises UserError where a symbol lacks a file, or is left out, and the recipe wants all.
    """
    left_out = {**_without_files(recipe, sources), **left_out}
    if left_out and (recipe.universe.failing == "error" or len(left_out) == len(sources)):
        raise unusable(left_out, len(sources))
    sources = {symbol: files for symbol, files in sources.items() if symbol not in left_out}
    held = held_out(recipe, sources)
    shards = {symbol: _shards(recipe, symbol, files) for symbol, files in sources.items()}
    keys = {  # sorted, so that the names of the files do not matter; a series orders its shards by time
        symbol: {name: tuple(sorted(n.components.key for n in nodes if n.timeframe == name)) for name in files}
        for (symbol, files), nodes in zip(sources.items(), shards.values(), strict=True)
    }
    nodes = [node for of_symbol in shards.values() for node in of_symbol]
    split = _split_inputs(recipe, [of_symbol[recipe.base] for of_symbol in keys.values()])
    if "splits" in split:
        bars = tuple(sorted({key for of_symbol in keys.values() for key in of_symbol[recipe.base]}))
        nodes.append(Node(_split_component(recipe, bars), bars, recipe.name))
    bars_nodes = {symbol: _derived(recipe, symbol, keys[symbol]) for symbol in sources}
    for symbol, derived in bars_nodes.items():
        keys[symbol] |= {str(node.timeframe): (node.components.key,) for node in derived}
    pooled: list[Node] = []
    if recipe.features.statistics == "pooled":
        pooled = list(_pooled(recipe, {symbol: of for symbol, of in keys.items() if symbol not in held}, split))
    fitted = {node.timeframe: node.components.key for node in pooled if node.symbol == recipe.name}
    entries: dict[str, dict[str, Any]] = {}
    for symbol, derived in bars_nodes.items():
        streams = {name: _stream(recipe, symbol, name, keys[symbol], split, fitted) for name in recipe.timeframes}
        windows = _windows(recipe, symbol, keys[symbol])
        # the base stream is the longest work, and waits for nothing but the base bars
        base, *others = streams.values()
        nodes += [base, *derived, windows, *others]
        entries[symbol] = {
            "windows": windows.components.key,
            "streams": {name: node.components.key for name, node in streams.items()},
        }
    needs = tuple(key for one in entries.values() for key in (one["windows"], *one["streams"].values()))
    fields = dataset_fields(recipe, sources, left_out)
    nodes.append(Node(_component("datasets", fields, entries), needs, recipe.name, left_out=left_out))
    return Plan(recipe, tuple(_in_order([*pooled, *nodes])), left_out)


def _in_order(nodes: Iterable[Node]) -> Iterator[Node]:
    """Each once, after those that it needs: symbols with the same bars share their entries."""
    waiting = {node.components.key: node for node in reversed(list(nodes))}
    done: set[str] = set()

    def visit(node: Node) -> Iterator[Node]:
        done.add(node.components.key)
        for key in node.needs:
            if key not in done:
                yield from visit(waiting[key])
        yield node

    for node in nodes:
        if node.components.key not in done:
            yield from visit(waiting[node.components.key])


def _without_files(recipe: Recipe, sources: Sources) -> dict[str, str]:
    """The symbols that lack the files of a timeframe."""
    missing = {
        symbol: next((name for name in recipe.source.files if not files.get(name)), None)
        for symbol, files in sources.items()
    }
    return {
        symbol: f"{symbol}: data.source.files.{name} = {recipe.source.files[name]} holds nothing of it; add its "
        "file, or say in data.source.symbols which symbols to take"
        for symbol, name in missing.items()
        if name is not None
    }


def _split_inputs(recipe: Recipe, base: Sequence[tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
    """What decides where training ends: nothing but the recipe, the bars of the one symbol, or an entry of all bars'.

    val_fraction divides the time of all symbols together; a stated train_end needs no bars at all. Thousands of streams
    that each named the bars of thousands of symbols would take gigabytes.
    """
    if recipe.train_end_ns is not None:
        return {}
    if len(base) == 1:
        return {"split": base[0]}
    bars = tuple(sorted({key for of_symbol in base for key in of_symbol}))
    return {"splits": (_split_component(recipe, bars).key,)}


def _split_component(recipe: Recipe, bars: tuple[str, ...]) -> Components:
    return _component("splits", {"split": {"val_fraction": recipe.split.val_fraction}}, {"bars": bars})


def _shards(recipe: Recipe, symbol: str, files: Mapping[str, Sequence[SourceFile]]) -> list[Node]:
    nodes = []
    for timeframe, of_timeframe in files.items():
        for file in of_timeframe:
            inputs = {"content": file.md5, **({"rows": dict(file.rows)} if file.rows else {})}
            nodes.append(
                Node(_component("bars", source_fields(recipe, timeframe), inputs), (), symbol, timeframe, file)
            )
    return nodes


def _derived(recipe: Recipe, symbol: str, given: Mapping[str, tuple[str, ...]]) -> list[Node]:
    """The bars that no file holds; `given` has the keys of those that one does."""
    base = given[recipe.base]
    return [
        Node(_component("bars", derived_fields(recipe, name), {"bars": base}), base, symbol, name)
        for name in recipe.timeframes
        if name not in given
    ]


def _pooled(
    recipe: Recipe, keys: Mapping[str, Mapping[str, tuple[str, ...]]], split: Mapping[str, tuple[str, ...]]
) -> Iterator[Node]:
    """Symbol by symbol the statistics of each that trains, and by timeframe those of all of them after that."""
    own, together = list[Node](), list[Node]()
    for name in recipe.timeframes:
        fields = stream_fields(recipe, name)
        of_symbols = []
        # in the order of the bars' keys, so that the names of symbols do not matter
        for symbol, of_symbol in sorted(keys.items(), key=lambda one: one[1][name]):
            inputs = {"bars": of_symbol[name], **split}
            needs = tuple(key for some in inputs.values() for key in some)
            of_symbols.append(Node(_component("statistics", fields, inputs), needs, symbol, name))
        own += of_symbols
        known = tuple(dict.fromkeys(node.components.key for node in of_symbols))
        together.append(Node(_component("statistics", fields, {"statistics": known}), known, recipe.name, name))
    yield from sorted(own, key=lambda node: node.symbol)
    yield from together


def _stream(
    recipe: Recipe,
    symbol: str,
    name: str,
    keys: Mapping[str, tuple[str, ...]],
    split: Mapping[str, tuple[str, ...]],
    pooled: Mapping[str | None, str],
) -> Node:
    inputs = {"bars": keys[name]}
    inputs |= {"base": keys[recipe.base]} if name != recipe.base else {}
    inputs |= split
    inputs |= {"statistics": (pooled[name],)} if pooled else {}
    needs = tuple(key for some in inputs.values() for key in some)
    return Node(_component("streams", stream_fields(recipe, name), inputs), needs, symbol, name)


def _windows(recipe: Recipe, symbol: str, keys: Mapping[str, tuple[str, ...]]) -> Node:
    shards = {name: keys[name] for name in recipe.timeframes}
    needs = tuple(key for of_timeframe in shards.values() for key in of_timeframe)
    return Node(_component("windows", window_fields(recipe), shards), needs, symbol)


def _component(stage: str, fields: dict[str, Any], inputs: dict[str, Any]) -> Components:
    return Components(stage, STAGE_VERSIONS[stage], fields, inputs)
