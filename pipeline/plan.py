"""What a build needs: a plan of entries, each with those that it is made of."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cache.entries import StoreError
from cache.keys import Components, Identity
from cache.recipe import Recipe
from cache.recipes import AnyRecipe
from configs.errors import UserError
from pipeline.universe import Faults


@dataclass(frozen=True)
class SourceFile:
    """A source file, or the part of it that one entry is made of.

    `md5` is that of the file's whole content, `identity` what the file was when it was hashed, `touched` says that its
    content is what it was before while its identity is not. `rows` holds the values of the symbol columns in the rows
    that count, `span` the bytes [first, past the last) where they lie; empty, and None: all rows. `divided` is
    where the rows of several symbols lie apart while a build lasts. With a `fault` it stands for the files of
    a symbol that are of no use, and has no path and no MD5.
    """

    path: Path
    md5: str
    identity: Identity | None = None
    touched: bool = False
    rows: Mapping[str, str] = field(default_factory=dict)
    span: tuple[int, int] | None = None
    divided: Path | None = None
    fault: str | None = None


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
    if not found or len(symbols) + len(plan.left_out) == 1:
        raise next(iter(faults.values()))
    return found
