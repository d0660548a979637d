import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from cache.keys import Components
from cache.locks import entry_lock, removing
from cache.reader import open_dataset
from cache.refs import UNKNOWN_DIR, read_ref

ROOT = Path(__file__).parents[2]
ENVIRON = {**os.environ, "PYTHONPATH": str(ROOT)}


def command(*arguments: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-m", "cache.transfer_command", *map(str, arguments)]
    return subprocess.run(words, cwd=cwd, env=ENVIRON, capture_output=True, text=True, timeout=60)


def failure(*arguments: str | Path, cwd: Path, code: int = 1) -> str:
    done = command(*arguments, cwd=cwd)
    assert done.returncode == code
    assert "Traceback" not in done.stderr
    return done.stderr


@pytest.fixture(scope="module")
def archive(test_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("exported") / "test.tar"
    done = command("export", "test", path, "--store", test_store, cwd=path.parent)
    assert (done.returncode, done.stderr) == (0, "")
    first, *_, last = done.stdout.splitlines()
    assert first == f"Exporting test of {test_store} to {path}"
    size = path.stat().st_size / 1e6
    assert f"8 entries, 4.0 MB as {size:,.1f} MB. Where it is needed: bin/cache import test.tar" in last
    assert size < 1.5
    return path


def test_there_and_back(test_store: Path, archive: Path, tmp_path: Path):
    done = command("import", archive, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    first, *_, last = done.stdout.splitlines()
    assert first == f"Importing {archive} into store"
    assert last.endswith("8 of 8 entries unpacked, 4.0 MB. Look at it: bin/cache show test")
    files = {
        path.relative_to(test_store): path.read_bytes() for path in test_store.glob("[bswd]*/*/**/*") if path.is_file()
    }
    store = tmp_path / "store"
    assert {path.relative_to(store): path.read_bytes() for path in store.glob("*/*/**/*") if path.is_file()} == files
    assert len(files) > 30
    again = command("import", archive, cwd=tmp_path)
    assert "0 of 8 entries unpacked, 0.0 MB; the others were here. Look" in again.stdout
    shown = subprocess.run([ROOT / "bin/cache", "show", "test"], cwd=tmp_path, capture_output=True, text=True)
    assert f"sources     {UNKNOWN_DIR}" in shown.stdout, shown.stderr
    assert command("export", "test", "again.tar", cwd=tmp_path).returncode == 0
    assert (tmp_path / "again.tar").read_bytes() == archive.read_bytes()


def test_training_takes_an_imported_dataset(archive: Path, simulated_dir: Path, tmp_path: Path):
    store = tmp_path / "store"
    assert command("import", archive, "--as", "theirs", "--store", store, cwd=tmp_path).returncode == 0
    words = ["--config", ROOT / "configs/test.yaml", "--store", store, "data.name=theirs", "training.max_epochs=1"]
    done = subprocess.run([ROOT / "bin/train", *words], cwd=tmp_path, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    rebuild = subprocess.run(
        [ROOT / "bin/train", *words, "data.window.seq_len=16"], cwd=tmp_path, capture_output=True, text=True
    )
    assert f"--data-dir {UNKNOWN_DIR}" in rebuild.stderr + rebuild.stdout


def test_a_build_finds_what_was_imported(archive: Path, simulated_dir: Path, tmp_path: Path):
    store = tmp_path / "store"
    assert command("import", archive, "--store", store, cwd=tmp_path).returncode == 0
    words = ["--config", ROOT / "configs/test.yaml", "--store", store, "--data-dir", simulated_dir, "--json"]
    built = subprocess.run([ROOT / "bin/build-cache", *words], cwd=tmp_path, capture_output=True, text=True)
    outcome = json.loads(built.stdout)
    assert (outcome["reused"], outcome["built"]) == (8, [])
    assert read_ref(store, "test")["data_dir"] == str(simulated_dir)


def test_faults(test_store: Path, archive: Path, tmp_path: Path):
    assert "error: test.tar: no such file" in failure("import", "test.tar", cwd=tmp_path)
    assert "exists already" in failure("export", "test", archive, "--store", test_store, cwd=tmp_path)
    assert "no dataset named none" in failure("export", "none", "x.tar", "--store", test_store, cwd=tmp_path)
    assert "no store here" in failure("export", "test", "x.tar", cwd=tmp_path)
    (tmp_path / "bad.tar").write_bytes(archive.read_bytes()[:-600])
    assert "\nerror: bad.tar: the end: after the last member" in failure("import", "bad.tar", cwd=tmp_path)
    assert "not a name for a dataset" in failure("import", archive, "--as", "../x", cwd=tmp_path)
    assert "Usage: bin/cache export" in failure("export", "test", cwd=tmp_path, code=2)
    assert [path.name for path in tmp_path.iterdir()] == ["bad.tar"]


def test_a_read_only_store_is_exported(test_store: Path, archive: Path, tmp_path: Path):
    store = Path(shutil.copytree(test_store, tmp_path / "store"))
    shutil.rmtree(store / "locks")
    (store / "locks").write_text("in the way of every lock")
    assert command("export", "test", "test.tar", cwd=tmp_path).returncode == 0
    assert (tmp_path / "test.tar").read_bytes() == archive.read_bytes()


@pytest.mark.parametrize("name", ["export", "import"])
def test_help_ends_with_examples(tmp_path: Path, name: str):
    done = command(name, "--help", cwd=tmp_path)
    assert done.returncode == 0
    assert f"Examples:\n    bin/cache {name} demo" in done.stdout


def test_the_first_line_waits_for_nothing_and_the_reader_needs_no_codec(test_store: Path):
    code = """
import sys
import cache.transfer_command
print([name for name in ("pcodec", "numcodecs", "numpy", "pydantic") if name in sys.modules])
import cache.reader
cache.reader.open_dataset(__import__("pathlib").Path(sys.argv[1]), "test")
print([name for name in ("pcodec", "numcodecs") if name in sys.modules])
"""
    done = subprocess.run(
        [sys.executable, "-c", code, test_store], env=ENVIRON, capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n[]\n"
    assert open_dataset(test_store, "test").name == "test"


@pytest.mark.parametrize(
    ("what", "held"), [("import", "entry"), ("import", "store"), ("export", "store"), ("verify", "store")]
)
def test_who_waits_says_so_and_ends_with_ctrl_c(test_store: Path, archive: Path, tmp_path: Path, what: str, held: str):
    store = Path(shutil.copytree(test_store, tmp_path / "store"))
    windows = open_dataset(store, "test").symbols["TEST"].windows
    components = Components(**windows.manifest["components"])
    if held == "entry":
        shutil.rmtree(windows.path)
    words = {"import": ["import", archive], "export": ["export", "test", "test.tar"], "verify": ["verify"]}[what]
    with removing(store) if held == "store" else entry_lock(store, components):
        process = subprocess.Popen(
            [ROOT / "bin/cache", *words, "--store", store],
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        assert process.stdout is not None
        line = next(line for line in process.stdout if "waiting" in line)
        process.send_signal(signal.SIGINT)
        rest, _ = process.communicate(timeout=10)
    another = f"makes windows/{windows.path.name}" if held == "entry" else "removes something from the store"
    assert line == f"  waiting for another process that {another}\n"
    assert rest.endswith(f"\nerror: interrupted{'; what was finished is kept' * (what == 'import')}\n")
    assert process.returncode == 1


def test_a_full_disk_keeps_nothing_of_an_export(test_store: Path, tmp_path: Path):
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", folder], capture_output=True).returncode:
        pytest.skip("no right to mount a small disk")
    try:
        words = failure("export", "test", folder / "test.tar", "--store", test_store, cwd=tmp_path)
        assert words == "\nerror: no space left on device; free some and run the command again\n"
        assert list(folder.iterdir()) == []
    finally:
        subprocess.run(["umount", "-l", folder], check=True)
