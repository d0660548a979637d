"""bin/evaluate: how good is a run, beside baselines?"""

if __name__ == "__main__":  # before all that takes a while to load
    from cache.early import end_on_interrupt

    end_on_interrupt()

import sys
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click

from cache.console import Console, command, examples, run
from cache.files import check_output, write_atomically
from cache.reader import Dataset
from configs.errors import UserError
from trainer.config import TrainerConfig, is_own_task
from trainer.described import describe_encoder, identity
from trainer.runs import open_run, write_json


@command(
    epilog=examples(
        "bin/evaluate runs/demo",
        "bin/evaluate runs/demo --probe",
        "bin/evaluate runs/sse --output sse.json --plots pictures",
        "bin/evaluate runs/sse --report sse.html",
    )
)
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--store", type=click.Path(path_type=Path), help="The store.  [default: the one it was trained on]")
@click.option("--output", type=click.Path(path_type=Path), help="Write the scores as JSON.")
@click.option(
    "--plots",
    type=click.Path(path_type=Path),
    help="Draw into this folder (needs matplotlib): reconstructions, candles, masks, losses and correlations, or what "
    "was taken for what.",
)
@click.option(
    "--report", type=click.Path(path_type=Path, dir_okay=False), help="Draw all of it as one HTML file to look at."
)
@click.option("--probe", is_flag=True, help="Ask what the frozen encoder knows: volatility, direction, time of day.")
def main(
    run: Path, store: Path | None, output: Path | None, plots: Path | None, report: Path | None, probe: bool
) -> None:
    """Score a run's best weights on the validation split, and on symbols that were held out.

    A model that reconstructs bars stands, on the hidden ones, beside its baselines: the last visible bar carried
    forward, a straight line across each hidden block and, for the range of a bar, the mean of its hour of the week. One
    that classifies recordings stands beside the class that most training recordings are of.
    """
    if plots and find_spec("matplotlib") is None:
        raise UserError("--plots needs matplotlib, which is not there: run bin/install viz")
    for option, path in (("--output", output), ("--plots", plots), ("--report", report)):
        if path:
            check_output(option, path, folder=option == "--plots")
    console = Console(sys.stdout)
    console.line(f"Evaluating {run}")
    with console.phase("open run"):
        config, dataset, fold = open_run(run, store)
    own = is_own_task(config.training.task)
    if own and (given := next((f"--{name}" for name, value in (("plots", plots), ("report", report)) if value), None)):
        raise UserError(f"{given}: there are no pictures of a task of your own; --output writes its measures")
    if config.training.task == "reconstruct" and dataset.folds:
        raise UserError(
            f"{run}: reconstructs recordings, and bin/evaluate scores prices and classes; its losses, beside those of "
            f"the last value carried, stand in {run / 'metrics.jsonl'}"
        )
    if probe and (dataset.folds or own):
        raise UserError("--probe asks what an encoder of bars knows that learnt to reconstruct them; leave it out")
    opened = open_model(run, config, dataset, fold, console)
    if own:
        result = score_own(opened, config, fold, console)
    elif config.training.task == "reconstruct":
        result = score_bars(opened, run, dataset, plots, report, probe, console)
    else:
        result = score_classes(opened, run, dataset, fold, plots, report, console)
    if output:
        result["summary"] = {"run": str(run), "dataset": dataset.entry.key, **result["summary"]}
        write_json(output, result)
        console.line(f"scores: {output}")


@dataclass(frozen=True)
class Opened:
    """The best model of a run, its task and its windows, of classes of PyTorch's that nobody waits for at the start."""

    source: Any
    task: Any
    model: Any


