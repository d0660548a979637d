"""Export and import on a small dataset whose arrays have many blocks: chunks have 256 rows here."""

import errno
import fcntl
import io
import json
import math
import os
import random
import re
import shutil
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import cache.check
import cache.layout
import cache.members
import cache.parallel
import cache.transfer
import cache.writer
from cache.archive import INDEX, manifest_bytes, read_archive
from cache.compress import pack
from cache.console import Console
from cache.entries import StoreError, open_entry
from cache.keys import Components, file_md5
from cache.layout import STAGES, body_path
from cache.locks import removing
from cache.members import END, member
from cache.reader import open_dataset
from cache.refs import UNKNOWN_DIR, read_ref
from cache.seal import canonical_json, sealed, unsealed
from cache.transfer import Transferred, export_dataset, import_dataset
from cache.writer import ArrayWriter
from pipeline.build import build
from tests.unit.cache.making import flip, md5s_of_rows
from tests.unit.pipeline.making import MINUTE, MONDAY, make_recipe, random_ohlc, write_parquet

ROWS = 2000
RECIPE = ("timeframes=[m1,m5]", "window.seq_len=8", "source.files={m1: bars.parquet}")
Member = tuple[str, bytes]


def quiet() -> Console:
    return Console(io.StringIO())


def export(store: Path, path: Path, name: str = "test", workers: int = 2) -> Transferred:
    return export_dataset(store, name, path, workers, quiet())


def take(path: Path, store: Path, rename: str | None = None, workers: int = 2) -> Transferred:
    return import_dataset(path, store, rename, workers, quiet())


@pytest.fixture(scope="module", autouse=True)
def small_chunks() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cache.layout, "CHUNK_ROWS", 256)
        for module in (cache.layout, cache.writer, cache.check):
            patch.setattr(module, "PIECE_ROWS", 64)
        cache.layout.shards.cache_clear()
        yield
    cache.layout.shards.cache_clear()


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, small_chunks: None) -> Path:
    """A store with the dataset `test`, and another dataset that shares its bars. Read only."""
    folder = tmp_path_factory.mktemp("small")
    label = MONDAY + MINUTE * np.arange(ROWS)
    write_parquet(folder / "data/bars.parquet", label, random_ohlc(np.random.default_rng(0), ROWS).round(3))
    build(make_recipe(*RECIPE), folder / "data", folder / "store", 2, quiet())
    build(make_recipe(*RECIPE, "name=other", "features.set=price"), folder / "data", folder / "store", 2, quiet())
    return folder / "store"


