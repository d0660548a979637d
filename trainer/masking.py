"""Block masks: which bars the model must reconstruct, and what must be hidden with them.

A mask depends only on its window's key, never on the batch around it, the device or a global random state, so a resumed
or differently distributed run hides the same bars. All of it is exact integer arithmetic without host synchronisation.

Shape suffixes: B batch, S timeframes, G timeframes of one length, K candidate blocks, L bars, F features.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from trainer.order import mix, mix_parts


@dataclass(frozen=True)
class Masks:
    """The hidden bars of a batch: one bool [B, L_j] per timeframe, base timeframe first."""

    hidden: list[Tensor]

    def after_block(self) -> list[Tensor]:
        """Give the first visible bar after each hidden block, bool [B, L_j] per timeframe.

        Some of its features, such as the difference to the previous close, would reveal the hidden close exactly.
        """
        return [torch.nn.functional.pad(hidden[:, :-1], (1, 0)) & ~hidden for hidden in self.hidden]


def window_keys(seed: int, stream: int | Tensor, index: Tensor) -> Tensor:
    """Hash window numbers `index` (int64 [B]) to mask keys (int64 [B]).

    `stream` separates uses of one seed: the epoch's number, or a constant for validation, so that its masks stay the
    same; an integer or an int64 scalar tensor on the device of `index`.
    """
    return mix_parts(seed, stream, index, device=index.device)


def draw_masks(keys: Tensor, lengths: Sequence[int], mask_ratio: float, span_min: int, span_max: int) -> Masks:
    """Hide contiguous blocks of bars until about `mask_ratio` of each timeframe's bars are hidden.

    For every window and timeframe, blocks follow each other with lengths uniform in [span_min, span_max] and starts
    uniform over all places where the block fits whole. They may overlap; the number of blocks kept, at least one, is
    the one whose union is nearest to the target. A block never leaves the window, so bars near its two ends are hidden
    less often than those in the middle.

    Args:
        keys: int64 [B], one per window, from `window_keys`.
        lengths: bars per window, for each timeframe.
        mask_ratio: the share of bars to hide, in (0, 1).
        span_min: the shortest block, in bars.
        span_max: the longest block, in bars, at most the shortest timeframe's length.

    Raises:
        ValueError: if the spans or the ratio cannot be met.
    """
    _check(lengths, mask_ratio, span_min, span_max)
    keys_BS = mix(keys[:, None] + torch.arange(len(lengths), device=keys.device))
    hidden: dict[int, Tensor] = {}
    for length in dict.fromkeys(lengths):
        group = [j for j, other in enumerate(lengths) if other == length]
        keys_BG = torch.stack([keys_BS[:, j] for j in group], dim=1)
        hidden_BGL = _draw_blocks(keys_BG, length, mask_ratio, span_min, span_max)
        hidden |= zip(group, hidden_BGL.unbind(1), strict=True)
    return Masks([hidden[j] for j in range(len(lengths))])


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


def realised_ratio(masks: Masks) -> Tensor:
    """Give the share of bars hidden in each timeframe, float32 [S]."""
    return torch.stack([hidden.float().mean() for hidden in masks.hidden])


def _draw_blocks(keys_BG: Tensor, length: int, mask_ratio: float, span_min: int, span_max: int) -> Tensor:
    """Draw the hidden bars, bool [B, G, length]."""
    n_blocks = _candidates(length, mask_ratio, (span_min + span_max) / 2)
    number_K = torch.arange(n_blocks, device=keys_BG.device)
    bits_BGK = mix(keys_BG[..., None] + number_K)
    # 32 bits decide the length, the other 32 the start.
    span_BGK = span_min + (bits_BGK & 0xFFFFFFFF) % (span_max - span_min + 1)
    start_BGK = (bits_BGK >> 32) % (length + 1 - span_BGK)

    # int32: the largest tensors here, and CPUs compare and reduce it 15 times faster than int64.
    bar_L = torch.arange(length, dtype=torch.int32, device=keys_BG.device)
    start_BGK1 = start_BGK.int()[..., None]
    covered_BGKL = (bar_L >= start_BGK1) & (bar_L < start_BGK1 + span_BGK.int()[..., None])
    # The number of the first block that hides a bar; n_blocks where none does.
    first_BGL = torch.where(covered_BGKL, number_K.int()[:, None], n_blocks).amin(dim=-2).long()

    # Coverage after blocks 0 … k, for every k, from a histogram of those numbers.
    counts = torch.zeros((*keys_BG.shape, n_blocks + 1), dtype=torch.int64, device=keys_BG.device)
    counts.scatter_add_(-1, first_BGL, torch.ones_like(first_BGL))
    coverage_BGK = counts[..., :n_blocks].cumsum(dim=-1)
    last_BG1 = (coverage_BGK - mask_ratio * length).abs().argmin(dim=-1, keepdim=True)
    return first_BGL <= last_BG1


def _candidates(length: int, mask_ratio: float, mean_span: float) -> int:
    """Bound the number of blocks needed; a window that wanted more would be hidden a little less.

    n blocks leave about (1 − mean_span/length)^n ≤ exp(−n · mean_span/length) of the bars visible.
    """
    return 2 * math.ceil(-math.log(1 - mask_ratio) * length / mean_span) + 4


def _check(lengths: Sequence[int], mask_ratio: float, span_min: int, span_max: int) -> None:
    if not 0 < mask_ratio < 1:
        raise ValueError(f"masking.mask_ratio is {mask_ratio}: it must lie strictly between 0 and 1")
    if span_min < 1:
        raise ValueError(f"masking.span_min is {span_min}: a hidden block needs at least 1 bar")
    if span_min > span_max:
        raise ValueError(f"masking.span_min ({span_min}) is larger than masking.span_max ({span_max})")
    shortest = min(lengths)
    if span_max > shortest:
        raise ValueError(
            f"masking.span_max is {span_max}, but timeframe number {lengths.index(shortest)} has windows of {shortest} "
            "bars only: lower span_max or lengthen the window"
        )
