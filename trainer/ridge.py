"""Ridge regression for probes, and what its predictions are worth. NumPy, float64.

Shape suffixes: W windows, K columns, T targets.
"""

import math

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Parts = tuple[Array, Array]  # of the training and of the validation windows
PENALTIES = np.logspace(-6, 4, 21)  # a row of training, so that they mean the same for any number of windows


def ridge(x: Parts, targets: list[Array]) -> list[Array]:
    """Predict targets [W, T] of validation windows from inputs [W, K] of training and validation: [W_val, T] each.

    Ridge regression in closed form on standardised columns (Hoerl & Kennard 1970). A target's penalty is the one that
    errs least (squared, summed over T) on the last fifth of training when fitted on the rest; then all of it is fitted.
    """
    train, val = x
    cut = len(train) * 4 // 5
    trial, final = _Ridge(train[:cut], train[cut:]), _Ridge(train, val)
    result = []
    for y_WT in targets:
        errors = [np.square(trial.predict(y_WT[:cut], one) - y_WT[cut:]).sum() for one in PENALTIES]
        result.append(final.predict(y_WT, PENALTIES[int(np.argmin(errors))]))
    return result


class _Ridge:
    """Inputs prepared once, for any target and penalty: an eigendecomposition of the smaller Gram matrix."""

    def __init__(self, x: Array, new: Array) -> None:
        mean, std = x.mean(axis=0), x.std(axis=0)
        moving = std > 1e-9 * np.abs(mean)
        x, new = ((part[:, moving] - mean[moving]) / std[moving] for part in (x, new))
        self.n = len(x)
        wide = x.shape[1] > len(x)
        values, vectors = np.linalg.eigh(x @ x.T if wide else x.T @ x)
        self.values = np.maximum(values, 0)
        self.left = new @ (x.T @ vectors) if wide else new @ vectors
        self.right = vectors.T if wide else vectors.T @ x.T

    def predict(self, y_WT: Array, penalty: float) -> Array:
        """Predictions for the new rows, [W_new, T]; the penalty on squared coefficients is n · `penalty`."""
        centre = y_WT.mean(axis=0)
        weights = (self.right @ (y_WT - centre)) / (self.values + self.n * penalty)[:, None]
        return np.asarray(centre + self.left @ weights)


def r_squared(predicted: Array, truth: Array, train_mean: float) -> float:
    """Out-of-sample R²: 1 − Σ(y − ŷ)² / Σ(y − mean of training)² (Campbell & Thompson 2008)."""
    return float(1 - np.square(truth - predicted).sum() / np.square(truth - train_mean).sum())


def ranks(values: Array) -> Array:
    """Ranks from 1, the same mean rank for equal values."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    means: Array = (last - (counts - 1) / 2)[inverse]
    return means


def area_under_curve(score: Array, positive: NDArray[np.bool_]) -> float:
    """Chance that a positive case scores above a negative one (Mann–Whitney); NaN without one of the two."""
    n, m = int(positive.sum()), int((~positive).sum())
    return float((ranks(score)[positive].sum() - n * (n + 1) / 2) / (n * m)) if n and m else math.nan


def correlation(x: Array, y: Array) -> float:
    """Pearson's r; NaN where one does not vary."""
    if np.ptp(x) < 1e-12 * np.abs(x).max(initial=1e-300) or np.ptp(y) == 0:
        return math.nan
    return float(np.corrcoef(x, y)[0, 1])


def effective_rank(x: Array) -> float:
    """exp of the entropy of the singular values' shares (Roy & Vetterli 2007), of centred columns."""
    singular = np.linalg.svd(x - x.mean(axis=0), compute_uv=False)
    shares = singular[singular > 0] / singular.sum() if singular.any() else np.ones(1)
    return float(np.exp(-(shares * np.log(shares)).sum()))
