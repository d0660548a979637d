"""Pictures of a run and its evaluation. Needs matplotlib (the extra `viz`)."""

import json
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from cache.reader import Dataset
from trainer.data import WindowSource
from trainer.evaluate import reconstruct
from trainer.prices import straight_line, to_log_prices, true_log_prices
from trainer.reconstruct import Reconstruct
from trainer.scores import PREDICTORS, QUANTITIES, TIME_OF_WEEK

Array = NDArray[Any]
WINDOWS = 3
TRUTH, MODEL, LINE, SHADE, OCHRE = "#222222", "#d1495b", "#2e7d9a", "#f0ead6", "#c9a227"
COLOURS = {"model": MODEL, "straight_line": LINE, "last_value": "#9a9a9a", TIME_OF_WEEK: OCHRE}
LOSS_TERMS = ("loss", "huber", "stft", "cross_timeframe", "amplitude_phase")


def draw_all(
    model: torch.nn.Module,
    task: Reconstruct,
    dataset: Dataset,
    source: WindowSource,
    result: dict[str, Any],
    metrics: Path,
    folder: Path,
) -> list[Path]:
    """Draw every picture into `folder`: those of windows, of the result of `evaluate` and of `metrics.jsonl`."""
    matplotlib.use("agg")
    folder.mkdir(parents=True, exist_ok=True)
    drawn = [*plot_windows(model, task, dataset, source, folder), plot_correlations(result, folder)]
    return [*drawn, plot_losses(metrics, folder)] if metrics.exists() else drawn


@torch.no_grad()
def plot_windows(
    model: torch.nn.Module, task: Reconstruct, dataset: Dataset, source: WindowSource, folder: Path
) -> list[Path]:
    """Draw `reconstructions.png` of some windows, `candles.png` and `masks.png` of the middle one of them."""
    model.eval()
    symbol, own_B, index_B = source.example(WINDOWS)
    batch, masks, predicted = reconstruct(model, task, source, index_B)
    entries = dataset.symbols[symbol]
    times = entries.windows.array("time")[own_B].astype("datetime64[ns]")
    hidden = [one.cpu().numpy() for one in masks.hidden]
    prices, scales = [], task.scales_of(batch)
    for j, before in enumerate(batch.log_before):
        scale = scales[j]
        truth = true_log_prices(batch.x[j], before, scale)
        modelled = to_log_prices(predicted[j], before, scale, masks.hidden[j], truth)
        prices.append([_prices(one) for one in (truth, modelled, straight_line(truth, before, masks.hidden[j]))])
    middle = len(index_B) // 2
    until = f"{symbol} until {str(times[middle])[:16]} UTC"
    names = list(task.timeframes)
    closes = entries.streams[names[0]].array("close_time")
    rows = [one[middle].cpu().numpy() for one in batch.rows]
    candles = [(truth[middle], modelled[middle]) for truth, modelled, _ in prices]
    return [
        _plot_reconstructions(names, symbol, times, prices, hidden, folder),
        _plot_candles(names, until, candles, [one[middle] for one in hidden], folder),
        _plot_masks(names, until, rows, [one[middle] for one in hidden], closes, folder),
    ]


def plot_correlations(result: dict[str, Any], folder: Path) -> Path:
    """Draw `correlations.png`: a panel a quantity, bars for model and baselines; a second row of symbols held out."""
    parts = {"": result} | ({", symbols held out": result["hold_out"]} if "hold_out" in result else {})
    figure = Figure(figsize=(4.6 * len(QUANTITIES), 3.3 * len(parts) + 0.5), layout="constrained")
    axes = figure.subplots(len(parts), len(QUANTITIES), squeeze=False)
    for of_part, (words, part) in zip(axes, parts.items(), strict=True):
        _plot_part(of_part, part["correlation_per_tf"], words)
    weeks = result["summary"]["weeks"]
    some = any(bounds for of in result["correlation_per_tf"].values() for bounds in of["model_interval"].values())
    lines = f"lines: 95 % from {weeks} resampled weeks" if some else f"no intervals from {weeks} weeks"
    figure.suptitle(f"Correlation of hidden bars with the truth ({lines}; – : does not vary)", fontsize=12)
    return _save(figure, folder / "correlations.png", axes[0, -1])


