"""Datasets of many symbols: what is left out, held out and pooled; read once, and built anywhere to the same bytes."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

from cache.reader import open_dataset
from cache.show import describe, show_lines
from cache.verify import check_content, check_metadata
from configs.errors import UserError
from pipeline import divide, ways
from pipeline.build import Outcome, build
from pipeline.build_command import main as build_cache
from pipeline.certify import certify_dataset
from pipeline.summary import summarise
from pipeline.ways import BARS
from tests.unit.pipeline.making import MINUTE, MONDAY, make_recipe, quiet, random_ohlc, write_parquet

ROOT = Path(__file__).parents[2]
NAMES = ("AAA", "BBB", "CCC", "DDD")
ROWS = 3000
OVERRIDES = ("source.files={m1: '{symbol}.parquet'}", "timeframes=[m1, m5]", "window.seq_len=16")
LEAVE_OUT = "universe.failing=leave_out"


def bars(seed: int, rows: int = ROWS, start: int = 0) -> tuple[np.ndarray, np.ndarray]:
    return MONDAY + MINUTE * (start + np.arange(rows)), random_ohlc(np.random.default_rng(seed), rows)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four symbols, a file each."""
    path = tmp_path_factory.mktemp("universe")
    for seed, name in enumerate(NAMES):
        write_parquet(path / f"{name}.parquet", *bars(seed))
    return path


def made(folder: Path, store: Path, *overrides: str, scheduler: str | None = None) -> Outcome:
    return build(make_recipe(*OVERRIDES, *overrides), folder, store, 2, quiet(), scheduler)


def contents(store: Path) -> dict[str, Any]:
    """All manifests but for when and by whom they were written."""
    found = {}
    for path in store.glob("*/[!.]*/zarr.json"):
        manifest = json.loads(path.read_bytes())["attributes"]
        found[str(path.parent.relative_to(store))] = {k: v for k, v in manifest.items() if k not in ("built", "md5")}
    return found


