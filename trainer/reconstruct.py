"""The task `reconstruct`: hide blocks of bars, or of a recording's rows, and have the model tell what was there.

Shape suffixes: B batch, L bars, F features, C channels, N targets, G timeframes computed together, P pairs of
neighbouring timeframes.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from cache.part import universe_of
from cache.reader import Dataset
from trainer.carried import carry_last, carry_rows
from trainer.clock import clock_table
from trainer.config import TrainerConfig
from trainer.correlation import correlations, joint_moments
from trainer.data import Batch, WindowSource, spread
from trainer.inputs import apply_masks, model_inputs, without_own
from trainer.layers import runs_of
from trainer.losses import composite, huber
from trainer.masking import Masks, draw_masks, mask_ratios, realised_ratio, window_keys
from trainer.model import MaskedAutoencoder
from trainer.neighbours import neighbour_losses
from trainer.prices import TARGETS, Scale, scales_of
from trainer.reconstruct_checks import check_settings, check_supports, far_shares
from trainer.spectral import amplitude_phase, fourier, frames, stft
from trainer.task import Advance

# Epochs number the streams of training masks from 0; validation has one of its own, so that its masks never change.
VALIDATION_STREAM = -1
CHECKED_WINDOWS = 64  # at the start, for whether every term of the loss has something to work on


@dataclass(frozen=True)
class Reconstruct:
    """Masked reconstruction.

    Of bars their open, high, low and close are predicted, beside the time of week; of other streams every feature.

    Attributes:
        scales: of bars, a stream each, of all symbols; else none.
        clock: of bars `clock_table`.
        spectra: for each length of windows `frames`, of the frame lengths that fit, and `fourier`.
        own: how many columns of bars a user's file adds, the last ones, and how far they look back.
    """

    config: TrainerConfig
    timeframes: tuple[str, ...]
    seq_lens: tuple[int, ...]
    bar_lengths: tuple[int, ...]  # in base bars
    features: tuple[str, ...]
    reveals: tuple[str, ...]
    scales: tuple[Scale, ...]
    clock: Tensor
    spectra: Mapping[int, tuple[list[Tensor], Tensor]]
    own: tuple[int, int] | None = None

    @property
    def monitors(self) -> dict[str, int]:
        """What of `validate` training.monitor may name."""
        return {"loss": 1, "correlation": -1}

    @property
    def weights(self) -> dict[str, float]:
        """By term."""
        return self.config.loss.weights.model_dump()

    @property
    def n_targets(self) -> int:
        """N: the first so many features are predicted."""
        return TARGETS if self.scales else len(self.features)

    def compiled(self) -> "Reconstruct":
        """The same with losses fused by torch.compile."""
        fused = replace(self)
        vars(fused)["losses"] = torch.compile(self.losses, dynamic=False)
        return fused

    def build_model(self) -> MaskedAutoencoder:
        """The model, initialised from the seed. Raises ValueError for dimensions that do not fit."""
        torch.manual_seed(self.config.training.seed)
        n_known = self.clock.shape[1] if self.scales else 0
        return MaskedAutoencoder(
            len(self.features), n_known, self.seq_lens, self.bar_lengths, self.config.model, self.n_targets
        )

    def check(self, source: WindowSource) -> list[str]:
        """Raise ValueError where masks or a term of the loss have nothing to work on, with the reason.

        Gives a line for every timeframe that hides far more or less than was asked for.
        """
        check_settings(self.config, self.timeframes, self.seq_lens)
        batch = source.gather(spread(source.train, CHECKED_WINDOWS))
        masks = self.masks(0, batch)
        if self.config.loss.weights.cross_timeframe:
            supports = self._neighbour_losses(batch.x, batch, masks)[1].tolist()
            check_supports(self.timeframes, supports, len(batch))
        if batch.padding:  # shares of whole windows, which hold less to hide
            return []
        return far_shares(self.config.masking, self.timeframes, realised_ratio(masks).tolist())

    def scales_of(self, batch: Batch) -> list[Scale]:
        """The scales of the windows of a batch, a stream each."""
        return [scale.of(batch.symbol) for scale in self.scales]

    def masks(self, stream: int | Tensor, batch: Batch) -> Masks:
        """The masks of a batch: the same whenever seed, stream and window are."""
        settings = self.config.masking
        keys = window_keys(self.config.training.seed, stream, batch.index)
        ratios = mask_ratios(settings.mask_ratio, self.timeframes)
        rows = batch.rows if settings.sync_across_tf else None
        masks = draw_masks(keys, self.seq_lens, ratios, settings.span_min, settings.span_max, rows)
        if not batch.padding:
            return masks
        return Masks([hidden & ~padding for hidden, padding in zip(masks.hidden, batch.padding, strict=True)])

    def inputs(self, batch: Batch, masks: Masks) -> list[Tensor]:
        """What the model sees of a batch, which is what is visible: [B, L_j, C] a timeframe."""
        if batch.padding:
            masks = Masks([hidden | padding for hidden, padding in zip(masks.hidden, batch.padding, strict=True)])
        if not self.scales:
            return apply_masks(batch.x, masks, ())
        revealing = [self.features.index(name) for name in self.reveals]
        x = without_own(batch.x, masks, *self.own) if self.own else batch.x
        return model_inputs(x, masks, revealing, batch.close_time, self.clock)

    def reconstruct(self, model: torch.nn.Module, batch: Batch, masks: Masks) -> list[Tensor]:
        """What the model makes of the first N features, [B, L_j, N] a timeframe."""
        predicted: list[Tensor] = model(self.inputs(batch, masks))
        return predicted

    def losses(self, predicted: list[Tensor], batch: Batch, masks: Masks) -> dict[str, Tensor]:
        """The terms of the loss by name, and their weighted sum as `loss`; float32 scalars.

        All but the third are means over timeframes; a term whose weight is 0 is left out.

        * `huber`: hidden bars, in normalised units
        * `stft`, `amplitude_phase`: composite signals, predicted where hidden and true where visible
        * `cross_timeframe`: the mean over neighbouring timeframes with bars to compare
        """
        settings, weights = self.config.loss, self.config.loss.weights
        values: dict[str, list[Tensor]] = {}
        for run in runs_of(self.seq_lens):
            some = slice(run.first, run.past)
            prediction_GBLC, hidden_GBL = torch.stack(predicted[some]), torch.stack(masks.hidden[some])
            truth_GBLC = torch.stack(batch.x[some])[..., : self.n_targets]
            found = {"huber": huber(prediction_GBLC, truth_GBLC, hidden_GBL, settings.huber_delta)}
            framed, whole = self.spectra[run.length]
            signal_GBLC = composite(prediction_GBLC.float(), truth_GBLC, hidden_GBL)
            if weights.stft:
                found["stft"] = stft(signal_GBLC, truth_GBLC, framed)
            if weights.amplitude_phase:
                found["amplitude_phase"] = amplitude_phase(signal_GBLC, truth_GBLC, whole)
            for name, value_G in found.items():
                values.setdefault(name, []).append(value_G)
        terms = {name: torch.cat(parts).mean() for name, parts in values.items()}
        if weights.cross_timeframe:
            value_P, support_P = self._neighbour_losses(predicted, batch, masks)
            terms["cross_timeframe"] = (value_P.sum() / (support_P > 0).sum().clamp(min=1)).float()
        total = torch.stack([getattr(weights, name) * value for name, value in terms.items()]).sum()
        return {"loss": total, **terms}

    def _neighbour_losses(self, predicted: list[Tensor], batch: Batch, masks: Masks) -> tuple[Tensor, Tensor]:
        delta = self.config.loss.huber_delta
        return neighbour_losses(predicted, batch, masks, self.scales_of(batch), self.seq_lens, delta)

    def drawn(self, batch: Batch, epoch: int | Tensor) -> list[Tensor]:
        """The masks of this epoch, and the model's inputs under them, a timeframe each."""
        masks = self.masks(epoch, batch)
        return [*masks.hidden, *self.inputs(batch, masks)]

    def training_losses(self, model: torch.nn.Module, batch: Batch, drawn: list[Tensor]) -> dict[str, Tensor]:
        """The losses of one batch under its masks."""
        hidden, inputs = drawn[: len(batch.x)], drawn[len(batch.x) :]
        predicted: list[Tensor] = model(inputs)
        with torch.autocast(batch.index.device.type, enabled=False):  # in float32, and its gradients too
            return self.losses(predicted, batch, Masks(hidden))

    @torch.no_grad()
    def validate(self, model: torch.nn.Module, source: WindowSource, advance: Advance) -> dict[str, float]:
        """Losses, correlation and realised mask ratios over windows spread evenly over the validation split.

        `correlation` is Pearson's r of predicted and true features, normalised and hidden, the mean over timeframes.
        `advance` hears of windows done.
        """
        model.eval()
        sums: dict[str, Tensor] = {}
        moments: list[Tensor] = []
        count = 0
        for batch, masks in self._validation_batches(source):
            predicted = self.reconstruct(model, batch, masks)
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
    def baseline(self, source: WindowSource, advance: Advance) -> dict[str, float]:
        """The loss of carrying the last value forward, over the same windows and masks."""
        loss, count = 0.0, 0
        for batch, masks in self._validation_batches(source):
            if self.scales:
                carried = list(map(carry_last, batch.x, masks.hidden, batch.log_before, self.scales_of(batch)))
            else:
                carried = list(map(carry_rows, batch.x, masks.hidden))
            loss += float(self.losses(carried, batch, masks)["loss"]) * len(batch)
            count += len(batch)
            advance(len(batch))
        return {"last_value_loss": loss / count}

    def told(self, validation: Mapping[str, float]) -> str:
        """A validation in a line."""
        return (
            f"validation loss {validation['loss']:.4f} (last value carried: {validation['last_value_loss']:.4f}), "
            f"correlation {validation['correlation']:.3f}"
        )

    def finish(self, model: torch.nn.Module, source: WindowSource, run: Path, advance: Advance) -> dict[str, float]:
        """Nothing is left to do."""
        return {}

    def _validation_batches(self, source: WindowSource) -> Iterator[tuple[Batch, Masks]]:
        training = self.config.training
        for index_B in spread(source.val, training.val_windows).split(training.batch_size):
            batch = source.gather(index_B)
            yield batch, self.masks(0 if training.overfit else VALIDATION_STREAM, batch)  # 0: that of training, then


