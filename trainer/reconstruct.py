"""The task `reconstruct`: hide blocks of bars, or of a recording's rows, and have the model tell what was there.

Shape suffixes: B batch, L bars, F features, C channels, N targets, G timeframes computed together, P pairs of
timeframes.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path

import torch
from torch import Tensor

from cache.part import universe_of
from cache.reader import Dataset
from trainer.clock import clock_table
from trainer.config import TrainerConfig
from trainer.data import Batch, WindowSource, spread
from trainer.layers import runs_of
from trainer.losses import composite, cross_timeframe, huber, price_scale
from trainer.masking import (
    Masks,
    apply_masks,
    check_masking,
    draw_masks,
    mask_ratios,
    model_inputs,
    realised_ratio,
    window_keys,
    without_own,
)
from trainer.model import MaskedAutoencoder
from trainer.prices import Scale, last_value, scales_of, stacked, to_features, to_log_prices, true_log_prices
from trainer.spectral import amplitude_phase, fitting_scales, fourier, frames, stft
from trainer.task import Advance

# Epochs number the streams of training masks from 0; validation has one of its own, so that its masks never change.
VALIDATION_STREAM = -1
CHECKED_WINDOWS = 64  # at the start, for whether every term of the loss has something to work on
_FAR = 2.0  # the odds of being hidden, against those asked for
TARGETS = 4  # of bars: open, high, low, close, the first columns of every feature set


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
        weights, settings = self.config.loss.weights, self.config.masking
        ratios = mask_ratios(settings.mask_ratio, self.timeframes)
        for name, length, ratio in zip(self.timeframes, self.seq_lens, ratios, strict=True):
            try:
                check_masking([length], [ratio], settings.span_min, settings.span_max)
                if weights.stft:
                    fitting_scales(self.config.loss.stft.n_ffts, [length])
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from None
        batch = source.gather(spread(source.train, CHECKED_WINDOWS))
        masks = self.masks(0, batch)
        if weights.cross_timeframe:
            if len(self.timeframes) == 1:
                raise ValueError(
                    "loss.weights.cross_timeframe compares timeframes, and there is only one; set it to 0, or, of "
                    "bars, add another to data.timeframes"
                )
            supports = self._cross_timeframe(batch, batch.x, masks)[1].tolist()
            for fine, coarse, support in zip(self.timeframes, self.timeframes[1:], supports, strict=False):
                if not support:
                    raise ValueError(
                        f"loss.weights.cross_timeframe: in {len(batch)} windows no bar of {coarse} has all its {fine} "
                        "bars in the window and one of them hidden; lengthen data.window.seq_len, or set it to 0"
                    )
        if batch.padding:  # shares of whole windows, which hold less to hide
            return []
        found = zip(self.timeframes, ratios, realised_ratio(masks).tolist(), strict=True)
        return [
            f"masks hide {share:.0%} of {name}, and masking.mask_ratio asks for {ratio:.0%}: blocks have "
            f"{settings.span_min} to {settings.span_max} bars"
            + ", and what other timeframes hide is hidden too"
            * settings.sync_across_tf
            for name, ratio, share in found
            if not 1 / _FAR <= share * (1 - ratio) / max(ratio * (1 - share), 1e-9) <= _FAR
        ]

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
            value_P, support_P = self._cross_timeframe(batch, predicted, masks)
            terms["cross_timeframe"] = (value_P.sum() / (support_P > 0).sum().clamp(min=1)).float()
        total = torch.stack([getattr(weights, name) * value for name, value in terms.items()]).sum()
        return {"loss": total, **terms}

    def _cross_timeframe(self, batch: Batch, predicted: list[Tensor], masks: Masks) -> tuple[Tensor, Tensor]:
        """Loss and support of every pair of neighbouring timeframes, each [S − 1]."""
        prices: list[Tensor] = []
        scales = self.scales_of(batch)
        for run in runs_of(self.seq_lens):
            some = slice(run.first, run.past)
            scale, before_GB = stacked(scales[some]), torch.stack(batch.log_before[some])
            truth = true_log_prices(torch.stack(batch.x[some]), before_GB, scale)
            hidden_GBL = torch.stack(masks.hidden[some])
            priced = to_log_prices(torch.stack(predicted[some])[..., :TARGETS], before_GB, scale, hidden_GBL, truth)
            prices.extend(priced.unbind(0))
        values, supports = [], []
        for _, pairs in groupby(range(len(prices) - 1), key=lambda j: self.seq_lens[j : j + 2]):
            fine = list(pairs)
            coarse = [j + 1 for j in fine]
            value_P, support_P = cross_timeframe(
                _stack(prices, fine),
                _stack(prices, coarse),
                _stack(batch.rows, fine),
                _stack(batch.rows, coarse),
                _stack(masks.hidden, fine),
                price_scale(stacked([scales[j] for j in coarse])),
                self.config.loss.huber_delta,
                relative=scales[0].feature_set != "price",
            )
            values.append(value_P)
            supports.append(support_P)
        return torch.cat(values), torch.cat(supports)

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


def joint_moments(predicted_BLP: Tensor, x_BLF: Tensor, hidden_BL: Tensor) -> Tensor:
    """Sums over the hidden bars that a correlation is made of: n, x, y, xx, yy, xy, float64 [6]."""
    shown_BL1 = hidden_BL[..., None].double()
    n_targets = predicted_BLP.shape[-1]
    x, y = (values.double() * shown_BL1 for values in (predicted_BLP, x_BLF[..., :n_targets]))
    n = shown_BL1.sum() * n_targets
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


def carry_rows(x_BLF: Tensor, hidden_BL: Tensor) -> Tensor:
    """Every hidden row as the last visible one before it, [B, L, F]; 0, the usual value, where there is none."""
    row_L = torch.arange(1, x_BLF.shape[1] + 1, device=x_BLF.device)
    last_BL = torch.where(hidden_BL, 0, row_L).cummax(dim=1).values
    with_none = torch.nn.functional.pad(x_BLF, (0, 0, 1, 0))
    return with_none.gather(1, last_BL[..., None].expand_as(x_BLF))


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


def _stack(tensors: list[Tensor], places: list[int]) -> Tensor:
    return torch.stack([tensors[j] for j in places])
