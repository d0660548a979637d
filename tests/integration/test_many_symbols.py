"""What the commands say of a dataset of many symbols: all that matters, within one screen."""

import json
import re
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from cache.contents import built_at, closure, last_uses, open_entries, read_diary
from cache.reader import Dataset, open_dataset
from cache.verify import check_metadata
from pipeline.build import build
from pipeline.cache_command import main
from pipeline.simulate import simulate_bars
from pipeline.summary import summarise
from tests.unit.cache.making import flip
from tests.unit.pipeline.making import make_recipe, quiet

SYMBOLS = [f"S{number:02}" for number in range(24)]
OVERRIDES = (
    "source.files={m1: '{symbol}.parquet'}",
    "window.seq_len=4",
    "features.statistics=pooled",
    "universe.failing=leave_out",
)
ENTRIES = 24 * (3 + 3 + 3 + 1) + 3 + 1 + 1  # bars, statistics, streams, windows · pooled · split · dataset
SCREEN = 45


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("many")
    for seed, name in enumerate(SYMBOLS):
        simulate_bars(folder / f"{name}.parquet", 1_000, seed, lambda written: None)
    build(make_recipe(*OVERRIDES), folder, folder / "store", 2, quiet())
    return folder


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    """Bars of 24 symbols and a store with their dataset, to be changed."""
    return shutil.copytree(original, tmp_path / "many", copy_function=shutil.copy2)


@pytest.fixture
def dataset(folder: Path) -> Dataset:
    return open_dataset(folder / "store", "test")


def test_a_build_tells_of_those_with_the_fewest_windows(folder: Path):
    simulate_bars(folder / "S07.parquet", 900, 7, lambda written: None)
    outcome = build(make_recipe(*OVERRIDES), folder, folder / "store", 2, quiet())
    lines = list(summarise(outcome))
    at = next(number for number, line in enumerate(lines) if line.split()[0] == "symbol")
    counts = outcome.dataset.per_symbol
    fewest = [counts.names[k] for k in np.argsort(counts.windows, kind="stable")[:20]]
    assert fewest[0] == "S07"
    assert [line.split()[0] for line in lines[at + 1 : at + 21]] == fewest
    assert lines[at + 21].split()[:4] == ["all", "24", f"{counts.rows[:, 0].sum():,}", f"{counts.windows.sum():,}"]
    show = f"bin/cache show test --json --store {folder / 'store'}"
    assert lines[at + 22] == f"  above, the 20 with the fewest windows; all of them: {show}"


def cache(*words: str | Path) -> Result:
    return CliRunner().invoke(main, [str(word) for word in words])


def explained(folder: Path, *overrides: str) -> list[str]:
    words = [f"data.{one}" for one in (*OVERRIDES, *overrides)]
    done = cache("explain", "--config", "configs/test.yaml", "--data-dir", folder, "--store", folder / "store", *words)
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    assert len(lines) <= SCREEN
    return lines


def after(lines: list[str], head: str) -> list[str]:
    """The lines below one, up to an empty one."""
    rest = lines[lines.index(head) + 1 :]
    return rest[: rest.index("")] if "" in rest else rest


def simulated(folder: Path, name: str, seed: int) -> None:
    (folder / f"{name}.parquet").unlink(missing_ok=True)
    simulate_bars(folder / f"{name}.parquet", 1_000, seed, lambda written: None)


WHY = "To build, and why, against the nearest entries there are:"


def test_nothing_is_to_be_built(original: Path):
    lines = explained(original)
    assert lines[0] == f"test: {ENTRIES} of {ENTRIES} entries are in the store, 0 to build"
    assert after(lines, "Source files, against the last build under this name:") == ["  unchanged: 24 of 24"]
    assert [line.split() for line in after(lines, "stage       in the store  to build")] == [
        ["bars", "72", "0"],
        ["splits", "1", "0"],
        ["statistics", "75", "0"],
        ["streams", "72", "0"],
        ["windows", "24", "0"],
        ["datasets", "1", "0"],
    ]
    assert WHY not in lines
    assert lines[-1] == "Every entry, its key and what it was compared with: the same command with --json"


def test_a_field_of_the_recipe_is_one_cause(original: Path):
    lines = explained(original, "window.stride=2", "window.min_coverage=0.5")
    assert lines[0].endswith("25 to build")
    assert after(lines, WHY) == [
        "  build         24 windows of S00, S01, S02 and 21 more",
        "                  data.window.stride 1 → 2; data.window.min_coverage 0.0 → 0.5",
        "  build         1 datasets of test",
        "                  S00, S01, S02 and 21 more have other entries: windows",
    ]


