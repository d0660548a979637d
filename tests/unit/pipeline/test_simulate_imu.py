from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

from pipeline.simulate_command import main
from pipeline.simulate_imu import CHANNELS, GESTURES, simulate_imu


@pytest.fixture(scope="module")
def frame(tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    path = tmp_path_factory.mktemp("imu") / "imu.csv"
    rows = simulate_imu(path, 400, 3, lambda written: None)
    frame = pd.read_csv(path)
    assert len(frame) == rows
    return frame


def test_the_same_seed_gives_the_same_file_and_a_longer_one_begins_with_it(tmp_path: Path, frame: pd.DataFrame):
    for name, sequences, seed in (("a", 60, 3), ("b", 60, 3), ("c", 60, 4)):
        simulate_imu(tmp_path / name, sequences, seed, lambda written: None)
    content = {name: (tmp_path / name).read_bytes() for name in "abc"}
    assert content["a"] == content["b"] != content["c"]
    short = pd.read_csv(tmp_path / "a")
    whole = short[short.subject == "SUBJ_00000"]
    pd.testing.assert_frame_equal(whole, frame.iloc[: len(whole)])


def test_the_command(tmp_path: Path):
    done = CliRunner().invoke(main, ["--kind", "imu", "--out", str(tmp_path / "new"), "--sequences", "20"])
    assert done.exit_code == 0, done.output
    frame = pd.read_csv(tmp_path / "new/imu_sequences.csv")
    assert f"{tmp_path}/new/imu_sequences.csv: 20 sequences, {len(frame):,} rows, " in done.output
    assert done.output.endswith(f"Next: bin/build-cache --config configs/imu.yaml --data-dir {tmp_path}/new\n")


def test_recordings_are_as_they_are_said_to_be(frame: pd.DataFrame):
    each = frame.groupby("sequence_id", sort=False)
    assert len(each) == 400 and frame.subject.nunique() == 8
    lengths = each.size()
    assert 16 <= lengths.min() < 50 < lengths.median() < 90 < lengths.max() <= 240
    assert set(frame.gesture) == set(GESTURES)
    assert (each.gesture.nunique() == 1).all() and (each.subject.nunique() == 1).all()
    assert (frame.sequence_counter == each.cumcount()).all()
    missing = frame[list(CHANNELS)].isna()
    assert 0.001 < missing.acc_x.mean() < 0.05 and (missing.acc_x == missing.acc_z).all()
    assert 0 < each.rot_w.count().eq(0).sum() < 30  # no pose at all
    norm = np.linalg.norm(frame[["rot_w", "rot_x", "rot_y", "rot_z"]].dropna(), axis=1)
    np.testing.assert_allclose(norm, 1, atol=1e-5)


def test_gestures_can_be_learnt_but_not_for_nothing(frame: pd.DataFrame):
    """The nearest mean of simple features, on persons not seen before, is right far more often than by chance."""
    each = frame.groupby("sequence_id", sort=False)
    features = pd.concat([each[list(CHANNELS)].mean(), each[list(CHANNELS)].std()], axis=1).fillna(0).to_numpy()
    gesture, subject = each.gesture.first().to_numpy(), each.subject.first().to_numpy()
    train = subject < "SUBJ_00006"
    features = (features - features[train].mean(0)) / features[train].std(0)
    means = np.stack([features[train & (gesture == name)].mean(0) for name in GESTURES])
    nearest = np.linalg.norm(features[~train, None] - means, axis=2).argmin(1)
    right = np.mean(np.array(list(GESTURES))[nearest] == gesture[~train])
    assert 0.35 < right < 0.98
