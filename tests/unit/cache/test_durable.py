import io
import os
import threading
from pathlib import Path

import numpy as np
import pytest

from cache.console import Console
from cache.durable import check_interrupted, synced_at_the_end, write_all
from cache.entries import entry_exists
from cache.keys import Components
from cache.layout import ArraySpec, body_path
from cache.writer import EntryWriter

SPEC = ArraySpec("artifacts", "|u1", ("byte",))


def publish(store: Path, name: str) -> Path:
    """An entry of some rows, not synced; the file with them."""
    components = Components("compiled", 1, {"name": name}, {})
    with EntryWriter(store, components, synced=False) as entry:
        entry.array(SPEC).append(np.ones(1000, np.uint8))
        entry.publish(origin=name)
    return body_path(store / "compiled" / components.key, "artifacts", 1)


def lose(body: Path) -> None:
    """What a power failure leaves of a file that was not written: its size."""
    body.write_bytes(bytes(body.stat().st_size))


def marks(store: Path) -> list[Path]:
    return [path for path in (store / "locks").iterdir() if path.suffix == ".unsynced"]


def interrupted(store: Path) -> tuple[Path, Path, Path]:
    """A store in which a builder was killed: an entry of before, and two of its own."""
    before = publish(store, "before")
    for file in (before, before.parents[1]):
        os.utime(file, ns=(0, 0))
    (store / "locks").mkdir()
    (store / "locks/0.unsynced").touch()
    return before, publish(store, "one"), publish(store, "two")


def test_a_build_that_ends_writes_all_and_leaves_no_mark(tmp_path: Path):
    calls = []

    def barrier() -> None:
        calls.append(len(marks(tmp_path)))
        write_all(tmp_path)

    with synced_at_the_end(tmp_path, barrier, Console(io.StringIO())):
        assert len(marks(tmp_path)) == 1
        publish(tmp_path, "one")
    assert calls == [1]
    assert marks(tmp_path) == []


def test_so_does_one_that_fails(tmp_path: Path):
    with pytest.raises(ValueError), synced_at_the_end(tmp_path, lambda: None, Console(io.StringIO())):
        raise ValueError
    assert marks(tmp_path) == []


def test_the_mark_stays_where_the_disk_refuses(tmp_path: Path):
    def refuse() -> None:
        raise OSError("no space")

    with pytest.raises(OSError, match="no space"), synced_at_the_end(tmp_path, refuse, Console(io.StringIO())):
        pass
    assert len(marks(tmp_path)) == 1


def test_what_the_power_failure_lost_is_removed_and_nothing_else(tmp_path: Path):
    before, one, two = interrupted(tmp_path)
    lose(two)
    lose(before)  # it was there before the build, which wrote nothing to it
    told = io.StringIO()
    check_interrupted(tmp_path, Console(told))
    assert [entry_exists(tmp_path, "compiled", body.parents[1].name) for body in (before, one, two)] == [
        True,
        True,
        False,
    ]
    assert f"  removed compiled/{two.parents[1].name}: it was not written to the disk" in told.getvalue()
    assert marks(tmp_path) == []
    lose(one)
    check_interrupted(tmp_path, Console(told))
    assert one.exists()  # without a mark nothing is read


def test_a_builder_at_work_is_left_in_peace(tmp_path: Path):
    with synced_at_the_end(tmp_path, lambda: None, Console(io.StringIO())):
        body = publish(tmp_path, "one")
        lose(body)
        other = threading.Thread(target=check_interrupted, args=(tmp_path, Console(io.StringIO())))
        other.start()
        other.join(10)
        assert body.exists()
        assert len(marks(tmp_path)) == 1
