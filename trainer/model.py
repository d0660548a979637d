"""The masked autoencoder: bars of several timeframes → latents per timeframe → reconstructed prices.

Shape suffixes: B batch, S timeframes, L bars of a timeframe, T bars of all timeframes together, F features,
C feature channels with the mask channel, D d_model, H heads, E channels per head, M latents, N targets.
"""

import torch
import torch.nn.functional as F  # noqa: N812 - PyTorch's own convention
from torch import Tensor, nn

from trainer.config import ModelConfig

_INSTANCE_EPS = 1e-5  # added to the variance, as in RevIN


class MaskedAutoencoder(nn.Module):
    """Reconstruct hidden bars from the visible ones of all timeframes, through a strided bottleneck.

    Per timeframe a depthwise-separable convolution embeds the bars; pre-norm attention blocks, shared by all
    timeframes, attend in turn within each timeframe (blocks 0, 2, …) and across the bars of all of them (1, 3, …); a
    convolution with kernel = stride = latent_stride condenses every `latent_stride` bars to one latent, and one
    transposed convolution per timeframe with a linear head expands the latents to `n_targets` values per bar.

    Rotary positions count backwards from the decision time, so that a bar has the same position in a longer window:
    within a timeframe in its bars, across timeframes in base bars (the newest m5 bar is at 0, the one before it at −5),
    so that bars of the same time have about the same position whatever their timeframe.

    Args:
        n_features: F, features per bar, without the mask channel.
        seq_lens: bars per window, for each timeframe.
        bar_lengths: nominal length of a bar in base bars, for each timeframe, such as (1, 5, 60).
        n_targets: values reconstructed per bar (open, high, low, close).
        d_model: width of a token; a multiple of `n_heads` with an even quotient.
        n_layers: attention blocks.
        n_heads: attention heads.
        mlp_ratio: hidden width of a block's feed-forward part, as a multiple of `d_model`.
        latent_stride: bars per latent.
        dropout: probability, on both residual branches of a block; not on attention weights, which would take
            scaled_dot_product_attention off its fused kernels on CPUs.
        instance_norm: give the encoder each feature relative to the mean and standard deviation of the window's
            visible bars, and put the decoders' outputs, which stand for the first `n_targets` features, back into the
            units of the input (Kim et al. 2022, RevIN, without its affine map).

    Raises:
        ValueError: if `d_model` cannot be split into heads of even width, or `instance_norm` has no feature for a
            target.
    """

    def __init__(
        self,
        n_features: int,
        seq_lens: tuple[int, ...],
        bar_lengths: tuple[int, ...],
        n_targets: int = 4,
        *,
        d_model: int,
        n_layers: int,
        n_heads: int,
        mlp_ratio: float,
        latent_stride: int,
        dropout: float,
        instance_norm: bool = False,
    ) -> None:
        super().__init__()
        if instance_norm and n_targets > n_features:
            raise ValueError(
                f"model.instance_norm needs a feature for each target, and there are {n_targets} targets of "
                f"{n_features} features; set it to false"
            )
        if d_model % (2 * n_heads):
            raise ValueError(
                f"model.d_model ({d_model}) must be a multiple of 2 · model.n_heads (2 · {n_heads}): rotary positions "
                "turn pairs of a head's channels"
            )
        self.seq_lens = seq_lens
        self.latent_stride = latent_stride
        self.instance_norm = instance_norm
        self.stems = nn.ModuleList(Stem(n_features + 1, d_model) for _ in seq_lens)
        self.timeframe_embedding = nn.Parameter(torch.empty(len(seq_lens), d_model))
        self.blocks = nn.ModuleList(
            Block(d_model, n_heads, mlp_ratio, dropout, within=seq_lens if i % 2 == 0 else None)
            for i in range(n_layers)
        )
        self.norm = nn.LayerNorm(d_model, elementwise_affine=False)
        self.bottleneck = Bottleneck(d_model, latent_stride)
        self.decoders = nn.ModuleList(Decoder(d_model, latent_stride, length, n_targets) for length in seq_lens)
        within = rotary_table(seq_lens, (1,) * len(seq_lens), d_model // n_heads)
        across = rotary_table(seq_lens, bar_lengths, d_model // n_heads)
        self.register_buffer("within_2TE", within, persistent=False)
        self.register_buffer("across_2TE", across, persistent=False)
        self._init_weights()

    def forward(self, x: list[Tensor]) -> list[Tensor]:
        """Reconstruct: masked features with their mask channel [B, L_j, F+1] → targets [B, L_j, n_targets], per j."""
        if not self.instance_norm:
            return [decoder(latent) for decoder, latent in zip(self.decoders, self._latents(x), strict=True)]
        scaled, means, stds = zip(*map(instance_normalise, x), strict=True)
        decoded = (decoder(latent) for decoder, latent in zip(self.decoders, self._latents(list(scaled)), strict=True))
        return [
            out * std[..., : out.shape[-1]] + mean[..., : out.shape[-1]]
            for out, mean, std in zip(decoded, means, stds, strict=True)
        ]

    def encode(self, x: list[Tensor]) -> Tensor:
        """Encode to `encoded` [B, S, latent_len, D], latent_len = ⌈L / latent_stride⌉, oldest latent first.

        Raises:
            ValueError: if the timeframes have different latent lengths; `latents` gives them as a list.
        """
        latents = self.latents(x)
        lengths = [latent.shape[1] for latent in latents]
        if len(set(lengths)) > 1:
            raise ValueError(f"timeframes with latent lengths {lengths} do not stack to one array: use latents()")
        return torch.stack(latents, dim=1)

    def latents(self, x: list[Tensor]) -> list[Tensor]:
        """Encode to one [B, ⌈L_j / latent_stride⌉, D] per timeframe."""
        return self._latents([instance_normalise(x_BLC)[0] for x_BLC in x] if self.instance_norm else x)

    def _latents(self, x: list[Tensor]) -> list[Tensor]:
        embedded = [
            stem(x_BLC) + self.timeframe_embedding[j] for j, (stem, x_BLC) in enumerate(zip(self.stems, x, strict=True))
        ]
        tokens_BTD = torch.cat(embedded, dim=1)
        for block in self.blocks:
            tokens_BTD = block(tokens_BTD, self.across_2TE if block.within is None else self.within_2TE)
        return [self.bottleneck(tokens) for tokens in self.norm(tokens_BTD).split(self.seq_lens, dim=1)]

    def _init_weights(self) -> None:
        """GPT-2's initialisation (Radford et al. 2019): N(0, 0.02), residual branches scaled by 1/√(2·n_layers).

        The stems keep PyTorch's own: N(0, 0.02) of a few normalised features would all but vanish.
        """
        nn.init.normal_(self.timeframe_embedding, std=0.02)
        for module in (*self.blocks.modules(), *self.bottleneck.modules(), *self.decoders.modules()):
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for name, parameter in self.blocks.named_parameters():
            if name.endswith(("attention_out.weight", "mlp_out.weight")):
                nn.init.normal_(parameter, std=0.02 / (2 * len(self.blocks)) ** 0.5)


class Stem(nn.Module):
    """Embed bars by a depthwise-separable convolution with kernel 3: [B, L, C] → [B, L, D]."""

    def __init__(self, n_channels: int, d_model: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv1d(n_channels, n_channels, kernel_size=3, padding=1, groups=n_channels)
        self.pointwise = nn.Linear(n_channels, d_model)

    def forward(self, x_BLC: Tensor) -> Tensor:
        """Give [B, L, D]."""
        smoothed_BCL: Tensor = self.depthwise(x_BLC.transpose(1, 2))
        tokens_BLD: Tensor = self.pointwise(smoothed_BCL.transpose(1, 2))
        return tokens_BLD


class Block(nn.Module):
    """One pre-norm transformer block on the tokens of all timeframes, concatenated: [B, T, D] → [B, T, D].

    With `within` (the timeframes' lengths) a token attends to its own timeframe only, without it to all T tokens. There
    are no biases, and the norms neither scale nor shift: the linear maps behind them do, and their gradients over so
    many short rows would take a fifth of the step's time on a GPU.
    """

    def __init__(
        self, d_model: int, n_heads: int, mlp_ratio: float, dropout: float, within: tuple[int, ...] | None
    ) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.within = within
        self.norm = nn.LayerNorm(d_model, elementwise_affine=False)
        self.qkv = nn.Linear(d_model, 3 * d_model, bias=False)
        self.attention_out = nn.Linear(d_model, d_model, bias=False)
        self.mlp_in = nn.Linear(d_model, int(mlp_ratio * d_model), bias=False)
        self.mlp_out = nn.Linear(int(mlp_ratio * d_model), d_model, bias=False)
        self.dropout = nn.Dropout(dropout)

    def forward(self, tokens_BTD: Tensor, rotary_2TE: Tensor) -> Tensor:
        """Give [B, T, D]."""
        batch, n_tokens, d_model = tokens_BTD.shape
        qkv: Tensor = self.qkv(self.norm(tokens_BTD)).view(batch, n_tokens, 3 * self.n_heads, -1)
        # Queries and keys turn together, as twice as many heads.
        q, k = rotate(qkv[:, :, : 2 * self.n_heads], rotary_2TE).chunk(2, dim=2)
        attended_BTHE = self._attend(q, k, qkv[:, :, 2 * self.n_heads :])
        tokens_BTD = tokens_BTD + self.dropout(self.attention_out(attended_BTHE.reshape(batch, n_tokens, d_model)))
        update_BTD: Tensor = self.dropout(self.mlp_out(F.gelu(self.mlp_in(self.norm(tokens_BTD)))))
        return tokens_BTD + update_BTD

    def _attend(self, q_BTHE: Tensor, k_BTHE: Tensor, v_BTHE: Tensor) -> Tensor:
        if self.within is None:
            return _attention(q_BTHE, k_BTHE, v_BTHE)
        if len(set(self.within)) == 1:
            # One call for all timeframes, as if each were a row of the batch: their tokens lie behind each other.
            q, k, v = (t.reshape(-1, self.within[0], *t.shape[2:]) for t in (q_BTHE, k_BTHE, v_BTHE))
            return _attention(q, k, v).reshape(q_BTHE.shape)
        parts = zip(*(torch.split(t, list(self.within), dim=1) for t in (q_BTHE, k_BTHE, v_BTHE)), strict=True)
        return torch.cat([_attention(q, k, v) for q, k, v in parts], dim=1)


class Bottleneck(nn.Module):
    """Condense every `stride` bars to one latent, padded at the oldest end: [B, L, D] → [B, ⌈L/stride⌉, D].

    A convolution with kernel = stride sees every bar once, so it is a linear map of `stride` bars side by side.
    """

    def __init__(self, d_model: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.project = nn.Linear(stride * d_model, d_model)

    def forward(self, tokens_BLD: Tensor) -> Tensor:
        """Give [B, ⌈L/stride⌉, D]."""
        batch, length, d_model = tokens_BLD.shape
        padded_BLD = F.pad(tokens_BLD, (0, 0, -length % self.stride, 0))
        latent_BMD: Tensor = self.project(padded_BLD.reshape(batch, -1, self.stride * d_model))
        return latent_BMD


class Decoder(nn.Module):
    """Expand each latent to `stride` bars and drop the padded oldest ones: [B, M, D] → [B, length, n_targets].

    A transposed convolution with kernel = stride, as a linear map, GELU and a linear head.
    """

    def __init__(self, d_model: int, stride: int, length: int, n_targets: int) -> None:
        super().__init__()
        self.length = length
        self.expand = nn.Linear(d_model, stride * d_model)
        self.head = nn.Linear(d_model, n_targets)

    def forward(self, latent_BMD: Tensor) -> Tensor:
        """Give [B, length, n_targets]."""
        batch, _, d_model = latent_BMD.shape
        expanded_BLD = self.expand(latent_BMD).view(batch, -1, d_model)[:, -self.length :]
        targets_BLN: Tensor = self.head(F.gelu(expanded_BLD))
        return targets_BLN


def rotary_table(seq_lens: tuple[int, ...], bar_lengths: tuple[int, ...], head_width: int) -> Tensor:
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
    """Turn channel pairs (e, e + E/2) of queries or keys [B, T, H, E] by their position's angles; keeps the dtype."""
    cos, sin = rotary_2TE[:, :, None, :].to(x_BTHE.dtype)
    first, second = x_BTHE.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


def instance_normalise(x_BLC: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Scale features [B, L, F+1] by their mean and std over the window's visible bars: (scaled, mean, std [B, 1, F]).

    The last channel, 1 where a bar is hidden, stays as it is; hidden bars become 0, the visible bars' mean.
    A window without visible bars has mean 0 and, like a feature that does not vary, a std of √1e-5.
    """
    features_BLF, hidden_BL1 = x_BLC[..., :-1], x_BLC[..., -1:]
    visible_BL1 = 1 - hidden_BL1
    count_B11 = visible_BL1.sum(dim=1, keepdim=True).clamp(min=1)
    mean_B1F = (features_BLF * visible_BL1).sum(dim=1, keepdim=True) / count_B11
    centred_BLF = (features_BLF - mean_B1F) * visible_BL1
    std_B1F = (centred_BLF.square().sum(dim=1, keepdim=True) / count_B11 + _INSTANCE_EPS).sqrt()
    return torch.cat([centred_BLF / std_B1F, hidden_BL1], dim=-1), mean_B1F, std_B1F


def build_model(
    settings: ModelConfig,
    n_features: int,
    seq_lens: tuple[int, ...],
    bar_lengths: tuple[int, ...],
    n_targets: int = 4,
) -> MaskedAutoencoder:
    """The model of a configuration's `model:` section. Raises ValueError for dimensions that do not fit."""
    return MaskedAutoencoder(
        n_features,
        seq_lens,
        bar_lengths,
        n_targets,
        d_model=settings.d_model,
        n_layers=settings.encoder.n_layers,
        n_heads=settings.n_heads,
        mlp_ratio=settings.mlp_ratio,
        latent_stride=settings.latent_stride,
        dropout=settings.dropout,
        instance_norm=settings.instance_norm,
    )


def parameter_count(model: nn.Module) -> int:
    """Count the trainable parameters."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def forward_flops(model: MaskedAutoencoder) -> int:
    """Floating-point operations of one window's way through encoder and decoders.

    Two a multiplication with its addition, in matrix products, convolutions and attention; nothing else is counted.
    """
    tokens, width = sum(model.seq_lens), model.timeframe_embedding.shape[1]
    total = 0
    for name, parameter in model.named_parameters():
        if name.endswith("weight"):  # every weight multiplies each row of its layer's input once
            part, number = name.split(".")[0], name.split(".")[1]
            rows = model.seq_lens[int(number)] if part in ("stems", "decoders") else tokens
            if part == "bottleneck" or name.endswith("expand.weight"):
                lengths = model.seq_lens if part == "bottleneck" else (rows,)
                rows = sum(-(-length // model.latent_stride) for length in lengths)
            total += rows * parameter.numel()
    within = [i % 2 == 0 for i in range(len(model.blocks))]
    pairs = sum(sum(length**2 for length in model.seq_lens) if inside else tokens**2 for inside in within)
    return 2 * (total + 2 * pairs * width)  # attention: the scores, and the weighted values


def model_info(model: MaskedAutoencoder) -> str:
    """For the log: `212,345 parameters · 0.85 MB · 12.3 MFLOP a window forward`."""
    size = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    flops = forward_flops(model) / 1e6
    return f"{parameter_count(model):,} parameters · {size / 1e6:.2f} MB · {flops:,.1f} MFLOP a window forward"


def _attention(q_BTHE: Tensor, k_BTHE: Tensor, v_BTHE: Tensor) -> Tensor:
    q, k, v = (t.transpose(1, 2) for t in (q_BTHE, k_BTHE, v_BTHE))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2)