def test_files_that_changed_are_named_and_what_follows_is_counted(folder: Path):
    for number in range(12):
        simulated(folder, SYMBOLS[number], 50 + number)
    lines = explained(folder, "split.train_end='2024-01-08T12:00'")
    files = after(lines, "Source files, against the last build under this name:")
    assert files[:2] == ["  unchanged: 12 of 24", "  m1   S00.parquet: content changed"]
    assert files[-1] == "  … and 8 more"
    told = after(lines, WHY)
    assert told[:2] == [
        "  stale source  12 bars of S00, S01, S02 and 9 more",
        "                  the content of the source file changed",
    ]
    assert told[2:4] == ["  stale source  24 bars of S00, S01, S02 and 9 more", "                  other bars"]


def test_what_is_gone_since_the_last_build(folder: Path, dataset: Dataset):
    for symbol in ("S03", "S05"):
        shutil.rmtree(dataset.symbols[symbol].windows.path)
    told = after(explained(folder), WHY)
    assert told[:2] == [
        "  build         2 windows of S03, S05",
        "                  the last build under this name had it, and it is gone",
    ]
    told = after(explained(folder, "source.exclude=[S11]"), WHY)  # windows of others are the same
    at = told.index("  build         2 windows of S03, S05")
    assert told[at + 1] == "                  the last build under this name had it, and it is gone"
    assert told[-1].startswith("                  symbols removed: S11; ")


def test_an_empty_store_and_one_that_cannot_be_read(folder: Path):
    for path in (folder / "store").glob("*/*/zarr.json"):
        path.write_text("{}")
    unread = [line.strip() for line in explained(folder)]
    assert "the last build under this name had it, and it cannot be read: bin/cache verify says why" in unread
    shutil.rmtree(folder / "store/refs")
    assert "the store holds no bars that can be read: bin/cache verify says why" in map(str.strip, explained(folder))
    shutil.rmtree(folder / "store")
    lines = explained(folder)
    assert "                  the store holds no streams yet" in lines
    assert len(after(lines, WHY)) == 2 * 6


def test_symbols_left_out_are_not_counted_again(folder: Path):
    for number in range(12):
        (folder / f"X{number:02}.parquet").write_bytes(b"PAR1" + bytes([number]))
    build(make_recipe(*OVERRIDES), folder, folder / "store", 2, quiet())
    lines = explained(folder)
    assert lines[0].endswith(" 0 to build")
    left_out = after(lines, "Left out, as far as is known before the build:")
    assert left_out[1].split()[0] == "X00"
    assert left_out[-1] == "  … and 4 more"
    assert len(left_out) == 10
    console = quiet()
    build(make_recipe(*OVERRIDES, "window.stride=2"), folder, folder / "store", 2, console)
    opening = console.stream.getvalue().partition("failed")[0]  # type: ignore[attr-defined]
    assert f"  {ENTRIES - 25} of {ENTRIES} entries are in the store; to build:\n    windows S" in opening
    assert "  tried again, because the last build left out: X00, X01, X02 and 9 more\n" in opening
    shown = cache("show", "test", "--store", folder / "store").stdout
    assert shown.count("  left out    X") == 12


def test_stats_and_an_intact_store(original: Path):
    told = cache("stats", "--store", original / "store").stdout.splitlines()
    assert len(told) <= SCREEN
    rows = {line.split()[0]: line.split()[1] for line in told[3:13] if line}
    assert (rows["bars"], rows["streams"], rows["total"]) == ("72", "72", str(ENTRIES))
    done = cache("verify", "--store", original / "store")
    counts = "bars 72, splits 1, statistics 75, streams 72, windows 24, datasets 1"
    assert done.stdout.startswith(f"{ENTRIES} entries ({counts}), ")
    assert done.stdout.endswith(" MB: all intact\n")


def damaged(dataset: Dataset, count: int) -> Iterator[Path]:
    for symbol in SYMBOLS[:count]:
        yield dataset.symbols[symbol].streams["m5"].path / "values/c.0.0"


