import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cache.contents import entry_ids
from cache.entries import open_entry
from cache.keys import Components
from cache.layout import STAGES
from cache.reader import open_dataset
from cache.refs import read_ref
from cache.seal import canonical_json, sealed
from cache.uses import read_uses, record_use
from cache.writer import EntryWriter
from tests.unit.cache.making import change_manifest, flip, make, set_built

ROOT = Path(__file__).parents[2]
COMMAND = ROOT / "bin/cache"


def cache(*arguments: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([COMMAND, *arguments], cwd=cwd, capture_output=True, text=True)


def output(*arguments: str | Path, cwd: Path) -> str:
    """What a command prints that succeeds and has nothing to complain of but its progress."""
    done = cache(*arguments, cwd=cwd)
    assert (done.returncode, re.sub(r"(reading|removing): .*", "", done.stderr).strip()) == (0, "")
    return done.stdout


def failure(*arguments: str | Path, cwd: Path, code: int = 1) -> str:
    done = cache(*arguments, cwd=cwd)
    assert (done.returncode, done.stdout) == (code, "")
    assert "Traceback" not in done.stderr
    return done.stderr


CHECKS = ("warnings", "consistency", "certificate")


@pytest.fixture
def copied(test_store: Path, tmp_path: Path) -> Path:
    """A copy of the store that a test may damage."""
    return Path(shutil.copytree(test_store, tmp_path / "copied"))


def test_show_json(test_store: Path, tmp_path: Path):
    shown: dict[str, Any] = json.loads(output("show", "test", "--store", test_store, "--json", cwd=tmp_path))
    dataset = open_dataset(test_store, "test")
    entries, ref = dataset.symbols["TEST"], read_ref(test_store, "test")
    bars = shown["symbols"]["TEST"].pop("bars")
    assert shown == {
        "name": "test",
        "key": dataset.entry.key,
        "timeframes": ["m1", "m5", "m15"],
        "seq_len": {"m1": 32, "m5": 32, "m15": 32},
        "built": dataset.entry.manifest["built"],
        "updated": ref["updated"],
        "last_used": shown["last_used"],
        "data_dir": ref["data_dir"],
        "symbols": {
            "TEST": {
                "windows": str(entries.windows.path),
                "streams": {name: str(entry.path) for name, entry in entries.streams.items()},
                "counts": {"windows": 29_568, "train": 23_568, "val": 5_518, "purged": 482},
            }
        },
        "left_out": {},
        "splits": dataset.splits,
        "recipe": ref["recipe"],
        **{name: dataset.entry.manifest[name] for name in CHECKS if name in dataset.entry.manifest},
    }
    assert list(shown["symbols"]["TEST"]["streams"]) == ["m1", "m5", "m15"]
    assert [one["origin"] for one in bars] == ["simfx_m1.parquet", "m5 derived from m1", "m15 derived from m1"]
    assert all(set(one) == {"path", "origin", "recognised", "remarks", "repaired"} for one in bars)


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
    for path in copied.glob("bars/*"):
        if open_entry(copied, "bars", path.name).manifest["origin"] == "simfx_m1.parquet":
            change_manifest(
                path,
                lambda manifest: manifest.update(
                    remarks=["times are read as integers in ms since 1970"],
                    recognised={"time": "Date", "open": "o"},
                    repaired={"high": {"rows": 1234, "first_row": 5}, "duplicate": {"rows": 1, "first_row": 4321}},
                ),
            )
    lines = output("show", "test", "--store", copied, cwd=tmp_path).splitlines()
    at = lines.index("  bars of simfx_m1.parquet")
    assert lines[at + 1 : at + 6] == [
        "    recognised time: Date, open: o",
        "    repaired high: rows 1,234, first row 5",
        "    repaired duplicate: rows 1, first row 4,321",
        "    times are read as integers in ms since 1970",
        "  bars of m5 derived from m1",
    ]
    shutil.rmtree(copied / "bars")
    assert "bars of" not in output("show", "test", "--store", copied, cwd=tmp_path)


def test_show_says_what_was_checked(copied: Path, tmp_path: Path):
    found = {
        "warnings": ["the week does not reopen near Sunday 17:00 New York"],
        "consistency": {
            "TEST": {
                "m5": {"equal": 4990, "different": 10, "only_given": 0, "only_derived": 2},
                "m15": {"equal": 1500, "different": 0, "only_given": 0, "only_derived": 0},
            }
        },
        "certificate": {
            "passed": False,
            "checks": {
                "lookahead": {"passed": True, "checked": 1200, "detail": ""},
                "purge": {"passed": False, "checked": 3, "detail": "window 7 of TEST reaches into validation"},
            },
            "samples": 200,
            "seed": 7,
        },
    }
    for name in CHECKS:
        change_manifest(open_dataset(copied, "test").entry.path, lambda manifest, name=name: manifest.pop(name, None))
    shown = output("show", "test", "--store", copied, cwd=tmp_path)
    assert not any(name in shown for name in ("warning", "consistency", "certificate"))
    change_manifest(open_dataset(copied, "test").entry.path, lambda manifest: manifest.update(found))
    lines = output("show", "test", "--store", copied, cwd=tmp_path).splitlines()
    at = lines.index("  warning     the week does not reopen near Sunday 17:00 New York")
    assert lines[at + 1 : at + 6] == [
        "  consistency TEST m5: 4,990 given bars equal, 10 different, 2 only derived",
        "  consistency given bars are what the base makes of them: 1 of 2 timeframes",
        "  certificate FAILED, samples 200, seed 7",
        "    passed  lookahead: 1,200 checked",
        "    FAILED  purge: window 7 of TEST reaches into validation",
    ]
    shown = json.loads(output("show", "test", "--store", copied, "--json", cwd=tmp_path))
    assert {name: shown[name] for name in CHECKS} == found


@pytest.mark.parametrize("count", [20, 35])
def test_show_of_many_symbols_has_a_line_for_each_up_to_twenty(copied: Path, tmp_path: Path, count: int):
    symbols = [f"SYM{number:02}" for number in range(count)]

    dataset = open_dataset(copied, "test")
    inputs = dict.fromkeys(symbols, dataset.entry.manifest["components"]["inputs"]["TEST"])
    components = Components("datasets", 0, dataset.entry.manifest["components"]["fields"], inputs)
    with EntryWriter(copied, components) as entry:
        for spec, values in dataset.per_symbol.arrays():
            entry.array(spec).append(values.repeat(len(symbols), axis=0))
        made = ("format", "stage", "stage_version", "key", "components", "arrays", "built")
        entry.publish(**{name: value for name, value in dataset.entry.manifest.items() if name not in made})
    ref = {**read_ref(copied, "test"), "dataset": components.key}
    (copied / "refs/test.json").write_bytes(canonical_json(sealed(ref)))
    for path in copied.glob("bars/*"):
        repaired = {"high": {"rows": 2, "first_row": 77}}
        change_manifest(path, lambda manifest, new=repaired: manifest.update(repaired=new, remarks=["a remark"]))
    lines = output("show", "test", "--store", copied, cwd=tmp_path).splitlines()
    at = next(number for number, line in enumerate(lines) if line.startswith("symbol"))
    assert lines[at].split() == ["symbol", "windows", "train", "val", "purged", "first", "last", "repaired", "remarks"]
    of_each = ["29,568", "23,568", "5,518", "482", "2024-01-08", "2024-02-06", "high", "6", "3"]
    assert [line.split() for line in lines[at + 1 : -2]] == [[name, *of_each] for name in symbols[:20]]
    told = "; above, the 20 most repaired or with the fewest windows" if count > 20 else ""
    assert lines[-2:] == [
        f"{count} symbols with {count * 29_568:,} windows{told}",
        f"Each symbol, where its entries lie, and all remarks: bin/cache show test --json --store {copied}",
    ]
    assert max(map(len, lines[at:-1])) < 100
    shown = json.loads(output("show", "test", "--store", copied, "--json", cwd=tmp_path))
    assert list(shown["symbols"]) == symbols
    assert shown["symbols"][symbols[-1]]["bars"][0]["remarks"] == ["a remark"]


def test_list(copied: Path, tmp_path: Path):
    key = open_dataset(copied, "test").entry.key
    record_use(copied, "train", key, 5)
    (one,) = json.loads(output("list", "--store", copied, "--json", cwd=tmp_path))
    assert one == {
        "name": "test",
        "key": key,
        "timeframes": ["m1", "m5", "m15"],
        "windows": 29_568,
        "updated": read_ref(copied, "test")["updated"],
        "last_used": list(read_uses(copied))[-1].at,
    }
    header, row = output("list", "--store", copied, cwd=tmp_path).splitlines()
    assert header.split() == ["name", "key", "timeframes", "windows", "updated", "last", "used"]
    assert row.split() == ["test", one["key"], "m1", "m5", "m15", "29,568", one["updated"], "just", "now"]


def test_list_of_a_store_without_datasets(copied: Path, tmp_path: Path):
    (copied / "refs/test.json").unlink()
    assert output("list", "--store", copied, cwd=tmp_path) == f"{copied}: no datasets yet\n"
    assert json.loads(output("list", "--store", copied, "--json", cwd=tmp_path)) == []


def test_stats(copied: Path, tmp_path: Path):
    key = open_dataset(copied, "test").entry.key
    (copied / "uses.jsonl").unlink(missing_ok=True)
    for saved in (1.25, 1000):
        record_use(copied, "train", key, saved)
    found = json.loads(output("stats", "--store", copied, "--json", cwd=tmp_path))
    on_disk = sum(path.stat().st_size for path in copied.glob("*/*/*/c.*"))
    assert found["store"] == str(copied)
    assert {stage: amount["entries"] for stage, amount in found["stages"].items()} == {
        **dict.fromkeys(STAGES, 0),
        "bars": 3,
        "streams": 3,
        "windows": 1,
        "datasets": 1,
    }
    entry = open_dataset(copied, "test").entry
    built = entry.manifest["built"]["at"]
    assert found["stages"]["datasets"] == {"entries": 1, "bytes": entry.bytes, "oldest": built, "newest": built}
    assert found["total"] == {"entries": 8, "bytes": on_disk}
    assert found["datasets"] == [
        {
            "name": "test",
            "key": key,
            "entries": 8,
            "bytes": on_disk,
            "shared_bytes": 0,
            "built": built,
            "last_used": list(read_uses(copied))[-1].at,
            "saved_seconds": 1001.25,
        }
    ]
    assert found["unreferenced"] == found["abandoned"] == {"entries": 0, "bytes": 0}
    assert found["saved_seconds"] == 1001.25
    assert found["damaged"] == []
    for path in copied.glob("*/*/zarr.json"):
        set_built(path.parent, "2020-01-01T00:00:00+00:00")
    lines = output("stats", "--store", copied, cwd=tmp_path).splitlines()
    rows = [re.sub(r"  +", "|", line) for line in lines]
    age = next(row for row in rows if row.startswith("bars|")).split("|")[-1]
    assert re.fullmatch(r"\d+ y ago", age)
    for row in (
        "stage|entries|MB|oldest|newest",
        f"bars|3|1.8|{age}|{age}",
        "total|8|4.0",
        "dataset|entries|MB|shared MB|built|last used|saved s",
        f"test|8|4.0|0.0|{age}|just now|1,001.2",
        "(no dataset)|0|0.0",
        "1,001.2 in the whole store so far.",
    ):
        assert row in rows, rows


def test_stats_tell_of_what_can_be_removed(copied: Path, tmp_path: Path):
    (copied / "refs/test.json").unlink()
    left = copied / "bars" / f".{'0' * 32}.partial"
    left.mkdir()
    (left / "half").write_bytes(bytes(3_000_000))
    rows = [re.sub(r"  +", "|", line) for line in output("stats", "--store", copied, cwd=tmp_path).splitlines()]
    assert "(no dataset)|8|4.0" in rows
    assert "(abandoned)|1|3.0" in rows
    assert rows[-1] == "bin/cache prune --unreferenced"


def test_verify(test_store: Path, tmp_path: Path):
    size = json.loads(output("stats", "--store", test_store, "--json", cwd=tmp_path))["total"]["bytes"]
    for arguments in ([], ["test"]):
        told = "8 entries (bars 3, streams 3, windows 1, datasets 1), 4.0 MB: all intact\n"
        assert output("verify", *arguments, "--store", test_store, cwd=tmp_path) == told
        assert json.loads(output("verify", *arguments, "--store", test_store, "--json", cwd=tmp_path)) == {
            "store": str(test_store),
            "entries": 8,
            "bytes": size,
            "findings": [],
            "dropped": [],
        }


@pytest.fixture
def damaged(copied: Path) -> tuple[Path, Path]:
    """A store with a flipped bit in the m5 stream, and the file that has it."""
    file = open_dataset(copied, "test").symbols["TEST"].streams["m5"].path / "values/c.0.0"
    flip(file, 12_345)
    return copied, file


def test_verify_names_file_and_remedy(damaged: tuple[Path, Path], tmp_path: Path):
    store, file = damaged
    remedy = "bin/cache verify --repair removes the entry, and the next bin/build-cache makes it again"
    what = "its rows have changed since they were written"
    for arguments in ([], ["test"]):
        done = cache("verify", *arguments, "--store", store, cwd=tmp_path)
        assert (done.returncode, done.stdout) == (1, "")
        intact = "intact: bars 3 of 3, streams 2 of 3, windows 1 of 1, datasets 1 of 1"
        assert done.stderr.endswith(
            f"\nerror: 1 fault in 8 entries; {intact}\n{file} (TEST m5): {what}; {remedy}\n"
            f"Commands for this store end with --store {store}\n"
        )
    done = cache("verify", "--json", "--store", store, cwd=tmp_path)
    assert done.returncode == 1
    assert json.loads(done.stdout)["findings"] == [{"file": str(file), "of": "TEST m5", "what": what, "remedy": remedy}]
    assert file.exists()


def test_verify_repairs(damaged: tuple[Path, Path], tmp_path: Path):
    store, file = damaged
    entry, data_dir = file.parents[1], read_ref(store, "test")["data_dir"]
    done = cache("verify", "--repair", "--store", store, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stdout.splitlines() == [
        "Removed:",
        f"  {entry}",
        "Build again, each with the configuration that it was built with; only what is missing is made:",
        f"  bin/build-cache --config CONFIG.yaml --data-dir {data_dir} --store {store}    # test",
    ]
    assert not entry.exists()
    build = [ROOT / "bin/build-cache", "--config", "configs/test.yaml", "--data-dir", data_dir, "--store", store]
    built = subprocess.run([*build, "--json"], cwd=ROOT, check=True, capture_output=True, text=True)
    assert json.loads(built.stdout)["built"] == ["streams TEST m5"]
    assert output("verify", "--store", store, cwd=tmp_path).endswith("all intact\n")


def test_verify_repairs_what_a_reader_never_misses(copied: Path, tmp_path: Path):
    (memo,) = (copied / "sources").iterdir()
    memo.write_bytes(b"")
    done = cache("verify", "--repair", "--json", "--store", copied, cwd=tmp_path)
    assert (done.returncode, json.loads(done.stdout)["dropped"]) == (1, [str(memo)])
    assert output("verify", "--store", copied, cwd=tmp_path).endswith("all intact\n")


HOLDER = """
import sys
from pathlib import Path
from cache.locks import building

with building(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.readline()
"""


@pytest.mark.parametrize("arguments", [["verify", "--repair"], ["prune", "--unreferenced", "--yes"]])
def test_nothing_is_removed_while_a_build_runs(damaged: tuple[Path, Path], tmp_path: Path, arguments: list[str]):
    store, file = damaged
    (store / "refs/test.json").unlink()
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, store],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    ) as builder:
        assert builder.stdout is not None
        assert builder.stdout.readline() == "held\n"
        assert failure(*arguments, "--store", store, cwd=tmp_path) == (
            f"\nerror: {store}: in use: something is being built, imported or verified there. "
            "Nothing is removed meanwhile; try again after it\n"
        )
        assert "1 fault" in cache("verify", "--store", store, cwd=tmp_path).stderr  # looking is allowed
        assert "bars/" in output("prune", "--unreferenced", "--store", store, cwd=tmp_path)
        builder.communicate("go on\n", timeout=20)
    assert file.exists()


