"""The windows of many symbols in one numbering, and their rows read without a manifest of any symbol."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from cache import reader
from cache.part import Universe, universe_of
from cache.reader import Dataset, StoreError, Symbols, open_dataset
from cache.rows import Rows
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


def test_windows_are_numbered_symbol_by_symbol(dataset: Dataset):
    universe = universe_of(dataset)
    assert universe.symbols == tuple(LENGTHS)
    number = 0
    for k, (symbol, entries) in enumerate(dataset.symbols.items()):
        count = entries.windows.shape("time")[0]
        assert universe.first[k] == number
        assert universe.rows[k].tolist() == [one.shape("values")[0] for one in entries.streams.values()]
        for name, part in universe.parts.items():
            assert (part[k] - number).tolist() == dataset.splits[name]["windows"][symbol]
        number += count
    assert universe.first[-1] == number
    assert universe.weights.tolist() == [3 if symbol == "S01" else 1 for symbol in LENGTHS]
    symbol, local = universe.locate(np.arange(number))
    assert (universe.first[symbol] + local == np.arange(number)).all()
    assert (np.bincount(symbol) == np.diff(universe.first)).all()


@pytest.mark.parametrize("part", ["train", "val", "hold_out"])
def test_places_of_a_part_are_its_windows(dataset: Dataset, part: str):
    universe = universe_of(dataset)
    by_hand = [n for first, stop in universe.parts[part].tolist() for n in range(first, stop)]
    assert universe.count(part) == len(by_hand) > 0
    assert universe.window(part, np.arange(len(by_hand))).tolist() == by_hand
    held = {int(k) for k in universe.locate(np.array(by_hand))[0]}
    assert held == ({3} if part == "hold_out" else set(range(len(LENGTHS))) - {3})


def test_symbols_without_windows_are_passed_over():
    empty = np.array([[0, 0], [0, 4], [4, 4], [4, 4], [4, 6]])
    first = np.array([0, 0, 4, 4, 4, 6])
    universe = Universe(tuple("abcde"), first, {"train": empty}, np.ones((5, 1), np.int64), np.ones(5))
    assert universe.window("train", np.arange(6)).tolist() == list(range(6))
    assert universe.locate(np.arange(6))[0].tolist() == [1, 1, 1, 1, 4, 4]


def test_rows_are_those_of_the_entries(store: Path, dataset: Dataset):
    rows = Rows(store, dataset)
    for symbol in ("S00", "S05"):
        entries = dataset.symbols[symbol]
        for of, entry in (("windows", entries.windows), *entries.streams.items()):
            for name in entry.manifest["arrays"]:
                whole = entry.array(name)
                for start, stop in ((0, len(whole)), (7, 8), (len(whole) - 3, len(whole))):
                    out = np.empty_like(whole[start:stop])
                    rows.read(symbol, of, name, start, out)
                    assert out.tobytes() == whole[start:stop].tobytes()


def test_opening_reads_one_manifest(store: Path, monkeypatch: pytest.MonkeyPatch):
    opened = []
    honest = reader.open_entry

    def counted(store: Path, stage: str, key: str) -> reader.Entry:
        opened.append(stage)
        return honest(store, stage, key)

    monkeypatch.setattr(reader, "open_entry", counted)
    dataset = open_dataset(store, "test")
    universe_of(dataset)
    Rows(store, dataset).read("S02", "m1", "values", 0, np.empty((1, 6), np.float32))
    assert opened == ["datasets"]
    assert isinstance(dataset.symbols, Symbols)
    assert len(dataset.symbols["S02"].streams) == 2
    assert opened == ["datasets", "windows", "streams", "streams"]
    assert dataset.symbols["S02"] is dataset.symbols["S02"]


def test_damage_is_told_when_it_is_met(store: Path, tmp_path: Path):
    copy = Path(shutil.copytree(store, tmp_path / "copy"))
    dataset = open_dataset(copy, "test")
    streams = dataset.symbols["S02"].streams
    values = streams["m1"].path / "values/c/0/0"
    values.write_bytes(values.read_bytes()[:-1])
    (streams["m5"].path / "close/c/0").unlink()
    again = open_dataset(copy, "test")
    rows = Rows(copy, again)
    with pytest.raises(StoreError, match=r"values/c/0/0: damaged, it has [\d,]+ bytes, not [\d,]+\. `bin/cache verify"):
        rows.read("S02", "m1", "values", 0, np.empty((1, 6), np.float32))
    with pytest.raises(StoreError, match=r"close/c/0: no such file; run bin/build-cache again"):
        rows.read("S02", "m5", "close", 0, np.empty(1))
    with pytest.raises(StoreError, match="damaged"):
        again.symbols["S02"]
    assert len(again.symbols["S04"].streams) == 2
