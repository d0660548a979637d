"""Remote stores in a folder: what is sent and fetched, and what is refused."""

import errno
import io
import json
import os
import re
import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

import cache.remote
from cache.archive import manifest_bytes
from cache.console import Console
from cache.contents import abandoned
from cache.entries import StoreError, open_entry
from cache.keys import file_md5
from cache.locks import building, key_lock, removing
from cache.members import END, member
from cache.packing import all_entries
from cache.parallel import StoppedError
from cache.pull import pull_dataset
from cache.push import push_dataset
from cache.reader import open_dataset
from cache.refs import UNKNOWN_DIR, read_ref
from cache.remote import Remote
from cache.remote_ref import Listed, listed, parse_record, record_bytes
from cache.remote_url import protocol_of
from cache.seal import canonical_json, content_md5, sealed, unsealed
from cache.transfer import Transferred
from tests.unit.cache.making import change_manifest, flip


def quiet() -> Console:
    return Console(io.StringIO())


def push(store: Path, folder: Path) -> Transferred:
    return push_dataset(store, "test", f"file://{folder}", quiet())


def pull(folder: Path, store: Path, rename: str | None = None) -> Transferred:
    return pull_dataset(f"file://{folder}", "test", store, rename, quiet())


def refusal(folder: Path, store: Path) -> str:
    """Pull what must be refused: nothing is half there, and nothing has a name."""
    with pytest.raises(StoreError) as caught:
        pull(folder, store)
    assert not list(store.glob("*/.*"))
    assert not (store / "refs").exists()
    return str(caught.value)


def content(store: Path) -> dict[str, str]:
    return {str(p.relative_to(store)): file_md5(p) for p in store.glob("[bswd]*/*/**/*") if p.is_file()}


