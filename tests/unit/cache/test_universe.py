"""The windows of many symbols in one numbering, and their rows read without a manifest of any but the first."""

import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import xarray

from cache import layout, reader
from cache import rows as rows_module
from cache.entries import StoreError
from cache.keys import Components
from cache.layout import ArraySpec
from cache.part import universe_of
from cache.reader import Dataset, Symbols, open_dataset
from cache.rows import Kind, RowReader, Rows
from cache.writer import EntryWriter
from pipeline.build import build
from tests.unit.pipeline.making import MINUTE, MONDAY, make_recipe, quiet, random_ohlc, write_parquet

LENGTHS = {f"S{k:02}": 900 + 37 * k for k in range(reader.AT_ONCE + 1)}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """More symbols than are opened at once, of unequal lengths; S03 is held out."""
    folder = tmp_path_factory.mktemp("many")
    for seed, (name, rows) in enumerate(LENGTHS.items()):
        ohlc = random_ohlc(np.random.default_rng(seed), rows)
        write_parquet(folder / f"{name}.parquet", MONDAY + MINUTE * np.arange(rows), ohlc)
    overrides = ("source.files={m1: '{symbol}.parquet'}", "timeframes=[m1, m5]", "window.seq_len=8")
    build(make_recipe(*overrides, "universe={hold_out: [S03], weights: {S01: 3}}"), folder, folder / "s", 2, quiet())
    return folder / "s"


@pytest.fixture
def dataset(store: Path) -> Dataset:
    return open_dataset(store, "test")


def test_opening_reads_no_file_twice(store: Path):
    opened: list[str] = []

    def noted(event: str, arguments: tuple) -> None:  # no hook is ever taken away
        if event == "open" and str(arguments[0]).startswith(str(store)):
            opened.append(str(arguments[0]))

    sys.addaudithook(noted)
    dataset = open_dataset(store, "test")
    assert dataset.per_symbol.names == tuple(dataset.symbols)
    assert dataset.splits
    assert len(opened) == len(set(opened)) >= len(dataset.entry.manifest["arrays"])


def test_windows_are_numbered_symbol_by_symbol(dataset: Dataset):
    universe = universe_of(dataset)
    assert universe.symbols == tuple(LENGTHS)
    number = 0
    for k, (symbol, entries) in enumerate(dataset.symbols.items()):
        count = entries.windows.shape("time")[0]
        assert universe.first[k] == number
        lengths = {of: int(rows[k]) for of, rows in universe.rows.lengths.items()}
        assert lengths == {"windows": count, **{n: one.shape("values")[0] for n, one in entries.streams.items()}}
        for name, part in universe.parts.items():
            assert (part[k] - number).tolist() == dataset.splits[name]["windows"][symbol]
        number += count
    assert universe.first[-1] == number
    assert universe.weights.tolist() == [3 if symbol == "S01" else 1 for symbol in LENGTHS]
    symbol, local = universe.locate(np.arange(number))
    assert (universe.first[symbol] + local == np.arange(number)).all()
    assert (np.bincount(symbol) == np.diff(universe.first)).all()


def test_other_readers_see_what_is_known_of_each_symbol(dataset: Dataset):
    with xarray.open_zarr(dataset.entry.path, consolidated=False) as opened:
        attrs = opened.attrs
        found = opened.assign_coords(
            symbol=list(attrs["components"]["inputs"]), timeframe=attrs["timeframes"], feature=attrs["features"]
        )
        for symbol, entries in dataset.symbols.items():
            one = found.sel(symbol=symbol)
            assert one["windows"] == entries.windows.shape("time")[0]
            assert {part: one[part].values.tolist() for part in attrs["splits"]} == {
                part: of["windows"][symbol] for part, of in dataset.splits.items()
            }
            for name, stream in entries.streams.items():
                of_stream = one.sel(timeframe=name)
                assert of_stream["rows"] == stream.shape("values")[0]
                for moment in ("mean", "std"):
                    assert of_stream[moment].to_series().to_dict() == stream.manifest["statistics"][moment]


def test_parts_are_of_the_symbols_that_are_meant(dataset: Dataset):
    universe = universe_of(dataset)
    for name, ranges in universe.parts.items():
        there = {universe.symbols[k] for k, (start, stop) in enumerate(ranges.tolist()) if stop > start}
        assert there == ({"S03"} if name == "hold_out" else set(LENGTHS) - {"S03"})


def test_rows_are_those_of_the_entries(dataset: Dataset):
    rows = universe_of(dataset).rows
    reader = RowReader(rows)
    for number, (symbol, entries) in enumerate(dataset.symbols.items()):
        for of, entry in (("windows", entries.windows), *entries.streams.items()):
            for name in entry.manifest["arrays"]:
                whole = entry.array(name)
                np.testing.assert_array_equal(rows.map(number, of, name), whole)
                starts = [0, 7, len(whole) - 3]
                out = np.empty((3, 3, *whole.shape[1:]), whole.dtype)
                reader.read(of, name, [number] * 3, starts, out)
                assert out.tobytes() == b"".join(whole[start : start + 3].tobytes() for start in starts), symbol
        assert rows.bytes("m1", "values") == sum(
            one.streams["m1"].array("values").nbytes for one in dataset.symbols.values()
        )