def reconstruct_task(
    config: TrainerConfig, dataset: Dataset, device: torch.device, fold: int | None = None
) -> Reconstruct:
    """The task for a dataset, or a fold of it, with its tensors on the device where the batches are."""
    named = universe_of(dataset, fold).streams
    streams = list(named.values())
    lengths = [int(stream.manifest.get("nominal_length", 1)) for stream in streams]
    scales = [] if dataset.folds else scales_of(dataset, str(streams[0].manifest["feature_set"]))
    return Reconstruct(
        config,
        tuple(named),
        tuple(dataset.seq_lens.values()),
        tuple(length // lengths[0] for length in lengths),
        tuple(streams[0].manifest["features"]),
        tuple(streams[0].manifest.get("reveals", ())),
        tuple(scale.to(device) for scale in scales),
        clock_table().to(device),
        {length: _spectra(length, config.loss.stft.n_ffts, device) for length in set(dataset.seq_lens.values())},
        (len(own["columns"]), own["lookback"]) if (own := streams[0].manifest.get("own")) else None,
    )


def _spectra(length: int, n_ffts: Sequence[int], device: torch.device) -> tuple[list[Tensor], Tensor]:
    framed = [frames(length, n_fft, device) for n_fft in n_ffts if 4 <= n_fft <= length]
    return framed, fourier(length, device)
