import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from cache.contents import inputs, last_uses, open_entries, read_diary
from cache.entries import StoreError, open_entry
from cache.keys import Components
from cache.layout import shard_bytes
from cache.locks import entry_lock
from cache.stats import Amount, DatasetAmount, StageAmount, Stats, store_stats
from tests.unit.cache.making import change_manifest, make, point, set_built

T0 = "2020-01-01T00:00:00+00:00"


def size(*rows: int) -> int:
    return sum(shard_bytes(count, 8) for count in rows)


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
    for path in tmp_path.glob("*/*/zarr.json"):
        set_built(path.parent, T0)
    return keys


def write_diary(store: Path, *uses: tuple[str, str, float]) -> None:
    """A diary of (instant, dataset's key, seconds saved)."""
    lines = [f'{{"at": "{at}", "by": "train", "dataset": "{key}", "saved": {saved}}}\n' for at, key, saved in uses]
    (store / "uses.jsonl").write_text("".join(lines))


def test_counts(tmp_path: Path, keys: dict[str, str]):
    found = store_stats(tmp_path)
    shared = size(1000, 200, 900)
    none = StageAmount(0, 0, None, None)
    assert {stage: amount for stage, amount in found.stages.items() if amount != none} == {
        "bars": StageAmount(2, size(1000, 200), T0, T0),
        "streams": StageAmount(3, size(1001, 1002, 1003), T0, T0),
        "windows": StageAmount(1, size(900), T0, T0),
        "datasets": StageAmount(2, 0, T0, T0),
    }
    assert found.datasets == [
        DatasetAmount("one", keys["one"], 5, shared + size(1001), shared, T0, T0, 0),
        DatasetAmount("two", keys["two"], 5, shared + size(1002), shared, T0, T0, 0),
    ]
    assert found.unreferenced == Amount(1, size(1003))
    assert found.abandoned == Amount(0, 0)
    assert found.saved_seconds == 0
    assert found.total == Amount(8, size(1000, 200, 900, 1001, 1002, 1003))
    assert found.damaged == []


def test_bytes_are_those_on_disk(test_store: Path):
    on_disk = sum(path.stat().st_size for path in test_store.glob("*/*/*/c.*"))
    found = store_stats(test_store)
    assert (found.total.bytes, found.total.entries) == (on_disk, 8)
    assert [(one.name, one.entries, one.bytes, one.shared_bytes) for one in found.datasets] == [("test", 8, on_disk, 0)]
    assert found.unreferenced == Amount(0, 0)


def test_two_names_of_one_dataset_share_everything(tmp_path: Path, keys: dict[str, str]):
    point(tmp_path, "two", keys["one"])
    found = store_stats(tmp_path)
    assert all(one.bytes == one.shared_bytes > 0 for one in found.datasets)
    assert found.unreferenced == Amount(3, size(1002, 1003))


def test_ages_are_those_of_the_oldest_and_the_newest(tmp_path: Path, keys: dict[str, str]):
    set_built(tmp_path / "streams" / keys["stream one"], "2019-05-01T12:00:00+02:00")
    found = store_stats(tmp_path).stages["streams"]
    assert (found.oldest, found.newest) == ("2019-05-01T12:00:00+02:00", T0)


def test_a_stage_without_entries(tmp_path: Path, keys: dict[str, str]):
    shutil.rmtree(tmp_path / "bars")
    assert store_stats(tmp_path).stages["bars"] == StageAmount(0, 0, None, None)


def by_name(found: Stats) -> dict[str, DatasetAmount]:
    return {one.name: one for one in found.datasets}


def test_uses(tmp_path: Path, keys: dict[str, str]):
    write_diary(
        tmp_path,
        ("2024-01-01T00:00:00+00:00", keys["one"], 1.5),
        ("2024-03-01T00:00:00+00:00", keys["one"], 2),
        ("2024-02-01T00:00:00+00:00", "0" * 32, 10),  # of a dataset that is gone
    )
    found = store_stats(tmp_path)
    one, two = by_name(found)["one"], by_name(found)["two"]
    assert (one.last_used, one.saved_seconds) == ("2024-03-01T00:00:00+00:00", 3.5)
    assert (two.last_used, two.saved_seconds) == (T0, 0)  # when it was last asked for
    assert found.saved_seconds == 13.5


def test_without_a_use_the_ref_tells(tmp_path: Path, keys: dict[str, str]):
    point(tmp_path, "one", keys["one"], updated="2023-01-01T00:00:00+00:00")
    assert by_name(store_stats(tmp_path))["one"].last_used == "2023-01-01T00:00:00+00:00"