def test_prune_shows_and_then_removes(copied: Path, tmp_path: Path):
    kept = set(entry_ids(copied))
    lone = make(copied, "bars", "lone", {}, 1_000_000)
    set_built(copied / "bars" / lone, "2020-01-01T00:00:00+00:00")
    shown = output("prune", "--unreferenced", "--store", copied, cwd=tmp_path).splitlines()
    assert shown[0].split() == ["path", "MB", "last", "used", "why"]
    assert re.fullmatch(rf"bars/{lone} +8\.4 +\d+ y ago +no dataset needs it", shown[1])
    assert re.fullmatch(r"Would be removed: \d items?, 8\.4 MB; 4\.1 MB in entries would stay", shown[-2])
    assert shown[-1] == "Nothing has been removed yet: --yes does it"
    assert set(entry_ids(copied)) > kept
    planned = json.loads(output("prune", "--unreferenced", "--json", "--store", copied, cwd=tmp_path))
    assert planned["removed"] is False
    assert planned["removals"][0]["path"] == str(copied / "bars" / lone)
    assert planned["removals"][0]["last_used"] == "2020-01-01T00:00:00+00:00"
    done = output("prune", "--unreferenced", "--yes", "--store", copied, cwd=tmp_path).splitlines()
    assert re.fullmatch(r"Removed: \d items?, 8\.4 MB; 4\.1 MB in entries stay", done[-1])
    assert set(entry_ids(copied)) == kept
    assert output("verify", "--store", copied, cwd=tmp_path).endswith("all intact\n")
    assert output("prune", "--unreferenced", "--store", copied, cwd=tmp_path) == (
        "Nothing to remove; 4.1 MB in entries stay\n"
    )


