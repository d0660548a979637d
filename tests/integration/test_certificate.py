"""Every honest dataset gets its certificate, and every leak that is planted loses it, by the right check."""

import json
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

from cache.entries import StoreError
from cache.layout import body_path, piece_md5s
from cache.reader import Dataset, open_dataset
from cache.recipe import Recipe
from cache.timeframes import timeframe_ns
from cache.verify import check_content, check_metadata
from configs.errors import UserError
from configs.loader import load_config
from pipeline import align, bars_execute, certify_streams, certify_windows, dataset, split
from pipeline.bars import Block
from pipeline.build import build
from pipeline.certify import CHECKS, certify_dataset
from pipeline.certify_command import certify_command
from pipeline.features import FEATURE_SETS
from pipeline.simulate import simulate_bars
from tests.unit.cache.making import change_manifest
from tests.unit.pipeline.making import HOUR, MINUTE, joined, make_recipe, quiet, random_ohlc, write_parquet

CONFIGS = Path(__file__).parents[2] / "configs"
BARS = Path(__file__).parents[2].parent / "shared" / "data" / "bars"
PRICES = ["open", "high", "low", "close"]
PASSES = dict.fromkeys(CHECKS, True)
SETTINGS = (
    "source.files={m1: m1.parquet, h1: h1.parquet}",
    "source.session={tz: America/New_York, at: '17:00'}",
    "timeframes=[m1, m5, h1, d]",
    "window.seq_len={m1: 16, m5: 8, h1: 6, d: 1}",
    "split.embargo=2h",
)


