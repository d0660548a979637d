"""Tasks: what to feed the model, its loss, and what validation compares it with. The loop knows neither.

Shape suffixes: B batch, L bars, F features.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from cache.reader import Dataset
from trainer.config import TrainerConfig
from trainer.data import Batch, WindowSource, spread
from trainer.losses import huber
from trainer.masking import Masks, apply_masks, draw_masks, realised_ratio, window_keys
from trainer.model import MaskedAutoencoder
from trainer.prices import Scale, last_value, scale_of, to_features, true_log_prices

# Epochs number the streams of training masks from 0; validation has one of its own, so that its masks never change.
VALIDATION_STREAM = -1
Advance = Callable[[int], object]
TARGETS = 4  # open, high, low, close: the first columns of every feature set


@dataclass(frozen=True)
class Reconstruct:
    """Masked reconstruction: hide blocks of bars and predict their open, high, low and close."""

    config: TrainerConfig
    timeframes: tuple[str, ...]
    seq_lens: tuple[int, ...]
    bar_lengths: tuple[int, ...]  # in base bars
    features: tuple[str, ...]
    reveals: tuple[str, ...]
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

    def masks(self, stream: int, batch: Batch) -> Masks:
        """The masks of a batch: the same whenever seed, stream and window are."""
        settings = self.config.masking
        keys = window_keys(self.config.training.seed, stream, batch.index)
        return draw_masks(keys, self.seq_lens, settings.mask_ratio, settings.span_min, settings.span_max)

    def reconstruct(self, model: torch.nn.Module, x: list[Tensor], masks: Masks) -> list[Tensor]:
        """The model's open, high, low and close features, [B, L_j, 4] a timeframe; it sees only what is visible."""
        predicted: list[Tensor] = model(apply_masks(x, masks, [self.features.index(name) for name in self.reveals]))
        return predicted

    def losses(self, predicted: list[Tensor], batch: Batch, masks: Masks) -> dict[str, Tensor]:
        """The terms of the loss by name, and their weighted sum as `loss`; float32 scalars.

        `huber` is that of the hidden bars, the mean over timeframes.
        """
        delta = self.config.loss.huber_delta
        terms = [
            huber(prediction, truth[..., :TARGETS], hidden, delta)
            for prediction, truth, hidden in zip(predicted, batch.x, masks.hidden, strict=True)
        ]
        total = torch.stack(terms).mean()
        return {"loss": total, "huber": total}

    def training_losses(self, model: torch.nn.Module, batch: Batch, epoch: int) -> dict[str, Tensor]:
        """The losses of one batch under this epoch's masks."""
        masks = self.masks(epoch, batch)
        return self.losses(self.reconstruct(model, batch.x, masks), batch, masks)

    @torch.no_grad()
    def validate(self, model: torch.nn.Module, source: WindowSource, advance: Advance) -> dict[str, float]:
        """Losses and realised mask ratios over windows spread evenly over the validation split.

        `advance` hears of windows done.
        """
        model.eval()
        sums: dict[str, Tensor] = {}
        count = 0
        for batch, masks in self._validation_batches(source):
            found = self.losses(self.reconstruct(model, batch.x, masks), batch, masks)
            ratios = {
                f"mask_ratio/{name}": ratio for name, ratio in zip(self.timeframes, realised_ratio(masks), strict=True)
            }
            for name, value in {**found, **ratios}.items():
                sums[name] = sums.get(name, torch.zeros_like(value)) + value * len(batch)
            count += len(batch)
            advance(len(batch))
        model.train()
        return {name: float(total) / count for name, total in sums.items()}

    @torch.no_grad()
    def baseline(self, source: WindowSource, advance: Advance) -> float:
        """The loss of carrying the last value forward, over the same windows and masks."""
        loss, count = 0.0, 0
        for batch, masks in self._validation_batches(source):
            carried = list(map(carry_last, batch.x, masks.hidden, batch.log_before, self.scales))
            loss += float(self.losses(carried, batch, masks)["loss"]) * len(batch)
            count += len(batch)
            advance(len(batch))
        return loss / count

    def _validation_batches(self, source: WindowSource) -> Iterator[tuple[Batch, Masks]]:
        training = self.config.training
        for index_B in spread(source.val, training.val_windows).split(training.batch_size):
            batch = source.gather(index_B)
            yield batch, self.masks(VALIDATION_STREAM, batch)


def carry_last(x_BLF: Tensor, hidden_BL: Tensor, log_before_B: Tensor, scale: Scale) -> Tensor:
    """The last-value baseline in units of the loss: float64 [B, L, 4]."""
    scale = scale.to(x_BLF.device)
    carried = last_value(true_log_prices(x_BLF, log_before_B, scale), log_before_B, hidden_BL)
    return to_features(carried, log_before_B, scale)


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
        tuple(streams[0].manifest["reveals"]),
        tuple(scale_of(stream) for stream in streams),
    )
