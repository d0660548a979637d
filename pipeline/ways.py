"""Which way a recipe goes."""

from importlib.util import find_spec

from cache.recipes import AnyRecipe
from cache.sequence_recipe import SequenceRecipe
from configs.errors import UserError
from pipeline import bars_execute, kernels
from pipeline.bars_plan import make_plan
from pipeline.continuing import continuing
from pipeline.sequences_way import SEQUENCES
from pipeline.sources import find_sources
from pipeline.way import Way

BARS = Way(find_sources, make_plan, continuing, bars_execute.BUILDERS, kernels.load, "rows")


def way_of(recipe: AnyRecipe) -> Way:
    """The way of the recipe's kind of source. Raises UserError when what it needs is not installed."""
    if not isinstance(recipe, SequenceRecipe):
        return BARS
    if find_spec("sklearn") is None:
        raise UserError(
            "sequences are divided into folds by scikit-learn, which is not there: run bin/install sequences"
        )
    return SEQUENCES