def test_rows_are_read_across_shards(tmp_path: Path):
    values = np.arange(5 * layout.SHARD_ROWS // 2, dtype=np.int64)
    with EntryWriter(tmp_path, Components("streams", 1, {}, {})) as entry:
        entry.array(ArraySpec("close_time", "<i8", ("time",))).append(values)
        entry.publish()
    (folder,) = (tmp_path / "streams").iterdir()
    kinds = {"m1": {"close_time": Kind(np.dtype("<i8"), ())}}
    rows = Rows({"m1": [str(folder)]}, {"m1": np.array([len(values)])}, kinds)
    np.testing.assert_array_equal(rows.map(0, "m1", "close_time"), values)
    starts = [0, layout.SHARD_ROWS - 50, 2 * layout.SHARD_ROWS - 99, len(values) - 100]
    out = np.empty((4, 100), np.int64)
    RowReader(rows).read("m1", "close_time", [0] * 4, starts, out)
    np.testing.assert_array_equal(out, np.stack([values[start : start + 100] for start in starts]))
    whole = np.empty((1, len(values)), np.int64)
    RowReader(rows).read("m1", "close_time", [0], [0], whole)
    np.testing.assert_array_equal(whole[0], values)


def test_opening_reads_the_manifests_of_one_symbol(store: Path, monkeypatch: pytest.MonkeyPatch):
    opened = []
    honest = reader.open_entry

    def counted(store: Path, stage: str, key: str) -> reader.Entry:
        opened.append(stage)
        return honest(store, stage, key)

    monkeypatch.setattr(reader, "open_entry", counted)
    dataset = open_dataset(store, "test")
    RowReader(universe_of(dataset).rows).read("m1", "values", [2], [0], np.empty((1, 1, 6), np.float32))
    assert opened == ["datasets", "windows", "streams", "streams"]  # of the first symbol
    assert isinstance(dataset.symbols, Symbols)
    assert len(dataset.symbols["S02"].streams) == 2
    assert opened[4:] == ["windows", "streams", "streams"]
    assert dataset.symbols["S02"] is dataset.symbols["S02"]


def test_damage_is_told_when_it_is_met(store: Path, tmp_path: Path):
    copy = Path(shutil.copytree(store, tmp_path / "copy"))
    dataset = open_dataset(copy, "test")
    streams = dataset.symbols["S02"].streams
    values = streams["m1"].path / "values/c.0.0"
    values.write_bytes(values.read_bytes()[:-1])
    (streams["m5"].path / "close/c.0").unlink()
    again = open_dataset(copy, "test")
    rows = RowReader(universe_of(again).rows)
    with pytest.raises(
        StoreError, match=r"values/c\.0\.0: damaged, it has [\d,]+ bytes, not [\d,]+\. `bin/cache verify"
    ):
        rows.read("m1", "values", [2], [0], np.empty((1, 1, 6), np.float32))
    with pytest.raises(StoreError, match=r"close/c\.0: no such file; run bin/build-cache again"):
        rows.read("m5", "close", [2], [0], np.empty((1, 1)))
    with pytest.raises(StoreError, match="damaged"):
        again.symbols["S02"]
    assert len(again.symbols["S04"].streams) == 2


def test_no_more_files_stay_open_than_are_allowed(dataset: Dataset, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(rows_module, "_files_allowed", lambda: 3)
    universe, before = universe_of(dataset), len(list(Path("/proc/self/fd").iterdir()))
    reader = RowReader(universe.rows)
    for number, entries in enumerate(dataset.symbols.values()):
        for name in ("close", "close_time"):
            expected = entries.streams["m1"].rows(name, 3, 13)
            out = np.empty((2, 5), expected.dtype)
            reader.read("m1", name, [number] * 2, [3, 8], out)
            np.testing.assert_array_equal(out.ravel(), expected)
            assert before < len(list(Path("/proc/self/fd").iterdir())) <= before + 3
    reader.close()
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_a_file_that_becomes_shorter_is_told(store: Path, tmp_path: Path):
    dataset = open_dataset(Path(shutil.copytree(store, tmp_path / "copy")), "test")
    reader, out = RowReader(universe_of(dataset).rows), np.empty((1, 1))
    reader.read("m1", "close", [2], [500], out)
    os.truncate(dataset.symbols["S02"].streams["m1"].path / "close/c.0", 100)
    with pytest.raises(StoreError, match=r"close/c\.0: damaged, it has become shorter\. `bin/cache verify --repair`"):
        reader.read("m1", "close", [2], [500], out)
