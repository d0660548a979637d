"""Which windows there are, and which train: what each rule dropped, and the split with its purge and embargo to scale.

Times are int64 ns UTC. Streams keep when bars closed; when the first bar of a window opened is told as for coverage.
"""

from collections.abc import Mapping, Sequence

from cache.charts import Piece, rows
from cache.entries import Entry
from cache.html import figure, grid, legend, subheading, table
from cache.reader import Dataset, SymbolEntries
from pipeline.report_coverage import lasting, minute

_RULES = {
    "history": "too few bars before it",
    "staleness": "its last bar closed too long ago",
    "coverage": "bars cover too little of its span",
}
_SYMBOLS = 40  # in tables


def dropped_body(dataset: Dataset, symbol: str) -> str:
    """Windows kept and dropped: of one symbol by timeframe and rule, of all symbols in numbers."""
    windows = dataset.symbols[symbol].windows
    candidates, dropped = int(windows.manifest["candidates"]), windows.manifest["dropped"]
    kept = windows.shape("time")[0]
    drawn: list[tuple[str, str, Sequence[Piece]]] = [
        ("all rules together", f"{kept:,} of {candidates:,} kept", _share(kept, candidates, "train", "kept")),
    ]
    for timeframe, rules in dropped.items():
        most = max(rules.values())
        words = ", ".join(f"{count:,} by {rule}" for rule, count in rules.items() if count) or "none dropped"
        drawn.append((timeframe, words, _share(most, candidates, "bad", words) if most else []))
    drawing = rows(
        f"Windows of {symbol} dropped, by rule", f"Of {candidates:,} decision times {kept:,} became windows.", drawn
    )
    rules = list(dict.fromkeys(rule for of in dropped.values() for rule in of))
    numbers = [(name, *(f"{of.get(rule, 0):,}" for rule in rules)) for name, of in dropped.items()]
    caption = "A window that breaks several rules is counted for each: " + "; ".join(
        f"{rule}, {_RULES[rule]}" for rule in rules if rule in _RULES
    )
    return legend({"train": "kept", "bad": "dropped"}) + grid(
        [figure(drawing, caption), table(("timeframe", *rules), numbers)], "two"
    )


def split_body(dataset: Dataset, symbol: str) -> str:
    """The split of one symbol drawn to scale, whole and where the parts meet, and the windows of every symbol."""
    entries = dataset.symbols[symbol]
    ranges = {name: part["windows"][symbol] for name, part in dataset.splits.items()}
    until, begins = int(dataset.splits["train"]["until"]), int(dataset.splits["val"]["from"])
    figures = [
        figure(
            _whole(dataset, symbol, entries, ranges, until, begins), f"All windows of {symbol}, by decision time (UTC)"
        )
    ]
    val = ranges["val"] if ranges["val"][1] > ranges["val"][0] else ranges.get("hold_out", ranges["val"])
    if ranges["train"][1] > ranges["train"][0] and val[1] > val[0]:
        drawing = _meeting(dataset, entries, ranges["train"][1] - 1, val[0], until, begins)
        figures.append(
            figure(
                drawing,
                "Where they meet: all that the last training window and the first validation window see, by timeframe. "
                f"The dashed lines are {minute(until)} and {minute(begins)}",
            )
        )
    words = {"train": "training", "grey": "purged: windows of neither part", "val": "validation"}
    return legend(words) + grid(figures, "two") + _counts(dataset)


def _whole(
    dataset: Dataset, symbol: str, entries: SymbolEntries, ranges: Mapping[str, Sequence[int]], until: int, begins: int
) -> str:
    time = entries.windows.array("time")
    first, last = int(time[0]), int(time[-1])
    length = max(last - first, 1)

    def at(ns: int) -> float:
        return (ns - first) / length

    def part(name: str, class_: str) -> list[Piece]:
        start, stop = ranges[name]
        if stop <= start:
            return []
        words = f"{stop - start:,} windows, {minute(int(time[start]))} to {minute(int(time[stop - 1]))}"
        return [Piece(at(int(time[start])), at(int(time[stop - 1])), class_, words)]

    purged = len(time) - sum(stop - start for start, stop in ranges.values())
    start, stop = ranges["train"]
    after = [begin for name, (begin, end) in ranges.items() if name != "train" and end > begin]
    between = []
    if after and stop > start and min(after) > stop:
        between = [Piece(at(int(time[stop])), at(int(time[min(after) - 1])), "grey", f"{purged:,} windows purged")]
    drawn: list[tuple[str, str, Sequence[Piece]]] = [
        (f"training, {stop - start:,} windows", f"until {minute(until)}", part("train", "train")),
        (f"purged, {purged:,} windows", f"embargo {lasting(begins - until) if begins > until else 'none'}", between),
    ]
    for name in [name for name in ("val", "hold_out") if name in ranges and part(name, "")] or ["val"]:
        start, stop = ranges[name]
        words = "validation" if name == "val" else "held out"
        drawn.append((f"{words}, {stop - start:,} windows", f"from {minute(begins)}", part(name, "val")))
    title = f"The split of {symbol} to scale"
    return rows(title, f"From {minute(first)} to {minute(last)}.", drawn, [at(until), at(begins)])


def _meeting(dataset: Dataset, entries: SymbolEntries, train: int, val: int, until: int, begins: int) -> str:
    """What the last training window and the first validation window see, by timeframe, on one scale."""
    time, ends = entries.windows.array("time"), entries.windows.array("ends")
    seen: list[tuple[str, list[tuple[int, int]]]] = []
    for j, (name, stream) in enumerate(entries.streams.items()):
        length = dataset.seq_lens[name]
        seen.append((name, [(opened(stream, int(ends[w, j]) - length), int(time[w])) for w in (train, val)]))
    first = min(start for _, of in seen for start, _ in of)
    last = max(end for _, of in seen for _, end in of)

    def piece(start: int, end: int, class_: str) -> Piece:
        return Piece(
            (start - first) / (last - first),
            (end - first) / (last - first),
            class_,
            f"{minute(start)} to {minute(end)}",
        )

    drawn = [
        (
            name,
            f"{dataset.seq_lens[name]} bars, {lasting(of[0][1] - of[0][0])}",
            [piece(*of[0], "train"), piece(*of[1], "val")],
        )
        for name, of in seen
    ]
    marks = [(at - first) / (last - first) for at in (until, begins) if first <= at <= last]
    return rows(
        "The last training and the first validation window to scale",
        f"{minute(first)} to {minute(last)}.",
        drawn,
        marks,
    )


def opened(stream: Entry, row: int) -> int:
    """When the bar of a row opened."""
    close = stream.array("close_time")
    opens = int(close[row]) - int(stream.manifest["nominal_length"])
    return max(opens, int(close[row - 1])) if row else opens


def _counts(dataset: Dataset) -> str:
    known, lines = dataset.per_symbol, []
    for k, symbol in enumerate(known.names[:_SYMBOLS]):
        counts = [int(stop - start) for start, stop in (part[k] for part in known.parts.values())]
        cells = [f"{count:,}" for count in (counts[0], int(known.windows[k]) - sum(counts), *counts[1:])]
        lines.append((symbol, *cells))
    held = ["held out"] * ("hold_out" in dataset.splits)
    more = len(dataset.symbols) - len(lines)
    listed = table(("windows of", "training", "purged", "validation", *held), lines)
    return listed + (subheading(f"… and {more:,} more symbols") if more > 0 else "")


def _share(count: int, of: int, class_: str, words: str) -> list[Piece]:
    return [Piece(0, count / max(of, 1), class_, words)]
