import json
import os
import shutil
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cache.check import check_memo
from cache.contents import Id, entry_ids
from cache.entries import StoreError, entry_exists, open_entry
from cache.keys import Components
from cache.layout import ArraySpec
from cache.reader import Dataset, open_dataset
from cache.seal import canonical_json, content_md5, sealed
from cache.verify import check_content, check_metadata, incomplete, repair
from cache.writer import EntryWriter
from tests.unit.cache.making import change_manifest, flip, make, point

REMAKE = "bin/cache verify --repair removes the entry, and the next bin/build-cache makes it again"
HARMLESS = "harmless: builds do without it and write it again; bin/cache verify --repair removes it"
CHANGED = "it has changed since it was written"


@pytest.fixture
def copied(test_store: Path, tmp_path: Path) -> Path:
    """A copy of the store that a test may damage."""
    return Path(shutil.copytree(test_store, tmp_path / "copied"))


@pytest.fixture
def dataset(copied: Path) -> Dataset:
    return open_dataset(copied, "test")


def said(store: Path, name: str | None = None) -> list[str]:
    return [str(finding) for finding in check_content(check_metadata(store, name))]


def make_long(store: Path) -> Path:
    """Bars with padding."""
    components = Components("bars", 1, {}, {"content": "c" * 32})
    with EntryWriter(store, components) as entry:
        for name, dtype, columns in (("open_time", "<i8", ()), ("close_time", "<i8", ()), ("ohlc", "<f8", (4,))):
            array = entry.array(ArraySpec(name, dtype, ("time", "price")[: 1 + len(columns)], columns))
            array.append(np.ones((70_000, *columns), dtype))
        entry.publish(origin="x", recognised={}, remarks=[], repaired={}, first_open=1, last_close=1)
    return store / "bars" / components.key


def test_an_intact_store(test_store: Path):
    checked = check_metadata(test_store)
    assert len(checked.entries) == len(set(checked.entries)) == 8
    assert checked.bytes == sum(path.stat().st_size for path in test_store.glob("*/*/*/c.*"))
    heard: list[int] = []
    assert check_content(checked, heard.append) == ()
    assert sum(heard) == checked.bytes


def test_a_missing_store_and_dataset(tmp_path: Path, test_store: Path):
    with pytest.raises(StoreError, match="no store here"):
        check_metadata(tmp_path)
    with pytest.raises(StoreError, match=r"no dataset named demo \(there are: test\)"):
        check_metadata(test_store, "demo")


@pytest.mark.parametrize(
    ("at", "what"),
    [
        (0, "its rows have changed since they were written"),
        (70_000 * 32 - 1, "its rows have changed since they were written"),
        (70_000 * 32, "its padding changed since it was written; its rows are intact"),
        (131_072 * 32 - 1, "its padding changed since it was written; its rows are intact"),
        (131_072 * 32, "its shard index changed since it was written; its rows are intact"),
        (131_072 * 32 + 35, "its shard index changed since it was written; its rows are intact"),
    ],
)
def test_a_flipped_bit_of_an_array(tmp_path: Path, at: int, what: str):
    body = make_long(tmp_path) / "ohlc/c.0.0"
    assert said(tmp_path) == []
    assert body.stat().st_size == 131_072 * 32 + 36
    flip(body, 8 * at + at % 8)
    assert said(tmp_path) == [f"{body}: {what}; {REMAKE}"]


def test_flipped_bits_in_several_places(tmp_path: Path):
    body = make_long(tmp_path) / "ohlc/c.0.0"
    for at in (70_000 * 32, 131_072 * 32 + 35):
        flip(body, 8 * at)
    assert said(tmp_path) == [
        f"{body}: its padding and shard index changed since it was written; its rows are intact; {REMAKE}"
    ]
    flip(body, 5)
    assert said(tmp_path) == [f"{body}: its rows have changed since they were written; {REMAKE}"]


