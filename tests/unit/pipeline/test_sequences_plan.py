from pathlib import Path
from typing import Any, get_args

import pytest

from cache.sequence_recipe import SequenceRecipe, SequencesSource
from configs.loader import model_keys
from pipeline import sequences_plan
from pipeline.plan import SourceFile
from pipeline.sequences_plan import make_sequence_plan
from tests.unit.pipeline.making_sequences import make_sequence_recipe

FOLDS = {"streams fold-0", "streams fold-1", "streams fold-2", "streams fold-3", "streams fold-4"}
AFTER_WINDOWS = {"windows", *FOLDS, "datasets"}
AFTER_STREAM = {"streams all", *FOLDS, "datasets"}
EVERYTHING = {"recordings", "streams all", *AFTER_WINDOWS}

# Every field of the recipe: another value for it, and the entries whose keys that changes.
FIELDS: dict[str, tuple[str, set[str]]] = {
    "data.name": ("other", set()),
    "data.source.files": ("elsewhere.csv", set()),
    "data.source.id": ("recording", EVERYTHING),
    "data.source.order": ("row", EVERYTHING),
    "data.source.group": ("person", EVERYTHING),
    "data.source.labels": ("[gesture, hand]", EVERYTHING),
    "data.source.binary.name": ("aimed", AFTER_WINDOWS),
    "data.source.binary.label": ("hand", EVERYTHING),
    "data.source.binary.positive": ("[pinch]", AFTER_WINDOWS),
    "data.source.channels": ("[acc_*]", EVERYTHING),
    "data.source.sentinels": ("[-1]", EVERYTHING),
    "data.source.policy.unsorted": ("sort", EVERYTHING),
    "data.source.policy.duplicate": ("keep_last", EVERYTHING),
    "data.source.policy.not_finite": ("missing", EVERYTHING),
    "data.source.policy.unlabelled": ("drop", EVERYTHING),
    "data.source.policy.changing": ("drop", EVERYTHING),
    "data.source.policy.single_row": ("keep", EVERYTHING),
    "data.source.policy.empty_channel": ("drop", EVERYTHING),
    "data.fill": ("[zero]", AFTER_STREAM),
    "data.derive": ("[magnitude]", AFTER_STREAM),
    "data.length.mode": ("pad", {*AFTER_STREAM, "windows"}),
    "data.length.seq_len": ("64", {*AFTER_STREAM, "windows"}),
    "data.normalise": ("standard", {*FOLDS, "datasets"}),
    "data.folds.count": ("4", {*AFTER_WINDOWS} - {"streams fold-4"}),
    "data.folds.seed": ("1", AFTER_WINDOWS),
}
BESIDE = {"data.source.binary.label": ("source.labels=[gesture, hand]",)}


def keys(*overrides: str, files: tuple[SourceFile, ...] = (SourceFile(Path("a.csv"), "a"),)) -> dict[str, list[str]]:
    """Keys of the planned entries by stage and stream."""
    recipe = make_sequence_recipe(*overrides)
    found: dict[str, list[str]] = {}
    for node in make_sequence_plan(recipe, {recipe.name: {"recordings": files}}).nodes:
        found.setdefault(" ".join(filter(None, (node.components.stage, node.timeframe))), []).append(
            node.components.key
        )
    return found


def changed(old: dict[str, Any], new: dict[str, Any]) -> set[str]:
    """What must be built when `old` is there and `new` is wanted."""
    return {name for name in new if new[name] != old.get(name)}


def test_every_field_of_the_recipe_is_in_the_table():
    every = set(model_keys(SequenceRecipe, "data"))
    leaves = {key for key in every if not any(other.startswith(f"{key}.") for other in every)}
    assert set(FIELDS) | {"data.source.kind"} == leaves
    assert get_args(SequencesSource.model_fields["kind"].annotation) == ("sequences",)


@pytest.mark.parametrize("field", sorted(FIELDS))
def test_a_changed_field_changes_the_keys_it_must(field: str):
    value, expected = FIELDS[field]
    beside = BESIDE.get(field, ())
    found = changed(keys(), keys(*beside, f"{field.removeprefix('data.')}={value}"))
    # the dataset's inputs name it
    assert found == (expected or ({"datasets"} if field == "data.name" else set()))


def test_without_normalisation_one_stream_serves_all_folds():
    found = keys("normalise=none")
    assert list(found) == ["recordings", "streams all", "windows", "datasets"]
    assert changed(keys(), found) == {"datasets"}


@pytest.mark.parametrize("stage", sorted(sequences_plan.STAGE_VERSIONS))
def test_a_stage_version_is_part_of_the_key(stage: str, monkeypatch: pytest.MonkeyPatch):
    before = keys()
    monkeypatch.setitem(sequences_plan.STAGE_VERSIONS, stage, 99)
    assert stage in {name.split()[0] for name in changed(before, keys())}


def test_content_and_parts_decide_and_paths_do_not():
    one = keys(files=(SourceFile(Path("a.csv"), "a", span=(0, 9)), SourceFile(Path("a.csv"), "a", span=(9, 20))))
    assert len(one["recordings"]) == 2
    assert (
        changed(
            one, keys(files=(SourceFile(Path("b.csv"), "a", span=(0, 9)), SourceFile(Path("b.csv"), "a", span=(9, 20))))
        )
        == set()
    )
    assert (
        changed(
            one, keys(files=(SourceFile(Path("a.csv"), "a", span=(0, 8)), SourceFile(Path("a.csv"), "a", span=(8, 20))))
        )
        == EVERYTHING
    )
    assert changed(keys(), keys(files=(SourceFile(Path("a.csv"), "b"),))) == EVERYTHING
