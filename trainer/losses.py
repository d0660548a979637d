"""Losses on the hidden bars. Free of host synchronisation and of shapes that depend on data.

Shape suffixes: B batch, L bars, C channels (open, high, low, close), P prices (the same), M bars of the next longer
timeframe. One more dimension may stand in front of all of them, that of timeframes which are computed together; then a
loss is not a scalar but has one value for each.
"""

import torch
from torch import Tensor

from trainer.prices import Scale


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
    total = loss_BLC.masked_fill(~hidden_BL[..., None], 0).sum(dim=(-3, -2, -1))
    return total / (hidden_BL.sum(dim=(-2, -1)) * target_BLC.shape[-1])


def composite(prediction_BLC: Tensor, target_BLC: Tensor, hidden_BL: Tensor) -> Tensor:
    """The prediction where bars are hidden, the target where they are visible: [B, L, C] of the wider dtype.

    What is predicted for visible bars is not read, and gets no gradient.
    """
    return torch.where(hidden_BL[..., None], prediction_BLC, target_BLC)


def price_scale(scale: Scale) -> Tensor:
    """What `cross_timeframe` divides by, of a (coarse) stream: float64 [N, 4], or [S, N, 4] of several, as the scale.

    Under `price`, the standard deviations of open, high, low and close, in units of the price. Under `returns`, that of
    log_close for all four: prices are compared relative to the price there, so as differences of their logarithms.
    """
    std = scale.std[..., :4] if scale.feature_set == "price" else scale.std[..., 3:4].expand(*scale.std.shape[:-1], 4)
    return std.contiguous()


def cross_timeframe(
    fine_BLP: Tensor,
    coarse_BMP: Tensor,
    fine_rows_BL2: Tensor,
    coarse_rows_BM2: Tensor,
    hidden_BL: Tensor,
    scale_BP: Tensor,
    delta: float,
    *,
    relative: bool,
) -> tuple[Tensor, Tensor]:
    """Compare coarse bars with the first open, highest high, lowest low and last close of their children.

    The Huber loss of (aggregate − coarse bar) / scale, averaged over the compared bars and their four prices. Children
    of a coarse bar are the fine bars with base rows, all of them among its own; it is compared if its children in the
    window hold all of its rows and at least one child is hidden. So the bar that the window's beginning cuts, one with
    a missing child, and one without base rows are not.

    Args:
        fine_BLP: float64, log prices of one timeframe, predicted where hidden and true where visible.
        coarse_BMP: float64, those of the next longer timeframe.
        fine_rows_BL2: int32, [first, past the last) of the base rows in each bar, not decreasing along L.
        coarse_rows_BM2: int32, the same for the coarse bars.
        hidden_BL: bool, the hidden fine bars.
        scale_BP: float64 [B, 4] or [1, 4], `price_scale` of the coarse stream.
        delta: where the quadratic turns linear, in units of the scale.
        relative: whether logarithms are compared (for `returns`), or prices (for `price`).

    Returns:
        The loss, a float64 scalar, and its support, the number of coarse bars compared, an int64 scalar. Without any
        support the loss is 0, with gradients of 0, so that one such batch does no harm: a caller must read the support
        before it takes that 0 for agreement.
    """
    assert coarse_BMP.shape[:-2] == fine_BLP.shape[:-2] and coarse_BMP.shape[-1] == fine_BLP.shape[-1] == 4
    fine_BLP, coarse_BMP = fine_BLP.double(), coarse_BMP.double()
    if not relative:
        fine_BLP, coarse_BMP = fine_BLP.exp(), coarse_BMP.exp()
    length, n_coarse = hidden_BL.shape[-1], coarse_BMP.shape[-2]
    first_BL, past_BL = (side.contiguous() for side in fine_rows_BL2.unbind(-1))
    start_BM, end_BM = (side.contiguous() for side in coarse_rows_BM2.unbind(-1))

    # the only coarse bar a fine one can lie in: the first that ends after the fine one's first row
    parent_BL = torch.searchsorted(end_BM, first_BL, right=True)
    nearest_BL = parent_BL.clamp(max=n_coarse - 1)
    inside_BL = (start_BM.gather(-1, nearest_BL) <= first_BL) & (past_BL <= end_BM.gather(-1, nearest_BL))
    # bars that are nobody's children go to one more, cut off below
    parent_BL = torch.where(inside_BL & (first_BL < past_BL), parent_BL, n_coarse)
    none_BM = first_BL.new_zeros((*hidden_BL.shape[:-1], n_coarse + 1))
    rows_BM = none_BM.scatter_add(-1, parent_BL, past_BL - first_BL)[..., :-1]
    n_hidden_BM = none_BM.scatter_add(-1, parent_BL, hidden_BL.to(none_BM.dtype))[..., :-1]
    compared_BM = (rows_BM == end_BM - start_BM) & (n_hidden_BM > 0)

    open_BL, high_BL, low_BL, close_BL = fine_BLP.unbind(-1)
    infinite_BM = fine_BLP.new_full(none_BM.shape, torch.inf)
    first_child_BM = torch.searchsorted(past_BL, start_BM, right=True).clamp(max=length - 1)
    last_child_BM = (torch.searchsorted(first_BL, end_BM) - 1).clamp(min=0)
    aggregate_BMP = torch.stack(
        [
            open_BL.gather(-1, first_child_BM),
            (-infinite_BM).scatter_reduce(-1, parent_BL, high_BL, "amax")[..., :-1],
            infinite_BM.scatter_reduce(-1, parent_BL, low_BL, "amin")[..., :-1],
            close_BL.gather(-1, last_child_BM),
        ],
        dim=-1,
    )
    # cut here and not in the loss: the infinities' gradients are 0, not NaN
    difference_BMP = torch.where(compared_BM[..., None], aggregate_BMP - coarse_BMP, 0) / scale_BP[..., None, :]
    zero_BMP = torch.zeros_like(difference_BMP)
    loss_BMP = torch.nn.functional.huber_loss(difference_BMP, zero_BMP, reduction="none", delta=delta)
    support = compared_BM.sum(dim=(-2, -1))
    return loss_BMP.sum(dim=(-3, -2, -1)) / (support.clamp(min=1) * 4), support
