from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from configs.errors import UserError
from pipeline import sequences_sources
from pipeline.sequences import as_bytes, as_names
from pipeline.sequences_sources import find_recordings
from tests.unit.pipeline.making_sequences import make_frame, make_sequence_recipe, read, write_csv


def refused(path: Path, *overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        read(path, *overrides)
    return str(caught.value)


def frame_and(tmp_path: Path, change) -> Path:
    """Two recordings of five rows in a file, changed."""
    frame = make_frame([5, 5])
    changed = change(frame)
    return write_csv(tmp_path / "r.csv", frame if changed is None else changed)


def test_what_is_read(tmp_path: Path):
    frame = make_frame([4, 1, 3], missing=0.2)
    frame.loc[0, "acc_y"] = -1
    found = read(write_csv(tmp_path / "r.csv", frame), "source.sentinels=[-1]", "source.policy.single_row=keep")
    assert as_names(found.id) == ["S000", "S001", "S002"]
    assert found.rows.tolist() == [4, 1, 3]
    assert found.time.tolist() == [3, 0, 2]
    assert found.groups == ["P0", "P1", "P2"] and found.group.tolist() == [0, 1, 2]
    assert found.classes == {"gesture": ["scratch"]} and found.label.tolist() == [[0], [0], [0]]
    assert found.channels == ("acc_x", "acc_y", "acc_z")
    expected = frame[["acc_x", "acc_y", "acc_z"]].to_numpy().copy()
    expected[0, 1] = np.nan
    np.testing.assert_array_equal(found.values, expected)
    missing = np.isnan(expected).sum(axis=0)
    assert missing.all() and found.missing == dict(zip(found.channels, missing.tolist(), strict=True))
    assert (found.unused, found.repaired) == ([], {})


def test_parquet_is_as_good_as_text(tmp_path: Path):
    frame = make_frame([4, 6, 3], missing=0.2).astype({"acc_x": "float32", "subject": "category"})
    frame.to_parquet(tmp_path / "r.parquet")
    of_text, of_parquet = (
        read(write_csv(tmp_path / "r.csv", frame.astype({"acc_x": float}))),
        read(tmp_path / "r.parquet"),
    )
    for name in ("id", "rows", "time", "group", "label", "values"):
        np.testing.assert_array_equal(getattr(of_text, name), getattr(of_parquet, name))
    assert (of_text.groups, of_text.classes) == (of_parquet.groups, of_parquet.classes)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30)
@given(st.lists(st.integers(2, 9), min_size=1, max_size=12), st.integers(1, 900), st.booleans())
def test_parts_of_a_file_are_the_file(tmp_path: Path, lengths: list[int], shard_bytes: int, windows_ends: bool):
    path = write_csv(tmp_path / "r.csv", make_frame(lengths), lineterminator="\r\n" if windows_ends else "\n")
    recipe = make_sequence_recipe("source.channels=[acc_*]", "source.files=r.csv")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(sequences_sources, "SHARD_BYTES", shard_bytes)
        files = find_recordings(recipe, tmp_path, tmp_path / "store")["imu"]["recordings"]
    whole, parts = read(path), [read(path, span=file.span) for file in files]
    if len(files) > 1:
        assert [file.span[0] for file in files[1:]] == [file.span[1] for file in files[:-1]]
    assert [name for part in parts for name in as_names(part.id)] == as_names(whole.id)
    for name in ("rows", "time", "values"):
        np.testing.assert_array_equal(np.concatenate([getattr(part, name) for part in parts]), getattr(whole, name))


def test_a_message_from_a_part_counts_the_rows_of_the_file(tmp_path: Path):
    frame = make_frame([5, 5, 5])
    frame.loc[12, "sequence_counter"] = 1
    path = write_csv(tmp_path / "r.csv", frame)
    middle = path.read_bytes().index(b"S002")
    with pytest.raises(UserError, match=r"row 12: 1 comes twice in sequence S002"):
        read(path, span=(middle, path.stat().st_size))


def duplicate(frame: pd.DataFrame) -> pd.DataFrame:
    frame.loc[3, "sequence_counter"] = 2
    return frame


