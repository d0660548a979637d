import errno
import hashlib
import json
import os
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorstore
import xarray
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from cache.check import Body, check_body
from cache.entries import Entry, StoreError, entry_exists, open_entry
from cache.files import write_atomically
from cache.keys import Components
from cache.layout import CHUNK_ROWS, PIECE_ROWS, SHARD_ROWS, TIME_ATTRIBUTES, ArraySpec, body_path, shards
from cache.locks import building, entry_lock
from cache.seal import unsealed
from cache.writer import EntryWriter
from tests.unit.cache.making import child, flip, said

COMPONENTS = Components("bars", 1, {"timeframe": "m1"}, {"content": "00"})
TIME = ArraySpec("close_time", "<i8", ("time",), attributes=TIME_ATTRIBUTES)
SPECS = [
    ArraySpec("values", "<f4", ("time", "feature"), (6,)),
    ArraySpec("ohlc", "<f8", ("time", "price"), (4,)),
    ArraySpec("ends", "<i4", ("time", "stream"), (3,)),
    ArraySpec("close", "<f8", ("time",)),
]
BORDERS = [1, CHUNK_ROWS - 1, CHUNK_ROWS, CHUNK_ROWS + 1, SHARD_ROWS, SHARD_ROWS + 1, 2 * SHARD_ROWS]


def write(
    store: Path, arrays: Sequence[tuple[ArraySpec, NDArray[Any]]], cuts: Sequence[int] = (), components=COMPONENTS
) -> Entry:
    """Publish an entry whose arrays arrive in blocks that end at `cuts`."""
    with EntryWriter(store, components) as entry:
        writers = [entry.array(spec) for spec, _ in arrays]
        for writer, (_, data) in zip(writers, arrays, strict=True):
            for block in np.split(data, cuts):
                writer.append(block)
        entry.publish(origin="test")
    return open_entry(store, components.stage, components.key)


def random_array(spec: ArraySpec, rows: int) -> NDArray[Any]:
    """Random numbers, among them whole runs of the fill value."""
    generator = np.random.default_rng(rows)
    data = (generator.normal(size=(rows, *spec.columns)) * 1000).astype(spec.dtype)
    data[generator.random(rows) < 0.2] = spec.fill_value
    return data


def times(rows: int) -> NDArray[np.int64]:
    return 1_514_764_800_000_000_000 + 60_000_000_001 * np.arange(rows, dtype=np.int64)


def read_tensorstore(path: Path) -> NDArray[Any]:
    spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": f"{path}/"}}
    return np.asarray(tensorstore.open(spec, open=True).result().read().result())


def same(left: NDArray[Any], right: NDArray[Any]) -> bool:
    """Bit for bit, NaNs included."""
    return (left.shape, left.dtype, left.tobytes()) == (right.shape, right.dtype, right.tobytes())


def check_everywhere(store: Path, spec: ArraySpec, rows: int, cuts: Sequence[int]) -> None:
    data, stamps = random_array(spec, rows), times(rows)
    components = Components("bars", 1, {"rows": rows, "array": spec.name, "cuts": list(cuts)}, {})
    entry = write(store, [(spec, data), (TIME, stamps)], cuts, components)
    group = zarr.open_group(entry.path, mode="r")
    with xarray.open_zarr(entry.path, consolidated=False) as labelled:
        assert labelled[spec.name].dims == spec.dims
        assert same(labelled[spec.name].values, data)
        assert same(labelled["close_time"].values, stamps.view("datetime64[ns]"))
    for array_spec, expected in ((spec, data), (TIME, stamps)):
        name = array_spec.name
        array = group[name]
        assert isinstance(array, zarr.Array)
        assert same(entry.array(name), expected)
        assert same(np.asarray(array[:]), expected)
        assert same(read_tensorstore(entry.path / name), expected)
        assert array.metadata.to_dict()["dimension_names"] == array_spec.dims
        middle = rows // 2
        assert same(np.asarray(array[middle : middle + 64]), expected[middle : middle + 64])
        files = [body_path(entry.path, name, expected.ndim, shard.number) for shard in shards(rows)]
        bodies = [file.read_bytes() for file in files]
        for shard, body in zip(shards(rows), bodies, strict=True):
            assert body.startswith(expected[shard.start : shard.start + shard.rows].tobytes())
        assert entry.manifest["arrays"][name] == {
            "shape": list(expected.shape),
            "dtype": array_spec.dtype,
            "dims": list(array_spec.dims),
            "attributes": array_spec.attributes,
            "bytes": sum(map(len, bodies)),
            "md5": [hashlib.md5(piece).hexdigest() for piece in np.split(expected, range(16_384, rows, 16_384))],
        }


