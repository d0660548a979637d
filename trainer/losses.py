"""Losses on the hidden bars. Shape suffixes: B batch, L bars, C channels (open, high, low, close)."""

import torch
from torch import Tensor


def huber(prediction_BLC: Tensor, target_BLC: Tensor, hidden_BL: Tensor, delta: float) -> Tensor:
    """Average the Huber loss over the channels of the hidden bars: a float32 scalar, whatever autocast does.

    With r = prediction − target: r²/2 where |r| ≤ delta, delta · (|r| − delta/2) beyond (Huber 1964, "Robust estimation
    of a location parameter").

    Args:
        prediction_BLC: any floating dtype.
        target_BLC: of the same shape.
        hidden_BL: bool; at least one bar must be hidden: without any, the mean is NaN, which the step then reports as
            non-finite, rather than a silent zero.
        delta: where the quadratic turns linear, in units of the target.
    """
    assert prediction_BLC.shape == target_BLC.shape == (*hidden_BL.shape, target_BLC.shape[-1])
    loss_BLC = torch.nn.functional.huber_loss(prediction_BLC.float(), target_BLC.float(), reduction="none", delta=delta)
    # A masked sum, not indexing: its shape would depend on the data.
    total = loss_BLC.masked_fill(~hidden_BL[..., None], 0).sum()
    return total / (hidden_BL.sum() * target_BLC.shape[-1])
