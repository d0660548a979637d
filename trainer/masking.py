"""Block masks: which bars the model must reconstruct, and what must be hidden with them.

A mask depends only on its window's key and rows, never on the batch around it, the device or a global random state, so
a resumed or differently distributed run hides the same bars. All of it is exact integer arithmetic without host
synchronisation.

Shape suffixes: B batch, S timeframes, G timeframes drawn together, K candidate blocks, L bars, N bars of the finer
timeframes.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from trainer.order import mix, mix_parts


@dataclass(frozen=True)
class Masks:
    """The hidden bars of a batch: one bool [B, L_j] per timeframe, base timeframe first."""

    hidden: list[Tensor]

    def after_block(self) -> list[Tensor]:
        """Give the first visible bar after each hidden block, bool [B, L_j] per timeframe.

        Some of its features, such as the difference to the previous close, would reveal the hidden close exactly.
        """
        return [pad(hidden[:, :-1], (1, 0)) & ~hidden for hidden in self.hidden]


def window_keys(seed: int, stream: int | Tensor, index: Tensor) -> Tensor:
    """Hash window numbers `index` (int64 [B]) to mask keys (int64 [B]).

    `stream` separates uses of one seed: the epoch's number, or a constant for validation, so that its masks stay the
    same; an integer or an int64 scalar tensor on the device of `index`.
    """
    return mix_parts(seed, stream, index, device=index.device)


def mask_ratios(mask_ratio: float | Mapping[str, float], timeframes: Sequence[str]) -> list[float]:
    """The ratio of each timeframe, from one for all or one for each by name.

    Raises:
        ValueError: if the names are not exactly those of the timeframes.
    """
    if not isinstance(mask_ratio, Mapping):
        return [mask_ratio] * len(timeframes)
    if unknown := [name for name in mask_ratio if name not in timeframes]:
        raise ValueError(
            f"masking.mask_ratio names {', '.join(unknown)}, but the dataset's timeframes are {', '.join(timeframes)}"
        )
    if missing := [name for name in timeframes if name not in mask_ratio]:
        raise ValueError(f"masking.mask_ratio names no share for {', '.join(missing)}; give one for every timeframe")
    return [mask_ratio[name] for name in timeframes]


def draw_masks(
    keys: Tensor,
    lengths: Sequence[int],
    ratios: Sequence[float],
    span_min: int,
    span_max: int,
    rows: Sequence[Tensor] | None,
) -> Masks:
    """Hide contiguous blocks of bars until about `ratios[j]` of the bars of timeframe j are hidden.

    For every window and timeframe, blocks follow each other with lengths uniform in [span_min, span_max] and starts
    uniform over all places where the block fits whole. They may overlap; the number of blocks kept, at least one, is
    the one whose union is nearest to the target. A block never leaves the window, so bars near its two ends are hidden
    less often than those in the middle.

    With `rows`, timeframes are synchronised: what one hides cannot be read off another. They are drawn from the finest
    to the coarsest, and each has blocks of its own only in its *room*, the bars older than all that the windows of
    finer timeframes tell of (were the finest not to decide about the time that it sees, one hidden h4 bar would hide an
    m1 window whole). Runs of bars that a timeframe hides so are its blocks, each an interval of the shared clock: from
    the first base row of its first bar to the last base row of its last bar, whatever lies between them. Of any two
    timeframes, a bar that overlaps a block of the other is hidden, and nothing else is. There, a window's first bar
    counts as reaching back over the base row before it, whose close its features may give away.

    * What finer timeframes make a timeframe hide counts towards its ratio, so its own blocks are fewer, and none where
      that comes nearest and some bar is hidden already. A coarse bar needs only to touch a block, so the share of
      hidden bars is higher towards the window's newer end, and in all where finer windows cover most of the window.
    * Blocks are cut to the length of the room: where it has a single bar, the timeframe has a hidden bar.
    * Where a timeframe has no room, exactly what finer ones make it hide is hidden, which may be nothing, or all of it.
    * A bar without base rows overlaps only those that have rows on both sides of it.

    Args:
        keys: int64 [B], one per window, from `window_keys`.
        lengths: bars per window, for each timeframe, finest first.
        ratios: the share of bars to hide, in (0, 1), for each timeframe.
        span_min: the shortest block, in bars.
        span_max: the longest block, in bars, at most the shortest timeframe's length.
        rows: int32 [B, L_j, 2] per timeframe, which rows of the base timeframe lie in each bar: [first, past the last),
            both in order of time. None: no synchronisation.

    Raises:
        ValueError: if the spans or the ratios cannot be met.
    """
    check_masking(lengths, ratios, span_min, span_max)
    keys_BS = mix(keys[:, None] + torch.arange(len(lengths), device=keys.device))
    limits = [] if rows is None else _limits(rows)
    if rows is None:
        rooms = [torch.full_like(keys, length) for length in lengths]
    else:
        rooms = [(bars_BL2[..., 1] <= limit_B1).sum(dim=1) for bars_BL2, limit_B1 in zip(rows, limits, strict=True)]
    drawn: dict[int, Tensor] = {}
    kinds = list(zip(lengths, ratios, strict=True))
    n_blocks = [_candidates(length, ratio, (span_min + span_max) / 2) for length, ratio in kinds]
    for length, ratio in dict.fromkeys(kinds):
        group = [j for j, kind in enumerate(kinds) if kind == (length, ratio)]
        keys_BG = torch.stack([keys_BS[:, j] for j in group], dim=1)
        room_BG = torch.stack([rooms[j] for j in group], dim=1)
        first_BGL = _draw_blocks(keys_BG, room_BG, length, n_blocks[group[0]], span_min, span_max)
        drawn |= zip(group, first_BGL.unbind(1), strict=True)

    hidden: list[Tensor] = []
    finer: list[_Blocks] = []
    for j, (length, ratio) in enumerate(kinds):
        touched_BL = torch.zeros_like(drawn[j], dtype=torch.bool)
        if rows is not None and finer:
            touched_BL = _touched(rows[j], finer)
        own_BL = _keep(drawn[j], n_blocks[j], touched_BL.sum(dim=1, keepdim=True), ratio * length)
        hidden.append(own_BL | touched_BL)
        if rows is not None:
            finer.append(_blocks(rows[j], own_BL, limits[j]))
    return Masks(hidden)


def realised_ratio(masks: Masks) -> Tensor:
    """Give the share of bars hidden in each timeframe, float32 [S]."""
    return torch.stack([hidden.float().mean() for hidden in masks.hidden])


def _draw_blocks(keys_BG: Tensor, room_BG: Tensor, length: int, n_blocks: int, span_min: int, span_max: int) -> Tensor:
    """Draw blocks within the first `room` bars: the number of the first that hides a bar, int64 [B, G, length].

    It is `n_blocks` for a bar that none hides.
    """
    number_K = torch.arange(n_blocks, device=keys_BG.device)
    bits_BGK = mix(keys_BG[..., None] + number_K)
    room_BG1 = room_BG[..., None]
    shortest_BG1, longest_BG1 = room_BG1.clamp(max=span_min), room_BG1.clamp(max=span_max)
    # 32 bits decide the length, the other 32 the start.
    span_BGK = shortest_BG1 + (bits_BGK & 0xFFFFFFFF) % (longest_BG1 - shortest_BG1 + 1)
    start_BGK = (bits_BGK >> 32) % (room_BG1 + 1 - span_BGK)

    # int32: the largest tensors here, and CPUs compare and reduce it 15 times faster than int64.
    bar_L = torch.arange(length, dtype=torch.int32, device=keys_BG.device)
    start_BGK1 = start_BGK.int()[..., None]
    covered_BGKL = (bar_L >= start_BGK1) & (bar_L < start_BGK1 + span_BGK.int()[..., None])
    return torch.where(covered_BGKL, number_K.int()[:, None], n_blocks).amin(dim=-2).long()


def _keep(first_BL: Tensor, n_blocks: int, hidden_B1: Tensor, target: float) -> Tensor:
    """Keep the first so many blocks that, with the `hidden` bars outside the room, come nearest to the target number.

    At least one is kept where nothing else is hidden. Gives the bars that the blocks hide, bool [B, L].
    """
    # Coverage after blocks 0 … k, for every k, from a histogram of the numbers.
    counts = torch.zeros((len(first_BL), n_blocks + 1), dtype=torch.int64, device=first_BL.device)
    counts.scatter_add_(-1, first_BL, torch.ones_like(first_BL))
    excess_BK = (counts[:, :n_blocks].cumsum(dim=-1) + hidden_B1 - target).abs()
    last_B1 = excess_BK.argmin(dim=-1, keepdim=True)
    none_B1 = (hidden_B1 > 0) & ((hidden_B1 - target).abs() <= excess_BK.gather(-1, last_B1))
    return (first_BL <= last_B1) & ~none_B1


@dataclass(frozen=True)
class _Blocks:
    """A timeframe's room as the coarser ones see it, bars in order of time; what is newer is cut off.

    Attributes:
        first, past: int32 [B, N], each bar's base rows.
        begins, ends: bool [B, N], whether a block begins with the bar, and whether one ends with it.
    """

    first: Tensor
    past: Tensor
    begins: Tensor
    ends: Tensor


def _limits(rows: Sequence[Tensor]) -> list[Tensor]:
    """The base row at which each timeframe's room ends, int32 [B, 1].

    A window's first bar may give away the close of the base row before its own, so that row is not in the room.
    """
    limits = [rows[0][:, -1:, 1]]
    for bars_BL2 in rows[:-1]:
        limits.append(torch.minimum(limits[-1], bars_BL2[:, :1, 0] - 1))
    return limits


def _blocks(rows_BL2: Tensor, own_BL: Tensor, limit_B1: Tensor) -> _Blocks:
    first_BL, past_BL = (torch.minimum(edge_BL, limit_B1) for edge_BL in rows_BL2.unbind(-1))
    begins_BL, ends_BL = own_BL & ~pad(own_BL[:, :-1], (1, 0)), own_BL & ~pad(own_BL[:, 1:], (0, 1))
    return _Blocks(first_BL, past_BL, begins_BL, ends_BL)


def _touched(rows_BL2: Tensor, finer: Sequence[_Blocks]) -> Tensor:
    """Tell which bars overlap a block of a finer timeframe, bool [B, L].

    The rooms of the finer timeframes follow each other in time, the finest last, so all their bars are one sorted
    sequence. A bar overlaps a block where more blocks have begun before its end than have ended by its beginning.
    """
    parts = [(blocks.first, blocks.past, blocks.begins, blocks.ends) for blocks in reversed(finer)]
    first_BN, past_BN, begins_BN, ends_BN = (torch.cat(part, dim=1) for part in zip(*parts, strict=True))
    # A window's first bar reaches back to the row whose close it may give away.
    first_BL = torch.cat([rows_BL2[:, :1, 0] - 1, rows_BL2[:, 1:, 0]], dim=1)
    stop_BL = torch.searchsorted(first_BN, rows_BL2[..., 1].contiguous())
    start_BL = torch.searchsorted(past_BN, first_BL, right=True)
    begun_BL = pad(begins_BN.cumsum(dim=1), (1, 0)).gather(1, stop_BL)
    ended_BL = pad(ends_BN.cumsum(dim=1), (1, 0)).gather(1, start_BL)
    return begun_BL > ended_BL


def _candidates(length: int, mask_ratio: float, mean_span: float) -> int:
    """Bound the number of blocks needed; a window that wanted more would be hidden a little less.

    n blocks leave about (1 − mean_span/length)^n ≤ exp(−n · mean_span/length) of the bars visible.
    """
    return 2 * math.ceil(-math.log(1 - mask_ratio) * length / mean_span) + 4


def check_masking(lengths: Sequence[int], ratios: Sequence[float], span_min: int, span_max: int) -> None:
    """Raise ValueError where draw_masks cannot meet the spans or the ratios. Arguments as of it."""
    for ratio in ratios:
        if not 0 < ratio < 1:
            raise ValueError(f"masking.mask_ratio = {ratio} does not lie strictly between 0 and 1")
    if span_min < 1:
        raise ValueError(f"masking.span_min = {span_min}, and a hidden block needs 1 bar at least")
    if span_min > span_max:
        raise ValueError(f"masking.span_min = {span_min} is larger than masking.span_max = {span_max}; lower it")
    if span_max > min(lengths):
        raise ValueError(
            f"masking.span_max = {span_max}, and a window has {min(lengths)} bars only; lower it, or lengthen "
            "data.window.seq_len"
        )
