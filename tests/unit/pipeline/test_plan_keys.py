import copy
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest

from cache.recipe import BarsSource, Recipe
from configs.loader import load_config, model_keys
from pipeline import bars_plan, fields
from pipeline.bars_plan import make_plan
from pipeline.plan import SourceFile

CONFIG = load_config(
    "configs/test.yaml",
    [
        "data.name=base",
        "data.timeframes=[m1, m5, d]",
        "data.source.symbol=EURUSD",
        "data.source.session={tz: America/New_York, at: 17:00}",
    ],
)

BARS = {"bars m1", "bars m5", "bars d"}
STREAMS = {"streams m1", "streams m5", "streams d"}
EVERYTHING = {*BARS, *STREAMS, "windows", "datasets"}
DAYS = {"bars d", "streams d", "windows", "datasets"}
WINDOWS = {"windows", "datasets"}

FAULTS = ("missing", "not_finite", "not_positive", "high", "low")

# Every field of the recipe: another value for it, and the entries whose keys that changes.
FIELDS: dict[str, tuple[Any, set[str]]] = {
    "data.name": ("other", set()),
    "data.source.kind": (None, set()),  # it has one value only
    "data.source.files": ({"m1": "elsewhere/renamed.parquet"}, set()),
    "data.source.symbol": ("GBPUSD", {"datasets"}),
    "data.source.label": ("right", EVERYTHING),
    "data.source.timezone": ("Asia/Shanghai", EVERYTHING),
    "data.source.session.tz": ("Europe/London", DAYS),
    "data.source.session.at": ("16:00", DAYS),
    "data.source.columns": ({"time": "stamp"}, EVERYTHING),
    "data.source.symbol_columns": (["venue"], EVERYTHING),
    "data.source.symbols": (["EURUSD"], set()),
    "data.source.exclude": (["GBPUSD"], set()),
    "data.source.points_per_unit": (1000, EVERYTHING),
    **{f"data.source.policy.{fault}": ("drop", EVERYTHING) for fault in FAULTS},
    "data.source.policy.duplicate": ("keep_last", EVERYTHING),
    "data.source.policy.unsorted": ("sort", EVERYTHING),
    "data.timeframes": (["m1", "m5", "h1", "d"], {"bars h1", "streams h1", *WINDOWS}),
    "data.window.seq_len": (48, WINDOWS),
    "data.window.span": ("10d", WINDOWS),
    "data.window.min_bars": (4, set()),
    "data.window.stride": (2, WINDOWS),
    "data.window.min_coverage": (0.5, WINDOWS),
    "data.window.max_staleness": ({"m5": "1h"}, WINDOWS),
    "data.features.set": ("price", {*STREAMS, "datasets"}),
    "data.features.plugin": (str(Path(__file__).with_name("own_columns.py")), {*STREAMS, "datasets"}),
    "data.features.statistics": ("pooled", {*STREAMS, "datasets", "statistics m1", "statistics m5", "statistics d"}),
    "data.universe.failing": ("leave_out", set()),
    "data.universe.hold_out": (["GBPUSD"], {*STREAMS, "splits", "datasets"}),  # which comes with it
    "data.universe.weights": ({"EUR*": 2.0}, {"datasets"}),
    "data.split.val_fraction": (0.3, {*STREAMS, "datasets"}),
    "data.split.train_end": ("2018-01-01", {*STREAMS, "datasets"}),
    "data.split.embargo": ("1d", {*STREAMS, "datasets"}),
}


# Fields that make sense beside others only, which stand on both sides of the comparison.
BESIDE: dict[str, dict[str, Any]] = {
    "data.source.symbol_columns": {"data.source.symbol": None},
    "data.source.symbols": {"data.source.symbol": None, "data.source.symbol_columns": ["venue"]},
    "data.source.exclude": {"data.source.symbol": None, "data.source.symbol_columns": ["venue"]},
}


def leaves() -> set[str]:
    """The dotted names of all fields that hold no further fields."""
    keys = set(model_keys(Recipe, "data"))
    return {key for key in keys if not any(other.startswith(f"{key}.") for other in keys)}


def recipe(changes: Mapping[str, Any] | None = None) -> Recipe:
    values = copy.deepcopy(CONFIG.values)
    for dotted, value in (changes or {}).items():
        *sections, key = dotted.split(".")
        place = values
        for section in sections:
            place = place[section]
        place[key] = value
    return replace(CONFIG, values=values).parse("data", Recipe)


def sources(**contents: str | Iterable[str]) -> dict[str, list[SourceFile]]:
    """Source files by timeframe, each with the given content in place of an MD5."""
    return {
        name: [SourceFile(Path(f"{name}-{at}.parquet"), text) for at, text in enumerate(texts)]
        for name, texts in contents.items()
    }