def open_model(run: Path, config: TrainerConfig, dataset: Dataset, fold: int | None, console: Console) -> Opened:
    """The task, for all validation windows, and its model with the best weights, which must be of this very run."""
    with console.phase("import torch"):
        import torch

        from trainer.checkpoint import load_weights
        from trainer.data import WindowSource
        from trainer.tasks import blamed, make_task
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    source = WindowSource(dataset, device, fold=fold)
    training = config.training.model_copy(update={"val_windows": len(source.val)})
    with blamed(config):
        task = make_task(replace(config, training=training), dataset, device, fold)
        model = task.build_model().to(device)
    load_weights(run / "best.safetensors", model, identity_of(config, dataset, fold))
    return Opened(source, task, model)


def identity_of(config: TrainerConfig, dataset: Dataset, fold: int | None) -> dict[str, Any]:
    """What the weights of a run tell of it."""
    return identity(describe_encoder(config.training.task, config.model.model_dump(), dataset, fold))


def score_bars(
    opened: Opened,
    run: Path,
    dataset: Dataset,
    plots: Path | None,
    report: Path | None,
    probe: bool,
    console: Console,
) -> dict[str, Any]:
    """Print, and draw, how well hidden bars are reconstructed."""
    from trainer.evaluate import evaluate
    from trainer.probes import probe_encoder
    from trainer.report import probe_table, table

    source, task, model = opened.source, opened.task, opened.model
    scored = {}
    for part, of in source.parts().items():
        with console.bar("reconstruct", "windows", len(of.val)) as bar:
            scored[part] = evaluate(model, task, dataset, of, bar.update)
        if part == "hold_out":
            console.line(f"Symbols held out of training ({len(of.val.ranges)}):")
        for line in table(scored[part]):
            console.line(line)
    result = scored.pop("val") | scored
    if probe:
        with console.phase("probe"):
            result["probes"] = probe_encoder(model, task, dataset, source)
        for line in probe_table(result["probes"]):
            console.line(line)
    if plots:
        from trainer.plots import draw_all

        with console.phase("draw"):
            paths = draw_all(model, task, dataset, source, result, run / "metrics.jsonl", plots)
        for path in paths:
            console.line(f"picture: {path}")
    if report:
        from trainer.report_candles import candles_section
        from trainer.report_page import bars_page

        with console.phase("report"):
            candles = candles_section(model, task, dataset, source)
            write_atomically(report, bars_page(run, dataset, result, candles).encode())
        console.line(f"report: {report}; open it in a browser")
    return result


def score_own(opened: Opened, config: TrainerConfig, fold: int | None, console: Console) -> dict[str, Any]:
    """Print what a user's own task measures."""
    from trainer.tasks import blamed

    source, task, model = opened.source, opened.task, opened.model
    with blamed(config), console.bar("validate", "windows", len(source.val)) as bar:
        measures = {**task.validate(model, source, bar.update), **task.baseline(source, lambda windows: None)}
    console.line(task.told(measures))
    return {"summary": {"windows": len(source.val), "fold": fold}, "measures": measures}


def score_classes(
    opened: Opened,
    run: Path,
    dataset: Dataset,
    fold: int | None,
    plots: Path | None,
    report: Path | None,
    console: Console,
) -> dict[str, Any]:
    """Print, and draw, how well classes are told."""
    from trainer.evaluate_classes import class_table, evaluate_classes

    source, task, model = opened.source, opened.task, opened.model
    with console.bar("classify", "windows", len(source.val)) as bar:
        result = evaluate_classes(model, task, source, bar.update)
    for line in class_table(result):
        console.line(line)
    if plots:
        import torch

        from trainer.class_plots import plot_confusion

        plots.mkdir(parents=True, exist_ok=True)
        with console.phase("draw"):
            counts = {name: torch.tensor(rows) for name, rows in result["confusion"].items()}
            plot_confusion(counts, task.classes, plots / "confusion.png")
        console.line(f"picture: {plots / 'confusion.png'}")
    if report:
        from trainer.report_page import classes_page

        write_atomically(report, classes_page(run, dataset, fold, result).encode())
        console.line(f"report: {report}; open it in a browser")
    return {"summary": {"fold": fold}, **result}


if __name__ == "__main__":
    run(main, "bin/evaluate")
