"""Makes the entries of a dataset of bars: one function a stage, each a loop over blocks from input to writer."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from cache.entries import Entry, open_entry
from cache.layout import TIME_ATTRIBUTES, ArraySpec
from cache.recipe import Recipe
from cache.timeframes import timeframe_ns
from cache.writer import EntryWriter
from configs.errors import UserError
from pipeline.align import Dropped, align, explain_empty
from pipeline.bars import Block, ReadLog, read_bars
from pipeline.children import base_rows
from pipeline.continuing import base_bars_before, entry_before
from pipeline.dataset import describe_dataset
from pipeline.derive import bucket_bounds, derive_bars
from pipeline.features import (
    FeatureSet,
    Moments,
    Statistics,
    feature_set,
    fit_moments,
    fit_statistics,
    normalised,
    scaled,
    sum_of_moments,
)
from pipeline.fields import stream_fields
from pipeline.plan import Node
from pipeline.series import BarSeries
from pipeline.sources import check_source
from pipeline.split import train_cutoff, train_end_of
from pipeline.way import Advance, Builder


def _build_bars(node: Node, recipe: Recipe, store: Path, entry: EntryWriter, advance: Advance) -> None:
    log, timeframe = ReadLog(), str(node.timeframe)
    before = entry_before("bars", node.earlier, recipe.base, store)
    first_open, last_close = (before.manifest[name] if before else 0 for name in ("first_open", "last_close"))
    if node.file is not None:
        blocks = read_ahead(read_bars(node.file.path, recipe.source, timeframe, node.file.rows, log, node.file.divided))
        origin = node.file.path.name
    else:
        base = BarSeries(store, node.components.inputs["bars"])
        whence = 0
        if before:
            opened = int(before.rows("open_time", before.shape("open_time")[0] - 1, before.shape("open_time")[0])[0])
            whence = base.opened_before(int(bucket_bounds(opened, opened, timeframe, recipe.source.session)[1]))
        blocks = derive_bars(base.blocks(whence), timeframe, recipe.source.session)
        origin = f"{timeframe} derived from {recipe.base}"
    open_time = entry.array(ArraySpec("open_time", "<i8", ("time",), attributes=TIME_ATTRIBUTES), before)
    close_time = entry.array(ArraySpec("close_time", "<i8", ("time",), attributes=TIME_ATTRIBUTES), before)
    ohlc = entry.array(ArraySpec("ohlc", "<f8", ("time", "price"), (4,)), before)
    for block in blocks:
        first_open = first_open or int(block.open_time[0])
        last_close = int(block.close_time[-1])
        open_time.append(block.open_time)
        close_time.append(block.close_time)
        ohlc.append(block.ohlc)
        advance(len(block.ohlc))
    if not first_open:
        raise UserError(
            f"{node.symbol}: {origin}: the data does not fill a single bar; add data, or leave {timeframe} out"
        )
    if node.file is not None:
        check_source(node.file)
    entry.publish(
        origin=origin,
        recognised=log.recognised,
        remarks=log.remarks,
        repaired=log.repaired,
        first_open=first_open,
        last_close=last_close,
    )


def _build_windows(node: Node, recipe: Recipe, store: Path, entry: EntryWriter, advance: Advance) -> None:
    bars = {name: BarSeries(store, keys) for name, keys in node.components.inputs.items()}
    before = entry_before("windows", node.earlier, recipe.base, store)
    ends = entry.array(ArraySpec("ends", "<i4", ("window", "stream"), (len(bars),)), before)
    time = entry.array(ArraySpec("time", "<i8", ("window",), attributes=TIME_ATTRIBUTES), before)
    dropped, first = Dropped(np.zeros((len(bars), 3), np.int64)), 0
    if before and node.earlier:
        dropped = Dropped.of(before)
        first = base_bars_before(node.earlier, recipe.base, store)
    for block_ends, block_time in align(bars, recipe, dropped, first):
        ends.append(block_ends)
        time.append(block_time)
        advance(len(block_time))
    if not dropped.kept:
        raise explain_empty(dropped, node.symbol, recipe, bars)
    entry.publish(
        timeframes=recipe.timeframes,
        seq_len=recipe.seq_lens,
        candidates=dropped.candidates,
        dropped=dropped.table(recipe.timeframes),
    )


def _build_streams(node: Node, recipe: Recipe, store: Path, entry: EntryWriter, advance: Advance) -> None:
    bars = BarSeries(store, node.components.inputs["bars"])
    features = _features(node, recipe)
    where = f"{node.symbol} {node.timeframe}"
    cutoff = train_cutoff(store, node.components.inputs, recipe)
    pooled = node.components.inputs.get("statistics")
    before = entry_before("streams", node.earlier, recipe.base, store)
    known = before.manifest["statistics"] if before else {}
    if pooled:
        statistics, scale = read_moments(store, pooled).statistics(features, f"all symbols {node.timeframe}"), scaled
    elif known and (known["until"], known["rows"]) == (cutoff, bars.completed_by(cutoff)):
        statistics, scale = Statistics.of(known), normalised
    else:
        statistics, scale = fit_statistics(bars, features, bars.completed_by(cutoff), where), normalised
    if known != statistics.manifest(features.columns, cutoff):
        before = None
    first = before.shape("values")[0] if before else 0
    values = entry.array(ArraySpec("values", "<f4", ("time", "feature"), (len(features.columns),)), before)
    close_time = entry.array(ArraySpec("close_time", "<i8", ("time",), attributes=TIME_ATTRIBUTES), before)
    close = entry.array(ArraySpec("close", "<f8", ("time",)), before)
    blocks = scale(bars, features, statistics, where, first)
    for (start, stop), (ohlc, block) in zip(bars.ranges(first), blocks, strict=True):
        values.append(block)
        close_time.append(bars.rows("close_time", start, stop))
        close.append(ohlc[:, 3])
        advance(len(block))
    if node.timeframe != recipe.base:
        base = BarSeries(store, node.components.inputs["base"])
        children = entry.array(ArraySpec("base_rows", "<i4", ("time", "bound"), (2,)), before)
        children.append(base_rows(base, bars, first))
    entry.publish(
        timeframe=node.timeframe,
        nominal_length=timeframe_ns(str(node.timeframe)),
        features=list(features.columns),
        reveals=list(features.reveals),
        feature_set=recipe.features.set,
        **features.told,
        statistics=statistics.manifest(features.columns, cutoff),
    )


def _features(node: Node, recipe: Recipe) -> FeatureSet:
    """The feature set that the node's key is of. Raises UserError when the user's file has changed since."""
    if stream_fields(recipe, str(node.timeframe))["features"] != node.components.fields["features"]:
        raise UserError(f"{recipe.features.plugin}: changed while it was at work; run the command again")
    return feature_set(recipe.features.set, recipe.features.plugin)


def _build_split(node: Node, recipe: Recipe, store: Path, entry: EntryWriter, advance: Advance) -> None:
    entry.publish(train_end=train_end_of(store, node.components.inputs["bars"], recipe))
    advance(0)


def _build_statistics(node: Node, recipe: Recipe, store: Path, entry: EntryWriter, advance: Advance) -> None:
    """Moments of one symbol's training rows, or the sum of those of all symbols."""
    inputs = node.components.inputs
    if "statistics" in inputs:
        moments = read_moments(store, inputs["statistics"])
        until = int(open_entry(store, "statistics", inputs["statistics"][0]).manifest["until"])
    else:
        bars, until = BarSeries(store, inputs["bars"]), train_cutoff(store, inputs, recipe)
        rows, before = bars.completed_by(until), entry_before("statistics", node.earlier, recipe.base, store)
        if before and (before.manifest["until"], before.manifest["rows"]) == (until, rows):
            moments = _moments(before)
        else:
            moments = fit_moments(bars, _features(node, recipe), rows)
    entry.publish(
        timeframe=node.timeframe,
        until=until,
        rows=moments.rows,
        mean=moments.mean.tolist(),
        scatter=moments.scatter.tolist(),
    )
    advance(0)


