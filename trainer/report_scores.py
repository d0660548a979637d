"""What bin/evaluate found, as sections of a page: a model of bars beside its baselines, and one of classes."""

from collections.abc import Iterator, Sequence
from typing import Any

from cache.charts import Piece, rows
from cache.html import Section, figure, grid, legend, paragraph, subheading, table
from trainer.report import PROBED, verdicts
from trainer.scores import PREDICTORS, QUANTITIES, TIME_OF_WEEK

_COLOURS = {"model": "val", "last_value": "grey", "straight_line": "train", TIME_OF_WEEK: "ink"}
_WORDS = {
    "level": "level (log close)",
    "log_return": "log-return",
    "log_range": "log-range (high to low)",
    "mse": "MSE",
}


def scores_section(result: dict[str, Any]) -> Section:
    """A chart a measure, a row a timeframe, and all numbers."""
    return Section(
        "scores",
        "Model beside baselines",
        "A model is worth its cost where its mark stands ahead of all others: to the right of them in the "
        "correlations, to the left in the MSE.",
        _scores(result),
    )


def held_out_section(result: dict[str, Any]) -> Section:
    """All scores of the symbols held out; remarks that those of the other symbols have too are left out."""
    held_out = result["hold_out"]
    remarks = [note for note in held_out["summary"]["notes"] if note not in result["summary"]["notes"]]
    return Section(
        "held-out",
        "Symbols held out of training",
        "The same for symbols that the model never saw: where it is much worse than above, it knows its own by heart.",
        "".join(map(paragraph, remarks))
        + _scores(held_out)
        + subheading("How far ahead")
        + _leads(held_out)
        + subheading("Do timeframes agree?")
        + _consistency(held_out),
    )


def _scores(result: dict[str, Any]) -> str:
    charts = [_chart(result["correlation_per_tf"], quantity, "correlation of the ") for quantity in QUANTITIES]
    charts.append(_chart(result["reconstruction_quality"], "mse", "normalised open, high, low, close: "))
    words = {_COLOURS[name]: _words(name) for name in (*PREDICTORS, TIME_OF_WEEK)}
    words["interval"] = "95 % of the model, from resampled weeks"
    return legend(words) + grid(charts, "two") + _numbers(result)


def leads_section(result: dict[str, Any]) -> Section:
    """Model less the best baseline."""
    return Section(
        "leads",
        "How far ahead",
        "Above 0 the model is ahead (in the MSE below 0); where the brackets hold 0, it may be chance.",
        _leads(result),
    )


def _leads(result: dict[str, Any]) -> str:
    lines = []
    for timeframe, of in result["correlation_per_tf"].items():
        leads = of["model_minus_best_baseline"] | {
            "mse": result["reconstruction_quality"][timeframe]["model_minus_best_baseline"]["mse"]
        }
        lines.append((timeframe, *(_lead(leads[key]) for key in (*QUANTITIES, "mse"))))
    return table(("model less best baseline", *(_WORDS[key] for key in (*QUANTITIES, "mse"))), lines)


def consistency_section(result: dict[str, Any]) -> Section:
    """Coarse bars against their children."""
    return Section(
        "consistency",
        "Do timeframes agree?",
        "The share of coarse bars that are what their finer bars, as predicted, make of them, within half a tick.",
        _consistency(result),
    )


def _consistency(result: dict[str, Any]) -> str:
    found = result["consistency_ratio"]
    names = (*PREDICTORS, "truth")
    lines = [
        (pair, f"{of['eligible']:,}", *(_share(of[name]["ratio"]) for name in names))
        for pair, of in found["pairs"].items()
    ]
    return table(("", "bars", *(_words(name) for name in names)), lines) if lines else paragraph(found["reason"])


def probes_section(probes: dict[str, Any]) -> Section:
    """What the frozen encoder knows."""
    return Section(
        "probes",
        "What the frozen encoder knows",
        "An encoder has learnt something where its bar is longer than those of the untrained one and of the bars "
        "themselves. HAR, the rule to beat, tells volatility from that of the last 1, 5 and 22 stretches as long.",
        paragraph(f"No probes: {probes['reason']}.") if "reason" in probes else _probes(probes),
    )


def _probes(probes: dict[str, Any]) -> str:
    volatility, direction, session = (probes[name] for name in ("volatility", "direction", "session"))
    r2 = {name: of["r2"] for name, of in volatility.items() if of["r2"] is not None}
    low, high = min([0.0, *r2.values()]), max([0.0, *r2.values()])
    drawn = [
        (PROBED[name], f"{value:.3f}", [_bar(0.0, value, low, high, "val" if name == "encoder" else "grey")])
        for name, value in r2.items()
    ]
    drawing = rows("R² of the volatility to come, by what it is told from", "Longer is better.", drawn)
    lines = []
    for name, of in volatility.items():
        told = direction.get(name, {})
        cells = (
            of["r2"],
            of["correlation"],
            *(told.get(key) for key in ("accuracy", "auc", "rank_ic")),
            session.get(name),
        )
        lines.append((PROBED[name], *map(_r, cells)))
    header = ("told from", "volatility R²", "r", "direction accuracy", "AUC", "rank IC", "hour of day")
    said = "".join(paragraph(line) for line in verdicts(probes))
    horizon = f"over the next {probes['horizon_bars']} base bars, by what it is told from"
    return grid([figure(drawing, f"R² of the volatility {horizon}")], "two") + table(header, lines) + said


