"""Evaluation of a reconstruction run: model beside baselines, on the hidden positions of a whole part of validation.

* correlation_per_tf      Pearson r of levels (log close), log-returns (log close − log close before) and log-ranges
                          (log high − log low); NaN below 30 positions. Levels of each symbol are relative to the close
                          before its first window: that symbols differ in price is nothing to be told
* reconstruction_quality  MSE, MAE and RMSE over open, high, low and close in normalised units; share of valid bars
* spectral_delta          how far the power spectra of the composites (prediction where hidden, truth elsewhere) lie
                          from those of the truth
* consistency_ratio       share of coarse bars that are what their predicted children make, within half a tick

Baselines: the last value carried forward, a straight line across the block and, for log-ranges, the mean of the hour of
the week over training bars, symbol by symbol. trainer/metrics.py has the definitions.

Shape suffixes: B batch, L bars, P prices (open, high, low, close), F features, W weeks, R resamples.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cache.reader import Dataset
from cache.timeframes import DAY_NS
from trainer.data import Batch, WindowSource
from trainer.masking import Masks
from trainer.metrics import TimeOfWeek, resampled_weeks, tick_of, weeks_of
from trainer.prices import TARGETS, last_value, straight_line, to_features, to_log_prices, true_log_prices
from trainer.reconstruct import VALIDATION_STREAM, Reconstruct
from trainer.scores import Consistency, Scores, consistency_result, summary

BATCH = 256


@dataclass(frozen=True)
class Totals:
    """What the symbols add up to: scores a timeframe, consistency a pair of neighbours; weeks int64 [W], rising."""

    weeks: NDArray[np.int64]
    scores: list[Scores]
    consistency: list[Consistency]


@torch.no_grad()
def evaluate(
    model: torch.nn.Module,
    task: Reconstruct,
    dataset: Dataset,
    source: WindowSource,
    advance: Callable[[int], None],
) -> dict[str, Any]:
    """Score all windows of `source.val`, as it goes into JSON (NaN is None).

    Gives "correlation_per_tf", "reconstruction_quality", "spectral_delta", "consistency_ratio" and "summary". `advance`
    hears of windows done.
    """
    parts = list(source.by_symbol(source.val))
    weeks = [np.unique(weeks_of(_times(dataset, symbol, own))) for symbol, own, _ in parts]
    totals = Totals(np.unique(np.concatenate(weeks)), [], [Consistency() for _ in task.timeframes[1:]])
    totals.scores.extend(Scores(len(totals.weeks), length) for length in source.seq_lens)
    model.eval()
    found = [_add_symbol(totals, model, task, dataset, source, *part, advance) for part in parts]

    draws_RW = resampled_weeks(len(totals.weeks), task.config.training.seed)
    named = dict(zip(task.timeframes, totals.scores, strict=True))
    ticks, reaches = zip(*found, strict=True)
    result = {
        "correlation_per_tf": {name: score.correlations(draws_RW) for name, score in named.items()},
        "reconstruction_quality": {name: score.quality(draws_RW) for name, score in named.items()},
        "spectral_delta": {name: score.spectral_deltas() for name, score in named.items()},
        "consistency_ratio": consistency_result(task.timeframes, ticks, totals.consistency),
    }
    return {**result, "summary": summary(result, len(source.val), len(totals.weeks), max(reaches) / DAY_NS)}


def _add_symbol(
    totals: Totals,
    model: torch.nn.Module,
    task: Reconstruct,
    dataset: Dataset,
    source: WindowSource,
    symbol: str,
    own: range,
    here: range,
    advance: Callable[[int], None],
) -> tuple[float, float]:
    """Take in the windows of a symbol, which are `own` among its own; its tick, and how far back they reach, ns."""
    entries = dataset.symbols[symbol]
    streams = list(entries.streams.values())
    times_V, ends_VS = _times(dataset, symbol, own), entries.windows.rows("ends", own.start, own.stop)
    week_V = np.searchsorted(totals.weeks, weeks_of(times_V))
    hourly = [TimeOfWeek.fitted(stream, int(dataset.splits["train"]["until"])) for stream in streams]
    tick = tick_of(streams[0].array("close"))
    origins: list[Tensor] = []
    for place_B in torch.arange(len(own)).split(BATCH):
        batch, masks, predicted = reconstruct(model, task, source, place_B + here.start)
        week_B, truths, guesses = week_V[place_B.numpy()], [], []
        origins = origins or [before[0].clone() for before in batch.log_before]
        for j, (score, scale, origin) in enumerate(zip(totals.scores, task.scales_of(batch), origins, strict=True)):
            hidden, before, targets = masks.hidden[j], batch.log_before[j], batch.x[j][..., :TARGETS]
            truth = true_log_prices(targets, before, scale)
            prices = {
                "model": to_log_prices(predicted[j], before, scale, hidden, truth),
                "last_value": last_value(truth, before, hidden),
                "straight_line": straight_line(truth, before, hidden),
            }
            score.spectra["truth"].add(targets)
            for name, log_prices in prices.items():
                features = predicted[j] if name == "model" else to_features(log_prices, before, scale)
                score.add_prices(name, log_prices - origin, truth - origin, before - origin, hidden, week_B)
                score.add_features(name, features, targets, hidden, week_B)
            rows_BL = ends_VS[place_B.numpy(), j, None] + np.arange(-source.seq_lens[j], 0)
            score.add_ranges(torch.from_numpy(hourly[j].ranges(rows_BL)).to(source.device), truth, hidden, week_B)
            truths.append(truth)
            guesses.append(prices)
        for j, pair in enumerate(totals.consistency):
            pair.add(tick, batch.rows[j : j + 2], masks.hidden[j], truths[j : j + 2], guesses[j : j + 2])
        advance(len(place_B))
    begins = [hourly[j].close_time[ends_VS[:, j] - length] for j, length in enumerate(source.seq_lens)]
    return tick, max(float(np.median(times_V - begin)) for begin in begins)


def _times(dataset: Dataset, symbol: str, own: range) -> NDArray[np.int64]:
    return dataset.symbols[symbol].windows.rows("time", own.start, own.stop)


def reconstruct(
    model: torch.nn.Module, task: Reconstruct, source: WindowSource, index_B: Tensor
) -> tuple[Batch, Masks, list[Tensor]]:
    """Windows, their validation masks and the model's reconstruction."""
    batch = source.gather(index_B)
    masks = task.masks(VALIDATION_STREAM, batch)
    return batch, masks, task.reconstruct(model, batch, masks)
