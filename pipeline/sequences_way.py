"""How sequences go through a build."""

import importlib

from pipeline import sequences_kernels
from pipeline.sequences_execute import BUILDERS
from pipeline.sequences_plan import make_sequence_plan
from pipeline.sequences_sources import find_recordings
from pipeline.way import Way


def load() -> None:
    """Load what builders call and hits do not need: the kernels, and scikit-learn."""
    sequences_kernels.load()
    importlib.import_module("pipeline.folds")


SEQUENCES = Way(find_recordings, make_sequence_plan, BUILDERS, load, "sequences")
