import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cache.files import write_atomically
from cache.keys import Components
from cache.layout import ArraySpec
from cache.reader import Entry, StoreError, entry_exists, open_dataset, open_entry, read_ref, ref_names
from cache.writer import EntryWriter

ROOT = Path(__file__).parents[3]
ROWS = 70_000
REMEDY = "Run bin/build-cache again to remake it; nothing else is lost"
OHLC = np.arange(ROWS * 4, dtype="<f8").reshape(ROWS, 4)


@pytest.fixture
def entry(tmp_path: Path) -> Entry:
    components = Components("bars", 1, {}, {})
    with EntryWriter(tmp_path, components) as writer:
        writer.array(ArraySpec("ohlc", "<f8", ("time", "price"), (4,))).append(OHLC)
        writer.array(ArraySpec("close_time", "<i8", ("time",))).append(np.arange(ROWS))
        writer.publish(origin="test")
    return open_entry(tmp_path, "bars", components.key)


def fault(open_it: Callable[..., Any], *arguments: Any) -> str:
    with pytest.raises(StoreError) as caught:
        open_it(*arguments)
    return str(caught.value)


def edit(entry: Entry, **changes: Any) -> None:
    path = entry.path / "zarr.json"
    group = json.loads(path.read_bytes())
    group["attributes"].update(changes)
    path.write_text(json.dumps(group))


def test_arrays(entry: Entry):
    assert entry.shape("ohlc") == (ROWS, 4)
    assert np.array_equal(entry.array("ohlc"), OHLC)
    assert np.array_equal(entry.array("close_time"), np.arange(ROWS))
    assert entry.bytes == sum(path.stat().st_size for path in entry.path.rglob("c/**/*") if path.is_file())


def test_what_is_written_to_an_array_stays_private(entry: Entry):
    entry.array("ohlc")[0] = -1
    assert np.array_equal(entry.array("ohlc"), OHLC)


@pytest.mark.parametrize(
    ("start", "stop"), [(0, 1), (0, ROWS), (65_535, 65_537), (ROWS - 1, ROWS), (ROWS - 1, ROWS + 9), (5, 5)]
)
def test_rows_are_slices(entry: Entry, start: int, stop: int):
    for name, whole in (("ohlc", OHLC), ("close_time", np.arange(ROWS))):
        rows = entry.rows(name, start, stop)
        assert rows.dtype == whole.dtype
        assert np.array_equal(rows, whole[start:stop])
        assert not isinstance(rows, np.memmap)


def test_a_missing_entry(tmp_path: Path):
    assert not entry_exists(tmp_path, "bars", "0" * 32)
    assert fault(open_entry, tmp_path, "bars", "0" * 32) == (
        f"{tmp_path / 'bars' / ('0' * 32)}: no such entry; run bin/build-cache again to make it"
    )


def test_another_format(entry: Entry, tmp_path: Path):
    edit(entry, format="headstart/2", arrays="described otherwise")
    assert fault(open_entry, tmp_path, "bars", entry.key) == (
        f"{entry.path}: written in format headstart/2, this version reads headstart/1; run bin/build-cache again"
    )


def test_an_entry_under_another_name(entry: Entry, tmp_path: Path):
    moved = entry.path.rename(entry.path.with_name("0" * 32))
    assert fault(open_entry, tmp_path, "bars", "0" * 32) == (
        f"{moved}: damaged, its manifest is of bars/{entry.key}. {REMEDY}"
    )


def test_an_entry_of_another_stage(entry: Entry, tmp_path: Path):
    (tmp_path / "streams").mkdir()
    moved = entry.path.rename(tmp_path / "streams" / entry.key)
    assert fault(open_entry, tmp_path, "streams", entry.key) == (
        f"{moved}: damaged, its manifest is of bars/{entry.key}. {REMEDY}"
    )


def test_a_truncated_body(entry: Entry, tmp_path: Path):
    body = entry.path / "ohlc/c/0/0"
    size = body.stat().st_size
    with body.open("r+b") as file:
        file.truncate(1_000_000)
    assert fault(open_entry, tmp_path, "bars", entry.key) == (
        f"{entry.path}: damaged, ohlc/c/0/0 has 1,000,000 bytes, not {size:,}. {REMEDY}"
    )