@pytest.mark.parametrize("rows", BORDERS)
@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)
def test_all_readers_agree_at_chunk_borders(tmp_path: Path, spec: ArraySpec, rows: int):
    check_everywhere(tmp_path, spec, rows, [rows // 3])


@settings(max_examples=30, deadline=None)
@given(
    st.sampled_from(SPECS),
    st.integers(1, 2 * SHARD_ROWS + 10).flatmap(
        lambda rows: st.tuples(st.just(rows), st.lists(st.integers(0, rows), max_size=3).map(sorted))
    ),
)
def test_all_readers_agree_however_the_blocks_come(
    tmp_path_factory: pytest.TempPathFactory, spec: ArraySpec, case: tuple[int, list[int]]
):
    check_everywhere(tmp_path_factory.mktemp("store"), spec, *case)


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)
@pytest.mark.parametrize("empty", [slice(0, CHUNK_ROWS), slice(CHUNK_ROWS, 2 * CHUNK_ROWS), slice(None)])
def test_chunks_of_fill_values_keep_their_place(tmp_path: Path, spec: ArraySpec, empty: slice):
    data = random_array(spec, 2 * CHUNK_ROWS + 5)
    data[empty] = spec.fill_value
    entry = write(tmp_path, [(spec, data)])
    assert same(entry.array(spec.name), data)
    assert same(np.asarray(zarr.open_array(entry.path / spec.name, mode="r")[:]), data)
    assert same(read_tensorstore(entry.path / spec.name), data)


@pytest.mark.parametrize(
    "rows", [1, PIECE_ROWS, 3 * PIECE_ROWS + 1, SHARD_ROWS - 1, SHARD_ROWS, SHARD_ROWS + 1, 2 * SHARD_ROWS + PIECE_ROWS]
)
@pytest.mark.parametrize("more", [0, 3, PIECE_ROWS - 1, SHARD_ROWS])
def test_an_array_that_begins_with_another(tmp_path: Path, rows: int, more: int):
    spec = SPECS[2]
    data = random_array(spec, rows + more)
    earlier = write(tmp_path, [(spec, data[:rows])])
    components = Components("bars", 1, {"timeframe": "m1"}, {"content": "01"})
    with EntryWriter(tmp_path, components, synced=False) as entry:
        entry.array(spec, earlier).append(data[rows:])
        entry.publish(origin="test")
    found = open_entry(tmp_path, "bars", components.key)
    whole = write(tmp_path / "whole", [(spec, data)])
    assert found.manifest["arrays"] == whole.manifest["arrays"]
    assert same(found.array(spec.name), data)
    for shard in shards(rows + more):
        files = [body_path(one.path, spec.name, 2, shard.number) for one in (found, whole, earlier)]
        assert files[0].read_bytes() == files[1].read_bytes()
        shared = files[2].exists() and files[0].samefile(files[2])
        assert shared == (shard.start + SHARD_ROWS <= rows)


@pytest.mark.parametrize("row", [SHARD_ROWS + PIECE_ROWS, SHARD_ROWS + PIECE_ROWS + 4])
def test_damaged_rows_that_get_another_md5_are_not_taken_over(tmp_path: Path, row: int):
    earlier = write(tmp_path, [(TIME, times(SHARD_ROWS + PIECE_ROWS + 5))])
    body = body_path(earlier.path, "close_time", 1, 1)
    flip(body, 64 * (row - SHARD_ROWS))
    told = pytest.raises(StoreError, match=r"close_time/c\.1: damaged, its MD5 .* `bin/cache verify --repair`")
    with EntryWriter(tmp_path, Components("bars", 1, {}, {})) as entry, told:
        entry.array(TIME, earlier)


@pytest.mark.parametrize("row", [0, SHARD_ROWS - 1, SHARD_ROWS, SHARD_ROWS + PIECE_ROWS - 1])
def test_damage_in_full_pieces_shows_in_what_takes_them_over(tmp_path: Path, row: int):
    rows = SHARD_ROWS + PIECE_ROWS + 5
    data = times(rows + 7)
    earlier = write(tmp_path, [(TIME, data[:rows])])
    flip(body_path(earlier.path, "close_time", 1, row // SHARD_ROWS), 64 * (row % SHARD_ROWS))
    components = Components("bars", 1, {"timeframe": "m1"}, {"content": "01"})
    with EntryWriter(tmp_path, components) as entry:
        entry.array(TIME, earlier).append(data[rows:])
        entry.publish(origin="test")
    found = open_entry(tmp_path, "bars", components.key)
    assert found.manifest["arrays"] == write(tmp_path / "whole", [(TIME, data)]).manifest["arrays"]
    for one in (earlier, found):
        damages = []
        for shard in shards(one.shape("close_time")[0]):
            md5s = one.manifest["arrays"]["close_time"]["md5"]
            file = body_path(one.path, "close_time", 1, shard.number)
            body = Body(one.path, file, TIME, shard, tuple(md5s[piece] for piece in shard.pieces()))
            damages.append(check_body(body, lambda count: None))
        assert [damage is None for damage in damages] == [row >= SHARD_ROWS, row < SHARD_ROWS]


def refuse_to_copy(*arguments: int) -> int:
    raise OSError(errno.EXDEV, "not between these")


@pytest.mark.parametrize("few", [None, 100_000])
def test_where_the_system_copies_nothing_or_little_all_is_copied(
    tmp_path: Path, few: int | None, monkeypatch: pytest.MonkeyPatch
):
    copy = os.copy_file_range
    monkeypatch.setattr(
        "os.copy_file_range", (lambda a, b, size: copy(a, b, min(size, few))) if few else refuse_to_copy
    )
    data = random_array(SPECS[1], 5 * PIECE_ROWS + 3)
    earlier = write(tmp_path, [(SPECS[1], data[:-1])])
    components = Components("bars", 1, {"timeframe": "m1"}, {"content": "01"})
    with EntryWriter(tmp_path, components) as entry:
        entry.array(SPECS[1], earlier).append(data[-1:])
        entry.publish(origin="test")
    found = open_entry(tmp_path, "bars", components.key)
    assert same(found.array(SPECS[1].name), data)
    assert found.manifest["arrays"] == write(tmp_path / "whole", [(SPECS[1], data)]).manifest["arrays"]


def test_where_there_are_no_hard_links_shards_are_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(there: Path, here: Path) -> None:
        raise OSError(errno.EPERM, "not permitted")

    monkeypatch.setattr("os.link", refuse)
    data = random_array(TIME, SHARD_ROWS)
    earlier = write(tmp_path, [(TIME, data)])
    components = Components("bars", 1, {"timeframe": "m1"}, {"content": "01"})
    with EntryWriter(tmp_path, components) as entry:
        entry.array(TIME, earlier)
        entry.publish(origin="test")
    found = open_entry(tmp_path, "bars", components.key)
    assert same(found.array("close_time"), data)
    assert found.manifest["arrays"] == earlier.manifest["arrays"]


def test_a_block_need_not_be_contiguous(tmp_path: Path):
    data = np.asfortranarray(random_array(SPECS[1], 1000))
    assert same(write(tmp_path, [(SPECS[1], data)], [10, 11]).array("ohlc"), np.ascontiguousarray(data))


def test_the_manifest_says_everything(tmp_path: Path):
    entry = write(tmp_path, [(TIME, times(5))])
    manifest = unsealed(dict(zarr.open_group(entry.path, mode="r").attrs))
    assert manifest == entry.manifest
    built = manifest.pop("built")
    assert set(built) == {"at", "seconds", "by"}
    assert built["by"]["numpy"] == np.__version__
    assert manifest.pop("arrays").keys() == {"close_time"}
    assert manifest == {
        "format": "headstart/7",
        "stage": "bars",
        "stage_version": 1,
        "key": COMPONENTS.key,
        "components": COMPONENTS.as_dict(),
        "origin": "test",
    }
    assert entry.path == tmp_path / "bars" / COMPONENTS.key


@pytest.mark.parametrize("at", ["before", "after"])
def test_an_exception_leaves_nothing(tmp_path: Path, at: str):
    with pytest.raises((ZeroDivisionError, ValueError)), EntryWriter(tmp_path, COMPONENTS) as entry:
        entry.array(TIME).append(times(5))
        if at == "before":
            raise ZeroDivisionError
        entry.publish(detail=float("nan"))  # JSON has none: fails at the manifest, after all else is written
    assert list((tmp_path / "bars").iterdir()) == []


def test_an_entry_that_is_not_published_leaves_nothing(tmp_path: Path):
    with EntryWriter(tmp_path, COMPONENTS) as entry:
        entry.array(TIME).append(times(5))
    assert list((tmp_path / "bars").iterdir()) == []


def test_what_a_killed_builder_left_is_replaced(tmp_path: Path):
    left = tmp_path / "bars" / f".{COMPONENTS.key}.partial"
    (left / "close_time/c").mkdir(parents=True)
    (left / "close_time/c.0").write_bytes(b"half")
    (left / "other").write_bytes(b"")
    entry = write(tmp_path, [(TIME, times(5))])
    assert [path.name for path in (tmp_path / "bars").iterdir()] == [COMPONENTS.key]
    assert sorted(path.name for path in entry.path.iterdir()) == ["close_time", "zarr.json"]


def test_an_entry_appears_at_once_and_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    whole: list[bool] = []
    rename = Path.rename

    def observed(self: Path, target: Path) -> Path:
        if self.name.endswith(".partial"):
            with pytest.raises(StoreError, match="no such entry"):
                open_entry(tmp_path, "bars", COMPONENTS.key)
            manifest = json.loads((self / "zarr.json").read_bytes())["attributes"]
            body = self / "close_time/c.0"
            rows = body.read_bytes()[: 5 * 8]
            whole.append([hashlib.md5(rows).hexdigest()] == manifest["arrays"]["close_time"]["md5"])
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", observed)
    write(tmp_path, [(TIME, times(5))])
    assert whole == [True]
    assert [path.name for path in (tmp_path / "bars").iterdir()] == [COMPONENTS.key]


def test_a_lock_tells_whether_there_is_work(tmp_path: Path):
    with entry_lock(tmp_path, COMPONENTS) as wanted:
        assert wanted
        write(tmp_path, [(TIME, times(5))])
    with entry_lock(tmp_path, COMPONENTS) as wanted:
        assert not wanted


def test_a_failure_releases_the_lock(tmp_path: Path):
    with pytest.raises(ZeroDivisionError), entry_lock(tmp_path, COMPONENTS):
        raise ZeroDivisionError
    with entry_lock(tmp_path, COMPONENTS) as wanted:
        assert wanted


BUILDER = """
import sys
from pathlib import Path
import numpy as np
from cache.keys import Components
from cache.layout import ArraySpec
from cache.locks import entry_lock
from cache.writer import EntryWriter

components = Components("bars", 1, {"timeframe": "m1"}, {"content": "00"})
print("ready", flush=True)
with entry_lock(Path(sys.argv[1]), components) as wanted:
    if wanted:
        with EntryWriter(Path(sys.argv[1]), components) as entry:
            array = entry.array(ArraySpec("close_time", "<i8", ("time",)))
            array.append(np.arange(5))
            print("locked", flush=True)
            sys.stdin.readline()
            array.append(np.arange(5, 10))
            entry.publish()
print("built" if wanted else "found", flush=True)
"""


def test_two_processes_build_an_entry_once(tmp_path: Path):
    with child(BUILDER, tmp_path) as first, child(BUILDER, tmp_path) as second:
        assert said(first) == "ready"
        assert said(second) == "ready"
        for process in (first, second):  # one holds the lock until it is told to go on, and the other waits for it
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(0.15)
        assert not entry_exists(tmp_path, "bars", COMPONENTS.key)
        for process in (first, second):
            assert process.stdin is not None
            process.stdin.write("go on\n")
            process.stdin.flush()
        said_last = [process.communicate(timeout=20)[0].split()[-1] for process in (first, second)]
    assert sorted(said_last) == ["built", "found"]
    assert same(open_entry(tmp_path, "bars", COMPONENTS.key).array("close_time"), np.arange(10))
    own, other = (f"bars-{key}.lock" for key in (COMPONENTS.key, "0" * 32))
    (tmp_path / "locks" / other).touch()  # of an entry that is not there
    with entry_lock(tmp_path, COMPONENTS), building(tmp_path):
        pass
    assert {path.name for path in (tmp_path / "locks").iterdir()} == {own, other, "store"}
    with building(tmp_path):
        pass
    assert {path.name for path in (tmp_path / "locks").iterdir()} == {other, "store"}


def test_the_lock_of_a_killed_process_is_free(tmp_path: Path):
    with child(BUILDER, tmp_path) as process:
        assert [said(process), said(process)] == ["ready", "locked"]
        process.send_signal(signal.SIGKILL)
        process.wait(10)
    left = [path.name for path in (tmp_path / "bars").iterdir()]
    assert left == [f".{COMPONENTS.key}.partial"]
    with child(BUILDER, tmp_path) as process:
        out, _ = process.communicate("go on\n", timeout=20)
        assert out.split() == ["ready", "locked", "built"]
    assert [path.name for path in (tmp_path / "bars").iterdir()] == [COMPONENTS.key]
    assert same(open_entry(tmp_path, "bars", COMPONENTS.key).array("close_time"), np.arange(10))


def test_a_small_file_is_replaced_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "refs/name.json"
    write_atomically(path, b"old")
    write_atomically(path, b"new")
    assert path.read_bytes() == b"new"
    monkeypatch.setattr(Path, "replace", None)  # the write fails at the last step
    with pytest.raises(TypeError):
        write_atomically(path, b"newest")
    monkeypatch.undo()
    assert path.read_bytes() == b"new"
    assert [left.name for left in path.parent.iterdir()] == ["name.json"]
