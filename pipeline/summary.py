"""What a build tells about its dataset: how the sources were understood, windows by rule, splits, what was proved."""

from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from cache.entries import Entry, open_entry
from cache.per_symbol import PerSymbol
from cache.reader import Dataset
from cache.tables import first_of, of_store, table
from cache.timeframes import format_time
from pipeline.build import Outcome
from pipeline.columns import ROLES
from pipeline.sequences_summary import sequence_lines
from pipeline.universe import fault_table

_DETAILED = 3  # symbols; more of them get a line each …
_LINES = 20  # … but no more than so many


def summarise(outcome: Outcome) -> Iterator[str]:
    """Lines for people."""
    dataset = outcome.dataset
    yield from sequence_lines(dataset, outcome.sources) if dataset.folds else _bars_lines(outcome)
    manifest = dataset.entry.manifest
    yield from (f"  warning: {text}" for text in manifest["warnings"])
    certificate = manifest["certificate"]
    yield f"  certificate: {', '.join(certificate['checks'])} hold, {certificate['samples']} windows made again"
    if not outcome.built:
        yield "  Everything was in the store already; nothing was built."
        return
    if f"datasets {dataset.name}" in outcome.built:
        yield from _taken_over(dataset)
    yield f"  {outcome.reused} {'entry' if outcome.reused == 1 else 'entries'} reused, {len(outcome.built)} built."


def _taken_over(dataset: Dataset) -> Iterator[str]:
    """What an earlier dataset, of fewer files, has spared; nothing where streams had to be scaled anew."""
    certificate = dataset.entry.manifest["certificate"]
    for key, count in certificate.get("taken_over", {}).items():
        until = ""
        if len(dataset.symbols) == 1:
            store = dataset.entry.path.parents[1]
            (keys,) = open_entry(store, "datasets", key).manifest["components"]["inputs"].values()
            until = f", until {format_time(open_entry(store, 'windows', keys['windows']).array('time')[-1])},"
        if not certificate["checks"]["statistics"]["checked"]:
            yield (
                f"  goes on from the dataset built before: its {count:,} windows{until} were taken over, and only what "
                "follows them was computed"
            )


def _bars_lines(outcome: Outcome) -> Iterator[str]:
    dataset = outcome.dataset
    yield from _sources(outcome.sources)
    if len(dataset.symbols) <= _DETAILED:
        for symbol in dataset.symbols:
            yield from _symbol(dataset, symbol)
    else:
        yield from _symbols(dataset)
    yield from (f"  left out: {line}" for line in _left_out(dataset))
    train, val = (dataset.splits[part] for part in ("train", "val"))
    if "hold_out" in dataset.splits:
        held = dataset.entry.manifest["components"]["fields"]["universe"]["hold_out"]
        windows = sum(stop - start for start, stop in dataset.splits["hold_out"]["windows"].values())
        yield f"  held out from training: {', '.join(held)}; {windows:,} windows"
    yield f"  training until {format_time(train['until'])}, validation from {format_time(val['from'])}"


def _sources(bars: Iterable[Entry]) -> Iterator[str]:
    """Each way in which files were understood once, and what policies changed in each file."""
    understood: dict[str, list[str]] = {}
    for entry in bars:
        manifest = entry.manifest
        recognised = dict(manifest["recognised"])
        columns = ", ".join(f"{role} = {recognised[role]}" for role in ROLES)
        lines = [f"{recognised['format']}; {columns}", *manifest["remarks"]]
        understood.setdefault("; ".join(lines), []).append(manifest["origin"])
    for line, names in understood.items():
        files = list(dict.fromkeys(names))
        yield f"  {files[0]}{f' and {len(files) - 1} more' if len(files) > 1 else ''}: {line}"
    for entry in bars:
        for fault, change in entry.manifest["repaired"].items():
            yield (
                f"  {entry.manifest['origin']}: data.source.policy.{fault} changed rows: {change['rows']:,}, the first "
                f"of them at row {change['first_row']:,}"
            )


def _symbol(dataset: Dataset, symbol: str) -> Iterator[str]:
    windows, streams = dataset.symbols[symbol].windows, dataset.symbols[symbol].streams
    yield f"  {symbol}: {windows.shape('time')[0]:,} windows of {windows.manifest['candidates']:,} decision times"
    for timeframe, rules in windows.manifest["dropped"].items():
        rows, length = streams[timeframe].shape("values")[0], dataset.seq_lens[timeframe]
        broken = ", ".join(f"{count:,} by {rule}" for rule, count in rules.items() if count) or "none"
        yield f"    {timeframe:>4}: {rows:>11,} bars, {length} a window; windows dropped: {broken}"
    train, purged, val = _parts(dataset.per_symbol)[dataset.per_symbol.names.index(symbol)].tolist()
    yield f"    {train:,} windows for training, {purged:,} purged, {val:,} for validation"


def _symbols(dataset: Dataset) -> Iterator[str]:
    base = dataset.timeframes[0]
    rows: list[tuple[str, ...]] = [("symbol", f"{base} bars", "windows", "training", "purged", "validation")]
    known = dataset.per_symbol
    counts = np.column_stack([known.rows[:, 0], known.windows, _parts(known)])
    shown = range(len(counts)) if len(counts) <= _LINES else np.argsort(counts[:, 1], kind="stable")[:_LINES].tolist()
    rows += [(known.names[k], *(f"{count:,}" for count in counts[k].tolist())) for k in shown]
    rows.append((f"all {len(counts):,}", *(f"{count:,}" for count in counts.sum(axis=0).tolist())))
    yield from (f"  {line}" for line in table(rows, right={1, 2, 3, 4, 5}))
    if len(counts) > _LINES:
        store = of_store(dataset.entry.path.parents[1])
        yield f"  above, the {_LINES} with the fewest windows; all of them: bin/cache show {dataset.name} --json{store}"


def _left_out(dataset: Dataset) -> list[str]:
    faults = dataset.entry.manifest["left_out"]
    return first_of(fault_table(faults), _LINES) if faults else []


def _parts(known: PerSymbol) -> NDArray[np.int64]:
    """Windows of each symbol for training, purged, for validation (held out, those after training): int64 [N, 3]."""
    train, *others = (part[:, 1] - part[:, 0] for part in known.parts.values())
    val = np.sum(others, axis=0)
    return np.column_stack([train, known.windows - train - val, val])
