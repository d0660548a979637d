"""bin/evaluate: how good is a run, beside baselines?"""

import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click

from cache.console import Console, command, examples, run
from configs.errors import UserError
from trainer.runs import open_run, write_json


@command(epilog=examples("bin/evaluate runs/demo", "bin/evaluate runs/sse --output sse.json --plots pictures"))
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--output", type=click.Path(path_type=Path), help="Write the scores as JSON.")
@click.option(
    "--plots", type=click.Path(path_type=Path), help="Draw reconstructions into this folder (needs matplotlib)."
)
def main(run: Path, output: Path | None, plots: Path | None) -> None:
    """Score a run's best weights on the hidden bars of the validation split.

    The model stands beside two baselines: the last visible bar carried forward, and a straight line across each hidden
    block.
    """
    if plots and find_spec("matplotlib") is None:
        raise UserError("--plots needs matplotlib; install it with: pip install matplotlib")
    console = Console(sys.stdout)
    console.line(f"Evaluating {run}")
    with console.phase("open run"):
        config, dataset = open_run(run)
    with console.phase("import torch"):
        import torch

        from trainer.checkpoint import load_weights
        from trainer.data import WindowSource
        from trainer.evaluate import evaluate
        from trainer.tasks import reconstruct_task
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    source, task = WindowSource(dataset, device), reconstruct_task(config, dataset)
    model = task.build_model().to(device)
    load_weights(run / "best.safetensors", model)
    with console.bar("reconstruct", "windows", len(source.val)) as bar:
        scores = evaluate(model, task, source, bar.update)
    result: dict[str, Any] = {
        "run": str(run),
        "dataset": dataset.entry.key,
        "windows": len(source.val),
        "timeframes": scores,
    }
    for line in table(result):
        console.line(line)
    if output:
        write_json(output, result)
        console.line(f"scores: {output}")
    if plots:
        from trainer.plots import plot_reconstructions

        for path in plot_reconstructions(model, task, dataset, source, plots):
            console.line(f"picture: {path}")


def table(result: dict[str, Any]) -> list[str]:
    """The scores for people."""
    rows = [
        f"On the hidden bars of {result['windows']:,} validation windows",
        f"{'':>16}{'correlation of':>33}   {'normalised o, h, l, c':>26}",
        f"{'':16}{'level':>11}{'log-return':>11}{'log-range':>11}   {'MSE':>8} {'MAE':>8} {'RMSE':>8}",
    ]
    for timeframe, scores in result["timeframes"].items():
        rows.append(f"{timeframe}  ({scores['n']:,} hidden bars)")
        for predictor in ("model", "last_value", "straight_line"):
            score = scores[predictor]
            r = "".join(f"{_r(value):>11}" for value in score["correlation"].values())
            rows.append(
                f"  {predictor.replace('_', ' '):14}{r}   {score['mse']:8.4f} {score['mae']:8.4f} {score['rmse']:8.4f}"
            )
    rows.append("The straight line knows the close after each hidden block; under `returns` the model does not.")
    return rows


def _r(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"


if __name__ == "__main__":
    run(main, "bin/evaluate")