def _plot_part(axes: Array, correlations: dict[str, Any], words: str) -> None:
    """A row of panels, with the intervals of the model."""
    for axis, quantity in zip(axes, QUANTITIES, strict=True):
        shown = [name for name in (*PREDICTORS, TIME_OF_WEEK) if quantity in next(iter(correlations.values()))[name]]
        width = 0.8 / len(shown)
        for k, name in enumerate(shown):
            heights = np.array([of[name][quantity] or 0.0 for of in correlations.values()])
            at = np.arange(len(heights)) + (k - (len(shown) - 1) / 2) * width
            axis.bar(at, heights, width * 0.92, color=COLOURS[name], label=name.replace("_", " "))
            for x, of in zip(at, correlations.values(), strict=True):
                if of[name][quantity] is None:
                    axis.text(x, 0, "–", ha="center", va="bottom", color=COLOURS[name], fontsize=9)
                elif name == "model" and (bounds := of["model_interval"][quantity]):
                    axis.vlines(x, *bounds, color=TRUTH, linewidth=1.4)
        found = [of[name][quantity] for of in correlations.values() for name in shown]
        found += [(of["model_interval"][quantity] or [None])[0] for of in correlations.values()]
        lowest = min((r for r in found if r is not None), default=0)
        if quantity == "level":  # all near 1: the axis begins near the worst of them
            axis.set_ylim(max(lowest - 0.25 * (1 - lowest), -1), 1)
        axis.axhline(0, color=TRUTH, linewidth=0.8)
        axis.set_xticks(range(len(correlations)), list(correlations))
        axis.set_title(f"{quantity.replace('_', '-')}{words}", loc="left", fontsize=10)
        axis.spines[["top", "right"]].set_visible(False)


