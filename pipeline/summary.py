"""What a build tells about its dataset: windows by rule, splits, hits."""

from collections.abc import Iterator

from cache.timeframes import format_time
from pipeline.build import Outcome


def summarise(outcome: Outcome) -> Iterator[str]:
    """Lines for people."""
    dataset, manifest = outcome.dataset, outcome.dataset.entry.manifest
    yield from (f"  {remark}" for remark in outcome.remarks)
    for symbol, entries in dataset.symbols.items():
        windows = entries.windows
        kept, candidates = windows.shape("time")[0], windows.manifest["candidates"]
        yield f"  {symbol}: {kept:,} windows of {candidates:,} decision times"
        for timeframe, rules in windows.manifest["dropped"].items():
            rows = entries.streams[timeframe].shape("values")[0]
            broken = ", ".join(f"{count:,} by {rule}" for rule, count in rules.items() if count) or "none"
            length = dataset.seq_lens[timeframe]
            yield f"    {timeframe:>4}: {rows:>11,} bars, {length} a window; windows dropped: {broken}"
        train, val = (dataset.splits[part] for part in ("train", "val"))
        yield (
            f"    train {_count(train, symbol):,} windows until {format_time(train['until'])} · "
            f"{manifest['purged']:,} purged · validation {_count(val, symbol):,} from {format_time(val['from'])}"
        )
    if not outcome.built:
        yield "  Everything was in the store already; nothing was built."
    else:
        yield f"  {outcome.hits} entries reused, {len(outcome.built)} built."


def _count(part: dict[str, dict[str, list[int]]], symbol: str) -> int:
    start, stop = part["windows"][symbol]
    return stop - start
