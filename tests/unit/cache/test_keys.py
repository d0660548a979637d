import hashlib
import os
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cache import keys
from cache.keys import Components, check_unchanged, file_identity, file_md5, fingerprint
from cache.seal import canonical_json
from configs.errors import UserError

HOUR_NS = 3600 * 10**9


def test_canonical_json():
    assert canonical_json({"b": [1, 0.1, None], "a": {"é": True}}) == '{"a":{"é":true},"b":[1,0.1,null]}'.encode()


@given(st.dictionaries(st.text(), st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()))
def test_the_order_of_keys_does_not_matter(value: dict[str, object]):
    assert canonical_json(value) == canonical_json(dict(reversed(value.items())))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_json_lacks_are_refused(value: float):
    with pytest.raises(ValueError, match="not JSON compliant"):
        canonical_json({"a": value})


def test_keys_stay_what_they_are():
    components = Components("bars", 1, {"timeframe": "m1", "min_coverage": 0.1, "zone": "Zürich"}, {"content": "00"})
    assert components.key == "72c722db9247a709db0835ca68357749"


@pytest.mark.parametrize(
    "other",
    [
        Components("streams", 1, {"a": 1}, {"b": "x"}),
        Components("bars", 2, {"a": 1}, {"b": "x"}),
        Components("bars", 1, {"a": 2}, {"b": "x"}),
        Components("bars", 1, {"a": 1}, {"b": "y"}),
        Components("bars", 1, {"a": 1, "b": "x"}, {}),
    ],
)
def test_every_component_decides(other: Components):
    assert Components("bars", 1, {"a": 1}, {"b": "x"}).key != other.key


class Counted:
    """Stands for file_md5 and counts its calls."""

    calls = 0

    def __call__(self, path: Path) -> str:
        self.calls += 1
        return file_md5(path)


@pytest.fixture
def hashing(monkeypatch: pytest.MonkeyPatch) -> Counted:
    counted = Counted()
    monkeypatch.setattr(keys, "file_md5", counted)
    return counted


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "bars.parquet"
    path.write_bytes(b"first")
    set_age(path)
    return path


def set_age(path: Path, hours: int = 2) -> None:
    """Let a file be so old, but for its change time, which nobody can set: that is as old as it needs to be."""
    changed = time.time_ns() - hours * HOUR_NS
    os.utime(path, ns=(changed, changed))
    time.sleep(0.08)


def md5(content: bytes) -> str:
    return hashlib.md5(content).hexdigest()


def test_a_known_file_is_not_hashed_again(source: Path, tmp_path: Path, hashing: Counted):
    memo = tmp_path / "memo"
    assert [fingerprint(source, memo).md5 for _ in range(3)] == [md5(b"first")] * 3
    assert hashing.calls == 1


