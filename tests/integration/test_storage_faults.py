"""Full disks, read-only stores, missing permissions, sources that change under the reader."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from cache.entries import entry_exists
from cache.keys import file_md5
from cache.reader import open_dataset
from configs.errors import UserError
from pipeline import kernels
from pipeline.bars_plan import make_plan
from pipeline.build import build, make_entries
from pipeline.execute import build_node
from pipeline.plan import Plan, blame
from pipeline.sources import find_sources
from pipeline.tasks import Job
from pipeline.threads import Threads
from tests.unit.pipeline.making import MINUTE, MONDAY, make_recipe, quiet, random_ohlc, write_parquet

ROOT = Path(__file__).parents[2]
FULL = "no space left on device; free some and run the command again, what was finished is kept"


def command(name: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([ROOT / "bin" / name, *arguments], capture_output=True, text=True, timeout=120)


def build_command(store: Path, data: Path, *overrides: str) -> subprocess.CompletedProcess[str]:
    return command(
        "build-cache",
        "--config",
        "configs/test.yaml",
        "--data-dir",
        data,
        "--store",
        store,
        "--workers",
        "2",
        *overrides,
    )


def mount(folder: Path, options: str) -> None:
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"no right to mount a small disk ({done.stderr.strip()})")


@contextmanager
def disk(folder: Path, size: str) -> Iterator[Path]:
    """A disk of a given size."""
    folder.mkdir()
    mount(folder, f"size={size}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def contents(store: Path) -> dict[str, str]:
    """MD5 of every array file of every published entry."""
    return {str(path.relative_to(store)): file_md5(path) for path in store.glob("*/[!.]*/*/c.*")}


@pytest.mark.parametrize("size", ["64k", "600k", "1500k", "2500k", "3500k", "3900k"])
def test_a_full_disk(tmp_path: Path, simulated_dir: Path, test_store: Path, size: str):
    with disk(tmp_path / "disk", size) as folder:
        store = folder / "store"
        done = build_command(store, simulated_dir)
        assert done.returncode == 1
        assert done.stderr.endswith(FULL + "\n"), done.stderr
        assert "Traceback" not in done.stderr
        assert list(store.rglob("*.partial")) == []
        assert not (store / "refs").exists() or list((store / "refs").iterdir()) == []
        kept = contents(store)
        assert kept.items() <= contents(test_store).items()
        assert (len(kept) > 0) == (size not in ("64k", "600k"))
        subprocess.run(["mount", "-o", "remount,size=32m", folder], check=True)
        assert build_command(store, simulated_dir).returncode == 0
        assert contents(store) == contents(test_store)


def test_a_read_only_store_can_be_looked_into_but_not_built_in(tmp_path: Path, simulated_dir: Path, test_store: Path):
    with disk(tmp_path / "disk", "32m") as folder:
        store = Path(shutil.copytree(test_store, folder / "store"))
        subprocess.run(["mount", "-o", "remount,ro", folder], check=True)
        for arguments in (["stats"], ["list"], ["show", "test"], ["verify"], ["verify", "test"]):
            done = command("cache", *arguments, "--store", store)
            assert done.returncode == 0, done.stderr
        explained = command(
            "cache", "explain", "--config", "configs/test.yaml", "--data-dir", simulated_dir, "--store", store
        )
        assert explained.returncode == 0, explained.stderr
        assert "8 of 8 entries are in the store" in explained.stdout
        trained = command(
            "train", "--config", "configs/test.yaml", "--store", store, "--run", tmp_path / "run", "--fast-dev-run"
        )
        assert trained.returncode == 0, trained.stderr
        for done in (
            build_command(store, simulated_dir, "data.window.seq_len=16"),
            command("cache", "prune", "--store", store, "--unreferenced", "--yes"),
        ):
            assert done.returncode == 1
            assert "read-only file system" in done.stderr
            assert str(store) in done.stderr
            assert "Traceback" not in done.stderr
        assert contents(store) == contents(test_store)


def without_privileges() -> list[str]:
    """What makes even root obey permissions."""
    if os.geteuid() != 0:
        return []
    words = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"]
    if shutil.which("setpriv") is None or subprocess.run([*words, "true"], capture_output=True).returncode:
        pytest.skip("root obeys no permissions here")
    return words


@pytest.mark.parametrize("forbidden", ["store", "store/locks", "store/windows"])
def test_a_store_without_permission_to_write(tmp_path: Path, simulated_dir: Path, test_store: Path, forbidden: str):
    store = Path(shutil.copytree(test_store, tmp_path / "store"))
    for folder in [tmp_path / forbidden, *(tmp_path / forbidden).rglob("*")]:
        if folder.is_dir():
            folder.chmod(0o555)
    options = ["--config", "configs/test.yaml", "--data-dir", simulated_dir, "--store", store, "data.window.stride=2"]
    done = subprocess.run(
        [*without_privileges(), ROOT / "bin/build-cache", *options], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 1, done.stdout
    assert ": permission denied" in done.stderr
    assert str(tmp_path / forbidden) in done.stderr
    assert "Traceback" not in done.stderr
    assert contents(store) == contents(test_store)


@contextmanager
def closed(folder: Path, mode: int = 0) -> Iterator[None]:
    """Nobody may look into a folder, or a file; or only as `mode` permits."""
    before = folder.stat().st_mode
    folder.chmod(mode)
    try:
        yield
    finally:
        folder.chmod(before)


def unprivileged(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*without_privileges(), ROOT / "bin/cache", *arguments], capture_output=True, text=True, timeout=60
    )


@pytest.mark.parametrize(
    "part", ["refs", "bars", "streams", "windows", "datasets", "locks", "sources", "refs/test.json"]
)
def test_prune_removes_nothing_where_it_cannot_look(tmp_path: Path, test_store: Path, part: str):
    store = Path(shutil.copytree(test_store, tmp_path / "store"))
    for limit in (["--unreferenced"], ["--older-than", "0s"], ["--max-size", "1KB"]):
        with closed(store / part):
            done = unprivileged("prune", *limit, "--yes", "--store", store)
        if part == "sources" and limit != ["--unreferenced"]:  # nothing there is asked for
            continue
        assert done.returncode == 1, done.stdout
        assert f"error: {store / part}" in done.stderr
        assert ": permission denied" in done.stderr
        assert "Traceback" not in done.stderr
    assert contents(store) == contents(test_store)


@pytest.mark.parametrize("part", ["refs", "bars", "streams", "windows", "datasets", "sources", "refs/test.json"])
def test_what_cannot_be_read_is_told_and_the_rest_is_checked(tmp_path: Path, test_store: Path, part: str):
    store = Path(shutil.copytree(test_store, tmp_path / "store"))
    stream = open_dataset(store, "test").symbols["TEST"].streams["m5"].path / "close/c.0"
    stream.write_bytes(bytes(stream.stat().st_size))
    unread = f"{store / part}: it cannot be read (permission denied); nothing is known of it; see to that, and verify"
    with closed(store / part):
        for words in (["verify"], ["verify", "--repair"]):
            done = unprivileged(*words, "--store", store)
            assert (done.returncode, "Traceback" in done.stderr) == (1, False), done.stderr
            assert unread in done.stderr
            assert (str(stream) in done.stderr) == (part != "streams")
    if part != "streams":
        assert not stream.exists()
    assert len(contents(store)) == len(contents(test_store)) - (0 if part == "streams" else 4)


@pytest.mark.parametrize("what", ["values/c.0.0", "close/zarr.json", "zarr.json", "."])
def test_a_file_of_an_entry_that_cannot_be_read(tmp_path: Path, test_store: Path, what: str):
    store = Path(shutil.copytree(test_store, tmp_path / "store"))
    entry = open_dataset(store, "test").symbols["TEST"].streams["m5"].path
    with closed(entry / what):
        done = unprivileged("verify", "--repair", "--store", store)
        assert done.returncode == 1
        assert f"{entry / what}" in done.stderr
        assert "it cannot be read (permission denied)" in done.stderr
        assert done.stdout.startswith("There was nothing to remove.")
        for command_ in ("stats", "list"):
            done = unprivileged(command_, "--store", store)
            assert "Traceback" not in done.stderr
            assert bool(done.stdout) == (command_ == "stats" or done.returncode == 0)
            assert done.returncode == (1 if what in ("zarr.json", ".") else 0)
    assert contents(store) == contents(test_store)


@pytest.mark.parametrize("part", ["refs", "streams", "refs/test.json", "uses.jsonl"])
def test_stats_and_list_go_on_beside_what_cannot_be_read(tmp_path: Path, test_store: Path, part: str):
    store = Path(shutil.copytree(test_store, tmp_path / "store"))
    (store / "uses.jsonl").touch()
    with closed(store / part):
        counted, listed = (unprivileged(name, "--store", store) for name in ("stats", "list"))
    assert counted.returncode == listed.returncode == 1
    assert "  bars" not in counted.stderr
    assert "\nbars " in counted.stdout
    for done in (counted, listed):
        assert f"{store / part}" in done.stderr
        assert ": permission denied" in done.stderr


def test_a_source_without_permission_to_read(tmp_path: Path, simulated_dir: Path):
    source = Path(shutil.copy(simulated_dir / "simfx_m1.parquet", tmp_path))
    source.chmod(0)
    options = ["--config", "configs/test.yaml", "--data-dir", tmp_path, "--store", tmp_path / "store"]
    done = subprocess.run(
        [*without_privileges(), ROOT / "bin/build-cache", *options], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (1, f"\nerror: {source}: permission denied\n")


FIND = """
import sys
from pathlib import Path
from pipeline.files import find_by_symbol, find_files
find = find_by_symbol if "{symbol}" in sys.argv[2] else find_files
try:
    found = find(Path(sys.argv[1]), sys.argv[2])
    print(found["EURUSD"] if isinstance(found, dict) else found)