def test_prune_by_age_and_size(copied: Path, tmp_path: Path):
    lone = make(copied, "bars", "lone", {}, 1_000_000)
    for arguments in (["--older-than", "1h"], ["--max-size", "20MB"], ["--max-size", "1TiB", "--older-than", "8w"]):
        assert "Nothing to remove" in output("prune", *arguments, "--store", copied, cwd=tmp_path)
    for arguments in (["--older-than", "0s"], ["--max-size", "10MB"]):
        assert f"bars/{lone}" in output("prune", *arguments, "--store", copied, cwd=tmp_path)


def test_a_store_that_cannot_be_made_small_enough(copied: Path, tmp_path: Path):
    done = cache("prune", "--max-size", "1MB", "--yes", "--store", copied, cwd=tmp_path)
    assert done.returncode == 1
    first, header, row = done.stderr[done.stderr.index("error: ") :].splitlines()
    assert re.fullmatch(
        rf"error: {copied}: 4\.1 MB stay, 3\.1 MB too many, because datasets need them\. To let one go, delete "
        rf"{copied}/refs/NAME\.json and prune again:",
        first,
    )
    assert re.split(r"  +", header.strip()) == ["dataset", "needed by it alone", "last used"]
    assert re.split(r"  +", row.strip())[:2] == ["test", "4.0 MB"]
    assert len(list(entry_ids(copied))) == 8


