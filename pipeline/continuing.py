"""When further files join those of the last build: which entry each of a plan continues, and whether it may.

The rows of a bars, streams or windows entry do not change when later bars come (pipeline/derive.py leaves out what
later bars would change), so an entry of more files begins with the rows of the one of fewer. Keys do not say so: the
same bytes are made with and without.
"""

from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import cache
from pathlib import Path

from cache.entries import Entry, StoreError, open_entry
from cache.recipe import Recipe
from configs.errors import UserError
from pipeline.bars_plan import make_plan
from pipeline.plan import Earlier, Plan, Shards, Sources
from pipeline.series import BarSeries
from pipeline.universe import Faults


def continuing(plan: Plan, sources: Sources, known: Mapping[str, Collection[str]], left_out: Faults) -> Plan:
    """The plan with the entries to continue: those of the plan for the files whose MD5s are `known`, by timeframe."""
    assert isinstance(plan.recipe, Recipe)
    before = {
        symbol: {name: [file for file in of if file.md5 in known.get(name, ())] for name, of in files.items()}
        for symbol, files in sources.items()
    }
    if before == sources:
        return plan
    before = {symbol: files for symbol, files in before.items() if all(files.values())}
    try:
        earlier = make_plan(plan.recipe, before, {symbol: why for symbol, why in left_out.items() if symbol in before})
    except UserError:  # there is no such dataset
        return plan
    keys = {
        (node.components.stage, node.symbol, node.timeframe): node.components.key
        for node in earlier.nodes
        if node.file is None
    }
    then, now = _files(earlier), _files(plan)
    nodes = []
    for node in plan.nodes:
        key = keys.get((node.components.stage, node.symbol, node.timeframe))
        if key and not node.file and key != node.components.key:
            shards: Shards = {}
            if node.symbol in then:
                shards = {name: (then[node.symbol][name], of) for name, of in now[node.symbol].items()}
            node = replace(node, earlier=Earlier(key, shards))
        nodes.append(node)
    return replace(plan, nodes=tuple(nodes))


def _files(plan: Plan) -> dict[str, dict[str, tuple[str, ...]]]:
    """By symbol and timeframe the bars that come from files."""
    assert isinstance(plan.recipe, Recipe)
    nodes = {node.components.key: node for node in plan.nodes}
    given = [name for name in plan.recipe.timeframes if name in plan.recipe.source.files]
    return {
        symbol: {name: nodes[keys["windows"]].components.inputs[name] for name in given}
        for symbol, keys in plan.dataset.components.inputs.items()
    }


def entry_before(stage: str, earlier: Earlier | None, base: str, store: Path) -> Entry | None:
    """The entry of fewer files that another goes on from.

    None where it is gone, and where not all further bars of its symbol come after it.
    """
    with suppress(StoreError):
        if earlier and (not earlier.shards or _come_after(store, base, tuple(earlier.shards.items()))):
            return open_entry(store, stage, earlier.key)
    return None


_OfTimeframe = tuple[str, tuple[tuple[str, ...], tuple[str, ...]]]


@cache
def _come_after(store: Path, base: str, shards: tuple[_OfTimeframe, ...]) -> bool:
    """Whether bars, given as (timeframe, (keys before, keys now)), go on where those before ended.

    No further bar closes by the last decision time before, and no bar before holds further base bars.
    """
    kept, further = {}, {}
    for name, (before, now) in shards:
        entries = BarSeries(store, now).entries
        kept[name], further[name] = entries[: len(before)], entries[len(before) :]
        if {entry.key for entry in kept[name]} != set(before):
            return False
    decided = kept[base][-1].manifest["last_close"]
    if any(entries and entries[0].rows("close_time", 0, 1)[0] <= decided for entries in further.values()):
        return False
    goes_on = further[base][0].manifest["first_open"] if further[base] else None
    return goes_on is None or all(entries[-1].manifest["last_close"] <= goes_on for entries in kept.values())


def base_bars_before(earlier: Earlier, base: str, store: Path) -> int:
    """How many base bars the earlier entry was made of."""
    return len(BarSeries(store, earlier.shards[base][0]))