@pytest.fixture(scope="module")
def plain(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with the dataset of all four."""
    store = tmp_path_factory.mktemp("plain") / "store"
    made(folder, store)
    return store


def broken(folder: Path, tmp_path: Path) -> Path:
    """The four, CCC with a price that cannot be true, EEE with too few bars for a window, and FFF no table."""
    for path in folder.glob("*.parquet"):
        (tmp_path / path.name).symlink_to(path)
    (tmp_path / "CCC.parquet").unlink()
    times, ohlc = bars(2)
    ohlc[100, 1] = -1
    write_parquet(tmp_path / "CCC.parquet", times, ohlc)
    write_parquet(tmp_path / "EEE.parquet", *bars(5, 40))
    (tmp_path / "FFF.parquet").write_bytes(b"PAR1")
    return tmp_path


def test_all_symbols_that_fail_are_told_in_one_table(folder: Path, tmp_path: Path):
    source = broken(folder, tmp_path)
    with pytest.raises(UserError) as caught:
        made(source, tmp_path / "store")
    first, head, *rows, remedy = str(caught.value).splitlines()
    assert first == "3 of 6 symbols cannot be built:"
    assert head.split() == ["symbol", "why"]
    assert [row.split()[0] for row in rows] == ["CCC", "FFF", "EEE"] or sorted(r.split()[0] for r in rows) == [
        "CCC",
        "EEE",
        "FFF",
    ]
    assert "CCC.parquet: column high, row 100: -1.0 is not positive" in str(caught.value)
    assert "EEE has no windows left of 40 candidates" in str(caught.value)
    assert remedy.startswith("data.universe.failing=leave_out builds the dataset without such symbols, ")


def test_what_fails_is_left_out_by_name_and_counts_for_nothing(folder: Path, plain: Path, tmp_path: Path):
    source = broken(folder, tmp_path)
    outcome = made(source, tmp_path / "store", LEAVE_OUT)
    assert list(outcome.dataset.symbols) == ["AAA", "BBB", "DDD"]
    left_out = outcome.dataset.entry.manifest["left_out"]
    assert sorted(left_out) == ["CCC", "EEE", "FFF"]
    assert "row 100: -1.0 is not positive" in left_out["CCC"]
    shown = list(show_lines(outcome.dataset, tmp_path / "store", "", ""))
    assert [line for line in shown if "left out" in line] == [
        f"  left out    {n}: {why}" for n, why in left_out.items()
    ]
    assert describe(outcome.dataset, tmp_path / "store", "", "")["left_out"] == left_out
    wanted = made(folder, tmp_path / "wanted", "source.exclude=[CCC]").dataset
    for symbol, entries in outcome.dataset.symbols.items():
        assert {n: s.key for n, s in entries.streams.items()} == {
            n: s.key for n, s in wanted.symbols[symbol].streams.items()
        }
    assert outcome.dataset.entry.key != wanted.entry.key  # what was left out is part of what it is
    again = made(source, tmp_path / "store", LEAVE_OUT)
    assert (again.built, again.dataset.entry.key) == ([], outcome.dataset.entry.key)
    assert list((tmp_path / "store").glob("*/.*")) == []


def test_a_symbol_that_lacks_a_timeframe(folder: Path, tmp_path: Path):
    for name in NAMES:
        write_parquet(tmp_path / name / "m1.parquet", *bars(NAMES.index(name)))
        if name != "BBB":
            times, ohlc = bars(NAMES.index(name))
            of_five = np.stack(
                [ohlc[::5, 0], ohlc[:, 1].reshape(-1, 5).max(1), ohlc[:, 2].reshape(-1, 5).min(1), ohlc[4::5, 3]], 1
            )
            write_parquet(tmp_path / name / "m5.parquet", times[::5], of_five)
    files = "source.files={m1: '{symbol}/m1.parquet', m5: '{symbol}/m5.parquet'}"
    with pytest.raises(UserError) as caught:
        made(tmp_path, tmp_path / "store", files)
    assert "  BBB     BBB: data.source.files.m5 = {symbol}/m5.parquet holds nothing of it; " in str(caught.value)
    assert list(made(tmp_path, tmp_path / "store", files, LEAVE_OUT).dataset.symbols) == ["AAA", "CCC", "DDD"]


def test_nothing_is_left(tmp_path: Path):
    """Whether all are found to be of no use at once, or one after the other."""
    for name in ("A", "B"):
        write_parquet(tmp_path / f"{name}.parquet", *bars(ord(name), 40))
    for _ in range(2):
        with pytest.raises(UserError) as caught:
            made(tmp_path, tmp_path / "store", LEAVE_OUT)
        first, _, *rows, last = str(caught.value).splitlines()
        assert first == "none of the 2 symbols can be built:"
        assert sorted(row.split()[0] for row in rows) == ["A", "B"]
        assert last == "that leaves no dataset; correct some of them"
        (tmp_path / "B.parquet").unlink(missing_ok=True)
        (tmp_path / "B.parquet").symlink_to("nowhere")


IN_FOLDERS = "source.files={m1: '{symbol}/m1.parquet'}"


@pytest.fixture
def in_folders(folder: Path, tmp_path: Path) -> Path:
    """AAA to DDD, a folder each; three more whose files are found to be of no use before they are read."""
    for name in NAMES:
        (tmp_path / name).mkdir()
        (tmp_path / name / "m1.parquet").symlink_to(folder / f"{name}.parquet")
    (tmp_path / "EMPTY" / "m1.parquet").mkdir(parents=True)
    (tmp_path / "LINK").mkdir()
    (tmp_path / "LINK" / "m1.parquet").symlink_to("nowhere.parquet")
    (tmp_path / "TWICE" / "m1.parquet").mkdir(parents=True)
    for name in ("a.parquet", "b.parquet"):
        (tmp_path / "TWICE" / "m1.parquet" / name).symlink_to(folder / "AAA.parquet")
    return tmp_path


FAULTS = {
    "EMPTY": "EMPTY/m1.parquet: there is no *.parquet, *.csv, *.tsv, *.feather or *.arrow in this directory; put the "
    "files there, or remove the directory",
    "LINK": "LINK/m1.parquet: a symbolic link to nowhere.parquet, which does not exist; mend or remove it",
    "TWICE": "TWICE/m1.parquet/b.parquet: the same content as a.parquet; remove one of them",
}


def test_symbols_whose_files_are_of_no_use_are_left_out_by_name(in_folders: Path, folder: Path):
    store, console = in_folders / "store", quiet()
    recipe = make_recipe(*OVERRIDES, IN_FOLDERS, LEAVE_OUT)
    outcome = build(recipe, in_folders, store, 2, console)
    assert list(outcome.dataset.symbols) == list(NAMES)
    assert outcome.dataset.entry.manifest["left_out"] == {s: f"{in_folders}/{why}" for s, why in FAULTS.items()}
    printed = console.stream.getvalue()  # type: ignore[attr-defined]
    for symbol, why in FAULTS.items():
        assert f"\n  failed {symbol}: {in_folders}/{why}\n" in printed
    again = quiet()
    assert build(recipe, in_folders, store, 2, again).built == []
    assert "tried again" not in again.stream.getvalue()  # type: ignore[attr-defined]
    (in_folders / "LINK/m1.parquet").unlink()
    (in_folders / "LINK/m1.parquet").symlink_to(folder / "BBB.parquet")
    (in_folders / "TWICE/m1.parquet/a.parquet").unlink()
    mended = quiet()
    assert list(build(recipe, in_folders, store, 2, mended).dataset.symbols) == [*NAMES, "LINK", "TWICE"]
    told = mended.stream.getvalue()  # type: ignore[attr-defined]
    assert "TWICE/m1.parquet/b.parquet: new file" in told
    assert "renamed" not in told and "no longer there" not in told


def test_symbols_whose_files_are_of_no_use_are_an_error_that_names_them(in_folders: Path):
    with pytest.raises(UserError) as caught:
        made(in_folders, in_folders / "store", IN_FOLDERS)
    first, _, *rows, last = str(caught.value).splitlines()
    assert first == "3 of 7 symbols cannot be built:"
    assert [row.split() for row in rows] == [[s, *f"{in_folders}/{why}".split()] for s, why in FAULTS.items()]
    assert last == (
        "data.universe.failing=leave_out builds the dataset without such symbols, data.source.exclude without those "
        "that it names"
    )


@pytest.mark.parametrize("which", ["source.symbols=[AAA, BBB]", "source.exclude=[EMPTY, LINK, TWICE, CCC, DDD]"])
def test_the_files_of_symbols_not_asked_for_do_not_count(in_folders: Path, which: str):
    assert list(made(in_folders, in_folders / "store", IN_FOLDERS, which).dataset.symbols) == ["AAA", "BBB"]


def test_a_symbol_whose_files_go_while_others_are_built(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name in NAMES:
        write_parquet(tmp_path / name / "m1.parquet", *bars(NAMES.index(name)))
    honest = BARS.find_sources

    def then_gone(*arguments: Any) -> Any:
        found = honest(*arguments)
        shutil.rmtree(tmp_path / "BBB")
        return found

    monkeypatch.setattr(ways, "BARS", replace(BARS, find_sources=then_gone))
    dataset = made(tmp_path, tmp_path / "store", IN_FOLDERS, LEAVE_OUT).dataset
    why = f"{tmp_path}/BBB/m1.parquet: no such file any more; put it back, or run the command again without it"
    assert dataset.entry.manifest["left_out"] == {"BBB": why}


# --- hold-out, weights, pooled statistics


def test_symbols_held_out_never_train_and_have_a_part_of_their_own(folder: Path, plain: Path, tmp_path: Path):
    outcome = made(folder, tmp_path / "store", "universe.hold_out=[B*]", "universe.weights={'[CD]*': 2}")
    dataset = outcome.dataset
    whole = open_dataset(plain, "test")
    count = whole.symbols["BBB"].windows.shape("time")[0]
    parts = {part: bounds["windows"] for part, bounds in dataset.splits.items()}
    assert parts["train"]["BBB"] == [0, 0]
    assert parts["val"]["BBB"] == [count, count]
    assert parts["hold_out"]["BBB"] == whole.splits["val"]["windows"]["BBB"]
    assert dataset.splits["hold_out"]["from"] == dataset.splits["val"]["from"] == whole.splits["val"]["from"]
    for symbol in ("AAA", "CCC", "DDD"):
        for part in ("train", "val"):
            assert parts[part][symbol] == whole.splits[part]["windows"][symbol]
        assert parts["hold_out"][symbol] == [count, count]
    known = dataset.per_symbol
    assert dict(zip(known.names, known.weight.tolist(), strict=True)) == {"AAA": 1, "BBB": 1, "CCC": 2, "DDD": 2}
    assert known.windows[0] == count
    assert known.rows[0].tolist() == [one.shape("values")[0] for one in dataset.symbols["AAA"].streams.values()]
    told = {line.split()[0]: line.split()[1:] for line in summarise(outcome)}
    lines = [line.split() for line in show_lines(dataset, tmp_path / "store", "", "") if line]
    shown = {first: others for first, *others in lines}
    assert shown["symbol"][:5] == ["windows", "train", "val", "hold_out", "purged"]
    for symbol, entries in dataset.symbols.items():
        train, *after = (stop - start for start, stop in (ranges[symbol] for ranges in parts.values()))
        counts = [entries.streams["m1"].shape("values")[0], count, train, count - train - sum(after), sum(after)]
        assert told[symbol] == [f"{number:,}" for number in counts]
        assert shown[symbol][:5] == [f"{number:,}" for number in (count, train, *after, count - train - sum(after))]
    assert certify_dataset(dataset, tmp_path / "store", 50, 0)["passed"]


def test_pooled_statistics_are_those_of_all_bars_that_train(folder: Path, tmp_path: Path):
    overrides = ("features={set: price, statistics: pooled}", "universe.hold_out=[DDD]")
    dataset = made(folder, tmp_path / "store", *overrides).dataset
    until = dataset.splits["train"]["until"]
    closes = [
        stream.array("close")[np.asarray(stream.array("close_time")) <= until]
        for name in ("AAA", "BBB", "CCC")
        for stream in [dataset.symbols[name].streams["m1"]]
    ]
    together = np.concatenate(closes)
    for name in NAMES:
        stream = dataset.symbols[name].streams["m1"]
        moments = stream.manifest["statistics"]
        np.testing.assert_allclose(moments["mean"]["close"], together.mean(), rtol=1e-12)
        np.testing.assert_allclose(moments["std"]["close"], together.std(), rtol=1e-9)
        assert (moments["rows"], moments["until"]) == (len(together), until)
        scaled = stream.array("values")[:, 3] * moments["std"]["close"] + moments["mean"]["close"]
        np.testing.assert_allclose(scaled, stream.array("close"), rtol=1e-5)
    certificate = certify_dataset(dataset, tmp_path / "store", 50, 0)
    assert certificate["passed"], certificate


def test_a_symbol_that_begins_after_training_is_scaled_by_the_others(folder: Path, tmp_path: Path):
    overrides = ("features.statistics=pooled", "split={train_end: '2024-01-09'}")
    alone = made(folder, tmp_path / "store", *overrides).dataset
    for name in NAMES:
        (tmp_path / f"{name}.parquet").symlink_to(folder / f"{name}.parquet")
    write_parquet(tmp_path / "EEE.parquet", *bars(5, start=2000))
    dataset = made(tmp_path, tmp_path / "store", *overrides).dataset
    assert dataset.splits["train"]["windows"]["EEE"] == [0, 0]
    moments = [d.symbols[name].streams["m1"].manifest["statistics"] for d, name in ((alone, "AAA"), (dataset, "EEE"))]
    assert moments[0] == moments[1]
    assert certify_dataset(dataset, tmp_path / "store", 50, 0)["passed"]


def test_pooled_statistics_do_not_depend_on_names(folder: Path, tmp_path: Path):
    overrides = ("features.statistics=pooled",)
    one = made(folder, tmp_path / "store", *overrides).dataset
    for old, new in zip(NAMES, NAMES[::-1], strict=True):
        (tmp_path / f"{new}.parquet").symlink_to(folder / f"{old}.parquet")
    other = made(tmp_path, tmp_path / "store", *overrides).dataset
    assert one.entry.key != other.entry.key
    keys = [{s.key for e in d.symbols.values() for s in e.streams.values()} for d in (one, other)]
    assert keys[0] == keys[1]


def test_a_held_out_symbol_that_leaks_into_pooled_statistics_fails_the_certificate(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("pipeline.bars_plan.held_out", lambda recipe, symbols: [])
    with pytest.raises(UserError, match=r"statistics: .*fitted on other bars|stand on"):
        made(folder, tmp_path / "store", "features.statistics=pooled", "universe.hold_out=[DDD]")


# --- files of several symbols are read once


@pytest.fixture(scope="module")
def shared(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The four symbols interleaved in one file."""
    path = tmp_path_factory.mktemp("shared")
    frames = [pd.read_parquet(folder / f"{name}.parquet").assign(place=name[0], coin=name[1:]) for name in NAMES]
    frame = pd.concat(frames).sort_values("timestamp", kind="stable").reset_index(drop=True)
    frame["place"] = frame["place"].astype("category")
    frame.to_parquet(path / "all.parquet")
    frame.to_csv(path / "all.csv", index=False)
    return path


COLUMNS = "source.symbol_columns=[place, coin]"


@pytest.mark.parametrize("name", ["all.parquet", "all.csv"])
@pytest.mark.parametrize("held", [1 << 20, 5000])
def test_a_shared_file_is_read_once(
    shared: Path, plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, held: int
):
    opened: list[list[str]] = []
    honest = divide.open_table

    def counted(path: Path):
        table = honest(path)
        opened.append(table.names)
        return table

    monkeypatch.setattr(divide, "open_table", counted)
    monkeypatch.setattr(divide, "HELD_ROWS", held)
    monkeypatch.setattr("pipeline.bars.rows_of", None)  # which picks one symbol's rows out of all
    dataset = made(shared, tmp_path / "store", f"source.files={{m1: {name}}}", COLUMNS).dataset
    assert len(opened) == 1
    alone = open_dataset(plain, "test")
    assert [s.replace("-", "") for s in dataset.symbols] == list(alone.symbols)
    for one, other in zip(dataset.symbols.values(), alone.symbols.values(), strict=True):
        for array in ("ends", "time"):
            assert one.windows.manifest["arrays"][array]["md5"] == other.windows.manifest["arrays"][array]["md5"]
        for timeframe in one.streams:
            assert one.streams[timeframe].manifest["arrays"] == other.streams[timeframe].manifest["arrays"]
    assert list((tmp_path / "store").glob("*/.*")) == []


def test_faults_in_a_shared_file_are_those_of_reading_it_directly(shared: Path, tmp_path: Path):
    frame = pd.read_parquet(shared / "all.parquet")
    rows = frame.index[frame["coin"] == "BB"]
    frame.loc[rows[7], "high"] = 0.0
    frame.to_parquet(tmp_path / "all.parquet")
    overrides = ("source.files={m1: all.parquet}", COLUMNS)
    with pytest.raises(UserError) as alone:
        made(tmp_path, tmp_path / "one", *overrides, "source.symbols=[B-BB]")
    with pytest.raises(UserError) as together:
        made(tmp_path, tmp_path / "all", *overrides)
    assert f"column high, row {rows[7]:,}: 0.0 is not positive" in str(alone.value)
    assert f"  B-BB    {alone.value}\n" in str(together.value)


# --- Dask


@pytest.fixture(scope="module")
def by_dask(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    store = tmp_path_factory.mktemp("dask") / "store"
    words = [ROOT / "bin/build-cache", "--config", "configs/test.yaml", "--data-dir", folder, "--store", store]
    words += [f"data.{one}" for one in OVERRIDES] + ["--scheduler", "local", "--workers", "2"]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return store, done.stdout


def test_dask_threads_and_one_thread_make_the_same(
    by_dask: tuple[Path, str], folder: Path, plain: Path, tmp_path: Path
):
    store, printed = by_dask
    build(make_recipe(*OVERRIDES), folder, tmp_path / "serial", 1, quiet())
    assert contents(store) == contents(plain) == contents(tmp_path / "serial")
    assert "  Dask: 2 workers, dashboard http://127.0.0.1:" in printed
    assert "DDD done, " in printed
    assert check_content(check_metadata(store)) == ()


def test_the_faults_of_symbols_come_back_from_workers(folder: Path, tmp_path: Path):
    source = broken(folder, tmp_path)
    words = [ROOT / "bin/build-cache", "--config", "configs/test.yaml", "--data-dir", source]
    words += ["--store", tmp_path / "store", *(f"data.{one}" for one in (*OVERRIDES, LEAVE_OUT))]
    done = subprocess.run([*words, "--scheduler", "local", "--workers", "1"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "failed bars CCC m1 CCC.parquet: " in done.stdout
    threads = made(source, tmp_path / "threads", LEAVE_OUT)
    assert contents(tmp_path / "store") == contents(tmp_path / "threads")
    assert list(threads.dataset.entry.manifest["left_out"]) != []


def test_what_else_fails_in_a_worker_is_told_once(folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    (tmp_path / "streams").write_bytes(b"")
    with pytest.raises(NotADirectoryError):
        made(folder, tmp_path, scheduler="local")
    assert capfd.readouterr().err == ""


def test_a_scheduler_that_is_not_there():
    words = [ROOT / "bin/build-cache", "--config", "configs/test.yaml", "--scheduler", "nowhere:1"]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 1
    assert "error: --scheduler nowhere:1: no Dask scheduler there" in done.stderr
    assert "--scheduler local" in done.stderr
    assert "  connect to nowhere:1 " in done.stdout


@pytest.mark.parametrize("when", ["start Dask's workers", "dashboard"])
def test_an_interrupt_of_all_processes_is_one_line(folder: Path, tmp_path: Path, when: str):
    words = [ROOT / "bin/build-cache", "--config", "configs/test.yaml", "--data-dir", folder, "--store", tmp_path / "s"]
    words += [f"data.{one}" for one in OVERRIDES] + ["--scheduler", "local", "--workers", "2"]
    with (tmp_path / "out").open("wb") as out:
        builder = subprocess.Popen(words, stdout=out, stderr=subprocess.PIPE, text=True, start_new_session=True)
        began = time.monotonic()
        while when not in (tmp_path / "out").read_text():
            assert builder.poll() is None and time.monotonic() - began < 60
            time.sleep(0.01)
        os.killpg(builder.pid, signal.SIGINT)
        _, err = builder.communicate(timeout=60)
    assert builder.returncode == 1
    assert err.startswith("\nerror: interrupted; ")
    assert err.count("\n") == 2


def test_symbols_whose_names_would_be_the_same(tmp_path: Path):
    times, ohlc = bars(1)
    path = write_parquet(tmp_path / "all.parquet", times, ohlc)
    frame, first = pd.read_parquet(path), np.arange(len(times)) < 100
    frame.assign(venue=np.where(first, "a-b", "a"), coin=np.where(first, "c", "b-c")).to_parquet(path)
    recipe = make_recipe("source.files={m1: all.parquet}", "source.symbol_columns=[venue, coin]")
    with pytest.raises(UserError, match=r"all\.parquet: symbols in \['venue', 'coin'\] get the same name when joined"):
        build(recipe, tmp_path, tmp_path / "store", 2, quiet())


def test_without_dask(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    words = ["--config", "configs/test.yaml", "--data-dir", str(folder), "--store", str(tmp_path)]
    done = CliRunner().invoke(build_cache, [*words, "data.source.files={m1: AAA.parquet}", "--scheduler", "local"])
    assert done.exit_code == 1
    assert "error: --scheduler needs Dask, which is not there: run bin/install scale\n" in done.stderr


def children(pid: int) -> list[int]:
    """Processes below this one that run a Dask worker."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rsplit(")", 1)[1].split()
            if int(fields[1]) == pid:
                found += [int(path.parent.name), *children(int(path.parent.name))]
        except OSError:
            continue
    return found


def is_worker(pid: int) -> bool:
    try:
        return b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


def test_a_killed_worker_costs_its_own_work_only(tmp_path: Path):
    rows = 60_000
    for seed in range(8):
        write_parquet(tmp_path / f"S{seed}.parquet", *bars(seed, rows))
    store = tmp_path / "store"
    words = [ROOT / "bin/build-cache", "--config", "configs/test.yaml", "--data-dir", tmp_path, "--store", store]
    words += [f"data.{one}" for one in OVERRIDES] + ["--scheduler", "local", "--workers", "2"]
    builder = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    began = time.monotonic()
    while len(list(store.glob("bars/[!.]*"))) < 3:
        assert builder.poll() is None and time.monotonic() - began < 60
        time.sleep(0.002)
    kept = {path: path.stat().st_ino for path in store.glob("*/[!.]*/zarr.json")}
    workers = [pid for pid in children(builder.pid) if is_worker(pid)]
    assert len(workers) >= 2
    os.kill(workers[-1], signal.SIGKILL)
    _, err = builder.communicate(timeout=120)
    assert builder.returncode == 0, err
    assert {path: path.stat().st_ino for path in kept} == kept
    build(make_recipe(*OVERRIDES), tmp_path, tmp_path / "threads", 2, quiet())
    assert contents(store) == contents(tmp_path / "threads")
    assert check_content(check_metadata(store)) == ()
