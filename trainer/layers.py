"""The parts of the model.

Timeframes that stand next to each other and have windows of one length make a *run*: their bars lie behind each other,
so that they are computed together, as if each were a row of the batch.

Shape suffixes: B batch, G timeframes of a run, S timeframes, L bars of a timeframe, T bars of all timeframes together,
C channels of a bar, D d_model, H heads, E channels per head, M latents, N targets.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F  # noqa: N812 - PyTorch's own convention
from torch import Tensor, nn

NORM_EPS = 1e-5  # added to the variance
KERNEL_WIDTH = 128  # d_model: more does not fit a multiprocessor
KERNEL_CHUNK = 64  # of a block's hidden layer, at a time


@dataclass(frozen=True)
class Run:
    """Timeframes [first, past) of `length` bars each, which are tokens [start, stop) of T."""

    first: int
    past: int
    length: int
    start: int
    stop: int


def runs_of(seq_lens: Sequence[int]) -> tuple[Run, ...]:
    """The runs of timeframes with windows of `seq_lens` bars: one, where all are equal."""
    runs: list[Run] = []
    for j, length in enumerate(seq_lens):
        last = runs[-1] if runs else Run(0, 0, length, 0, 0)
        if runs and last.length == length:
            runs[-1] = Run(last.first, j + 1, length, last.start, last.stop + length)
        else:
            runs.append(Run(j, j + 1, length, last.stop, last.stop + length))
    return tuple(runs)


def aligned(size: int) -> int:
    """The next multiple of 8: half-precision matrix products are fast where every dimension is one."""
    return size + -size % 8


def joined(parts: list[Tensor]) -> Tensor:
    """The tokens of all runs behind each other, along dimension 1."""
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


class Stems(nn.Module):
    """Embed bars by a depthwise-separable convolution with kernel 3, of each timeframe its own: → [B, T, D].

    The bias of its second half is what every bar of a timeframe has in common: the timeframe's embedding.
    """

    def __init__(self, n_channels: int, seq_lens: Sequence[int], d_model: int) -> None:
        super().__init__()
        self.runs = runs_of(seq_lens)
        n = len(seq_lens)
        self.depthwise = nn.Parameter(torch.empty(n, 3, n_channels))
        self.pointwise = nn.Parameter(torch.empty(n, n_channels, d_model))
        self.timeframe_embedding = nn.Parameter(torch.empty(n, d_model))
        # PyTorch's own for convolutions and linear maps: N(0, 0.02) of a few normalised features would all but vanish.
        for weight, fan_in in ((self.depthwise, 3), (self.pointwise, n_channels)):
            nn.init.uniform_(weight, -(fan_in**-0.5), fan_in**-0.5)
        nn.init.normal_(self.timeframe_embedding, std=0.02)

    def forward(self, x: list[Tensor]) -> Tensor:
        """Bars [B, L_j, C] of every timeframe → [B, T, D]."""
        tokens = []
        for run in self.runs:
            some = slice(run.first, run.past)
            x_GBLC = torch.stack(x[some])
            padded = F.pad(x_GBLC, (0, 0, 1, 1))
            before, at, after = self.depthwise[some, None, None].unbind(3)
            smoothed = padded[:, :, :-2] * before + x_GBLC * at + padded[:, :, 2:] * after
            group, batch, length, channels = x_GBLC.shape
            padding = aligned(channels) - channels
            rows = F.pad(smoothed.view(group, batch * length, channels), (0, padding))
            weight = F.pad(self.pointwise[some], (0, 0, 0, padding))
            embedded = torch.baddbmm(self.timeframe_embedding[some, None], rows, weight)
            tokens.append(embedded.view(group, batch, length, -1).transpose(0, 1).reshape(batch, group * length, -1))
        return joined(tokens)


class Block(nn.Module):
    """One pre-norm transformer block on the tokens of all timeframes: [B, T, D] → [B, T, D].

    With `within` (the runs of timeframes) a token attends to its own timeframe only, without it to all T tokens.
    """

    def __init__(
        self, d_model: int, n_heads: int, mlp_ratio: float, dropout: float, within: tuple[Run, ...] | None
    ) -> None:
        super().__init__()
        self.within = within
        self.queries = Queries(d_model, n_heads)
        self.update = Update(d_model, mlp_ratio, dropout)
        self.kernels: BlockKernels | None = None

    def forward(self, tokens_BTD: Tensor, rotary_2TE: Tensor) -> Tensor:
        """Give [B, T, D]."""
        if self.kernels and tokens_BTD.dtype != torch.float32:
            q, k, v, tokens_BTD = self.kernels.queries(tokens_BTD, rotary_2TE)
            return self.kernels.update(tokens_BTD, self._attend(self.kernels.attention, q, k, v))
        q, k, v = self.queries(tokens_BTD, rotary_2TE)
        updated_BTD: Tensor = self.update(tokens_BTD, self._attend(attention, q, k, v))
        return updated_BTD

    def _attend(self, attend: Callable[..., Tensor], q_BTHE: Tensor, k_BTHE: Tensor, v_BTHE: Tensor) -> Tensor:
        if self.within is None:
            return attend(q_BTHE, k_BTHE, v_BTHE)
        attended = []
        for run in self.within:
            of_run = (t[:, run.start : run.stop] for t in (q_BTHE, k_BTHE, v_BTHE))
            q, k, v = (t.reshape(-1, run.length, *t.shape[2:]) for t in of_run)
            attended.append(attend(q, k, v).reshape(q_BTHE.shape[0], -1, *q.shape[2:]))
        return joined(attended)


class BlockKernels(Protocol):
    """A block's parts in one kernel each; from `trainer.fused`."""

    def queries(self, tokens_BTD: Tensor, rotary_2TE: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Queries, keys and values [B, T, H, E], and the tokens, for `update`."""

    def attention(self, q_BTHE: Tensor, k_BTHE: Tensor, v_BTHE: Tensor) -> Tensor:
        """Attention over T: [B, T, H, E]."""

    def update(self, tokens_BTD: Tensor, attended_BTHE: Tensor) -> Tensor:
        """Both residual branches: [B, T, D]."""


class Queries(nn.Module):
    """A block's first half, up to attention: queries, keys and values [B, T, H, E], the first two turned.

    There are no biases, and the norms neither scale nor shift: the linear maps behind them do, and their gradients over
    so many short rows would take a fifth of the step's time on a GPU.
    """

    def __init__(self, d_model: int, n_heads: int) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.norm = nn.LayerNorm(d_model, NORM_EPS, elementwise_affine=False)
        self.qkv = nn.Linear(d_model, 3 * d_model, bias=False)

    def forward(self, tokens_BTD: Tensor, rotary_2TE: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Give queries, keys and values."""
        q, k, v = self.qkv(self.norm(tokens_BTD)).unflatten(2, (3, self.n_heads, -1)).unbind(2)
        return rotate(q, rotary_2TE), rotate(k, rotary_2TE), v


class Update(nn.Module):
    """A block's second half, from attention on: both residual branches."""

    def __init__(self, d_model: int, mlp_ratio: float, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(d_model, NORM_EPS, elementwise_affine=False)
        self.attention_out = nn.Linear(d_model, d_model, bias=False)
        self.mlp_in = nn.Linear(d_model, int(mlp_ratio * d_model), bias=False)
        self.mlp_out = nn.Linear(int(mlp_ratio * d_model), d_model, bias=False)
        self.dropout = nn.Dropout(dropout)

    def forward(self, tokens_BTD: Tensor, attended_BTHE: Tensor) -> Tensor:
        """Give [B, T, D]."""
        tokens_BTD = tokens_BTD + self.dropout(self.attention_out(attended_BTHE.flatten(2)))
        update_BTD: Tensor = self.dropout(self.mlp_out(F.gelu(self.mlp_in(self.norm(tokens_BTD)), approximate="tanh")))
        return tokens_BTD + update_BTD


class Bottleneck(nn.Module):
    """Condense every `stride` bars of a timeframe to one latent, padded at the oldest end: [B, T, D] → [B, M_j, D] a j.

    Bars are normalised first. A convolution with kernel = stride sees every bar once, so it is a linear map of `stride`
    bars side by side.
    """

    def __init__(self, d_model: int, stride: int, seq_lens: Sequence[int]) -> None:
        super().__init__()
        self.stride = stride
        self.runs = runs_of(seq_lens)
        self.norm = nn.LayerNorm(d_model, NORM_EPS, elementwise_affine=False)
        self.project = nn.Linear(stride * d_model, d_model)

    def forward(self, tokens_BTD: Tensor) -> list[Tensor]:
        """Give [B, M_j, D] for every timeframe."""
        latents: list[Tensor] = []
        tokens_BTD = self.norm(tokens_BTD)
        for run in self.runs:
            tokens = tokens_BTD[:, run.start : run.stop].unflatten(1, (-1, run.length))
            padded = F.pad(tokens, (0, 0, -run.length % self.stride, 0))
            latents += self.project(padded.unflatten(2, (-1, self.stride)).flatten(3)).unbind(1)
        return latents


class Decoders(nn.Module):
    """Expand each latent to `stride` bars and drop the padded oldest ones: [B, M_j, D] → [B, L_j, N] for every j.

    Of each timeframe its own: a transposed convolution with kernel = stride, as a linear map, GELU and a linear head.
    """

    def __init__(self, d_model: int, stride: int, seq_lens: Sequence[int], n_targets: int) -> None:
        super().__init__()
        self.stride, self.n_targets = stride, n_targets
        self.runs = runs_of(seq_lens)
        n = len(seq_lens)
        self.expand = nn.Parameter(torch.empty(n, d_model, stride * d_model))
        self.expand_bias = nn.Parameter(torch.zeros(n, stride * d_model))
        self.head = nn.Parameter(torch.empty(n, d_model, n_targets))
        self.head_bias = nn.Parameter(torch.zeros(n, n_targets))
        nn.init.normal_(self.expand, std=0.02)
        nn.init.normal_(self.head, std=0.02)

    def forward(self, latents: list[Tensor]) -> list[Tensor]:
        """Give [B, L_j, N] for every timeframe."""
        targets: list[Tensor] = []
        for run in self.runs:
            some = slice(run.first, run.past)
            latent_GXD = torch.stack(latents[some]).flatten(1, 2)  # X: batch and latents
            expanded = torch.baddbmm(self.expand_bias[some, None], latent_GXD, self.expand[some])
            bars_GXD = F.gelu(expanded, approximate="tanh").view(run.past - run.first, -1, self.head.shape[1])
            padding = aligned(self.n_targets) - self.n_targets
            head, bias = (F.pad(one[some], (0, padding)) for one in (self.head, self.head_bias))
            out = torch.baddbmm(bias[:, None], bars_GXD, head)[..., : self.n_targets]
            targets += out.unflatten(1, (latents[0].shape[0], -1))[:, :, -run.length :].unbind(0)
        return targets


def rotary_table(seq_lens: Sequence[int], bar_lengths: Sequence[int], head_width: int) -> Tensor:
    """Tabulate cos and sin of the rotary angles, float32 [2, T, head_width / 2], timeframes behind each other.

    The angle of position p and pair e is p · 10000^(−2e/head_width) (Su et al. 2021, RoFormer), p = 0 at the newest bar
    of each timeframe and −bar_length · k at the k-th bar before it.
    """
    lengths = zip(seq_lens, bar_lengths, strict=True)
    position_T = torch.cat([torch.arange(1 - length, 1) * bar_length for length, bar_length in lengths])
    frequency_E = 10000.0 ** (-torch.arange(0, head_width, 2) / head_width)
    angle_TE = position_T[:, None] * frequency_E
    return torch.stack([angle_TE.cos(), angle_TE.sin()])


def rotate(x_BTHE: Tensor, rotary_2TE: Tensor) -> Tensor:
    """Turn channel pairs (2e, 2e + 1) of queries or keys [B, T, H, E] by their position's angles; keeps the dtype."""
    cos, sin = rotary_2TE[:, :, None, :].to(x_BTHE.dtype)
    first, second = x_BTHE.unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack([first * cos - second * sin, second * cos + first * sin], dim=-1).flatten(-2)


def attention(q_BTHE: Tensor, k_BTHE: Tensor, v_BTHE: Tensor) -> Tensor:
    """Scaled dot-product attention over T: [B, T, H, E]; gradients the same to the bit, unless cuDNN's is chosen."""
    q, k, v = (t.transpose(1, 2) for t in (q_BTHE, k_BTHE, v_BTHE))
    attended = F.scaled_dot_product_attention(q, k, v)
    if attended.is_cuda and attended.grad_fn:  # whose kernel adds up in any order unless told not to
        before = torch.are_deterministic_algorithms_enabled()
        attended.grad_fn.register_prehook(lambda gradients: torch.use_deterministic_algorithms(True))
        attended.grad_fn.register_hook(lambda inputs, outputs: torch.use_deterministic_algorithms(before))
    return attended.transpose(1, 2)
