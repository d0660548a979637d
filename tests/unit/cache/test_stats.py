import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cache.files import write_atomically
from cache.keys import Components
from cache.layout import ArraySpec, shard_bytes
from cache.reader import StoreError, open_entry
from cache.stats import Amount, DatasetAmount, inputs, store_stats
from cache.writer import EntryWriter


def make(store: Path, stage: str, name: str, entry_inputs: dict[str, Any], rows: int = 0) -> str:
    """Publish an entry with `rows` int64 rows; its key."""
    components = Components(stage, 1, {"name": name}, entry_inputs)
    with EntryWriter(store, components) as entry:
        if rows:
            entry.array(ArraySpec("x", "<i8", ("time",))).append(np.zeros(rows, np.int64))
        entry.publish()
    return components.key


def size(*rows: int) -> int:
    return sum(shard_bytes(count, 8) for count in rows)


def point(store: Path, name: str, dataset: str) -> None:
    ref = {"name": name, "dataset": dataset, "recipe": {}, "data_dir": "/", "updated": "2020-01-01T00:00:00+00:00"}
    write_atomically(store / f"refs/{name}.json", json.dumps(ref).encode())


@pytest.fixture
def keys(tmp_path: Path) -> dict[str, str]:
    """Two datasets over the same bars and windows with streams of their own, and a stream that nobody needs."""
    keys = {"m1": make(tmp_path, "bars", "m1", {"content": "c" * 32}, 1000)}
    keys["m5"] = make(tmp_path, "bars", "m5", {"bars": [keys["m1"]]}, 200)
    keys["windows"] = make(tmp_path, "windows", "w", {"m1": [keys["m1"]], "m5": [keys["m5"]]}, 900)
    for name, rows in (("one", 1001), ("two", 1002), ("unused", 1003)):
        keys[f"stream {name}"] = make(tmp_path, "streams", name, {"bars": [keys["m5"]], "base": [keys["m1"]]}, rows)
    for name in ("one", "two"):
        symbols = {"EURUSD": {"windows": keys["windows"], "streams": {"m5": keys[f"stream {name}"]}}}
        keys[name] = make(tmp_path, "datasets", name, symbols)
        point(tmp_path, name, keys[name])
    return keys


def test_counts(tmp_path: Path, keys: dict[str, str]):
    found = store_stats(tmp_path)
    shared = size(1000, 200, 900)
    assert found.stages == {
        "bars": Amount(2, size(1000, 200)),
        "streams": Amount(3, size(1001, 1002, 1003)),
        "windows": Amount(1, size(900)),
        "datasets": Amount(2, 0),
    }
    assert found.datasets == [
        DatasetAmount("one", keys["one"], 5, shared + size(1001), shared),
        DatasetAmount("two", keys["two"], 5, shared + size(1002), shared),
    ]
    assert found.unreferenced == Amount(1, size(1003))
    assert found.total == Amount(8, size(1000, 200, 900, 1001, 1002, 1003))
    assert found.damaged == []


def test_bytes_are_those_on_disk(test_store: Path):
    on_disk = sum(path.stat().st_size for path in test_store.glob("*/*/*/c/**/*") if path.is_file())
    found = store_stats(test_store)
    assert (found.total.bytes, found.total.entries) == (on_disk, 8)
    assert [(one.name, one.entries, one.bytes, one.shared_bytes) for one in found.datasets] == [("test", 8, on_disk, 0)]
    assert found.unreferenced == Amount(0, 0)


def test_two_names_of_one_dataset_share_everything(tmp_path: Path, keys: dict[str, str]):
    point(tmp_path, "two", keys["one"])
    found = store_stats(tmp_path)
    assert all(one.bytes == one.shared_bytes > 0 for one in found.datasets)
    assert found.unreferenced == Amount(3, size(1002, 1003))


def test_entries_under_construction_are_not_counted(tmp_path: Path, keys: dict[str, str]):
    before = store_stats(tmp_path)
    shutil.copytree(tmp_path / "bars" / keys["m1"], tmp_path / "bars" / f".{keys['m1']}.partial")
    assert store_stats(tmp_path) == before


def test_without_refs_nothing_is_referred_to(tmp_path: Path, keys: dict[str, str]):
    shutil.rmtree(tmp_path / "refs")
    found = store_stats(tmp_path)
    assert found.datasets == []
    assert found.unreferenced == found.total


def test_a_missing_store(tmp_path: Path):
    with pytest.raises(StoreError, match="no store here"):
        store_stats(tmp_path)


def test_inputs_by_stage(tmp_path: Path, keys: dict[str, str]):
    def of(stage: str, name: str) -> list[tuple[str, str]]:
        return inputs(open_entry(tmp_path, stage, keys[name]))

    assert of("bars", "m1") == []
    assert of("bars", "m5") == [("bars", keys["m1"])]
    assert of("windows", "windows") == of("streams", "stream one")[::-1] == [("bars", keys["m1"]), ("bars", keys["m5"])]
    assert of("datasets", "one") == [("windows", keys["windows"]), ("streams", keys["stream one"])]


def test_bars_may_be_gone(tmp_path: Path, keys: dict[str, str]):
    shutil.rmtree(tmp_path / "bars")
    found = store_stats(tmp_path)
    assert found.damaged == []
    assert [one.entries for one in found.datasets] == [3, 3]


def test_damage_is_named_and_the_rest_is_counted(tmp_path: Path, keys: dict[str, str]):
    stream, unused = (tmp_path / "streams" / keys[f"stream {name}"] for name in ("one", "unused"))
    (stream / "zarr.json").write_text("{")
    (unused / "x/c/0").unlink()
    found = store_stats(tmp_path)
    assert sorted(found.damaged) == sorted(
        [
            f"{stream}: damaged, its zarr.json is not a manifest. Run bin/build-cache again to remake it; "
            "nothing else is lost",
            f"{unused}: damaged, x/c/0 is missing. Run bin/build-cache again to remake it; nothing else is lost",
        ]
    )
    assert found.stages["streams"] == Amount(1, size(1002))
    assert [one.entries for one in found.datasets] == [4, 5]


def test_a_missing_part_of_a_dataset_is_named(tmp_path: Path, keys: dict[str, str]):
    shutil.rmtree(tmp_path / "windows" / keys["windows"])
    assert store_stats(tmp_path).damaged == [
        f"{tmp_path / 'windows' / keys['windows']}: no such entry; run bin/build-cache again to make it"
    ]


def test_damaged_refs_are_named(tmp_path: Path, keys: dict[str, str]):
    (tmp_path / "refs/one.json").write_text("[]")
    point(tmp_path, "two", "0" * 32)
    found = store_stats(tmp_path)
    assert found.damaged == [
        f"{tmp_path / 'refs/one.json'}: damaged, not a JSON object. Run bin/build-cache again to remake it; "
        "nothing else is lost",
        f"{tmp_path / 'datasets' / ('0' * 32)}: no such entry; run bin/build-cache again to make it",
    ]


@pytest.mark.parametrize("components", [None, {}, {"inputs": 5}, {"inputs": {"EURUSD": []}}])
def test_a_manifest_without_inputs(tmp_path: Path, keys: dict[str, str], components: Any):
    path = tmp_path / "datasets" / keys["one"] / "zarr.json"
    group = json.loads(path.read_bytes())
    group["attributes"]["components"] = components
    path.write_text(json.dumps(group))
    assert store_stats(tmp_path).damaged == [
        f"{path.parent}: damaged, its manifest does not say what it was built from. Run bin/build-cache "
        "again to remake it; nothing else is lost"
    ]
