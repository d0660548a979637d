"""Files that join those of an earlier build: the result is that of a build from scratch, and only the new is made."""

import itertools
import json
import shutil
import subprocess
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from cache.entries import StoreError, open_entry
from cache.layout import PIECE_ROWS, SHARD_ROWS, body_path
from cache.reader import Dataset, open_dataset
from cache.timeframes import format_time
from cache.verify import check_content, check_metadata
from configs.errors import UserError
from pipeline.build import build
from pipeline.certify import certify, certify_dataset, evidence_of
from pipeline.certify_earlier import with_proved
from pipeline.summary import summarise
from tests.unit.cache.making import md5s_of_rows
from tests.unit.pipeline.making import HOUR, MINUTE, MONDAY, make_recipe, quiet, random_ohlc, write_parquet

ROOT = Path(__file__).parents[2]
PINNED = "split={val_fraction: null, train_end: 2024-01-10, embargo: 1h}"
FILES = "source.files={m1: '*.parquet'}"
TIMEFRAMES = "timeframes=[m1, m5, h1]"


def bars(seed: int, rows: int, gaps: float = 0.02) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    steps = np.where(rng.random(rows) < gaps, rng.integers(2, 90, rows), 1)
    return MONDAY + MINUTE * np.cumsum(steps), random_ohlc(rng, rows)


def write(folder: Path, times: np.ndarray, ohlc: np.ndarray, cuts: list[int], name: str = "{}.parquet") -> list[Path]:
    """A file for each piece between cuts."""
    bounds = [0, *cuts, len(times)]
    return [
        write_parquet(folder / name.format(n), times[start:stop], ohlc[start:stop])
        for n, (start, stop) in enumerate(itertools.pairwise(bounds))
    ]


def contents(store: Path) -> dict[str, Any]:
    """All manifests, but for when they were written and what proves them; and whether the files are what they say."""
    found = {}
    for path in store.glob("*/[!.]*/zarr.json"):
        manifest = json.loads(path.read_bytes())["attributes"]
        for name, array in manifest["arrays"].items():
            assert md5s_of_rows(path.parent, name, array) == array["md5"]
        of = {key: value for key, value in manifest.items() if key not in ("built", "md5", "certificate")}
        found[str(path.parent.relative_to(store))] = of
    return found


def appended(folder: Path, files: list[Path], *overrides: str, known: int = 1) -> Dataset:
    """Build with the first files, then with all; the store must hold what a build from scratch makes."""
    recipe, later = make_recipe(*overrides), folder / "later"
    later.mkdir()
    moved = [file.rename(later / file.name) for file in files[known:]]
    try:
        build(recipe, folder / "data", folder / "store", 2, quiet())
    except UserError:
        assume(False)  # too few bars for such windows
    for file, place in zip(moved, files[known:], strict=True):
        file.rename(place)
    dataset = build(recipe, folder / "data", folder / "store", 2, quiet()).dataset
    build(recipe, folder / "data", folder / "scratch", 1, quiet())
    assert contents(folder / "scratch").items() <= contents(folder / "store").items()
    return dataset


OPTIONS = (
    "window.stride=7",
    "window.min_coverage=0.5",
    "window.max_staleness={m5: 20min}",
    "features.set=price",
    "features.statistics=pooled",
    "timeframes=[m1, m5, h4, d]",
    "split.embargo=12h",
)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    seed=st.integers(0, 2**32),
    cuts=st.lists(st.integers(5000, 7990), min_size=1, max_size=2, unique=True).map(sorted),
    gaps=st.sampled_from([0, 0.02, 0.2]),
    options=st.lists(st.sampled_from(OPTIONS), max_size=3, unique=True),
)
def test_any_rows_appended_make_the_bytes_of_a_build_from_scratch(
    tmp_path_factory: pytest.TempPathFactory, seed: int, cuts: list[int], gaps: float, options: list[str]
):
    folder = tmp_path_factory.mktemp("append")
    files = write(folder / "data", *bars(seed, 8000, gaps), cuts)
    dataset = appended(folder, files, FILES, TIMEFRAMES, "window.seq_len=2", PINNED, *options)
    (known,) = dataset.entry.manifest["certificate"]["taken_over"].values()
    assert 0 < known < dataset.per_symbol.windows[0]
    assert certify_dataset(dataset, folder / "store", 10, 0)["passed"]
    shutil.rmtree(folder)


