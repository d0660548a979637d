"""Recordings from CSV to a dataset: what its arrays mean, what is told of it, and what no build lets pass."""

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click
import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

from cache.entries import Entry, StoreError, open_entry
from cache.inspect_command import list_command, show_command, stats_command
from cache.part import part_of, universe_of
from cache.reader import Dataset, open_dataset
from cache.transfer_command import export_command, import_command
from cache.verify import check_content, check_metadata
from configs.errors import UserError
from pipeline import sequences_execute, sequences_sources
from pipeline.build import build
from pipeline.build_command import main as build_command
from pipeline.certify_command import certify_command
from pipeline.explain_command import explain_command
from pipeline.sequences import as_names
from pipeline.simulate_imu import CHANNELS, simulate_imu
from tests.unit.cache.making import change_manifest, flip, overwrite
from tests.unit.pipeline.making import quiet
from tests.unit.pipeline.making_sequences import make_frame, make_sequence_recipe, write_csv

ROOT = Path(__file__).parents[2]
BFRB = ROOT.parent / "shared" / "data" / "imu"
LENGTH = 40
SMALL = ("folds.count=3", f"length.seq_len={LENGTH}", "source.files='*.csv'", "derive=[sign_continuity, magnitude]")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Recordings of seven persons in three files."""
    folder = tmp_path_factory.mktemp("imu")
    simulate_imu(folder / "all", 350, 5, lambda written: None)
    frame = pd.read_csv(folder / "all")
    persons = sorted(frame.subject.unique())
    for name, some in (("a", persons[:3]), ("b", persons[3:6]), ("c", persons[6:])):
        write_csv(folder / f"{name}.csv", frame[frame.subject.isin(some)])
    return folder


@pytest.fixture(scope="module")
def frame(data: Path) -> pd.DataFrame:
    return pd.concat([pd.read_csv(data / f"{name}.csv") for name in "abc"], ignore_index=True)


def build_small(data: Path, store: Path, *overrides: str) -> Dataset:
    return build(make_sequence_recipe(*SMALL, *overrides), data, store, 2, quiet()).dataset


@pytest.fixture(scope="module")
def store(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With the dataset imu. Read only."""
    store = tmp_path_factory.mktemp("built") / "store"
    build_small(data, store)
    return store


@pytest.fixture(scope="module")
def dataset(store: Path) -> Dataset:
    return open_dataset(store, "imu")


