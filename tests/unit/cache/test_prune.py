import json
import os
import shutil
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from cache.contents import Abandoned, abandoned, size_on_disk
from cache.entries import StoreError, entry_exists
from cache.files import write_atomically
from cache.keys import Components, fingerprint
from cache.locks import entry_lock
from cache.prune import Limits, Plan, discard, parse_size, plan_removal
from tests.unit.cache.making import change_manifest, make, point, set_built

ROOT = Path(__file__).parents[3]
NOW = datetime(2024, 6, 1, tzinfo=UTC)
ALL = Limits(unreferenced=True)


@pytest.fixture
def keys(tmp_path: Path) -> dict[str, str]:
    """The dataset `kept`, and two that no ref names any more: `old` and `new`, which share their bars with it."""
    keys = {name: make(tmp_path, "bars", name, {"content": "c" * 32}, 1000) for name in ("m1", "m5", "lone")}
    for number, name in enumerate(("kept", "old", "new")):
        keys[f"{name} windows"] = make(
            tmp_path, "windows", name, {"m1": [keys["m1"]], "m5": [keys["m5"]]}, 2000 + number
        )
        keys[f"{name} stream"] = make(
            tmp_path, "streams", name, {"bars": [keys["m1"]], "split": [keys["m1"]]}, 3000 + number
        )
        symbols = {"X": {"windows": keys[f"{name} windows"], "streams": {"m1": keys[f"{name} stream"]}}}
        keys[name] = make(tmp_path, "datasets", name, symbols)
    point(tmp_path, "kept", keys["kept"])
    for path in tmp_path.glob("*/*/zarr.json"):
        set_built(path.parent, "2024-01-01T00:00:00+00:00")
    use(tmp_path, keys["old"], "2024-04-01T00:00:00+00:00")
    use(tmp_path, keys["new"], "2024-05-20T00:00:00+00:00")
    return keys


def use(store: Path, dataset: str, at: str) -> None:
    with (store / "uses.jsonl").open("a") as file:
        file.write(json.dumps({"at": at, "by": "train", "dataset": dataset, "saved": 1}) + "\n")


def names(plan: Plan, keys: dict[str, str]) -> list[str]:
    """What a plan removes, by the names above, in order."""
    of_key = {key: name for name, key in keys.items()}
    return [of_key.get(removal.path.name, removal.path.name) for removal in plan.removals]


def apply(plan: Plan) -> None:
    for removal in plan.removals:
        discard(removal.path)


def everything(store: Path) -> set[str]:
    return {str(path.relative_to(store)) for path in store.rglob("*")}


def test_a_plan_touches_nothing(tmp_path: Path, keys: dict[str, str]):
    before = everything(tmp_path)
    assert plan_removal(tmp_path, ALL, NOW).removals
    assert everything(tmp_path) == before


def test_unreferenced(tmp_path: Path, keys: dict[str, str]):
    plan = plan_removal(tmp_path, ALL, NOW)
    gone = {"lone", "old", "old windows", "old stream", "new", "new windows", "new stream"}
    assert set(names(plan, keys)) == gone
    assert all(removal.why == "no dataset needs it" for removal in plan.removals)
    assert all(removal.bytes == size_on_disk([removal.path]) > 0 for removal in plan.removals)
    before = size_on_disk([tmp_path / stage for stage in ("bars", "streams", "windows", "datasets")])
    assert plan.stays == before - sum(removal.bytes for removal in plan.removals)
    apply(plan)
    left = {path.parent.name for path in tmp_path.glob("*/*/zarr.json")}
    assert left == {keys[name] for name in ("m1", "m5", "kept", "kept windows", "kept stream")}
    assert not list(tmp_path.glob("*/.*"))
    assert plan_removal(tmp_path, ALL, NOW) == Plan((), plan.stays, 0)


def test_last_used_is_that_of_the_datasets(tmp_path: Path, keys: dict[str, str]):
    of_key = {key: name for name, key in keys.items()}
    used = {of_key[r.path.name]: r.last_used for r in plan_removal(tmp_path, ALL, NOW).removals}
    april, may = datetime(2024, 4, 1, tzinfo=UTC), datetime(2024, 5, 20, tzinfo=UTC)
    assert used["lone"] == datetime(2024, 1, 1, tzinfo=UTC)
    assert used["old"] == used["old windows"] == used["old stream"] == april
    assert used["new"] == used["new windows"] == used["new stream"] == may


