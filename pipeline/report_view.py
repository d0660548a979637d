"""What one window sees: the candles of all timeframes at one decision time, and the bars that are not over yet."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from cache.charts import Candles, candle_panel
from cache.entries import Entry
from cache.html import figure, grid, legend
from cache.reader import Dataset, SymbolEntries
from pipeline.report_coverage import lasting, minute
from pipeline.report_split import opened

Array = NDArray[Any]
_DRAWN = 64  # bars of a timeframe, at most
_FUTURE = 3  # places after the decision time, for the bar that is not over yet
_TRIED = 512  # windows, to find one that tells most


def view_body(dataset: Dataset, symbol: str) -> str:
    """A panel a timeframe."""
    entries = dataset.symbols[symbol]
    window = telling_window(entries, _range(dataset, symbol))
    time = int(entries.windows.array("time")[window])
    ends = entries.windows.array("ends")[window]
    names = {
        "rising": "close above open",
        "falling": "close below open",
        "shade": "after the decision time, which the window does not see",
        "unfinished": "a bar that was not over yet, as it became",
    }
    panels = [
        _panel(symbol, name, stream, int(end), dataset.seq_lens[name], time)
        for (name, stream), end in zip(entries.streams.items(), ends, strict=True)
    ]
    return (
        f"<p>Window {window:,} of {symbol}, decided at <strong>{minute(time)} UTC</strong>.</p>"
        + legend(names)
        + grid(panels)
    )


def telling_window(entries: SymbolEntries, among: range) -> int:
    """Of some windows from the middle on, the first at whose time most timeframes have an unfinished bar."""
    start = among.start + len(among) // 2
    stop = min(start + _TRIED, among.stop)
    times = np.asarray(entries.windows.array("time")[start:stop])
    ends = np.asarray(entries.windows.array("ends")[start:stop])
    count = np.zeros(len(times), np.int64)
    for j, stream in enumerate(entries.streams.values()):
        count += unfinished(stream, ends[:, j].astype(np.int64), times)
    return start + int(count.argmax())


def unfinished(stream: Entry, ends: Array, times: Array) -> Array:
    """Whether the bar after those completed, row `ends`, has opened before `times` and not closed: bool [n]."""
    close, rows = stream.array("close_time"), stream.shape("close_time")[0]
    there = ends < rows
    at = np.minimum(ends, rows - 1)
    opens = np.maximum(
        np.asarray(close[at]) - int(stream.manifest["nominal_length"]), np.asarray(close[np.maximum(at - 1, 0)])
    )
    return np.asarray(there & (opens < times) & (times < np.asarray(close[at])))


def prices_of(stream: Entry, start: int, stop: int) -> Array:
    """Open, high, low and close, float64 [n, 4], from features and closes."""
    statistics = stream.manifest["statistics"]
    mean, std = (np.array(list(statistics[name].values())[:4]) for name in ("mean", "std"))
    raw = stream.rows("values", start, stop)[:, :4] * std + mean
    if stream.manifest["feature_set"] == "price":
        return np.asarray(raw)
    close = stream.rows("close", max(start - 1, 0), stop)
    before = close[:-1] if start else np.append(close[0] / np.exp(raw[0, 3]), close[:-1])
    return np.asarray(before[:, None] * np.exp(raw))


def _range(dataset: Dataset, symbol: str) -> range:
    """The windows that validate, else all there are."""
    for name in ("val", "hold_out", "train"):
        found = range(*dataset.splits.get(name, {"windows": {symbol: (0, 0)}})["windows"][symbol])
        if found:
            return found
    return range(dataset.symbols[symbol].windows.shape("time")[0])


def _panel(symbol: str, name: str, stream: Entry, end: int, length: int, time: int) -> str:
    shown = min(length, _DRAWN)
    more = bool(unfinished(stream, np.array([end]), np.array([time]))[0])
    start = end - shown
    prices = prices_of(stream, start, end + more)
    begins, ends = minute(opened(stream, start)), minute(time)
    close = stream.array("close_time")
    last = "the last of them closed " + (
        lasting(time - int(close[end - 1])) + " before" if close[end - 1] < time else "just then"
    )
    after = f"; the grey one closes {lasting(int(close[end]) - time)} later" if more else ""
    of = f"{shown} of {length}" if shown < length else str(length)
    caption = f"{name}: {of} bars, {last}{after}"
    title = f"{name} bars of {symbol} that the window decided at {ends} UTC sees"
    future = np.full((_FUTURE, 4), np.nan)
    future[1 : 1 + more] = prices[shown:]
    classes = [""] * shown + ["open"] * _FUTURE
    bars = Candles(np.concatenate([prices[:shown], future]), classes, [(shown, shown + _FUTURE)], begins, ends)
    return figure(candle_panel(title, caption, bars), caption)
