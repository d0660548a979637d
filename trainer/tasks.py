"""Tasks: what to feed the model, its loss, and what validation compares it with. The loop knows neither.

Shape suffixes: B batch, L bars, F features.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from cache.reader import Dataset
from trainer.config import TrainerConfig
from trainer.data import Batch, WindowSource, spread
from trainer.losses import composite, cross_timeframe, huber, price_scale
from trainer.masking import Masks, apply_masks, draw_masks, mask_ratios, realised_ratio, window_keys
from trainer.model import MaskedAutoencoder, build_model
from trainer.prices import Scale, last_value, scale_of, to_features, to_log_prices, true_log_prices
from trainer.spectral import amplitude_phase, fitting_scales, stft

# Epochs number the streams of training masks from 0; validation has one of its own, so that its masks never change.
VALIDATION_STREAM = -1
Advance = Callable[[int], object]
CHECKED_WINDOWS = 64  # at the start, for whether every term of the loss has something to work on
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

    def on(self, device: torch.device) -> "Reconstruct":
        """The same with its scales on a device, where the batches are."""
        return replace(self, scales=tuple(scale.to(device) for scale in self.scales))

    def build_model(self) -> MaskedAutoencoder:
        """The model, initialised from the seed. Raises ValueError for dimensions that do not fit."""
        torch.manual_seed(self.config.training.seed)
        return build_model(self.config.model, len(self.features), self.seq_lens, self.bar_lengths, TARGETS)

    def check(self, source: WindowSource) -> None:
        """Raise ValueError where masks or a term of the loss have nothing to work on, with the reason."""
        batch = source.gather(spread(source.train, CHECKED_WINDOWS))
        masks = self.masks(0, batch)
        weights = self.config.loss.weights
        if weights.stft:
            fitting_scales(self.config.loss.stft.n_ffts, self.seq_lens)
        if weights.cross_timeframe:
            if len(self.timeframes) == 1:
                raise ValueError(
                    "loss.weights.cross_timeframe compares timeframes, and there is only one; set it to 0, or add "
                    "another to data.timeframes"
                )
            supports = [int(support) for _, support in self._cross_timeframe(batch, batch.x, masks)]
            for fine, coarse, support in zip(self.timeframes, self.timeframes[1:], supports, strict=False):
                if not support:
                    raise ValueError(
                        f"loss.weights.cross_timeframe: in {len(batch)} windows no bar of {coarse} has all its {fine} "
                        "bars in the window and one of them hidden; lengthen data.window.seq_len, or set it to 0"
                    )

    def masks(self, stream: int, batch: Batch) -> Masks:
        """The masks of a batch: the same whenever seed, stream and window are."""
        settings = self.config.masking
        keys = window_keys(self.config.training.seed, stream, batch.index)
        ratios = mask_ratios(settings.mask_ratio, self.timeframes)
        rows = batch.rows if settings.sync_across_tf else None
        return draw_masks(keys, self.seq_lens, ratios, settings.span_min, settings.span_max, rows)

    def reconstruct(self, model: torch.nn.Module, x: list[Tensor], masks: Masks) -> list[Tensor]:
        """The model's open, high, low and close features, [B, L_j, 4] a timeframe; it sees only what is visible."""
        predicted: list[Tensor] = model(apply_masks(x, masks, [self.features.index(name) for name in self.reveals]))
        return predicted

    def losses(self, predicted: list[Tensor], batch: Batch, masks: Masks) -> dict[str, Tensor]:
        """The terms of the loss by name, and their weighted sum as `loss`; float32 scalars.

        All but the third are means over timeframes; a term whose weight is 0 is left out.

        * `huber`: hidden bars, in normalised units
        * `stft`, `amplitude_phase`: composite signals, predicted where hidden and true where visible
        * `cross_timeframe`: the mean over neighbouring timeframes with bars to compare
        """
        settings = self.config.loss
        terms: dict[str, Tensor] = {}
        for j, (prediction, x, hidden) in enumerate(zip(predicted, batch.x, masks.hidden, strict=True)):
            truth = x[..., :TARGETS]
            found = {"huber": huber(prediction, truth, hidden, settings.huber_delta)}
            signal = composite(prediction.float(), truth, hidden)
            if settings.weights.stft:
                scales = fitting_scales(settings.stft.n_ffts, self.seq_lens)
                found["stft"] = stft(signal, truth, scales[j])
            if settings.weights.amplitude_phase:
                found["amplitude_phase"] = amplitude_phase(signal, truth)
            for name, value in found.items():
                terms[name] = terms.get(name, 0) + value / len(self.timeframes)
        if settings.weights.cross_timeframe:
            values, supports = (
                torch.stack(part) for part in zip(*self._cross_timeframe(batch, predicted, masks), strict=True)
            )
            terms["cross_timeframe"] = (values.sum() / (supports > 0).sum().clamp(min=1)).float()
        weights = settings.weights.model_dump()
        total = torch.stack([weights[name] * value for name, value in terms.items()]).sum()
        return {"loss": total, **terms}

    def _cross_timeframe(self, batch: Batch, predicted: list[Tensor], masks: Masks) -> list[tuple[Tensor, Tensor]]:
        """(loss, support) of every pair of neighbouring timeframes."""
        prices = []
        for j, (prediction, x, hidden) in enumerate(zip(predicted, batch.x, masks.hidden, strict=True)):
            scale = self.scales[j]
            truth = true_log_prices(x, batch.log_before[j], scale)
            prices.append(to_log_prices(prediction[..., :TARGETS], batch.log_before[j], scale, hidden, truth))
        return [
            cross_timeframe(
                prices[j],
                prices[j + 1],
                batch.rows[j],
                batch.rows[j + 1],
                masks.hidden[j],
                price_scale(self.scales[j + 1]),
                self.config.loss.huber_delta,
                relative=self.scales[j].feature_set != "price",
            )
            for j in range(len(prices) - 1)
        ]

    def training_losses(self, model: torch.nn.Module, batch: Batch, epoch: int) -> dict[str, Tensor]:
        """The losses of one batch under this epoch's masks."""
        masks = self.masks(epoch, batch)
        return self.losses(self.reconstruct(model, batch.x, masks), batch, masks)

    @torch.no_grad()
    def validate(self, model: torch.nn.Module, source: WindowSource, advance: Advance) -> dict[str, float]:
        """Losses, correlation and realised mask ratios over windows spread evenly over the validation split.

        `correlation` is Pearson's r of predicted and true open, high, low and close, normalised and hidden, the mean
        over timeframes. `advance` hears of windows done.
        """
        model.eval()
        sums: dict[str, Tensor] = {}
        moments: list[Tensor] = []
        count = 0
        for batch, masks in self._validation_batches(source):
            predicted = self.reconstruct(model, batch.x, masks)
            found = self.losses(predicted, batch, masks)
            moments.append(torch.stack([*map(joint_moments, predicted, batch.x, masks.hidden)]))
            ratios = {
                f"mask_ratio/{name}": ratio for name, ratio in zip(self.timeframes, realised_ratio(masks), strict=True)
            }
            for name, value in {**found, **ratios}.items():
                sums[name] = sums.get(name, torch.zeros_like(value)) + value * len(batch)
            count += len(batch)
            advance(len(batch))
        model.train()
        means = {name: float(total) / count for name, total in sums.items()}
        return {**means, "correlation": float(correlations(torch.stack(moments).sum(dim=0)).mean())}

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


def joint_moments(predicted_BLP: Tensor, x_BLF: Tensor, hidden_BL: Tensor) -> Tensor:
    """Sums over the hidden bars that a correlation is made of: n, x, y, xx, yy, xy, float64 [6]."""
    shown_BL1 = hidden_BL[..., None].double()
    x, y = (values.double() * shown_BL1 for values in (predicted_BLP, x_BLF[..., :TARGETS]))
    n = shown_BL1.sum() * TARGETS
    return torch.stack([n, x.sum(), y.sum(), (x * x).sum(), (y * y).sum(), (x * y).sum()])


def correlations(moments_S6: Tensor) -> Tensor:
    """Pearson's r of every row of joint moments, float64 [S]; 0 where one of the two does not vary."""
    n, x, y, xx, yy, xy = moments_S6.unbind(-1)
    spread_S = ((xx / n - (x / n) ** 2) * (yy / n - (y / n) ** 2)).clamp(min=0).sqrt()
    return torch.where(spread_S > 0, (xy / n - x * y / n**2) / spread_S, 0)


def carry_last(x_BLF: Tensor, hidden_BL: Tensor, log_before_B: Tensor, scale: Scale) -> Tensor:
    """The last-value baseline in units of the loss: float64 [B, L, 4]."""
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
