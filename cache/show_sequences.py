"""One dataset of sequences in words, and as JSON."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cache.entries import Entry
from cache.reader import Dataset
from cache.show import CHECKS, check_lines, head_lines, sources_of
from cache.tables import table


def describe_sequences(dataset: Dataset, store: Path, updated: str, last_used: str) -> dict[str, Any]:
    """All of it, for scripts."""
    manifest = dataset.entry.manifest
    ((_, entries),) = dataset.symbols.items()
    return {
        "name": dataset.name,
        "key": dataset.entry.key,
        "kind": dataset.kind,
        "seq_len": dataset.seq_lens,
        "built": manifest["built"],
        "updated": updated,
        "last_used": last_used,
        "data_dir": dataset.data_dir,
        "windows": str(entries.windows.path.resolve()),
        "streams": {name: str(entry.path.resolve()) for name, entry in entries.streams.items()},
        "features": _features(dataset),
        "recordings": [
            {
                "path": str(entry.path.resolve()),
                **{name: entry.manifest[name] for name in ("origin", "sequences", "empty", "repaired")},
            }
            for entry in sources_of(entries.windows, store)
        ],
        "groups": entries.windows.manifest["groups"],
        "classes": manifest["classes"],
        "folds": manifest["folds"],
        "recipe": dataset.recipe,
        **{name: manifest[name] for name in CHECKS if name in manifest},
    }


def sequence_lines(dataset: Dataset, store: Path, updated: str, last_used: str) -> Iterator[str]:
    """What people want to know of it."""
    manifest, recipe = dataset.entry.manifest, dataset.recipe
    ((_, entries),) = dataset.symbols.items()
    length, group = recipe["length"], recipe["source"]["group"]
    yield from head_lines(dataset, updated, last_used)
    yield f"  channels    {', '.join(_features(dataset))}"
    yield f"  length      {length['seq_len']} rows, {length['mode']}; gaps: {', '.join(recipe['fill'])}"
    yield f"  normalised  {recipe['normalise']}"
    yield f"  sources     {dataset.data_dir}"
    yield from check_lines(manifest)
    yield ""
    groups, windows = entries.windows.manifest["groups"], entries.windows.shape("time")[0]
    yield f"{windows:,} sequences of {len(groups):,} groups ({group})  {entries.windows.path.resolve()}"
    rows = [
        (f"  fold {number}", f"{windows - stop + start:,}", f"{stop - start:,}", ", ".join(_few(fold["groups"])))
        for number, fold in enumerate(manifest["folds"])
        for start, stop in [fold["windows"]]
    ]
    yield from table([("  validates", "training", "validation", f"{group} in validation"), *rows], right={1, 2})
    for label, known in manifest["classes"].items():
        yield ""
        counts = [[f"{fold['classes'][label][name]:,}" for fold in manifest["folds"]] for name in known]
        header = (f"  {label}", *(f"fold {number}" for number in range(len(manifest["folds"]))))
        lines = [(f"  {name}", *row) for name, row in zip(known, counts, strict=True)]
        yield from table([header, *lines], right=set(range(1, len(header))))
    yield ""
    yield from table(
        [("  stream", "path"), *((f"  {name}", str(e.path.resolve())) for name, e in entries.streams.items())],
        right=set(),
    )
    for entry in sources_of(entries.windows, store):
        yield f"  recordings of {entry.manifest['origin']}: {entry.manifest['sequences']:,} sequences"
        for fault, change in entry.manifest["repaired"].items():
            words = ", ".join(f"{name.replace('_', ' ')} {count:,}" for name, count in change.items())
            yield f"    repaired {fault}: {words}"


def _features(dataset: Dataset) -> list[str]:
    stream: Entry = next(iter(next(iter(dataset.symbols.values())).streams.values()))
    return list(stream.manifest["features"])


def _few(names: list[str]) -> list[str]:
    return names if len(names) <= 8 else [*names[:8], f"… {len(names) - 8} more"]
