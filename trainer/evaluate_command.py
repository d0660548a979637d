"""bin/evaluate: how good is a run, beside baselines?"""

if __name__ == "__main__":  # before all that takes a while to load
    from cache.early import end_on_interrupt

    end_on_interrupt()

import sys
from importlib.util import find_spec
from pathlib import Path

import click

from cache.console import Console, command, examples, run
from configs.errors import UserError
from trainer.runs import open_run, write_json


@command(
    epilog=examples(
        "bin/evaluate runs/demo",
        "bin/evaluate runs/demo --probe",
        "bin/evaluate runs/sse --output sse.json --plots pictures",
    )
)
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--output", type=click.Path(path_type=Path), help="Write the scores as JSON.")
@click.option(
    "--plots",
    type=click.Path(path_type=Path),
    help="Draw reconstructions, candles, masks, losses and correlations into this folder (needs matplotlib).",
)
@click.option("--probe", is_flag=True, help="Ask what the frozen encoder knows: volatility, direction, time of day.")
def main(run: Path, output: Path | None, plots: Path | None, probe: bool) -> None:
    """Score a run's best weights on the hidden bars of the validation split.

    The model stands beside its baselines: the last visible bar carried forward, a straight line across each hidden
    block and, for the range of a bar, the mean of its hour of the week.
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
        from trainer.probes import probe_encoder
        from trainer.report import probe_table, table
        from trainer.tasks import reconstruct_task
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    source, task = WindowSource(dataset, device), reconstruct_task(config, dataset, device)
    model = task.build_model().to(device)
    load_weights(run / "best.safetensors", model)
    with console.bar("reconstruct", "windows", len(source.val)) as bar:
        result = evaluate(model, task, dataset, source, bar.update)
    result["summary"] = {"run": str(run), "dataset": dataset.entry.key, **result["summary"]}
    for line in table(result):
        console.line(line)
    if probe:
        with console.phase("probe"):
            result["probes"] = probe_encoder(model, task, dataset, source)
        for line in probe_table(result["probes"]):
            console.line(line)
    if output:
        write_json(output, result)
        console.line(f"scores: {output}")
    if plots:
        from trainer.plots import draw_all

        with console.phase("draw"):
            paths = draw_all(model, task, dataset, source, result, run / "metrics.jsonl", plots)
        for path in paths:
            console.line(f"picture: {path}")


if __name__ == "__main__":
    run(main, "bin/evaluate")
