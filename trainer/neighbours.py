"""The cross-timeframe loss of every pair of neighbouring timeframes, those of equal lengths computed together.

Shape suffixes: B batch, L bars, G timeframes computed together, P pairs of timeframes.
"""

from collections.abc import Sequence
from itertools import groupby

import torch
from torch import Tensor

from trainer.data import Batch
from trainer.layers import runs_of
from trainer.losses import cross_timeframe, price_scale
from trainer.masking import Masks
from trainer.prices import TARGETS, Scale, stacked, to_log_prices, true_log_prices


def neighbour_losses(
    predicted: list[Tensor],
    batch: Batch,
    masks: Masks,
    scales: Sequence[Scale],
    seq_lens: tuple[int, ...],
    delta: float,
) -> tuple[Tensor, Tensor]:
    """Loss and support, as `cross_timeframe` gives them, of every pair: float64 and int64 [P], P = S − 1.

    Args:
        predicted: the model's, [B, L_j, ≥ 4] a timeframe.
        batch: the windows.
        masks: their hidden bars.
        scales: of the windows, a timeframe each.
        seq_lens: L_j.
        delta: where the loss turns linear.
    """
    prices: list[Tensor] = []
    for run in runs_of(seq_lens):
        some = slice(run.first, run.past)
        scale, before_GB = stacked(scales[some]), torch.stack(batch.log_before[some])
        truth = true_log_prices(torch.stack(batch.x[some]), before_GB, scale)
        hidden_GBL = torch.stack(masks.hidden[some])
        priced = to_log_prices(torch.stack(predicted[some])[..., :TARGETS], before_GB, scale, hidden_GBL, truth)
        prices.extend(priced.unbind(0))
    values, supports = [], []
    for _, pairs in groupby(range(len(prices) - 1), key=lambda j: seq_lens[j : j + 2]):
        fine = list(pairs)
        coarse = [j + 1 for j in fine]
        value_P, support_P = cross_timeframe(
            _stack(prices, fine),
            _stack(prices, coarse),
            _stack(batch.rows, fine),
            _stack(batch.rows, coarse),
            _stack(masks.hidden, fine),
            price_scale(stacked([scales[j] for j in coarse])),
            delta,
            relative=scales[0].feature_set != "price",
        )
        values.append(value_P)
        supports.append(support_P)
    return torch.cat(values), torch.cat(supports)


def _stack(tensors: list[Tensor], places: list[int]) -> Tensor:
    return torch.stack([tensors[j] for j in places])
