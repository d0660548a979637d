"""Pearson's r of predicted and true features, from sums that are kept where the batches are.

Shape suffixes: B batch, L bars, F features, P predicted features, S timeframes.
"""

import torch
from torch import Tensor


def joint_moments(predicted_BLP: Tensor, x_BLF: Tensor, hidden_BL: Tensor) -> Tensor:
    """Sums over the hidden bars that a correlation is made of: n, x, y, xx, yy, xy, float64 [6]."""
    shown_BL1 = hidden_BL[..., None].double()
    n_targets = predicted_BLP.shape[-1]
    x, y = (values.double() * shown_BL1 for values in (predicted_BLP, x_BLF[..., :n_targets]))
    n = shown_BL1.sum() * n_targets
    return torch.stack([n, x.sum(), y.sum(), (x * x).sum(), (y * y).sum(), (x * y).sum()])


def correlations(moments_S6: Tensor) -> Tensor:
    """Pearson's r of every row of joint moments, float64 [S]; 0 where one of the two does not vary."""
    n, x, y, xx, yy, xy = moments_S6.unbind(-1)
    spread_S = ((xx / n - (x / n) ** 2) * (yy / n - (y / n) ** 2)).clamp(min=0).sqrt()
    return torch.where(spread_S > 0, (xy / n - x * y / n**2) / spread_S, 0)
