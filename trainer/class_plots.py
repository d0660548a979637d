"""A picture of confusion matrices. Needs matplotlib (the extra `viz`)."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure
from torch import Tensor


def plot_confusion(counts: Mapping[str, Tensor], classes: Mapping[str, Sequence[str]], path: Path) -> None:
    """Draw a panel a label: rows the true class, columns the predicted one, shaded by the share of the row."""
    matplotlib.use("agg")
    sizes = [max(2.2, 0.55 * len(known)) + 1.6 for known in classes.values()]
    figure = Figure(figsize=(sum(sizes), max(sizes)), layout="constrained")
    panels = figure.subplots(1, len(classes), squeeze=False, gridspec_kw={"width_ratios": sizes})[0]
    for axis, (name, known) in zip(panels, classes.items(), strict=True):
        counts_CC = counts[name]
        share_CC = counts_CC / counts_CC.sum(dim=1, keepdim=True).clamp(min=1)
        axis.imshow(share_CC.numpy(), cmap="Blues", vmin=0, vmax=1)
        for row in range(len(known)):
            for column in range(len(known)):
                colour = "white" if share_CC[row, column] > 0.55 else "#222222"
                text = f"{int(counts_CC[row, column]):,}"
                axis.text(column, row, text, ha="center", va="center", color=colour, fontsize=8)
        axis.set_xticks(range(len(known)), known, rotation=45, ha="right", fontsize=8)
        axis.set_yticks(range(len(known)), known, fontsize=8)
        axis.set_xlabel("predicted", fontsize=9)
        axis.set_ylabel("true", fontsize=9)
        axis.set_title(f"{name}: {int(counts_CC.trace()):,} of {int(counts_CC.sum()):,} right", loc="left", fontsize=10)
        axis.spines[:].set_visible(False)
    figure.savefig(path, dpi=110)
