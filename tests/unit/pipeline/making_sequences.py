"""Recordings and recipes for the tests of sequences."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from cache.recipes import parse_recipe
from cache.sequence_recipe import SequenceRecipe
from configs.loader import load_config
from pipeline.plan import SourceFile
from pipeline.sequences import Recordings, read_recordings

NAMED = {"id": "sequence_id", "order": "sequence_counter", "group": "subject"}


def make_sequence_recipe(*overrides: str) -> SequenceRecipe:
    """The recipe of configs/imu.yaml with `data.` put before every override."""
    recipe = parse_recipe(load_config("configs/imu.yaml", [f"data.{override}" for override in overrides]))
    assert isinstance(recipe, SequenceRecipe)
    return recipe


def make_frame(lengths: list[int], seed: int = 0, groups: int = 3, missing: float = 0.0) -> pd.DataFrame:
    """Recordings of these lengths; groups and gestures take turns. Numbers have few digits, as in a CSV file."""
    rng = np.random.default_rng(seed)
    parts = []
    for number, length in enumerate(lengths):
        values = np.round(rng.normal(0, 3, (length, 3)), 4)
        values[rng.random(values.shape) < missing] = np.nan
        parts.append(
            pd.DataFrame(
                {
                    "sequence_id": f"S{number:03d}",
                    "sequence_counter": np.arange(length),
                    "subject": f"P{number % groups}",
                    "gesture": ["scratch", "wave", "pinch"][number // groups % 3],
                    **{f"acc_{axis}": values[:, k] for k, axis in enumerate("xyz")},
                }
            )
        )
    return pd.concat(parts, ignore_index=True)


def write_csv(path: Path, frame: pd.DataFrame, **settings: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    frame.to_csv(path, index=False, **settings)
    return path


def read(path: Path, *overrides: str, span: tuple[int, int] | None = None) -> Recordings:
    """What read_recordings makes of a file with channels acc_*."""
    recipe = make_sequence_recipe("source.channels=[acc_*]", *overrides)
    return read_recordings(SourceFile(path, "", span=span), recipe.source)