ONE_FILE = sources(m1=["a"])


def keys(of: Recipe, files: Mapping[str, list[SourceFile]] = ONE_FILE) -> dict[str, set[str]]:
    """Keys of the planned entries by stage and timeframe."""
    found: dict[str, set[str]] = {}
    for node in make_plan(of, dict.fromkeys([of.symbol, *of.universe.hold_out], files)).nodes:
        name = " ".join(filter(None, (node.components.stage, node.timeframe)))
        found.setdefault(name, set()).add(node.components.key)
    return found


def changed(old: dict[str, set[str]], new: dict[str, set[str]]) -> set[str]:
    """What must be built when `old` is there and `new` is wanted."""
    return {name for name, keys_of_name in new.items() if keys_of_name != old.get(name)}


def test_every_field_of_the_recipe_is_in_the_table():
    assert set(FIELDS) == leaves()


@pytest.mark.parametrize("field", sorted(FIELDS))
def test_a_changed_field_changes_the_keys_it_must(field: str):
    value, expected = FIELDS[field]
    if field == "data.source.kind":
        assert get_args(BarsSource.model_fields["kind"].annotation) == ("bars",)
        return
    beside = BESIDE.get(field, {})
    assert recipe({**beside, field: value}) != recipe(beside)
    assert changed(keys(recipe(beside)), keys(recipe({**beside, field: value}))) == expected


def test_planning_twice_gives_the_same_keys():
    assert keys(recipe()) == keys(recipe())
    assert set(keys(recipe())) == EVERYTHING


def test_the_name_is_the_symbol_where_none_is_given():
    unnamed = recipe({"data.source.symbol": None})
    assert changed(keys(unnamed), keys(recipe({"data.source.symbol": None, "data.name": "other"}))) == {"datasets"}


def test_the_session_matters_to_days_only():
    intraday = {"data.timeframes": ["m1", "m5"]}
    assert changed(keys(recipe(intraday)), keys(recipe({**intraday, "data.source.session": None}))) == set()
    assert changed(keys(recipe()), keys(recipe({"data.source.session": None}))) == DAYS


def test_val_fraction_does_not_matter_beside_train_end():
    bound = {"data.split.train_end": "2018-01-01"}
    assert keys(recipe(bound)) == keys(recipe({**bound, "data.split.val_fraction": 0.5}))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"data.window.seq_len": 32}, {"data.window.seq_len": {"d": 32, "m5": 32, "m1": 32}}),
        ({"data.window.span": "10d"}, {"data.window.seq_len": {"m1": 14400, "m5": 2880, "d": 10}}),
        ({"data.window.span": "10d"}, {"data.window.span": "240h", "data.window.seq_len": 5}),
        ({"data.window.max_staleness": {"m5": "1h"}}, {"data.window.max_staleness": {"m5": "60min"}}),
        (
            {"data.window.max_staleness": {"m5": "1h", "d": "3d"}},
            {"data.window.max_staleness": {"d": "3d", "m5": "1h"}},
        ),
        ({"data.window.min_coverage": 0}, {"data.window.min_coverage": 0.0}),
        ({"data.split.embargo": "1d"}, {"data.split.embargo": "24h"}),
        ({"data.split.train_end": "2018-01-01"}, {"data.split.train_end": "2018-01-01T08:00+08:00"}),
        (
            {"data.source.columns": {"time": "t", "open": "o"}},
            {"data.source.columns": {"open": "o", "time": "t"}},
        ),
    ],
)
def test_two_ways_to_say_the_same_have_the_same_keys(one: dict[str, Any], other: dict[str, Any]):
    assert keys(recipe(one)) == keys(recipe(other))


def test_the_content_of_the_base_changes_everything():
    assert changed(keys(recipe()), keys(recipe(), sources(m1=["b"]))) == EVERYTHING


def test_the_path_of_a_source_changes_nothing():
    moved = {"m1": [SourceFile(Path("/elsewhere/renamed.parquet"), "a")]}
    assert keys(recipe(), moved) == keys(recipe())


def test_the_content_of_a_higher_timeframe_changes_its_own_bars():
    of = recipe({"data.source.files": {"m1": "x", "m5": "y"}})
    before = keys(of, sources(m1=["a"], m5=["a"]))
    assert changed(before, keys(of, sources(m1=["a"], m5=["b"]))) == {
        "bars m5",
        "streams m5",
        "windows",
        "datasets",
    }
    assert changed(before, keys(of, sources(m1=["b"], m5=["a"]))) == EVERYTHING - {"bars m5"}