def test_what_is_damaged_has_the_name_of_its_symbol(folder: Path, dataset: Dataset):
    (stream,) = damaged(dataset, 1)
    flip(stream, 99)
    bars = (
        folder
        / "store/bars"
        / next(iter(dataset.symbols["S01"].streams["m15"].manifest["components"]["inputs"]["bars"]))
    )
    shutil.rmtree(bars)
    flip(folder / "store/refs/test.json", 9)
    (folder / "store/refs/other.json").write_bytes((folder / "store/refs/test.json").read_bytes())
    flip(folder / "store/refs/test.json", 9)
    error = cache("verify", "--store", folder / "store").stderr
    remade = "bin/cache verify --repair removes the entry, and the next bin/build-cache makes it again"
    assert f"\nerror: 3 faults in {ENTRIES - 1} entries; intact: bars 71 of 72, splits 1 of 1, " in error
    assert f"\n{stream} (S00 m5): its rows have changed since they were written; {remade}\n" in error
    needs = "it is missing, and the dataset test needs it; the next bin/build-cache makes it"
    assert f"\n{bars} (S01 m15): {needs}\n" in error
    assert f"\n{folder}/store/refs/other.json: it has changed since it was written; " in error


def test_what_a_build_makes_meanwhile_is_no_fault(folder: Path):
    recipe = make_recipe(*OVERRIDES, "window.seq_len=5", "features.statistics=symbol")
    with ThreadPoolExecutor(1) as pool:
        building = pool.submit(build, recipe, folder, folder / "store", 1, quiet())
        found = []
        while not building.done():
            found += check_metadata(folder / "store").findings
        building.result()
    assert found == []


def test_much_damage_is_counted_and_the_first_is_named(folder: Path, dataset: Dataset):
    store = folder / "store"
    for path in damaged(dataset, 24):
        flip(path, 99)
    shutil.rmtree(dataset.symbols["S23"].windows.path)
    error = cache("verify", "--store", store).stderr
    lines = error[error.index("error: ") :].splitlines()
    assert lines[0].startswith(f"error: 25 faults in {ENTRIES - 1} entries; intact: bars 72 of 72, ")
    assert "streams 48 of 72, windows 23 of 24" in lines[0]
    assert "windows, 1 fault: the next bin/build-cache makes it" in lines
    at = next(
        number for number, line in enumerate(lines) if line.startswith("streams, 24 faults: bin/cache verify --r")
    )
    assert all(" (S" in line and " m5): its rows have changed since" in line for line in lines[at + 1 : at + 4])
    assert lines[at + 4] == "  … and 21 more"
    assert lines[-2:] == ["Each of them, by name: with --json", f"Commands for this store end with --store {store}"]
    assert len(lines) < 12
    found = json.loads(cache("verify", "--json", "--store", store).stdout)["findings"]
    assert {one["of"] for one in found} == {*(f"{symbol} m5" for symbol in SYMBOLS), "S23"}
    repaired = cache("verify", "--repair", "--store", store)
    assert repaired.stdout.splitlines()[:2] == ["Removed:", f"  {store}/streams: 24"]
    assert not any(path.exists() for path in damaged(dataset, 24))


def test_stats_of_much_damage_name_the_first(folder: Path, dataset: Dataset):
    for entries in dataset.symbols.values():
        (entries.windows.path / "zarr.json").write_text("{}")
    done = cache("stats", "--store", folder / "store")
    lines = done.stderr[done.stderr.index("error: ") :].splitlines()
    assert len(lines) == 21
    assert lines[-2:] == ["… and 5 more", "What to do: bin/cache verify"]


def test_what_goes_is_counted(folder: Path):
    store = folder / "store"
    (store / "refs/test.json").unlink()
    done = cache("prune", "--older-than", "0s", "--store", store)
    lines = done.stdout.splitlines()
    assert [line.split()[:2] for line in lines[:7]] == [
        ["folder", "items"],
        ["datasets", "1"],
        ["windows", "24"],
        ["streams", "72"],
        ["statistics", "75"],
        ["splits", "1"],
        ["bars", "72"],
    ]
    assert re.search(r"ago|just now   no dataset needs it$", lines[1])
    assert lines[-1] == "Nothing has been removed yet: --yes does it; --json lists each"
    size = json.loads(cache("prune", "--max-size", "1GB", "--json", "--store", store).stdout)["stays_bytes"]
    removed = cache("prune", "--max-size", f"{size // 2000}KB", "--yes", "--store", store)
    assert removed.exit_code == 0
    assert not list(store.glob("datasets/*"))
    assert list(store.glob("bars/*"))


def test_when_each_entry_was_of_use_last(original: Path):
    """Against the closure of every entry, one after the other."""
    store = original / "store"
    entries = dict(open_entries(store, []))
    wanted: dict[Any, datetime] = dict.fromkeys(entries, datetime.min.replace(tzinfo=UTC))
    for one, entry in entries.items():
        for needed in closure(one, entries):
            wanted[needed] = max(wanted[needed], built_at(entry))
    assert last_uses(entries, read_diary(store)) == wanted