def plot_losses(metrics: Path, folder: Path) -> Path:
    """Draw `losses.png` from metrics.jsonl: a panel a loss term, in training and in validation."""
    records = [json.loads(line) for line in metrics.read_text().splitlines() if line.endswith("}")]
    terms = [term for term in LOSS_TERMS if any(term in record for record in records)]
    columns, rows = min(len(terms), 3), -(-len(terms) // 3)
    figure = Figure(figsize=(4.6 * columns, 3.1 * rows + 0.5), layout="constrained")
    axes = [figure.add_subplot(rows, columns, k + 1) for k in range(len(terms))]
    styles = {
        ("train", ""): (LINE, "-", "", "training"),
        ("val", ""): (MODEL, "-", "o", "validation"),
        ("hold_out", ""): (OCHRE, "-", "o", "symbols held out"),
        ("val", "last_value_loss"): ("#9a9a9a", "--", "", "validation, last value carried"),
        ("hold_out", "last_value_loss"): (OCHRE, "--", "", "symbols held out, last value carried"),
    }
    for axis, term in zip(axes, terms, strict=True):
        for (kind, carried), (colour, dash, marker, words) in styles.items():
            key = carried or term
            points = [(one["step"], one[key]) for one in records if one["kind"] == kind and one.get(key) is not None]
            if points and (not carried or term == "loss"):
                axis.plot(*zip(*points, strict=True), color=colour, ls=dash, marker=marker, ms=3.5, label=words)
        axis.set_title(term.replace("_", " "), loc="left", fontsize=10)
        axis.set_xlabel("step", fontsize=9)
        axis.spines[["top", "right"]].set_visible(False)
    figure.suptitle("Loss terms (a training point is the mean since the one before)", fontsize=12)
    return _save(figure, folder / "losses.png", axes[0])


def _plot_reconstructions(
    names: list[str], symbol: str, times: Array, prices: list[list[Array]], hidden: list[Array], folder: Path
) -> Path:
    """A column a window, a row a timeframe; prices [B, L, 4] as truth, model, line."""
    figure = Figure(figsize=(5.2 * len(times), 2.4 * len(names) + 0.9), layout="constrained")
    axes = figure.subplots(len(names), len(times), squeeze=False)
    for j, name in enumerate(names):
        for column in range(len(times)):
            truth, modelled, line = (one[column] for one in prices[j])
            _draw_lines(axes[j, column], truth, modelled, line, hidden[j][column])
            axes[j, column].set_title(f"{name} until {str(times[column])[:16]} UTC", fontsize=9, loc="left")
    figure.suptitle(f"{symbol}: hidden bars (shaded), reconstructed from the visible ones", fontsize=12)
    return _save(figure, folder / "reconstructions.png", axes[0, 0])


def _plot_candles(
    names: list[str], until: str, prices: list[tuple[Array, Array]], hidden: list[Array], folder: Path
) -> Path:
    """A row a timeframe: the truth at the left, the reconstruction at the right; prices [L, 4]."""
    figure = Figure(figsize=(13, 2.4 * len(names) + 0.9), layout="constrained")
    axes = figure.subplots(len(names), 2, squeeze=False, sharey="row")
    for j, (name, pair) in enumerate(zip(names, prices, strict=True)):
        for axis, bars, what in zip(axes[j], pair, ("truth", "reconstruction"), strict=True):
            _axis(axis, hidden[j])
            _draw_candles(axis, bars, hidden[j] & (what != "truth"))
            axis.set_title(f"{name}: {what}", fontsize=9, loc="left")
    figure.suptitle(f"{until}: the hidden bars (shaded) are the model's at the right, in red", fontsize=12)
    return _save(figure, folder / "candles.png")


def _plot_masks(
    names: list[str], until: str, rows: list[Array], hidden: list[Array], closes: Array, folder: Path
) -> Path:
    """Hidden bars over time, all timeframes below each other; rows [L, 2] of the base stream, which `closes` times.

    The axis runs in base bars, so that closed markets take no room, and is labelled with the time. Windows of different
    timeframes differ in length by orders of magnitude: each panel reaches at least three times as far as the one above.
    """
    now = int(rows[0][-1, 1])
    spans: list[int] = []
    for span in sorted((now - int(one[0, 0]) for one in rows), reverse=True):
        if not spans or 3 * span <= spans[-1]:
            spans.append(span)
    figure = Figure(figsize=(13, (0.32 * len(names) + 0.75) * len(spans) + 0.6), layout="constrained")
    for axis, span in zip(figure.subplots(len(spans), 1, squeeze=False)[:, 0], reversed(spans), strict=True):
        for j, (edges, dark) in enumerate(zip(rows, hidden, strict=True)):
            parts = [(first, past - first) for first, past in edges]
            colours = [MODEL if one else "#dfe7ea" for one in dark]
            gap = 0.5 if np.diff(edges).mean() > span / 300 else 0  # between bars, where they are wide enough
            axis.broken_barh(parts, (j - 0.38, 0.76), facecolors=colours, edgecolors="white", linewidth=gap)
        at = np.linspace(now - span, now - 1, 8).astype(np.int64)[1:]
        axis.set_xticks(at + 1, [str(closes[row].astype("datetime64[ns]"))[5:16].replace("T", " ") for row in at])
        axis.set_xlim(now - span, now)
        axis.set_ylim(len(names) - 0.5, -0.5)
        axis.set_yticks(range(len(names)), names)
        axis.set_title(f"the last {span:,} bars of {names[0]}", fontsize=9, loc="left")
        axis.tick_params(labelsize=8, length=2)
        axis.spines[["top", "right", "left"]].set_visible(False)
    figure.suptitle(f"{until}: hidden bars (red) over time, closed markets left out", fontsize=12)
    return _save(figure, folder / "masks.png")


def _draw_lines(axis: Any, truth: Array, modelled: Array, line: Array, hidden: Array) -> None:
    """One window of one timeframe: close as a line, high to low as bars; prices [L, 4], hidden [L]."""
    bars = np.arange(len(truth))
    _axis(axis, hidden)
    axis.vlines(bars, truth[:, 2], truth[:, 1], color=TRUTH, alpha=0.35, linewidth=1.2)
    axis.plot(bars, truth[:, 3], color=TRUTH, linewidth=1.0, label="truth: close, high to low")
    shown = np.flatnonzero(hidden)
    axis.vlines(shown, modelled[shown, 2], modelled[shown, 1], color=MODEL, alpha=0.5, linewidth=2.4)
    # each block is drawn from the visible bar before it to the one after
    around = hidden | np.append(hidden[1:], False) | np.append(False, hidden[:-1])
    for prices, colour, width, dash, label in (
        (modelled, MODEL, 1.6, "-", "model: close, high to low"),
        (line, LINE, 1.2, "--", "straight line: close"),
    ):
        axis.plot(bars, np.where(around, prices[:, 3], np.nan), color=colour, linewidth=width, ls=dash, label=label)


def _draw_candles(axis: Any, prices: Array, marked: Array) -> None:
    """Candles, hollow where the bar rose; those marked in the model's colour; prices [L, 4]."""
    open_, high, low, close = prices.T
    colours = np.where(marked, MODEL, TRUTH)
    bars, bottom, top = np.arange(len(prices)), np.minimum(open_, close), np.maximum(open_, close)
    axis.vlines(bars, low, bottom, color=colours, linewidth=0.9)
    axis.vlines(bars, top, high, color=colours, linewidth=0.9)
    fill = np.where(close >= open_, "white", colours)
    axis.bar(bars, top - bottom, 0.66, bottom=bottom, color=fill, edgecolor=colours, linewidth=0.9)


def _axis(axis: Any, hidden: Array) -> None:
    """Shade hidden spans, and set the axis up for prices."""
    for start in np.flatnonzero(hidden & ~np.append(False, hidden[:-1])):
        length = int(np.argmin(np.append(hidden[start:], False)))
        axis.axvspan(start - 0.5, start + length - 0.5, color=SHADE, zorder=0)
    axis.set_xlim(-0.5, len(hidden) - 0.5)
    axis.tick_params(labelsize=8)
    axis.set_xticks([])
    axis.ticklabel_format(axis="y", useOffset=False)
    axis.spines[["top", "right"]].set_visible(False)


def _prices(log_BLP: Tensor) -> Array:
    return log_BLP.exp().cpu().numpy()


def _save(figure: Figure, path: Path, legend_of: Any = None) -> Path:
    """Write it, with one legend below for all panels."""
    if legend_of is not None:
        handles, labels = legend_of.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=max(len(labels), 1), frameon=False)
    figure.savefig(path, dpi=110)
    return path
