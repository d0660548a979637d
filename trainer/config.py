"""The trainer's sections of a configuration, typed. Meanings and defaults stand in configs/training.yaml."""

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import AfterValidator, Discriminator, Field, Tag

from configs.loader import Config, Model

Count = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(gt=0, lt=1)]
Positive = Annotated[float, Field(gt=0)]
Weight = Annotated[float, Field(ge=0)]


def is_own_task(task: str) -> bool:
    """Whether `training.task` names a user's own file."""
    return task.endswith(".py")


def _task(task: str) -> str:
    if task not in ("reconstruct", "classify") and not is_own_task(task):
        raise ValueError("a task is reconstruct, classify, or a Python file, whose name ends in .py")
    return task


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

    mask_ratio: Annotated[  # told apart before they are checked, so that a fault is told once
        Annotated[Share, Tag("one")] | Annotated[dict[str, Share], Tag("each")],
        Discriminator(lambda value: "each" if isinstance(value, dict) else "one"),
    ]
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


class AugmentConfig(Model):
    """Seeded changes of training recordings."""

    noise: Weight
    scale: Weight
    time_warp: Annotated[float, Field(ge=0, lt=1)]
    rotate: Annotated[float, Field(ge=0, le=180)]
    mirror: Annotated[float, Field(ge=0, le=1)]
    mirror_axis: Literal["x", "y", "z"]
    mixup: Weight


class ClassifyConfig(Model):
    """The `classify:` section."""

    label_smoothing: Annotated[float, Field(ge=0, lt=1)]
    class_weights: Literal["balanced"] | None
    focal_gamma: Weight
    augment: AugmentConfig


class TrainingConfig(Model):
    """The `training:` section."""

    task: Annotated[str, AfterValidator(_task)]
    init_from: str | None
    seed: Annotated[int, Field(ge=0, lt=2**31)]
    max_epochs: Count
    overfit: Count | None
    shuffle_block: Count | None
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
    ema_decay: Share | None
    val_windows: Count
    monitor: str
    min_delta: Annotated[float, Field(ge=0)]
    patience: Count | None
    log_every: Count
    tensorboard: bool
    checkpoint_every: Count
    max_skipped: Count


@dataclass(frozen=True)
class TrainerConfig:
    """Everything the trainer reads from a configuration."""

    model: ModelConfig
    masking: MaskingConfig
    loss: LossConfig
    classify: ClassifyConfig
    training: TrainingConfig


def parse_trainer(config: Config) -> TrainerConfig:
    """The trainer's sections. Raises ConfigError."""
    return TrainerConfig(
        config.parse("model", ModelConfig),
        config.parse("masking", MaskingConfig),
        config.parse("loss", LossConfig),
        config.parse("classify", ClassifyConfig),
        config.parse("training", TrainingConfig),
    )
