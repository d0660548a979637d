"""What a model sees of windows of which some bars are hidden.

Shape suffixes: B batch, L bars, F features.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from trainer.clock import time_of_week
from trainer.masking import Masks


def apply_masks(x: list[Tensor], masks: Masks, revealing: Sequence[int]) -> list[Tensor]:
    """Blank what is hidden and say where: [B, L_j, F] → [B, L_j, F+1] per timeframe, of the same dtype.

    Hidden bars' features become 0, the mean of a normalised feature; the features numbered `revealing`, which give away
    the previous close, become 0 in the first bar after a block too. The last channel is 1 where a bar is hidden.
    """
    masked = []
    for x_BLF, hidden_BL, after_BL in zip(x, masks.hidden, masks.after_block(), strict=True):
        hidden_BL1 = hidden_BL[..., None]
        # Filled, not multiplied: NaN · 0 would let a hidden NaN through.
        out = torch.cat([x_BLF.masked_fill(hidden_BL1, 0), hidden_BL1.to(x_BLF.dtype)], dim=-1)
        for column in revealing:
            out[..., column].masked_fill_(after_BL, 0)
        masked.append(out)
    return masked


def without_own(x: list[Tensor], masks: Masks, count: int, lookback: int) -> list[Tensor]:
    """Blank the last `count` features wherever they are made of hidden bars too, or of bars before the window.

    They tell of as many as `lookback` bars before their own; what those before the window hide is not known here.
    """
    blanked = []
    for x_BLF, hidden_BL in zip(x, masks.hidden, strict=True):
        at_L = torch.arange(hidden_BL.shape[1], device=hidden_BL.device)
        hidden_before_BL = torch.where(hidden_BL, at_L, -1).cummax(dim=1).values
        told_BL1 = (at_L - hidden_before_BL <= lookback)[..., None]
        kept = x_BLF.shape[-1] - count
        blanked.append(torch.cat([x_BLF[..., :kept], x_BLF[..., kept:].masked_fill(told_BL1, 0)], dim=-1))
    return blanked


def model_inputs(
    x: list[Tensor], masks: Masks, revealing: Sequence[int], close_time: list[Tensor], clock: Tensor
) -> list[Tensor]:
    """What a model of bars sees, [B, L_j, F + 1 + CLOCK_CHANNELS] a timeframe: `apply_masks`, then the time of week.

    Args:
        x: features float32 [B, L_j, F] a timeframe.
        masks: the hidden bars.
        revealing: as of `apply_masks`.
        close_time: int64 [B, L_j] ns UTC a timeframe; known of hidden bars too.
        clock: `clock_table`, on the device.
    """
    masked = apply_masks(x, masks, revealing)
    return [torch.cat([one, time_of_week(at, clock)], dim=-1) for one, at in zip(masked, close_time, strict=True)]


def all_visible(x: list[Tensor]) -> Masks:
    """Masks that hide nothing of windows [B, L_j, …]."""
    return Masks([torch.zeros(one.shape[:2], dtype=torch.bool, device=one.device) for one in x])