def test_a_missing_body(entry: Entry, tmp_path: Path):
    (entry.path / "close_time/c/0").unlink()
    assert fault(open_entry, tmp_path, "bars", entry.key) == (
        f"{entry.path}: damaged, close_time/c/0 is missing. {REMEDY}"
    )


@pytest.mark.parametrize("text", ["", "{", "[]", "5", "{}", '{"attributes": 5}', '{"attributes": {}}', "\x00\x00"])
def test_a_damaged_manifest(entry: Entry, tmp_path: Path, text: str):
    (entry.path / "zarr.json").write_text(text)
    assert fault(open_entry, tmp_path, "bars", entry.key) == (
        f"{entry.path}: damaged, its zarr.json is not a manifest. {REMEDY}"
    )


@pytest.mark.parametrize(
    "arrays",
    [
        None,
        [],
        {"ohlc": 5},
        {"ohlc": {"shape": [5, 4]}},
        {"ohlc": {"shape": [], "dtype": "<f8"}},
        {"ohlc": {"shape": 5, "dtype": "<f8"}},
        {"ohlc": {"shape": ["x"], "dtype": "<f8"}},
        {"ohlc": {"shape": [5, 4], "dtype": "float48"}},
        {"ohlc": {"shape": [0, 4], "dtype": "<f8"}},
    ],
)
def test_a_manifest_with_damaged_arrays(entry: Entry, tmp_path: Path, arrays: Any):
    edit(entry, arrays=arrays)
    assert fault(open_entry, tmp_path, "bars", entry.key) == (
        f"{entry.path}: damaged, its manifest does not describe its arrays. {REMEDY}"
    )


def test_a_missing_ref_names_those_there_are(tmp_path: Path):
    (tmp_path / "refs").mkdir()
    assert fault(read_ref, tmp_path, "demo") == f"{tmp_path}: no dataset named demo (there are: none yet)"
    for name in ("sse", "my.demo"):
        write_atomically(tmp_path / f"refs/{name}.json", b"{}")
    assert ref_names(tmp_path) == ["my.demo", "sse"]
    assert fault(read_ref, tmp_path, "demo") == f"{tmp_path}: no dataset named demo (there are: my.demo, sse)"


@pytest.mark.parametrize("read", [lambda store: read_ref(store, "demo"), ref_names])
def test_a_missing_store(tmp_path: Path, read: Callable[[Path], Any]):
    for store in (tmp_path, tmp_path / "none"):
        assert fault(read, store) == (
            f"{store}: no store here; --store says where it is, and bin/build-cache makes one"
        )


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("", "not a JSON object"),
        ("[]", "not a JSON object"),
        ("5", "not a JSON object"),
        ('{"dataset": "x", "recipe": {}}', "data_dir, updated missing"),
    ],
)
def test_a_damaged_ref(tmp_path: Path, text: str, what: str):
    write_atomically(tmp_path / "refs/demo.json", text.encode())
    assert fault(read_ref, tmp_path, "demo") == f"{tmp_path / 'refs/demo.json'}: damaged, {what}. {REMEDY}"


def test_a_dataset_opens_with_all_its_entries(test_store: Path):
    dataset = open_dataset(test_store, "test")
    assert dataset.timeframes == ["m1", "m5", "m15"]
    assert dataset.seq_lens == {"m1": 32, "m5": 32, "m15": 32}
    (entries,) = dataset.symbols.values()
    assert list(entries.streams) == dataset.timeframes
    assert list(dataset.symbols) == ["TEST"]
    windows = entries.windows.shape("time")[0]
    assert entries.windows.shape("ends") == (windows, 3)
    (_, train_stop), (val_start, val_stop) = (dataset.splits[part]["windows"]["TEST"] for part in ("train", "val"))
    assert 0 < train_stop < val_start < val_stop == windows
    assert dataset.recipe["name"] == dataset.name == "test"


@pytest.mark.parametrize("module", ["cache.reader", "cache.stats", "cache.cache_command"])
def test_looking_into_a_store_needs_no_heavy_library(module: str):
    show = f"import sys, {module}; print(*(name for name in sys.modules if '.' not in name))"
    shown = subprocess.run([sys.executable, "-c", show], cwd=ROOT, check=True, capture_output=True, text=True)
    loaded = set(shown.stdout.split())
    assert "numpy" in loaded
    assert not loaded & {"zarr", "numcodecs", "numba", "pandas", "pyarrow", "torch", "dask", "sklearn"}