@pytest.fixture(scope="module")
def archive(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("archive") / "test.tar"
    export(built, path)
    return path


@pytest.fixture
def unsynced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing waits for the disk."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


def entries(store: Path) -> dict[str, bytes]:
    """Every file of every entry, and of what is half made."""
    return {
        str(path.relative_to(store)): path.read_bytes()
        for stage in STAGES
        for path in (store / stage).rglob("*")
        if path.is_file()
    }


def refs(store: Path) -> list[str]:
    return sorted(path.name for path in (store / "refs").glob("*"))


def of_test(built: Path) -> dict[str, bytes]:
    """The files of the entries of the dataset `test`."""
    streams = open_dataset(built, "other").symbols["OTHER"].streams.values()
    others = {open_dataset(built, "other").entry.key, *(stream.key for stream in streams)}
    return {name: data for name, data in entries(built).items() if name.split("/")[1] not in others}


def members(path: Path) -> list[Member]:
    """The members of an archive, read by Python's tarfile."""
    with tarfile.open(path) as file:
        read = [(info, file.extractfile(info)) for info in file]
        return [(info.name, content.read()) for info, content in read if content]


def packed(path: Path, content: list[Member]) -> Path:
    path.write_bytes(b"".join(member(*one) for one in content) + END)
    return path


def refusal(path: Path, store: Path) -> str:
    """Import what must be refused, before or after the unpacking: nothing is half there, and nothing has a name."""
    with pytest.raises(StoreError) as caught:
        take(path, store)
    check_whole(store)
    assert refs(store) == []
    return str(caught.value)


def check_whole(store: Path) -> None:
    """Every entry is whole, each array with the MD5 of its manifest; nothing else lies beside them."""
    for stage in STAGES:
        for path in (store / stage).glob("*"):
            assert not path.name.startswith("."), path
            for name, array in open_entry(store, stage, path.name).manifest["arrays"].items():
                assert md5s_of_rows(path, name, array) == array["md5"]


# There and back


@pytest.mark.usefixtures("unsynced")
@pytest.mark.parametrize("workers", [1, 3])
def test_everything_comes_back(built: Path, tmp_path: Path, workers: int):
    done = export(built, tmp_path / "test.tar", workers=workers)
    taken = take(tmp_path / "test.tar", tmp_path / "store", workers=workers)
    expected = of_test(built)
    assert entries(tmp_path / "store") == expected
    size = sum(len(data) for name, data in expected.items() if not name.endswith("zarr.json"))
    assert done == Transferred("test", 6, 6, size, (tmp_path / "test.tar").stat().st_size)
    assert taken == done
    before, after = read_ref(built, "test"), read_ref(tmp_path / "store", "test")
    assert {name for name in before if before[name] != after[name]} <= {"data_dir", "updated"}
    assert after["data_dir"] == UNKNOWN_DIR
    assert after["sources"] == {"m1": {"bars.parquet": file_md5(built.parent / "data/bars.parquet")}}
    assert open_dataset(tmp_path / "store", "test").entry.manifest == open_dataset(built, "test").entry.manifest


@pytest.mark.parametrize("workers", [1, 4])
def test_the_same_dataset_gives_the_same_bytes_and_no_path(built: Path, archive: Path, tmp_path: Path, workers: int):
    shutil.copytree(built, tmp_path / "elsewhere")
    export(tmp_path / "elsewhere", tmp_path / "again.tar", workers=workers)
    assert (tmp_path / "again.tar").read_bytes() == archive.read_bytes()
    assert str(built.parent).encode() not in archive.read_bytes()


def test_an_import_can_be_exported_again(archive: Path, tmp_path: Path):
    take(archive, tmp_path / "store")
    export(tmp_path / "store", tmp_path / "again.tar")
    assert (tmp_path / "again.tar").read_bytes() == archive.read_bytes()


def test_tar_unpacks_it_and_zarr_reads_it(built: Path, archive: Path, tmp_path: Path):
    with tarfile.open(archive) as file:
        assert {(m.mode, m.uid, m.gid, m.uname, m.mtime, m.type) for m in file} == {
            (0o644, 0, 0, "", 0, tarfile.REGTYPE)
        }
        file.extractall(tmp_path, filter="data")
    dataset = open_dataset(built, "test")
    for entry in (dataset.symbols["TEST"].windows, *dataset.symbols["TEST"].streams.values()):
        with pytest.warns(UserWarning, match="Numcodecs"):
            arrays = dict(zarr.open_group(tmp_path / entry.path.relative_to(built), mode="r").arrays())
        assert arrays.keys() == entry.manifest["arrays"].keys()
        for name, array in arrays.items():
            assert np.asarray(array[:]).tobytes() == entry.array(name).tobytes()


@pytest.mark.usefixtures("unsynced")
def test_what_is_there_is_not_unpacked_again(archive: Path, tmp_path: Path):
    take(archive, tmp_path / "store")
    mine = {**read_ref(tmp_path / "store", "test"), "data_dir": "/where/i/keep/them"}
    ref = canonical_json(sealed(mine))
    (tmp_path / "store/refs/test.json").write_bytes(ref)
    stamps = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("bars/*/*/c.*")}
    (gone,) = (tmp_path / "store/windows").iterdir()
    shutil.rmtree(gone)
    done = take(archive, tmp_path / "store")
    assert (done.entries, done.of_entries) == (1, 6)
    assert done.bytes == open_entry(tmp_path / "store", "windows", gone.name).bytes
    assert take(archive, tmp_path / "store").entries == 0
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("bars/*/*/c.*")} == stamps
    assert (tmp_path / "store/refs/test.json").read_bytes() == ref


@pytest.mark.usefixtures("unsynced")
def test_a_name_that_is_taken(built: Path, archive: Path, tmp_path: Path):
    export(built, tmp_path / "other.tar", "other")
    store = tmp_path / "store"
    take(archive, store, rename="other")
    before = entries(store)
    with pytest.raises(StoreError, match=r"has a dataset named other already, .* Give it another name: --as NEWNAME"):
        take(tmp_path / "other.tar", store)
    assert entries(store) == before
    take(tmp_path / "other.tar", store, rename="a.third-name")
    assert refs(store) == ["a.third-name.json", "other.json"]
    dataset = open_dataset(store, "a.third-name")
    assert dataset.recipe["name"] == read_ref(store, "a.third-name")["name"] == "a.third-name"
    assert list(dataset.symbols) == ["OTHER"]
    assert list(make_recipe(*RECIPE, "name=other").differs_from(open_dataset(store, "other").recipe)) == []


@pytest.mark.parametrize("name", ["", ".x", "../x", "a/b", "x\n", "é", "-", "x" * 201])
def test_a_name_that_is_none(archive: Path, tmp_path: Path, name: str):
    with pytest.raises(StoreError, match="not a name for a dataset"):
        take(archive, tmp_path / "store", rename=name)
    assert not (tmp_path / "store").exists()


@pytest.mark.usefixtures("unsynced")
def test_another_content_under_the_same_key(built: Path, archive: Path, tmp_path: Path):
    store = Path(shutil.copytree(built, tmp_path / "store"))
    (store / "refs/test.json").unlink()
    stream = open_dataset(built, "test").symbols["TEST"].streams["m5"]
    manifest = json.loads(json.dumps(stream.manifest))
    manifest["arrays"]["values"]["md5"][0] = "0" * 32
    (store / stream.path.relative_to(built) / "zarr.json").write_bytes(manifest_bytes(manifest))
    with pytest.raises(StoreError, match=r"other content under this key \(values\).*--store DIR"):
        take(archive, store)
    assert refs(store) == ["other.json"]


