"""The trainer's sections of a configuration, typed. Meanings and defaults stand in configs/base.yaml."""

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from configs.loader import Config, Model

Count = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(gt=0, lt=1)]
Positive = Annotated[float, Field(gt=0)]
Weight = Annotated[float, Field(ge=0)]


class EncoderConfig(Model):
    """The shared encoder."""

    n_layers: Count


class ModelConfig(Model):
    """The `model:` section."""

    d_model: Count
    n_heads: Count
    mlp_ratio: Positive
    latent_stride: Count
    dropout: Annotated[float, Field(ge=0, lt=1)]
    instance_norm: bool
    encoder: EncoderConfig


class MaskingConfig(Model):
    """The `masking:` section."""

    mask_ratio: Share | dict[str, Share]
    span_min: Count
    span_max: Count
    sync_across_tf: bool


class LossWeights(Model):
    """What each term of the loss counts; 0 leaves it out."""

    huber: Positive
    stft: Weight
    cross_timeframe: Weight
    amplitude_phase: Weight


class StftConfig(Model):
    """The multi-resolution STFT."""

    n_ffts: Annotated[list[Count], Field(min_length=1)]


class LossConfig(Model):
    """The `loss:` section."""

    weights: LossWeights
    huber_delta: Positive
    stft: StftConfig


class TrainingConfig(Model):
    """The `training:` section."""

    seed: Annotated[int, Field(ge=0, lt=2**31)]
    max_epochs: Count
    overfit: Count | None
    steps_per_epoch: Count | None
    batch_size: Count
    accumulate: Count
    precision: Literal["fp32", "bf16", "fp16"]
    step: Literal["eager", "graph", "compile"]
    lr: Positive
    warmup: Share
    betas: Annotated[list[Annotated[float, Field(ge=0, lt=1)]], Field(min_length=2, max_length=2)]
    weight_decay: Annotated[float, Field(ge=0)]
    clip_norm: Positive
    val_windows: Count
    monitor: Literal["loss", "correlation"]
    min_delta: Annotated[float, Field(ge=0)]
    patience: Count | None
    log_every: Count
    checkpoint_every: Count
    max_skipped: Count


@dataclass(frozen=True)
class TrainerConfig:
    """Everything the trainer reads from a configuration."""

    model: ModelConfig
    masking: MaskingConfig
    loss: LossConfig
    training: TrainingConfig


def parse_trainer(config: Config) -> TrainerConfig:
    """The trainer's sections. Raises ConfigError."""
    return TrainerConfig(
        config.parse("model", ModelConfig),
        config.parse("masking", MaskingConfig),
        config.parse("loss", LossConfig),
        config.parse("training", TrainingConfig),
    )