@pytest.fixture(scope="module")
def minutes(tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    path = tmp_path_factory.mktemp("raw") / "bars.parquet"
    simulate_bars(path, 12_000, 5, lambda written: None)
    return pd.read_parquet(path)


def bars_of(minutes: pd.DataFrame, rule: str) -> pd.DataFrame:
    named = dict(zip(PRICES, ("first", "max", "min", "last"), strict=True))
    return minutes.set_index("timestamp").resample(rule).agg(named).dropna().reset_index().iloc[:-1]


def write(path: Path, frame: pd.DataFrame, shift: int = 0) -> None:
    ns = frame["timestamp"].astype("datetime64[ns, UTC]").astype("int64").to_numpy()
    write_parquet(path, ns + shift, frame[PRICES].to_numpy())


@pytest.fixture(scope="module")
def raw(minutes: pd.DataFrame, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with m1.parquet and h1.parquet, labelled at the left."""
    folder = tmp_path_factory.mktemp("files")
    write(folder / "m1.parquet", minutes)
    write(folder / "h1.parquet", bars_of(minutes, "1h"))
    return folder


def built(recipe: Recipe, folder: Path, store: Path) -> Dataset:
    return build(recipe, folder, store, 2, quiet()).dataset


def certified_blindly(*about: Any) -> dict[str, Any]:
    """What stands in for certify, to publish a dataset that does not pass."""
    return {"passed": True, "samples": 0, "seed": 0, "checks": {}}


def verdicts(certificate: dict[str, Any]) -> dict[str, bool]:
    return {name: check["passed"] for name, check in certificate["checks"].items()}


def passes(made: Dataset, store: Path, samples: int = 60) -> dict[str, Any]:
    """The certificate of a dataset, which must pass, as the one in its manifest must."""
    certificate = certify_dataset(made, store, samples, 3)
    assert verdicts(certificate) == dict.fromkeys((*CHECKS, "streams"), True), certificate
    assert certificate["passed"]
    assert verdicts(made.entry.manifest["certificate"]) == PASSES
    assert json.loads(json.dumps(certificate)) == certificate
    assert certificate["samples"] == certificate["checks"]["truncation"]["checked"] == samples
    return certificate


@pytest.mark.parametrize("name", sorted(path.stem for path in CONFIGS.glob("*.yaml") if path.stem != "base"))
def test_every_shipped_configuration_passes(name: str, simulated_dir: Path, tmp_path: Path):
    config = load_config(CONFIGS / f"{name}.yaml")
    if config.values.get("data", {}).get("source", {}).get("kind") != "bars":
        pytest.skip("no bars")
    recipe = config.parse("data", Recipe)
    folders = [
        folder for folder in (simulated_dir, BARS) if all(_there(folder, f) for f in recipe.source.files.values())
    ]
    if not folders:
        pytest.skip("its data are not there")
    made = built(recipe, folders[0], tmp_path / "store")
    certificate = passes(made, tmp_path / "store")
    total = sum(entries.windows.shape("time")[0] for entries in made.symbols.values())
    assert certificate["checks"]["completion"]["checked"] == total
    streams = {stream.key for entries in made.symbols.values() for stream in entries.streams.values()}
    assert certificate["checks"]["statistics"]["checked"] == len(streams)


def _there(folder: Path, pattern: str) -> bool:
    return folder.is_dir() and any(folder.glob(pattern.replace("{symbol}", "*")))


@pytest.mark.parametrize(
    "overrides",
    [
        ("window.stride=7", "window.min_coverage=0.97", "window.max_staleness={h1: 90min, m5: 7min}"),
        ("features.set=price", "split.val_fraction=0.4", "split.embargo=0s"),
        ("split.train_end='2024-01-12T12:00'", "window.seq_len={m1: 2, m5: 1, h1: 1, d: 1}"),
    ],
)
def test_other_recipes_pass(overrides: tuple[str, ...], raw: Path, tmp_path: Path):
    passes(built(make_recipe(*SETTINGS, *overrides), raw, tmp_path), tmp_path)


@pytest.mark.parametrize(
    "overrides",
    [
        ("timeframes=[m1, m5, m15, h4, d]", "window.seq_len=2", "split.val_fraction=0.5"),
        (
            "timeframes=[m1, d]",
            "window.seq_len={m1: 1, d: 2}",
            "split.val_fraction=0.5",
            "source.session={tz: Asia/Tokyo, at: '07:00'}",
        ),
        ("timeframes=[m1]", "window.seq_len=1"),
    ],
)
def test_minutes_alone_pass(overrides: tuple[str, ...], minutes: pd.DataFrame, tmp_path: Path):
    write(tmp_path / "simfx_m1.parquet", minutes)
    passes(built(make_recipe(*overrides), tmp_path, tmp_path / "store"), tmp_path / "store")


def test_labels_at_the_right_pass(minutes: pd.DataFrame, tmp_path: Path):
    write(tmp_path / "m1.parquet", minutes, MINUTE)
    write(tmp_path / "h1.parquet", bars_of(minutes, "1h"), HOUR)
    passes(built(make_recipe(*SETTINGS, "source.label=right"), tmp_path, tmp_path / "store"), tmp_path / "store")


def test_days_that_end_in_the_afternoon_pass(minutes: pd.DataFrame, tmp_path: Path):
    """Their labels are the last minute of trading, long before the session's or the calendar's day is over."""
    days = bars_of(minutes, "1D")
    write(tmp_path / "m1.parquet", minutes, MINUTE)
    write(tmp_path / "h1.parquet", bars_of(minutes, "1h"), HOUR)
    write(tmp_path / "d.parquet", days, 15 * HOUR)
    recipe = make_recipe(*SETTINGS, "source.label=right", "source.files={m1: m1.parquet, h1: h1.parquet, d: d.parquet}")
    passes(built(recipe, tmp_path, tmp_path / "store"), tmp_path / "store")


def test_bars_between_whole_minutes_pass(tmp_path: Path):
    """Base bars that straddle the bounds of the longer ones close these later."""
    rng = np.random.default_rng(0)
    opened = 1_704_672_000 * 10**9 + 40 * 10**9 + MINUTE * np.cumsum(rng.integers(1, 3, 9000))
    write_parquet(tmp_path / "simfx_m1.parquet", opened, random_ohlc(rng, 9000))
    passes(
        built(make_recipe("timeframes=[m1, m5, h1]", "window.seq_len=5"), tmp_path, tmp_path / "store"),
        tmp_path / "store",
    )


def test_several_symbols_in_several_shards_pass(minutes: pd.DataFrame, tmp_path: Path):
    """Three symbols that begin at different times, one of them over before validation begins."""
    for number, rows in enumerate((slice(0, 12_000), slice(5000, 12_000), slice(0, 4000))):
        for shard, part in enumerate(np.array_split(np.arange(12_000)[rows], 3)):
            write(tmp_path / f"S{number}" / f"{shard}.parquet", minutes.iloc[part])
    recipe = make_recipe(
        "source.files={m1: '{symbol}/*.parquet'}", "timeframes=[m1, m5, h1]", "window.seq_len=6", "split.embargo=1h"
    )
    made = built(recipe, tmp_path, tmp_path / "store")
    assert set(made.symbols) == {"S0", "S1", "S2"}
    certificate = passes(made, tmp_path / "store")
    assert "60 windows of 3 symbols" in certificate["checks"]["truncation"]["detail"]


# What follows plants leaks. `plant` patches the pipeline; each leak names the checks that must lose.


def slice_by_label(patch: pytest.MonkeyPatch, *names: str) -> None:
    """The usual shortcut: of these timeframes the bars labelled before t, the unfinished one included."""
    honest = align.kernels.count_completed

    def count_labels(base_close, flat_close, offsets, skipped, pointers, ends):
        honest(base_close, flat_close, offsets, skipped, pointers, ends)
        for column, name in enumerate(("m5", "h1", "d")):
            if name in names:
                labels = flat_close[offsets[column] : offsets[column + 1]] - timeframe_ns(name)
                ends[:, column + 1] = np.searchsorted(labels, base_close, side="left") + skipped[column]

    patch.setattr(align.kernels, "count_completed", count_labels)


def fit_on_everything_openly(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(bars_execute, "train_cutoff", lambda store, base_keys, recipe: 2**62)


def fit_on_everything_and_lie(patch: pytest.MonkeyPatch) -> None:
    honest, scale = bars_execute.fit_statistics, bars_execute.normalised

    def fit(bars, features, train_rows, where):
        return replace(honest(bars, features, len(bars), where), rows=train_rows)

    def normalise(bars, features, statistics, where, first):
        return scale(bars, features, replace(statistics, rows=len(bars)), where, first)

    for module in (bars_execute, certify_streams):
        patch.setattr(module, "fit_statistics", fit)
    patch.setattr(bars_execute, "normalised", normalise)


def split_by_decision_time(patch: pytest.MonkeyPatch) -> None:
    def split_windows(windows, bars, recipe, start):
        time = windows.array("time")
        return int(np.searchsorted(time, start - 2 * HOUR, side="right")), int(np.searchsorted(time, start))

    patch.setattr(dataset, "split_windows", split_windows)


def ignore_the_embargo(patch: pytest.MonkeyPatch) -> None:
    for module in (split, dataset):
        patch.setattr(module, "duration_ns", lambda text: 0)


def train_past_the_embargo(patch: pytest.MonkeyPatch) -> None:
    """Windows alone: the dataset says that training ends earlier than it does."""
    honest = dataset.split_windows

    def split_windows(windows, bars, recipe, start):
        return int(np.searchsorted(windows.array("time"), start)), honest(windows, bars, recipe, start)[1]

    patch.setattr(dataset, "split_windows", split_windows)


def use_the_next_bar(patch: pytest.MonkeyPatch) -> None:
    """A close that is smoothed a little with the next one."""

    def smoothed(ohlc, previous_close, out):
        align.kernels.return_features(ohlc, previous_close, out)
        out[:-1, 3] += 0.002 * np.diff(np.log(ohlc[:, 3]))

    patch.setitem(FEATURE_SETS, "returns", replace(FEATURE_SETS["returns"], kernel=smoothed))


def publish_early(patch: pytest.MonkeyPatch) -> None:
    """A derived bar counts as over when the first minute of its bucket is."""
    honest = bars_execute.derive_bars

    def derive(base, timeframe, session):
        for block in honest(base, timeframe, session):
            yield Block(block.open_time, block.open_time + MINUTE, block.ohlc)

    for module in (bars_execute, certify_windows):
        patch.setattr(module, "derive_bars", derive)


def publish_with_the_last_child(patch: pytest.MonkeyPatch) -> None:
    """A derived bar counts as over when its last child is: known only when no other has come by the bucket's end."""
    honest = bars_execute.derive_bars

    def derive(base, timeframe, session) -> Iterator[Block]:
        base = list(base)
        children = joined(base)
        for block in honest(base, timeframe, session):
            last = np.searchsorted(children.open_time, block.close_time) - 1
            yield Block(block.open_time, children.close_time[last], block.ohlc)

    for module in (bars_execute, certify_windows):
        patch.setattr(module, "derive_bars", derive)


def one_too_many(patch: pytest.MonkeyPatch) -> None:
    honest = bars_execute.align

    def windows(bars, recipe, dropped, first):
        for ends, time in honest(bars, recipe, dropped, first):
            ends[:, 2] = np.minimum(ends[:, 2] + 1, len(bars["h1"]))
            yield ends, time

    patch.setattr(bars_execute, "align", windows)


def one_too_few(patch: pytest.MonkeyPatch) -> None:
    """No leak, but no window of this time either."""
    honest = bars_execute.align

    def windows(bars, recipe, dropped, first):
        for ends, time in honest(bars, recipe, dropped, first):
            ends[5001, 2] -= 1
            yield ends, time

    patch.setattr(bars_execute, "align", windows)


def one_too_many_once(patch: pytest.MonkeyPatch) -> None:
    """A single window of them all."""
    honest = bars_execute.align

    def windows(bars, recipe, dropped, first):
        for ends, time in honest(bars, recipe, dropped, first):
            ends[5001, 1] += 1
            yield ends, time

    patch.setattr(bars_execute, "align", windows)


def reveal_nothing(patch: pytest.MonkeyPatch) -> None:
    patch.setitem(FEATURE_SETS, "price", replace(FEATURE_SETS["price"], reveals=()))


WINDOWS = {"truncation", "randomisation"}
LEAKS: dict[str, tuple[Callable, set[str], set[str], str]] = {
    # name: (how, what must fail while it is at work, what must when it is gone, a piece of the words)
    "derived timeframes by label": (
        lambda patch: slice_by_label(patch, "m5", "d"),
        {"completion", *WINDOWS},
        {"completion", *WINDOWS},
        "TEST m5 at 2024-01-",
    ),
    "a given timeframe by label": (
        lambda patch: slice_by_label(patch, "h1"),
        {"completion", *WINDOWS},
        {"completion", *WINDOWS},
        "the window holds a bar that was not over: it closed at 2024-01-",
    ),
    "statistics of everything": (fit_on_everything_openly, {"statistics"}, {"statistics"}, "know of bars up to"),
    "statistics of everything, hidden": (fit_on_everything_and_lie, {"statistics"}, {"statistics"}, "on other bars"),
    "no purge": (split_by_decision_time, {"purge"}, {"purge"}, "so it shares bars with training"),
    "no embargo": (ignore_the_embargo, {"purge", "statistics"}, {"purge", "statistics"}, "test: training ends at"),
    "no embargo, hidden": (train_past_the_embargo, {"purge"}, {"purge"}, "decided after training ends"),
    "the next bar": (
        use_the_next_bar,
        WINDOWS,
        {"statistics", *WINDOWS},
        "changes when bars after it are cut off: log_close",
    ),
    "bars published early": (
        publish_early,
        {"completion", *WINDOWS},
        {"completion", *WINDOWS},
        "although its time is not",
    ),
    "bars published with their last child": (
        publish_with_the_last_child,
        {"completion"},
        {"completion"},
        "counts as over although its time is not",
    ),
    "one bar too many": (one_too_many, {"completion", *WINDOWS}, {"completion", *WINDOWS}, "it ends with bar number"),
    "one bar too many, once": (
        one_too_many_once,
        {"completion"},
        {"completion"},
        "the window holds a bar that was not over",
    ),
    "one bar too few": (one_too_few, {"completion"}, {"completion"}, "the window leaves out a bar that was over"),
    "price without reveals": (reveal_nothing, {"masks"}, {"masks"}, "delta_close of the bars after it"),
}


@pytest.mark.parametrize("name", LEAKS)
def test_a_planted_leak_loses_the_certificate(name: str, raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    plant, at_work, gone, words = LEAKS[name]
    overrides = ["features.set=price"] if name.startswith("price") else []
    recipe, store = make_recipe(*SETTINGS, *overrides), tmp_path / "store"
    with monkeypatch.context() as patch:
        plant(patch)
        with pytest.raises(UserError) as caught:  # a build does not publish it
            built(recipe, raw, store)
        assert str(caught.value).startswith(
            "test: not published, because it does not prove that every window holds only"
        )
        assert words in str(caught.value)
        assert not list((store / "refs").glob("*"))
        assert not [path for path in (store / "datasets").glob("*") if path.name[0] != "."]
        with monkeypatch.context() as blind:
            blind.setattr(dataset, "certify", certified_blindly)
            made = built(recipe, raw, store)
        certificate = certify_dataset(made, store, 60, 0)
        assert {check for check, passed in verdicts(certificate).items() if not passed} >= at_work, certificate
        assert not certificate["passed"]
        assert any(words in check["detail"] for check in certificate["checks"].values()), certificate
    certificate = certify_dataset(made, store, 60, 0)
    assert {check for check, passed in verdicts(certificate).items() if not passed} >= gone, certificate


def test_the_planted_leaks_touch_nothing_else(raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A leak of one kind is told by its own checks: the others still pass."""
    alone = {
        "statistics of everything, hidden": {"statistics"},
        "no purge": {"purge"},
        "one bar too many, once": {"completion"},
    }
    for name, expected in alone.items():
        with monkeypatch.context() as patch:
            LEAKS[name][0](patch)
            patch.setattr(dataset, "certify", certified_blindly)
            made = built(make_recipe(*SETTINGS), raw, tmp_path / name)
        found = verdicts(certify_dataset(made, tmp_path / name, 20, 0))
        assert {check for check, passed in found.items() if not passed} == expected


def test_the_next_bar_shows_in_its_other_prices_too(raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A feature that reads the bar after t is another one where that bar is another, not only where there is none."""
    monkeypatch.setattr(dataset, "certify", certified_blindly)
    use_the_next_bar(monkeypatch)
    checks = certify_dataset(built(make_recipe(*SETTINGS), raw, tmp_path), tmp_path, 20, 0)["checks"]
    cut_off, changed = (re.findall(r" is (\S+) in place of (\S+)", checks[name]["detail"]) for name in sorted(WINDOWS))
    assert cut_off[0][1] == changed[0][1]
    assert cut_off[0][0] != changed[0][0]


@pytest.fixture(scope="module")
def store(raw: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    store = tmp_path_factory.mktemp("certified") / "store"
    built(make_recipe(*SETTINGS), raw, store)
    return store


def run(*arguments: str | Path) -> tuple[int, str]:
    done = CliRunner().invoke(certify_command, [str(argument) for argument in arguments])
    return done.exit_code, done.output


def test_the_command_prints_a_line_a_check(store: Path):
    code, output = run("test", "--store", store, "--samples", "30")
    assert code == 0, output
    lines = output.splitlines()
    assert lines[0].startswith("Certifying test ")
    for check in (*CHECKS, "streams"):
        assert any(line.startswith(f"  {check:<14} holds: ") for line in lines), output
    assert (
        "30 windows of 1 symbol, made again where the bars after them are cut off, are the same to the byte" in output
    )
    assert lines[-1].startswith("test passes, in ")


def test_the_command_prints_json(store: Path):
    done = CliRunner().invoke(
        certify_command, ["test", "--store", str(store), "--samples", "30", "--seed", "4", "--json"]
    )
    assert done.exit_code == 0
    certificate = json.loads(done.stdout)
    assert certificate == certify_dataset(open_dataset(store, "test"), store, 30, 4)
    assert (certificate["samples"], certificate["seed"]) == (30, 4)


def test_the_command_fails_where_the_certificate_does(raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with monkeypatch.context() as patch:
        split_by_decision_time(patch)
        patch.setattr(dataset, "certify", certified_blindly)
        built(make_recipe(*SETTINGS), raw, tmp_path)
    code, output = run("test", "--store", tmp_path, "--samples", "20")
    assert code == 1
    assert "  purge          FAILS: TEST m1 at 2024-01-" in output
    assert (
        "error: test: does not prove that its windows hold only what was known at their time; what fails: purge."
        in output
    )


# What somebody changed in the store and sealed again. No manifest, and no MD5, tells of it.


def reseal(entry: Path, array: str, change: Callable[[np.ndarray], Any]) -> None:
    """Change an array, and the manifest's MD5 with it."""
    manifest = json.loads((entry / "zarr.json").read_bytes())["attributes"]
    described = manifest["arrays"][array]
    path = body_path(entry, array, len(described["shape"]))
    rows = np.memmap(path, described["dtype"], mode="r+", shape=tuple(described["shape"]))
    change(rows)
    rows.flush()
    md5s = piece_md5s(rows.tobytes(), rows[0].nbytes)
    change_manifest(entry, lambda manifest: manifest["arrays"][array].update(md5=md5s))


def put(at: Any, value: Any) -> Callable[[np.ndarray], None]:
    def change(rows: np.ndarray) -> None:
        rows[at] = rows[at] + value

    return change


def leak_into_bars(made: Dataset, store: Path) -> None:
    """The closes of derived bars, known before; and their stream is made of them."""
    (key,) = made.symbols["TEST"].windows.manifest["components"]["inputs"]["m5"]
    reseal(store / "bars" / key, "ohlc", put((1000, 3), 1e-9))


Tampering = Callable[[Dataset, Path], None]


def in_stream(name: str, array: str, at: Any, value: Any) -> Tampering:
    return lambda made, store: reseal(made.symbols["TEST"].streams[name].path, array, put(at, value))


def in_manifest(name: str, **changes: Any) -> Tampering:
    return lambda made, store: change_manifest(
        made.symbols["TEST"].streams[name].path, lambda manifest: manifest.update(changes)
    )


def in_splits(part: str, by: tuple[int, int]) -> Tampering:
    return lambda made, store: reseal(made.entry.path, part, put(0, by))


def in_recipe(made: Dataset, store: Path) -> None:
    """An embargo that was never asked for."""
    change_manifest(made.entry.path, lambda manifest: manifest["recipe"]["split"].update(embargo="0s"))


TAMPERINGS: dict[str, tuple[Tampering, str, str]] = {  # how, the check that fails, a piece of the words
    "a value": (
        in_stream("m1", "values", (7777, 3), 1e-3),
        "streams",
        r"TEST m1: row 7,777, .*: values \(log_close\) is ",
    ),
    "a NaN": (in_stream("m5", "values", (5, 0), np.nan), "streams", r"values \(log_open\) is nan in the store"),
    "a close": (in_stream("h1", "close", 100, 1e-6), "streams", r"TEST h1: row 100, .*: close is "),
    "a close time": (
        in_stream("d", "close_time", 3, -MINUTE),
        "streams",
        r"close_time is 2024-01-\d\dT21:59:00 UTC in",
    ),
    "base rows": (in_stream("d", "base_rows", (4, 1), 1), "streams", r"TEST d: .*base_rows \(past the last\) is "),
    "the first of base rows": (in_stream("m5", "base_rows", (0, 0), 1), "streams", r"base_rows \(first\) is 1 in the "),
    "reveals": (
        in_manifest("m1", reveals=["log_open"]),
        "streams",
        r"reveals = \['log_open'\], where the recipe gives \[\]",
    ),
    "reveals nonsense": (in_manifest("m1", reveals=["x"]), "streams", r"reveals = \['x'\], where the recipe gives"),
    "another length": (
        in_manifest("m1", nominal_length=5),
        "streams",
        r"nominal_length = 5, where the recipe gives 60",
    ),
    "validation too short": (
        in_splits("val", (0, -1)),
        "purge",
        r"validation takes windows [\d,]+ to [\d,]+, where recipe",
    ),
    "validation too late": (
        in_splits("val", (1, 0)),
        "purge",
        r"validation takes windows [\d,]+ to [\d,]+, where recipe",
    ),
    "training too short": (
        in_splits("train", (0, -1)),
        "purge",
        r"training takes windows 0 to [\d,]+, where recipe and",
    ),
    "training too late": (
        in_splits("train", (1, 0)),
        "purge",
        r"training takes windows 1 to [\d,]+, where recipe and bars",
    ),
    "the recipe": (in_recipe, "streams", r"test: it was made as .*'embargo': '2h'.*, not as .*'embargo': '0s'"),
    "a scale": (
        lambda made, store: reseal(made.entry.path, "std", put((0, 1, 2), 1e-9)),
        "streams",
        "test: its array std is not what its streams were scaled by",
    ),
    "a weight": (
        lambda made, store: reseal(made.entry.path, "weight", put(0, 1)),
        "streams",
        "test: its array weight is not what the recipe gives",
    ),
    "derived bars": (leak_into_bars, "streams", r"TEST m5 bars: row 1,000, .*: ohlc \(close\) is "),
}


@pytest.mark.parametrize("name", TAMPERINGS)
def test_what_was_changed_and_sealed_again_is_found_and_mended(name: str, raw: Path, store: Path, tmp_path: Path):
    store = Path(shutil.copytree(store, tmp_path / "store"))
    tamper, check, words = TAMPERINGS[name]
    made = open_dataset(store, "test")
    tamper(made, store)
    assert check_content(check_metadata(store)) == ()  # verify cannot know
    code, output = run("test", "--store", store, "--samples", "5")
    assert code == 1
    assert re.search(rf"  {check} +FAILS: .*{words}", output), output
    assert output.splitlines()[-1].endswith(
        "`bin/cache certify test --repair` removes the entries that it was made from (but for the bars of your files, "
        "unless these fail), and bin/build-cache with its configuration then makes them again"
    )
    code, output = run("test", "--store", store, "--samples", "5", "--repair")
    assert code == 1
    assert f"\nRemoved:\n  {store}/" in output
    assert f"  bin/build-cache --config CONFIG.yaml --data-dir {raw} --store {store}    # test" in output
    assert len(list((store / "bars").glob("[!.]*"))) == 2  # those read from files
    again = build(make_recipe(*SETTINGS), raw, store, 2, quiet())
    assert len(again.built) == len(made.timeframes) + 4
    assert run("test", "--store", store, "--samples", "5")[0] == 0


def test_bars_of_files_go_where_they_fail_themselves(raw: Path, store: Path, tmp_path: Path):
    store = Path(shutil.copytree(store, tmp_path / "store"))
    (key,) = open_dataset(store, "test").symbols["TEST"].windows.manifest["components"]["inputs"]["h1"]
    reseal(store / "bars" / key, "close_time", put(50, -HOUR))
    code, output = run("test", "--store", store, "--samples", "5", "--repair")
    assert (code, "completion     FAILS" in output) == (1, True), output
    assert not list((store / "bars").glob("[!.]*"))
    build(make_recipe(*SETTINGS), raw, store, 2, quiet())
    assert run("test", "--store", store, "--samples", "5")[0] == 0


def test_a_repair_without_a_fault_removes_nothing(store: Path):
    before = set(store.rglob("*"))
    assert run("test", "--store", store, "--samples", "5", "--repair")[0] == 0
    assert set(store.rglob("*")) == before


def test_what_is_stored_wrongly_is_no_change_of_the_future(raw: Path, store: Path, tmp_path: Path):
    """A window that differs, whatever comes after it, does not look ahead."""
    store = Path(shutil.copytree(store, tmp_path / "store"))
    made = open_dataset(store, "test")
    reseal(made.symbols["TEST"].streams["m1"].path, "close", lambda rows: np.multiply(rows, 2, out=rows))
    checks = certify_dataset(made, store, 10, 0)["checks"]
    for name in WINDOWS:
        assert (
            "the window in the store is not what the bars give: close of its bar 1 of 16 is" in checks[name]["detail"]
        )
        assert "changes when" not in checks[name]["detail"]


def test_a_dataset_that_is_not_there(store: Path):
    code, output = run("other", "--store", store)
    assert code == 1
    assert "no dataset named other" in output


def test_bars_that_are_gone_are_an_error(raw: Path, tmp_path: Path):
    made = built(make_recipe(*SETTINGS), raw, tmp_path)
    (bars,) = made.symbols["TEST"].windows.manifest["components"]["inputs"]["h1"]
    (tmp_path / "bars" / bars / "zarr.json").unlink()
    with pytest.raises(StoreError, match="no such entry; run bin/build-cache again"):
        certify_dataset(made, tmp_path, 10, 0)
