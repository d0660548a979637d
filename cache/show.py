"""One dataset of bars in words, and as JSON."""

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from cache.contents import inputs
from cache.entries import Entry, StoreError, open_entry
from cache.reader import Dataset, SymbolEntries
from cache.tables import first_of, of_store, table
from cache.timeframes import format_time

_IN_FULL = 3  # so many symbols are shown with all they have; of more, each has a line …
_LINES = 20  # … up to here; of more, so many
CHECKS = ("warnings", "consistency", "certificate")  # of the dataset's manifest, where there are any


def describe(dataset: Dataset, store: Path, updated: str, last_used: str) -> dict[str, Any]:
    """All of it, for scripts."""
    manifest = dataset.entry.manifest
    return {
        "name": dataset.name,
        "key": dataset.entry.key,
        "timeframes": dataset.timeframes,
        "seq_len": dataset.seq_lens,
        "built": manifest["built"],
        "updated": updated,
        "last_used": last_used,
        "data_dir": dataset.data_dir,
        "symbols": {
            symbol: {
                "windows": str(entries.windows.path.resolve()),
                "streams": {timeframe: str(entry.path.resolve()) for timeframe, entry in entries.streams.items()},
                "bars": [_described(bars) for bars in sources_of(entries.windows, store)],
                "counts": _counts(dataset, symbol, entries),
            }
            for symbol, entries in dataset.symbols.items()
        },
        "left_out": manifest["left_out"],
        "splits": dataset.splits,
        "recipe": dataset.recipe,
        **{name: manifest[name] for name in CHECKS if name in manifest},
    }


def show_lines(dataset: Dataset, store: Path, updated: str, last_used: str) -> Iterator[str]:
    """What people want to know of it."""
    source = dataset.recipe["source"]
    stream = next(iter(next(iter(dataset.symbols.values())).streams.values())).manifest
    yield from head_lines(dataset, updated, last_used)
    yield f"  features    {stream['feature_set']}: {', '.join(stream['features'])}"
    yield f"  statistics  fitted on bars closed by {format_time(stream['statistics']['until'])}"
    yield f"  sources     {dataset.data_dir}"
    yield f"  meaning     label {source['label']}, timezone {source['timezone']}, session {source['session']}"
    for part, bounds in dataset.splits.items():
        limit = f"until {format_time(bounds['until'])}" if "until" in bounds else f"from {format_time(bounds['from'])}"
        yield f"  {part:<11} {limit}"
    left_out = [f"{symbol}: {why}" for symbol, why in dataset.entry.manifest["left_out"].items()]
    yield from (f"  left out    {line}" for line in first_of(left_out, _LINES))
    yield from check_lines(dataset.entry.manifest)
    if len(dataset.symbols) <= _IN_FULL:
        for symbol, entries in dataset.symbols.items():
            yield ""
            yield from _symbol_lines(dataset, symbol, entries, store)
    else:
        yield ""
        yield from _symbols_table(dataset, store)


def head_lines(dataset: Dataset, updated: str, last_used: str) -> Iterator[str]:
    """Where it is, and when it was made and needed."""
    built = dataset.entry.manifest["built"]
    by = ", ".join(f"{name} {version}" for name, version in built["by"].items())
    yield f"{dataset.name}  {dataset.entry.path.resolve()}"
    yield f"  built       {built['at']} by {by}"
    yield f"  used        last asked for {updated}, last used {last_used}"


def check_lines(manifest: Mapping[str, Any]) -> Iterator[str]:
    """Warnings, and what was checked."""
    yield from (f"  warning     {warning}" for warning in first_of(manifest.get("warnings", ()), _LINES))
    yield from (f"  consistency {line}" for line in _consistency_lines(manifest.get("consistency", {})))
    if "certificate" in manifest:
        certificate = manifest["certificate"]
        drawn = [f"{name} {certificate[name]}" for name in ("samples", "seed") if name in certificate]
        verdict = "passed" if certificate["passed"] else "FAILED"
        yield f"  certificate {verdict}{', ' * bool(drawn)}{', '.join(drawn)}"
        for name, check in certificate["checks"].items():
            detail = check.get("detail") or f"{check.get('checked', 0):,} checked"
            yield f"    {'passed' if check.get('passed') else 'FAILED'}  {name}: {detail}"