def test_sizes_and_missing_files(copied: Path, dataset: Dataset):
    windows = dataset.symbols["TEST"].windows.path
    body, size = windows / "time/c.0", (windows / "time/c.0").stat().st_size
    for new in (0, size - 1, size + 1):
        content = body.read_bytes()
        os.truncate(body, new)
        assert said(copied) == [f"{body}: it has {new:,} bytes, not {size:,}; {REMAKE}"]
        body.write_bytes(content)
    for file in (body, windows / "time/zarr.json", windows / "zarr.json"):
        content = file.read_bytes()
        file.unlink()
        assert said(copied) == [f"{file}: it is missing; {REMAKE}"]
        file.mkdir()
        assert len(said(copied)) == 1
        file.rmdir()
        file.write_bytes(content)
    assert said(copied) == []


def test_a_changed_manifest(copied: Path, dataset: Dataset):
    file = dataset.entry.path / "zarr.json"
    file.write_bytes(file.read_bytes().replace(b'"headstart":"0.1.0"', b'"headstart":"0.1.1"'))
    assert said(copied) == [f"{file}: {CHANGED}; {REMAKE}"]


def test_every_bit_of_metadata_counts(copied: Path, dataset: Dataset):
    """Not only what is said, but how it is written: `1e-07` and `1E-07` are the same to JSON."""
    stream = dataset.symbols["TEST"].streams["m5"].path
    for file in (stream / "zarr.json", stream / "values/zarr.json"):
        content = file.read_bytes()
        for change in (
            content.replace(b"e-", b"E-"),
            content + b"\n",
            content.replace(b",", b", ", 1),
            b" " + content,
        ):
            if change != content:
                file.write_bytes(change)
                assert said(copied) == [f"{file}: {CHANGED}; {REMAKE}"]
        file.write_bytes(content)
    assert b"e-" in (stream / "zarr.json").read_bytes()


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda m: m.update(key="0" * 32), "it is the manifest of streams/" + "0" * 32),
        (lambda m: m.update(stage="bars"), "it is the manifest of bars/"),
        (
            lambda m: m["components"]["fields"].update(timeframe="m7"),
            "its components are not those that its key stands",
        ),
        (lambda m: m.update(stage_version=9), "its components are not those that its key stands for"),
        (lambda m: m.pop("nominal_length"), "it does not say what it should: nominal_length is missing"),
        (lambda m: m["arrays"]["values"].pop("dims"), "it does not say what it should: arrays.values.dims is missing"),
        (lambda m: m["arrays"].pop("close"), "it does not say what it should: arrays.close is missing"),
        (lambda m: m.update(format="headstart/9"), "it is in format headstart/9, and this version reads headstart/7"),
    ],
)
def test_a_sealed_manifest_that_is_wrong(copied: Path, dataset: Dataset, change: Callable[..., Any], what: str):
    stream = dataset.symbols["TEST"].streams["m5"].path
    change_manifest(stream, change)
    (one,) = said(copied)
    assert one.startswith(f"{stream / 'zarr.json'}: {what}")
    assert one.endswith(f"; {REMAKE}")


def test_an_array_described_otherwise(copied: Path, dataset: Dataset):
    stream = dataset.symbols["TEST"].streams["m5"].path
    change_manifest(stream, lambda m: m["arrays"]["values"].update(dims=["time", "what"]))
    assert said(copied) == [f"{stream / 'values/zarr.json'}: {CHANGED}; {REMAKE}"]


def test_an_entry_of_the_format_before(copied: Path, dataset: Dataset):
    path = copied / "bars" / ("0" * 32)
    path.mkdir()
    manifest = {"format": "headstart/1", "stage": "bars", "key": "0" * 32}
    (path / "zarr.json").write_text(json.dumps({"zarr_format": 3, "node_type": "group", "attributes": manifest}))
    assert said(copied) == [
        f"{path / 'zarr.json'}: it is in format headstart/1, and this version reads headstart/7; {REMAKE}"
    ]