def _build_dataset(node: Node, recipe: Recipe, store: Path, entry: EntryWriter, advance: Advance) -> None:
    before = entry_before("datasets", node.earlier, recipe.base, store)
    manifest, known = describe_dataset(recipe, node.components.inputs, node.left_out, store, before)
    for spec, values in known.arrays():
        entry.array(spec).append(values)
    entry.publish(**manifest)
    advance(1)


def read_moments(store: Path, keys: Sequence[str]) -> Moments:
    """The sum of what `statistics` entries hold."""
    return sum_of_moments(_moments(open_entry(store, "statistics", key)) for key in keys)


def _moments(statistics: Entry) -> Moments:
    found = statistics.manifest
    return Moments(found["rows"], np.array(found["mean"]), np.array(found["scatter"]))


def read_ahead(blocks: Iterable[Block]) -> Iterator[Block]:
    """The same blocks, each made in a thread while the one before is being written."""
    iterator = iter(blocks)
    with ThreadPoolExecutor(1) as reader:
        following = reader.submit(next, iterator, None)
        while (block := following.result()) is not None:
            following = reader.submit(next, iterator, None)
            yield block


BUILDERS: Mapping[str, Builder] = {
    "bars": _build_bars,
    "splits": _build_split,
    "statistics": _build_statistics,
    "windows": _build_windows,
    "streams": _build_streams,
    "datasets": _build_dataset,
}
