"""How sequences go through a build."""

import importlib
from collections.abc import Collection, Mapping

from cache.sequence_recipe import SequenceRecipe
from pipeline import sequences_kernels
from pipeline.plan import Plan, Sources
from pipeline.sequences_execute import BUILDERS
from pipeline.sequences_plan import make_sequence_plan
from pipeline.sequences_sources import find_recordings
from pipeline.universe import Faults
from pipeline.way import Way


def load() -> None:
    """Load what builders call and hits do not need: the kernels, and scikit-learn."""
    sequences_kernels.load()
    importlib.import_module("pipeline.folds")


def make_plan(recipe: SequenceRecipe, sources: Sources, left_out: Faults) -> Plan:
    """Plan a dataset; there are no symbols to leave out."""
    return make_sequence_plan(recipe, sources)


def anew(plan: Plan, sources: Sources, known: Mapping[str, Collection[str]], left_out: Faults) -> Plan:
    """The plan as it is: further recordings change all folds."""
    return plan


SEQUENCES = Way(find_recordings, make_plan, anew, BUILDERS, load, "sequences")
