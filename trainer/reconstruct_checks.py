"""Whether masks and the terms of the loss have something to work on, asked before training begins."""

from collections.abc import Sequence

from trainer.config import MaskingConfig, TrainerConfig
from trainer.masking import check_masking, mask_ratios
from trainer.spectral import fitting_scales

_FAR = 2.0  # the odds of being hidden, against those asked for


def check_settings(config: TrainerConfig, timeframes: Sequence[str], seq_lens: Sequence[int]) -> None:
    """Raise ValueError where windows are too short for what was asked for, or timeframes too few."""
    weights, settings = config.loss.weights, config.masking
    ratios = mask_ratios(settings.mask_ratio, timeframes)
    for name, length, ratio in zip(timeframes, seq_lens, ratios, strict=True):
        try:
            check_masking([length], [ratio], settings.span_min, settings.span_max)
            if weights.stft:
                fitting_scales(config.loss.stft.n_ffts, [length])
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
    if weights.cross_timeframe and len(timeframes) == 1:
        raise ValueError(
            "loss.weights.cross_timeframe compares timeframes, and there is only one; set it to 0, or, of bars, add "
            "another to data.timeframes"
        )


def check_supports(timeframes: Sequence[str], supports: Sequence[int], windows: int) -> None:
    """Raise ValueError where a pair of neighbouring timeframes has no bars to compare in so many windows."""
    for fine, coarse, support in zip(timeframes, timeframes[1:], supports, strict=False):
        if not support:
            raise ValueError(
                f"loss.weights.cross_timeframe: in {windows} windows no bar of {coarse} has all its {fine} bars in the "
                "window and one of them hidden; lengthen data.window.seq_len, or set it to 0"
            )


def far_shares(settings: MaskingConfig, timeframes: Sequence[str], shares: Sequence[float]) -> list[str]:
    """A line for every timeframe that hides far more or less than was asked for."""
    ratios = mask_ratios(settings.mask_ratio, timeframes)
    return [
        f"masks hide {share:.0%} of {name}, and masking.mask_ratio asks for {ratio:.0%}: blocks have "
        f"{settings.span_min} to {settings.span_max} bars"
        + ", and what other timeframes hide is hidden too"
        * settings.sync_across_tf
        for name, ratio, share in zip(timeframes, ratios, shares, strict=True)
        if not 1 / _FAR <= share * (1 - ratio) / max(ratio * (1 - share), 1e-9) <= _FAR
    ]
