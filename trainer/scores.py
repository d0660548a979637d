"""Scores of model and baselines as they add up over batches, and as they go into JSON.

Shape suffixes: B batch, L bars, C bars of the coarser timeframe, P prices (open, high, low, close), K frequencies,
R resamples, W weeks.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trainer.metrics import (
    FEWEST_WEEKS,
    Pairs,
    WeeklySums,
    aggregate,
    children_of,
    interval,
    ohlc_valid,
    pearson,
    segment_length,
    some_child,
    spectral_delta,
    welch,
)
from trainer.prices import TARGETS

PREDICTORS = ("model", "last_value", "straight_line")
QUANTITIES = ("level", "log_return", "log_range")
TIME_OF_WEEK = "time_of_week"


class Spectrum:
    """Welch's spectrum of the windows of a timeframe, summed."""

    def __init__(self, length: int) -> None:
        self.segment = segment_length(length)
        self.sum_PK = np.zeros((TARGETS, self.segment // 2))

    def add(self, signal_BLP: Tensor) -> None:
        """Take in windows of normalised features [B, L, 4]."""
        self.sum_PK += welch(signal_BLP, self.segment).cpu().numpy()


class Scores:
    """What model and baselines score in one timeframe."""

    def __init__(self, weeks: int, length: int) -> None:
        keys = [(predictor, quantity) for quantity in QUANTITIES for predictor in PREDICTORS]
        self.pairs = {key: Pairs(weeks) for key in [*keys, (TIME_OF_WEEK, "log_range")]}
        # of every predictor: squared errors, absolute errors, values, valid bars, bars
        self.errors = {predictor: WeeklySums(weeks, 5) for predictor in PREDICTORS}
        self.spectra = {name: Spectrum(length) for name in ("truth", *PREDICTORS)}
        self.weeks = weeks

    def add_prices(
        self,
        predictor: str,
        log_BLP: Tensor,
        truth_BLP: Tensor,
        log_before_B: Tensor,
        hidden_BL: Tensor,
        week_B: NDArray[np.int64],
    ) -> None:
        """Take in log prices [B, L, 4], predicted where hidden and true elsewhere, float64."""
        for quantity, function in _QUANTITIES.items():
            x, y = function(log_BLP, log_before_B), function(truth_BLP, log_before_B)
            self.pairs[predictor, quantity].add_pairs(x, y, hidden_BL, week_B)
        counts = torch.zeros((len(hidden_BL), 5), dtype=torch.float64)
        counts[:, 3] = (ohlc_valid(log_BLP) & hidden_BL).sum(dim=1)
        counts[:, 4] = hidden_BL.sum(dim=1)
        self.errors[predictor].add(counts, week_B)

    def add_features(
        self, predictor: str, predicted_BLP: Tensor, truth_BLP: Tensor, hidden_BL: Tensor, week_B: NDArray[np.int64]
    ) -> None:
        """Take in normalised features [B, L, 4]; of the predicted ones those of hidden bars are read."""
        composite = torch.where(hidden_BL[..., None], predicted_BLP.double(), truth_BLP.double())
        self.spectra[predictor].add(composite)
        error = composite - truth_BLP.double()
        values = hidden_BL.sum(dim=1) * TARGETS
        nothing = torch.zeros_like(values)
        columns = [error.square().sum(dim=(1, 2)), error.abs().sum(dim=(1, 2)), values, nothing, nothing]
        self.errors[predictor].add(torch.stack([column.double() for column in columns], dim=-1), week_B)

    def add_ranges(self, expected_BL: Tensor, truth_BLP: Tensor, hidden_BL: Tensor, week_B: NDArray[np.int64]) -> None:
        """Take in the log ranges that the time of the week makes one expect, and true log prices."""
        true_BL = truth_BLP[..., 1] - truth_BLP[..., 2]
        self.pairs[TIME_OF_WEEK, "log_range"].add_pairs(expected_BL, true_BL, hidden_BL, week_B)

    def correlations(self, draws_RW: NDArray[np.float64]) -> dict[str, Any]:
        """Correlations of one timeframe: n, every predictor's, the model's interval, and its lead on the baselines."""
        found: dict[str, dict[str, float]] = {}
        draws: dict[str, dict[str, NDArray[np.float64]]] = {quantity: {} for quantity in QUANTITIES}
        for (predictor, quantity), pairs in self.pairs.items():
            found.setdefault(predictor, {})[quantity] = float(pearson(pairs.sums.sum(axis=0)))
            draws[quantity][predictor] = pearson(draws_RW @ pairs.sums)
        lead = {
            quantity: _lead({name: of[quantity] for name, of in found.items() if quantity in of}, of_R, self.weeks, 1)
            for quantity, of_R in draws.items()
        }
        return {
            "n": int(self.pairs["model", "level"].sums[:, 0].sum()),
            **{name: {quantity: _number(r) for quantity, r in of.items()} for name, of in found.items()},
            "model_interval": {quantity: interval(of["model"], self.weeks) for quantity, of in draws.items()},
            "model_minus_best_baseline": lead,
        }

    def quality(self, draws_RW: NDArray[np.float64]) -> dict[str, Any]:
        """Errors of one timeframe, as above."""
        result: dict[str, Any] = {"n": int(self.pairs["model", "level"].sums[:, 0].sum())}
        mse, draws = {}, {}
        for predictor, of in self.errors.items():
            squares, absolute, values, valid, bars = of.sums.sum(axis=0).tolist()
            resampled = draws_RW @ of.sums
            with np.errstate(divide="ignore", invalid="ignore"):
                draws[predictor] = resampled[:, 0] / resampled[:, 2]
            mse[predictor] = squares / values if values else math.nan
            result[predictor] = {
                "mse": _number(mse[predictor]),
                "mae": _number(absolute / values if values else math.nan),
                "rmse": _number(math.sqrt(mse[predictor])),
                "ohlc_validity": _number(valid / bars if bars else math.nan),
            }
        result["model_interval"] = {"mse": interval(draws["model"], self.weeks)}
        result["model_minus_best_baseline"] = {"mse": _lead(mse, draws, self.weeks, -1)}
        return result

    def spectral_deltas(self) -> dict[str, Any]:
        """Spectral differences of one timeframe; the truth's is 0."""
        truth = self.spectra["truth"]
        deltas = {name: spectral_delta(self.spectra[name].sum_PK, truth.sum_PK) for name in PREDICTORS}
        return {"segment": truth.segment, **{name: _number(delta) for name, delta in deltas.items()}}


class Consistency:
    """How many coarse bars are what their children make: of the truth, the model and the baselines."""

    def __init__(self) -> None:
        self.eligible = 0
        # coarse bars that agree, and the sum of their mean distances over open, high, low and close, in ticks
        self.sums = {name: np.zeros(2) for name in ("truth", *PREDICTORS)}

    def add(
        self,
        tick: float,
        rows: list[Tensor],
        hidden_BL: Tensor,
        truths: list[Tensor],
        guesses: list[dict[str, Tensor]],
    ) -> None:
        """Take in a fine timeframe and the next coarser one of a symbol: base rows, and log prices predicted or true.

        Eligible are coarse bars all of whose children are in the window and at least one of them hidden (`hidden_BL`).
        """
        children = children_of(*rows)
        eligible_BC = children.complete & some_child(hidden_BL, children)
        self.eligible += int(eligible_BC.sum())
        for name, sums in self.sums.items():
            fine, coarse = truths if name == "truth" else (guess[name] for guess in guesses)
            gap_BCP = (aggregate(fine.exp(), children) - coarse.exp()).abs()[eligible_BC]
            sums += [int((gap_BCP <= tick / 2).all(dim=-1).sum()), float(gap_BCP.mean(dim=-1).sum()) / tick]


def consistency_result(timeframes: tuple[str, ...], ticks: Sequence[float], pairs: list[Consistency]) -> dict[str, Any]:
    """{"tick", "pairs": {"m1 → m5": {"eligible", "truth" or predictor: {"ratio", "gap_ticks"}}}}, or why there is none.

    `tick` is null where symbols have different ones. `gap_ticks` is the mean distance between a coarse bar's four
    prices and what its children make.
    """
    tick = _number(ticks[0]) if len({*ticks}) == 1 else None
    if not pairs:
        return {"tick": tick, "pairs": {}, "reason": "there is one timeframe only"}
    result = {}
    for fine, coarse, pair in zip(timeframes, timeframes[1:], pairs, strict=False):
        of: dict[str, Any] = {"eligible": pair.eligible}
        for name, sums in pair.sums.items():
            (equal, gap), n = sums.tolist(), pair.eligible
            of[name] = {"ratio": equal / n if n else None, "gap_ticks": _number(gap / n if n else math.nan)}
        if not pair.eligible:
            of["reason"] = f"no window holds all {fine} bars inside one of {coarse} and hides any of them"
        result[f"{fine} → {coarse}"] = of
    return {"tick": tick, "pairs": result}


def summary(result: dict[str, Any], windows: int, weeks: int, window_days: float) -> dict[str, Any]:
    """The result in short: means over timeframes, where the model beats the best baseline, and what to mind."""
    correlations, quality = result["correlation_per_tf"], result["reconstruction_quality"]
    means = {}
    for name in PREDICTORS:
        figures = {quantity: [of[name][quantity] for of in correlations.values()] for quantity in QUANTITIES}
        for key in ("mse", "mae", "rmse", "ohlc_validity"):
            figures[key] = [of[name][key] for of in quality.values()]
        figures["spectral_delta"] = [of[name] for of in result["spectral_delta"].values()]
        figures["consistency_ratio"] = [of[name]["ratio"] for of in result["consistency_ratio"]["pairs"].values()]
        means[name] = {key: _mean(values) for key, values in figures.items()}
    beaten = {quantity: _won(correlations, quantity, 1) for quantity in QUANTITIES} | {"mse": _won(quality, "mse", -1)}
    notes = ["The straight line knows the close after each hidden block; a model of returns does not."]
    if weeks < FEWEST_WEEKS:
        notes.append(f"No intervals: the validation split lies in {weeks} calendar weeks; they need {FEWEST_WEEKS}.")
    elif window_days > 7:
        notes.append(f"Windows span {window_days:.0f} days, so weeks share bars: intervals are too narrow.")
    if any(of["truth"]["ratio"] not in (1, None) for of in result["consistency_ratio"]["pairs"].values()):
        notes.append("The true bars themselves are not always what their children make: their sources differ.")
    return {
        "windows": windows,
        "weeks": weeks,
        "window_days": round(window_days, 3),
        "means": means,
        "better_than_every_baseline": beaten,
        "notes": notes,
    }


def _won(result: dict[str, Any], key: str, sign: int) -> dict[str, list[str]]:
    """Timeframes in which the model leads on `key`, and those in which the interval of its lead leaves out zero."""
    leads = {name: of["model_minus_best_baseline"][key] for name, of in result.items()}
    won = [name for name, lead in leads.items() if lead and sign * lead["difference"] > 0]
    sure = [name for name in won if (bounds := leads[name]["interval"]) and bounds[0] * bounds[1] > 0]
    return {"by_value": won, "by_interval": sure}


def _mean(values: list[float | None]) -> float | None:
    """The mean of what is known."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _lead(
    found: dict[str, float], draws: dict[str, NDArray[np.float64]], weeks: int, sign: int
) -> dict[str, Any] | None:
    """The model's difference to the baseline that scores best (`sign` −1: lowest), and its interval."""
    baselines = {name: value for name, value in found.items() if name != "model" and not math.isnan(value)}
    if not baselines or math.isnan(found["model"]):
        return None
    best = max(baselines, key=lambda name: sign * baselines[name])
    difference = found["model"] - baselines[best]
    return {
        "baseline": best,
        "difference": difference,
        "interval": interval(draws["model"] - draws[best], weeks),
    }


def _log_returns(log_BLP: Tensor, log_before_B: Tensor) -> Tensor:
    close = log_BLP[..., 3]
    return close - torch.cat([log_before_B[:, None], close[:, :-1]], dim=1)


_QUANTITIES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "level": lambda log_BLP, _: log_BLP[..., 3],
    "log_return": _log_returns,
    "log_range": lambda log_BLP, _: log_BLP[..., 1] - log_BLP[..., 2],
}


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None