@pytest.mark.parametrize("fraction", [0.2, 0.5])
def test_where_a_fraction_validates_streams_are_scaled_anew(tmp_path: Path, fraction: float):
    files = write(tmp_path / "data", *bars(1, 6000), [5000])
    split = f"split={{val_fraction: {fraction}, train_end: null, embargo: 1h}}"
    dataset = appended(tmp_path, files, FILES, TIMEFRAMES, "window.seq_len=4", split)
    assert "taken_over" not in dataset.entry.manifest["certificate"]


def test_a_file_of_earlier_bars_moves_all_rows(tmp_path: Path):
    files = write(tmp_path / "data", *bars(2, 6000), [700])
    dataset = appended(tmp_path, files[::-1], FILES, TIMEFRAMES, "window.seq_len=4", PINNED)
    assert "taken_over" not in dataset.entry.manifest["certificate"]


@pytest.mark.parametrize("known", [1, 2, 3])
@pytest.mark.parametrize("behind", [0, 7, 60])
def test_timeframes_of_files_that_end_at_different_times(tmp_path: Path, known: int, behind: int):
    """The hours of the first file end `behind` minutes before its minutes do, or go on beyond them."""
    times, ohlc = bars(3, 6000, 0)
    minutes = write(tmp_path / "data", times, ohlc, [5000], "m1-{}.parquet")
    opened = np.unique(times // HOUR) * HOUR
    hourly = (
        np.repeat(np.array([[100.0, 200.0, 50.0, 120.0]]), len(opened), axis=0)
        * np.linspace(1, 2, len(opened))[:, None]
    )
    cut = int(np.searchsorted(opened, times[5000] - behind * MINUTE))
    hours = write(tmp_path / "data", opened, hourly, [cut], "h1-{}.parquet")
    files = [minutes[0], hours[0], *((minutes[1], hours[1]) if known != 3 else (hours[1], minutes[1]))]
    sources = "source.files={m1: 'm1-*.parquet', h1: 'h1-*.parquet'}"
    appended(tmp_path, files, sources, TIMEFRAMES, "window.seq_len=4", PINNED, known=max(known, 2))


def test_symbols_are_appended_to_one_by_one(tmp_path: Path):
    for seed, name in enumerate(("AAA", "BBB", "CCC")):
        write(tmp_path / "data", *bars(seed, 6000), [4000 + 500 * seed], name + "-{}.parquet")
    files = [tmp_path / f"data/{one}" for one in ("AAA-0", "BBB-0", "CCC-0", "CCC-1", "BBB-1", "AAA-1")]
    files = [file.with_suffix(".parquet") for file in files]
    options = ("source.files={m1: '{symbol}-*.parquet'}", TIMEFRAMES, "window.seq_len=4", PINNED)
    pooled = ("features.statistics=pooled", "universe.hold_out=[BBB]")
    dataset = appended(tmp_path, files, *options, *pooled, known=5)
    checks = dataset.entry.manifest["certificate"]["checks"]
    assert checks["statistics"]["checked"] == 0  # all are those of before
    assert len(open_dataset(tmp_path / "store", "test").symbols) == 3


@pytest.mark.parametrize("failing", ["error", "leave_out"])
def test_a_symbol_is_not_blamed_for_a_damaged_store(tmp_path: Path, failing: str):
    for seed, name in enumerate(("AAA", "BBB")):
        write(tmp_path / "data", *bars(seed, 6000), [5000], name + "-{}.parquet")
        (tmp_path / f"data/{name}-1.parquet").rename(tmp_path / f"{name}-1.parquet")
    options = ("source.files={m1: '{symbol}-*.parquet'}", TIMEFRAMES, "window.seq_len=4", PINNED)
    recipe = make_recipe(*options, f"universe.failing={failing}")
    dataset = build(recipe, tmp_path / "data", tmp_path / "store", 2, quiet()).dataset
    body = body_path(dataset.symbols["AAA"].streams["m5"].path, "values", 2)
    body.write_bytes(b"\xff" + body.read_bytes()[1:])
    for name in ("AAA", "BBB"):
        (tmp_path / f"{name}-1.parquet").rename(tmp_path / f"data/{name}-1.parquet")
    with pytest.raises(StoreError) as caught:
        build(recipe, tmp_path / "data", tmp_path / "store", 2, quiet())
    assert str(caught.value).startswith(f"{body}: damaged, its MD5 is not that of the manifest")
    assert "leave_out" not in str(caught.value)
    assert open_dataset(tmp_path / "store", "test").entry.key == dataset.entry.key


def test_a_build_that_goes_on_says_what_it_took_over(tmp_path: Path):
    cuts = {"AAA": 5000, "BBB": 1000}  # after training, and before it ends
    for seed, (name, cut) in enumerate(cuts.items()):
        write(tmp_path / "data", *bars(seed, 6000, 0), [cut], name + "-{}.parquet")
        (tmp_path / f"data/{name}-1.parquet").rename(tmp_path / f"{name}-1.parquet")

    def told(store: str, files: str) -> tuple[list[str], list[np.ndarray]]:
        """The last lines, and the times of the windows symbol by symbol."""
        recipe = make_recipe(f"source.files={{m1: '{files}'}}", TIMEFRAMES, "window.seq_len=4", PINNED)
        outcome = build(recipe, tmp_path / "data", tmp_path / store, 2, quiet())
        lines = list(summarise(outcome))
        times = [one.windows.array("time") for one in outcome.dataset.symbols.values()]
        return lines[lines.index(next(line for line in lines if "certificate" in line)) + 1 :], times

    one, both = ("one", "AAA-*.parquet"), ("both", "{symbol}-*.parquet")
    lines, (before,) = told(*one)
    assert lines == ["  0 entries reused, 8 built."]
    _, of_both = told(*both)
    (tmp_path / "AAA-1.parquet").rename(tmp_path / "data/AAA-1.parquet")
    assert told(*one)[0] == [
        f"  goes on from the dataset built before: its {len(before):,} windows, until {format_time(before[-1])}, were "
        "taken over, and only what follows them was computed",
        "  1 entry reused, 8 built.",
    ]
    assert told(*one)[0] == ["  Everything was in the store already; nothing was built."]
    assert told(*both)[0] == [
        f"  goes on from the dataset built before: its {sum(map(len, of_both)):,} windows were taken over, and only "
        "what follows them was computed",
        "  8 entries reused, 8 built.",
    ]
    (tmp_path / "BBB-1.parquet").rename(tmp_path / "data/BBB-1.parquet")
    assert told(*both)[0] == ["  9 entries reused, 8 built."]  # there is more to scale by


@pytest.fixture(scope="module")
def long(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Dataset, Dataset]:
    """A store with more rows than a shard holds, before and after the second file."""
    folder = tmp_path_factory.mktemp("long")
    times, ohlc = bars(4, SHARD_ROWS + 40_000, 0)
    write(folder / "data", times, ohlc, [SHARD_ROWS + 20_000])
    (folder / "data/1.parquet").rename(folder / "1.parquet")
    recipe = make_recipe(FILES, "timeframes=[m1, m5]", "window.seq_len=4", PINNED)
    before = build(recipe, folder / "data", folder / "store", 2, quiet()).dataset
    (folder / "1.parquet").rename(folder / "data/1.parquet")
    after = build(recipe, folder / "data", folder / "store", 2, quiet()).dataset
    build(recipe, folder / "data", folder / "scratch", 2, quiet())
    return folder, before, after


def test_full_shards_are_shared(long: tuple[Path, Dataset, Dataset]):
    folder, before, after = long
    assert contents(folder / "scratch").items() <= contents(folder / "store").items()
    old, new = (one.symbols["TEST"].streams["m1"] for one in (before, after))
    for name, axes in (("values", 2), ("close_time", 1), ("close", 1)):
        first, second = (
            [body_path(entry.path, name, axes, shard).stat().st_ino for shard in (0, 1)] for entry in (old, new)
        )
        assert first[0] == second[0] and first[1] != second[1]
    assert check_content(check_metadata(folder / "store")) == ()


def test_rows_are_read_across_shards(long: tuple[Path, Dataset, Dataset]):
    after = long[2]
    entry = after.symbols["TEST"].streams["m1"]
    whole = entry.array("values")
    pieces = [np.fromfile(body_path(entry.path, "values", 2, n), "<f4") for n in (0, 1)]
    rows = len(whole)
    np.testing.assert_array_equal(whole[:SHARD_ROWS].ravel(), pieces[0][: SHARD_ROWS * 6])
    np.testing.assert_array_equal(whole[SHARD_ROWS:].ravel(), pieces[1][: (rows - SHARD_ROWS) * 6])
    whole[5] = 0  # a private map
    assert entry.array("values")[5].any()
    for start, stop in ((0, 5), (SHARD_ROWS - 3, SHARD_ROWS + 4), (SHARD_ROWS, SHARD_ROWS + 1), (rows - 2, rows)):
        np.testing.assert_array_equal(entry.rows("values", start, stop), entry.array("values")[start:stop])


@pytest.mark.parametrize(("timeframe", "files"), [("m1", 2), ("m5", 1)])
def test_bars_are_counted_by_time(long: tuple[Path, Dataset, Dataset], timeframe: str, files: int):
    """Counts are found in few reads; every time is compared with, and the instants before and after it."""
    evidence = evidence_of(long[2], long[0] / "store")["TEST"]
    bars = evidence.bars[timeframe]
    opens, closes = (bars.rows(name, 0, len(bars)) for name in ("open_time", "close_time"))
    assert len(bars) > 16_384
    assert len(bars.entries) == files
    seam = bars.entries[0].shape("ohlc")[0]
    for at in (*range(0, len(bars), len(bars) // 300), len(bars) // 2, seam - 1, seam % len(bars), len(bars) - 1):
        for off in (-1, 0, 1):
            instant = int(closes[at]) + off
            assert bars.completed_by(instant) == (closes <= instant).sum()
            assert evidence.count_by(timeframe, "close_time", instant) == (closes <= instant).sum()
            instant = int(opens[at]) + off
            assert bars.opened_before(instant) == (opens < instant).sum()
            assert evidence.count_by(timeframe, "open_time", instant, "left") == (opens < instant).sum()


def test_what_is_taken_over_is_compared_and_the_rest_is_proved(long: tuple[Path, Dataset, Dataset], tmp_path: Path):
    folder, before, _ = long
    recipe = make_recipe(FILES, "timeframes=[m1, m5]", "window.seq_len=4", PINNED)
    store = tmp_path / "store"
    shutil.copytree(folder / "store", store)
    earlier = open_entry(store, "datasets", before.entry.key)
    dataset = open_dataset(store, "test")
    splits = dataset.splits

    def evidence() -> Any:
        return with_proved(earlier, evidence_of(dataset, store), splits, store)

    count = before.symbols["TEST"].windows.shape("time")[0]
    assert evidence()["TEST"].first == count
    certificate = certify(recipe, evidence(), splits, 4, 0)
    assert certificate["passed"] and certificate["taken_over"] == {earlier.key: count}
    assert f"; {count:,} before them are those of dataset {earlier.key}" in certificate["checks"]["purge"]["detail"]

    windows = dataset.symbols["TEST"].windows
    manifest = deepcopy(windows.manifest)
    manifest["arrays"]["ends"]["md5"][0] = "0" * 32  # other rows in a full piece
    other = {"TEST": replace(evidence_of(dataset, store)["TEST"], windows=replace(windows, manifest=manifest))}
    assert with_proved(earlier, other, splits, store)["TEST"].proved is None
    body = body_path(dataset.symbols["TEST"].windows.path, "ends", 2, 1)
    ends = np.memmap(body, "<i4", "r+", shape=(dataset.symbols["TEST"].windows.shape("ends")[0] - SHARD_ROWS, 2))
    ends[-1, 1] += 1  # the future, in a new window
    found = certify(recipe, evidence(), splits, 4, 0)
    assert not found["checks"]["completion"]["passed"]
    ends[-1, 1] -= 1
    ends[PIECE_ROWS + 7, 1] += 1  # in one of before, whose piece goes on
    assert evidence()["TEST"].proved is None
    assert not certify(recipe, evidence(), splits, 4, 0)["checks"]["completion"]["passed"]


def test_after_a_kill_the_next_build_goes_on_appending(tmp_path: Path):
    files = write(tmp_path / "data", *bars(5, 60_000), [58_000])
    overrides = (FILES, TIMEFRAMES, "window.seq_len=4", PINNED)
    recipe = make_recipe(*overrides)
    files[1].rename(tmp_path / "1.parquet")
    before = build(recipe, tmp_path / "data", tmp_path / "store", 2, quiet()).dataset
    (tmp_path / "1.parquet").rename(files[1])
    words = [ROOT / "bin/build-cache", "--config", "configs/test.yaml", "--workers", "1"]
    words += ["--data-dir", tmp_path / "data", "--store", tmp_path / "store", *(f"data.{one}" for one in overrides)]
    builder = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert builder.stdout is not None
    said = b""
    while b"built streams" not in said:
        more = builder.stdout.read1(4096)
        assert more, said.decode()
        said += more
    builder.kill()
    builder.communicate(timeout=60)
    assert open_dataset(tmp_path / "store", "test").entry.key == before.entry.key
    outcome = build(recipe, tmp_path / "data", tmp_path / "store", 2, quiet())
    assert list(outcome.dataset.entry.manifest["certificate"]["taken_over"]) == [before.entry.key]
    build(recipe, tmp_path / "data", tmp_path / "scratch", 2, quiet())
    assert contents(tmp_path / "scratch").items() <= contents(tmp_path / "store").items()
    assert list((tmp_path / "store/locks").glob("*.unsynced")) == []
