"""What the training log calls the last value: hidden bars, or rows, as the last visible one before them.

Shape suffixes: B batch, L bars, F features.
"""

import torch
from torch import Tensor

from trainer.prices import Scale, last_value, to_features, true_log_prices


def carry_last(x_BLF: Tensor, hidden_BL: Tensor, log_before_B: Tensor, scale: Scale) -> Tensor:
    """The last-value baseline in units of the loss: float64 [B, L, 4]."""
    carried = last_value(true_log_prices(x_BLF, log_before_B, scale), log_before_B, hidden_BL)
    return to_features(carried, log_before_B, scale)


def carry_rows(x_BLF: Tensor, hidden_BL: Tensor) -> Tensor:
    """Every hidden row as the last visible one before it, [B, L, F]; 0, the usual value, where there is none."""
    row_L = torch.arange(1, x_BLF.shape[1] + 1, device=x_BLF.device)
    last_BL = torch.where(hidden_BL, 0, row_L).cummax(dim=1).values
    with_none = torch.nn.functional.pad(x_BLF, (0, 0, 1, 0))
    return with_none.gather(1, last_BL[..., None].expand_as(x_BLF))