def test_prune_stops_at_a_damaged_ref(copied: Path, tmp_path: Path):
    path = copied / "refs/test.json"
    flip(path, 100)
    assert failure("prune", "--unreferenced", "--yes", "--store", copied, cwd=tmp_path) == (
        f"\nerror: {path}: damaged, it is not as it was written. Run bin/build-cache again to remake it; nothing "
        "else is lost.\nNothing is removed while it is unknown what that dataset needs. Build it again, or let it go: "
        f"delete {path}\n"
    )
    assert len(list(entry_ids(copied))) == 8


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "say what may go: --unreferenced, --older-than AGE, --max-size SIZE, or several of them"),
        (["--yes"], "say what may go"),
        (["--older-than", "soon"], "'soon' is not a duration; write for example 0s, 90s, 200min, 4h, 1d or 2w"),
        (["--max-size", "10"], "'10' is not a size; write for example 500MB, 10GB, 1.5TB or 10GiB"),
    ],
)
def test_bad_usage_of_prune(test_store: Path, tmp_path: Path, arguments: list[str], words: str):
    assert words in failure("prune", *arguments, "--store", test_store, cwd=tmp_path, code=2)


def test_training_records_its_use(copied: Path, tmp_path: Path):
    (copied / "uses.jsonl").unlink(missing_ok=True)
    train = [ROOT / "bin/train", "--config", ROOT / "configs/test.yaml", "--store", copied, "--fast-dev-run"]
    subprocess.run([*train, "--run", tmp_path / "run"], cwd=tmp_path, check=True, capture_output=True, timeout=120)
    dataset = open_dataset(copied, "test")
    entries = dataset.symbols["TEST"]
    built = [entry.manifest["built"]["seconds"] for entry in (entries.windows, *entries.streams.values())]
    (use,) = read_uses(copied)
    assert (use.by, use.dataset, use.saved) == ("train", dataset.entry.key, round(sum(built), 3))
    assert use.saved > 0


