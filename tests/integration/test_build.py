"""bin/build-cache as its users run it."""

import io
import json
import os
import re
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from cache.console import Console
from cache.keys import file_md5
from cache.reader import open_dataset
from pipeline.build import build
from pipeline.simulate import simulate_bars
from tests.unit.cache.making import md5s_of_rows
from tests.unit.pipeline.making import MINUTE, MONDAY, make_recipe, quiet, random_ohlc, write_parquet

ROOT = Path(__file__).parents[2]
ALL = [
    "bars TEST m1 simfx_m1.parquet",
    "streams TEST m1",
    "bars TEST m5",
    "bars TEST m15",
    "windows TEST",
    "streams TEST m5",
    "streams TEST m15",
    "datasets test",
]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    simulate_bars(folder / "simfx_m1.parquet", 12_000, 2, lambda written: None)
    return folder


@pytest.fixture(scope="module")
def built(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with the dataset `test`. Not to be changed."""
    store = tmp_path_factory.mktemp("built") / "store"
    build(make_recipe(), data, store, 2, quiet())
    return store


def command(store: Path, data: Path, *arguments: str) -> list[str]:
    options = ["--config", "configs/test.yaml", "--store", str(store), "--data-dir", str(data)]
    return [str(ROOT / "bin" / "build-cache"), *options, *arguments]


def run(store: Path, data: Path, *arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess:
    return subprocess.run(command(store, data, *arguments), capture_output=True, text=True, cwd=cwd, timeout=60)


def outcome(store: Path, data: Path, *arguments: str, cwd: Path = ROOT) -> tuple[dict[str, Any], str]:
    done = run(store, data, "--json", *arguments, cwd=cwd)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 1
    return json.loads(done.stdout), done.stderr


def rebuild(store: Path, data: Path, *overrides: str, workers: int = 2) -> tuple[list[str], str]:
    """The same without a process of its own: what was built, and what was said."""
    console = Console(io.StringIO())
    built = build(make_recipe(*overrides), data, store, workers, console).built
    return built, console.stream.getvalue()


def contents(store: Path) -> dict[str, str]:
    """MD5 of every array file of every entry; the manifests tell of the same."""
    found = {}
    for manifest in store.glob("*/[!.]*/zarr.json"):  # names with a dot are not entries yet
        for name, described in json.loads(manifest.read_bytes())["attributes"]["arrays"].items():
            (body,) = (manifest.parent / name).glob("c.*")
            found[str(body.relative_to(store))] = file_md5(body)
            assert md5s_of_rows(manifest.parent, name, described) == described["md5"]
    return found


def leftovers(store: Path) -> list[str]:
    return [str(path.relative_to(store)) for path in store.rglob("*.partial")]


def copy_of(store: Path, tmp_path: Path) -> Path:
    return shutil.copytree(store, tmp_path / "store")


def test_the_first_build_makes_everything_and_the_second_nothing(tmp_path: Path, data: Path):
    store = tmp_path / "store"
    first = run(store, data)
    assert first.returncode == 0
    for label in ALL:
        assert f"built {label}" in first.stdout
    assert "0 entries reused, 8 built." in first.stdout
    assert f"Building test into {store}\n" in first.stdout.splitlines(keepends=True)[0]
    before = contents(store)
    second = run(store, data)
    assert second.returncode == 0
    assert "Everything was in the store already; nothing was built." in second.stdout
    assert "changed since the last build" not in second.stdout
    assert contents(store) == before
    assert len(before) == 3 * 3 + 3 * 3 + 2 + 2 + 7


def test_json_is_one_object_on_stdout_and_progress_goes_to_stderr(tmp_path: Path, data: Path):
    told, progress = outcome(tmp_path / "store", data)
    dataset = open_dataset(tmp_path / "store", "test")
    assert told == {
        "name": "test",
        "key": dataset.entry.key,
        "reused": 0,
        "built": ALL,
        "windows": {"TEST": dataset.symbols["TEST"].windows.shape("time")[0]},
        "splits": dataset.splits,
        "warnings": dataset.entry.manifest["warnings"],
        "certified": True,
        "seconds": told["seconds"],
    }
    assert (tmp_path / "store" / "datasets" / told["key"] / "zarr.json").is_file()
    assert "fingerprint sources" in progress
    longer, progress = outcome(tmp_path / "store", data, "data.window.seq_len=48")
    assert (longer["reused"], longer["built"]) == (6, ["windows TEST", "datasets test"])
    assert longer["key"] != told["key"]
    assert "changed since the last build: data.window.seq_len 32 → 48\n" in progress


@pytest.mark.parametrize(
    ("override", "change", "rebuilt"),
    [
        ("window.seq_len=48", "data.window.seq_len 32 → 48", ["windows TEST", "datasets test"]),
        ("window.stride=2", "data.window.stride 1 → 2", ["windows TEST", "datasets test"]),
        (
            "features.set=price",
            "data.features.set returns → price",
            ["streams TEST m1", "streams TEST m5", "streams TEST m15", "datasets test"],
        ),
        (
            "timeframes=[m1, m15]",
            "data.timeframes m1 m5 m15 → m1 m15",
            ["windows TEST", "datasets test"],
        ),
    ],
)
def test_a_change_rebuilds_what_depends_on_it_and_is_named(
    tmp_path: Path, data: Path, built: Path, override: str, change: str, rebuilt: list[str]
):
    store = copy_of(built, tmp_path)
    labels, said = rebuild(store, data, override)
    assert labels == rebuilt
    assert [line for line in said.splitlines() if "changed" in line] == [f"  changed since the last build: {change}"]
    labels, said = rebuild(store, data)
    assert labels == []
    assert "changed since the last build: " in said


def test_any_working_directory_will_do(tmp_path: Path, data: Path, built: Path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    shutil.copy(data / "simfx_m1.parquet", elsewhere)
    done = subprocess.run(
        [ROOT / "bin" / "build-cache", "--config", "configs/test.yaml"], cwd=elsewhere, capture_output=True, timeout=60
    )
    assert done.returncode == 0
    assert contents(elsewhere / "store") == contents(built)


def test_worker_counts_do_not_matter(tmp_path: Path, data: Path, built: Path):
    for workers in (1, 4):
        rebuild(tmp_path / f"{workers}", data, workers=workers)
        assert contents(tmp_path / f"{workers}") == contents(built)


def test_two_builders_at_once_share_the_work(tmp_path: Path, data: Path, built: Path):
    store = tmp_path / "store"
    both = [subprocess.Popen(command(store, data, "--json"), stdout=subprocess.PIPE, cwd=ROOT) for _ in range(2)]
    told = [json.loads(one.communicate(timeout=60)[0]) for one in both]
    assert [one.returncode for one in both] == [0, 0]
    assert sorted(told[0]["built"] + told[1]["built"]) == sorted(ALL)
    assert contents(store) == contents(built)
    assert leftovers(store) == []


def test_a_log_file_has_whole_lines(tmp_path: Path):
    """No carriage returns, and nothing glued to a bar."""
    label = MONDAY + MINUTE * np.arange(3_000_000)
    ohlc = np.tile(random_ohlc(np.random.default_rng(0), 15_000), (200, 1))
    write_parquet(tmp_path / "simfx_m1.parquet", label, ohlc)
    done = run(tmp_path / "store", tmp_path)
    assert done.returncode == 0, done.stderr
    assert "\r" not in done.stdout + done.stderr
    shape = re.compile(
        r"Building .*|  import pyarrow, numba \.*\d+\.\d\d s|  fingerprint sources \.*\d+\.\d\d s|  built \S+ .*|"
        r"  building: [\d,]+ rows, \d+ s|  \.+"
    )
    lines = done.stdout.splitlines()
    last = max(at for at, line in enumerate(lines) if line.startswith("  built "))
    assert all(shape.fullmatch(line) for line in lines[: last + 1]), lines


# --- failures


def test_a_fault_ends_with_1_and_a_message_and_leaves_nothing_behind(tmp_path: Path):
    label, ohlc = MONDAY + MINUTE * np.arange(200_000), random_ohlc(np.random.default_rng(0), 200_000)
    ohlc[150_000, 2] = -1.0
    path = write_parquet(tmp_path / "simfx_m1.parquet", label, ohlc)
    done = run(tmp_path / "store", tmp_path)
    assert done.returncode == 1
    assert done.stderr.endswith(
        f"error: {path}: column low, row 150,000: -1.0 is not positive; correct or remove the row, or set "
        "data.source.policy.not_positive=drop\n"
    )
    assert "Traceback" not in done.stderr
    assert leftovers(tmp_path / "store") == []
    assert contents(tmp_path / "store") == {}
    assert not (tmp_path / "store" / "refs").exists()


def test_a_late_fault_keeps_what_was_finished(tmp_path: Path, data: Path, built: Path):
    done = run(tmp_path / "store", data, "data.window.seq_len={m1: 32, m5: 32, m15: 5000}")
    assert done.returncode == 1
    assert "error: test: TEST has no windows left of 12,000 candidates. The rule `history` of m15" in done.stderr
    assert leftovers(tmp_path / "store") == []
    finished = contents(tmp_path / "store")
    assert finished.items() <= contents(built).items()
    assert [name for name in finished if name.startswith("bars")]
    assert not [name for name in finished if name.startswith("windows")]
    labels, _ = rebuild(tmp_path / "store", data)
    assert len(labels) <= 5
    assert contents(tmp_path / "store") == contents(built)


def test_a_failed_build_leaves_the_last_dataset_as_it_was(tmp_path: Path, data: Path, built: Path):
    store = copy_of(built, tmp_path)
    ref = (store / "refs" / "test.json").read_bytes()
    assert run(store, data, "data.window.seq_len=5000").returncode == 1
    assert (store / "refs" / "test.json").read_bytes() == ref


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--workers", "0"], "Invalid value for '--workers'"),
        (["--no-such-option"], "No such option"),
    ],
)
def test_wrong_usage_ends_with_2(tmp_path: Path, data: Path, arguments: list[str], message: str):
    done = run(tmp_path / "store", data, *arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert not (tmp_path / "store").exists()


def test_a_missing_configuration_option_is_wrong_usage():
    done = subprocess.run([ROOT / "bin" / "build-cache"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "Missing option '--config'" in done.stderr


def test_wrong_configurations_and_missing_sources_end_with_1(tmp_path: Path, data: Path):
    wrong = run(tmp_path / "store", data, "data.window.seqlen=3")
    assert wrong.returncode == 1
    assert "data.window.seqlen is not a known key; did you mean data.window.seq_len?" in wrong.stderr
    missing = run(tmp_path / "store", tmp_path)
    assert missing.returncode == 1
    assert f"error: {tmp_path / 'simfx_m1.parquet'}: no such file" in missing.stderr


# --- many files


def months(data: Path, folder: Path, cuts: list[int], overlap: int = 0) -> list[Path]:
    frame = pd.read_parquet(data / "simfx_m1.parquet")
    bounds = [0, *cuts, len(frame)]
    folder.mkdir()
    paths = []
    for number in range(len(bounds) - 1):
        path = folder / f"{9 - number}.parquet"  # by name they stand in the wrong order
        start = max(bounds[number] - overlap, 0) if number else 0
        frame.iloc[start : bounds[number + 1]].to_parquet(path)
        paths.append(path)
    return paths


def arrays(store: Path, name: str = "test") -> dict[str, Any]:
    """MD5s of the windows' and streams' arrays of a dataset, by what they are."""
    dataset = json.loads((store / "refs" / f"{name}.json").read_bytes())["dataset"]
    manifest = json.loads((store / "datasets" / dataset / "zarr.json").read_bytes())["attributes"]
    (keys,) = manifest["components"]["inputs"].values()
    folders = {"windows": store / "windows" / keys["windows"]}
    folders |= {name: store / "streams" / key for name, key in keys["streams"].items()}
    found = {
        part: json.loads((folder / "zarr.json").read_bytes())["attributes"]["arrays"]
        for part, folder in folders.items()
    }
    return {**found, "dataset": manifest["arrays"], "splits": manifest["splits"]}


@pytest.mark.parametrize("cuts", [[5000], [37, 4000, 4001, 11_990]])
def test_a_folder_of_files_is_the_same_as_one_file(tmp_path: Path, data: Path, built: Path, cuts: list[int]):
    months(data, tmp_path / "months", cuts)
    labels, _ = rebuild(tmp_path / "store", tmp_path, "source.files={m1: months}")
    assert len([label for label in labels if label.startswith("bars TEST m1 ")]) == len(cuts) + 1
    assert arrays(tmp_path / "store") == arrays(built)


def test_a_new_file_leaves_the_old_ones_as_they_are(tmp_path: Path, data: Path):
    *_, last = months(data, tmp_path / "months", [5000, 9000])
    files = "source.files={m1: 'months/*.parquet'}"
    aside = last.rename(tmp_path / "aside.parquet")
    rebuild(tmp_path / "store", tmp_path, files)
    aside.rename(last)
    rebuilt, _ = rebuild(tmp_path / "store", tmp_path, files)
    assert [label for label in rebuilt if label.startswith("bars TEST m1 ")] == ["bars TEST m1 7.parquet"]


@pytest.mark.parametrize("overlap", [1, 300])
def test_overlapping_files_are_an_error_that_names_both(tmp_path: Path, data: Path, overlap: int):
    months(data, tmp_path / "months", [5000], overlap)
    done = run(tmp_path / "store", tmp_path, "data.source.files={m1: months}")
    assert done.returncode == 1
    frame = pd.read_parquet(data / "simfx_m1.parquet")["timestamp"]
    begins = frame.iloc[5000 - overlap].strftime("%Y-%m-%dT%H:%M:%S UTC")
    ends = (frame.iloc[4999] + pd.Timedelta("1min")).strftime("%Y-%m-%dT%H:%M:%S UTC")
    assert f"error: 8.parquet begins at {begins}, before 9.parquet ends at {ends}; remove the overlap" in done.stderr
    assert leftovers(tmp_path / "store") == []


def test_the_same_file_twice_is_an_error_that_names_both(tmp_path: Path, data: Path):
    (tmp_path / "months").mkdir()
    for name in ("a.parquet", "b.parquet"):
        shutil.copy(data / "simfx_m1.parquet", tmp_path / "months" / name)
    done = run(tmp_path / "store", tmp_path, "data.source.files={m1: months}")
    assert done.returncode == 1
    assert f"error: {tmp_path}/months/b.parquet: the same content as a.parquet; remove one of them" in done.stderr


# --- crashes


def read_until(builder: subprocess.Popen, words: bytes, times: int) -> None:
    text = b""
    while text.count(words) < times:
        more = os.read(builder.stdout.fileno(), 4096)
        assert more, f"it ended before: {text.decode()}"
        text += more


@pytest.mark.parametrize("built_lines", [1, 3])
def test_after_a_kill_the_next_build_finishes_the_work(tmp_path: Path, data: Path, built: Path, built_lines: int):
    store = tmp_path / "store"
    builder = subprocess.Popen(
        command(store, data, "--workers", "2"), stdout=subprocess.PIPE, cwd=ROOT, start_new_session=True
    )
    read_until(builder, b"built ", built_lines)
    builder.send_signal(signal.SIGKILL)
    builder.communicate(timeout=60)
    assert builder.returncode == -signal.SIGKILL
    assert contents(store).items() <= contents(built).items()
    labels, _ = rebuild(store, data)
    assert len(labels) <= 8 - built_lines
    assert contents(store) == contents(built)
    assert leftovers(store) == []


def test_what_a_killed_builder_left_half_done_is_not_mistaken_for_an_entry(tmp_path: Path, data: Path, built: Path):
    store = copy_of(built, tmp_path)
    for stage in ("bars", "streams", "windows"):
        entry = next((store / stage).iterdir())
        half = entry.rename(entry.with_name(f".{entry.name}.partial"))
        (half / "zarr.json").unlink()
        next(half.rglob("c.*")).write_bytes(b"half")
    labels, _ = rebuild(store, data)
    assert len(labels) == 3
    assert contents(store) == contents(built)
    assert leftovers(store) == []


@pytest.mark.parametrize("fault", ["truncated", "missing", "manifest"])
def test_a_build_remakes_what_is_damaged_and_nothing_else(tmp_path: Path, data: Path, built: Path, fault: str):
    store = copy_of(built, tmp_path)
    entry = next(p for p in (store / "streams").iterdir() if '"timeframe":"m5"' in (p / "zarr.json").read_text())
    body = entry / "values/c.0.0"
    if fault == "truncated":
        body.write_bytes(body.read_bytes()[:-1])
    elif fault == "missing":
        body.unlink()
    else:
        (entry / "zarr.json").write_text("{}")
    made, _ = rebuild(store, data)
    assert made == ["streams TEST m5"]
    assert contents(store) == contents(built)


def test_an_interrupted_build_says_so(tmp_path: Path):
    label = MONDAY + MINUTE * np.arange(3_000_000)
    ohlc = np.tile(random_ohlc(np.random.default_rng(0), 15_000), (200, 1))
    write_parquet(tmp_path / "simfx_m1.parquet", label, ohlc)
    builder = subprocess.Popen(
        command(tmp_path / "store", tmp_path),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=ROOT,
        # where the tests run in the background, the shell has them ignore Ctrl-C
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    read_until(builder, b"built ", 1)  # in the midst of it: more than half of the work is left
    builder.send_signal(signal.SIGINT)
    _, errors = builder.communicate(timeout=60)
    assert builder.returncode == 1
    assert re.search(
        r"error: interrupted; [1-7] of 8 entries to build are done and kept. Run the same command again to go on from "
        r"there\n$",
        errors.decode(),
    )
    assert leftovers(tmp_path / "store") == []
