"""What `bin/cache certify` proves beyond the certificate of a build: every row of every stream is what its bars give.

A build has just written the streams from the same bars with the same code; a store may have been changed since.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cache.entries import Entry
from cache.per_symbol import read_per_symbol
from cache.recipe import Recipe
from cache.timeframes import format_time, timeframe_ns
from pipeline import kernels
from pipeline.bars import BLOCK_ROWS
from pipeline.certify_evidence import Evidence, Finding, scale_of
from pipeline.derive import derive_bars
from pipeline.features import compute_features, feature_set
from pipeline.fields import dataset_fields, stream_fields, window_fields
from pipeline.series import BarSeries
from pipeline.universe import weights

Rows = dict[str, NDArray[Any]]  # by array
_TIMES = ("open_time", "close_time")


def stream_rows(symbols: Mapping[str, Evidence]) -> int:
    """How many rows check_rows compares."""
    return sum(len(evidence.bars[name]) for _, name, evidence in _streams(symbols))


def check_details(recipe: Recipe, dataset: Entry, symbols: Mapping[str, Evidence]) -> Finding:
    """What the manifests say of the entries is what the recipe says, and what their keys stand for. Quick."""
    found, features = Finding(), feature_set(recipe.features.set, recipe.features.plugin)

    def compare(where: str, manifest: Mapping[str, Any], fields: dict[str, Any], **expected: Any) -> None:
        for field, value in expected.items():
            if manifest[field] != value:
                found.faults.append(
                    f"{where}: its manifest has {field} = {manifest[field]}, where the recipe gives {value}"
                )
        if manifest["components"]["fields"] != fields:
            found.faults.append(f"{where}: it was made as {manifest['components']['fields']}, not as {fields}")

    compare(recipe.name, dataset.manifest, dataset_fields(recipe, symbols, dataset.manifest["left_out"]))
    known, (_, mean, std) = read_per_symbol(dataset), scale_of(recipe, symbols)
    for name, values, whence in (
        ("mean", mean, "its streams were scaled by"),
        ("std", std, "its streams were scaled by"),
        ("weight", np.array(list(weights(recipe, symbols).values())), "the recipe gives"),
    ):
        if not np.array_equal(getattr(known, name), values):
            found.faults.append(f"{recipe.name}: its array {name} is not what {whence}")
    for symbol, evidence in symbols.items():
        compare(f"{symbol} windows", evidence.windows.manifest, window_fields(recipe))
    for where, name, evidence in _streams(symbols):
        compare(
            where,
            evidence.streams[name].manifest,
            stream_fields(recipe, name),
            timeframe=name,
            nominal_length=timeframe_ns(name),
            feature_set=recipe.features.set,
            features=list(features.columns),
        )
    return found


def check_rows(recipe: Recipe, symbols: Mapping[str, Evidence], advance: Callable[[int], object]) -> Finding:
    """Make all derived bars and all streams again, block by block; `advance` hears of the rows of streams.

    The manifests must be as check_details wants them.
    """
    found, features = Finding(), feature_set(recipe.features.set, recipe.features.plugin)
    hidden = {"reveals": list(features.reveals), "own": features.told.get("own")}
    for where, name, evidence in _streams(symbols):
        found.checked += 1
        stream, bars = evidence.streams[name], evidence.bars[name]
        for field, given in hidden.items():
            if (stored := stream.manifest.get(field)) != given:
                found.faults.append(f"{where}: its manifest has {field} = {stored}, where the recipe gives {given}")
        if evidence.derived(name):
            found.faults += _wrong_bars(where, evidence.bars[recipe.base], bars, name, recipe)
        arrays = {"values", "close_time", "close"} | ({"base_rows"} if name != recipe.base else set())
        if set(stream.manifest["arrays"]) != arrays:
            found.faults.append(f"{where}: it has the arrays {sorted(stream.manifest['arrays'])}, not {sorted(arrays)}")
        elif stream.shape("values")[0] != len(bars):
            found.faults.append(f"{where}: it has {stream.shape('values')[0]:,} rows, and there are {len(bars):,} bars")
        else:
            base = evidence.bars[recipe.base] if name != recipe.base else None
            found.faults += _wrong_rows(where, stream, _stream_again(stream, bars, base, name, recipe), advance)
    found.detail = f"all rows of all {found.checked} streams are, bit for bit, what their bars give"
    return found


def _streams(symbols: Mapping[str, Evidence]) -> Iterator[tuple[str, str, Evidence]]:
    """Every stream once: (what to call it, timeframe, where it is)."""
    seen = set()
    for symbol, evidence in symbols.items():
        for name, stream in evidence.streams.items():
            if stream.key not in seen:
                seen.add(stream.key)
                yield f"{symbol} {name}", name, evidence


def _stream_again(
    stream: Entry, bars: BarSeries, base: BarSeries | None, timeframe: str, recipe: Recipe
) -> Iterator[Rows]:
    """All rows of a stream in blocks, scaled as its manifest says."""
    features = feature_set(recipe.features.set, recipe.features.plugin)
    moments = stream.manifest["statistics"]
    mean, std = (np.array([moments[kind][column] for column in features.columns]) for kind in ("mean", "std"))
    unused, low = np.zeros_like(mean), 0
    few = max(BLOCK_ROWS * timeframe_ns(recipe.base) // timeframe_ns(timeframe), 1)  # bars, to hold few base bars
    blocks = compute_features(bars, features, len(bars))
    for (start, stop), (ohlc, raw) in zip(bars.ranges(), blocks, strict=True):
        values = np.empty(raw.shape, np.float32)
        kernels.normalise(raw, mean, std, 0, values, unused, unused)
        opened, closed = (bars.rows(name, start, stop) for name in _TIMES)
        made: Rows = {"close_time": closed, "close": ohlc[:, 3], "values": values}
        if base is not None:
            made["base_rows"] = np.empty((stop - start, 2), np.int32)
            for at in range(0, stop - start, few):
                edges = np.stack([opened[at : at + few], closed[at : at + few]], axis=1)
                made["base_rows"][at : at + few] = rows = _open_before(base, edges, low)
                low = int(rows[-1, 0])
        yield made


def _open_before(base: BarSeries, edges: NDArray[np.int64], low: int) -> NDArray[np.int64]:
    """How many base bars open before each instant; the first `low` do in any case."""
    parts = [np.empty(0, np.int64)]
    for start in range(low, len(base), BLOCK_ROWS):
        parts.append(base.rows("open_time", start, min(start + BLOCK_ROWS, len(base))))
        if parts[-1][-1] >= edges.max():
            break
    return low + np.searchsorted(np.concatenate(parts), edges)


def _wrong_rows(where: str, stream: Entry, blocks: Iterator[Rows], advance: Callable[[int], object]) -> Iterator[str]:
    """The first difference of every array."""
    start, wrong = 0, set[str]()
    for made in blocks:
        stop = start + len(made["close_time"])
        for array, again in made.items():
            stored = stream.rows(array, start, stop)
            if array not in wrong and stored.tobytes() != again.astype(stored.dtype, copy=False).tobytes():
                wrong.add(array)
                columns = stream.manifest["features"] if array == "values" else ("first", "past the last")
                yield f"{where}: {_difference(array, columns, start, stored, again, made['close_time'])}"
        start = stop
        advance(len(made["close_time"]))


def _wrong_bars(where: str, base: BarSeries, bars: BarSeries, timeframe: str, recipe: Recipe) -> Iterator[str]:
    """The first difference between derived bars and those that the base makes."""
    start = 0
    for block in derive_bars(base.blocks(), timeframe, recipe.source.session):
        stop = start + len(block.ohlc)
        if stop > len(bars):
            break
        for array in (*_TIMES, "ohlc"):
            stored, again = bars.rows(array, start, stop), getattr(block, array)
            if stored.tobytes() != again.tobytes():
                columns = ("open", "high", "low", "close")
                yield f"{where} bars: {_difference(array, columns, start, stored, again, block.close_time)}"
                return
        start = stop
    if start != len(bars):
        yield f"{where} bars: there are {len(bars):,}, which is not what the base makes"


def _difference(
    array: str,
    columns: tuple[str, ...] | list[str],
    start: int,
    stored: NDArray[Any],
    made: NDArray[Any],
    closed: NDArray[np.int64],
) -> str:
    """Words for the first row that differs."""
    differs = (stored != made) & ~((stored != stored) & (made != made))
    if not differs.any():
        return f"{array} differs in a sign of zero or a kind of NaN"
    at = tuple(np.argwhere(differs)[0])
    name = f"{array} ({columns[at[1]]})" if len(at) > 1 else array
    then, now = (format_time(x[at]) if array in _TIMES else f"{x[at]:.9g}" for x in (stored, made))
    return (
        f"row {start + int(at[0]):,}, the bar that closed at {format_time(closed[at[0]])}: {name} is {then} in the "
        f"store, where the bars give {now}"
    )
