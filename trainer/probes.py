"""Probes: what does the frozen encoder know? Ridge regressions on its embeddings, beside honest rivals.

A window's embedding is the last latent and the mean of the latents of every timeframe, concatenated (2·S·D numbers), of
the window fully visible (mask channel 0). A *horizon* is the `seq_len` base bars after the window. Asked are

* volatility  log of the root of the horizon's summed squared log-returns of base closes, beside HAR (Corsi 2009: the
              same over the last 1, 5 and 22 horizons), also with the hour of the day
* direction   sign and size of the horizon's log-return
* session     the hour of the day (UTC) at which the window ends

by the encoder, by the same encoder with the weights it began with, and by the bars themselves. Windows are thinned
until no two horizons of a symbol overlap; those of training end before validation begins. Everything is fitted, and
penalties are chosen (on the last fifth), on training windows; scored on validation windows. All in float64.

Shape suffixes: B batch, S timeframes, L bars, D latent width, F features, W windows.
"""

import math
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from cache.reader import Dataset
from trainer.data import WindowSource
from trainer.inputs import all_visible
from trainer.model import MaskedAutoencoder
from trainer.reconstruct import Reconstruct
from trainer.ridge import Array, Parts, area_under_curve, correlation, effective_rank, r_squared, ranks, ridge

HAR_HORIZONS = (1, 5, 22)
MOST = 8192  # windows of a split
FEWEST = 50
BATCH = 256
DAY = np.arange(24)
POOLING = "the last latent and the mean of the latents of every timeframe, concatenated"
_HOUR = 3600 * 10**9


@dataclass(frozen=True)
class Part:
    """The probe windows of a split: all arrays have a row a window.

    Attributes:
        index: int64, window numbers, in order of time.
        har: [W, 3], log realised volatility over the last 1, 5 and 22 horizons.
        volatility: log realised volatility of the horizon.
        log_return: of the horizon.
        time: int64, ns UTC, when the window ends.
    """

    index: NDArray[np.int64]
    har: Array
    volatility: Array
    log_return: Array
    time: NDArray[np.int64]

    @property
    def hour(self) -> NDArray[np.int64]:
        """int64, of the day."""
        return self.time // _HOUR % 24


def probe_encoder(
    model: MaskedAutoencoder, task: Reconstruct, dataset: Dataset, source: WindowSource
) -> dict[str, Any]:
    """All probes, as they go into JSON (NaN is None); with too few windows only the `reason`."""
    train, val = probe_windows(dataset, source)
    horizon = source.seq_lens[0]
    about: dict[str, Any] = {
        "pooling": POOLING,
        "feature_set": task.scales[0].feature_set,
        "horizon_bars": horizon,
        "symbols": len(source.symbols),
        "train_windows": len(train.index),
        "val_windows": len(val.index),
    }
    if min(len(train.index), len(val.index)) < FEWEST:
        return about | {
            "reason": f"{len(train.index)} training and {len(val.index)} validation windows have horizons of {horizon} "
            f"base bars that do not overlap; probes need {FEWEST} of both"
        }
    untrained = task.build_model().to(source.device)  # the weights the run began with
    inputs = {
        "encoder": (embed(model, task, source, train.index), embed(model, task, source, val.index)),
        "untrained": (embed(untrained, task, source, train.index), embed(untrained, task, source, val.index)),
        "raw_window": (raw_windows(source, train.index), raw_windows(source, val.index)),
    }
    har = train.har, val.har
    rivals = {
        "har": har,
        "har_and_hour": _beside(har, (_one_hot(train.hour, DAY), _one_hot(val.hour, DAY))),
        "har_and_encoder": _beside(inputs["encoder"], har),
    }
    hours = np.unique(train.hour)
    targets = [train.volatility[:, None], train.log_return[:, None], np.sign(train.log_return)[:, None]]
    found = {name: ridge(x, [*targets, _one_hot(train.hour, hours)]) for name, x in inputs.items()}
    volatility = {name: of[0] for name, of in found.items()}
    volatility |= {name: ridge(x, targets[:1])[0] for name, x in rivals.items()}
    signed = val.log_return != 0
    return about | {
        "volatility": {name: _volatility(of[:, 0], train, val) for name, of in volatility.items()},
        "direction": {
            "n": int(signed.sum()),
            "majority_accuracy": _majority(train.log_return > 0, val.log_return[signed] > 0),
            **{name: _direction(of[1][:, 0], of[2][:, 0], val) for name, of in found.items()},
        },
        "session": {"reason": "all training windows end in the same hour of the day"}
        if len(hours) < 2
        else {
            "classes": len(hours),
            "majority": _majority(train.hour, val.hour),
            **{name: float((hours[of[3].argmax(axis=1)] == val.hour).mean()) for name, of in found.items()},
        },
        "effective_rank": {
            name: {"rank": effective_rank(inputs[name][0]), "of": min(len(train.index) - 1, inputs[name][0].shape[1])}
            for name in ("encoder", "untrained")
        },
    }


def probe_windows(dataset: Dataset, source: WindowSource) -> tuple[Part, Part]:
    """Windows for training and validation whose horizons do not overlap in their symbol, with their targets."""
    train = [
        _of_symbol(dataset, source, *one, int(dataset.splits["val"]["from"])) for one in source.by_symbol(source.train)
    ]
    return _together(train), _together([_of_symbol(dataset, source, *one) for one in source.by_symbol(source.val)])


