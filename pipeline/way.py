"""What the two kinds of source, bars and sequences, each bring to a build; the rest of it is the same for both."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cache.writer import EntryWriter
from pipeline.plan import Node, Plan, Sources
from pipeline.universe import Faults

Advance = Callable[[int], None]
Builder = Callable[[Node, Any, Path, EntryWriter, Advance], None]  # Any: the recipe of the kind


@dataclass(frozen=True)
class Way:
    """From a recipe to entries: find the files, plan the entries, make each.

    `continued` gives the plan with the entries that it goes on from, given the MD5s of the files built before by
    timeframe; `builders` by stage; `load` loads what they call and takes long to load; `unit` is what progress counts.
    """

    find_sources: Callable[[Any, Path, Path], Sources]
    make_plan: Callable[[Any, Sources, Faults], Plan]
    continued: Callable[[Plan, Sources, Mapping[str, Collection[str]], Faults], Plan]
    builders: Mapping[str, Builder]
    load: Callable[[], None]
    unit: str
