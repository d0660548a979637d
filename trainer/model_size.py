"""How large a model is, and how much work a window is to it."""

from torch import nn

from trainer.layers import aligned
from trainer.model import WindowModel


def parameter_count(model: nn.Module) -> int:
    """Count the trainable parameters."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def forward_flops(model: WindowModel) -> int:
    """Floating-point operations of one window's way through backbone and heads.

    Two a multiplication with its addition, in matrix products and attention; nothing else is counted.
    """
    backbone = model.backbone
    lengths, width = backbone.seq_lens, backbone.d_model
    tokens, latents = sum(lengths), backbone.latent_lens
    of_blocks = sum(parameter.numel() for parameter in backbone.blocks.parameters())
    products = tokens * of_blocks + sum(latents) * backbone.bottleneck.project.weight.numel()
    products += tokens * aligned(backbone.stems.pointwise.shape[1]) * width
    products += model.head_products()
    pairs = sum(
        tokens**2 if block.within is None else sum(length**2 for length in lengths) for block in backbone.blocks
    )
    return 2 * (products + 2 * pairs * width)  # attention: the scores, and the weighted values


def model_info(model: WindowModel) -> str:
    """For the log: `212,345 parameters · 0.85 MB · 12.3 MFLOP a window forward`."""
    size = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    flops = forward_flops(model) / 1e6
    return f"{parameter_count(model):,} parameters · {size / 1e6:.2f} MB · {flops:,.1f} MFLOP a window forward"
