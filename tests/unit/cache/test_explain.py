from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cache.entries import Entry
from cache.explain import differences, nearest
from cache.keys import Components

WINDOWS = Components(
    "windows",
    2,
    {"timeframes": ["m1", "m5"], "window": {"seq_len": {"m1": 48, "m5": 48}, "stride": 1, "max_staleness": {}}},
    {"m1": ("a",), "m5": ("b", "c")},
)
STREAM = Components(
    "streams",
    2,
    {"timeframe": "m5", "features": {"set": "returns", "version": 1}, "split": {"val_fraction": 0.2, "embargo": "1d"}},
    {"bars": ("a",), "split": ["a", "b"]},
)
SHARD = Components("bars", 2, {"timeframe": "m1", "source": {"label": "left"}}, {"content": "x"})
DATASET = Components(
    "datasets",
    2,
    {"split": {"embargo": "0s"}},
    {
        "A": {"windows": "w", "streams": {"m1": "s", "m5": "t"}},
        "B": {"windows": "v", "streams": {"m1": "s", "m5": "u"}},
    },
)


def changed(components: Components, **changes: Any) -> list[str]:
    return list(differences(components.as_dict(), replace(components, **changes).as_dict()))


def window(**changes: Any) -> dict[str, Any]:
    return {**WINDOWS.fields, "window": {**WINDOWS.fields["window"], **changes}}


@pytest.mark.parametrize("components", [WINDOWS, STREAM, SHARD, DATASET])
def test_equals_do_not_differ(components: Components):
    assert changed(components) == []
    assert changed(components, version=3) == [f"version of stage {components.stage} 2 → 3"]


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        (window(seq_len={"m1": 64, "m5": 64}), ["data.window.seq_len 48 → 64"]),
        (window(seq_len={"m1": 48, "m5": 12}), ["data.window.seq_len.m5 48 → 12"]),
        (window(stride=2), ["data.window.stride 1 → 2"]),
        (window(max_staleness={"m5": "1h"}), ["data.window.max_staleness.m5 none → 1h"]),
        (
            window(stride=2, seq_len={"m1": 64, "m5": 64}),
            ["data.window.seq_len 48 → 64", "data.window.stride 1 → 2"],
        ),
    ],
)
def test_fields_are_told_in_the_words_of_the_recipe(fields: dict[str, Any], expected: list[str]):
    assert changed(WINDOWS, fields=fields) == expected


def test_a_length_of_its_own_for_each_timeframe_is_compared_by_timeframe():
    uneven = replace(WINDOWS, fields=window(seq_len={"m1": 48, "m5": 12}))
    assert changed(uneven, fields=window(seq_len={"m1": 40, "m5": 12})) == ["data.window.seq_len.m1 48 → 40"]


def test_another_list_of_timeframes_does_not_count_lengths_too():
    fields = {**window(seq_len={"m1": 48, "h1": 48}), "timeframes": ["m1", "h1"]}
    assert changed(WINDOWS, fields=fields, inputs={"m1": ("a",), "h1": ("d",)}) == [
        "data.timeframes m1 m5 → m1 h1",
        "other bars of h1",
    ]


@pytest.mark.parametrize(
    ("components", "inputs", "expected"),
    [
        (WINDOWS, {"m1": ["a"], "m5": ["b", "c"]}, []),  # as a manifest has it
        (WINDOWS, {"m1": ["a"], "m5": ["b"]}, ["other bars of m5"]),
        (STREAM, {"bars": ["z"], "split": ["a", "b"]}, ["other bars"]),
        (STREAM, {"bars": ["a"], "split": ["a"]}, ["other base bars decide where training ends"]),
        (STREAM, {"bars": ["a"]}, ["other base bars decide where training ends"]),
        (SHARD, {"content": "y"}, ["new file"]),
        (SHARD, {"content": "x", "rows": {"venue": "okx"}}, ["another symbol of the file"]),
        (DATASET, {"A": DATASET.inputs["A"]}, ["symbols removed: B"]),
        (DATASET, {**DATASET.inputs, "C": DATASET.inputs["A"]}, ["symbols added: C"]),
        (
            DATASET,
            {**DATASET.inputs, "A": {"windows": "x", "streams": {"m1": "s", "m5": "y"}}},
            ["A has other entries: windows, stream m5"],
        ),
        (
            DATASET,
            {**DATASET.inputs, "A": {"windows": "w", "streams": {"m1": "s"}}},
            ["A has other entries: fewer streams"],
        ),
    ],
)
def test_inputs(components: Components, inputs: dict[str, Any], expected: list[str]):
    assert changed(components, inputs=inputs) == expected


def entry(components: Components) -> Entry:
    return Entry(Path("store") / components.stage / components.key, {"components": components.as_dict()})


def test_the_nearest_entry_has_the_fewest_differences():
    far = replace(WINDOWS, fields=window(seq_len={"m1": 64, "m5": 64}, stride=3))
    near = replace(WINDOWS, fields=window(stride=3))
    found = nearest(WINDOWS, [entry(far), entry(near), entry(replace(near, version=1))])
    assert found is not None
    assert found[0].path == entry(near).path
    assert found[1] == ["data.window.stride 3 → 1"]


def test_the_first_of_equally_near_ones_is_taken():
    one, other = (replace(WINDOWS, fields=window(stride=stride)) for stride in (3, 4))
    for first, second in ((one, other), (other, one)):
        found = nearest(WINDOWS, [entry(first), entry(second)])
        assert found is not None
        assert found[0].path == entry(first).path


def test_entries_behind_one_with_a_single_difference_are_not_read():
    """Of thousands of symbols nearly all are compared with thousands."""
    near, far = (replace(WINDOWS, fields=window(stride=3, **more)) for more in ({}, {"seq_len": {"m1": 64, "m5": 64}}))
    entries = iter([entry(far), entry(near), entry(far)])
    found = nearest(WINDOWS, entries)
    assert found is not None
    assert found[0].path == entry(near).path
    assert len(list(entries)) == 1


def test_other_stages_and_timeframes_are_no_neighbours():
    other = replace(STREAM, fields={**STREAM.fields, "timeframe": "m1"})
    assert nearest(STREAM, [entry(other), entry(WINDOWS), entry(SHARD)]) is None
    assert nearest(STREAM, []) is None