def test_training_on_overwritten_windows_ends_in_words(copied: Path, tmp_path: Path):
    file = open_dataset(copied, "test").symbols["TEST"].windows.path / "ends/c.0.0"
    file.write_bytes(b"\x7f" * file.stat().st_size)
    train = [ROOT / "bin/train", "--config", ROOT / "configs/test.yaml", "--store", copied, "--fast-dev-run"]
    done = subprocess.run(
        [*train, "--run", tmp_path / "run"], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 1
    assert f"error: {file}: damaged, its windows end at bars " in done.stderr
    assert "bin/cache verify --repair" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "arguments",
    [["stats"], ["list"], ["show", "test"], ["verify"], ["verify", "test"], ["prune", "--unreferenced"]],
)
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


@pytest.mark.parametrize(
    "arguments", [["show"], ["stats", "extra"], ["list", "--nope"], ["unknown"], [], ["verify", "a", "b"]]
)
def test_bad_usage(tmp_path: Path, arguments: list[str]):
    assert "Usage: bin/cache" in failure(*arguments, cwd=tmp_path, code=2)


@pytest.mark.parametrize(
    "arguments", [["--help"], *([name, "-h"] for name in ("stats", "list", "show", "verify", "prune"))]
)
def test_help_ends_with_examples(tmp_path: Path, arguments: list[str]):
    shown = output(*arguments, cwd=tmp_path)
    assert shown.startswith("Usage: bin/cache")
    assert "Examples:\n    bin/cache " in shown


