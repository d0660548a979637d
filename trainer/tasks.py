"""Tasks: what to feed the model, its loss, and what validation compares it with. The loop knows neither.

Shape suffixes: B batch, L bars, F features.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from cache.reader import Dataset
from trainer.config import TrainerConfig
from trainer.data import WindowSource, spread
from trainer.losses import huber
from trainer.masking import Masks, apply_masks, draw_masks, realised_ratio, window_keys
from trainer.model import MaskedAutoencoder
from trainer.prices import Scale, last_value, scale_of, to_features, true_log_prices

# Epochs number the streams of training masks from 0; validation has one of its own, so that its masks never change.
VALIDATION_STREAM = -1
TARGETS = 4  # open, high, low, close: the first columns of every feature set


@dataclass(frozen=True)
class Reconstruct:
    """Masked reconstruction: hide blocks of bars and predict their open, high, low and close."""

    config: TrainerConfig
    timeframes: tuple[str, ...]
    seq_lens: tuple[int, ...]
    bar_lengths: tuple[int, ...]  # in base bars
    features: tuple[str, ...]
    scales: tuple[Scale, ...]

    def build_model(self) -> MaskedAutoencoder:
        """The model, initialised from the seed. Raises ValueError for dimensions that do not fit."""
        torch.manual_seed(self.config.training.seed)
        settings = self.config.model
        return MaskedAutoencoder(
            len(self.features),
            self.seq_lens,
            self.bar_lengths,
            TARGETS,
            d_model=settings.d_model,
            n_layers=settings.encoder.n_layers,
            n_heads=settings.n_heads,
            mlp_ratio=settings.mlp_ratio,
            latent_stride=settings.latent_stride,
            dropout=settings.dropout,
        )

    def masks(self, stream: int, index_B: Tensor) -> Masks:
        """The masks of windows `index_B` (int64 [B]): the same whenever seed, stream and window are."""
        settings = self.config.masking
        keys = window_keys(self.config.training.seed, stream, index_B)
        return draw_masks(keys, self.seq_lens, settings.mask_ratio, settings.span_min, settings.span_max)

    def reconstruct(self, model: torch.nn.Module, x: list[Tensor], masks: Masks) -> list[Tensor]:
        """The model's open, high, low and close features, [B, L_j, 4] a timeframe; it sees only what is visible."""
        delta_close = self.features.index("delta_close") if "delta_close" in self.features else None
        predicted: list[Tensor] = model(apply_masks(x, masks, delta_close))
        return predicted

    def loss(self, predicted: list[Tensor], x: list[Tensor], masks: Masks) -> Tensor:
        """Huber on the hidden bars, the mean over timeframes; float32 scalar."""
        delta = self.config.loss.huber_delta
        terms = [
            huber(prediction, truth[..., :TARGETS], hidden, delta)
            for prediction, truth, hidden in zip(predicted, x, masks.hidden, strict=True)
        ]
        return torch.stack(terms).mean()

    def training_loss(self, model: torch.nn.Module, x: list[Tensor], epoch: int, index_B: Tensor) -> Tensor:
        """The loss of one batch under this epoch's masks."""
        masks = self.masks(epoch, index_B)
        return self.loss(self.reconstruct(model, x, masks), x, masks)

    @torch.no_grad()
    def validate(self, model: torch.nn.Module, source: WindowSource) -> dict[str, float]:
        """Loss of the model, and of carrying the last value forward, over windows spread evenly over the split."""
        training = self.config.training
        index = spread(source.val, training.val_windows)
        model.eval()
        sums = torch.zeros(2, dtype=torch.float64)
        ratios = torch.zeros(len(self.timeframes))
        for index_B in index.split(training.batch_size):
            x, masks = source.gather(index_B), self.masks(VALIDATION_STREAM, index_B.to(source.device))
            baseline = [
                carry_last(x_BLF, hidden_BL, scale)
                for x_BLF, hidden_BL, scale in zip(x, masks.hidden, self.scales, strict=True)
            ]
            losses = [self.loss(self.reconstruct(model, x, masks), x, masks), self.loss(baseline, x, masks)]
            sums += torch.stack(losses).cpu().double() * len(index_B)
            ratios += realised_ratio(masks).cpu() * len(index_B)
        model.train()
        loss, carried = (sums / len(index)).tolist()
        return {
            "loss": loss,
            "last_value_loss": carried,
            **{f"mask_ratio/{name}": float(r) for name, r in zip(self.timeframes, ratios / len(index), strict=True)},
        }


def carry_last(x_BLF: Tensor, hidden_BL: Tensor, scale: Scale) -> Tensor:
    """The last-value baseline in units of the loss: float64 [B, L, 4].

    Prices are taken relative to the close before the window, which leaves the features as they are.
    """
    scale = scale.to(x_BLF.device)
    before = torch.zeros(len(x_BLF), dtype=torch.float64, device=x_BLF.device)
    if scale.feature_set == "price":  # absolute prices: the first bar's own open stands in for the close before
        before = true_log_prices(x_BLF[:, :1], before, scale)[:, 0, 0]
    return to_features(last_value(true_log_prices(x_BLF, before, scale), before, hidden_BL), before, scale)


def reconstruct_task(config: TrainerConfig, dataset: Dataset) -> Reconstruct:
    """The task for a dataset."""
    ((_, entries),) = dataset.symbols.items()
    streams = list(entries.streams.values())
    lengths = {name: int(stream.manifest["nominal_length"]) for name, stream in entries.streams.items()}
    return Reconstruct(
        config,
        tuple(dataset.timeframes),
        tuple(dataset.seq_lens.values()),
        tuple(lengths[name] // lengths[dataset.timeframes[0]] for name in dataset.timeframes),
        tuple(streams[0].manifest["features"]),
        tuple(scale_of(stream) for stream in streams),
    )
