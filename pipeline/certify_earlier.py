"""What the certificate of an earlier dataset has proved, and what of it holds for one whose symbols go on from there.

It holds for the windows, and the bars they rest on, that are the same to the byte in both: full pieces by their MD5s,
the other rows by comparison. Only what follows them has to be proved anew.
"""

from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from cache.entries import Entry, StoreError, open_entry
from cache.layout import PIECE_ROWS
from cache.per_symbol import read_per_symbol, splits_of
from pipeline.certify_evidence import Evidence, Proved
from pipeline.series import BarSeries


def with_proved(
    earlier: Entry | None, symbols: Mapping[str, Evidence], splits: Mapping[str, Any], store: Path
) -> dict[str, Evidence]:
    """The evidence with what still holds of an earlier dataset; nothing does if the split, or a symbol, is another."""
    found = dict(symbols)
    if earlier is None or not earlier.manifest["certificate"]["passed"]:
        return found
    inputs = earlier.manifest["components"]["inputs"]
    try:
        then = splits_of(earlier.manifest["splits"], read_per_symbol(earlier))
    except StoreError:
        return found
    if _instants(then) != _instants(splits) or list(inputs) != list(symbols):
        return found
    for symbol, evidence in symbols.items():
        with suppress(StoreError):
            windows = open_entry(store, "windows", inputs[symbol]["windows"])
            bars = {name: BarSeries(store, keys) for name, keys in windows.manifest["components"]["inputs"].items()}
            streams = {name: open_entry(store, "streams", key) for name, key in inputs[symbol]["streams"].items()}
            if _begins_with(evidence, windows, bars):
                proved = Proved(
                    earlier.key,
                    windows.shape("time")[0],
                    {name: len(series) for name, series in bars.items()},
                    {part: tuple(of["windows"][symbol]) for part, of in then.items()},
                    {name: stream.manifest["statistics"] for name, stream in streams.items()},
                )
                found[symbol] = replace(evidence, proved=proved)
    return found


def _instants(splits: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    return {part: {name: at for name, at in of.items() if name != "windows"} for part, of in splits.items()}


def _begins_with(evidence: Evidence, windows: Entry, bars: Mapping[str, BarSeries]) -> bool:
    """Whether windows and bars of a symbol begin with those, and no bar that follows counts in one of the windows."""
    if list(bars) != list(evidence.bars) or not _same_rows(evidence.windows, windows, ("ends", "time")):
        return False
    decided = int(windows.rows("time", windows.shape("time")[0] - 1, windows.shape("time")[0])[0])
    for name, before in bars.items():
        series, count = evidence.bars[name], len(before)
        for now, then in zip(series.entries, before.entries, strict=False):
            goes_on = len(before.entries) == 1 and _same_rows(now, then, ("open_time", "close_time", "ohlc"))
            if now.key != then.key and not goes_on:
                return False
        if len(series) < count or (len(series) > count and series.rows("close_time", count, count + 1)[0] <= decided):
            return False
    return True


def _same_rows(now: Entry, then: Entry, arrays: Iterable[str]) -> bool:
    """Whether arrays begin with those of another entry."""
    for name in arrays:
        rows = then.shape(name)[0]
        full = rows // PIECE_ROWS
        md5s = [entry.manifest["arrays"][name]["md5"][:full] for entry in (now, then)]
        if now.shape(name)[0] < rows or md5s[0] != md5s[1]:
            return False
        if now.rows(name, full * PIECE_ROWS, rows).tobytes() != then.rows(name, full * PIECE_ROWS, rows).tobytes():
            return False
    return True
