"""The entries of a dataset of bars, as a pure function of the recipe and the sources' fingerprints.

bars         one a file, or a symbol's rows of it, checked; and those derived from the base
splits       where training ends, where that depends on all symbols
statistics   of a symbol's training rows, and pooled
streams      features of a timeframe, scaled
windows      decision times, and where each timeframe's window ends
datasets     all of it, certified
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from cache.keys import Components
from cache.recipe import Recipe
from pipeline.fields import dataset_fields, derived_fields, source_fields, stream_fields, window_fields
from pipeline.plan import Node, Plan, SourceFile, Sources
from pipeline.universe import Faults, held_out, unusable

STAGE_VERSIONS = {"bars": 2, "splits": 1, "statistics": 2, "streams": 3, "windows": 2, "datasets": 5}


def make_plan(recipe: Recipe, sources: Sources, left_out: Faults = MappingProxyType({})) -> Plan:
    """Plan a dataset of every symbol that there are files for, but for those `left_out`.

    Raises UserError where a symbol's files have a fault, or are missing, or it is left out, and the recipe wants all.
    """
    left_out = {**left_out, **_faulty(recipe, sources)}
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


def _faulty(recipe: Recipe, sources: Sources) -> dict[str, str]:
    """The symbols that lack the files of a timeframe, or have such as are of no use."""
    missing = {
        symbol: next((name for name in recipe.source.files if not files.get(name)), None)
        for symbol, files in sources.items()
    }
    faults = {
        symbol: file.fault for symbol, files in sources.items() for of in files.values() for file in of if file.fault
    }
    return faults | {
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
