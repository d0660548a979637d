"""Pictures of reconstructions. Needs matplotlib (the extra `viz`)."""

from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray

from cache.reader import Dataset
from trainer.data import WindowSource, spread
from trainer.evaluate import reconstruct
from trainer.prices import straight_line, to_log_prices, true_log_prices
from trainer.tasks import Reconstruct

WINDOWS = 3
TRUTH, MODEL, LINE, SHADE = "#222222", "#d1495b", "#2e7d9a", "#f0ead6"


@torch.no_grad()
def plot_reconstructions(
    model: torch.nn.Module, task: Reconstruct, dataset: Dataset, source: WindowSource, folder: Path
) -> list[Path]:
    """Draw `reconstructions.png`: a column a window, a row a timeframe, hidden spans shaded. Returns the paths."""
    matplotlib.use("agg")
    model.eval()
    index_B = spread(source.val, WINDOWS + 1)[1:]  # the first windows of the split say least about it
    batch, masks, predicted = reconstruct(model, task, source, index_B)
    ((symbol, entries),) = dataset.symbols.items()
    times = entries.windows.array("time")[index_B.numpy()].astype("datetime64[ns]")
    figure = Figure(figsize=(5.2 * len(index_B), 2.4 * len(task.timeframes) + 0.9), layout="constrained")
    axes = figure.subplots(len(task.timeframes), len(index_B), squeeze=False)
    for j, timeframe in enumerate(task.timeframes):
        before = batch.log_before[j]
        scale, hidden = task.scales[j].to(source.device), masks.hidden[j]
        truth = true_log_prices(batch.x[j], before, scale)
        modelled = to_log_prices(predicted[j], before, scale, hidden, truth)
        line = straight_line(truth, before, hidden)
        for column in range(len(index_B)):
            true, model_, straight = (part[column].exp().cpu().numpy() for part in (truth, modelled, line))
            _draw(axes[j, column], true, model_, straight, hidden[column].cpu().numpy())
            axes[j, column].set_title(f"{timeframe} until {str(times[column])[:16]} UTC", fontsize=9, loc="left")
    figure.suptitle(f"{symbol}: hidden bars (shaded), reconstructed from the visible ones", fontsize=12)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "reconstructions.png"
    figure.savefig(path, dpi=110)
    return [path]


def _draw(
    axis: Any, truth: NDArray[Any], modelled: NDArray[Any], line: NDArray[Any], hidden: NDArray[np.bool_]
) -> None:
    """One window of one timeframe: close as a line, high to low as bars; prices [L, 4], hidden [L]."""
    bars = np.arange(len(truth))
    for start in np.flatnonzero(hidden & ~np.append(False, hidden[:-1])):
        length = int(np.argmin(np.append(hidden[start:], False)))
        axis.axvspan(start - 0.5, start + length - 0.5, color=SHADE, zorder=0)
    axis.vlines(bars, truth[:, 2], truth[:, 1], color=TRUTH, alpha=0.35, linewidth=1.2)
    axis.plot(bars, truth[:, 3], color=TRUTH, linewidth=1.0, label="truth: close, high to low")
    shown = np.flatnonzero(hidden)
    axis.vlines(shown, modelled[shown, 2], modelled[shown, 1], color=MODEL, alpha=0.5, linewidth=2.4)
    # each block is drawn from the visible bar before it to the one after
    around = hidden | np.append(hidden[1:], False) | np.append(False, hidden[:-1])
    axis.plot(
        bars, np.where(around, modelled[:, 3], np.nan), color=MODEL, linewidth=1.6, label="model: close, high to low"
    )
    axis.plot(
        bars, np.where(around, line[:, 3], np.nan), color=LINE, linewidth=1.2, ls="--", label="straight line: close"
    )
    axis.set_xlim(-0.5, len(truth) - 0.5)
    axis.tick_params(labelsize=8)
    axis.set_xticks([])
    axis.ticklabel_format(axis="y", useOffset=False)
    axis.spines[["top", "right"]].set_visible(False)
