"""The models: bars of several timeframes → latents per timeframe (the backbone) → reconstructed bars.

Shape suffixes: B batch, S timeframes, L bars of a timeframe, T bars of all timeframes together, F features,
C channels of a bar (features, whether it is hidden, and what is known of every bar), D d_model, M latents, N targets.
"""

from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from trainer.config import ModelConfig
from trainer.layers import (
    KERNEL_CHUNK,
    KERNEL_WIDTH,
    Block,
    Bottleneck,
    Decoders,
    Stems,
    aligned,
    rotary_table,
    runs_of,
)

_INSTANCE_EPS = 1e-5  # added to the variance, as in RevIN


class Backbone(nn.Module):
    """The shared encoder: bars [B, L_j, C] of every timeframe → latents [B, ⌈L_j / latent_stride⌉, D] of every one.

    Per timeframe a depthwise-separable convolution embeds the bars; pre-norm attention blocks, shared by all
    timeframes, attend in turn within each timeframe (blocks 0, 2, …) and across the bars of all of them (1, 3, …); a
    convolution with kernel = stride = latent_stride condenses every `latent_stride` bars to one latent.

    Rotary positions count backwards from the decision time, so that a bar has the same position in a longer window:
    within a timeframe in its bars, across timeframes in base bars (the newest m5 bar is at 0, the one before it at −5),
    so that bars of the same time have about the same position whatever their timeframe.

    Under autocast everything between the norms is in half precision, what the blocks pass on to each other too.

    Args:
        n_channels: C.
        seq_lens: bars per window, for each timeframe.
        bar_lengths: nominal length of a bar in base bars, for each timeframe, such as (1, 5, 60).
        settings: the `model:` section of a configuration. Dropout is on both residual branches of a block; not on
            attention weights, which would take scaled_dot_product_attention off its fused kernels on CPUs.

    Raises:
        ValueError: if `d_model` cannot be split into heads of even width.
    """

    def __init__(
        self, n_channels: int, seq_lens: tuple[int, ...], bar_lengths: tuple[int, ...], settings: ModelConfig
    ) -> None:
        super().__init__()
        d_model, n_heads = settings.d_model, settings.n_heads
        if d_model % (2 * n_heads):
            raise ValueError(
                f"model.d_model ({d_model}) must be a multiple of 2 · model.n_heads (2 · {n_heads}): rotary positions "
                "turn pairs of a head's channels"
            )
        self.seq_lens = seq_lens
        self.d_model = d_model
        self.hidden = int(settings.mlp_ratio * d_model)
        self.latent_stride = settings.latent_stride
        self.stems = Stems(n_channels, seq_lens, d_model)
        self.blocks = nn.ModuleList(
            Block(d_model, n_heads, settings.mlp_ratio, settings.dropout, runs_of(seq_lens) if i % 2 == 0 else None)
            for i in range(settings.encoder.n_layers)
        )
        self.bottleneck = Bottleneck(d_model, settings.latent_stride, seq_lens)
        within = rotary_table(seq_lens, (1,) * len(seq_lens), d_model // n_heads)
        across = rotary_table(seq_lens, bar_lengths, d_model // n_heads)
        self.kernels: Any = None  # fused.Kernels
        self.register_buffer("within_2TE", within, persistent=False)
        self.register_buffer("across_2TE", across, persistent=False)
        self._init_weights()

    def forward(self, x: list[Tensor]) -> list[Tensor]:
        """Give the latents of every timeframe, oldest first."""
        tokens_BTD = self.stems(x)
        if self.kernels and tokens_BTD.dtype != torch.float32:
            self.kernels.refresh(tokens_BTD.dtype)
        for block in self.blocks:
            tokens_BTD = block(tokens_BTD, self.across_2TE if block.within is None else self.within_2TE)
        latents: list[Tensor] = self.bottleneck(tokens_BTD)
        return latents

    @property
    def latent_lens(self) -> tuple[int, ...]:
        """Latents of each timeframe."""
        return tuple(-(-length // self.latent_stride) for length in self.seq_lens)

    def _init_weights(self) -> None:
        """GPT-2's initialisation (Radford et al. 2019): N(0, 0.02), residual branches scaled by 1/√(2·n_layers)."""
        for module in (*self.blocks.modules(), *self.bottleneck.modules()):
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for name, parameter in self.blocks.named_parameters():
            if name.endswith(("attention_out.weight", "mlp_out.weight")):
                nn.init.normal_(parameter, std=0.02 / (2 * len(self.blocks)) ** 0.5)


class WindowModel(nn.Module):
    """What every task's model begins with: the backbone, behind the scaling of each window where it is asked for.

    Args:
        n_features: F, features per bar.
        n_known: channels behind the features and the mask channel, which are known of hidden bars too.
        seq_lens, bar_lengths, settings: as of the backbone. With `settings.instance_norm` the backbone gets each
            feature relative to the mean and standard deviation of the window's visible bars.

    Raises:
        ValueError: for dimensions that do not fit.
    """

    def __init__(
        self,
        n_features: int,
        n_known: int,
        seq_lens: tuple[int, ...],
        bar_lengths: tuple[int, ...],
        settings: ModelConfig,
    ) -> None:
        super().__init__()
        self.n_features = n_features
        self.instance_norm = settings.instance_norm
        self.backbone = Backbone(n_features + 1 + n_known, seq_lens, bar_lengths, settings)

    def encode(self, x: list[Tensor]) -> Tensor:
        """Encode to `encoded` [B, S, latent_len, D], latent_len = ⌈L / latent_stride⌉, oldest latent first.

        Raises:
            ValueError: if the timeframes have different latent lengths; `latents` gives them as a list.
        """
        if len(set(self.backbone.latent_lens)) > 1:
            lengths = list(self.backbone.latent_lens)
            raise ValueError(f"timeframes with latent lengths {lengths} do not stack to one array: use latents()")
        return torch.stack(self.latents(x), dim=1)

    def latents(self, x: list[Tensor]) -> list[Tensor]:
        """Encode to one [B, ⌈L_j / latent_stride⌉, D] per timeframe."""
        if self.instance_norm:
            x = [instance_normalise(x_BLC, self.n_features)[0] for x_BLC in x]
        latents: list[Tensor] = self.backbone(x)
        return latents

    def without_kernels(self) -> str | None:
        """Why Triton kernels cannot do the blocks, if they cannot."""
        width, hidden = self.backbone.d_model, self.backbone.hidden
        if find_spec("triton") is None:
            return "Triton is not installed"
        if width > KERNEL_WIDTH or width % 8 or hidden % KERNEL_CHUNK:
            return (
                f"they need a model.d_model of at most {KERNEL_WIDTH} that 8 divides, and model.mlp_ratio · d_model a "
                f"multiple of {KERNEL_CHUNK}"
            )
        return None

    def use_kernels(self) -> None:
        """Let Triton kernels do the blocks, where they compute in half precision; on a GPU only."""
        self.backbone.kernels = import_module("trainer.fused").Kernels(self.backbone.blocks)

    def compile_regions(self) -> None:
        """Let torch.compile fuse the rest; blocks without kernels are alike, so each half is compiled once."""
        for module in (self.backbone.stems, self.backbone.bottleneck):
            module.compile(dynamic=False)
        if self.backbone.kernels is None:
            for block in self.backbone.blocks:
                for half in block.children():
                    half.compile(dynamic=False)

    def head_products(self) -> int:
        """Multiplications, each with its addition, that a window takes behind the backbone."""
        raise NotImplementedError


class MaskedAutoencoder(WindowModel):
    """Reconstruct hidden bars from the visible ones of all timeframes, through the backbone's bottleneck.

    Args:
        n_targets: N, values reconstructed per bar: the first N features (open, high, low and close, of bars). With
            `settings.instance_norm` the decoders' outputs are put back into the units of the input (Kim et al. 2022,
            RevIN, without its affine map).
        n_features, n_known, seq_lens, bar_lengths, settings: as of every model of windows.

    Raises:
        ValueError: for dimensions that do not fit, or where `instance_norm` has no feature for a target.
    """

    def __init__(
        self,
        n_features: int,
        n_known: int,
        seq_lens: tuple[int, ...],
        bar_lengths: tuple[int, ...],
        settings: ModelConfig,
        n_targets: int = 4,
    ) -> None:
        if settings.instance_norm and n_targets > n_features:
            raise ValueError(
                f"model.instance_norm needs a feature for each target, and there are {n_targets} targets of "
                f"{n_features} features; set it to false"
            )
        super().__init__(n_features, n_known, seq_lens, bar_lengths, settings)
        self.decoders = Decoders(settings.d_model, settings.latent_stride, seq_lens, n_targets)

    def compile_regions(self) -> None:
        """The decoders too."""
        super().compile_regions()
        self.decoders.compile(dynamic=False)

    def forward(self, x: list[Tensor]) -> list[Tensor]:
        """Reconstruct: masked features, mask channel and known channels [B, L_j, C] → targets [B, L_j, N], per j."""
        if not self.instance_norm:
            decoded: list[Tensor] = self.decoders(self.backbone(x))
            return decoded
        scaled, means, stds = zip(*(instance_normalise(x_BLC, self.n_features) for x_BLC in x), strict=True)
        return [
            out * std[..., : out.shape[-1]] + mean[..., : out.shape[-1]]
            for out, mean, std in zip(self.decoders(self.backbone(list(scaled))), means, stds, strict=True)
        ]

    def head_products(self) -> int:
        """Of the decoders."""
        latents = sum(self.backbone.latent_lens)
        head = self.backbone.d_model * aligned(self.decoders.n_targets)
        return latents * (self.decoders.expand[0].numel() + self.backbone.latent_stride * head)


def instance_normalise(x_BLC: Tensor, n_features: int) -> tuple[Tensor, Tensor, Tensor]:
    """Scale features by their mean and std over the window's visible bars: (scaled [B, L, C], mean, std [B, 1, F]).

    The channel behind the features, 1 where a bar is hidden, and those behind it stay as they are; the features of
    hidden bars become 0, the visible bars' mean. A window without visible bars has mean 0 and, like a feature that does
    not vary, a std of √1e-5.
    """
    features_BLF, rest = x_BLC[..., :n_features], x_BLC[..., n_features:]
    visible_BL1 = 1 - rest[..., :1]
    count_B11 = visible_BL1.sum(dim=1, keepdim=True).clamp(min=1)
    mean_B1F = (features_BLF * visible_BL1).sum(dim=1, keepdim=True) / count_B11
    centred_BLF = (features_BLF - mean_B1F) * visible_BL1
    std_B1F = (centred_BLF.square().sum(dim=1, keepdim=True) / count_B11 + _INSTANCE_EPS).sqrt()
    return torch.cat([centred_BLF / std_B1F, rest], dim=-1), mean_B1F, std_B1F
