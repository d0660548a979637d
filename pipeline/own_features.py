"""Columns of a user's own, from a Python file, behind those of a feature set.

The file defines COLUMNS, their names; LOOKBACK, how many bars before its own a row is made of; and the function
`features`, which gets float64 [n, LOOKBACK + 1, 4] (for each of n bars the open, high, low and close of the bars before
it, oldest first, and last its own) and gives [n, columns]. So a row cannot read a later bar, unless the function mixes
rows: that the certificate finds, because n is always the same and what lies beside a bar is not.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from cache.plugin import Plugin, load_plugin
from configs.errors import UserError

RULE = "features() must make row i of bars[i] and of nothing else, without chance and without memory of earlier calls"
ROWS = 512  # a call, so that the last bits of a row do not depend on how many are wanted
_FARTHEST = 4096


@dataclass(frozen=True)
class OwnFeatures:
    """What the file defines."""

    plugin: Plugin
    columns: tuple[str, ...]
    lookback: int
    function: Any

    def compute(self, ohlc: NDArray[np.float64]) -> NDArray[np.float64]:
        """Rows float64 [n, columns] of bars [lookback + n, 4], but for the first `lookback`.

        Raises UserError for what the function raises, and for a result that is not of that shape.
        """
        rows = len(ohlc) - self.lookback
        out = np.empty((rows, len(self.columns)))
        for start in range(0, rows, ROWS):
            part = ohlc[start : start + ROWS + self.lookback]
            part = np.concatenate([part, np.repeat(part[-1:], ROWS + self.lookback - len(part), axis=0)])
            bars = np.ascontiguousarray(sliding_window_view(part, self.lookback + 1, axis=0).swapaxes(1, 2))
            with self.plugin.blamed(), np.errstate(all="ignore"):
                made = np.asarray(self.function(bars), np.float64)
            if made.shape != (ROWS, len(self.columns)):
                raise UserError(
                    f"{self.plugin.path}: features() gives an array of shape {made.shape} for bars of shape "
                    f"{bars.shape}, not {(ROWS, len(self.columns))}: a row a bar, a column for each of COLUMNS"
                )
            out[start : start + ROWS] = made[: rows - start]
        return out


def own_features(path: str | Path, known: tuple[str, ...]) -> OwnFeatures:
    """Read the file; `known` are the columns of the feature set. Raises UserError for one that is not as told above."""
    plugin = load_plugin(path)
    columns = plugin.get("COLUMNS", "the names of the columns that features() gives, such as ('trend',)")
    lookback = plugin.get("LOOKBACK", "how many bars before its own a row is made of")
    function = plugin.get("features", "the function from bars [n, LOOKBACK + 1, 4] to columns [n, len(COLUMNS)]")
    if not (isinstance(columns, list | tuple) and columns and all(isinstance(name, str) for name in columns)):
        raise UserError(f"{path}: COLUMNS = {columns!r} is not a list of names, such as ('trend',)")
    if taken := [name for at, name in enumerate(columns) if name in (*known, *columns[:at])]:
        raise UserError(
            f"{path}: COLUMNS has {taken[0]}, and there is a column of that name already; they are {', '.join(known)}"
        )
    if type(lookback) is not int or not 0 <= lookback <= _FARTHEST:
        raise UserError(f"{path}: LOOKBACK = {lookback!r} is not a whole number from 0 to {_FARTHEST:,}")
    if not callable(function):
        raise UserError(f"{path}: features = {function!r} is not a function")
    return OwnFeatures(plugin, tuple(columns), lookback, function)
