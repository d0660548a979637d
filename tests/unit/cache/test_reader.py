import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cache.entries import Entry, StoreError, entry_exists, open_entry
from cache.files import write_atomically
from cache.keys import Components
from cache.layout import ArraySpec
from cache.reader import open_dataset
from cache.refs import read_ref, ref_names
from cache.seal import canonical_json, sealed
from cache.writer import EntryWriter
from tests.unit.cache.making import change_manifest, flip, overwrite, point

ROOT = Path(__file__).parents[3]
ROWS = 70_000
REMEDY = "Run bin/build-cache again to remake it; nothing else is lost"
MISSHAPEN = "the arrays are not of its symbols, timeframes and features, and of the parts of its split"
VERIFY = (
    "`bin/cache verify --repair` finds and removes what is damaged, and bin/build-cache then makes it again; nothing "
    "else is lost"
)
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
    """Change a manifest and seal it again."""
    change_manifest(entry.path, lambda manifest: manifest.update(changes))


@pytest.fixture
def copied(test_store: Path, tmp_path: Path) -> Path:
    """A copy of the store that a test may damage."""
    return Path(shutil.copytree(test_store, tmp_path / "copied"))


def test_arrays(entry: Entry):
    assert entry.shape("ohlc") == (ROWS, 4)
    assert np.array_equal(entry.array("ohlc"), OHLC)
    assert np.array_equal(entry.array("close_time"), np.arange(ROWS))
    assert entry.bytes == sum(path.stat().st_size for path in entry.path.rglob("c.*"))


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


@pytest.mark.parametrize("found", ["headstart/3", "headstart/8", "other", None, 7, ["headstart/7"]])
def test_another_format(entry: Entry, tmp_path: Path, found: Any):
    group = json.loads((entry.path / "zarr.json").read_bytes())
    group["attributes"] = {"format": found, "arrays": "described otherwise"}
    (entry.path / "zarr.json").write_text(json.dumps(group))
    assert fault(open_entry, tmp_path, "bars", entry.key) == (
        f"{entry.path}: written in format {found}, this version reads headstart/7; run bin/build-cache again"
    )


@pytest.mark.parametrize("where", ["entry", "stage"])
def test_a_file_where_a_folder_should_be(entry: Entry, tmp_path: Path, where: str):
    path = entry.path if where == "entry" else entry.path.parent
    shutil.rmtree(path)
    path.write_text("")
    assert fault(open_entry, tmp_path, "bars", entry.key) == (
        f"{entry.path}: no such entry; run bin/build-cache again to make it"
    )


def test_a_changed_manifest(entry: Entry, tmp_path: Path):
    path = entry.path / "zarr.json"
    path.write_bytes(path.read_bytes().replace(b'"origin":"test"', b'"origin":"tent"'))
    assert fault(open_entry, tmp_path, "bars", entry.key) == (
        f"{entry.path}: damaged, zarr.json was changed: its content does not have the MD5 that it carries. {REMEDY}"
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
    body = entry.path / "ohlc/c.0.0"
    size = body.stat().st_size
    with body.open("r+b") as file:
        file.truncate(1_000_000)
    assert fault(open_entry, tmp_path, "bars", entry.key) == (
        f"{entry.path}: damaged, ohlc/c.0.0 has 1,000,000 bytes, not {size:,}. {REMEDY}"
    )


def test_a_missing_body(entry: Entry, tmp_path: Path):
    (entry.path / "close_time/c.0").unlink()
    assert fault(open_entry, tmp_path, "bars", entry.key) == (
        f"{entry.path}: damaged, close_time/c.0 is missing. {REMEDY}"
    )


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "5", "{}", '{"attributes": 5}', '{"attributes": {}}', "\x00\x00", "[" * 100_000]
)
def test_a_damaged_manifest(entry: Entry, tmp_path: Path, text: str):
    (entry.path / "zarr.json").write_text(text)
    assert fault(open_entry, tmp_path, "bars", entry.key) == (
        f"{entry.path}: damaged, its zarr.json is not a manifest. {REMEDY}"
    )


