"""Parquet files at URLs, from a real server process of this machine."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from configs.errors import UserError
from pipeline import remote_files
from pipeline.build import build
from pipeline.files import is_url, url_of
from tests.integration.test_remote import environ, free_port, s3, serving
from tests.unit.pipeline.making import MINUTE, MONDAY, make_recipe, quiet, random_ohlc, write_parquet

pytest.importorskip("aiohttp")
ROOT = Path(__file__).parents[2]
ROWS = 3000
BARS = (MONDAY + MINUTE * np.arange(ROWS), random_ohlc(np.random.default_rng(0), ROWS))
UNREACHED = "the server cannot be reached (Cannot connect to host 127.0.0.1:9 "
OVERRIDES = ("timeframes=[m1, m5]", "window.seq_len=16")


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    """A folder, and the URL at which a web server shows it."""
    folder = tmp_path_factory.mktemp("served")
    write_parquet(folder / "bars.parquet", *BARS, row_group_size=1000)
    write_parquet(folder / "empty.parquet", np.empty(0, np.int64), np.empty((0, 4)))
    port = free_port()
    rclone = Path(sys.executable).with_name("rclone")
    words = [rclone, "serve", "http", folder, "--addr", f"127.0.0.1:{port}", "--config", "", "--dir-cache-time", "0s"]
    with serving(words, port, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL):
        yield folder, f"http://127.0.0.1:{port}"


def test_a_file_in_an_object_store(served: tuple[Path, str], tmp_path: Path):
    (tmp_path / "bucket").mkdir()
    for half, name in enumerate(("a", "b")):
        write_parquet(tmp_path / f"bucket/{name}.parquet", *(part[half * 1500 : half * 1500 + 1500] for part in BARS))
    port = free_port()

    def build_cache(files: str, **env: str) -> subprocess.CompletedProcess[str]:
        words = [ROOT / "bin/build-cache", "--config", "configs/test.yaml", "--store", tmp_path / "store"]
        words += [f"data.source.files={{m1: '{files}'}}", *(f"data.{one}" for one in OVERRIDES)]
        return subprocess.run(words, capture_output=True, text=True, env=environ(port) | env)

    with s3(tmp_path, port):
        done = build_cache("s3://bucket/*.parquet")
        folder = build_cache("s3://bucket")
        refused = build_cache("s3://bucket/a.parquet", AWS_SECRET_ACCESS_KEY="wrong")
    assert done.returncode == 0, done.stderr
    assert "nothing was built" in folder.stdout, folder.stderr
    assert refused.returncode == 1
    assert "\nerror: s3://bucket/a.parquet: cannot be read (" in refused.stderr
    assert "; is the address right, and are you allowed to?\n" in refused.stderr
    here = make_recipe("source.files={m1: 'bucket/*.parquet'}", *OVERRIDES)
    assert build(here, tmp_path, tmp_path / "store", 2, quiet()).built == []


def test_a_remote_file_builds_what_the_same_file_here_builds(served: tuple[Path, str], tmp_path: Path):
    folder, url = served
    remote = make_recipe(f"source.files={{m1: '{url}/bars.parquet'}}", *OVERRIDES)
    here = make_recipe("source.files={m1: bars.parquet}", *OVERRIDES)
    one = build(remote, tmp_path, tmp_path / "remote", 2, quiet())
    other = build(here, folder, tmp_path / "here", 2, quiet())
    assert one.dataset.entry.key == other.dataset.entry.key
    assert build(here, folder, tmp_path / "remote", 2, quiet()).built == []


def test_a_remote_file_that_changes_is_built_again(served: tuple[Path, str], tmp_path: Path):
    folder, url = served
    label, ohlc = MONDAY + MINUTE * np.arange(ROWS), random_ohlc(np.random.default_rng(1), ROWS)
    path = write_parquet(folder / "changing.parquet", label, ohlc)
    recipe = make_recipe(f"source.files={{m1: '{url}/changing.parquet'}}", *OVERRIDES)
    first = build(recipe, tmp_path, tmp_path / "store", 2, quiet())
    assert build(recipe, tmp_path, tmp_path / "store", 2, quiet()).built == []
    write_parquet(path, label, ohlc * 2)
    os.utime(path, (time.time() + 5,) * 2)  # the server tells whole seconds
    assert build(recipe, tmp_path, tmp_path / "store", 2, quiet()).dataset.entry.key != first.dataset.entry.key


def test_the_remembered_md5_is_taken_where_the_server_tells_a_tag(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "store").mkdir()
    path = Path("memory:/bars.parquet")
    read = []

    class File:
        def read(self, size: int) -> bytes:
            read.append(size)
            return b"" if len(read) % 2 == 0 else b"content"

        def __enter__(self) -> "File":
            return self

        def __exit__(self, *_: object) -> None: ...

    told = {"size": 7, "ETag": "a"}
    monkeypatch.setattr(remote_files, "_system", lambda url: (type("S", (), {"info": lambda s, p: told})(), url))
    monkeypatch.setattr(remote_files, "open_remote", lambda path: File())
    memo = tmp_path / "store/sources"
    md5 = remote_files.remote_fingerprint(path, memo).md5
    assert remote_files.remote_fingerprint(path, memo).md5 == md5
    assert len(read) == 2
    told["ETag"] = "b"
    assert remote_files.remote_fingerprint(path, memo).touched
    assert len(read) == 4
    del told["ETag"]
    for _ in range(2):  # nothing tells whether it changed: it is read again
        remote_files.remote_fingerprint(path, memo)
    assert len(read) == 8


@pytest.mark.parametrize(
    ("pattern", "said"),
    [
        ("{url}/missing.parquet", "/missing.parquet: no such file, folder or pattern there"),
        ("http://127.0.0.1:9/bars.parquet", f"http://127.0.0.1:9/bars.parquet: {UNREACHED}"),
        ("http://127.0.0.1:9/*.parquet", f"http://127.0.0.1:9/*.parquet: {UNREACHED}"),
        ("http://127.0.0.1:9/folder", f"http://127.0.0.1:9/folder: {UNREACHED}"),
        ("{url}/empty.parquet", "/empty.parquet: holds no rows; "),
        (
            "{url}/{{symbol}}.parquet",
            "{symbol} cannot stand in a URL; use data.source.symbol_columns, or ",
        ),
        ("http://me:secret@host/bars.parquet", "neither credentials nor options stand in this URL"),
        ("ftp://host/bars.parquet", "not the URL of a remote store"),
    ],
)
def test_urls_that_cannot_be_read(served: tuple[Path, str], tmp_path: Path, pattern: str, said: str):
    recipe = make_recipe(f"source.files={{m1: '{pattern.format(url=served[1])}'}}", *OVERRIDES)
    with pytest.raises(UserError) as caught:
        build(recipe, tmp_path, tmp_path / "store", 2, quiet())
    assert said in str(caught.value)
    if "empty" in pattern:
        assert str(caught.value).startswith(served[1])
    assert "secret" not in str(caught.value)


def test_a_server_that_is_gone_is_not_one_without_the_file():
    path = Path("http://127.0.0.1:9/bars.parquet")
    with pytest.raises(
        UserError,
        match=r"bars\.parquet: the server cannot be reached \(Cannot connect .*does it answer this machine\?$",
    ):
        remote_files.remote_identity(path)


def test_an_object_store_that_cannot_be_reached(tmp_path: Path):
    words = [ROOT / "bin/build-cache", "--config", "configs/test.yaml", "--store", tmp_path / "store"]
    words.append("data.source.files={m1: 's3://bucket/a.parquet'}")
    done = subprocess.run(words, capture_output=True, text=True, env=environ(9))
    assert done.returncode == 1
    assert "\nerror: s3://bucket/a.parquet: the server cannot be reached (Could not connect to the" in done.stderr


def test_a_server_that_gives_no_parts_of_files_is_refused(served: tuple[Path, str], tmp_path: Path):
    words = [sys.executable, "-m", "http.server", str(port := free_port()), "--bind", "127.0.0.1", "--directory"]
    with serving([*words, str(served[0])], port, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL):
        recipe = make_recipe(f"source.files={{m1: 'http://127.0.0.1:{port}/bars.parquet'}}", *OVERRIDES)
        with pytest.raises(UserError, match=r"bars\.parquet: cannot be read in parts .*; fetch the file"):
            build(recipe, tmp_path, tmp_path / "store", 2, quiet())


def test_a_text_file_at_a_url_is_refused_by_name(served: tuple[Path, str], tmp_path: Path):
    (served[0] / "bars.csv").write_text("time,open,high,low,close\n")
    recipe = make_recipe(f"source.files={{m1: '{served[1]}/bars.csv'}}", *OVERRIDES)
    with pytest.raises(UserError, match=r"bars\.csv: not a readable parquet file"):
        build(recipe, tmp_path, tmp_path / "store", 2, quiet())


@pytest.mark.parametrize("url", ["s3://bucket/a/b.parquet", "https://host:1/x", "file:///tmp/x.parquet"])
def test_a_url_survives_as_a_path(url: str):
    assert is_url(url)
    assert is_url(Path(url))
    assert url_of(Path(url)) == url
    assert not is_url("folder/m1.parquet")
    assert not is_url("/folder/{symbol}.parquet")
