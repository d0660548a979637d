"""What decides a window of bars, as encoder.json tells it."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cache.recipe import BarsSource, Recipe
from pipeline.features import FeatureSet


@dataclass(frozen=True)
class Scaling:
    """Mean and standard deviation of a stream's features, float64 [F]."""

    mean: NDArray[np.float64]
    std: NDArray[np.float64]


@dataclass(frozen=True)
class Inputs:
    """What decides a window: the recipe's part of it, and the statistics of the training rows.

    Of `source` only `label` and `session` are there, of `recipe` only `timeframes` (base first) and `window`.
    `from_files` names the timeframes that training did not derive; `longest_gap` is the longest time in training from a
    close to the next, ns, by timeframe but the base; `scaling` is by symbol and timeframe.
    """

    source: BarsSource
    recipe: Recipe
    bar_lengths: Mapping[str, int]
    from_files: frozenset[str]
    longest_gap: Mapping[str, int]
    features: FeatureSet
    scaling: Mapping[str, Mapping[str, Scaling]]

    @property
    def base(self) -> str:
        """The timeframe whose bar closes are the decision times."""
        return self.recipe.base

    def needed(self, timeframe: str) -> int:
        """Bars of a timeframe that make a window: its own, and those before it that its features read."""
        return self.recipe.seq_lens[timeframe] + self.features.lookback

    def needed_words(self, timeframe: str) -> str:
        """For messages: `49 are needed (48 a window and 1 before it)`."""
        length, before = self.recipe.seq_lens[timeframe], self.features.lookback
        return f"{length + before:,} are needed ({length:,} a window and {before} before it)"