# Streams that are closed, full, or no longer read; and impatience


def shell(line: str, **variables: str | Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, **{name: str(value) for name, value in variables.items()}}
    return subprocess.run(["bash", "-c", line], env=environment, cwd=ROOT, capture_output=True, text=True, timeout=60)


BUILD = "bin/build-cache --config configs/test.yaml --data-dir $DATA --store $STORE --workers 2"


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-", "<&-", "<&- >&- 2>&-"])
def test_closed_streams(test_store: Path, simulated_dir: Path, tmp_path: Path, closed: str):
    words = {"STORE": test_store}
    for command in ("list", "stats", "show test", "verify", "certify test --samples 5", "prune --unreferenced"):
        done = shell(f"bin/cache {command} --store $STORE {closed}", **words)
        assert (done.returncode, re.sub("reading: .*", "", done.stderr).strip()) == (0, ""), command
        assert (done.stdout == "") == (">&-" in re.sub("2>&-", "", closed))
    failed = shell(f"bin/cache show none --store $STORE {closed}", **words)
    assert (failed.returncode, "Traceback" in failed.stderr) == (1, False)
    built = shell(f"{BUILD} {closed}", DATA=simulated_dir, STORE=tmp_path / "store")
    assert (built.returncode, built.stderr) == (0, "")
    assert output("verify", "--store", tmp_path / "store", cwd=tmp_path).startswith("8 entries")


def test_long_work_goes_on_when_nobody_reads(test_store: Path, simulated_dir: Path, tmp_path: Path):
    for line in (
        BUILD,
        "bin/cache certify test --samples 20 --store $TEST",
        "bin/cache export test $TAR --store $TEST",
    ):
        done = shell(
            f"{line} | head -1; echo ${{PIPESTATUS[0]}}",
            DATA=simulated_dir,
            STORE=tmp_path / "store",
            TEST=test_store,
            TAR=tmp_path / "test.tar",
        )
        assert (done.stdout.splitlines()[-1], done.stderr) == ("0", "")
    assert output("verify", "--store", tmp_path / "store", cwd=tmp_path).startswith("8 entries")
    assert (tmp_path / "test.tar").exists()


@pytest.mark.parametrize("command", ["list", "stats", "show test", "list --json", "--help", "show --help"])
def test_a_listing_that_nobody_reads_ends_quietly(test_store: Path, command: str):
    store = "" if "help" in command else "--store $STORE"
    done = shell(f"bin/cache {command} {store} | true; echo ${{PIPESTATUS[0]}}", STORE=test_store)
    assert done.stdout in ("0\n", "141\n", "1\n" if "help" in command else "")
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("bin/cache list --store $STORE", "no space left on device; free some and run the command again"),
        ("bin/cache certify test --store $STORE", "standard output: no space left on device"),
        (BUILD, "standard output: no space left on device"),
    ],
)
def test_a_full_output_keeps_nothing(test_store: Path, simulated_dir: Path, line: str, words: str):
    done = shell(f"{line} > /dev/full", STORE=test_store, DATA=simulated_dir)
    assert (done.returncode, done.stderr) == (1, f"\nerror: {words}\n")


