"""Candles of one window of a run's report: what was there, and what the model made of the hidden bars."""

import numpy as np
import torch
from numpy.typing import NDArray

from cache.charts import Candles, candle_panel
from cache.html import Section, figure, grid, legend
from cache.reader import Dataset
from trainer.data import WindowSource
from trainer.evaluate import reconstruct
from trainer.prices import to_log_prices, true_log_prices
from trainer.reconstruct import Reconstruct


@torch.no_grad()
def candles_section(model: torch.nn.Module, task: Reconstruct, dataset: Dataset, source: WindowSource) -> Section:
    """Two panels a timeframe, of the window in the middle of the validation split."""
    model.eval()
    symbol, own_B, index_B = source.example(1)
    batch, masks, predicted = reconstruct(model, task, source, index_B)
    time = str(dataset.symbols[symbol].windows.array("time")[own_B[0]].astype("datetime64[ns]"))[:16].replace("T", " ")
    figures = []
    for j, name in enumerate(task.timeframes):
        before, scale = batch.log_before[j], task.scales_of(batch)[j]
        truth = true_log_prices(batch.x[j], before, scale)
        model_prices = to_log_prices(predicted[j], before, scale, masks.hidden[j], truth)
        hidden = masks.hidden[j][0].cpu().numpy()
        both = [one[0].exp().cpu().numpy() for one in (truth, model_prices)]
        bounds = float(min(one[:, 2].min() for one in both)), float(max(one[:, 1].max() for one in both))
        begins, blocks = f"{len(hidden)} bars", _blocks(hidden)
        for what, prices, class_ in zip(("truth", "reconstruction"), both, ("", "model"), strict=True):
            classes = [class_ if one else "" for one in hidden.tolist()]
            title = f"{name} bars of {symbol} until {time} UTC: {what}"
            drawing = candle_panel(
                title,
                f"{int(hidden.sum())} of {len(hidden)} bars are hidden.",
                Candles(prices, classes, blocks, begins, time),
                bounds,
            )
            figures.append(figure(drawing, what, heading=name))
    words = {
        "shade": "hidden from the model",
        "val": "made by the model",
        "rising": "close above open",
        "falling": "below",
    }
    return Section(
        "candles",
        "One window, hidden and reconstructed",
        f"On the shaded stretches of this window of {symbol} the model saw nothing: the truth shows what was there, "
        "the reconstruction what the model made of it.",
        legend(words) + grid(figures, "two"),
    )


def _blocks(hidden: NDArray[np.bool_]) -> list[tuple[int, int]]:
    """Ranges of hidden bars."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], hidden.astype(np.int8), [0]])))
    return [(int(start), int(stop)) for start, stop in edges.reshape(-1, 2)]