def test_what_does_not_belong_there(copied: Path, dataset: Dataset):
    stream = dataset.symbols["TEST"].streams["m5"].path
    strangers = [stream / "values/c.0.1", stream / "notes.txt", stream / "close/c/x/y"]
    for path in strangers:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    removes = "it does not belong into the entry; bin/cache verify --repair removes it"
    assert sorted(said(copied)) == sorted(f"{path}: {removes}" for path in strangers)
    repair(check_content(check_metadata(copied)))
    assert said(copied) == []
    assert entry_exists(copied, "streams", stream.name)  # the entry itself was whole
    (copied / "bars/backup").mkdir()
    (copied / "bars/readme").write_text("")
    assert sorted(said(copied)) == [
        f"{copied / 'bars' / name}: it is no entry; move it out of the store, or delete it"
        for name in ("backup", "readme")
    ]
    assert repair(check_content(check_metadata(copied))) == []
    assert (copied / "bars/backup").is_dir()


def test_what_is_under_construction_is_passed_over(copied: Path):
    (copied / "bars" / ("." + "0" * 32 + ".partial")).mkdir()
    (copied / "sources/.x.json.1-2.partial").write_bytes(b"half")
    (copied / "refs/.test.json.1-2.partial").write_bytes(b"half")
    assert said(copied) == []


@pytest.mark.parametrize("stage", ["datasets", "windows", "streams", "bars"])
def test_missing_entries(copied: Path, stage: str):
    path = next(copied.glob(f"{stage}/*"))
    shutil.rmtree(path)
    for name in (None, "test"):
        assert said(copied, name) == [
            f"{path}: it is missing, and the dataset test needs it; the next bin/build-cache makes it"
        ]
    (copied / "refs/test.json").unlink()
    assert said(copied) == []  # nobody needs it any more


def test_refs(copied: Path):
    path = copied / "refs/test.json"
    remedy = (
        "bin/cache verify --repair removes it, and bin/build-cache with its configuration, or importing its archive "
        "again, writes it again. Its entries count as unreferenced until then: do that before bin/cache prune"
    )
    content = path.read_bytes()
    for change in (b"", b"{}", content[:-1], content + b"\n", content.replace(b"m15", b"m16"), b"\xff" + content):
        path.write_bytes(change)
        assert said(copied) == said(copied, "test") == [f"{path}: {CHANGED}; {remedy}"]
    path.write_bytes(content)
    ref = json.loads(content)
    for change, what in (
        ({"name": "other"}, "it is the ref of other"),
        ({"recipe": {**ref["recipe"], "name": "other"}}, "it is the ref of test"),
        ({"data_dir": None}, "data_dir is not a text"),
    ):
        record = {name: value for name, value in {**ref, **change}.items() if name != "md5"}
        path.write_bytes(canonical_json(sealed(record)))
        assert said(copied) == [f"{path}: {what}; {remedy}"]
    path.write_bytes(content)
    copy = path.with_name("copy.json")
    copy.write_bytes(content)
    assert said(copied) == [f"{copy}: it is the ref of test; {remedy}"]


def test_memos(copied: Path, tmp_path: Path):
    (path,) = (copied / "sources").iterdir()
    content = path.read_bytes()
    for change in (b"", content[:-1], content + b" ", content.replace(b"simfx", b"simfy")):
        path.write_bytes(change)
        assert said(copied) == [f"{path}: {CHANGED}; {HARMLESS}"]
        assert said(copied, "test") == []
    path.write_bytes(content)
    moved = path.rename(path.with_name("0" * 32 + ".json"))
    assert said(copied) == [f"{moved}: it is of another source file; {HARMLESS}"]


