"""Makes one entry of a plan, whatever it holds."""

from pathlib import Path

from cache.locks import Waiting, entry_lock
from cache.recipes import AnyRecipe
from cache.writer import EntryWriter
from pipeline.plan import Node
from pipeline.way import Advance
from pipeline.ways import way_of


def build_node(node: Node, recipe: AnyRecipe, store: Path, advance: Advance, waiting: Waiting = lambda: None) -> bool:
    """Make the entry of `node` unless it exists; `advance` hears of rows done. Returns whether it was made here.

    Whoever builds the same entry in another process is waited for, as cache.locks tells.
    """
    with entry_lock(store, node.components, waiting) as wanted:
        if wanted:
            with EntryWriter(store, node.components, synced=False) as entry:
                way_of(recipe).builders[node.components.stage](node, recipe, store, entry, advance)
    return wanted