@pytest.mark.parametrize("unreferenced", [True, False])
@pytest.mark.parametrize(
    ("days", "gone"),
    [(11, {"lone", "old", "new"}), (13, {"lone", "old"}), (60, {"lone", "old"}), (62, {"lone"}), (153, set())],
)
def test_older_than(tmp_path: Path, keys: dict[str, str], days: int, gone: set[str], unreferenced: bool):
    plan = plan_removal(tmp_path, Limits(unreferenced, older_than=timedelta(days=days)), NOW)
    assert {name.split()[0] for name in names(plan, keys)} == gone


def test_an_entry_built_of_late_is_not_old(tmp_path: Path, keys: dict[str, str]):
    set_built(tmp_path / "streams" / keys["old stream"], "2024-05-30T00:00:00+00:00")
    plan = plan_removal(tmp_path, Limits(older_than=timedelta(days=30)), NOW)
    assert set(names(plan, keys)) == {"lone", "old", "old windows"}


def test_max_size_takes_the_least_recently_used(tmp_path: Path, keys: dict[str, str]):
    order = ["lone", "old", "old windows", "old stream", "new", "new windows", "new stream"]
    whole = plan_removal(tmp_path, Limits(max_bytes=10**9), NOW)
    assert (names(whole, keys), whole.excess) == ([], 0)
    nothing_else = plan_removal(tmp_path, ALL, NOW)
    limit = whole.stays
    for count in range(len(order) + 1):
        plan = plan_removal(tmp_path, Limits(max_bytes=limit), NOW)
        assert names(plan, keys) == order[:count]
        assert (plan.stays <= limit, plan.excess) == (True, 0)
        limit = plan.stays - 1
    assert plan.stays == nothing_else.stays
    too_small = plan_removal(tmp_path, Limits(max_bytes=plan.stays - 7), NOW)
    assert (names(too_small, keys), too_small.stays, too_small.excess) == (order, plan.stays, 7)


def test_limits_together(tmp_path: Path, keys: dict[str, str]):
    both = Limits(older_than=timedelta(days=150), max_bytes=plan_removal(tmp_path, ALL, NOW).stays + 50_000)
    assert names(plan_removal(tmp_path, both, NOW), keys)[:2] == ["lone", "old"]
    far = Limits(older_than=timedelta(days=150), max_bytes=10**9)
    assert names(plan_removal(tmp_path, far, NOW), keys) == ["lone"]


def test_what_another_ref_needs_stays(tmp_path: Path, keys: dict[str, str]):
    point(tmp_path, "again", keys["old"])
    assert set(names(plan_removal(tmp_path, ALL, NOW), keys)) == {"lone", "new", "new windows", "new stream"}
    (tmp_path / "refs/kept.json").unlink()
    gone = {"lone", "new", "new windows", "new stream", "kept", "kept windows", "kept stream"}
    assert set(names(plan_removal(tmp_path, ALL, NOW), keys)) == gone


def test_the_bars_of_derived_bars_stay(tmp_path: Path):
    base = make(tmp_path, "bars", "base", {"content": "c" * 32}, 100)
    derived = make(tmp_path, "bars", "derived", {"bars": [base]}, 20)
    windows = make(tmp_path, "windows", "w", {"m5": [derived]}, 20)
    stream = make(tmp_path, "streams", "s", {"bars": [derived]}, 20)
    point(tmp_path, "x", make(tmp_path, "datasets", "x", {"X": {"windows": windows, "streams": {"m5": stream}}}))
    assert plan_removal(tmp_path, ALL, NOW).removals == ()


@pytest.mark.parametrize("damage", ["bit", "empty", "another name"])
def test_a_damaged_ref_stops_everything(tmp_path: Path, keys: dict[str, str], damage: str):
    path = tmp_path / "refs/kept.json"
    if damage == "bit":
        content = bytearray(path.read_bytes())
        content[20] ^= 1
        path.write_bytes(content)
    elif damage == "empty":
        path.write_bytes(b"")
    else:
        path = path.rename(tmp_path / "refs/other.json")
    with pytest.raises(StoreError) as caught:
        plan_removal(tmp_path, ALL, NOW)
    assert str(caught.value).startswith(f"{path}: damaged, ")
    assert str(caught.value).endswith(
        f"Nothing is removed while it is unknown what that dataset needs. Build it again, or let it go: delete {path}"
    )


