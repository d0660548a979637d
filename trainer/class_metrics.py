"""How good predicted classes are, from counts of what was predicted for what was true.

Counts are int64 [C, C] on the CPU: row the true class, column the predicted one.
"""

from collections.abc import Mapping

import torch
from torch import Tensor


def confusion(truth_N: Tensor, predicted_N: Tensor, n_classes: int) -> Tensor:
    """Counts of classes predicted (int64 [N]) for true ones (int64 [N])."""
    counts = torch.bincount(truth_N * n_classes + predicted_N, minlength=n_classes**2)
    return counts.view(n_classes, n_classes).cpu()


def accuracy(counts_CC: Tensor) -> float:
    """The share that is right."""
    return int(counts_CC.trace()) / int(counts_CC.sum())


def macro_f1(counts_CC: Tensor) -> float:
    """The mean of F1 = 2·TP / (2·TP + FP + FN) over the classes that are true or predicted at least once."""
    either_C = counts_CC.sum(dim=0) + counts_CC.sum(dim=1)
    present_C = either_C > 0
    return float((2 * counts_CC.diagonal()[present_C].double() / either_C[present_C]).mean())


def binary_f1(counts_CC: Tensor) -> float:
    """F1 of class 1 of two; 0 where it is neither true nor predicted."""
    either = int(counts_CC[1].sum() + counts_CC[:, 1].sum())
    return 2 * int(counts_CC[1, 1]) / either if either else 0.0


def scores(counts: Mapping[str, Tensor], binary: str | None) -> dict[str, float]:
    """What the counts of every label are worth, by name.

    * `accuracy`, `macro_f1`: of the first label; `macro_f1/NAME`: of others
    * `binary_f1`: F1 of the positive class of the label `binary`, if there is one
    * `score`: the mean of all F1
    """
    first = next(iter(counts))
    f1 = {
        "binary_f1" if name == binary else "macro_f1" if name == first else f"macro_f1/{name}": (
            binary_f1(of_label) if name == binary else macro_f1(of_label)
        )
        for name, of_label in counts.items()
    }
    return {"accuracy": accuracy(counts[first]), **f1, "score": sum(f1.values()) / len(f1)}
