"""Measures of classes in words. No PyTorch here: runs are looked at before it is imported."""

from collections.abc import Mapping
from typing import Any

MEASURES = {"accuracy": "accuracy", "macro_f1": "macro-F1", "binary_f1": "binary F1", "score": "score"}


def in_words(measured: Mapping[str, Any]) -> str:
    """Those that there are: `accuracy 0.700, macro-F1 0.510, binary F1 0.890, score 0.700`."""
    return ", ".join(f"{words} {measured[name]:.3f}" for name, words in MEASURES.items() if name in measured)