# Exports that fail


def test_an_export_overwrites_nothing(built: Path, tmp_path: Path):
    path = tmp_path / "test.tar"
    path.write_bytes(b"mine")
    with pytest.raises(StoreError, match=r"test.tar: exists already.*name another file"):
        export(built, path)
    assert path.read_bytes() == b"mine"
    with pytest.raises(StoreError, match=r"no folder .*make it first"):
        export(built, tmp_path / "none/test.tar")


@pytest.mark.parametrize("place", [0, 0.5, -1])
def test_damage_is_not_exported(built: Path, tmp_path: Path, place: float):
    store = Path(shutil.copytree(built, tmp_path / "store"))
    body = body_path(open_dataset(store, "test").symbols["TEST"].windows.path, "time", 1)
    data = bytearray(body.read_bytes())
    data[place if isinstance(place, int) else int(len(data) * place)] ^= 1
    body.write_bytes(data)
    with pytest.raises(StoreError, match=rf"{body}: damaged, .*bin/cache verify") as caught:
        export(store, tmp_path / "test.tar")
    assert "the dataset was not exported" in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["store"]


def test_damaged_padding_is_not_exported(built: Path, tmp_path: Path):
    store = Path(shutil.copytree(built, tmp_path / "store"))
    windows = open_dataset(store, "test").symbols["TEST"].windows
    assert windows.shape("time")[0] % 256
    body = body_path(windows.path, "time", 1)
    flip(body, 64 * windows.shape("time")[0])  # right behind the last row
    with pytest.raises(StoreError, match=rf"{body}: damaged, .*bin/cache verify"):
        export(store, tmp_path / "test.tar")