def backwards(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.iloc[[0, 2, 1, 3, 4, 5, 6, 7, 8, 9]]


def apart(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.iloc[[0, 1, 5, 6, 2, 3, 4, 7, 8, 9]]


def single(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.iloc[4:]


def with_value(row: int, column: str, value: object):
    def change(frame: pd.DataFrame) -> pd.DataFrame:
        changed = frame.astype({column: object})
        changed.loc[row, column] = value
        return changed

    return change


def empty_channel(frame: pd.DataFrame) -> None:
    frame.loc[5:, "acc_y"] = np.nan


def unlabelled(frame: pd.DataFrame) -> None:
    frame.loc[:4, "gesture"] = None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            duplicate,
            "column sequence_counter, row 3: 2 comes twice in sequence S000; remove one row, or set "
            "data.source.policy.duplicate=keep_first or keep_last",
        ),
        (
            backwards,
            "column sequence_counter, row 2: 1 comes after 2 in sequence S000; sort the file by sequence_id and "
            "sequence_counter, or set data.source.policy.unsorted=sort",
        ),
        (
            apart,
            "column sequence_id, row 4: S000 goes on here after rows of another sequence; sort the file by sequence_id "
            "and sequence_counter, or set data.source.policy.unsorted=sort",
        ),
        (
            single,
            "column sequence_id, row 0: sequence S000 has this one row, which tells of no movement; remove it, or set "
            "data.source.policy.single_row=drop or keep",
        ),
        (
            with_value(7, "gesture", "wave"),
            "column gesture, row 7: scratch becomes wave inside S001; correct it, or set "
            "data.source.policy.changing=drop",
        ),
        (
            with_value(3, "subject", None),
            "column subject, row 3: P0 becomes nothing inside S000; correct it, or set "
            "data.source.policy.changing=drop",
        ),
        (
            unlabelled,
            "column gesture, row 0: sequence S000 of subject P0 has no gesture; fill it in, or set "
            "data.source.policy.unlabelled=drop",
        ),
        (
            with_value(6, "acc_z", "inf"),
            "column acc_z, row 6: inf is not a finite number; correct it, or set data.source.policy.not_finite=missing",
        ),
        (
            with_value(6, "acc_z", 1e16),
            "column acc_z, row 6: 1e+16 is beyond 1e+15, and no measurement; correct it, or set "
            "data.source.policy.not_finite=missing",
        ),
        (
            with_value(6, "sequence_counter", "t6"),
            "column sequence_counter, row 6: 't6' is not a number; correct it",
        ),
        (
            with_value(6, "acc_z", "high"),
            "column acc_z, row 6: 'high' is not a number; correct it, or leave the field empty",
        ),
        (
            with_value(6, "acc_z", "1,5"),
            "column acc_z, row 6: '1,5' is not a number; write 1234.5, with a point before the decimals and nothing "
            "between the thousands",
        ),
        (
            with_value(2, "sequence_counter", None),
            "column sequence_counter, row 2: no number says where in its sequence this row stands; fill it in, or "
            "remove the row",
        ),
        (
            with_value(9, "sequence_id", None),
            "column sequence_id, row 9: no id says which sequence this row belongs to; fill it in, or remove the row",
        ),
        (
            lambda frame: frame.rename(columns={"subject": "Subject"}),
            "data.source.group names subject, which is no column of it; did you mean Subject?",
        ),
        (
            lambda frame: frame.rename(columns={"gesture": "klass"}),
            "data.source.labels names gesture, which is no column of it; its columns are sequence_id, "
            "sequence_counter, subject, klass, acc_x, acc_y, acc_z",
        ),
        (
            lambda frame: frame.drop(columns=["acc_x", "acc_y", "acc_z"]).assign(a_x=1.0),
            "data.source.channels has acc_*, which no column of it matches; its columns are sequence_id, "
            "sequence_counter, subject, gesture, a_x",
        ),
    ],
)
def test_what_is_refused(tmp_path: Path, change, message: str):
    path = frame_and(tmp_path, change)
    assert refused(path) == f"{path}: {message}"


def test_an_empty_channel_can_be_refused(tmp_path: Path):
    path = frame_and(tmp_path, empty_channel)
    assert refused(path, "source.policy.empty_channel=error") == (
        f"{path}: column acc_y, row 5: sequence S001 has no value in this channel; set "
        "data.source.policy.empty_channel=zero or drop"
    )