def test_a_manifest_that_is_not_a_group(entry: Entry, tmp_path: Path):
    path = entry.path / "zarr.json"
    path.write_bytes(path.read_bytes().replace(b'"zarr_format":3', b'"zarr_format":2'))
    assert fault(open_entry, tmp_path, "bars", entry.key) == (
        f"{entry.path}: damaged, its zarr.json is not a manifest. {REMEDY}"
    )


ARRAY = {"shape": [5, 4], "dtype": "<f8", "dims": ["time", "price"], "attributes": {}, "bytes": 180, "md5": ["0" * 32]}


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"arrays": None}, "arrays is not an object"),
        ({"arrays": []}, "arrays is not an object"),
        ({"arrays": {"ohlc": 5}}, "arrays.ohlc is not an object"),
        ({"arrays": {"ohlc": {"shape": [5, 4]}}}, "arrays.ohlc.dtype is missing"),
        ({"arrays": {"ohlc": {**ARRAY, "shape": 5}}}, "arrays.ohlc.shape is not a list"),
        ({"arrays": {"ohlc": {**ARRAY, "shape": ["x"]}}}, "arrays.ohlc.shape[0] is not a whole number"),
        ({"arrays": {"ohlc": {**ARRAY, "shape": [5.0, 4]}}}, "arrays.ohlc.shape[0] is not a whole number"),
        ({"arrays": {"ohlc": {**ARRAY, "shape": [True, 4]}}}, "arrays.ohlc.shape[0] is not a whole number"),
        ({"arrays": {"ohlc": {**ARRAY, "md5": ["0" * 31]}}}, "arrays.ohlc.md5[0] is not an MD5"),
        ({"components": 5}, "components is not an object"),
        ({"components": {"stage": "bars", "version": 1, "fields": {}}}, "components.inputs is missing"),
        (
            {"components": {"stage": "bars", "version": 1, "fields": {}, "inputs": {"bars": [5]}}},
            "components.inputs.bars[0] is not a text",
        ),
        ({"built": {"at": "2024-01-01", "seconds": 1, "by": {}}}, "built.at is not an instant with its zone"),
        *(
            ({"arrays": {name: {**ARRAY, **change}}}, f"arrays.{name} is not an array as this format has them")
            for name, change in [
                ("ohlc", {"shape": []}),
                ("ohlc", {"shape": [0, 4]}),
                ("ohlc", {"shape": [5, 0]}),
                ("ohlc", {"shape": [-5, 4]}),
                ("ohlc", {"dtype": "float48"}),
                ("ohlc", {"dtype": "|O"}),  # would be unpickled
                ("ohlc", {"dtype": "float64"}),
                ("ohlc", {"dtype": ">f8"}),
                ("ohlc", {"dims": ["time"]}),
                ("ohlc", {"bytes": 181}),
                ("../ohlc", {}),
                ("", {}),
            ]
        ),
    ],
)
def test_a_sealed_manifest_that_is_wrong(entry: Entry, tmp_path: Path, changes: dict[str, Any], what: str):
    edit(entry, **changes)
    assert fault(open_entry, tmp_path, "bars", entry.key) == (
        f"{entry.path}: damaged, its manifest does not say what it should: {what}. {REMEDY}"
    )


def test_a_missing_ref_names_those_there_are(tmp_path: Path):
    (tmp_path / "locks").mkdir()
    (tmp_path / "locks/store").touch()  # a builder has been here
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
    "content", [b"", b"[]", b"5", b"{}", b'{"dataset": "x", "recipe": {}}', b"\xff", b"[" * 100_000]
)
def test_a_damaged_ref(tmp_path: Path, content: bytes):
    write_atomically(tmp_path / "refs/demo.json", content)
    assert fault(read_ref, tmp_path, "demo") == (
        f"{tmp_path / 'refs/demo.json'}: damaged, it is not as it was written. {REMEDY}"
    )