@pytest.mark.parametrize("part", ["kept", "kept windows", "kept stream"])
@pytest.mark.parametrize("damage", ["missing", "manifest", "sealed", "body"])
def test_a_dataset_that_cannot_be_read_stops_everything(tmp_path: Path, keys: dict[str, str], part: str, damage: str):
    (entry,) = tmp_path.glob(f"*/{keys[part]}")
    if damage == "missing":
        shutil.rmtree(entry)
    elif damage == "manifest":
        (entry / "zarr.json").write_bytes((entry / "zarr.json").read_bytes().replace(b'"name"', b'"mane"'))
    elif damage == "body" and part != "kept":  # which has no arrays
        (entry / "x/c.0").unlink()
    else:
        change_manifest(entry, lambda manifest: manifest["components"].update(inputs=5))
    with pytest.raises(StoreError) as caught:
        plan_removal(tmp_path, ALL, NOW)
    assert str(caught.value).startswith(f"{entry}: ")
    assert str(caught.value).endswith(f"delete {tmp_path / 'refs/kept.json'}")


def test_missing_bars_do_not(tmp_path: Path, keys: dict[str, str]):
    shutil.rmtree(tmp_path / "bars" / keys["m5"])
    assert "m1" not in names(plan_removal(tmp_path, ALL, NOW), keys)


def test_damaged_bars_that_are_needed_stay(tmp_path: Path, keys: dict[str, str]):
    (tmp_path / "bars" / keys["m1"] / "zarr.json").write_text("{")
    assert "m1" not in names(plan_removal(tmp_path, ALL, NOW), keys)


def test_damaged_entries_that_nobody_needs_go_first(tmp_path: Path, keys: dict[str, str]):
    (tmp_path / "streams" / keys["new stream"] / "zarr.json").write_text("{")
    plan = plan_removal(tmp_path, Limits(max_bytes=plan_removal(tmp_path, Limits(max_bytes=10**9), NOW).stays - 1), NOW)
    assert names(plan, keys) == ["new stream"]
    assert (plan.removals[0].why, plan.removals[0].last_used) == ("damaged, and no dataset needs it", None)


def test_an_entry_that_is_being_built_stays(tmp_path: Path, keys: dict[str, str]):
    lone = Components("bars", 1, {"name": "lone"}, {"content": "c" * 32})
    assert lone.key == keys["lone"]
    shutil.rmtree(tmp_path / "bars" / lone.key)
    (tmp_path / "bars" / f".{lone.key}.partial").mkdir()
    with entry_lock(tmp_path, lone):
        (tmp_path / "bars" / lone.key).mkdir()  # the moment before its manifest is there
        assert "lone" not in names(plan_removal(tmp_path, ALL, NOW), keys)
        assert not list(abandoned(tmp_path))
    assert "lone" in names(plan_removal(tmp_path, ALL, NOW), keys)
    assert list(abandoned(tmp_path)) == [Abandoned(tmp_path / "bars" / f".{lone.key}.partial", 0)]


@pytest.mark.parametrize("how", ["partial", "4711.removed"])
def test_what_was_abandoned_goes(tmp_path: Path, keys: dict[str, str], how: str):
    shutil.copytree(tmp_path / "bars" / keys["m1"], tmp_path / "bars" / f".{keys['m1']}.{how}")
    (tmp_path / "bars/.hidden").mkdir()
    assert names(plan_removal(tmp_path, Limits(older_than=timedelta(days=500)), NOW), keys) == []
    (first, *_) = plan_removal(tmp_path, ALL, NOW).removals
    assert (first.path.name, first.why) == (f".{keys['m1']}.{how}", "left by a process that was killed")
    almost = plan_removal(tmp_path, Limits(max_bytes=10**9), NOW).stays - 1
    assert names(plan_removal(tmp_path, Limits(max_bytes=almost), NOW), keys) == [first.path.name]
    apply(plan_removal(tmp_path, ALL, NOW))
    assert [path.name for path in (tmp_path / "bars").glob(".*")] == [".hidden"]