def _of_symbol(
    dataset: Dataset, source: WindowSource, symbol: str, own: range, here: range, until: int | None = None
) -> Part:
    """Those of a symbol whose horizons end by `until`, or by its last bar."""
    entries = dataset.symbols[symbol]
    base, horizon = entries.streams[dataset.timeframes[0]], source.seq_lens[0]
    close_time, log_close = base.array("close_time"), np.log(base.array("close"))
    ends_W = entries.windows.array("ends")[own.start : own.stop, 0].astype(np.int64)
    # squared log-returns of rows 1 … r, summed
    squares = np.concatenate([[0.0], np.cumsum(np.diff(log_close) ** 2)])
    last_row = np.minimum(ends_W + horizon, len(log_close)) - 1
    known = last_row - ends_W == horizon - 1
    known &= close_time[last_row] <= (close_time[-1] if until is None else until)
    known &= ends_W > HAR_HORIZONS[-1] * horizon
    places = np.flatnonzero(known)
    places = places[thinned(ends_W[places], horizon)]
    at = ends_W[places] - 1  # the row of the window's last base bar
    har = np.stack([_log_volatility(squares[at] - squares[at - n * horizon]) for n in HAR_HORIZONS], axis=1)
    future = _log_volatility(squares[at + horizon] - squares[at])
    times = entries.windows.array("time")[own.start : own.stop][places]
    return Part(here.start + places, har, future, log_close[at + horizon] - log_close[at], times)


def _together(parts: list[Part]) -> Part:
    """All symbols in order of time, at most MOST windows spread evenly over it."""
    joined = [np.concatenate([getattr(part, field.name) for part in parts]) for field in fields(Part)]
    order = np.argsort(joined[-1], kind="stable")
    if len(order) > MOST:
        order = order[np.linspace(0, len(order) - 1, MOST).astype(np.int64)]
    return Part(*(array[order] for array in joined))


def thinned(ends: NDArray[np.int64], horizon: int) -> NDArray[np.int64]:
    """The places of rows (rising) at least `horizon` apart, as many as there are: int64."""
    places, at = [], 0
    while at < len(ends):
        places.append(at)
        at = int(np.searchsorted(ends, ends[at] + horizon))
    return np.array(places, dtype=np.int64)


@torch.no_grad()
def embed(model: MaskedAutoencoder, task: Reconstruct, source: WindowSource, index_W: NDArray[np.int64]) -> Array:
    """Embeddings of whole windows: float64 [W, 2·S·D]."""
    was_training = model.training
    model.eval()
    rows = []
    for index_B in torch.from_numpy(index_W).split(BATCH):
        batch = source.gather(index_B)
        latents = model.latents(task.inputs(batch, all_visible(batch.x)))
        pooled = [part for latent in latents for part in (latent[:, -1], latent.mean(dim=1))]
        rows.append(torch.cat(pooled, dim=1).double().cpu().numpy())
    model.train(was_training)
    return np.concatenate(rows)


def raw_windows(source: WindowSource, index_W: NDArray[np.int64]) -> Array:
    """The windows themselves, all timeframes and features side by side: float64 [W, ΣL_j·F]."""
    parts = (source.gather(index_B).x for index_B in torch.from_numpy(index_W).split(BATCH))
    return np.concatenate([torch.cat([x.flatten(1) for x in part], dim=1).double().cpu().numpy() for part in parts])


def _log_volatility(squares: Array) -> Array:
    """Log of the root of summed squares; a market that stood still counts as one move of 1e-8."""
    return np.asarray(np.log(np.maximum(squares, 1e-16)) / 2)


def _volatility(predicted: Array, train: Part, val: Part) -> dict[str, Any]:
    return {
        "r2": _number(r_squared(predicted, val.volatility, float(train.volatility.mean()))),
        "correlation": _number(correlation(predicted, val.volatility)),
    }


def _direction(size: Array, score: Array, val: Part) -> dict[str, Any]:
    """How well sign (by `score`) and size are told. Horizons without any return have no sign and do not count for it.

    Errors are the standard errors of what chance would score. For accuracy they hold whatever the inputs are. AUC and
    rank IC compare validation windows with each other: where inputs carry the price itself, whatever was high is seen
    to fall later even in a random walk, in training as in validation (Stambaugh 1999), and chance scores above chance.
    """
    signed = val.log_return != 0
    up, n = val.log_return[signed] > 0, int(signed.sum())
    m = int(up.sum())
    return {
        "accuracy": _number(float(((score[signed] > 0) == up).mean()) if n else math.nan),
        "accuracy_error": _number(0.5 / math.sqrt(n) if n else math.nan),
        "auc": _number(area_under_curve(score[signed], up)),
        "auc_error": _number(math.sqrt((n + 1) / (12 * m * (n - m))) if 0 < m < n else math.nan),
        "rank_ic": _number(correlation(ranks(size), ranks(val.log_return))),
        "rank_ic_error": 1 / math.sqrt(len(size) - 1),
    }


def _beside(x: Parts, more: Parts) -> Parts:
    return np.hstack([x[0], more[0]]), np.hstack([x[1], more[1]])


def _one_hot(values: NDArray[np.int64], classes: NDArray[np.int64]) -> Array:
    return np.asarray(values[:, None] == classes, dtype=np.float64)


def _majority(train: NDArray[Any], val: NDArray[Any]) -> float | None:
    """Share of validation cases that are of the class most frequent in training."""
    classes, counts = np.unique(train, return_counts=True)
    return float((val == classes[counts.argmax()]).mean()) if len(val) else None


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None
