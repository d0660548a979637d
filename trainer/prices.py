"""From a stream's normalised features to log prices and back. All in float64.

Shape suffixes: B batch, L bars, F features, P prices (open, high, low, close); one more dimension may stand in front of
all of them, that of timeframes which are computed together. The first four columns of every feature
set describe open, high, low and close; `price` holds the prices themselves, `returns` their logarithms relative to the
close before.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cache.reader import Dataset

TARGETS = 4  # of a model of bars: open, high, low, close, the first columns of every feature set
_SMALLEST_PRICE = 1e-12


@dataclass(frozen=True)
class Scale:
    """How streams were normalised: `mean` and `std` float64 [N, F], of each symbol's training rows, or of all (N = 1).

    Of the windows of a batch N is B, or 1; of several timeframes together there is one more dimension in front.
    """

    feature_set: str
    mean: Tensor
    std: Tensor

    def of(self, symbol_B: Tensor) -> "Scale":
        """The scale of each window, by the number of its symbol."""
        if len(self.mean) == 1:
            return self
        return Scale(self.feature_set, self.mean.index_select(0, symbol_B), self.std.index_select(0, symbol_B))

    def to(self, device: torch.device) -> "Scale":
        """The same on another device."""
        return Scale(self.feature_set, self.mean.to(device), self.std.to(device))


def stacked(scales: Sequence[Scale]) -> Scale:
    """The scales of several streams of one feature set as one."""
    mean, std = (torch.stack([getattr(scale, name) for scale in scales]) for name in ("mean", "std"))
    return Scale(scales[0].feature_set, mean, std)


def scales_of(dataset: Dataset, feature_set: str) -> list[Scale]:
    """The scale of every stream of a dataset of bars, of all its symbols."""
    known = dataset.per_symbol
    mean_SNF, std_SNF = (torch.from_numpy(moments).transpose(0, 1) for moments in (known.mean, known.std))
    return [Scale(feature_set, mean_NF, std_NF) for mean_NF, std_NF in zip(mean_SNF, std_SNF, strict=True)]


def denormalise(x_BLF: Tensor, scale: Scale) -> Tensor:
    """Undo the scaling: [B, L, k] with k ≤ F columns, float64."""
    mean, std = (moment[..., None, : x_BLF.shape[-1]] for moment in (scale.mean, scale.std))
    return x_BLF.double() * std + mean


def to_log_prices(x_BLP: Tensor, log_before_B: Tensor, scale: Scale, hidden_BL: Tensor, truth_BLP: Tensor) -> Tensor:
    """Log prices of the hidden bars as predicted, of the visible ones as they were: float64 [B, L, 4].

    Args:
        x_BLP: predicted features, normalised, of which the rows of hidden bars are read.
        log_before_B: float64, log close of the bar before the window.
        scale: the windows'.
        hidden_BL: bool.
        truth_BLP: float64, true log prices. Under `returns` a block of hidden bars is chained from the close before it.
    """
    raw = denormalise(x_BLP, scale)
    if scale.feature_set == "price":
        return torch.where(hidden_BL[..., None], raw.clamp(min=_SMALLEST_PRICE).log(), truth_BLP)
    # a hidden close is the last visible one plus the returns predicted since
    left = _last_visible(hidden_BL)
    closes = torch.cat([log_before_B[..., None], truth_BLP[..., 3]], dim=-1)
    path = torch.nn.functional.pad(raw[..., 3].masked_fill(~hidden_BL, 0).cumsum(dim=-1), (1, 0))
    chained = (closes.gather(-1, left) + path - path.gather(-1, left))[..., :-1]
    return torch.where(hidden_BL[..., None], chained[..., None] + raw, truth_BLP)


def true_log_prices(x_BLF: Tensor, log_before_B: Tensor, scale: Scale) -> Tensor:
    """True log prices of whole windows from their features, float64 [B, L, 4]."""
    everything = torch.ones(x_BLF.shape[:-1], dtype=torch.bool, device=x_BLF.device)
    nothing = torch.zeros((*x_BLF.shape[:-1], 4), dtype=torch.float64, device=x_BLF.device)
    return to_log_prices(x_BLF[..., :4], log_before_B, scale, everything, nothing)


def to_features(log_BLP: Tensor, log_before_B: Tensor, scale: Scale) -> Tensor:
    """Normalised open, high, low and close features of log prices [B, L, 4], float64: the inverse of the above."""
    if scale.feature_set == "price":
        raw = log_BLP.exp()
    else:
        before = torch.cat([log_before_B[:, None], log_BLP[:, :-1, 3]], dim=1)
        raw = log_BLP - before[..., None]
    return (raw - scale.mean[:, None, :4]) / scale.std[:, None, :4]


def last_value(log_BLP: Tensor, log_before_B: Tensor, hidden_BL: Tensor) -> Tensor:
    """Baseline: hidden bars stay at the last visible close, with the high and low of that bar around it.

    Takes true log prices float64 [B, L, 4], the log close before the window float64 [B] and the hidden bars bool
    [B, L]; gives log prices [B, L, 4], true where visible. Before any visible bar: flat at the close before the window.
    """
    return _bridge(log_BLP, log_before_B, hidden_BL, line=False)


def straight_line(log_BLP: Tensor, log_before_B: Tensor, hidden_BL: Tensor) -> Tensor:
    """Baseline: closes go straight from the last visible bar to the next one, and so do the distances of high and low.

    Arguments and result as of `last_value`, which it equals after the last visible bar.
    """
    return _bridge(log_BLP, log_before_B, hidden_BL, line=True)


def _bridge(log_BLP: Tensor, log_before_B: Tensor, hidden_BL: Tensor, line: bool) -> Tensor:
    """Bridge close, and high and low relative to the middle of the body; a hidden bar opens at the close before it."""
    batch, length = hidden_BL.shape
    open_, high, low, close = log_BLP.unbind(-1)
    middle = (open_ + close) / 2
    # one flat bar in front stands for the close before the window, so that every hidden bar has one to its left
    front = torch.stack([log_before_B, torch.zeros_like(log_before_B), torch.zeros_like(log_before_B)], dim=-1)
    known = torch.cat([front[:, None], torch.stack([close, high - middle, middle - low], dim=-1)], dim=1)
    at = torch.arange(length + 1, device=hidden_BL.device).expand(batch, -1)
    left = _last_visible(hidden_BL)
    right = torch.where(left == at, at, length + 1).flip(1).cummin(dim=1).values.flip(1)
    right = torch.where(right > length, left, right) if line else left
    share = (at - left).double() / (right - left).clamp(min=1)
    start, end = (known.gather(1, index[..., None].expand(-1, -1, 3)) for index in (left, right))
    close, up, down = (start + share[..., None] * (end - start)).unbind(-1)
    open_, close, up, down = close[:, :-1], close[:, 1:], up[:, 1:], down[:, 1:]
    middle = (open_ + close) / 2
    high, low = (
        torch.maximum(middle + up, torch.maximum(open_, close)),
        torch.minimum(middle - down, torch.minimum(open_, close)),
    )
    return torch.where(hidden_BL[..., None], torch.stack([open_, high, low, close], dim=-1), log_BLP)


def _last_visible(hidden_BL: Tensor) -> Tensor:
    """Number of the last visible bar up to each, int64 [B, 1 + L]; 0 is the bar before the window, always visible."""
    at = torch.arange(hidden_BL.shape[-1] + 1, device=hidden_BL.device)
    visible = torch.nn.functional.pad(~hidden_BL, (1, 0), value=True)
    return torch.where(visible, at, 0).cummax(dim=-1).values