def test_a_file_that_shrinks_meanwhile(built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    store = Path(shutil.copytree(built, tmp_path / "store"))
    body = body_path(open_dataset(store, "test").symbols["TEST"].windows.path, "time", 1)
    index_bytes = cache.transfer.index_bytes

    def shrink(*arguments: Any) -> bytes:
        body.write_bytes(body.read_bytes()[:3000])
        return index_bytes(*arguments)

    monkeypatch.setattr(cache.transfer, "index_bytes", shrink)
    with pytest.raises(StoreError, match=rf"{body}: damaged"):
        export(store, tmp_path / "test.tar")
    assert [path.name for path in tmp_path.iterdir()] == ["store"]


def test_bars_that_are_gone_cannot_be_exported(built: Path, tmp_path: Path):
    store = Path(shutil.copytree(built, tmp_path / "store"))
    shutil.rmtree(store / "bars")
    with pytest.raises(StoreError, match="no such entry; run bin/build-cache"):
        export(store, tmp_path / "test.tar")
    with pytest.raises(StoreError, match="no dataset named none"):
        export(built, tmp_path / "test.tar", "none")
    assert [path.name for path in tmp_path.iterdir()] == ["store"]


def test_an_interrupted_export_leaves_nothing(built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(cache.transfer, "END", None)  # the last thing to be written
    with pytest.raises(TypeError):
        export(built, tmp_path / "test.tar")
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_export_left_is_taken_over(built: Path, archive: Path, tmp_path: Path):
    (tmp_path / ".test.tar.partial").write_bytes(b"half of another export" * 10**5)
    export(built, tmp_path / "test.tar")
    assert [path.name for path in tmp_path.iterdir()] == ["test.tar"]
    assert (tmp_path / "test.tar").read_bytes() == archive.read_bytes()


def test_two_exports_to_one_file(built: Path, tmp_path: Path):
    path, left = tmp_path / "test.tar", tmp_path / ".test.tar.partial"
    with left.open("wb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(StoreError, match=rf"{path}: another export is writing it; wait for that, or name another"):
            export(built, path)
    assert [one.name for one in tmp_path.iterdir()] == [left.name]


# Imports that fail half-way


def test_what_a_failed_import_leaves_is_told(archive: Path, tmp_path: Path):
    data = bytearray(archive.read_bytes())
    with archive.open("rb") as file:
        last = max(
            (
                span
                for one in read_archive(archive, file).entries
                for of in one.chunks.values()
                for b in of
                for span in b
            ),
            key=lambda span: span.offset,
        )
    data[last.offset + last.size // 2] ^= 255
    bad = tmp_path / "bad.tar"
    bad.write_bytes(data)
    with pytest.raises(StoreError) as caught:
        take(bad, tmp_path / "store", workers=1)
    stay = len([path for stage in STAGES for path in (tmp_path / "store" / stage).glob("[!.]*")])
    assert stay > 0
    what = f"{stay} intact entries stay" if stay > 1 else "1 intact entry stays"
    assert str(caught.value).splitlines()[1:] == [
        f"{what} in {tmp_path / 'store'}: the next try goes on from there, and bin/cache prune --unreferenced "
        "removes what no dataset needs"
    ]
    check_whole(tmp_path / "store")


@pytest.mark.parametrize("after", [0, 3, 20])
def test_a_full_disk(archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int):
    left = [after]
    write = ArrayWriter._write

    def full(self: ArrayWriter, data: bytes | memoryview) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(self, data)

    monkeypatch.setattr(ArrayWriter, "_write", full)
    with pytest.raises(OSError, match="No space left"):
        take(archive, tmp_path / "store")
    monkeypatch.undo()
    check_whole(tmp_path / "store")
    assert refs(tmp_path / "store") == []
    take(archive, tmp_path / "store")
    check_whole(tmp_path / "store")


@pytest.mark.usefixtures("unsynced")
def test_ctrl_c(archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    begun, append = threading.Event(), ArrayWriter.append

    def slow(self: ArrayWriter, block: np.ndarray) -> None:
        begun.set()
        time.sleep(0.05)
        append(self, block)

    def interrupted(*futures: Any, **options: Any) -> None:
        begun.wait()
        raise KeyboardInterrupt

    monkeypatch.setattr(ArrayWriter, "append", slow)
    monkeypatch.setattr(cache.parallel, "wait", interrupted)
    with pytest.raises(KeyboardInterrupt):
        take(archive, tmp_path / "store", workers=1)
    monkeypatch.undo()
    assert entries(tmp_path / "store") == {}  # not the one in progress, and none of those behind it
    assert refs(tmp_path / "store") == []
    take(archive, tmp_path / "store")
    check_whole(tmp_path / "store")


def test_a_disk_that_is_too_small(archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    assert "its disk has 0.0 MB free" in refusal(archive, tmp_path / "store")
    assert entries(tmp_path / "store") == {}


def test_nobody_removes_entries_meanwhile(archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    tried = []

    def try_to_remove(store: Path, size: int) -> None:
        with pytest.raises(StoreError, match="in use"), removing(store):
            pass
        tried.append(size)

    monkeypatch.setattr(cache.transfer, "check_space", try_to_remove)
    take(archive, tmp_path / "store")
    assert tried


# Archives that no export wrote


def changed(archive: Path, path: Path, change: Callable[[list[Member]], list[Member] | None]) -> Path:
    content = members(archive)
    return packed(path, change(content) or content)


def forged(archive: Path, path: Path, stage: str, change: Callable[[dict[str, Any]], object], name: str = "") -> Path:
    """The archive with another manifest of the first entry of a stage that has such an array, sealed as by a forger."""
    content = dict(members(archive))
    index = json.loads(content[INDEX])
    for listed in index["entries"]:
        folder = f"{listed['stage']}/{listed['key']}"
        if listed["stage"] == stage and (not name or f"{folder}/{name}/zarr.json" in content):
            manifest = unsealed(json.loads(content[f"{folder}/zarr.json"])["attributes"])
            change(manifest)
            content[f"{folder}/zarr.json"] = raw_json(
                {"zarr_format": 3, "node_type": "group", "attributes": seal(manifest)}
            )
            listed["manifest"] = seal(manifest)["md5"]
            break
    del index["md5"]
    content[INDEX] = raw_json(seal(index))
    return packed(path, list(content.items()))


def reindexed(archive: Path, path: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    content = members(archive)
    index = unsealed(json.loads(content[0][1]))
    change(index)
    return packed(path, [(INDEX, raw_json(seal(index))), *content[1:]])


def seal(record: dict[str, Any]) -> dict[str, Any]:
    try:
        return sealed(record)
    except ValueError:  # NaN, which has no seal
        return {**record, "md5": "0" * 32}


def raw_json(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()


def odd_member(kind: bytes, name: str = INDEX, **fields: Any) -> bytes:
    info = tarfile.TarInfo(name)
    info.type = kind
    for field, value in fields.items():
        setattr(info, field, value)
    return info.tobuf(tarfile.GNU_FORMAT)


NOT_ARCHIVES = [
    (lambda data: b"", "the file is empty"),
    (lambda data: data[:100], "the file ends"),
    (lambda data: b"hello, world\n" * 100, "no header of a tar archive"),
    (lambda data: b"\x1f\x8b" + data, "packed with gzip; unpack that"),
    (lambda data: b"BZh9" + data, "packed with bzip2"),
    (lambda data: bytes(10240), "the archive ends"),
    (lambda data: data[:5000], "cut off|the file ends"),
    (lambda data: data[:-1], "1,024 zeros, and nothing else"),
    (lambda data: data[: -len(END)], "1,024 zeros, and nothing else"),
    (lambda data: data + b"\0", "1,024 zeros, and nothing else"),
    (lambda data: data + data, "1,024 zeros, and nothing else"),
    (lambda data: data[: -len(END)] + member("more", b"x") + END, "1,024 zeros, and nothing else"),
    (
        lambda data: odd_member(tarfile.SYMTYPE, linkname="/etc/passwd") + data,
        "a symbolic link 'headstart-export.json'",
    ),
    (lambda data: odd_member(tarfile.LNKTYPE, linkname="../x") + data, "a hard link"),
    (lambda data: odd_member(tarfile.CHRTYPE) + data, "a device"),
    (lambda data: odd_member(tarfile.FIFOTYPE) + data, "a device"),
    (lambda data: odd_member(tarfile.DIRTYPE, "bars") + data, "a folder 'bars'"),
    (lambda data: odd_member(tarfile.GNUTYPE_SPARSE) + data, "an extension of tar"),
    (lambda data: odd_member(tarfile.GNUTYPE_LONGNAME) + data, "an extension of tar"),
    (lambda data: odd_member(tarfile.XHDTYPE, size=2**33 - 1) + data, "an extension of tar"),
    (lambda data: odd_member(tarfile.REGTYPE, size=2**60) + data, "its size, owner, mode or time"),
    (lambda data: odd_member(tarfile.REGTYPE, mtime=1) + data, "packed anew"),
    (lambda data: odd_member(tarfile.REGTYPE, "/etc/passwd") + data, "there is the file '/etc/passwd'"),
    (lambda data: odd_member(tarfile.REGTYPE, "../../x") + data, r"there is the file '\.\./\.\./x'"),
    (lambda data: member(INDEX, bytes(65 * 2**20)) + data, "has 68,157,440 bytes, but 67,108,864 are the most"),
    (lambda data: data[:512] + b"[" * (len(data) - 512), "not JSON|Expecting|MD5|recursion|zeros should follow"),
]


@pytest.mark.parametrize(("change", "words"), NOT_ARCHIVES)
def test_a_file_that_is_no_archive(archive: Path, tmp_path: Path, change: Callable[[bytes], bytes], words: str):
    path = tmp_path / "bad.tar"
    path.write_bytes(change(archive.read_bytes()))
    message = refusal(path, tmp_path / "store")
    assert re.search(words, message), message
    assert message.startswith(f"{path}: ")
    assert message.endswith("Fetch the file again, or export it anew with bin/cache export")
    assert not (tmp_path / "store").exists()


def test_a_folder_and_a_missing_file(tmp_path: Path):
    assert "not a file" in refusal(tmp_path, tmp_path / "store")
    with pytest.raises(FileNotFoundError):
        take(tmp_path / "none.tar", tmp_path / "store")


def swap(content: list[Member], a: int, b: int) -> None:
    content[a], content[b] = content[b], content[a]


CHANGED = [
    (lambda m: swap(m, 1, 2), "it should come here, but there is the file 'bars/.*/open_time/zarr.json'"),
    (lambda m: m.insert(3, m[3]), "it should come here, but there is the file 'bars/.*/open_time/c.0'"),
    (lambda m: m.pop(5), "it should come here, but there is the file"),
    (lambda m: m.pop(), "but the archive ends"),
    (lambda m: m.__setitem__(4, (m[4][0], m[4][1] + bytes(5000))), "are the most that it can need"),
    (lambda m: m.__setitem__(2, (m[2][0], m[2][1] + b" ")), "are the most that it can need"),
    (lambda m: m.__setitem__(2, (m[2][0], m[2][1].replace(b"256", b"512"))), "does not follow from the manifest"),
    (lambda m: m.__setitem__(1, (m[1][0], m[1][1].replace(b'"m', b'"n', 1))), "MD5 that it carries|is missing|format"),
    (lambda m: m.__setitem__(1, (m[1][0], b"{}")), "MD5 that it carries"),
    (lambda m: m.__setitem__(1, (m[1][0], b"[]")), "MD5 that it carries"),
    (lambda m: m.__setitem__(1, (m[1][0], b"\xff")), "decode|invalid"),
    (lambda m: m.__setitem__(1, (m[1][0], b"[" * 100_000)), "recursion"),
    (lambda m: m.__setitem__(1, (m[1][0], b"1" * 5000)), "digits|limit"),
    (lambda m: m.__setitem__(1, (m[1][0], m[1][1].decode().encode("utf-16"))), "as this version writes it"),
    (lambda m: m.__setitem__(1, (m[1][0], m[1][1] + b"\n")), "as this version writes it"),
    (lambda m: m.__setitem__(0, (m[0][0], m[0][1] + b"\n")), "as this version writes it"),
    (lambda m: m.__setitem__(0, (m[0][0], b"null")), "MD5 that it carries"),
    (lambda m: m.__setitem__(0, (m[0][0], b"NaN")), "MD5 that it carries"),
    (lambda m: m.__setitem__(0, (m[0][0], b'{"a": NaN, "md5": "0"}')), "JSON compliant"),
    (lambda m: m.__setitem__(0, (m[0][0], b'{"a": 1e999, "md5": "0"}')), "JSON compliant"),
]


@pytest.mark.parametrize(("change", "words"), CHANGED)
def test_members_that_are_not_as_written(
    archive: Path, tmp_path: Path, change: Callable[[list[Member]], None], words: str
):
    def apply(content: list[Member]) -> None:
        change(content)

    message = refusal(changed(archive, tmp_path / "bad.tar", apply), tmp_path / "store")
    assert re.search(words, message), message
    assert entries(tmp_path / "store") == {}


def chunk(content: list[Member], number: int = 0) -> int:
    """The place of a chunk of prices in an archive."""
    return [i for i, (name, _) in enumerate(content) if "/ohlc/c." in name][number]


@pytest.mark.usefixtures("unsynced")
@pytest.mark.parametrize(
    ("data", "words"),
    [
        (lambda chunks: b"", r"ohlc/c\.0\.0 …: not packed"),
        (lambda chunks: chunks[0][:-5], r"ohlc/c\.0\.0 …: not packed|does not hold"),
        (lambda chunks: chunks[1], "ohlc does not have the MD5 of the manifest"),
        (lambda chunks: pack(np.zeros(256)), "ohlc does not have the MD5"),
        (lambda chunks: pack(np.zeros(10**7)), "does not hold 256 numbers"),  # tiny, and claims 80 MB
        (lambda chunks: pack(np.zeros(255)), "does not hold 256 numbers"),
        (lambda chunks: pack(np.zeros(256, np.int64)), "not packed <f8 numbers"),
        (lambda chunks: b"\xff" * 200, "not packed"),
    ],
)
def test_chunks_with_other_numbers(archive: Path, tmp_path: Path, data: Callable[[list[bytes]], bytes], words: str):
    def replace(content: list[Member]) -> None:
        chunks = [content[chunk(content, number)][1] for number in range(2)]
        content[chunk(content)] = (content[chunk(content)][0], data(chunks))

    path = changed(archive, tmp_path / "bad.tar", replace)
    key = next(name for name, _ in members(path) if "/ohlc/" in name).split("/")[1]
    message = refusal(path, tmp_path / "store")
    assert re.search(words, message), message
    assert not (tmp_path / "store/bars" / key).exists()


def set_array(name: str, **fields: Any) -> Callable[[dict[str, Any]], object]:
    return lambda manifest: manifest["arrays"][name].update(fields)


def set_shape(*shape: Any) -> Callable[[dict[str, Any]], object]:
    return set_array("ohlc", shape=list(shape))


def rename_array(to: str) -> Callable[[dict[str, Any]], object]:
    return lambda manifest: manifest["arrays"].update({to: manifest["arrays"].pop("ohlc")})


def rekeyed(manifest: dict[str, Any], **parts: Any) -> None:
    """Other components with the key that they have."""
    manifest["components"].update(parts)
    manifest["key"] = Components(**manifest["components"]).key


FORGED = [
    (set_shape(-5, 4), r"shape \[-5, 4\] is not possible"),
    (set_shape(0, 4), "is not possible"),
    (set_shape(2**40, 4), "is not possible"),
    (set_shape(10**400, 4), "is not possible"),
    (set_shape(2000, 10**30), "is not possible"),
    (set_shape(2000, 2**39), "a row has .* bytes, and 4,096 are the most"),
    (set_shape(2000, 513), "a row has 4,104 bytes, and 4,096 are the most"),
    (set_shape(), "is not possible"),
    (set_shape(*([1] * 5)), "is not possible"),
    (set_shape(True, 4), "shape.0. is not a whole number"),
    (set_shape(2000.0, 4), "shape.0. is not a whole number"),
    (set_shape(2**39, 4), "not an array as this format has them"),
    (set_array("ohlc", shape="2000"), "shape is not a list"),
    (set_array("ohlc", shape=None), "shape is not a list"),
    (set_array("ohlc", dtype="|O"), r"dtype '\|O' is not among"),
    (set_array("ohlc", dtype=">f8"), "is not among"),
    (set_array("ohlc", dtype="<f16"), "is not among"),
    (set_array("ohlc", dtype=8), "dtype is not a text"),
    (set_array("ohlc", dtype="<i8"), r"arrays.ohlc is not <f8 of 2 axes"),
    (set_array("ohlc", bytes=7), "not an array as this format has them"),
    (set_array("ohlc", md5=["0" * 32] * 2), "ohlc is not an array as this format has them"),
    (set_array("ohlc", md5=["x"]), r"md5\[0\] is not an MD5"),
    (set_array("ohlc", dims=["time"]), "not an array as this format has them"),
    (set_array("ohlc", dims=3), "dims is not a list"),
    (set_array("ohlc", attributes=[]), "attributes is not an object"),
    (set_array("ohlc", attributes={"a": math.nan}), "JSON compliant"),
    (rename_array("../../x"), "no name of an array"),
    (rename_array("/etc"), "no name of an array"),
    (rename_array("ohlc\n"), "no name of an array"),
    (rename_array("x" * 33), "no name of an array"),
    (lambda m: m["arrays"].update(more=7), "arrays.more: it is not an object"),
    (lambda m: m["arrays"].update(more=m["arrays"]["ohlc"]), "the archive ends|should come here"),
    (lambda m: m.update(arrays=[]), "arrays is not an object"),
    (lambda m: m.update(format="headstart/1"), "its format is 'headstart/1', and this version reads"),
    (lambda m: m.update(format=None), "its format is None"),
    (lambda m: m.update(stage="streams"), "not that of its components"),
    (lambda m: m.update(stage_version=99), "not that of its components"),
    (lambda m: m.update(key="0" * 32), "not that of its components"),
    (lambda m: m["components"].update(version=99), "not that of its components"),
    (lambda m: m["components"].update(extra=1), "not that of its components"),
    (lambda m: m.update(components=None), "components is not an object"),
    (lambda m: rekeyed(m, version=77), "not that of its components|it is that of"),
    (lambda m: (rekeyed(m, version=77), m.update(stage_version=77)), "it is that of bars/"),
    (lambda m: m.update(built={}), r"built.at is missing"),
    (lambda m: m.pop("first_open"), "first_open is missing"),
]


@pytest.mark.parametrize(("change", "words"), FORGED)
def test_forged_manifests(archive: Path, tmp_path: Path, change: Callable[[dict[str, Any]], object], words: str):
    path = forged(archive, tmp_path / "bad.tar", "bars", change)
    message = refusal(path, tmp_path / "store")
    assert re.search(words, message), message
    assert "bars/" in message
    assert not (tmp_path / "store").exists()


def recipe_with(**fields: Any) -> Callable[[dict[str, Any]], object]:
    return lambda index: index["ref"]["recipe"].update(fields)


REINDEXED = [
    (lambda i: i.update(format="headstart-export/9"), "format is 'headstart-export/9', and this version reads"),
    (lambda i: i.update(more=1), "as this version writes it"),
    (lambda i: i["ref"].update(more=1), "as this version writes it"),
    (lambda i: i["ref"].update(name="../../x"), "names '../../x', but its recipe 'test'"),
    (lambda i: (i["ref"].update(name="../x"), i["ref"]["recipe"].update(name="../x")), "recipe.name: "),
    (lambda i: (i["ref"].update(name="x" * 300), i["ref"]["recipe"].update(name="x" * 300)), "at most 100 characters"),
    (lambda i: i["ref"].update(name=1), "name is not a text"),
    (lambda i: i["ref"].update(dataset="x"), "dataset is not an MD5"),
    (lambda i: i["ref"].update(dataset="0" * 32), "datasets/0+ is missing, which the dataset was made from"),
    (lambda i: i["ref"].update(sources=[]), "sources is not an object"),
    (lambda i: i["ref"].update(sources={"m1": {"a": 1}}), "sources.m1.a is not a text"),
    (lambda i: i["ref"].update(recipe=None), "recipe is not an object"),
    (lambda i: i.update(ref=3), "ref is not an object"),
    (recipe_with(source=7), "recipe.source: "),
    (recipe_with(timeframes="m1"), "recipe.timeframes: "),
    (recipe_with(unknown=1), "recipe.unknown: "),
    (lambda i: i.update(entries={}), "entries is not a list"),
    (lambda i: i["entries"].append(7), "is not an object"),
    (lambda i: i["entries"][0].update(key="../../../x"), "key is not an MD5"),
    (lambda i: i["entries"][0].update(key=["a"]), "key is not an MD5"),
    (lambda i: i["entries"][0].update(stage="../bars"), r"there is no stage '\.\./bars'"),
    (lambda i: i["entries"][0].update(stage=["bars"]), "stage is not a text"),
    (lambda i: i["entries"][0].update(manifest="0" * 32), f"not the manifest that {INDEX} lists"),
    (lambda i: i["entries"].reverse(), "as this version writes it"),
    (lambda i: i["entries"].insert(0, i["entries"][0]), "as this version writes it"),
    (lambda i: i["entries"].pop(0), "should come here, but there is the file"),
    (lambda i: i["entries"].pop(), "1,024 zeros"),
]


@pytest.mark.parametrize(("change", "words"), REINDEXED)
def test_forged_indices(archive: Path, tmp_path: Path, change: Callable[[dict[str, Any]], object], words: str):
    message = refusal(reindexed(archive, tmp_path / "bad.tar", change), tmp_path / "store")
    assert re.search(words, message), message
    assert message.startswith(f"{tmp_path / 'bad.tar'}: ")
    assert not (tmp_path / "store").exists()


def test_an_entry_too_few_and_one_too_many(built: Path, archive: Path, tmp_path: Path):
    export(built, tmp_path / "other.tar", "other")
    theirs = [one for one in members(tmp_path / "other.tar") if one[0].startswith("datasets/")]
    listed = json.loads(members(tmp_path / "other.tar")[0][1])["entries"][-1]

    def add(content: list[Member]) -> list[Member]:
        index = unsealed(json.loads(content[0][1]))
        index["entries"] = sorted([*index["entries"], listed], key=lambda one: (STAGES.index(one["stage"]), one["key"]))
        ours = [one for one in content if one[0].startswith("datasets/")]
        both = sorted([ours, theirs], key=lambda entry: entry[0][0])
        return [(INDEX, raw_json(sealed(index))), *content[1 : -len(ours)], *both[0], *both[1]]

    message = refusal(changed(archive, tmp_path / "more.tar", add), tmp_path / "store")
    assert f"the dataset was not made from datasets/{listed['key']}" in message

    def drop(content: list[Member]) -> list[Member]:
        index = unsealed(json.loads(content[0][1]))
        gone = index["entries"].pop(0)["key"]
        return [(INDEX, raw_json(sealed(index))), *(one for one in content[1:] if f"/{gone}/" not in one[0])]

    message = refusal(changed(archive, tmp_path / "fewer.tar", drop), tmp_path / "store")
    assert re.search(r"bars/[0-9a-f]{32} is missing, which the dataset was made from", message)


@pytest.mark.usefixtures("unsynced")
def test_entries_that_do_not_fit_together_get_no_name(archive: Path, tmp_path: Path):
    def longer_windows(manifest: dict[str, Any]) -> None:
        manifest["seq_len"] = {name: length + 1 for name, length in manifest["seq_len"].items()}

    message = refusal(forged(archive, tmp_path / "bad.tar", "datasets", longer_windows), tmp_path / "store")
    assert "the dataset is not given a name, its entries do not fit" in message


def test_control_characters_do_not_reach_the_terminal(archive: Path, tmp_path: Path):
    path = reindexed(archive, tmp_path / "bad.tar", recipe_with(**{"\x1b[2J" + "x" * 1000: 1}))
    message = refusal(path, tmp_path / "store")
    assert "\x1b" not in message
    assert len(message) < 700


@pytest.mark.usefixtures("unsynced")
def test_random_bytes_changed(built: Path, archive: Path, tmp_path: Path):
    """Whatever is changed: the import fails with a clear error, or what it took is what was exported."""
    original, expected, generator = archive.read_bytes(), of_test(built), random.Random(0)
    path, store = tmp_path / "bad.tar", tmp_path / "store"
    refused = 0
    for _ in range(500):
        data = bytearray(original)
        for _ in range(generator.choice([1, 1, 1, 2, 8])):
            data[generator.randrange(len(data))] ^= generator.randrange(1, 256)
        path.write_bytes(data)
        try:
            take(path, store)
            assert entries(store) == expected
        except StoreError as error:
            assert str(error).startswith(f"{path}: ")
            assert refs(store) == []
            refused += 1
        check_whole(store)
        shutil.rmtree(store, ignore_errors=True)
    assert refused > 490  # hardly a bit of an archive is of no use


@pytest.mark.usefixtures("unsynced")
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_pieces_cut_moved_and_doubled(archive: Path, tmp_path: Path, data: st.DataObject):
    original, path, store = archive.read_bytes(), tmp_path / "bad.tar", tmp_path / "store"
    units = len(original) // 512
    start, stop, to = (512 * data.draw(st.integers(0, units)) for _ in range(3))
    piece = original[min(start, stop) : max(start, stop)]
    rest = original.replace(piece, b"", 1) if data.draw(st.booleans()) else original
    changed = (
        rest[:to] + piece + rest[to:] if data.draw(st.booleans()) else rest[: data.draw(st.integers(0, len(rest)))]
    )
    path.write_bytes(changed)
    try:
        take(path, store)
        assert changed == original
    except StoreError:
        assert refs(store) == []
    check_whole(store)
    shutil.rmtree(store, ignore_errors=True)


def test_a_claim_of_many_rows_ends_at_the_first_chunk_that_is_not_there(archive: Path, tmp_path: Path):
    rows = 2**22

    def claim(manifest: dict[str, Any]) -> None:
        for array in manifest["arrays"].values():
            array["shape"][0] = rows
            row = int(np.prod(array["shape"][1:])) * np.dtype(array["dtype"]).itemsize
            array["bytes"] = cache.layout.shard_bytes(rows, row)
            array["md5"] = ["0" * 32] * cache.layout.piece_count(rows)

    def agree(content: list[Member]) -> None:
        for place, (name, data) in enumerate(content):
            if re.fullmatch(r"bars/\w+/\w+/zarr.json", name):
                metadata = json.loads(data)
                metadata["shape"][0] = rows
                content[place] = (name, raw_json(metadata))

    path = changed(forged(archive, tmp_path / "bad.tar", "bars", claim), tmp_path / "bad.tar", agree)
    message = refusal(path, tmp_path / "store")
    assert re.search(r"bars/[0-9a-f]{32}/open_time/c\.\d: it should come here, but there is the file", message), message