def test_a_memo_of_symbols_is_of_its_file(tmp_path: Path):
    of, other = ["md5", ["venue"]], ["another", ["venue"]]
    path = tmp_path / f"{content_md5(of)}-symbols.json"
    path.write_bytes(canonical_json(sealed({"of": of, "symbols": [["A"]]})))
    assert check_memo(path) is None
    path.write_bytes(canonical_json(sealed({"of": other, "symbols": [["A"]]})))
    found = check_memo(path)
    assert found is not None
    assert found.what == "it is of another source file"


def test_only_what_a_dataset_needs(copied: Path, dataset: Dataset):
    other = make_long(copied)
    flip(other / "ohlc/c.0.0", 0)
    flip(dataset.symbols["TEST"].windows.path / "time/c.0", 0)
    assert len(said(copied)) == 2
    (one,) = said(copied, "test")
    assert str(dataset.symbols["TEST"].windows.path) in one
    assert len(check_metadata(copied, "test").entries) == 8


def test_parts_that_do_not_fit_together(copied: Path, dataset: Dataset):
    change_manifest(dataset.entry.path, lambda m: m["seq_len"].update(m1=31))
    (one,) = said(copied)
    assert one.startswith(f"{dataset.entry.path}: its parts do not fit together (")
    assert "its timeframes or lengths are not those of" in one


def test_repair_drops_just_what_is_damaged(copied: Path, dataset: Dataset):
    entries = dataset.symbols["TEST"]
    before = set(entry_ids(copied))
    flip(entries.windows.path / "ends/c.0.0", 77)
    (entries.streams["m5"].path / "values/c.0.0").unlink()
    (entries.streams["m5"].path / "notes.txt").write_text("")
    (memo,) = (copied / "sources").iterdir()
    memo.write_bytes(b"")
    gone = [entries.windows.path, entries.streams["m5"].path]
    assert sorted(repair(check_content(check_metadata(copied)))) == sorted([*gone, memo])
    assert before - set(entry_ids(copied)) == {(path.parent.name, path.name) for path in gone}
    assert not memo.exists()
    assert not list(copied.glob("*/.*"))
    assert incomplete(copied) == {"test": dataset.data_dir}
    assert len(said(copied)) == 2  # missing now


def test_repair_of_a_ref_leaves_the_dataset(copied: Path, dataset: Dataset):
    path = copied / "refs/test.json"
    flip(path, 100)
    assert repair(check_content(check_metadata(copied))) == [path]
    assert said(copied) == []
    assert len(list(entry_ids(copied))) == 8
    assert incomplete(copied) == {}


def test_a_whole_store_lacks_nothing(test_store: Path):
    assert incomplete(test_store) == {}


def test_memory_does_not_grow_with_the_file(tmp_path: Path):
    components = Components("bars", 1, {}, {"content": "c" * 32})
    with EntryWriter(tmp_path, components) as entry:
        for name, dtype, columns in (("open_time", "<i8", ()), ("close_time", "<i8", ()), ("ohlc", "<f8", (4,))):
            array = entry.array(ArraySpec(name, dtype, ("time", "price")[: 1 + len(columns)], columns))
            for _ in range(16):
                array.append(np.ones((65_536, *columns), dtype))
        entry.publish(origin="x", recognised={}, remarks=[], repaired={}, first_open=1, last_close=1)
    checked = check_metadata(tmp_path)
    assert checked.bytes > 48e6
    tracemalloc.start()
    assert check_content(checked) == ()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2e6 * (os.cpu_count() or 1) + 2e6


def test_two_datasets_may_share_a_missing_entry(copied: Path, dataset: Dataset):
    one: Id = ("windows", make(copied, "windows", "w", {}))
    shutil.rmtree(copied / "windows" / one[1])
    for name in ("a", "b"):
        symbols = {"X": {"windows": one[1], "streams": {}}}
        point(copied, name, make(copied, "datasets", name, symbols))
    missing = [line for line in said(copied) if "it is missing" in line]
    assert len(missing) == 1
    with pytest.raises(StoreError):
        open_entry(copied, *one)