def test_leftovers(tmp_path: Path, keys: dict[str, str]):
    there, gone = tmp_path / "there.parquet", tmp_path / "gone.parquet"
    for path in (there, gone):
        path.write_bytes(b"bars")
        fingerprint(path, tmp_path / "sources")
    gone.unlink()
    write_atomically(tmp_path / "sources/other.json", b"{}")  # verify speaks of this
    (tmp_path / "refs/.kept.json.1-2.partial").write_bytes(b"half")
    held, free = (Components("bars", 1, {"name": name}, {}) for name in ("held", "free"))
    (tmp_path / f"locks/bars-{free.key}.lock").parent.mkdir(exist_ok=True)
    (tmp_path / f"locks/bars-{free.key}.lock").write_bytes(b"")
    with entry_lock(tmp_path, held):
        plan = plan_removal(tmp_path, ALL, NOW)
        whys = {r.path.name: r.why for r in plan.removals if r.path.parent.name in ("locks", "sources", "refs")}
    assert whys.pop(f"bars-{free.key}.lock") == "a lock that nobody holds"
    assert whys.pop(".kept.json.1-2.partial") == "left by a process that was killed"
    (why,) = whys.values()
    assert why == "remembers a source file that is gone"
    apply(plan)
    assert len(list((tmp_path / "sources").iterdir())) == 2
    assert fingerprint(there, tmp_path / "sources").md5
    assert (tmp_path / "refs/kept.json").exists()


READER = """
import sys
from pathlib import Path
from cache.entries import open_entry

array = open_entry(Path(sys.argv[1]), "streams", sys.argv[2]).array("x")
print("mapped", flush=True)
sys.stdin.readline()
print(int(array.sum()), len(array), flush=True)
"""


def test_who_has_mapped_an_array_reads_on(tmp_path: Path, keys: dict[str, str]):
    arguments = [sys.executable, "-c", READER, tmp_path, keys["old stream"]]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as reader:
        assert reader.stdout is not None
        assert reader.stdout.readline() == "mapped\n"
        apply(plan_removal(tmp_path, ALL, NOW))
        assert not list((tmp_path / "streams").glob(f"*{keys['old stream']}*"))
        out, _ = reader.communicate("go on\n", timeout=20)
    assert (out, reader.returncode) == ("0 3001\n", 0)


WATCHER = """
import sys
from pathlib import Path
from cache.entries import StoreError, open_entry

print("ready", flush=True)
seen = 0
while True:
    try:
        open_entry(Path(sys.argv[1]), "bars", sys.argv[2])
        seen += 1
    except StoreError as error:
        print(seen > 0, "no such entry" in str(error), flush=True)
        break
"""


def test_nobody_sees_half_an_entry(tmp_path: Path):
    """An entry of many arrays takes a while to delete; whoever looks meanwhile sees it whole or not at all."""
    key = make(tmp_path, "bars", "big", {}, 10)
    for number in range(2000):
        (tmp_path / "bars" / key / f"{number}").mkdir()
    arguments = [sys.executable, "-c", WATCHER, tmp_path, key]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True, env=environment) as watcher:
        assert watcher.stdout is not None
        assert watcher.stdout.readline() == "ready\n"
        time.sleep(0.2)
        discard(tmp_path / "bars" / key)
        assert watcher.communicate(timeout=20)[0] == "True True\n"


def test_a_removal_that_is_killed_leaves_no_half_entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    key = make(tmp_path, "bars", "x", {}, 10)

    def killed(path: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(shutil, "rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        discard(tmp_path / "bars" / key)
    monkeypatch.undo()
    assert not entry_exists(tmp_path, "bars", key)
    (left,) = abandoned(tmp_path)
    discard(left.path)
    assert list((tmp_path / "bars").iterdir()) == []


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("5KB", 5000),
        ("500MB", 500_000_000),
        ("10GB", 10**10),
        ("1.5 TB", 1_500_000_000_000),
        ("1KiB", 1024),
        ("2MiB", 2 * 2**20),
        ("10GiB", 10 * 2**30),
        ("0.5TiB", 2**39),
        ("10gb", 10**10),
        ("0GB", 0),
    ],
)
def test_sizes(text: str, size: int):
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "10", "GB", "-1GB", "10G", "10 bytes", "1e3MB", "10GBB", "1,5GB", "10PB"])
def test_what_is_no_size(text: str):
    with pytest.raises(ValueError, match=r"is not a size; write for example 500MB, 10GB, 1\.5TB or 10GiB"):
        parse_size(text)