def classes_sections(result: dict[str, Any]) -> Iterator[Section]:
    """Measures beside the majority class, and a matrix of what was taken for what a label."""
    majority = result["majority"]
    lines = [(_words(name), _r(result["measures"][name]), _r(value)) for name, value in majority.items()]
    yield Section(
        "scores",
        "Model beside the majority class",
        "Always saying the most frequent class costs nothing: a model is worth what it scores beyond that. The score "
        "is the mean of the F1.",
        table(("", "model", "majority class"), lines),
    )
    for number, (label, counts) in enumerate(result["confusion"].items()):
        known = list(result["classes"][label])
        heat = {
            f"{r},{c}": -(-5 * count // max(sum(row), 1))
            for r, row in enumerate(counts)
            for c, count in enumerate(row)
            if count
        }
        taken = [(name, *(f"{n:,}" if n else "·" for n in row)) for name, row in zip(known, counts, strict=True)]
        each = [
            (name, f"{of['recordings']:,}", *(_r(of[word]) for word in ("precision", "recall", "f1")))
            for name, of in result["classes"][label].items()
        ]
        yield Section(
            f"label-{number}",
            f"What was taken for what: {label}",
            "Rows are the true class, columns what the model said: what is blue off the diagonal is confused.",
            table(("true \\ told", *known), taken, heat=heat)
            + subheading("By class")
            + table((label, "recordings", "precision", "recall", "F1"), each),
        )


def _chart(of: dict[str, Any], key: str, what: str) -> str:
    """A row a timeframe: marks of all predictors on one axis, with the model's interval."""
    names = [name for name in (*PREDICTORS, TIME_OF_WEEK) if key in next(iter(of.values())).get(name, {})]
    values = [one[name][key] for one in of.values() for name in names if one[name][key] is not None]
    values += [bound for one in of.values() for bound in one["model_interval"][key] or ()]
    low, high = min(values, default=0.0), max(values, default=1.0)
    if key != "level":  # levels are all near 1
        low = min(low, 0.0)
    drawn: list[tuple[str, str, Sequence[Piece]]] = []
    for timeframe, one in of.items():
        pieces = []
        if bounds := one["model_interval"][key]:
            pieces.append(_bar(bounds[0], bounds[1], low, high, "val pale"))
        for name in reversed(names):
            if (value := one[name][key]) is not None:
                pieces.append(_bar(value, value, low, high, _COLOURS[name], f"{_words(name)} {value:.4f}"))
        drawn.append((timeframe, f"model {_r(one['model'][key])}", pieces))
    zero = [-low / (high - low)] if low < 0 < high else []
    title = f"{what}{_WORDS[key]}"
    return figure(
        rows(title, f"From {low:.3g} to {high:.3g}.", drawn, zero),
        f"from {low:.3g} (left) to {high:.3g} (right)",
        heading=title,
    )


def _bar(start: float, stop: float, low: float, high: float, class_: str, words: str = "") -> Piece:
    width = (high - low) or 1.0
    left, right = sorted(((start - low) / width, (stop - low) / width))
    return Piece(left, right, class_, words or f"{start:.4f} to {stop:.4f}")


def _numbers(result: dict[str, Any]) -> str:
    lines = []
    for timeframe, of in result["correlation_per_tf"].items():
        quality, delta = result["reconstruction_quality"][timeframe], result["spectral_delta"][timeframe]
        for name in PREDICTORS:
            correlations = (_r(of[name][quantity]) for quantity in QUANTITIES)
            errors = (_r(quality[name][error]) for error in ("mse", "mae"))
            lines.append(
                (
                    f"{timeframe} {_words(name)}",
                    *correlations,
                    *errors,
                    _share(quality[name]["ohlc_validity"]),
                    _r(delta[name]),
                )
            )
        lines.append((f"{timeframe} {_words(TIME_OF_WEEK)}", "", "", _r(of[TIME_OF_WEEK]["log_range"]), "", "", "", ""))
    header = ("on hidden bars", "level", "log-return", "log-range", "MSE", "MAE", "valid bars", "spectral Δ")
    return table(header, lines, "Correlations with the truth, errors in normalised units")


def _r(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"


def _share(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f}\N{NO-BREAK SPACE}%"


def _lead(lead: dict[str, Any] | None) -> str:
    if lead is None:
        return "–"
    interval = "" if lead["interval"] is None else " [{:+.3f} {:+.3f}]".format(*lead["interval"])
    return f"{lead['difference']:+.3f}{interval}"


def _words(name: str) -> str:
    return name.replace("_", " ")