@pytest.fixture(scope="module")
def pushed(test_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder to which the dataset `test` was pushed. Read only."""
    folder = tmp_path_factory.mktemp("remote") / "pushed"
    push(test_store, folder)
    return folder


@pytest.fixture
def folder(pushed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it. Nothing waits for the disk."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    return Path(shutil.copytree(pushed, tmp_path / "remote"))


@pytest.fixture
def store(test_store: Path, tmp_path: Path) -> Path:
    """A copy of the store that was pushed."""
    return Path(shutil.copytree(test_store, tmp_path / "mine"))


def windows(folder: Path) -> Path:
    (path,) = (folder / "windows").iterdir()
    return path


# There and back


def test_what_was_pushed_comes_back_with_its_ref(test_store: Path, folder: Path, tmp_path: Path):
    done = pull(folder, tmp_path / "store")
    objects = sum(path.stat().st_size for path in folder.rglob("*.tar"))
    size = sum(entry.bytes for entry in all_entries(test_store, "test")[1])
    assert done == Transferred("test", 8, 8, size, objects)
    assert content(tmp_path / "store") == content(test_store)
    before, after = read_ref(test_store, "test"), read_ref(tmp_path / "store", "test")
    assert {name for name in before if before[name] != after[name]} <= {"data_dir", "updated"}
    assert after["data_dir"] == UNKNOWN_DIR
    assert list(folder.glob("*/.*")) == []


def test_the_same_dataset_gives_the_same_objects_and_no_path(store: Path, pushed: Path, tmp_path: Path):
    push(store, tmp_path / "again")
    assert {p.name: p.read_bytes() for p in (tmp_path / "again").rglob("*.*")} == {
        p.name: p.read_bytes() for p in pushed.rglob("*.*")
    }
    assert str(store.parent).encode() not in (pushed / "refs/test.json").read_bytes()


@pytest.mark.parametrize("spoil", [lambda path: path.unlink(), lambda path: path.write_bytes(b"half")])
def test_a_push_sends_what_is_missing_or_was_never_whole(
    store: Path, folder: Path, pushed: Path, spoil: Callable[[Path], Any]
):
    spoil(windows(folder))
    assert push(store, folder).entries == 1
    assert windows(folder).read_bytes() == windows(pushed).read_bytes()


@pytest.mark.parametrize("head", [600, 2**16])
def test_who_built_an_entry_and_when_makes_no_difference(
    store: Path, folder: Path, tmp_path: Path, head: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(cache.push, "_HEAD_BYTES", head)  # 600: the rest of a manifest is asked for
    change_manifest(store / "windows" / windows(folder).stem, lambda one: one["built"].update(seconds=99))
    assert (push(store, folder).entries, push(store, folder).file_bytes) == (0, 0)
    pull(folder, tmp_path / "store")
    assert pull(folder, store).entries == 0


def test_other_content_under_the_same_key_is_neither_sent_nor_taken(store: Path, folder: Path):
    entry = store / "windows" / windows(folder).stem
    change_manifest(entry, lambda one: one["arrays"]["time"]["md5"].reverse())
    with pytest.raises(
        StoreError, match=rf"^file://{windows(folder)}: has other content than {entry}. Push to a URL of"
    ):
        push(store, folder)
    with pytest.raises(
        StoreError, match=rf"^{entry}: file://{folder} has other content under this key. Pull into a st"
    ):
        pull(folder, store)


def test_a_dataset_that_was_pulled_is_renewed_and_one_that_was_built_is_not(store: Path, folder: Path, tmp_path: Path):
    newer = tmp_path / "newer"
    shutil.copytree(folder, newer)
    pull(folder, tmp_path / "store")
    ref, mine = read_ref(tmp_path / "store", "test"), read_ref(store, "test")
    for where, one in ((tmp_path / "store", ref), (store, mine)):
        (where / "refs/test.json").write_bytes(canonical_json(sealed({**one, "dataset": "0" * 32})))
    pull(newer, tmp_path / "store")
    assert read_ref(tmp_path / "store", "test")["dataset"] == ref["dataset"]
    with pytest.raises(StoreError, match=r"has a dataset named test already, 0{32}, and .*: --as NEWNAME"):
        pull(newer, store)
    assert pull(newer, store, "theirs").entries == 0
    assert open_dataset(store, "theirs").recipe["name"] == "theirs"


def test_a_push_replaces_the_ref_of_another_dataset(store: Path, folder: Path):
    path = folder / "refs/test.json"
    known = path.read_bytes()
    taken = parse_record(known, "test")
    path.write_bytes(record_bytes({**taken.ref, "sources": {}}, taken.entries))
    assert push(store, folder).entries == 0
    assert path.read_bytes() == known


def test_what_a_killed_pull_left_is_replaced_or_pruned(folder: Path, tmp_path: Path):
    left = tmp_path / "store" / "windows" / f".{windows(folder).stem}.tar"
    left.parent.mkdir(parents=True)
    left.write_bytes(b"half")
    assert [one.path for one in abandoned(tmp_path / "store")] == [left]
    pull(folder, tmp_path / "store")
    assert not left.exists()


def test_nobody_removes_entries_meanwhile(folder: Path, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    tried = []
    write, fetch = Remote.write, Remote.fetch

    def try_to_remove(act: Any, where: Path) -> Any:
        def wrapped(*arguments: Any) -> None:
            with pytest.raises(StoreError, match="in use"), removing(where):
                pass
            tried.append(act)
            act(*arguments)

        return wrapped

    monkeypatch.setattr(Remote, "write", try_to_remove(write, store))
    monkeypatch.setattr(Remote, "fetch", try_to_remove(fetch, tmp_path / "store"))
    push(store, tmp_path / "elsewhere")
    pull(folder, tmp_path / "store")
    assert set(tried) == {write, fetch}


# What is refused


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-2000])


def other_entry(path: Path) -> None:
    (other,) = (path.parent.parent / "datasets").iterdir()
    shutil.copy(other, path)


def other_arrays(path: Path) -> None:
    """An object that is right in itself, with other numbers in its manifest than the ref knows."""
    data = path.read_bytes()
    size = int(data[124:135], 8)
    manifest = unsealed(json.loads(data[512 : 512 + size])["attributes"])
    manifest["arrays"]["time"]["md5"].reverse()
    name = f"windows/{path.stem}/zarr.json"
    path.write_bytes(member(name, manifest_bytes(manifest)) + data[512 + -(-size // 512) * 512 :])


DAMAGES: list[tuple[Callable[[Path], Any], str]] = [
    (lambda path: path.write_bytes(b""), r"windows/\w+/zarr.json: it should come first, but the file is empty"),
    (cut, r"windows/\w+/time/c\.0: the archive is cut off within it"),
    (
        lambda path: flip(path, 8 * (path.stat().st_size // 2)),
        r"windows/\w+(/\S+ …: not packed|: unpacked, \w+ does not).*",
    ),
    (
        lambda path: path.write_bytes(path.read_bytes() + END),
        r"the end: after the last member should come 1,024 zeros.*",
    ),
    (other_entry, r"windows/\w+/zarr.json: it should come here, but there is the file 'datasets/.*"),
    (other_arrays, r"its arrays are not those that the ref lists"),
]


@pytest.mark.parametrize(("damage", "words"), DAMAGES)
def test_damage_is_told_and_nothing_is_named(
    folder: Path, tmp_path: Path, damage: Callable[[Path], Any], words: str, pushed: Path
):
    path = windows(folder)
    damage(path)
    told, *more = refusal(folder, tmp_path / "store").splitlines()
    start, end = f"file://{path}: damaged, ", ". Remove this object and push the dataset again from where it is whole"
    assert told.startswith(start)
    assert told.endswith(end)
    assert re.fullmatch(words, told.removeprefix(start).removesuffix(end))
    for entry in (tmp_path / "store").glob("[bswd]*/*"):
        open_entry(tmp_path / "store", entry.parent.name, entry.name)
    assert all("the next try goes on from there" in line for line in more)
    shutil.copy(windows(pushed), path)
    pull(folder, tmp_path / "store")


def test_an_object_that_is_missing_need_only_be_pushed_again(folder: Path, tmp_path: Path, pushed: Path):
    path = windows(folder)
    path.unlink()
    told = refusal(folder, tmp_path / "store").splitlines()[0]
    assert told == (f"file://{path}: missing, and the dataset needs it. Push the dataset again from where it is whole")
    shutil.copy(windows(pushed), path)
    pull(folder, tmp_path / "store")


@pytest.mark.parametrize("stage", ["bars", "windows", "refs"])
def test_a_damaged_object_of_the_same_size_is_mended_by_removing_it_and_pushing(
    store: Path, folder: Path, tmp_path: Path, stage: str
):
    path = next(folder.glob(f"{stage}/*"))
    content = path.read_bytes()
    flip(path, 8 * (len(content) * 3 // 4))
    if stage != "refs":  # of which a push sees all
        assert push(store, folder).entries == 0
    told = refusal(folder, tmp_path / "store").splitlines()[0]
    assert told.startswith(f"file://{path}: damaged, ")
    assert told.endswith(". Remove this object and push the dataset again from where it is whole")
    path.unlink()
    assert push(store, folder).entries == (stage != "refs")
    assert path.read_bytes() == content
    pull(folder, tmp_path / "store")


def changed(change: Callable[[dict[str, Any]], Any]) -> Callable[[bytes], bytes]:
    """A ref with other content, sealed again."""

    def apply(data: bytes) -> bytes:
        record = unsealed(json.loads(data))
        change(record)
        return canonical_json(sealed(record))

    return apply


REFS: list[tuple[Callable[[bytes], bytes], str]] = [
    (lambda data: b"<html>", "it is no JSON"),
    (lambda data: b"[" * 10**5, "it is no JSON"),
    (lambda data: b'{"name": "test"}', "it is no ref of a remote store in the format headstart-remote/1"),
    (lambda data: data.replace(b"m15", b"m16"), "its content does not have the MD5 that it carries"),
    (changed(lambda one: one["ref"].pop("dataset")), "ref.dataset is missing"),
    (changed(lambda one: one["ref"]["recipe"].update(name="x")), "it names 'test', but its recipe 'x'"),
    (changed(lambda one: (one["ref"].update(name="x"), one["ref"]["recipe"].update(name="x"))), "it is the ref of x"),
    (changed(lambda one: one["entries"][0].update(stage="../x")), "its entries are not listed as"),
    (changed(lambda one: one["entries"].reverse()), "its entries are not listed as"),
    (changed(lambda one: one["entries"].append(one["entries"][-1])), "its entries are not listed as"),
    (changed(lambda one: one["entries"][0].update(key="../../x")), "entries[0].key is not an MD5"),
]


@pytest.mark.parametrize(("change", "words"), REFS)
def test_a_ref_that_is_none(folder: Path, store: Path, change: Callable[[bytes], bytes], words: str, tmp_path: Path):
    path = folder / "refs/test.json"
    path.write_bytes(change(path.read_bytes()))
    what = f"file://{path}: damaged, {words}"
    assert refusal(folder, tmp_path / "store").startswith(what)
    with pytest.raises(StoreError, match=re.escape(what)):  # it may be somebody else's
        push(store, folder)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda one: one["entries"].pop(0), r"bars/[0-9a-f]{32} is missing, which the dataset was made from"),
        (lambda one: one["ref"].update(dataset="0" * 32), r"datasets/0{32} is missing"),
    ],
)
def test_a_ref_that_lists_too_little(folder: Path, tmp_path: Path, change: Callable[[Any], Any], words: str):
    path = folder / "refs/test.json"
    path.write_bytes(changed(change)(path.read_bytes()))
    assert re.match(rf"file://{folder}: test: {words}.* Push it again\n", refusal(folder, tmp_path / "store"))


def test_damage_is_not_pushed(store: Path, tmp_path: Path):
    (body,) = (store / "windows").glob("*/time/c.0")
    flip(body, 8 * 100)
    with pytest.raises(StoreError, match=rf"^{body}: damaged, .*the dataset was not exported"):
        push(store, tmp_path / "remote")
    assert not list((tmp_path / "remote").glob("windows/*"))
    assert not (tmp_path / "remote/refs").exists()


def test_a_store_that_is_worked_in_is_no_remote_store(test_store: Path, tmp_path: Path):
    with building(tmp_path / "other"):
        pass
    with pytest.raises(StoreError, match="other: a store that is worked in; push to a folder of its own"):
        push(test_store, tmp_path / "other")


def test_a_disk_that_is_too_small(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    assert refusal(folder, tmp_path / "store") == (
        f"{tmp_path / 'store'}: 4.0 MB are to come, and its disk has 0.0 MB free"
    )


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("backup", "^backup: not the URL of a remote store; write s3://BUCKET/FOLDER, .*https://HOST/FOLDER$"),
        ("ftp://host/x", "not the URL of a remote store"),
        ("s3://", "not the URL of a remote store"),
        ("simplecache::s3://bucket/x", "not the URL of a remote store"),
        ("file://backup/x", r"^file://backup/x: three slashes are needed before the path: file:///\S+/backup/x$"),
        ("s3://mine:secret@bucket/x", "^s3://…: neither credentials nor options .* environment: AWS_ACCESS_KEY_ID"),
        ("https://me:secret@host/x", "^https://…: neither credentials nor options .* the file ~/.netrc$"),
        ("https://host/x?signature=secret", "^https://…: neither credentials"),
    ],
)
def test_a_url_that_is_none(url: str, words: str):
    with pytest.raises(StoreError, match=words) as caught:
        protocol_of(url)
    assert "secret" not in str(caught.value)


# The parts


def test_the_arrays_are_what_an_entry_is_listed_by(test_store: Path):
    entry = open_dataset(test_store, "test").symbols["TEST"].windows
    assert listed(entry) == Listed(("windows", entry.key), entry.bytes, content_md5(entry.manifest["arrays"]))
    assert listed(entry).object == f"windows/{entry.key}.tar"


def test_a_second_try_is_not_counted_twice():
    told: list[int] = []
    moved = cache.remote._Moved(1000, 50, told.append)
    moved.set_size(50)
    moved.relative_update(30)
    moved.value, moved.size = 0, None
    moved.set_size(50)
    moved.relative_update(20)
    moved.relative_update(20)
    moved.tell(1000)
    assert sum(told) == 1000
    assert min(told) >= 0
    with pytest.raises(OverflowError):
        moved.relative_update(20)


def test_what_ends_the_work_is_not_tried_again(tmp_path: Path):
    (tmp_path / "x").write_bytes(b"x")

    def stopped(size: int) -> None:
        raise StoppedError

    with pytest.raises(StoppedError):
        Remote(f"file://{tmp_path}/remote").write("bars/x", tmp_path / "x", 1, stopped)


def test_an_object_is_whole_or_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def fail(source: Any, target: Any) -> None:
        target.write(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    (tmp_path / "x").write_bytes(b"x")
    monkeypatch.setattr(shutil, "copyfileobj", fail)
    with pytest.raises(OSError, match="No space left"):
        Remote(f"file://{tmp_path}/remote").write("bars/x", tmp_path / "x", 1, lambda size: None)
    assert list((tmp_path / "remote/bars").iterdir()) == []


def test_a_pull_waits_for_who_makes_the_same_entry(folder: Path, tmp_path: Path):
    store, said = tmp_path / "store", io.StringIO()
    key = windows(folder).stem
    with ThreadPoolExecutor(1) as pool:
        with key_lock(store, "windows", key):
            pulling = pool.submit(pull_dataset, f"file://{folder}", "test", store, None, Console(said))
            for _ in range(500):
                if "waiting" in said.getvalue():
                    break
                time.sleep(0.02)
            assert f"waiting for another process that makes windows/{key}\n" in said.getvalue()
            assert not (store / "refs").exists()
            assert len(list(store.glob("*/*/zarr.json"))) == 7
        assert pulling.result().entries == 8


def test_a_web_server_is_asked_again_when_it_fails(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(cache.remote, "_HTTP_WAITS", (0.0, 0.0))
    failures, asked = 2, Counter[str]()

    class Failing(SimpleHTTPRequestHandler):
        def do_GET(self) -> None:
            asked[self.path] += 1
            if asked[self.path] > failures:
                super().do_GET()
            elif self.path.endswith(".json"):
                self.send_error(503)
            else:  # and is cut off
                data = Path(self.translate_path(self.path)).read_bytes()
                self.send_response(200)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data[: len(data) // 2])
                self.close_connection = True

        def log_message(self, *arguments: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Failing, directory=folder)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        pull_dataset(url, "test", tmp_path / "store", None, quiet())
        assert set(asked.values()) == {3}
        failures, name = 5, f"windows/{windows(folder).name}"
        size = windows(folder).stat().st_size
        Remote(url).fetch(name, tmp_path / "x", 1, size, lambda size: None)  # what came before is not counted
        assert (asked[f"/{name}"], (tmp_path / "x").stat().st_size) == (6, size)
        failures = 9
        with pytest.raises(
            StoreError, match=f"^{url}/refs/test.json: 503, .*the command again: it goes on from there$"
        ):
            pull_dataset(url, "test", tmp_path / "store", None, quiet())
        server.shutdown()