@pytest.mark.parametrize(
    ("change", "policy", "rows", "repaired"),
    [
        (duplicate, "duplicate=keep_first", [4, 5], {"duplicate": {"rows": 1, "first_row": 3}}),
        (duplicate, "duplicate=keep_last", [4, 5], {"duplicate": {"rows": 1, "first_row": 2}}),
        (backwards, "unsorted=sort", [5, 5], {"unsorted": {"rows": 1, "first_row": 2}}),
        (apart, "unsorted=sort", [5, 5], {"unsorted": {"rows": 2, "first_row": 4}}),
        (single, "single_row=drop", [5], {"single_row": {"sequences": 1, "first_row": 0}}),
        (single, "single_row=keep", [1, 5], {}),
        (with_value(7, "gesture", "wave"), "changing=drop", [5], {"changing": {"sequences": 1, "first_row": 5}}),
        (unlabelled, "unlabelled=drop", [5], {"unlabelled": {"sequences": 1, "first_row": 0}}),
        (with_value(6, "acc_z", "inf"), "not_finite=missing", [5, 5], {"not_finite": {"rows": 1, "first_row": 6}}),
        (with_value(6, "acc_z", -1e16), "not_finite=missing", [5, 5], {"not_finite": {"rows": 1, "first_row": 6}}),
        (empty_channel, "empty_channel=drop", [5], {"empty_channel": {"sequences": 1, "first_row": 5}}),
    ],
)
def test_what_a_policy_does_is_counted(tmp_path: Path, change, policy: str, rows: list[int], repaired: dict):
    path = frame_and(tmp_path, change)
    found = read(path, f"source.policy.{policy}")
    assert found.rows.tolist() == rows
    assert found.repaired == repaired
    frame = pd.read_csv(path)
    if policy == "unsorted=sort":
        frame = frame.sort_values(["sequence_id", "sequence_counter"])
    elif "keep" in policy and "single" not in policy:
        frame = frame.drop_duplicates(["sequence_id", "sequence_counter"], keep=policy.split("_")[1])
    elif "drop" in policy:
        frame = frame[frame.sequence_id == as_names(found.id)[0]]
    expected = frame[["acc_x", "acc_y", "acc_z"]].to_numpy(float)
    np.testing.assert_array_equal(found.values, np.where(np.abs(expected) > 1e15, np.nan, expected))


def test_an_empty_channel_is_counted(tmp_path: Path):
    found = read(frame_and(tmp_path, empty_channel))
    assert found.empty == {"acc_y": 1}
    assert np.isnan(found.values[5:, 1]).all()


def test_several_faults_of_a_kind_are_counted_together(tmp_path: Path):
    frame = make_frame([5, 5, 5])
    frame.loc[1, "gesture"], frame.loc[11, "subject"] = "wave", "P9"
    found = read(write_csv(tmp_path / "r.csv", frame), "source.policy.changing=drop")
    assert found.repaired == {"changing": {"sequences": 2, "first_row": 0}}
    assert as_names(found.id) == ["S001"]


def test_a_part_without_any_whole_sequence(tmp_path: Path):
    frame = make_frame([5])
    frame["gesture"] = None
    found = read(write_csv(tmp_path / "r.csv", frame), "source.policy.unlabelled=drop")
    assert len(found) == 0 and found.values.shape == (0, 3) and found.id.shape[0] == 0


def test_blank_lines_do_no_harm_and_line_breaks_in_quotes_are_found(tmp_path: Path):
    path = write_csv(tmp_path / "r.csv", make_frame([5, 5]))
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:4], "", *lines[4:], "", ""]))
    assert read(path).rows.tolist() == [5, 5]
    lines[4] = lines[4].replace("P0", '"P0\nx"')
    path.write_text("\n".join(lines))
    assert refused(path).startswith(f"{path}: column subject, row 3: a quoted field holds a line break, 'P0\\nx'")


def test_a_row_with_too_few_fields(tmp_path: Path):
    path = write_csv(tmp_path / "r.csv", make_frame([5, 5]))
    path.write_text(path.read_text() + "S001,9\n")
    assert refused(path).startswith(f"{path}: row 10 has 2 fields, but the header has 7: 'S001,9'")


def test_a_column_that_is_no_number_in_parquet(tmp_path: Path):
    make_frame([5]).astype({"acc_x": str}).to_parquet(tmp_path / "r.parquet")
    assert "column acc_x holds" in refused(tmp_path / "r.parquet")
    assert "not numbers; store it as float64" in refused(tmp_path / "r.parquet")


@given(st.lists(st.text(st.characters(blacklist_characters="\0", blacklist_categories=["Cs"]), max_size=5), max_size=5))
def test_names_survive_as_bytes(names: list[str]):
    assert as_names(as_bytes(names)) == names
