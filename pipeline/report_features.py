"""Distributions of features in training and in validation, and how far they lie apart.

The measure is the population stability index, Σ (p − q) · ln(p / q) over ten classes that are equally full in training
(Siddiqi 2006, Credit Risk Scorecards, whose rule of thumb is that below 0.1 nothing has changed, and above 0.25 much
has). From two samples of one distribution about (classes − 1) · (1/n + 1/m) of it comes by chance; that is taken off.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cache.charts import histogram_panel
from cache.entries import Entry
from cache.html import figure, grid, legend, subheading, table
from cache.layout import CHUNK_ROWS
from cache.reader import Dataset

Array = NDArray[Any]
SHIFTED, DRIFTED = 0.1, 0.25
_CLASSES = 10
_SMALLEST = 1e-4  # a share that takes the place of none
_BARS = 36
_SYMBOLS = 40
_FINE, _STEPS = 0.02, 100.0  # classes are as wide as sinh grows: 0.0002 at zero, 1 % of the value far from it
_REACH = 2000
_CUTS = _FINE * np.sinh(np.arange(-_REACH, _REACH + 1) / _STEPS)


@dataclass(frozen=True)
class Sample:
    """Rows counted by class, int64 [F, 4002], and the mean and standard deviation float64 [F] of their values."""

    counts: NDArray[np.int64]
    rows: int
    mean: Array
    std: Array


def sample(blocks: Iterator[Array] | Sequence[Array], features: int) -> Sample:
    """Count blocks of values float [n, F]."""
    classes = 2 * _REACH + 2
    counts = np.zeros(features * classes, np.int64)
    sums, squares, rows = np.zeros(features), np.zeros(features), 0
    for block in blocks:
        place = np.floor(np.arcsinh(block / _FINE) * _STEPS).clip(-_REACH - 1, _REACH).astype(np.int64) + _REACH + 1
        counts += np.bincount((place + np.arange(features) * classes).ravel(), minlength=features * classes)
        sums += block.sum(axis=0, dtype=np.float64)
        squares += np.square(block, dtype=np.float64).sum(axis=0)
        rows += len(block)
    mean = sums / max(rows, 1)
    return Sample(
        counts.reshape(features, classes), rows, mean, np.sqrt(np.maximum(squares / max(rows, 1) - mean**2, 0))
    )


def drift(train: Sample, val: Sample, k: int) -> float:
    """The population stability index of feature `k`, less what chance makes of it; NaN without rows."""
    if not train.rows or not val.rows:
        return float("nan")
    below = np.cumsum(train.counts[k]) / train.rows
    cuts = np.unique(np.searchsorted(below, np.arange(1, _CLASSES) / _CLASSES))
    starts = np.append(0, cuts + 1)
    p, q = (np.add.reduceat(of.counts[k], starts[starts < len(below)]) / of.rows for of in (train, val))
    p, q = np.maximum(p, _SMALLEST), np.maximum(q, _SMALLEST)
    chance = (len(p) - 1) * (1 / train.rows + 1 / val.rows)
    return max(float(((q - p) * np.log(q / p)).sum()) - chance, 0.0)


def features_body(dataset: Dataset, symbol: str) -> str:
    """A panel a timeframe and feature of one symbol; with several symbols, a table of the drift of all."""
    words = {"train": "training bars", "val": "validation bars"}
    parts = [legend(words)]
    for name, stream in dataset.symbols[symbol].streams.items():
        train, val = (sample(blocks, len(stream.manifest["features"])) for blocks in _parts(dataset, stream))
        parts.append(subheading(f"{name}: {train.rows:,} training bars, {val.rows:,} validation bars"))
        parts.append(panels(f"{symbol} {name}", stream.manifest["features"], train, val))
    return "".join(parts) + (_symbols(dataset) if len(dataset.symbols) > 1 else "")


def panels(of: str, names: Sequence[str], train: Sample, val: Sample) -> str:
    """A panel a feature."""
    return grid((_panel(f"{name} of {of}", name, train, val, k) for k, name in enumerate(names)), "small")


def verdict(index: float) -> str:
    """`strong`, `shift` or nothing."""
    return "strong" if index > DRIFTED else "shift" if index > SHIFTED else ""


def _panel(title: str, name: str, train: Sample, val: Sample, k: int) -> str:
    index = drift(train, val, k)
    edges = _display(train, val, k)
    shares = [_shares(of, k, edges) for of in (train, val)]
    mark = {"strong": " drifted", "shift": " shifted"}.get(verdict(index), "")
    caption = f"PSI {index:.2f}, mean {_signed(val.mean[k])}, sd {val.std[k]:.2f}" if val.rows else "none in validation"
    described = f"{caption}; training has mean {_signed(train.mean[k])} and standard deviation {train.std[k]:.2f}."
    return figure(histogram_panel(title, described, edges, *shares), caption, verdict(index), f"{name}{mark}")


def _signed(value: float) -> str:
    return f"{value + 0.0:.2f}".replace("-0.00", "0.00").replace("-", "−")


def _parts(dataset: Dataset, stream: Entry) -> tuple[Iterator[Array], Iterator[Array]]:
    """Blocks of the rows closed by the end of training, and of those closed after validation begins."""
    close = stream.array("close_time")
    stop = int(np.searchsorted(close, dataset.splits["train"]["until"], side="right"))
    start = int(np.searchsorted(close, dataset.splits["val"]["from"], side="right"))
    return _blocks(stream, 0, stop), _blocks(stream, start, len(close))


def _blocks(stream: Entry, start: int, stop: int) -> Iterator[Array]:
    for at in range(start, stop, CHUNK_ROWS):
        yield stream.rows("values", at, min(at + CHUNK_ROWS, stop))


def _display(train: Sample, val: Sample, k: int) -> Array:
    """Edges of the bars drawn, from the 0.5th to the 99.5th percentile of either part."""
    lows, highs = [], []
    for of in (train, val):
        if of.rows:
            below = np.cumsum(of.counts[k]) / of.rows
            low, high = np.searchsorted(below, [0.005, 0.995])
            lows.append(_CUTS[max(int(low) - 1, 0)])
            highs.append(_CUTS[min(int(high), len(_CUTS) - 1)])
    low, high = min(lows, default=-1.0), max(highs, default=1.0)
    return np.linspace(low, high, _BARS + 1) if high > low else np.linspace(low - 1, low + 1, _BARS + 1)


def _shares(of: Sample, k: int, edges: Array) -> Array:
    """The share of the rows in each bar; within a class they are taken to lie evenly."""
    below = np.cumsum(of.counts[k][:-1]) / max(of.rows, 1)
    return np.diff(np.interp(edges, _CUTS, below))


def _symbols(dataset: Dataset) -> str:
    """The drift of the base timeframe of every symbol."""
    base = dataset.timeframes[0]
    lines: list[tuple[str, ...]] = []
    heat: dict[str, int] = {}
    names = next(iter(dataset.symbols.values())).streams[base].manifest["features"]
    for row, (symbol, entries) in enumerate(list(dataset.symbols.items())[:_SYMBOLS]):
        train, val = (sample(blocks, len(names)) for blocks in _parts(dataset, entries.streams[base]))
        found = [drift(train, val, k) for k in range(len(names))]
        heat |= {f"{row},{k}": {"strong": 9, "shift": 8}[verdict(of)] for k, of in enumerate(found) if verdict(of)}
        lines.append((symbol, *("–" if of != of else f"{of:.2f}" for of in found)))
    more = len(dataset.symbols) - len(lines)
    caption = f"PSI of {base} bars of every symbol" + f" ({more:,} more are left out)" * (more > 0)
    return subheading("All symbols") + table((base, *names), lines, caption, heat)