except OSError as error:
    print(error)
"""


@pytest.mark.parametrize(
    ("pattern", "forbidden", "mode"),
    [
        ("{symbol}/m1.parquet", "EURUSD", 0o000),
        ("{symbol}/m1.parquet", "EURUSD", 0o600),
        ("{symbol}/m*.parquet", "EURUSD", 0o300),
        ("{symbol}/*/m1.parquet", "EURUSD/2024", 0o000),
        ("{symbol}_m1.parquet", ".", 0o300),
        ("*/m1.parquet", "EURUSD", 0o000),
        ("**/m1.parquet", "EURUSD", 0o300),
    ],
)
def test_a_folder_of_sources_that_is_closed_is_not_passed_over(tmp_path: Path, pattern: str, forbidden: str, mode: int):
    for name in ("EURUSD/2024", "GBPUSD/2024"):
        (tmp_path / name).mkdir(parents=True)
        for place in (tmp_path / name, (tmp_path / name).parent):
            (place / "m1.parquet").touch()
    for root, pattern_ in ((tmp_path, pattern), (Path("/"), f"{tmp_path}/{pattern}")):
        with closed(tmp_path / forbidden, mode):
            done = subprocess.run(
                [*without_privileges(), sys.executable, "-c", FIND, root, pattern_],
                capture_output=True,
                text=True,
                cwd=ROOT,
            )
        assert done.stdout == f"[Errno 13] Permission denied: '{tmp_path / forbidden}'\n", done.stderr


def test_a_folder_of_sources_that_may_be_entered_will_do(tmp_path: Path):
    (tmp_path / "EURUSD").mkdir()
    (tmp_path / "EURUSD/m1.parquet").touch()
    with closed(tmp_path / "EURUSD", 0o100):
        found = [*without_privileges(), sys.executable, "-c", FIND, tmp_path, "{symbol}/m1.parquet"]
        done = subprocess.run(found, capture_output=True, text=True, cwd=ROOT)
    assert done.stdout == f"[{tmp_path / 'EURUSD/m1.parquet'!r}]\n", done.stderr


# --- sources that change


@pytest.fixture
def source(tmp_path: Path) -> Path:
    rows = 300_000
    label, ohlc = MONDAY + MINUTE * np.arange(rows), random_ohlc(np.random.default_rng(0), rows)
    return write_parquet(tmp_path / "simfx_m1.parquet", label, ohlc, row_group_size=50_000)


def planned(source: Path) -> Plan:
    store = source.parent / "store"
    store.mkdir()
    return make_plan(make_recipe(), find_sources(make_recipe(), source.parent, store))


def truncated(source: Path) -> None:
    os.truncate(source, source.stat().st_size // 2)


def overwritten(source: Path) -> None:
    """Other prices, in a file of the same size if it can be."""
    rows = 300_000
    label, ohlc = MONDAY + MINUTE * np.arange(rows), random_ohlc(np.random.default_rng(1), rows)
    write_parquet(source.with_name("other"), label, ohlc, row_group_size=50_000).replace(source)


@pytest.mark.parametrize("change", [truncated, overwritten, Path.unlink])
def test_a_source_that_changes_before_it_is_read(source: Path, change: Callable[[Path], None]):
    plan, store = planned(source), source.parent / "store"
    change(source)
    with pytest.raises(UserError) as caught:
        job = Job(plan.recipe, store, store / "bars" / "scratch")
        blame(plan, make_entries(plan.nodes, job, Threads(2, kernels.load, quiet()), quiet()).faults)
    assert str(source) in str(caught.value)
    assert not any(entry_exists(store, node.components.stage, node.components.key) for node in plan.nodes)
    assert list(store.rglob("*.partial")) == []


@pytest.mark.parametrize("change", [truncated, overwritten, Path.unlink])
def test_a_source_that_changes_while_it_is_read(source: Path, change: Callable[[Path], None]):
    plan, store = planned(source), source.parent / "store"
    changed = []

    def advance(rows: int) -> None:
        if not changed:
            change(source)
            changed.append(True)

    with pytest.raises(UserError) as caught:
        build_node(plan.nodes[0], plan.recipe, store, advance)
    assert changed
    assert str(source) in str(caught.value)
    assert not entry_exists(store, "bars", plan.nodes[0].components.key)
    assert list(store.rglob("*.partial")) == []


def test_a_source_that_is_gone(tmp_path: Path, simulated_dir: Path):
    source = Path(shutil.copy(simulated_dir / "simfx_m1.parquet", tmp_path))
    build(make_recipe(), tmp_path, tmp_path / "store", 2, quiet())
    before = contents(tmp_path / "store")
    source.unlink()
    done = build_command(tmp_path / "store", tmp_path)
    assert done.returncode == 1
    assert f"error: {source}: no such file, directory or pattern" in done.stderr
    assert contents(tmp_path / "store") == before