def test_the_same_content_as_another_timeframe_is_another_entry():
    found = keys(recipe({"data.source.files": {"m1": "x", "m5": "y"}}), sources(m1=["a"], m5=["a"]))
    assert found["bars m1"] != found["bars m5"]


def test_a_further_shard_leaves_the_others_as_they_are():
    one, two = (keys(recipe(), sources(m1=contents)) for contents in (["a"], ["a", "b"]))
    assert one["bars m1"] < two["bars m1"]
    assert changed(one, two) == EVERYTHING


def test_renaming_shards_so_that_they_sort_otherwise_changes_nothing():
    assert keys(recipe(), sources(m1=["a", "b"])) == keys(recipe(), sources(m1=["b", "a"]))


@pytest.mark.parametrize(
    ("stage", "expected"),
    [
        ("bars", EVERYTHING),
        ("streams", {*STREAMS, "datasets"}),
        ("windows", WINDOWS),
        ("datasets", {"datasets"}),
    ],
)
def test_another_version_of_a_stage_changes_it_and_what_follows(
    stage: str, expected: set[str], monkeypatch: pytest.MonkeyPatch
):
    before = keys(recipe())
    monkeypatch.setitem(bars_plan.STAGE_VERSIONS, stage, bars_plan.STAGE_VERSIONS[stage] + 1)
    assert changed(before, keys(recipe())) == expected


def test_another_version_of_the_feature_set_changes_streams(monkeypatch: pytest.MonkeyPatch):
    before = keys(recipe())
    newer = replace(fields.feature_set("returns"), version=fields.feature_set("returns").version + 1)
    monkeypatch.setattr(fields, "feature_set", lambda name, plugin: newer)
    assert changed(before, keys(recipe())) == {*STREAMS, "datasets"}


def test_every_entry_comes_after_those_it_needs():
    before: set[str] = set()
    for node in make_plan(recipe(), {"EURUSD": sources(m1=["a", "b"])}).nodes:
        assert set(node.needs) <= before
        before.add(node.components.key)
    assert make_plan(recipe(), {"EURUSD": ONE_FILE}).dataset.components.stage == "datasets"


# --- several symbols


def planned(of: Recipe, **contents: str) -> dict[str, str]:
    """Labels and keys of the entries of a dataset with one base file a symbol."""
    files = {symbol: sources(m1=[text]) for symbol, text in contents.items()}
    return {node.label: node.components.key for node in make_plan(of, files).nodes}


MANY = {"data.source.symbol": None, "data.source.files": {"m1": "{symbol}.parquet"}, "data.timeframes": ["m1", "m5"]}
OF_A = {"bars A m1 m1-0.parquet", "bars A m5", "windows A", "streams A m1", "streams A m5"}


def test_a_symbol_more_leaves_the_others_as_they_are_where_the_end_of_training_is_stated():
    stated = recipe({**MANY, "data.split.train_end": "2018-01-01"})
    one, two = planned(stated, A="a"), planned(stated, A="a", B="b")
    assert {label for label in one if two.get(label) == one[label]} == OF_A


def test_a_symbol_more_moves_the_end_of_training_where_it_is_a_fraction():
    one, two = planned(recipe(MANY), A="a"), planned(recipe(MANY), A="a", B="b")
    assert {label for label in one if two.get(label) == one[label]} == {
        label for label in OF_A if "stream" not in label
    }


def test_the_order_of_symbols_changes_nothing_and_their_names_the_dataset_only():
    assert planned(recipe(MANY), A="a", B="b") == planned(recipe(MANY), B="b", A="a")
    ab, cd = planned(recipe(MANY), A="a", B="b"), planned(recipe(MANY), C="a", D="b")
    assert ab["datasets base"] != cd["datasets base"]
    assert {*ab.values()} - {*cd.values()} == {ab["datasets base"]}


def test_symbols_with_the_same_bars_share_their_entries():
    assert len(planned(recipe(MANY), A="a", B="a")) == len({*OF_A, "splits base", "datasets base"})


def test_entries_come_after_those_they_need_for_many_symbols_too():
    before: set[str] = set()
    for node in make_plan(recipe(MANY), {name: sources(m1=[name, "x"]) for name in "CAB"}).nodes:
        assert set(node.needs) <= before
        before.add(node.components.key)


def test_rows_of_a_file_are_an_entry_of_their_own():
    venue = recipe({**BESIDE["data.source.symbols"]})
    files = {name: {"m1": [replace(ONE_FILE["m1"][0], rows={"venue": name})]} for name in ("binance", "okx")}
    shards = [node for node in make_plan(venue, files).nodes if node.file]
    assert len({node.components.key for node in shards}) == 2