def test_every_bit_of_a_ref_counts(tmp_path: Path):
    path = point(tmp_path, "demo", "0" * 32)
    read_ref(tmp_path, "demo")
    for bit in range(8 * path.stat().st_size):
        flip(path, bit)
        assert "damaged, it is not as it was written" in fault(read_ref, tmp_path, "demo")
        flip(path, bit)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"dataset": "x"}, "dataset is not an MD5"),
        ({"dataset": None}, "dataset is not an MD5"),
        ({"recipe": 5}, "recipe is not an object"),
        ({"recipe": {}}, "recipe.name is missing"),
        ({"data_dir": 5}, "data_dir is not a text"),
        ({"sources": {"m1": {"a.parquet": 5}}}, "sources.m1.a.parquet is not a text"),
        ({"updated": "yesterday"}, "updated is not an instant with its zone"),
        ({"name": "other"}, "it is the ref of other"),
    ],
)
def test_a_sealed_ref_that_is_wrong(tmp_path: Path, change: dict[str, Any], what: str):
    path = point(tmp_path, "demo", "0" * 32)
    ref = {**read_ref(tmp_path, "demo"), **change}
    path.write_bytes(canonical_json(sealed(ref)))
    assert fault(read_ref, tmp_path, "demo") == f"{path}: damaged, {what}. {REMEDY}"


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


def entries_of(store: Path) -> dict[str, Path]:
    dataset = open_dataset(store, "test")
    (entries,) = dataset.symbols.values()
    return {"dataset": dataset.entry.path, "windows": entries.windows.path, "m5": entries.streams["m5"].path}


@pytest.mark.parametrize(
    ("of", "change", "what"),
    [  # the last one is seen before the file is
        ("dataset", lambda m: m.pop("timeframes"), "timeframes is missing"),
        ("dataset", lambda m: m.update(timeframes=[]), "there is no symbol, or no timeframe"),
        ("dataset", lambda m: m.update(seq_len={"m1": 32}), "seq_len does not give every timeframe its bars"),
        ("dataset", lambda m: m["seq_len"].update(m1=0), "seq_len does not give every timeframe its bars"),
        ("dataset", lambda m: m["splits"].pop("val"), "splits.val is missing"),
        ("dataset", lambda m: m["splits"]["val"].pop("from"), "splits.val.from is missing"),
        (
            "dataset",
            lambda m: m["components"]["inputs"]["TEST"]["streams"].pop("m5"),
            "components.inputs.TEST.streams are not of the timeframes",
        ),
        ("dataset", lambda m: m["components"].update(inputs={}), "there is no symbol, or no timeframe"),
        ("dataset", lambda m: m.update(warnings=[5]), "warnings[0] is not a text"),
        ("dataset", lambda m: m["longest_gap"].pop("m5"), "longest_gap is not of the timeframes but the base"),
        ("dataset", lambda m: m["arrays"].pop("val"), "arrays.val is missing"),
        ("dataset", lambda m: m["arrays"]["mean"].update(dtype="<i8"), "arrays.mean is not <f8 of 3 axes"),
        ("dataset", lambda m: m["features"].pop(), MISSHAPEN),
        ("dataset", lambda m: m["splits"].update(hold_out={"from": 0}), MISSHAPEN),
        ("dataset", lambda m: m["components"]["inputs"].update(TESTS=m["components"]["inputs"]["TEST"]), MISSHAPEN),
        (
            "dataset",
            lambda m: m["components"]["inputs"].update(A=m["components"]["inputs"]["TEST"]),
            "components.inputs are not in the order of the symbols' names",
        ),
        ("windows", lambda m: m["arrays"].pop("ends"), "arrays.ends is missing"),
        ("windows", lambda m: m.update(timeframes=["m1"]), "timeframes are not as many as arrays.ends has columns"),
        ("m5", lambda m: m["arrays"].pop("close"), "arrays.close is missing"),
        ("m5", lambda m: m["arrays"]["values"].update(dtype="<i4"), "arrays.values is not <f4 of 2 axes"),
        ("m5", lambda m: m.pop("nominal_length"), "nominal_length is missing"),
        ("m5", lambda m: m.update(features=["a"]), "features are not as many as arrays.values has columns"),
        ("m5", lambda m: m["statistics"]["std"].pop("log_open"), "statistics.std is not of the features"),
        ("m5", lambda m: m["statistics"]["mean"].update(log_open="0"), "statistics.mean.log_open is not a number"),
        ("m5", lambda m: m["arrays"]["close"].update(m["arrays"]["close"], shape=[6240], bytes=49_940), ""),
    ],
)
def test_a_dataset_with_a_sealed_manifest_that_is_wrong(copied: Path, of: str, change: Callable[..., Any], what: str):
    path = entries_of(copied)[of]
    change_manifest(path, change)
    said = fault(open_dataset, copied, "test")
    assert said.startswith(f"{path}: damaged, ")
    assert what in said
    assert said.endswith(VERIFY if what else REMEDY)


