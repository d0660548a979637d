import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from cache.reader import open_dataset, read_ref

COMMAND = Path(__file__).parents[2] / "bin/cache"


def cache(*arguments: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([COMMAND, *arguments], cwd=cwd, capture_output=True, text=True)


def output(*arguments: str | Path, cwd: Path) -> str:
    """What a command prints that succeeds and has nothing to complain of."""
    done = cache(*arguments, cwd=cwd)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def failure(*arguments: str | Path, cwd: Path, code: int = 1) -> str:
    done = cache(*arguments, cwd=cwd)
    assert (done.returncode, done.stdout) == (code, "")
    assert "Traceback" not in done.stderr
    return done.stderr


@pytest.fixture
def copied(test_store: Path, tmp_path: Path) -> Path:
    """A copy of the store that a test may damage."""
    return Path(shutil.copytree(test_store, tmp_path / "copied"))


def test_show_json(test_store: Path, tmp_path: Path):
    shown: dict[str, Any] = json.loads(output("show", "test", "--store", test_store, "--json", cwd=tmp_path))
    dataset = open_dataset(test_store, "test")
    entries = dataset.symbols["TEST"]
    assert shown == {
        "name": "test",
        "key": dataset.entry.key,
        "timeframes": ["m1", "m5", "m15"],
        "seq_len": {"m1": 32, "m5": 32, "m15": 32},
        "symbols": {
            "TEST": {
                "windows": str(entries.windows.path),
                "streams": {name: str(entry.path) for name, entry in entries.streams.items()},
            }
        },
        "splits": dataset.splits,
        "recipe": read_ref(test_store, "test")["recipe"],
    }
    assert list(shown["symbols"]["TEST"]["streams"]) == ["m1", "m5", "m15"]


def test_paths_are_absolute_wherever_the_command_runs(test_store: Path):
    from_above = json.loads(output("show", "test", "--json", cwd=test_store.parent))  # ./store is the default
    from_inside = json.loads(output("show", "test", "--store", ".", "--json", cwd=test_store))
    assert from_above == from_inside
    assert (Path(from_above["symbols"]["TEST"]["windows"]) / "zarr.json").is_file()


def test_show_for_people(test_store: Path, tmp_path: Path):
    shown = output("show", "test", "--store", test_store, cwd=tmp_path)
    dataset = open_dataset(test_store, "test")
    for words in (
        "returns: log_open, log_high, log_low, log_close, log_range, body_pct",
        "fitted on bars closed by 2024-01-31T11:25:00 UTC",
        "label left, timezone UTC, session None",
        "train       until 2024-01-31T11:25:00 UTC",
        "val         from 2024-01-31T11:25:00 UTC",
        "TEST: 29,568 windows",
        "23,568 windows, decided from 2024-01-08T06:00:00 UTC to 2024-01-31T11:25:00 UTC",
        "30,000",
        "bars of simfx_m1.parquet",
        "bars of m15 derived from m1",
        "by headstart 0.1.0",
        dataset.entry.manifest["built"]["at"],
        str(dataset.entry.path),
        *(str(entry.path) for entry in dataset.symbols["TEST"].streams.values()),
    ):
        assert words in shown, shown


def test_show_says_how_the_sources_were_understood(copied: Path, tmp_path: Path):
    for path in copied.glob("bars/*/zarr.json"):
        group = json.loads(path.read_bytes())
        if group["attributes"]["origin"] == "simfx_m1.parquet":
            group["attributes"]["remarks"] = ["times are read as integers in ms since 1970"]
            path.write_text(json.dumps(group))
    shown = output("show", "test", "--store", copied, cwd=tmp_path)
    assert "bars of simfx_m1.parquet; times are read as integers in ms since 1970" in shown
    shutil.rmtree(copied / "bars")
    assert "bars of" not in output("show", "test", "--store", copied, cwd=tmp_path)


def test_list(test_store: Path, tmp_path: Path):
    (one,) = json.loads(output("list", "--store", test_store, "--json", cwd=tmp_path))
    assert one == {
        "name": "test",
        "key": open_dataset(test_store, "test").entry.key,
        "timeframes": ["m1", "m5", "m15"],
        "windows": 29_568,
        "updated": read_ref(test_store, "test")["updated"],
    }
    header, row = output("list", "--store", test_store, cwd=tmp_path).splitlines()
    assert header.split() == ["name", "key", "timeframes", "windows", "updated"]
    assert row.split() == ["test", one["key"], "m1", "m5", "m15", "29,568", one["updated"]]


def test_list_of_a_store_without_datasets(copied: Path, tmp_path: Path):
    (copied / "refs/test.json").unlink()
    assert output("list", "--store", copied, cwd=tmp_path) == f"{copied}: no datasets yet\n"
    assert json.loads(output("list", "--store", copied, "--json", cwd=tmp_path)) == []


def test_stats(test_store: Path, tmp_path: Path):
    found = json.loads(output("stats", "--store", test_store, "--json", cwd=tmp_path))
    on_disk = sum(path.stat().st_size for path in test_store.glob("*/*/*/c/**/*") if path.is_file())
    assert found["store"] == str(test_store)
    assert {stage: amount["entries"] for stage, amount in found["stages"].items()} == {
        "bars": 3,
        "streams": 3,
        "windows": 1,
        "datasets": 1,
    }
    assert found["total"] == {"entries": 8, "bytes": on_disk}
    assert found["datasets"] == [
        {
            "name": "test",
            "key": open_dataset(test_store, "test").entry.key,
            "entries": 8,
            "bytes": on_disk,
            "shared_bytes": 0,
        }
    ]
    assert found["unreferenced"] == {"entries": 0, "bytes": 0}
    assert found["damaged"] == []
    rows = [line.split() for line in output("stats", "--store", test_store, cwd=tmp_path).splitlines()]
    for row in (
        ["stage", "entries", "MB"],
        ["bars", "3", "1.8"],
        ["total", "8", "4.0"],
        ["dataset", "entries", "MB", "shared", "MB"],
        ["test", "8", "4.0", "0.0"],
        ["(no", "dataset)", "0", "0.0"],
    ):
        assert row in rows


@pytest.mark.parametrize("arguments", [["stats"], ["list"], ["show", "test"]])
def test_a_missing_store(tmp_path: Path, arguments: list[str]):
    words = "no store here; --store says where it is, and bin/build-cache makes one"
    assert failure(*arguments, cwd=tmp_path) == f"\nerror: store: {words}\n"
    assert failure(*arguments, "--store", tmp_path, "--json", cwd=tmp_path) == f"\nerror: {tmp_path}: {words}\n"


def test_a_missing_dataset(test_store: Path, tmp_path: Path):
    assert failure("show", "demo", "--store", test_store, cwd=tmp_path) == (
        f"\nerror: {test_store}: no dataset named demo (there are: test)\n"
    )


def test_damage_is_named_and_what_is_intact_is_shown(copied: Path, tmp_path: Path):
    damaged = open_dataset(copied, "test").symbols["TEST"].streams["m5"].path
    (damaged / "zarr.json").write_text("{")
    words = f"\nerror: {damaged}: damaged, its zarr.json is not a manifest. Run bin/build-cache again to remake it; "
    assert failure("show", "test", "--store", copied, cwd=tmp_path).startswith(words)
    for command, check in (
        ("stats", lambda found: found["total"]["entries"] == 7 and len(found["damaged"]) == 1),
        ("list", lambda found: found == []),
    ):
        done = cache(command, "--store", copied, "--json", cwd=tmp_path)
        assert done.returncode == 1
        assert done.stderr.startswith(words)
        assert check(json.loads(done.stdout))


def test_a_traceback_is_there_for_those_who_ask(test_store: Path, tmp_path: Path):
    done = cache("show", "demo", "--store", test_store, "--debug", cwd=tmp_path)
    assert done.returncode == 1
    assert "Traceback" in done.stderr


@pytest.mark.parametrize("arguments", [["show"], ["stats", "extra"], ["list", "--nope"], ["unknown"], []])
def test_bad_usage(tmp_path: Path, arguments: list[str]):
    assert "Usage: bin/cache" in failure(*arguments, cwd=tmp_path, code=2)


@pytest.mark.parametrize("arguments", [["--help"], ["-h"], ["stats", "-h"], ["list", "--help"], ["show", "-h"]])
def test_help_ends_with_examples(tmp_path: Path, arguments: list[str]):
    shown = output(*arguments, cwd=tmp_path)
    assert shown.startswith("Usage: bin/cache")
    assert "Examples:\n    bin/cache " in shown
