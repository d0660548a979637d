"""Evaluation of a reconstruction run: model beside baselines, on the hidden positions of the validation split.

For every timeframe and predictor (model, last_value, straight_line):

* correlation  Pearson r over all hidden positions, from float64 sufficient statistics: of levels (log close),
               log-returns (log close − log close before) and log-ranges (log high − log low); NaN below 30 positions
* mse, mae, rmse  over open, high, low and close in normalised units

Shape suffixes: B batch, L bars, P prices (open, high, low, close), F features.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from trainer.data import Batch, WindowSource
from trainer.masking import Masks
from trainer.prices import last_value, straight_line, to_features, to_log_prices, true_log_prices
from trainer.tasks import TARGETS, VALIDATION_STREAM, Reconstruct

PREDICTORS = ("model", "last_value", "straight_line")
QUANTITIES = ("level", "log_return", "log_range")
FEWEST = 30
BATCH = 256


class Pearson:
    """Correlation of two samples that arrive in pieces."""

    def __init__(self) -> None:
        self.sums = torch.zeros(6, dtype=torch.float64)
        self._origin: Tensor | None = None

    def add(self, x: Tensor, y: Tensor) -> None:
        """Take in pairs, float64 [n]."""
        if not len(x):
            return
        if self._origin is None:  # shifted by their first values, the sums of squares stay small
            self._origin = torch.stack([x[0], y[0]])
        x, y = x - self._origin[0], y - self._origin[1]
        self.sums += torch.stack([torch.ones_like(x), x, y, x * x, y * y, x * y]).sum(dim=1).cpu()

    @property
    def count(self) -> int:
        """Pairs so far."""
        return int(self.sums[0])

    @property
    def r(self) -> float:
        """Pearson's r; NaN below 30 pairs or where one of the two does not vary."""
        n, x, y, xx, yy, xy = self.sums.tolist()
        if n < FEWEST:
            return math.nan
        variance_x, variance_y = xx / n - (x / n) ** 2, yy / n - (y / n) ** 2
        if min(variance_x, variance_y) <= 1e-12 * max(variance_x, variance_y):
            return math.nan
        return float((xy / n - x * y / n**2) / math.sqrt(variance_x * variance_y))


class Scores:
    """What one predictor scores in one timeframe."""

    def __init__(self) -> None:
        self.correlation = {quantity: Pearson() for quantity in QUANTITIES}
        self.errors = torch.zeros(3, dtype=torch.float64)

    def add(self, predicted: Tensor, truth: Tensor, log_before_B: Tensor, hidden_BL: Tensor) -> None:
        """Take in log prices [B, L, 4], predicted where hidden and true elsewhere, float64."""
        for quantity, function in _QUANTITIES.items():
            self.correlation[quantity].add(
                function(predicted, log_before_B)[hidden_BL], function(truth, log_before_B)[hidden_BL]
            )

    def add_errors(self, predicted_BLP: Tensor, truth_BLP: Tensor, hidden_BL: Tensor) -> None:
        """Take in normalised features [B, L, 4]."""
        error = (predicted_BLP.double() - truth_BLP.double())[hidden_BL]
        self.errors += torch.stack([error.square().sum(), error.abs().sum(), torch.ones_like(error).sum()]).cpu()

    def result(self) -> dict[str, Any]:
        """As it goes into JSON; NaN is null."""
        squares, absolute, n = self.errors.tolist()
        correlation = {quantity: _number(pearson.r) for quantity, pearson in self.correlation.items()}
        return {
            "correlation": correlation,
            "mse": squares / n,
            "mae": absolute / n,
            "rmse": math.sqrt(squares / n),
        }


@torch.no_grad()
def evaluate(
    model: torch.nn.Module,
    task: Reconstruct,
    source: WindowSource,
    advance: Callable[[int], None],
) -> dict[str, Any]:
    """Scores over the whole validation split: {timeframe: {"n", predictor: {"correlation", "mse", "mae", "rmse"}}}.

    `advance` hears of windows done.
    """
    scores = {name: {predictor: Scores() for predictor in PREDICTORS} for name in task.timeframes}
    model.eval()
    for index_B in torch.arange(source.val.start, source.val.stop).split(BATCH):
        batch, masks, predicted = reconstruct(model, task, source, index_B)
        for j, name in enumerate(task.timeframes):
            hidden, before = masks.hidden[j], batch.log_before[j]
            scale = task.scales[j].to(source.device)
            truth = true_log_prices(batch.x[j], before, scale)
            prices = {
                "model": to_log_prices(predicted[j], before, scale, hidden, truth),
                "last_value": last_value(truth, before, hidden),
                "straight_line": straight_line(truth, before, hidden),
            }
            for predictor, log_prices in prices.items():
                score = scores[name][predictor]
                score.add(log_prices, truth, before, hidden)
                features = predicted[j] if predictor == "model" else to_features(log_prices, before, scale)
                score.add_errors(features, batch.x[j][..., :TARGETS], hidden)
        advance(len(index_B))
    return {
        name: {
            "n": of["model"].correlation["level"].count,
            **{predictor: score.result() for predictor, score in of.items()},
        }
        for name, of in scores.items()
    }


def reconstruct(
    model: torch.nn.Module, task: Reconstruct, source: WindowSource, index_B: Tensor
) -> tuple[Batch, Masks, list[Tensor]]:
    """Windows, their validation masks and the model's reconstruction."""
    batch = source.gather(index_B)
    masks = task.masks(VALIDATION_STREAM, batch)
    return batch, masks, task.reconstruct(model, batch.x, masks)


def _log_returns(log_BLP: Tensor, log_before_B: Tensor) -> Tensor:
    close = log_BLP[..., 3]
    return close - torch.cat([log_before_B[:, None], close[:, :-1]], dim=1)


_QUANTITIES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "level": lambda log_BLP, _: log_BLP[..., 3],
    "log_return": _log_returns,
    "log_range": lambda log_BLP, _: log_BLP[..., 1] - log_BLP[..., 2],
}


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value