@pytest.mark.parametrize(
    ("of", "change", "what"),
    [
        ("windows", lambda m: m["seq_len"].update(m1=31), "its timeframes or lengths are not those of"),
        ("dataset", lambda m: m["seq_len"].update(m1=31), "its timeframes or lengths are not those of"),
    ],
)
def test_parts_that_do_not_belong_together(copied: Path, of: str, change: Callable[..., Any], what: str):
    entries = entries_of(copied)
    change_manifest(entries[of], change)
    said = fault(open_dataset, copied, "test")
    assert said.startswith(f"{entries['windows']}: damaged, {what}")
    assert said.endswith(VERIFY)


@pytest.mark.parametrize(
    ("array", "row", "value", "what"),
    [
        ("val", 0, [9, 5], "it gives val the windows [9, 5] of TEST, which has 29,568"),
        ("val", 0, [1, 29_569], "it gives val the windows [1, 29569] of TEST, which has 29,568"),
        ("train", 0, [-1, 5], "it gives train the windows [-1, 5] of TEST, which has 29,568"),
        ("windows", 0, 29_569, "it counts [29569, 30000, 6241, 2082] windows and rows of TEST, which has [29568, "),
        ("rows", (0, 2), 1, "it counts [29568, 30000, 6241, 1] windows and rows of TEST, which has [29568, 30000, "),
        ("weight", 0, 0, "it draws the windows of TEST 0.0 times"),
        ("weight", 0, np.nan, "it draws the windows of TEST nan times"),
    ],
)
def test_what_a_dataset_knows_of_its_symbols_is_overwritten(copied: Path, array: str, row: Any, value: Any, what: str):
    path = entries_of(copied)["dataset"]
    overwrite(path, array, row, value)
    said = fault(open_dataset, copied, "test")
    assert said.startswith(f"{path}: damaged, {what}")
    assert said.endswith(VERIFY)


@pytest.mark.parametrize(
    ("row", "value", "said"),
    [
        (slice(None), 2**31 - 1, "its windows end at bars 2,147,483,647 to 2,147,483,647 of m1, which has 30,000"),
        (slice(None), -1, "its windows end at bars -1 to -1 of m1, which has 30,000"),
        (slice(None), 0, "its windows end at bars 0 to 0 of m1, which has 30,000"),
        (0, 31, "its windows end at bars 31 to 30,000 of m1, which has 30,000"),
        ((-1, 1), 6242, "its windows end at bars 96 to 6,242 of m5, which has 6,241"),
        ((0, 2), 2083, "its windows end at bars 2,083 to 2,082 of m15, which has 2,082"),
    ],
)
def test_overwritten_ends(copied: Path, row: Any, value: int, said: str):
    file = entries_of(copied)["windows"] / "ends/c.0.0"
    ends = np.memmap(file, "<i4", mode="r+", shape=(29_568, 3))
    ends[row] = value
    ends.flush()
    assert fault(open_dataset, copied, "test") == f"{file}: damaged, {said}; a window has 32. {VERIFY}"


def test_overwritten_at_random(copied: Path):
    file = entries_of(copied)["windows"] / "ends/c.0.0"
    file.write_bytes(np.random.default_rng(0).bytes(file.stat().st_size))
    assert fault(open_dataset, copied, "test").startswith(f"{file}: damaged, its windows end at bars ")


@pytest.mark.parametrize(
    "module",
    [
        "cache.reader",
        "cache.stats",
        "cache.verify",
        "cache.prune",
        "cache.inspect_command",
        "cache.keep_command",
        "pipeline.cache_command",
    ],
)
def test_looking_into_a_store_needs_no_heavy_library(module: str):
    show = f"import sys, {module}; print(*(name for name in sys.modules if '.' not in name))"
    shown = subprocess.run([sys.executable, "-c", show], cwd=ROOT, check=True, capture_output=True, text=True)
    loaded = set(shown.stdout.split())
    assert "numpy" in loaded
    assert not loaded & {"zarr", "numcodecs", "numba", "pandas", "pyarrow", "torch", "dask", "sklearn"}
