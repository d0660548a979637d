"""Push and pull against real servers: S3 spoken by rclone over a folder, and Python's web server."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cache.keys import file_md5

ROOT = Path(__file__).parents[2]
ENTRIES = 8
SLOWLY = ("--bwlimit", "300k")  # bytes a second, of about 880 kB


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@contextmanager
def serving(words: list[str | Path], port: int, **settings: object) -> Iterator[subprocess.Popen[str]]:
    """A server process from when it answers until the block ends, if it has not been killed before."""
    process = subprocess.Popen(words, text=True, **settings)  # type: ignore[call-overload]
    try:
        for _ in range(200):
            assert process.poll() is None, words
            with socket.socket() as one:
                if one.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.05)
        yield process
    finally:
        process.kill()
        process.wait(timeout=10)


def s3(folder: Path, port: int, *more: str):
    """An S3 server whose buckets are the folders in `folder`."""
    (folder / "bucket").mkdir(parents=True, exist_ok=True)
    rclone = Path(sys.executable).with_name("rclone")
    words = [rclone, "serve", "s3", folder, "--addr", f"127.0.0.1:{port}", "--config", "", *more]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    return serving(words, port, env={**os.environ, "RCLONE_AUTH_KEY": '"mine,secret"'}, **quiet)


def environ(port: int, secret: str = "secret") -> dict[str, str]:
    """Where the credentials come from. A lost server is given up soon."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    keys = {"AWS_ACCESS_KEY_ID": "mine", "AWS_SECRET_ACCESS_KEY": secret}
    return {**kept, **keys, "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}", "AWS_MAX_ATTEMPTS": "3"}


