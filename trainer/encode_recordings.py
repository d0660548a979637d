"""From a pandas frame of one recording to its window, by the functions that made the store's, to the last bit."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from cache.sequence_recipe import Length, SequenceRecipe
from configs.errors import UserError
from pipeline import sequences_kernels as kernels
from pipeline.channels import LARGEST, Channels, channels_of, derivation, prepared
from trainer.encode_frames import real_numbers

Array = NDArray[Any]


@dataclass(frozen=True)
class RecordingInputs:
    """What decides a recording's window.

    Of `recipe` only `fill` and `length` are there. `order` names the column of rising numbers, which a frame may lack;
    `sentinels` are numbers that stand for a missing value. `center` and `scale` are float64 [F], None where values are
    not normalised.
    """

    channels: Channels
    recipe: SequenceRecipe
    order: str
    sentinels: tuple[float, ...]
    center: NDArray[np.float64] | None
    scale: NDArray[np.float64] | None

    @property
    def given(self) -> tuple[str, ...]:
        """The columns of a frame that are read."""
        return self.channels.names[: self.channels.given]


def recording_inputs(described: dict[str, Any]) -> RecordingInputs:
    """How windows are made, from what encoder.json says. Raises UserError for derivations of another version."""
    features, derive = described["features"]["columns"], described["derive"]
    for name, version in derive:
        here = derivation(name).version
        if version not in (None, here):
            raise UserError(
                f"trained on version {version} of the derived channel {name}, and this version of Headstart has "
                f"{here}; use the one it was trained with, or train again"
            )
    moments = [np.array(list(described["statistics"][name].values()), np.float64) for name in ("center", "scale")]
    center, scale = moments if len(moments[0]) else (None, None)
    recipe: dict[str, Any] = {"fill": described["fill"], "length": Length(**described["length"])}
    return RecordingInputs(
        _channels(features, [name for name, _ in derive]),
        SequenceRecipe.model_construct(**recipe),
        described["source"]["order"],
        tuple(described["source"]["sentinels"]),
        center,
        scale,
    )


def recording_window(inputs: RecordingInputs, frame: pd.DataFrame) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """The window of a recording, one row a moment: values float32 [L, F], and bool [L] where rows are padding.

    Raises UserError for a frame that lacks a channel, holds what is no number, is empty or out of order.
    """
    raw = _values(inputs, frame)
    offsets = np.array([0, len(raw)], np.int64)
    wide = prepared(raw, offsets, inputs.channels, inputs.recipe.fill)
    length = inputs.recipe.length.seq_len
    values = np.empty((1, length, len(inputs.channels.names)), np.float32)
    {"interpolate": kernels.interpolate, "pad": kernels.pad}[inputs.recipe.length.mode](wide, offsets, values)
    if not np.isfinite(values).all():
        channel = inputs.channels.names[int(np.argwhere(~np.isfinite(values))[0, 2])]
        raise UserError(f"frame: {channel} is beyond what float32 holds; correct its values")
    first = max(length - len(raw), 0) if inputs.recipe.length.mode == "pad" else 0
    if inputs.center is not None:
        scaled = np.empty_like(values)
        kernels.scale(values, inputs.center, inputs.scale, np.array([first], np.int64), scaled)
        values = scaled
    return values[0], np.arange(length) < first


def _values(inputs: RecordingInputs, frame: pd.DataFrame) -> NDArray[np.float64]:
    """The given channels, float64 [rows, C], NaN where nothing was measured."""
    if missing := [name for name in inputs.given if name not in frame.columns]:
        raise UserError(
            f"frame lacks the channel {missing[0]}; it has {', '.join(map(str, frame.columns)) or 'no columns'}. "
            "Name its columns as in training"
        )
    if twice := [name for name in (inputs.order, *inputs.given) if list(frame.columns).count(name) > 1]:
        raise UserError(f"frame has the column {twice[0]} more than once; keep one")
    if not len(frame):
        raise UserError("frame has no rows; a recording needs one at least")
    if inputs.order in frame.columns:
        order = real_numbers(f"frame: column {inputs.order}", frame[inputs.order])
        falling = np.flatnonzero(order[1:] <= order[:-1])
        if len(falling):
            raise UserError(
                f"frame, row {falling[0] + 1:,}: {inputs.order} does not rise from the row before; give one recording, "
                f"sorted by {inputs.order}, without rows that stand twice"
            )
    values = np.empty((len(frame), len(inputs.given)))
    for k, name in enumerate(inputs.given):
        values[:, k] = real_numbers(f"frame: channel {name}", frame[name])
    values[np.isin(values, inputs.sentinels)] = np.nan
    beyond = np.argwhere(np.abs(values) > LARGEST)
    if len(beyond):
        row, k = beyond[0]
        what = "infinite" if np.isinf(values[row, k]) else f"{values[row, k]}, beyond {LARGEST:g}"
        raise UserError(
            f"frame, row {row:,}: {inputs.given[k]} is {what}; correct it, or write NaN for a missing value"
        )
    return values


def _channels(features: list[str], derive: list[str]) -> Channels:
    """The channels of a frame, which come first among the features, and what is derived of them."""
    for given in range(1, len(features) + 1):
        try:
            found = channels_of(features[:given], derive)
        except UserError:  # too few for what is derived
            continue
        if list(found.names) == features:
            return found
    raise UserError(f"the features {', '.join(features)} are not what {', '.join(derive)} makes of channels")