@pytest.mark.parametrize("command", ["cache list", "build-cache", "simulate", "resample"])
def test_ctrl_c_while_a_command_is_loaded(tmp_path: Path, command: str):
    (tmp_path / "click.py").write_text("import time\nprint('loading', flush=True)\ntime.sleep(30)\n")
    name, *words = command.split()
    process = subprocess.Popen(
        [ROOT / "bin" / name, *words],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "loading\n"
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=10)[1] == "\nerror: interrupted\n"
    assert process.returncode == 1


# Folders that are no store


def test_other_folders_are_no_stores_and_stay_as_they_are(tmp_path: Path):
    """A folder of bars, or a git repository, has names that a store has, too."""
    for name in ("bars/eurusd.parquet", "datasets/one.csv", "refs/heads/main", "sources/x.txt"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text("somebody's")
    before = set(tmp_path.rglob("*"))
    for arguments in (
        ["list"],
        ["stats"],
        ["verify"],
        ["verify", "--repair"],
        ["prune", "--unreferenced", "--yes"],
        ["certify", "x", "--repair"],
    ):
        words = failure(*arguments, "--store", tmp_path, cwd=tmp_path)
        assert words == f"\nerror: {tmp_path}: no store here; --store says where it is, and bin/build-cache makes one\n"
    assert set(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("kind", ["file", "dangling link"])
def test_a_store_that_cannot_be_a_folder(simulated_dir: Path, tmp_path: Path, kind: str):
    store = tmp_path / "here"
    if kind == "file":
        store.write_text("notes")
    else:
        store.symlink_to("elsewhere")
    what = "a file, not a folder" if kind == "file" else "a link to elsewhere, which is not there"
    of_build = ["--config", "configs/test.yaml", "--data-dir", simulated_dir]
    for words in (
        ["bin/build-cache", *of_build],
        ["bin/cache", "explain", *of_build],
        ["bin/cache", "list"],
        ["bin/cache", "stats"],
        ["bin/cache", "verify"],
        ["bin/cache", "prune", "--unreferenced"],
        ["bin/cache", "show", "test"],
        ["bin/cache", "certify", "test"],
        ["bin/cache", "export", "test", tmp_path / "x.tar"],
    ):
        done = subprocess.run([*words, "--store", store], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 1
        assert done.stderr.endswith(f"error: {store}: {what}; --store says where the store is\n"), done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["here"]


def test_a_repaired_name_is_to_be_made_before_the_next_prune(copied: Path, tmp_path: Path):
    flip(copied / "refs/test.json", 100)
    done = cache("verify", "--repair", "--store", copied, cwd=tmp_path)
    assert done.stdout.splitlines() == [
        "Removed:",
        f"  {copied}/refs/test.json",
        "A dataset whose name was removed gets it back from bin/build-cache with its configuration, or when its "
        "archive is imported again.",
        "Its entries count as unreferenced until then: do that before bin/cache prune.",
    ]
    assert "Its entries count as unreferenced until then: do that before bin/cache prune\n" in done.stderr


def test_a_repaired_import_may_be_imported_again(copied: Path, tmp_path: Path):
    tar, store = tmp_path / "test.tar", tmp_path / "imported"
    assert cache("export", "test", tar, "--store", copied, cwd=tmp_path).returncode == 0
    assert cache("import", tar, "--store", store, cwd=tmp_path).returncode == 0
    flip(open_dataset(store, "test").symbols["TEST"].streams["m5"].path / "values/c.0.0", 12_345)
    done = cache("verify", "--repair", "--store", store, cwd=tmp_path)
    assert done.stdout.splitlines()[-1] == (
        "What was imported comes back, too, when its archive is imported again: bin/cache import FILE.tar"
    )
    assert "1 of 8 entries unpacked" in cache("import", tar, "--store", store, cwd=tmp_path).stdout
    assert output("verify", "--store", store, cwd=tmp_path).endswith("all intact\n")
