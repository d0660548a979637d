"""Tasks: what to feed the model, its loss, and what validation compares it with. The loop knows neither.

Shape suffixes: B batch, L bars, F features.
"""

from collections.abc import Callable, Iterator
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

    def masks(self, stream: int, index_B: Tensor) -> Masks:
        """The masks of windows `index_B` (int64 [B]): the same whenever seed, stream and window are."""
        settings = self.config.masking
        keys = window_keys(self.config.training.seed, stream, index_B)
        return draw_masks(keys, self.seq_lens, settings.mask_ratio, settings.span_min, settings.span_max)

    def reconstruct(self, model: torch.nn.Module, x: list[Tensor], masks: Masks) -> list[Tensor]:
        """The model's open, high, low and close features, [B, L_j, 4] a timeframe; it sees only what is visible."""
        predicted: list[Tensor] = model(apply_masks(x, masks, [self.features.index(name) for name in self.reveals]))
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
    def validate(self, model: torch.nn.Module, source: WindowSource, advance: Advance) -> dict[str, float]:
        """Loss and realised mask ratios over windows spread evenly over the validation split.

        `advance` hears of windows done.
        """
        model.eval()
        loss, ratios, count = torch.zeros((), device=source.device), torch.zeros(len(self.timeframes)), 0
        for x, masks in self._validation_batches(source):
            loss += self.loss(self.reconstruct(model, x, masks), x, masks) * len(x[0])
            ratios += realised_ratio(masks).cpu() * len(x[0])
            count += len(x[0])
            advance(len(x[0]))
        model.train()
        names = (f"mask_ratio/{name}" for name in self.timeframes)
        return {"loss": float(loss) / count, **dict(zip(names, (ratios / count).tolist(), strict=True))}

    @torch.no_grad()
    def baseline(self, source: WindowSource, advance: Advance) -> float:
        """The loss of carrying the last value forward, over the same windows and masks."""
        loss, count = 0.0, 0
        for x, masks in self._validation_batches(source):
            carried = map(carry_last, x, masks.hidden, self.scales)
            loss += float(self.loss(list(carried), x, masks)) * len(x[0])
            count += len(x[0])
            advance(len(x[0]))
        return loss / count

    def _validation_batches(self, source: WindowSource) -> Iterator[tuple[list[Tensor], Masks]]:
        training = self.config.training
        for index_B in spread(source.val, training.val_windows).split(training.batch_size):
            yield source.gather(index_B), self.masks(VALIDATION_STREAM, index_B.to(source.device))


def carry_last(x_BLF: Tensor, hidden_BL: Tensor, scale: Scale) -> Tensor:
    """The last-value baseline in units of the loss: float64 [B, L, 4].

    Prices are taken relative to the close before the window, which leaves the features as they are.
    """
    scale = scale.to(x_BLF.device)
    before = torch.zeros(len(x_BLF), dtype=torch.float64, device=x_BLF.device)
    if scale.feature_set == "price":  # absolute prices: the first visible open stands in for the close before
        first_B = (~hidden_BL).int().argmax(dim=1)
        before = true_log_prices(x_BLF, before, scale)[torch.arange(len(x_BLF), device=x_BLF.device), first_B, 0]
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
        tuple(streams[0].manifest["reveals"]),
        tuple(scale_of(stream) for stream in streams),
    )