def _consistency_lines(reports: Mapping[str, Any]) -> Iterator[str]:
    """Bars that were given against those made of the base, by symbol and timeframe; where all agree, a count."""
    agree, differ = 0, list[str]()
    for symbol, of_symbol in reports.items():
        for timeframe, report in of_symbol.items():
            apart = {name: report[name] for name in ("different", "only_given", "only_derived") if report.get(name)}
            if apart:
                words = ", ".join(f"{count:,} {name.replace('_', ' ')}" for name, count in apart.items())
                differ.append(f"{symbol} {timeframe}: {report.get('equal', 0):,} given bars equal, {words}")
            else:
                agree += 1
    yield from first_of(differ, _LINES)
    if agree:
        yield f"given bars are what the base makes of them: {agree} of {agree + len(differ)} timeframes"


def _symbol_lines(dataset: Dataset, symbol: str, entries: SymbolEntries, store: Path) -> Iterator[str]:
    time = entries.windows.array("time")
    yield f"{symbol}: {len(time):,} windows  {entries.windows.path.resolve()}"
    for part, bounds in dataset.splits.items():
        start, stop = bounds["windows"][symbol]
        decided = f", decided from {format_time(time[start])} to {format_time(time[stop - 1])}" if stop > start else ""
        yield f"  {part:<11} {stop - start:,} windows{decided}"
    rows = [
        (f"  {name}", str(dataset.seq_lens[name]), f"{one.shape('values')[0]:,}", str(one.path.resolve()))
        for name, one in entries.streams.items()
    ]
    yield from table([("  timeframe", "bars a window", "bars", "stream"), *rows], right={1, 2})
    for bars in sources_of(entries.windows, store):
        described = _described(bars)
        yield f"  bars of {described['origin']}"
        if described["recognised"]:
            columns = (f"{name}: {column}" for name, column in described["recognised"].items())
            yield f"    recognised {', '.join(columns)}"
        for fault, change in described["repaired"].items():
            yield f"    repaired {fault}: rows {change['rows']:,}, first row {change['first_row']:,}"
        yield from (f"    {remark}" for remark in described["remarks"])


def _symbols_table(dataset: Dataset, store: Path) -> Iterator[str]:
    """A line a symbol; of many symbols those of which most was repaired, and those with the fewest windows."""
    rows: list[tuple[int, int, tuple[str, ...]]] = []
    names = ("windows", *dataset.splits, "purged")
    for symbol, entries in dataset.symbols.items():
        counts, time = _counts(dataset, symbol, entries), entries.windows.array("time")
        bars = [_described(one) for one in sources_of(entries.windows, store)]
        repaired = Counter[str]()
        for one in bars:
            repaired.update({fault: change["rows"] for fault, change in one["repaired"].items()})
        rows_of = ", ".join(f"{fault} {count:,}" for fault, count in repaired.items())
        columns = [f"{counts[name]:,}" for name in names]
        ends = [format_time(time[at])[:10] for at in (0, -1)]
        row = (symbol, *columns, *ends, rows_of or "-", str(sum(len(one["remarks"]) for one in bars)))
        rows.append((-repaired.total(), counts["windows"], row))
    told = f"; above, the {_LINES} most repaired or with the fewest windows" if len(rows) > _LINES else ""
    shown = rows if len(rows) <= _LINES else sorted(rows)[:_LINES]
    header = ("symbol", *names, "first", "last", "repaired", "remarks")
    right = {*range(1, len(names) + 1), len(header) - 1}
    yield from table([header, *(row for *_, row in shown)], right)
    yield f"{len(rows):,} symbols with {sum(windows for _, windows, _ in rows):,} windows{told}"
    yield f"Each symbol, where its entries lie, and all remarks: bin/cache show {dataset.name} --json{of_store(store)}"


def _counts(dataset: Dataset, symbol: str, entries: SymbolEntries) -> dict[str, int]:
    ranges = {part: bounds["windows"][symbol] for part, bounds in dataset.splits.items()}
    counts = {part: stop - start for part, (start, stop) in ranges.items()}
    windows = entries.windows.shape("time")[0]
    return {"windows": windows, **counts, "purged": windows - sum(counts.values())}


def sources_of(windows: Entry, store: Path) -> Iterator[Entry]:
    """The bars, or recordings, that windows were made of, as far as they are there."""
    for stage, key in inputs(windows):
        try:
            yield open_entry(store, stage, key)
        except StoreError:  # training does not need them, so they may be gone
            continue


def _described(bars: Entry) -> dict[str, Any]:
    """How a source was understood, and what was repaired in it."""
    known = {name: bars.manifest.get(name, {}) for name in ("recognised", "repaired")}
    return {
        "path": str(bars.path.resolve()),
        "origin": bars.manifest.get("origin", "unknown"),
        "remarks": bars.manifest.get("remarks", []),
        **known,
    }
