import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cache.entries import Entry
from cache.explain import Neighbours, differences, value_words
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
    manifest = {"key": components.key, "components": components.as_dict()}
    return Entry(Path("store") / components.stage / components.key, manifest)


def nearest(wanted: Components, entries: Iterable[Entry]) -> tuple[Entry, list[str]] | None:
    return Neighbours(entries).nearest(wanted)


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


@given(st.data())
def test_no_entry_is_nearer(data: st.DataObject):
    """Against comparing with every entry: as few differences, and none before it has as few."""
    values = st.sampled_from("ab")
    streams = st.builds(
        lambda version, embargo, bars, split, base: Components(
            "streams",
            version,
            {"timeframe": "m5", "split": {"embargo": embargo}},
            {"bars": bars, **({"split": split} if split else {}), **({"base": base} if base else {})},
        ),
        st.integers(1, 2),
        values,
        st.lists(values, max_size=2),
        st.lists(values, max_size=1),
        st.lists(values, max_size=1),
    )
    wanted, there = data.draw(streams), data.draw(st.lists(streams, min_size=1, max_size=8))
    found = nearest(wanted, map(entry, there))
    counts = [len(list(differences(one.as_dict(), wanted.as_dict()))) for one in there]
    assert found is not None
    assert found[0].key == there[counts.index(min(counts))].key
    assert found[1] == list(differences(there[counts.index(min(counts))].as_dict(), wanted.as_dict()))


def test_the_nearest_dataset_has_the_most_symbols_in_common():
    def dataset(*windows: str) -> Components:
        symbols = (f"S{number:02}" for number in range(len(windows)))
        inputs = {name: {"windows": one, "streams": {"m1": "s"}} for name, one in zip(symbols, windows, strict=True)}
        return replace(DATASET, inputs=inputs)

    near, far = dataset(*"abcdefghij"), dataset(*"zzzzzfghij")
    found = nearest(dataset(*"abcdefghiz"), map(entry, (far, near)))
    assert found is not None
    assert found[0].key == near.key
    assert found[1] == ["S09 has other entries: windows"]
    assert nearest(dataset(*"zzzzzfghij"), [entry(near)])[1] == [  # type: ignore[index]
        "S00, S01, S02 and 2 more have other entries: windows"
    ]


def test_all_of_a_universe_are_compared_in_a_time_that_grows_with_their_number():
    """Each of 2,000 streams with each other: half a minute, and not three seconds."""

    def streams(embargo: str) -> list[Components]:
        fields = {**STREAM.fields, "split": {"val_fraction": 0.2, "embargo": embargo}}
        return [replace(STREAM, fields=fields, inputs={"bars": [f"{n}"], "split": [embargo]}) for n in range(2_000)]

    there = Neighbours(map(entry, streams("1d")))
    began = time.perf_counter()
    found = [there.nearest(wanted) for wanted in streams("2d")]
    assert time.perf_counter() - began < 3
    assert [one and one[0].manifest["components"]["inputs"]["bars"] for one in found] == [
        [f"{n}"] for n in range(2_000)
    ]


def test_a_long_list_is_told_by_its_beginning():
    assert value_words([f"S{n}" for n in range(8)]) == "S0 S1 S2 S3 S4 S5 S6 S7"
    assert value_words([f"S{n}" for n in range(9)]) == "S0 S1 S2 S3 S4 S5 S6 S7 … (9)"


def test_other_timeframes_are_no_neighbours():
    other = replace(STREAM, fields={**STREAM.fields, "timeframe": "m1"})
    assert nearest(STREAM, [entry(other)]) is None
    assert nearest(STREAM, []) is None
