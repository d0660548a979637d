"""Builders killed at random moments: the store stays whole, what was finished stays, and the rest is built once more.

A few kills run with the other tests; `.venv/bin/python -m pytest tests/integration/test_kill.py --kills 100 -s` runs as
many as you like and prints its counts.
"""

import json
import os
import random
import signal
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from cache.prune import Limits, plan_removal, remove
from cache.reader import open_dataset
from cache.verify import check_content, check_metadata
from pipeline.build import build
from pipeline.simulate import simulate_bars
from tests.unit.pipeline.making import MINUTE, MONDAY, make_recipe, quiet, random_ohlc, write_parquet

ROOT = Path(__file__).parents[2]
OVERRIDES = (
    "source.files={m1: '{symbol}/*.parquet'}",
    "timeframes=[m1, m5, m15, h1]",
    "window.seq_len={m1: 32, m5: 32, m15: 16, h1: 8}",
)
ENTRIES = 2 * (2 + 3 + 4 + 1) + 2  # of two symbols: shards, derived bars, streams, windows; the split and the dataset


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two symbols with two months of bars each, in a file a month."""
    folder = tmp_path_factory.mktemp("killed")
    for seed, symbol in enumerate(("AAA", "BBB")):
        simulate_bars(folder / "all.parquet", 60_000, seed, lambda written: None)
        frame = pd.read_parquet(folder / "all.parquet")
        (folder / symbol).mkdir()
        frame.iloc[:30_000].to_parquet(folder / symbol / "1.parquet")
        frame.iloc[30_000:].to_parquet(folder / symbol / "2.parquet")
    return folder


@pytest.fixture(scope="module")
def undisturbed(data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, str]]:
    store = tmp_path_factory.mktemp("undisturbed") / "store"
    rebuild(data, store)
    return contents(store)


def rebuild(data: Path, store: Path) -> list[str]:
    return build(make_recipe(*OVERRIDES), data, store, 2, quiet()).built


def contents(store: Path) -> dict[str, dict[str, str]]:
    """MD5s of the arrays of every published entry, as its manifest has them (`verify` compares them with the files)."""
    found = {}
    for manifest in store.glob("*/[!.]*/zarr.json"):
        arrays: dict[str, Any] = json.loads(manifest.read_bytes())["attributes"]["arrays"]
        found[str(manifest.parent.relative_to(store))] = {name: array["md5"] for name, array in arrays.items()}
    return found


def published(store: Path) -> dict[str, tuple[int, int]]:
    """Every published entry, and what would change if it were written again."""
    manifests = store.glob("*/[!.]*/zarr.json")
    return {str(path.parent.relative_to(store)): (path.stat().st_ino, path.stat().st_mtime_ns) for path in manifests}


def start(data: Path, store: Path) -> subprocess.Popen[bytes]:
    words = [str(ROOT / "bin/build-cache"), "--config", "configs/test.yaml", "--data-dir", str(data)]
    words += ["--store", str(store), "--workers", "2", *(f"data.{override}" for override in OVERRIDES)]
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True)


def until_it_builds(builder: subprocess.Popen[bytes]) -> None:
    """Read until the work begins; a thread reads on, so that the builder never waits for us."""
    assert builder.stdout is not None
    text = b""
    while b"fingerprint" not in text:
        more = builder.stdout.read1(4096)
        assert more, text.decode()
        text += more
    threading.Thread(target=builder.stdout.read, daemon=True).start()


def test_killed_builders(
    data: Path, undisturbed: dict[str, dict[str, str]], tmp_path: Path, request: pytest.FixtureRequest
):
    assert len(undisturbed) == ENTRIES
    rng = random.Random(0)
    counts: Counter[str] = Counter()
    alone = start(data, tmp_path / "timed")
    until_it_builds(alone)
    began = time.monotonic()
    alone.wait(timeout=60)
    seconds = time.monotonic() - began
    for number in range(request.config.getoption("--kills")):
        store = tmp_path / f"{number}"
        builders = [start(data, store) for _ in range(4 if number % 2 else 1)]
        for builder in builders:
            until_it_builds(builder)
        time.sleep(rng.uniform(0, seconds * (1.5 if number % 2 else 1)))
        for builder in builders:
            builder.send_signal(signal.SIGKILL)
        codes = [builder.wait(timeout=60) for builder in builders]
        kept = published(store)
        abandoned = list(store.glob("*/.*.partial"))
        assert len(abandoned) <= 2 * len(builders)
        assert contents(store).items() <= undisturbed.items()
        built = rebuild(data, store)
        assert len(built) == ENTRIES - len(kept)  # nothing that was finished is made again
        assert kept.items() <= published(store).items()
        assert contents(store) == undisturbed
        assert check_content(check_metadata(store)) == ()
        assert open_dataset(store, "test").entry.manifest["stage"] == "datasets"
        assert list(store.glob("*/.*.partial/*")) == []
        remove(plan_removal(store, Limits(unreferenced=True), datetime.now(UTC)).removals)
        assert list(store.rglob("*.partial")) == []
        assert contents(store) == undisturbed
        counts["kills"] += len(builders)
        counts["builders that had ended by then"] += sum(code == 0 for code in codes)
        counts["entries that stayed"] += len(kept)
        counts["entries in progress, redone"] += len(abandoned)
        counts["entries built by the next build"] += len(built)
    print("\n" + "\n".join(f"{count:6,} {what}" for what, count in counts.items()))
    assert counts["entries that stayed"] > 0
    assert counts["entries built by the next build"] > 0


def test_eight_builders_at_once_build_every_entry_once(
    data: Path, undisturbed: dict[str, dict[str, str]], tmp_path: Path
):
    store = tmp_path / "store"
    words = [str(ROOT / "bin/build-cache"), "--config", "configs/test.yaml", "--data-dir", str(data), "--json"]
    words += ["--store", str(store), *(f"data.{override}" for override in OVERRIDES)]
    eight = [subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE) for _ in range(8)]
    told = [json.loads(one.communicate(timeout=120)[0]) for one in eight]
    assert [one.returncode for one in eight] == [0] * 8
    assert all(one["reused"] + len(one["built"]) == ENTRIES for one in told)
    built = Counter(label for one in told for label in one["built"])
    assert len(built) == ENTRIES
    assert set(built.values()) == {1}
    assert contents(store) == undisturbed
    assert list(store.rglob("*.partial")) == []


def until(told: Callable[[], bool], seconds: float = 20) -> None:
    """Wait for something to become true."""
    began = time.monotonic()
    while not told():
        assert time.monotonic() - began < seconds
        time.sleep(0.01)


@contextmanager
def stopped_builder(store: Path, tmp_path: Path) -> Iterator[str]:
    """A builder that stands still with an entry in progress: what it builds."""
    rows = 1_500_000
    write_parquet(
        tmp_path / "simfx_m1.parquet",
        MONDAY + MINUTE * np.arange(rows),
        np.tile(random_ohlc(np.random.default_rng(0), 15_000), (rows // 15_000, 1)),
    )
    builder = subprocess.Popen(plain(store, tmp_path), stdout=subprocess.DEVNULL, start_new_session=True)
    try:
        until(lambda: any(path.stat().st_size for path in store.glob("bars/.*.partial/ohlc/c.0.0")))
        builder.send_signal(signal.SIGSTOP)
        yield "bars TEST m1 simfx_m1.parquet"
    finally:
        builder.kill()
        builder.wait()


def plain(store: Path, data: Path) -> list[str]:
    words = [str(ROOT / "bin/build-cache"), "--config", "configs/test.yaml", "--data-dir", str(data)]
    return [*words, "--store", str(store), "--workers", "2"]


def test_waiting_for_another_builder_is_told_and_ends_with_ctrl_c(tmp_path: Path):
    store = tmp_path / "store"
    with stopped_builder(store, tmp_path) as label:
        waits = subprocess.Popen(
            plain(store, tmp_path),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            # where the tests run in the background, the shell has them ignore Ctrl-C
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        assert waits.stdout is not None
        lines = iter(waits.stdout.readline, "")
        assert next(line for line in lines if "fingerprint" in line)
        began = time.monotonic()
        assert next(line for line in lines if "waiting" in line) == (
            f"  waiting for another process that builds {label}\n"
        )
        assert time.monotonic() - began < 2
        assert next(line for line in lines if "building" in line).startswith("  building: 0 rows, ")  # never silent
        waits.send_signal(signal.SIGINT)
        began = time.monotonic()
        assert "error: interrupted; 0 of 8 entries to build are done" in waits.communicate(timeout=20)[1]
        assert time.monotonic() - began < 2
        assert waits.returncode == 1


def test_who_waited_for_another_builder_counts_every_entry(tmp_path: Path):
    store = tmp_path / "store"
    with stopped_builder(store, tmp_path):
        waits = subprocess.Popen([*plain(store, tmp_path), "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        assert waits.stderr is not None
        text = b""
        while b"waiting for another process" not in text:
            text += os.read(waits.stderr.fileno(), 4096)
    told = json.loads(waits.communicate(timeout=60)[0])
    assert told["reused"] + len(told["built"]) == 8
    assert told["certified"]
