"""A report on a dataset: one HTML file for people who have never seen it. Reads the store, block by block."""

from pathlib import Path
from typing import Any

from cache.html import Section, page
from cache.reader import Dataset
from pipeline.report_coverage import coverage_body, day
from pipeline.report_features import DRIFTED, SHIFTED, features_body
from pipeline.report_keys import certificate_body, keys_body, sources_body
from pipeline.report_sequences import channels_body, folds_body, lengths_body, recordings_body
from pipeline.report_split import dropped_body, split_body
from pipeline.report_view import view_body

_DRIFT = (
    f"Where the two shapes part, a model meets in validation what it has not seen in training; marked is a population "
    f"stability index (PSI) above {SHIFTED:g} (shifted) or {DRIFTED:g} (drifted)."
)
_KEYS = (
    "Every box is made of those that lead to it and of nothing else: a key is a fingerprint of all that decides the "
    "bytes, so equal keys mean equal data."
)
_CERTIFICATE = {
    "bars": "What was checked before the dataset was published: that no window holds anything that was not known at "
    "its decision time.",
    "sequences": "What was checked before the dataset was published: that training sees nothing of what validates.",
}


def dataset_report(dataset: Dataset, store: Path) -> str:
    """The whole file. Raises StoreError and OSError where the store is damaged."""
    sections = _of_sequences(dataset, store) if dataset.folds else _of_bars(dataset, store)
    manifest = dataset.entry.manifest
    built, certificate = manifest["built"], manifest.get("certificate")
    facts = _sequence_facts(dataset) if dataset.folds else _bar_facts(dataset)
    facts |= {"certificate": "none" if not certificate else "passed" if certificate["passed"] else "FAILED"}
    by = ", ".join(f"{name} {version}" for name, version in built["by"].items())
    return page(
        f"Dataset {dataset.name}",
        _lead(dataset),
        facts,
        _warnings(manifest),
        sections,
        f"Dataset {dataset.entry.key}, built {built['at']} by {by}. bin/cache report {dataset.name}",
    )


def _of_bars(dataset: Dataset, store: Path) -> list[Section]:
    symbol = max(dataset.symbols, key=lambda name: dataset.symbols[name].windows.shape("time")[0])
    alone = "" if len(dataset.symbols) == 1 else f" Shown is {symbol}, which has the most windows."
    base = dataset.timeframes[0]
    return [
        Section(
            "coverage",
            "Coverage and gaps",
            "Blue where bars fill the hour, blank where there are none: look for blank stretches inside the trading "
            f"day, for hours that shift, and for dates marked red.{alone}",
            coverage_body(dataset, symbol),
        ),
        Section(
            "windows",
            "Windows kept and dropped",
            f"At every close of a {base} bar a window could be cut; red shows how many each timeframe's rules cost, "
            f"and the longest red bar names the timeframe that costs most.{alone}",
            dropped_body(dataset, symbol),
        ),
        Section(
            "split",
            "Training and validation",
            "No window may see both sides: the grey stretch between training and validation must be at least as long "
            f"as what the longest window sees.{alone}",
            split_body(dataset, symbol),
        ),
        Section(
            "view",
            "What one window sees",
            "Every panel ends at the same instant: the window holds the bars that were over by then, and never the "
            "grey one, whose close lies in the future.",
            view_body(dataset, symbol),
        ),
        Section("features", "Features, training against validation", _DRIFT + alone, features_body(dataset, symbol)),
        Section("certificate", "Certificate", _CERTIFICATE["bars"], certificate_body(dataset)),
        Section(
            "sources",
            "Sources",
            "What was read, how its columns were understood, and what was repaired.",
            sources_body(dataset, store),
        ),
        Section("keys", "Keys", _KEYS, keys_body(dataset, symbol, store)),
    ]


def _of_sequences(dataset: Dataset, store: Path) -> list[Section]:
    (symbol,) = dataset.symbols
    group = dataset.recipe["source"]["group"]
    return [
        Section(
            "folds",
            "Folds",
            f"Each {group} validates in one fold and trains in all others; a blank cell is a class that this {group} "
            "never shows.",
            folds_body(dataset),
        ),
        Section(
            "lengths",
            "Lengths",
            "How far recordings must be stretched or cut to become equally long.",
            lengths_body(dataset, store),
        ),
        Section(
            "recordings",
            "Some recordings",
            "One of each of some classes, scaled as the first fold sees them: look for channels that lie still.",
            recordings_body(dataset),
        ),
        Section("channels", "Channels, training against validation", _DRIFT, channels_body(dataset)),
        Section("certificate", "Certificate", _CERTIFICATE["sequences"], certificate_body(dataset)),
        Section("sources", "Sources", "What was read, and what was repaired.", sources_body(dataset, store)),
        Section("keys", "Keys", _KEYS, keys_body(dataset, symbol, store)),
    ]


def _lead(dataset: Dataset) -> str:
    if dataset.folds:
        return (
            "Recordings of sensors, made equally long and split into folds for cross-validation. This page shows "
            "what is in them, and what to mind before training on them."
        )
    names = dataset.timeframes
    several = f"{', '.join(names[:-1])} and {names[-1]} bars" if len(names) > 1 else f"{names[0]} bars"
    return (
        f"Windows over {several}, each cut at the close of a {names[0]} bar and holding, of every timeframe, the last "
        "bars that were over by then. This page shows what is in them, and what to mind before training on them."
    )


def _bar_facts(dataset: Dataset) -> dict[str, str]:
    base = dataset.timeframes[0]
    times = [entries.streams[base].array("close_time") for entries in dataset.symbols.values()]
    counts = {
        name: sum(stop - start for start, stop in part["windows"].values()) for name, part in dataset.splits.items()
    }
    lengths = list(dict.fromkeys(dataset.seq_lens.values()))
    length = (
        f"{lengths[0]} of each"
        if len(lengths) == 1
        else ", ".join(f"{n} {name}" for name, n in dataset.seq_lens.items())
    )
    held = {"held out": f"{counts['hold_out']:,}"} if "hold_out" in counts else {}
    return {
        "symbols": ", ".join(dataset.symbols) if len(dataset.symbols) <= 3 else f"{len(dataset.symbols):,}",
        f"{base} bars": f"{sum(map(len, times)):,}",
        "from": day(min(int(time[0]) for time in times)),
        "to": day(max(int(time[-1]) for time in times)),
        "training windows": f"{counts['train']:,}",
        "validation windows": f"{counts['val']:,}",
        **held,
        "bars a window": length,
    }


def _sequence_facts(dataset: Dataset) -> dict[str, str]:
    (entries,) = dataset.symbols.values()
    classes = dataset.entry.manifest["classes"]
    return {
        "recordings": f"{entries.windows.shape('time')[0]:,}",
        f"{dataset.recipe['source']['group']}s": f"{len(entries.windows.manifest['groups']):,}",
        "channels": f"{len(next(iter(entries.streams.values())).manifest['features'])}",
        "rows a recording": f"{next(iter(dataset.seq_lens.values()))}",
        "folds": f"{len(dataset.folds)}",
        **{name: f"{len(known)} classes" for name, known in classes.items()},
    }


def _warnings(manifest: dict[str, Any]) -> list[str]:
    """Those of the manifest, and what given bars and derived ones do not agree on."""
    left = [f"{symbol} was left out: {why}" for symbol, why in manifest.get("left_out", {}).items()]
    failed = [] if manifest.get("certificate", {"passed": True})["passed"] else ["The certificate FAILED; see below."]
    return [*failed, *manifest.get("warnings", ()), *left]