def run(words: list[str | Path], cwd: Path, env: dict[str, str], code: int = 0) -> str:
    """bin/cache; its last lines, or its error."""
    done = subprocess.run([ROOT / "bin/cache", *words], cwd=cwd, env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr if code else done.stdout


def moved(output: str) -> tuple[int, int]:
    """How many entries went over, and their bytes."""
    match = re.search(r"(\d+) of 8 entries (?:sent|fetched), ([\d,]+) bytes", output)
    assert match, output
    return int(match[1]), int(match[2].replace(",", ""))


def content(store: Path) -> dict[str, str]:
    """MD5 of every file of every entry, and of what is half made."""
    return {str(p.relative_to(store)): file_md5(p) for p in store.glob("[bswd]*/*/**/*") if p.is_file()}


def stamps(paths: Iterator[Path]) -> dict[Path, tuple[int, int]]:
    """What would change if a file were written again."""
    return {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in paths}


def until(happened: Callable[[], object], process: subprocess.Popen[str]) -> None:
    for _ in range(3000):
        if happened():
            return
        assert process.poll() is None, process.stdout and process.stdout.read()
        time.sleep(0.01)
    raise AssertionError("it did not happen")


def begin(words: list[str | Path], cwd: Path, env: dict[str, str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [ROOT / "bin/cache", *words], cwd=cwd, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


def train(store: Path, folder: Path) -> list[str]:
    """MD5s of what a short training leaves."""
    words = ["--config", "configs/test.yaml", "--store", store, "--run", folder, "training.max_epochs=1"]
    subprocess.run([ROOT / "bin/train", *words, "training.steps_per_epoch=5"], check=True, capture_output=True)
    return [file_md5(folder / name) for name in ("best.safetensors", "last/checkpoint.safetensors")]


def test_there_and_back(test_store: Path, tmp_path: Path):
    port, store = free_port(), tmp_path / "store"
    shutil.copytree(test_store, store)
    before, trained = content(store), train(store, tmp_path / "before")
    with s3(tmp_path / "s3", port):
        env, url = environ(port), "s3://bucket/some/folder"
        objects = tmp_path / "s3/bucket/some/folder"
        output = run(["push", "test", url], tmp_path, env)
        assert output.startswith(f"Pushing test of store to {url}\n")
        assert output.endswith(f"Where it is needed: bin/cache pull {url} test\n")
        there = stamps(objects.rglob("*.*"))
        assert moved(output) == (8, sum(path.stat().st_size for path in objects.rglob("*.tar")))
        assert {str(path.relative_to(objects)) for path in there} == {
            "refs/test.json",
            *(f"{path.parent.relative_to(store)}.tar" for path in store.glob("*/*/zarr.json")),
        }
        again = run(["push", "test", url], tmp_path, env)
        assert moved(again) == (0, 0)
        assert "; the others were there. Where" in again
        assert stamps(objects.rglob("*.*")) == there
        shutil.rmtree(store)
        fetched = run(["pull", url, "test"], tmp_path, env)
        assert fetched.endswith("Look at it: bin/cache show test\n")
        assert moved(fetched) == moved(output)
        assert content(store) == before
        assert len(before) > 30
        assert moved(run(["pull", url, "test"], tmp_path, env)) == (0, 0)
        assert "access refused" in (refused := run(["pull", url, "test"], tmp_path, environ(port, "wrong"), code=1))
        assert "Credentials come from the environment: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY" in refused
        nowhere = run(["push", "test", "s3://nowhere/x"], tmp_path, env, code=1)
        assert re.search(r"error: s3://nowhere/x/\S+: cannot be written: .*Make the bucket first", nowhere)
        unknown = run(["pull", url, "none"], tmp_path, env, code=1)
        assert f"error: {url}: there is no dataset named none; check the name and the URL" in unknown
    assert train(store, tmp_path / "after") == trained


def test_a_killed_push_goes_on(test_store: Path, tmp_path: Path):
    port, objects = free_port(), tmp_path / "s3/bucket"
    words: list[str | Path] = ["push", "test", "s3://bucket/x", "--store", test_store]
    with s3(tmp_path / "s3", port, *SLOWLY):
        client = begin(words, tmp_path, environ(port))
        until(lambda: any(objects.rglob("*.tar")), client)
        client.send_signal(signal.SIGKILL)
        client.communicate(timeout=10)
        time.sleep(0.5)  # the server notices
    there = stamps(objects.rglob("*.tar"))
    assert 0 < len(there) < ENTRIES
    assert not list(objects.rglob("*.json"))
    with s3(tmp_path / "s3", port):
        assert moved(run(words, tmp_path, environ(port)))[0] == ENTRIES - len(there)
        assert stamps(path for path in objects.rglob("*.tar") if path in there) == there
        run(["pull", "s3://bucket/x", "test"], tmp_path, environ(port))
    assert content(tmp_path / "store") == content(test_store)


@pytest.mark.parametrize("killed", ["client", "server"])
def test_a_pull_goes_on(test_store: Path, tmp_path: Path, killed: str):
    port, store = free_port(), tmp_path / "store"
    words: list[str | Path] = ["pull", "s3://bucket/x", "test"]
    with s3(tmp_path / "s3", port):
        run(["push", "test", "s3://bucket/x", "--store", test_store], tmp_path, environ(port))
    with s3(tmp_path / "s3", port, *SLOWLY) as server:
        client = begin(words, tmp_path, environ(port))
        until(lambda: list(store.glob("*/[!.]*/zarr.json")), client)
        (client if killed == "client" else server).send_signal(signal.SIGKILL)
        output, _ = client.communicate(timeout=60)
    here = stamps(store.glob("*/[!.]*/zarr.json"))
    assert 0 < len(here) < ENTRIES
    assert not (store / "refs").exists()
    if killed == "server":
        assert client.returncode == 1
        assert "Traceback" not in output
        error = output[output.index("\nerror: ") :]
        assert re.match(r"\nerror: s3://bucket/x/[a-z]+/[0-9a-f]{32}\.tar: ", error)
        assert "When the server can be reached, run the command again: it goes on from there\n" in error
        assert re.search(rf"{len(here)} intact entr(ies stay|y stays) in store: the next try goes on from there", error)
        assert not list(store.glob("*/.*"))
    with s3(tmp_path / "s3", port):
        assert moved(run(words, tmp_path, environ(port)))[0] == ENTRIES - len(here)
        assert moved(run(words, tmp_path, environ(port))) == (0, 0)
    assert stamps(path for path in store.glob("*/*/zarr.json") if path in here) == here
    assert content(store) == content(test_store)
    assert "), 4.0 MB: all intact" in run(["verify"], tmp_path, environ(port))


def test_a_plain_web_server_serves_what_was_pushed_to_a_folder(test_store: Path, tmp_path: Path):
    port, folder, log = free_port(), tmp_path / "pushed", tmp_path / "log"
    env = environ(port)
    run(["push", "test", f"file://{folder}", "--store", test_store], tmp_path, env)
    url = f"http://127.0.0.1:{port}"
    server = [sys.executable, "-u", "-m", "http.server", str(port), "--bind", "127.0.0.1"]
    with log.open("w") as errors, serving([*server, "--directory", folder], port, stderr=errors):
        assert moved(run(["pull", url, "test", "--as", "theirs"], tmp_path, env))[0] == ENTRIES
        asked = re.findall(r'"(\w+) (\S+) HTTP', log.read_text())
        objects = {f"/{path.relative_to(folder)}" for path in folder.rglob("*.*")}
        assert sorted(asked) == sorted(("GET", path) for path in objects)
        assert content(tmp_path / "store") == content(test_store)
        assert moved(run(["pull", url, "test", "--as", "theirs"], tmp_path, env)) == (0, 0)
        again = re.findall(r'"(\w+) (\S+) HTTP', log.read_text())[len(asked) :]
        assert again == [("GET", "/refs/test.json")]
        shutil.rmtree(tmp_path / "store")
        (large,) = (folder / "windows").iterdir()
        with large.open("r+b") as file:
            file.truncate(100 * 2**20)
        assert "which is more than it can need" in run(["pull", url, "test"], tmp_path, env, code=1)
        assert not list((tmp_path / "store/windows").iterdir())
    refused = run(["push", "test", url, "--store", test_store], tmp_path, env, code=1)
    assert f"error: {url}: a web server can only be pulled from; push to s3://BUCKET/FOLDER" in refused


@pytest.mark.parametrize(
    ("absent", "url", "remedy"),
    [
        ("fsspec", "s3://bucket/x", "bin/install remote"),
        ("s3fs", "s3://bucket/x", "s3:// needs a Python package that is not installed .*: bin/install remote"),
        ("aiohttp", "https://host/x", "https:// needs a Python package that is not installed .*: bin/install remote"),
        ("gcsfs", "gs://bucket/x", "gs:// needs .*: .venv/bin/pip install -c constraints.txt gcsfs"),
        ("adlfs", "az://box/x", "az:// needs .*: .venv/bin/pip install -c constraints.txt adlfs"),
    ],
)
def test_what_is_not_installed_is_told(tmp_path: Path, absent: str, url: str, remedy: str):
    code = f"import sys; sys.modules[{absent!r}] = None; from pipeline.cache_command import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, "pull", url, "test"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert re.search(remedy, done.stderr), done.stderr
    assert "Traceback" not in done.stderr


def test_only_who_pushes_or_pulls_loads_fsspec():
    code = "import sys, pipeline.cache_command; print({'fsspec', 'aiohttp', 's3fs', 'pcodec'} & set(sys.modules))"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


@pytest.mark.parametrize("name", ["push", "pull"])
def test_help_ends_with_examples(tmp_path: Path, name: str):
    example = {"push": "push demo s3://my-bucket/headstart", "pull": "pull s3://my-bucket/headstart demo"}[name]
    output = run([name, "--help"], tmp_path, dict(os.environ))
    assert f"Examples:\n    bin/cache {example}\n" in output