def filled(frame: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """The channels of every recording without gaps, in the slow way: one frame each, with signs mended."""
    found = {}
    for name, part in frame.groupby("sequence_id", sort=False):
        values = part[list(CHANNELS)].ffill().bfill().fillna(0.0).reset_index(drop=True)
        pose = values[["rot_w", "rot_x", "rot_y", "rot_z"]].to_numpy().copy()
        for row in range(1, len(pose)):
            pose[row] *= -1 if pose[row] @ pose[row - 1] < 0 else 1
        values[["rot_w", "rot_x", "rot_y", "rot_z"]] = pose
        values["acc_magnitude"] = np.sqrt((values[["acc_x", "acc_y", "acc_z"]] ** 2).sum(axis=1))
        found[str(name)] = values
    return found


@pytest.fixture(scope="module")
def interpolated(frame: pd.DataFrame) -> np.ndarray:
    """All recordings at one length, float32 [n, L, F], by numpy.interp."""
    sequences = []
    for values in filled(frame).values():
        at, before = np.linspace(0, len(values) - 1, LENGTH), np.arange(len(values))
        sequences.append(np.stack([np.interp(at, before, values[name]) for name in values], axis=1))
    return np.stack(sequences).astype(np.float32)


def values_of(entry: Entry) -> np.ndarray:
    return np.asarray(entry.array("values")).reshape(-1, LENGTH, entry.shape("values")[1])


def test_windows_say_what_the_recordings_say(dataset: Dataset, frame: pd.DataFrame):
    windows = part_of(dataset, 0).windows
    each = frame.groupby("sequence_id", sort=False)
    place = windows.array("ends")[:, 0] // LENGTH - 1
    assert sorted(place) == list(range(350))
    assert as_names(np.asarray(windows.array("id"))) == [list(each.groups)[at] for at in place]
    manifest, label = windows.manifest, windows.array("label")
    gesture = each.gesture.first().to_numpy()[place]
    assert [manifest["classes"]["gesture"][code] for code in label[:, 0]] == gesture.tolist()
    assert manifest["classes"]["target"] == ["not target", "target"]
    np.testing.assert_array_equal(label[:, 1], np.isin(gesture, ["scratch", "pinch", "pull", "pluck"]))
    assert [manifest["groups"][code] for code in windows.array("group")] == each.subject.first().to_numpy()[
        place
    ].tolist()
    np.testing.assert_array_equal(windows.array("time"), each.size().to_numpy()[place] - 1)


def test_a_fold_is_a_range_and_knows_its_persons(dataset: Dataset):
    parts = [part_of(dataset, fold) for fold in range(3)]
    group = parts[0].windows.array("group")
    assert [part.val.start for part in parts] == [0, *(part.val.stop for part in parts[:-1])]
    for fold, part in enumerate(parts):
        train = [window for some in part.train for window in some]
        assert sorted([*train, *part.val]) == list(range(350))
        assert not set(group[train]) & set(group[part.val])
        assert set(part.windows.array("fold")[list(part.val)]) == {fold}
        assert list(part.streams) == dataset.timeframes == ["sequence"]
    assert [len(part.train) for part in parts] == [1, 2, 1]
    assert dataset.seq_lens == {"sequence": LENGTH} and dataset.kind == "sequences"
    counts = dataset.entry.manifest["folds"][1]["classes"]["gesture"]
    assert sum(counts.values()) == len(parts[1].val)


def test_streams_are_what_the_slow_way_gives(dataset: Dataset, store: Path, interpolated: np.ndarray):
    part = part_of(dataset, 0)
    raw = open_entry(store, "streams", part.streams["sequence"].manifest["components"]["inputs"]["streams"][0])
    assert raw.manifest["features"] == [*CHANNELS, "acc_magnitude"]
    np.testing.assert_array_equal(values_of(raw)[:, :, :7], interpolated[:, :, :7])
    np.testing.assert_allclose(values_of(raw), interpolated, rtol=1e-6)
    place = part.windows.array("ends")[:, 0] // LENGTH - 1
    for fold in range(3):
        part = part_of(dataset, fold)
        train = interpolated[[place[window] for some in part.train for window in some]].astype(float)
        low, middle, high = np.percentile(train.reshape(-1, 8), (25, 50, 75), axis=0)
        expected = (interpolated - middle) / ((high - low) / 1.3489795003921634)
        np.testing.assert_allclose(values_of(part.streams["sequence"]), expected, rtol=1e-5, atol=1e-5)


def test_padding_standardised(data: Path, frame: pd.DataFrame, tmp_path: Path):
    dataset = build_small(data, tmp_path / "store", "length.mode=pad", "normalise=standard")
    part = part_of(dataset, 1)
    ends, starts = (part.windows.array(name)[:, 0] for name in ("ends", "starts"))
    place = ends // LENGTH - 1
    recordings = list(filled(frame).values())
    lengths = np.array([len(values) for values in recordings])
    np.testing.assert_array_equal(ends - starts, np.minimum(lengths, LENGTH)[place])
    assert (lengths < LENGTH).any() and (lengths > LENGTH).any()
    last = [values.to_numpy()[-LENGTH:] for values in recordings]
    train = np.concatenate([last[place[window]] for some in part.train for window in some])
    found = values_of(part.streams["sequence"])
    for values, expected in zip(found, last, strict=True):
        np.testing.assert_allclose(
            values[LENGTH - len(expected) :], (expected - train.mean(0)) / train.std(0), rtol=1e-4, atol=1e-4
        )
        assert (values[: LENGTH - len(expected)] == 0).all()


def test_without_normalisation_all_folds_share_a_stream(data: Path, tmp_path: Path, interpolated: np.ndarray):
    dataset = build_small(data, tmp_path / "store", "normalise=none", "derive=[]")
    streams = [part_of(dataset, fold).streams["sequence"] for fold in range(3)]
    assert len({stream.key for stream in streams}) == 1
    values = values_of(streams[0])
    np.testing.assert_array_equal(values[:, :, :3], interpolated[:, :, :3])


def test_what_asks_for_no_fold_or_a_wrong_one(dataset: Dataset, test_store: Path):
    for fold, message in ((None, "say which"), (3, "there is no fold 3"), (-1, "there is no fold -1")):
        with pytest.raises(UserError, match=f"imu has folds 0 to 2, of which one validates; {message}"):
            part_of(dataset, fold)
    bars = open_dataset(test_store, "test")
    assert bars.kind == "bars" and bars.folds == []
    universe = universe_of(bars)
    assert list(universe.streams) == ["m1", "m5", "m15"]
    assert {name: part.tolist() for name, part in universe.parts.items()} == {
        name: [bounds["windows"]["TEST"]] for name, bounds in bars.splits.items()
    }
    with pytest.raises(UserError, match="test is made of bars, which are split by time and have no folds"):
        universe_of(bars, 0)


def md5s(store: Path) -> dict[str, dict[str, str]]:
    found = {}
    for path in store.glob("*/[!.]*/zarr.json"):
        arrays = json.loads(path.read_bytes())["attributes"]["arrays"]
        found[str(path.parent.relative_to(store))] = {name: array["md5"] for name, array in arrays.items()}
    return found


def test_another_build_gives_the_same_bytes(data: Path, store: Path, tmp_path: Path):
    build(make_sequence_recipe(*SMALL), data, tmp_path / "store", 1, quiet())
    assert md5s(tmp_path / "store") == md5s(store)


def test_parts_of_a_file_make_the_same_dataset(
    data: Path, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(sequences_sources, "SHARD_BYTES", 200_000)
    dataset = build_small(data, tmp_path / "store")
    inputs = part_of(dataset, 0).windows.manifest["components"]["inputs"]["recordings"]
    assert len(inputs) > 6
    of_parts, whole = dataset.symbols["imu"], open_dataset(store, "imu").symbols["imu"]
    for left, right in ((of_parts.windows, whole.windows), (of_parts.streams["fold-2"], whole.streams["fold-2"])):
        assert {n: a["md5"] for n, a in left.manifest["arrays"].items()} == {
            n: a["md5"] for n, a in right.manifest["arrays"].items()
        }


def test_a_killed_build_goes_on_where_it_was(data: Path, store: Path, tmp_path: Path):
    command = [
        ROOT / "bin/build-cache",
        "--config",
        "configs/imu.yaml",
        "--data-dir",
        data,
        "--store",
        tmp_path / "store",
    ]
    process = subprocess.Popen(
        [*command, "--workers", "1", *(f"data.{one}" for one in SMALL)], stdout=subprocess.DEVNULL
    )
    while not list(tmp_path.glob("store/recordings/[!.]*/zarr.json")) and process.poll() is None:
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept = {path: path.stat().st_ino for path in tmp_path.glob("store/*/[!.]*/zarr.json")}
    assert kept
    build_small(data, tmp_path / "store")
    assert {path: path.stat().st_ino for path in kept} == kept
    assert md5s(tmp_path / "store") == md5s(store)
    assert check_content(check_metadata(tmp_path / "store")) == ()


@pytest.mark.parametrize(
    ("name", "replacement", "message"),
    [
        (  # a fold's stream is normalised by what all recordings are like
            "fit_scaling",
            lambda real: lambda values, train, first, method: real(values, np.ones_like(train), first, method),
            r"statistics: fold 0, acc_x: normalised by .* but what the fold trains on gives .* more\)",
        ),
        (  # every value is multiplied by a little, and nobody says so
            "kernels",
            lambda real: type(
                "K", (), {"scale": staticmethod(lambda v, c, s, f, out: real.scale(v, c, s * 1.001, f, out))}
            ),
            r"streams: fold-0: rows [\d,]+ on are not what sequence number [\d,]+ gives",
        ),
    ],
)
def test_a_planted_leak_is_not_published(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, replacement, message: str
):
    monkeypatch.setattr(sequences_execute, name, replacement(getattr(sequences_execute, name)))
    with pytest.raises(UserError, match=f"(?s)imu: not published, because it does not prove that training.*{message}"):
        build_small(data, tmp_path / "store")
    assert not list(tmp_path.glob("store/refs/*"))


def test_a_person_in_two_folds_is_not_published(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def careless(label: np.ndarray, group: np.ndarray, folds: object, named: str) -> np.ndarray:
        return (np.arange(len(label)) % 3).astype(np.int8)

    monkeypatch.setattr("pipeline.folds.assign_folds", careless)
    with pytest.raises(
        UserError, match=r"groups: subject SUBJ_00000 is in the validation parts of folds 0, 1, 2 \(and 6"
    ):
        build_small(data, tmp_path / "store")


def told(command: click.Command, *arguments: object) -> str:
    done = CliRunner().invoke(command, [str(argument) for argument in arguments])
    assert done.exit_code == 0, done.output
    return done.output


def test_what_commands_tell(data: Path, store: Path):
    shown = told(show_command, "imu", "--store", store)
    assert "  channels    acc_x, acc_y, acc_z, rot_w, rot_x, rot_y, rot_z, acc_magnitude\n" in shown
    assert "350 sequences of 7 groups (subject)" in shown
    assert "certificate passed, samples 64, seed 0" in shown
    described = json.loads(told(show_command, "imu", "--store", store, "--json"))
    assert [one["origin"] for one in described["recordings"]] == ["a.csv", "b.csv", "c.csv"]
    assert sum(fold["windows"][1] - fold["windows"][0] for fold in described["folds"]) == 350
    assert "sequence        350" in told(list_command, "--store", store)
    assert "recordings        3" in told(stats_command, "--store", store)
    overrides = [f"data.{one}" for one in SMALL]
    place = ["--config", "configs/imu.yaml", "--data-dir", data, "--store", store]
    assert "imu: 9 of 9 entries are in the store, 0 to build" in told(explain_command, *place, *overrides)
    changed = told(explain_command, *place, *overrides, "data.folds.seed=1", "data.fill=[zero]")
    assert "data.folds.seed 0 → 1\n" in changed and "data.fill forward backward zero → zero\n" in changed
    assert "other values before they were normalised\n" in changed and "other labels or folds\n" in changed


def test_what_a_build_tells(data: Path, tmp_path: Path):
    place = ["--config", "configs/imu.yaml", "--data-dir", data, "--store", tmp_path / "store"]
    said = told(build_command, *place, *(f"data.{one}" for one in SMALL))
    rows = sum(len(pd.read_csv(data / f"{name}.csv")) for name in "abc")
    assert f"  {rows:,} rows loaded: 350 unique sequences of 7 groups, 8 channels\n" in said
    assert "  fold  training  validation  groups\n" in said
    assert "  seconds by stage: recordings " in said
    assert "has no value in " in said
    assert "  certificate: windows, groups, statistics, streams hold, 64 windows made again\n" in said
    assert said.rstrip().endswith("--fold all")


def test_a_build_tells_what_policies_did(tmp_path: Path):
    frame = make_frame([4] * 12)
    frame.loc[[5, 9], "gesture"] = "pinch"
    frame.loc[[2, 9], "acc_x"] = np.inf
    write_csv(tmp_path / "a.csv", frame.assign(thm_1=1.0, note="x"))
    overrides = (*SMALL, "derive=[]", "source.binary=null", "source.channels=[acc_*]", "source.policy.changing=drop")
    place = ["--config", "configs/imu.yaml", "--data-dir", tmp_path, "--store", tmp_path / "store"]
    said = told(build_command, *place, *(f"data.{one}" for one in (*overrides, "source.policy.not_finite=missing")))
    assert "  a.csv: data.source.policy.changing left out sequences: 2, the first of them at row 4\n" in said
    assert "  a.csv: data.source.policy.not_finite changed rows: 1, the first of them at row 2\n" in said
    assert "    repaired not_finite: rows 1, first row 2\n" in told(show_command, "imu", "--store", tmp_path / "store")
    assert "  not used: thm_1, note\n" in said
    # of the two rows with an infinite value, one went with its recording's changing label
    assert "  missing values: 1 of 120 (0.8%), most often in acc_x; filled forward, backward, zero\n" in said


def test_certify_and_its_repair(store: Path, tmp_path: Path):
    copied = shutil.copytree(store, tmp_path / "store")
    assert "streams        holds: 30 sequences" in told(certify_command, "imu", "--store", copied, "--samples", "30")
    stream = open_dataset(copied, "imu").symbols["imu"].streams["fold-1"]
    flip(stream.path / "values/c.0.0", 8 * 4 * 8 * LENGTH * 350 - 1)  # the sign of the last value
    done = CliRunner().invoke(certify_command, ["imu", "--store", str(copied), "--samples", "350", "--repair"])
    assert done.exit_code == 1
    assert "streams        FAILS: fold-1: rows 13,960 on are not what sequence number 349 gives" in done.output
    assert "imu: does not prove that training sees nothing of what validates; what fails: streams" in done.output
    assert not stream.path.exists()
    assert len(list(copied.glob("recordings/*/zarr.json"))) == 3


@pytest.mark.parametrize(
    ("array", "check", "said"),
    [
        ("ends", "windows", "imu: the windows are not one for every sequence"),
        ("id", "windows", "its window has another id"),
        ("label", "windows", "its window has another label"),
        ("group", "windows", "its window has another group"),
        ("fold", "groups", "imu: the folds are not the ranges of windows that the windows name"),
    ],
)
def test_certify_sees_windows_that_were_changed(array: str, check: str, said: str, store: Path, tmp_path: Path):
    copied = shutil.copytree(store, tmp_path / "store")
    windows = open_dataset(copied, "imu").symbols["imu"].windows
    before = np.array(windows.array(array))
    overwrite(windows.path, array, 0, before[-1])
    assert (before[0] != before[-1]).any()
    done = CliRunner().invoke(certify_command, ["imu", "--store", str(copied), "--samples", "1"])
    assert done.exit_code == 1
    assert re.search(rf"^  {check} +FAILS: .*{said}", done.output, re.MULTILINE), done.output


def test_certify_sees_names_that_were_changed(store: Path, tmp_path: Path):
    copied = shutil.copytree(store, tmp_path / "store")
    change_manifest(open_dataset(copied, "imu").symbols["imu"].windows.path, lambda found: found["groups"].reverse())
    done = CliRunner().invoke(certify_command, ["imu", "--store", str(copied), "--samples", "1"])
    assert (done.exit_code, "imu: the names of group are not those of the recordings" in done.output) == (1, True)


def test_an_export_is_the_same_elsewhere(store: Path, tmp_path: Path):
    told(export_command, "imu", tmp_path / "imu.tar", "--store", store)
    told(import_command, tmp_path / "imu.tar", "--store", tmp_path / "store")
    assert md5s(tmp_path / "store") == md5s(store)
    assert check_content(check_metadata(tmp_path / "store")) == ()


def test_the_example_in_the_description_of_the_format(dataset: Dataset, store: Path):
    text = (ROOT / "docs/format.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)ends = array", text, re.DOTALL)
    (of_sequences,) = re.findall(r"```py\n(.*?)```", text, re.DOTALL)
    code = code.replace('Path("store")', f"Path({str(store)!r})").replace("refs/demo", "refs/imu")
    printed = []
    exec(code + of_sequences, {"print": printed.append})
    part = part_of(dataset, 2)
    place = part.windows.array("ends")[part.val[0], 0] // LENGTH - 1
    np.testing.assert_array_equal(printed[0], values_of(part.streams["sequence"])[place])


def test_reading_needs_numpy_only(store: Path):
    code = f"""
import sys
from pathlib import Path
from cache.part import part_of, universe_of
from cache.reader import open_dataset
part = part_of(open_dataset(Path({str(store)!r}), "imu"), 1)
assert part.streams["sequence"].array("values").shape == ({350 * LENGTH}, 8)
heavy = {{"pandas", "pyarrow", "numba", "sklearn", "zarr", "torch", "pydantic"}} & set(sys.modules)
assert not heavy, heavy
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


@pytest.mark.parametrize(
    ("second", "message"),
    [
        (make_frame([4, 4]), "b.csv: the same content as a.csv; remove one of them"),
        (make_frame([4, 5]), "sequence S000 is in a.csv and in b.csv; give each its own id"),
        (
            make_frame([4, 4]).replace({"S000": "S002", "S001": "S003"}).rename(columns={"acc_z": "acc_q"}),
            "b.csv has the channels acc_x, acc_y, acc_q, but a.csv has acc_x, acc_y, acc_z; give them the same columns",
        ),
    ],
)
def test_files_that_do_not_go_together(tmp_path: Path, second: pd.DataFrame, message: str):
    write_csv(tmp_path / "a.csv", make_frame([4, 4]))
    write_csv(tmp_path / "b.csv", second)
    with pytest.raises(UserError, match=message):
        build_plain(tmp_path)


def build_plain(folder: Path, *overrides: str) -> Dataset:
    plain = ("source.channels=[acc_*]", "source.binary=null", "derive=[]", "folds.count=2", "length.seq_len=8")
    recipe = make_sequence_recipe("source.files='*.csv'", *plain, *overrides)
    return build(recipe, folder, folder / "store", 2, quiet()).dataset


def warnings(dataset: Dataset) -> list[str]:
    return list(dataset.entry.manifest["warnings"])


def test_what_looks_odd_is_told(tmp_path: Path):
    frame = make_frame([4] * 12, groups=4).assign(gesture="wave")
    frame.loc[frame.subject == "P0", "gesture"] = "scratch"
    frame.loc[frame.sequence_id == "S003", "acc_y"] = np.nan
    frame["acc_z"] = 1.0
    write_csv(tmp_path / "a.csv", frame)
    dataset = build_plain(tmp_path)
    fold = next(k for k, one in enumerate(dataset.entry.manifest["folds"]) if "P0" in one["groups"])
    assert warnings(dataset) == [
        "acc_y has no value in 1 of 12 sequences, and is 0 there",
        *sorted(
            [
                f"fold {1 - fold} validates on no gesture scratch, so its scores say nothing about that",
                f"fold {fold} trains on no gesture scratch, because no other fold has it",
            ]
        ),
        "acc_z does not vary over the training part of 2 of 2 folds, so it tells nothing there",
    ]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "source.binary={name: b, label: gesture, positive: [wafe]}",
            "positive has wafe, which no gesture is; did you mean wave?",
        ),
        ("derive=[angular_velocity]", "data.derive has angular_velocity, which needs a quaternion"),
        ("folds.count=4", "there are 3 subjects, and every fold needs one of its own"),
        ("source.channels=[acc_*, subject]", "a.csv: data.source.channels names subject, which is no channel: it has"),
        ("source.policy.unlabelled=drop", "a.csv: data.source.policy leaves no sequence; look at the files"),
    ],
)
def test_recipes_that_do_not_fit_the_data(tmp_path: Path, override: str, message: str):
    frame = make_frame([4] * 12)
    if "unlabelled" in override:
        frame["gesture"] = None
    write_csv(tmp_path / "a.csv", frame)
    with pytest.raises(UserError, match=message):
        build_plain(tmp_path, override)


def test_a_column_that_is_there_twice(tmp_path: Path):
    frame = make_frame([4] * 12)
    write_csv(tmp_path / "a.csv", pd.concat([frame, frame[["acc_y"]]], axis=1))
    with pytest.raises(UserError, match=r"a\.csv: 2 columns are called acc_y; rename one"):
        build_plain(tmp_path)


def test_derived_values_beyond_float32_are_named(tmp_path: Path):
    frame = make_frame([4] * 6).assign(rot_w=1.0, rot_x=0.0, rot_y=0.0, rot_z=0.0)
    frame.loc[13, "rot_w"] = 1e-160  # whose square no direction can be found from
    write_csv(tmp_path / "a.csv", frame)
    with pytest.raises(UserError, match=r"a\.csv: sequence S003: acc_linear_x is beyond what float32 holds"):
        build_plain(tmp_path, "source.channels=[acc_*, rot_*]", "derive=[gravity_removed]")


def test_a_label_that_is_everywhere_the_same_is_told(tmp_path: Path):
    write_csv(tmp_path / "a.csv", make_frame([4] * 12, groups=4).assign(gesture="wave"))
    dataset = build_plain(tmp_path, "source.binary={name: target, label: gesture, positive: [wave]}")
    assert warnings(dataset) == [
        "gesture is wave in all sequences, so there is nothing to tell apart",
        "target is target in all sequences, so there is nothing to tell apart",
    ]


def manifest_of(dataset: Dataset, stage: str) -> Entry:
    one = dataset.symbols["imu"]
    return {"datasets": dataset.entry, "windows": one.windows, "streams": one.streams["fold-0"]}[stage]


@pytest.mark.parametrize(
    ("stage", "change", "message"),
    [
        ("datasets", lambda m: m["folds"][0].update(windows=[0, 5]), "folds are not ranges that follow each other"),
        ("datasets", lambda m: m["folds"].pop(), "components.inputs.imu.streams are not of the folds"),
        ("datasets", lambda m: m.update(seq_len={"sequence": 41}), "its timeframes or lengths are not those of "),
        ("datasets", lambda m: m.update(timeframes=["m1"]), "timeframes and seq_len are not those of one stream, seq"),
        ("windows", lambda m: m.pop("groups"), "groups is missing"),
        ("windows", lambda m: m["classes"].pop("target"), "classes are not of as many labels as arrays.label has"),
        ("windows", lambda m: m["folds"].reverse(), "folds are not ranges that follow each other"),
        ("streams", lambda m: m["features"].pop(), "features are not as many as arrays.values has columns"),
        ("streams", lambda m: m["statistics"]["center"].pop("rot_w"), "statistics.center is not of the features"),
        ("streams", lambda m: m["components"]["fields"].update(kind="bars"), "components.fields.kind is none of this"),
    ],
)
def test_manifests_that_contradict_themselves(
    store: Path, tmp_path: Path, stage: str, change: Callable[[dict[str, Any]], object], message: str
):
    copied = shutil.copytree(store, tmp_path / "store")
    change_manifest(manifest_of(open_dataset(copied, "imu"), stage).path, change)
    with pytest.raises(StoreError, match=message):
        open_dataset(copied, "imu")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m["channels"].pop(), "channels are not as many as arrays.values has columns"),
        (lambda m: m.update(sequences=0), "arrays.rows is not of 0 sequences"),
        (lambda m: m["arrays"].pop("id"), "arrays.id is missing"),
    ],
)
def test_recordings_that_contradict_themselves(
    store: Path, tmp_path: Path, change: Callable[[dict[str, Any]], object], message: str
):
    copied = shutil.copytree(store, tmp_path / "store")
    change_manifest(next(copied.glob("recordings/*")), change)
    assert message in str(check_metadata(copied).findings[0])


def test_a_file_that_a_policy_leaves_nothing_of(tmp_path: Path):
    write_csv(tmp_path / "a.csv", make_frame([4] * 12))
    frame = make_frame([5] * 3).assign(gesture=None)
    write_csv(tmp_path / "b.csv", frame.assign(sequence_id=frame.sequence_id + "b"))
    dataset = build_plain(tmp_path, "source.policy.unlabelled=drop")
    assert dataset.symbols["imu"].windows.shape("time") == (12,)
    assert check_content(check_metadata(tmp_path / "store")) == ()


def test_without_scikit_learn(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr("pipeline.ways.find_spec", lambda name: None)
    with pytest.raises(UserError, match="scikit-learn, which is not there: run bin/install sequences"):
        build_plain(tmp_path)


def folds_by_hand(frame: pd.DataFrame) -> Mapping[str, int]:
    return frame.groupby("sequence_id").subject.first().value_counts().to_dict()


@pytest.mark.skipif(not BFRB.is_dir(), reason=f"{BFRB} is not there")
def test_real_recordings(tmp_path: Path):
    done = CliRunner().invoke(
        build_command, ["--config", "configs/bfrb.yaml", "--data-dir", str(BFRB), "--store", str(tmp_path), "--json"]
    )
    assert done.exit_code == 0, done.output
    dataset, frame = open_dataset(tmp_path, "bfrb"), pd.read_csv(BFRB / "bfrb_sequences.csv")
    of_person = folds_by_hand(frame)
    for fold in dataset.entry.manifest["folds"]:
        start, stop = fold["windows"]
        assert stop - start == sum(of_person[name] for name in fold["groups"])
    total = frame.groupby("sequence_id").behavior.first().value_counts()
    counts = pd.DataFrame([fold["classes"]["behavior"] for fold in dataset.entry.manifest["folds"]]).sum()
    assert counts.to_dict() == total.to_dict()
    assert "fold 3 validates on no behavior bfrb_1, so its scores say nothing about that" in warnings(dataset)