def test_a_known_file_is_not_read_at_all(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    fingerprint(source, tmp_path / "memo")
    monkeypatch.setattr(keys, "file_md5", None)  # calling it would raise
    assert fingerprint(source, tmp_path / "memo").md5 == md5(b"first")


def test_a_link_and_a_relative_path_are_the_same_file(
    source: Path, tmp_path: Path, hashing: Counted, monkeypatch: pytest.MonkeyPatch
):
    fingerprint(source, tmp_path / "memo")
    (tmp_path / "link").symlink_to(source)
    monkeypatch.chdir(tmp_path)
    assert fingerprint(Path("link"), tmp_path / "memo").md5 == md5(b"first")
    assert hashing.calls == 1


def test_a_touched_file_is_hashed_again_and_is_the_same(source: Path, tmp_path: Path, hashing: Counted):
    fingerprint(source, tmp_path / "memo")
    set_age(source, hours=1)
    assert fingerprint(source, tmp_path / "memo").md5 == md5(b"first")
    assert hashing.calls == 2


def test_other_content_is_noticed_by_modification_time(source: Path, tmp_path: Path):
    fingerprint(source, tmp_path / "memo")
    source.write_bytes(b"other")
    assert fingerprint(source, tmp_path / "memo").md5 == md5(b"other")


def test_other_content_is_noticed_by_size(source: Path, tmp_path: Path):
    fingerprint(source, tmp_path / "memo")
    changed = source.stat().st_mtime_ns
    source.write_bytes(b"longer")
    os.utime(source, ns=(changed, changed))
    assert fingerprint(source, tmp_path / "memo").md5 == md5(b"longer")


def test_a_file_put_in_its_place_is_noticed_by_inode(source: Path, tmp_path: Path):
    fingerprint(source, tmp_path / "memo")
    changed = source.stat().st_mtime_ns
    other = tmp_path / "other"
    other.write_bytes(b"other")
    os.utime(other, ns=(changed, changed))
    other.replace(source)
    assert fingerprint(source, tmp_path / "memo").md5 == md5(b"other")


def forge(source: Path) -> None:
    """Other content with size, modification time and inode as they were."""
    changed = source.stat().st_mtime_ns
    with source.open("r+b") as file:
        file.write(b"other")
    os.utime(source, ns=(changed, changed))


def test_other_content_is_noticed_by_change_time(source: Path, tmp_path: Path):
    fingerprint(source, tmp_path / "memo")
    forge(source)
    assert fingerprint(source, tmp_path / "memo").md5 == md5(b"other")


def test_a_file_changed_just_now_is_not_trusted_whatever_its_modification_time(source: Path, tmp_path: Path):
    forge(source)  # within a tick of the clock, a second change would look the same
    assert source.stat().st_mtime_ns < time.time_ns() - HOUR_NS
    fingerprint(source, tmp_path / "memo")
    (memo,) = (tmp_path / "memo").iterdir()
    known = keys.recall(memo)
    assert known["hashed_at_ns"] < source.stat().st_ctime_ns + 50_000_000


def test_the_limit_of_the_memo_is_a_file_system_without_change_times(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    honest = file_identity
    monkeypatch.setattr(keys, "file_identity", lambda path: (*honest(path)[:4], 0))
    fingerprint(source, tmp_path / "memo")
    forge(source)
    assert fingerprint(source, tmp_path / "memo").md5 == md5(b"first")


def test_a_file_changed_just_now_is_not_trusted_yet(source: Path, tmp_path: Path, hashing: Counted):
    now = time.time_ns()
    for changed in (now, now + HOUR_NS):  # the file system's clock may be ahead
        os.utime(source, ns=(changed, changed))
        before = hashing.calls
        fingerprint(source, tmp_path / "memo")
        fingerprint(source, tmp_path / "memo")
        assert hashing.calls == before + 2


def change_while_hashing(monkeypatch: pytest.MonkeyPatch) -> None:
    def hash_and_change(path: Path) -> str:
        digest = file_md5(path)
        path.write_bytes(b"other")
        return digest

    monkeypatch.setattr(keys, "file_md5", hash_and_change)


def test_a_file_that_changes_while_it_is_hashed_is_an_error(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    change_while_hashing(monkeypatch)
    with pytest.raises(UserError) as caught:
        fingerprint(source, tmp_path / "memo")
    assert str(caught.value) == (f"{source}: changed while it was being read; run the command again when it is written")


def test_a_file_that_changed_while_it_was_hashed_is_not_remembered(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    change_while_hashing(monkeypatch)
    with pytest.raises(UserError):
        fingerprint(source, tmp_path / "memo")
    monkeypatch.undo()
    set_age(source)
    assert fingerprint(source, tmp_path / "memo").md5 == md5(b"other")


def test_what_has_not_changed_may_be_used(source: Path):
    check_unchanged(source, file_identity(source))


@pytest.mark.parametrize("change", ["content", "time", "another file", "gone"])
def test_what_has_changed_may_not(source: Path, tmp_path: Path, change: str):
    identity = file_identity(source)
    if change == "content":
        source.write_bytes(b"longer")
        os.utime(source, ns=(identity[2], identity[2]))
    elif change == "time":
        set_age(source, hours=1)
    elif change == "another file":
        (tmp_path / "other").write_bytes(b"other")
        os.utime(tmp_path / "other", ns=(identity[2], identity[2]))
        (tmp_path / "other").replace(source)
    else:
        source.unlink()
    with pytest.raises(UserError, match="no such file any more; put" if change == "gone" else "changed while"):
        check_unchanged(source, identity)


def test_only_a_known_file_is_touched(source: Path, tmp_path: Path):
    memo = tmp_path / "memo"
    assert not fingerprint(source, memo).touched
    assert not fingerprint(source, memo).touched
    set_age(source, hours=1)
    assert fingerprint(source, memo).touched  # the same content at another time
    assert not fingerprint(source, memo).touched  # which is known by now
    source.write_bytes(b"other")
    set_age(source)
    assert not fingerprint(source, memo).touched


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b'{"file": 1, "hashed_at_ns": "x", "md5": 5}'])
def test_a_damaged_memo_is_done_without(source: Path, tmp_path: Path, content: bytes):
    memo = tmp_path / "memo"
    fingerprint(source, memo)
    (written,) = memo.iterdir()
    written.write_bytes(content)
    assert fingerprint(source, memo).md5 == md5(b"first")


def test_a_memo_that_cannot_be_written_is_done_without(source: Path, tmp_path: Path):
    (tmp_path / "memo").write_text("a file where the folder should be")
    assert fingerprint(source, tmp_path / "memo").md5 == md5(b"first")


def test_a_missing_file(tmp_path: Path):
    with pytest.raises(FileNotFoundError):
        fingerprint(tmp_path / "no.parquet", tmp_path / "memo")
