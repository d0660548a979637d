"""What live inference runs: a run's model, and its way from windows that hide nothing to embeddings.

Shape suffixes as in trainer/encode.py.
"""

from typing import Any

from torch import Tensor, nn

from cache.layout import SEQUENCES
from trainer.classifier import Classifier
from trainer.clock import CLOCK_CHANNELS, clock_table
from trainer.config import ModelConfig
from trainer.described import OWN_TASK
from trainer.inputs import all_visible, apply_masks, model_inputs
from trainer.masking import Masks
from trainer.model import MaskedAutoencoder, WindowModel


def model_of(described: dict[str, Any], settings: ModelConfig) -> WindowModel:
    """The model that an encoder.json describes, with weights that are still to be loaded."""
    n_features = len(described["features"]["columns"])
    seq_lens, bar_lengths = (tuple(described[name].values()) for name in ("seq_lens", "bar_lengths"))
    if described["task"] == "classify":
        n_classes = tuple(map(len, described["classes"].values()))
        return Classifier(n_features, seq_lens, bar_lengths, settings, n_classes)
    if described["task"].startswith(OWN_TASK):
        n_known = 0 if described["kind"] == SEQUENCES else CLOCK_CHANNELS
        return WindowModel(n_features, n_known, seq_lens, bar_lengths, settings)
    if described["kind"] == SEQUENCES:
        return MaskedAutoencoder(n_features, 0, seq_lens, bar_lengths, settings, n_features)
    return MaskedAutoencoder(n_features, CLOCK_CHANNELS, seq_lens, bar_lengths, settings)


class WindowEncoder(nn.Module):
    """A model's way from windows that hide nothing to embeddings."""

    clock: Tensor

    def __init__(self, model: WindowModel) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("clock", clock_table(), persistent=False)

    def forward(self, x: list[Tensor], close_time: list[Tensor]) -> Tensor:
        """Features [B, L_j, F] and close times [B, L_j] a timeframe → [B, S, latent_len, d_model]."""
        return self.model.encode(model_inputs(x, all_visible(x), (), close_time, self.clock))


class RecordingProgram(nn.Module):
    """The same for recordings."""

    def __init__(self, model: WindowModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: list[Tensor], padding: list[Tensor]) -> Tensor:
        """Features [B, L, F] and padding [B, L] → [B, 1, latent_len, d_model]."""
        return self.model.encode(apply_masks(x, Masks(padding), ()))
