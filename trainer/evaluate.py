"""Evaluation of a reconstruction run: model beside baselines, on the hidden positions of the whole validation split.

* correlation_per_tf      Pearson r of levels (log close), log-returns (log close − log close before) and log-ranges
                          (log high − log low); NaN below 30 positions
* reconstruction_quality  MSE, MAE and RMSE over open, high, low and close in normalised units; share of valid bars
* spectral_delta          how far the power spectra of the composites (prediction where hidden, truth elsewhere) lie
                          from those of the truth
* consistency_ratio       share of coarse bars that are what their predicted children make, within half a tick

Baselines: the last value carried forward, a straight line across the block and, for log-ranges, the mean of the hour of
the week over training bars. trainer/metrics.py has the definitions.

Shape suffixes: B batch, L bars, P prices (open, high, low, close), F features, W weeks, R resamples.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cache.reader import Dataset
from cache.timeframes import DAY_NS
from trainer.data import Batch, WindowSource
from trainer.masking import Masks
from trainer.metrics import TimeOfWeek, resampled_weeks, tick_of, weeks_of
from trainer.prices import last_value, straight_line, to_features, to_log_prices, true_log_prices
from trainer.reconstruct import TARGETS, VALIDATION_STREAM, Reconstruct
from trainer.scores import Consistency, Scores, consistency_result, summary

BATCH = 256


@torch.no_grad()
def evaluate(
    model: torch.nn.Module,
    task: Reconstruct,
    dataset: Dataset,
    source: WindowSource,
    advance: Callable[[int], None],
) -> dict[str, Any]:
    """Score the whole validation split, as it goes into JSON (NaN is None).

    Gives "correlation_per_tf", "reconstruction_quality", "spectral_delta", "consistency_ratio" and "summary". `advance`
    hears of windows done.
    """
    ((_, entries),) = dataset.symbols.items()
    streams, val = list(entries.streams.values()), slice(source.val.start, source.val.stop)
    times_V, ends_VS = entries.windows.array("time")[val], entries.windows.array("ends")[val]
    week_numbers, week_V = np.unique(weeks_of(times_V), return_inverse=True)
    weeks = len(week_numbers)
    hourly = [TimeOfWeek.fitted(stream, int(dataset.splits["train"]["until"])) for stream in streams]
    scores = [Scores(weeks, length) for length in source.seq_lens]
    tick = tick_of(streams[0].array("close"))
    consistency = [Consistency(tick) for _ in streams[1:]]
    model.eval()
    for place_B in torch.arange(len(source.val)).split(BATCH):
        batch, masks, predicted = reconstruct(model, task, source, place_B + source.val.start)
        week_B, truths, guesses = week_V[place_B.numpy()], [], []
        for j, score in enumerate(scores):
            hidden, before = masks.hidden[j], batch.log_before[j]
            scale, targets = task.scales[j], batch.x[j][..., :TARGETS]
            truth = true_log_prices(targets, before, scale)
            prices = {
                "model": to_log_prices(predicted[j], before, scale, hidden, truth),
                "last_value": last_value(truth, before, hidden),
                "straight_line": straight_line(truth, before, hidden),
            }
            score.spectra["truth"].add(targets)
            for name, log_prices in prices.items():
                features = predicted[j] if name == "model" else to_features(log_prices, before, scale)
                score.add_prices(name, log_prices, truth, before, hidden, week_B)
                score.add_features(name, features, targets, hidden, week_B)
            rows_BL = ends_VS[place_B.numpy(), j, None] + np.arange(-source.seq_lens[j], 0)
            score.add_ranges(torch.from_numpy(hourly[j].ranges(rows_BL)).to(source.device), truth, hidden, week_B)
            truths.append(truth)
            guesses.append(prices)
        for j, pair in enumerate(consistency):
            pair.add(batch.rows[j : j + 2], masks.hidden[j], truths[j : j + 2], guesses[j : j + 2])
        advance(len(place_B))

    draws_RW = resampled_weeks(weeks, task.config.training.seed)
    named = dict(zip(task.timeframes, scores, strict=True))
    result = {
        "correlation_per_tf": {name: score.correlations(draws_RW) for name, score in named.items()},
        "reconstruction_quality": {name: score.quality(draws_RW) for name, score in named.items()},
        "spectral_delta": {name: score.spectral_deltas() for name, score in named.items()},
        "consistency_ratio": consistency_result(task.timeframes, tick, consistency),
    }
    reach = max(np.median(times_V - hourly[j].close_time[ends_VS[:, j] - n]) for j, n in enumerate(source.seq_lens))
    return {**result, "summary": summary(result, len(times_V), weeks, float(reach) / DAY_NS)}


def reconstruct(
    model: torch.nn.Module, task: Reconstruct, source: WindowSource, index_B: Tensor
) -> tuple[Batch, Masks, list[Tensor]]:
    """Windows, their validation masks and the model's reconstruction."""
    batch = source.gather(index_B)
    masks = task.masks(VALIDATION_STREAM, batch)
    return batch, masks, task.reconstruct(model, batch, masks)
