import signal
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from cache.contents import is_held, is_locked, lock_path
from cache.entries import StoreError
from cache.keys import Components
from cache.locks import building, entry_lock, removing
from tests.unit.cache.making import child, said

COMPONENTS = Components("bars", 1, {}, {})
HOLDER = """
import sys
from pathlib import Path
from cache.keys import Components
from cache.locks import building, entry_lock, removing

how = {"building": building, "removing": removing, "entry": lambda s: entry_lock(s, Components("bars", 1, {}, {}))}
print("ready", flush=True)
with how[sys.argv[2]](Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.readline()
print("done", flush=True)
"""


@contextmanager
def holder(store: Path, how: str, wait: bool = True) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds a lock until it is sent a line."""
    with child(HOLDER, store, how) as process:
        assert said(process) == "ready"
        if wait:
            assert said(process) == "held"
        yield process


def test_builders_share_a_store(tmp_path: Path):
    with holder(tmp_path, "building"), holder(tmp_path, "building"), building(tmp_path):
        pass


def test_nothing_is_removed_while_anyone_builds(tmp_path: Path):
    with holder(tmp_path, "building"):
        with pytest.raises(StoreError) as caught, removing(tmp_path):
            pytest.fail("removed beside a builder")
        assert str(caught.value) == (
            f"{tmp_path}: in use: something is being built, imported or verified there. "
            "Nothing is removed meanwhile; try again after it"
        )
    with removing(tmp_path):
        pass


def test_a_builder_waits_while_something_is_removed(tmp_path: Path):
    with removing(tmp_path), holder(tmp_path, "building", wait=False) as process:
        time.sleep(0.3)
        assert process.poll() is None
        process.kill()
        assert process.communicate()[0] == ""  # it never held the lock
    with holder(tmp_path, "removing") as remover, holder(tmp_path, "building", wait=False) as builder:
        out, _ = remover.communicate("go on\n", timeout=20)
        assert out == "done\n"
        assert said(builder) == "held"


def test_two_do_not_remove_at_once(tmp_path: Path):
    with holder(tmp_path, "removing"), pytest.raises(StoreError), removing(tmp_path):
        pytest.fail("removed beside another")


def test_the_lock_of_a_killed_builder_is_free(tmp_path: Path):
    with holder(tmp_path, "building") as process:
        process.send_signal(signal.SIGKILL)
        process.wait(10)
        with removing(tmp_path):
            pass


def test_a_failure_releases_the_lock(tmp_path: Path):
    for how in (building, removing):
        with pytest.raises(ZeroDivisionError), how(tmp_path):
            raise ZeroDivisionError
    with removing(tmp_path):
        pass


def test_who_builds_an_entry_can_be_seen(tmp_path: Path):
    one = ("bars", COMPONENTS.key)
    assert not is_locked(tmp_path, one)  # no file
    assert not lock_path(tmp_path, one).exists()  # and looking makes none
    with holder(tmp_path, "entry") as process:
        assert is_locked(tmp_path, one)
        process.kill()
        process.wait(10)
        assert lock_path(tmp_path, one).exists()
        assert not is_locked(tmp_path, one)
    with entry_lock(tmp_path, COMPONENTS) as wanted:  # looking has not taken it
        assert wanted
        assert is_held(lock_path(tmp_path, one))


class GiveUpError(Exception):
    pass


@pytest.mark.parametrize("how", ["removing", "entry"])
def test_who_waits_may_give_up(tmp_path: Path, how: str):
    """Waiting is trying again: whoever waits is asked between, in a thread of its own as well."""
    tries = []

    def waiting() -> None:
        tries.append(time.monotonic())
        if len(tries) == 3:
            raise GiveUpError

    def wait() -> None:
        with building(tmp_path, waiting) if how == "removing" else entry_lock(tmp_path, COMPONENTS, waiting):
            pytest.fail("nobody let go")

    with holder(tmp_path, how), ThreadPoolExecutor(1) as pool, pytest.raises(GiveUpError):
        pool.submit(wait).result(timeout=10)
    assert tries[-1] - tries[0] < 2


@pytest.mark.parametrize("how", ["file", "dangling link"])
def test_a_store_that_cannot_be_a_folder(tmp_path: Path, how: str):
    store = tmp_path / "store"
    if how == "file":
        store.write_text("notes")
        words = f"{store}: a file, not a folder; --store says where the store is"
    else:
        store.symlink_to("elsewhere")
        words = f"{store}: a link to elsewhere, which is not there; --store says where the store is"
    with pytest.raises(StoreError) as caught, building(store):
        pytest.fail("there is no store")
    assert str(caught.value) == words
    assert not (tmp_path / "elsewhere").exists()
