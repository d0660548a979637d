"""A run as one HTML file: how good it is beside baselines, how its losses went, and what it makes of a window."""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cache.charts import line_panel
from cache.html import Section, figure, grid, legend, page
from cache.reader import Dataset
from trainer.report_scores import (
    classes_sections,
    consistency_section,
    held_out_section,
    leads_section,
    probes_section,
    scores_section,
)

_TERMS = {  # and what a stranger should know of them
    "loss": "",
    "huber": "how far prices are off",
    "stft": "how far the spectrum is off",
    "cross_timeframe": "how far coarse bars are from what their finer bars make",
    "amplitude_phase": "how far amplitudes and phases are off",
    "macro_f1": "",
    "score": "",
    "accuracy": "",
    "correlation": "of hidden features with the true ones",
}
_SERIES = {
    "train": "training",
    "val": "validation",
    "held": "symbols held out",
    "grey": "validation, last value carried",
    "carried": "symbols held out, last value carried",
}


def bars_page(run: Path, dataset: Dataset, result: dict[str, Any], candles: Section) -> str:
    """Of a run that reconstructs bars: its scores as bin/evaluate writes them, and a section of candles."""
    summary = result["summary"]
    sections = [scores_section(result), candles, *_losses(run / "metrics.jsonl"), leads_section(result)]
    sections.append(consistency_section(result))
    facts = {"windows scored": f"{summary['windows']:,}", "calendar weeks": f"{summary['weeks']:,}"}
    if "hold_out" in result:
        sections.append(held_out_section(result))
        symbols = sum(stop > start for start, stop in dataset.splits["hold_out"]["windows"].values())
        facts |= {"symbols held out": f"{symbols:,}", "their windows": f"{result['hold_out']['summary']['windows']:,}"}
    if "probes" in result:
        sections.append(probes_section(result["probes"]))
    lead = (
        "A model that fills in bars that were hidden from it, scored on the validation windows beside baselines: the "
        "last visible bar carried forward, a straight line across each hidden stretch and, for the range of a bar, the "
        "mean of its hour of the week."
    )
    return _page(run, dataset, lead, facts, summary["notes"], sections)


def classes_page(run: Path, dataset: Dataset, fold: int | None, result: dict[str, Any]) -> str:
    """Of a run that classifies: `result` of `evaluate_classes`."""
    sections = [*classes_sections(result), *_losses(run / "metrics.jsonl")]
    facts = {"fold": f"{fold}", "recordings scored": f"{sum(map(sum, next(iter(result['confusion'].values())))):,}"}
    lead = "A model that tells the classes of recordings, scored on the part of the data that it never trained on."
    return _page(run, dataset, lead, facts, [], sections)


def _page(
    run: Path, dataset: Dataset, lead: str, facts: dict[str, str], notes: list[str], sections: list[Section]
) -> str:
    try:
        ended = json.loads((run / "summary.json").read_text())
        facts |= {"steps": f"{ended['steps']:,}", f"best {ended['monitor'].replace('_', ' ')}": f"{ended['best']:.4f}"}
        facts |= {"at step": f"{ended['best_step']:,}"}
    except (OSError, ValueError, KeyError):  # the run is still going on
        pass
    foot = f"Run {run} of dataset {dataset.name} {dataset.entry.key}."
    return page(f"Run {run.name}", lead, {"dataset": dataset.name, **facts}, notes, sections, foot)


def _losses(metrics: Path) -> Iterator[Section]:
    """A panel a term that was logged; nothing where nothing was."""
    if not metrics.exists():
        return
    records = [json.loads(text) for text in metrics.read_text().splitlines() if text.endswith("}")]
    figures = [
        _panel(records, term) for term in _TERMS if any(isinstance(record.get(term), int | float) for record in records)
    ]
    if figures:
        known = {"train"}
        for kind, drawn, carried in (("val", "val", "grey"), ("hold_out", "held", "carried")):
            of = [record for record in records if record["kind"] == kind]
            known |= {drawn} if of else set()
            known |= {carried} if any("last_value_loss" in record for record in of) else set()
        yield Section(
            "losses",
            "Loss over time",
            "Losses should fall and scores rise; where validation turns while the training loss goes on falling, the "
            "model has begun to learn its data by heart.",
            legend({class_: words for class_, words in _SERIES.items() if class_ in known}) + grid(figures),
        )


def _panel(records: list[dict[str, Any]], term: str) -> str:
    """Training and validation of one term over steps."""
    wanted = [("train", "train", term), ("val", "val", term), ("held", "hold_out", term)]
    if term == "loss":
        wanted += [("grey", "val", "last_value_loss"), ("carried", "hold_out", "last_value_loss")]
    series = {}
    for class_, kind, key in wanted:
        of = [record for record in records if record["kind"] == kind and isinstance(record.get(key), int | float)]
        if of:
            series[class_] = [record["step"] for record in of], [float(record[key]) for record in of]
    last = max(step for steps, _ in series.values() for step in steps)
    first = min(step for steps, _ in series.values() for step in steps)
    name = term.replace("_", " ")
    ends = ", ".join(f"{_SERIES[class_]} {ys[-1]:.4f}" for class_, (_, ys) in series.items() if math.isfinite(ys[-1]))
    drawing = line_panel(f"{name} over steps", f"At the end: {ends}.", series, f"step {first:,}", f"step {last:,}")
    return figure(drawing, f"at the end: {ends}", heading=": ".join(filter(None, (name, _TERMS[term]))))