def test_what_a_dataset_needs_was_used_with_it(tmp_path: Path, keys: dict[str, str]):
    write_diary(tmp_path, ("2024-03-01T00:00:00+00:00", keys["one"], 0))
    set_built(tmp_path / "streams" / keys["stream unused"], "2022-01-01T00:00:00+00:00")
    used = last_uses(dict(open_entries(tmp_path, [])), read_diary(tmp_path))
    march, built = datetime(2024, 3, 1, tzinfo=UTC), datetime(2020, 1, 1, tzinfo=UTC)
    assert used == {
        ("datasets", keys["one"]): march,
        ("datasets", keys["two"]): built,
        ("windows", keys["windows"]): march,
        ("streams", keys["stream one"]): march,
        ("streams", keys["stream two"]): built,
        ("streams", keys["stream unused"]): datetime(2022, 1, 1, tzinfo=UTC),
        ("bars", keys["m1"]): march,
        ("bars", keys["m5"]): march,
    }


def test_bars_were_of_use_when_something_was_made_of_them(tmp_path: Path, keys: dict[str, str]):
    set_built(tmp_path / "streams" / keys["stream unused"], "2022-01-01T00:00:00+00:00")
    used = last_uses(dict(open_entries(tmp_path, [])), read_diary(tmp_path))
    assert used["bars", keys["m5"]] == datetime(2022, 1, 1, tzinfo=UTC)
    assert used["windows", keys["windows"]] == datetime(2020, 1, 1, tzinfo=UTC)


def test_what_killed_builders_left_is_counted_apart(tmp_path: Path, keys: dict[str, str]):
    before = store_stats(tmp_path)
    left = Path(shutil.copytree(tmp_path / "bars" / keys["m1"], tmp_path / "bars" / f".{keys['m1']}.partial"))
    on_disk = sum(path.stat().st_size for path in left.rglob("*") if path.is_file())
    (tmp_path / "bars/.hidden").mkdir()  # nothing of ours
    found = store_stats(tmp_path)
    assert found.abandoned == Amount(1, on_disk)
    assert (found.total, found.unreferenced, found.datasets) == (before.total, before.unreferenced, before.datasets)


def test_an_entry_under_construction_is_not_abandoned(tmp_path: Path, keys: dict[str, str]):
    components = Components("bars", 1, {"name": "new"}, {})
    (tmp_path / "bars" / f".{components.key}.partial").mkdir()
    with entry_lock(tmp_path, components):
        assert store_stats(tmp_path).abandoned == Amount(0, 0)
    assert store_stats(tmp_path).abandoned == Amount(1, 0)


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
    (unused / "x/c.0").unlink()
    found = store_stats(tmp_path)
    assert sorted(found.damaged) == sorted(
        [
            f"{stream}: damaged, its zarr.json is not a manifest. Run bin/build-cache again to remake it; "
            "nothing else is lost",
            f"{unused}: damaged, x/c.0 is missing. Run bin/build-cache again to remake it; nothing else is lost",
        ]
    )
    assert found.stages["streams"] == StageAmount(1, size(1002), T0, T0)
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
        f"{tmp_path / 'refs/one.json'}: damaged, it is not as it was written. Run bin/build-cache again to remake it; "
        "nothing else is lost",
        f"{tmp_path / 'datasets' / ('0' * 32)}: no such entry; run bin/build-cache again to make it",
    ]


@pytest.mark.parametrize(
    ("components", "what"),
    [
        (None, "components is not an object"),
        ({}, "components.stage is missing"),
        ({"inputs": 5}, "components.stage is missing"),
        ({"stage": "datasets", "version": 1, "fields": {}, "inputs": 5}, "components.inputs is not an object"),
        (
            {"stage": "datasets", "version": 1, "fields": {}, "inputs": {"EURUSD": []}},
            "components.inputs.EURUSD is not an object",
        ),
        (
            {"stage": "datasets", "version": 1, "fields": {}, "inputs": {"EURUSD": {"windows": "x"}}},
            "components.inputs.EURUSD.streams is missing",
        ),
    ],
)
def test_a_manifest_without_inputs(tmp_path: Path, keys: dict[str, str], components: Any, what: str):
    path = tmp_path / "datasets" / keys["one"]
    change_manifest(path, lambda manifest: manifest.update(components=components))
    found = store_stats(tmp_path)
    assert found.damaged == [
        f"{path}: damaged, its manifest does not say what it should: {what}. Run bin/build-cache again to remake it; "
        "nothing else is lost"
    ]
    assert by_name(found)["one"].entries == 0
    assert by_name(found)["one"].built is None
