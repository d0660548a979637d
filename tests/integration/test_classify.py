"""Recordings, from the store to predictions: all folds, a kill in the middle, a pretrained encoder, live inference."""

import csv
import json
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import xarray
from click.testing import CliRunner, Result
from safetensors.torch import load_file
from sklearn.metrics import accuracy_score, f1_score

from cache.part import part_of
from configs.errors import UserError
from tests.chromium import FOUND, REASON, chromium
from tests.page_faults import FAULTS
from tests.unit.trainer.making_imu import AUGMENTED, DATA, PAD, RECONSTRUCT, SMALL, build, opened, simulate
from trainer.classifier import Classifier
from trainer.encode import Encoder, Ensemble, export_encoder
from trainer.encode_command import main as encode
from trainer.encode_dataset import encode_dataset
from trainer.evaluate_command import main as evaluate
from trainer.train_command import main as train

ROOT = Path(__file__).parents[2]
ALL = (*DATA, *SMALL, *AUGMENTED, "training.ema_decay=0.9", "model.dropout=0.1", "training.precision=bf16")
HEAVY = {"zarr", "numba", "pandas", "pyarrow", "dask", "sklearn", "scipy"}
MEASURES = ("accuracy", "macro_f1", "binary_f1", "score")


def run(*arguments: str | Path) -> Result:
    """bin/train on configs/imu.yaml, in this process."""
    return CliRunner().invoke(train, ["--config", "configs/imu.yaml", *map(str, arguments)])


def output(*arguments: str | Path) -> str:
    done = run(*arguments)
    assert done.exit_code == 0, done.output
    return done.stdout


def error(*arguments: str | Path) -> str:
    done = run(*arguments)
    assert done.exit_code == 1, done.output
    return done.stderr


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def summary(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((path / "summary.json").read_text())
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("imu")
    data = simulate(folder / "data")
    build(data, folder / "store", *DATA)
    build(data, folder / "store", *PAD)
    return folder


@pytest.fixture(scope="module")
def store(folder: Path) -> Path:
    return folder / "store"


@pytest.fixture(scope="module")
def recordings(folder: Path) -> dict[str, pd.DataFrame]:
    frame = pd.read_csv(folder / "data" / "imu_sequences.csv")
    return {str(name): part for name, part in frame.groupby("sequence_id")}


@pytest.fixture(scope="module")
def every(store: Path) -> tuple[Path, str]:
    """A run of all folds, and what it printed."""
    path = store.parent / "runs" / "every"
    return path, output(*ALL, "--store", store, "--run", path, "--fold", "all")


def test_all_folds_leave_what_is_promised(every: tuple[Path, str], store: Path) -> None:
    path, printed = every
    assert {one.name for one in path.iterdir()} == {"fold0", "fold1", "fold2", "oof.csv", "folds.json", "confusion.png"}
    assert {one.name for one in (path / "fold2").iterdir()} == {
        "config.yaml", "dataset.json", "encoder.json", "metrics.jsonl", "summary.json", "predictions.csv",
        "best.safetensors", "last",
    }  # fmt: skip
    assert printed.count("  import torch ") == 1
    lines = printed.splitlines()
    folds = [line for line in lines if line.startswith("Fold ")]
    assert [line[:12] for line in folds] == ["Fold 0 of 3:", "Fold 1 of 3:", "Fold 2 of 3:"]
    assert "score" in folds[0] and "binary F1" in folds[0]
    assert any(line.startswith("  mean ± sd") for line in lines)
    assert any(
        line.startswith("  imu, fold 1 of 3: ") and "validation windows of sequence×26" in line for line in lines
    )
    assert any(" · batches of 16" in line for line in lines)


def test_every_recording_is_predicted_once_by_the_fold_that_did_not_see_it(
    every: tuple[Path, str], recordings: dict[str, pd.DataFrame], store: Path
) -> None:
    path, _ = every
    found = rows(path / "oof.csv")
    gestures = sorted({frame.gesture.iloc[0] for frame in recordings.values()})
    assert list(found[0]) == [
        "id", "group", "fold", "gesture", "gesture_predicted", *(f"gesture_p_{one}" for one in gestures),
        "target", "target_predicted", "target_p_not target", "target_p_target",
    ]  # fmt: skip
    assert sorted(row["id"] for row in found) == sorted(recordings)
    for row in found:
        frame = recordings[row["id"]]
        assert (row["group"], row["gesture"]) == (frame.subject.iloc[0], frame.gesture.iloc[0])
        probabilities = {one: float(row[f"gesture_p_{one}"]) for one in gestures}
        assert sum(probabilities.values()) == pytest.approx(1, abs=1e-5)
        assert row["gesture_predicted"] == max(probabilities, key=lambda one: probabilities[one])
    assert len({(row["group"], row["fold"]) for row in found}) == len({row["group"] for row in found})


def test_the_measures_are_those_of_scikit_learn(every: tuple[Path, str]) -> None:
    path, _ = every
    told = json.loads((path / "folds.json").read_text())
    found = rows(path / "oof.csv")
    parts = [[row for row in found if row["fold"] == str(fold)] for fold in range(3)]
    for part, measures, run_of in zip(
        [*parts, found], [*told["folds"], told["out_of_fold"]], ["fold0", "fold1", "fold2", None], strict=True
    ):
        truth, predicted = ([row[name] for row in part] for name in ("gesture", "gesture_predicted"))
        targets = [[row[name] for row in part] for name in ("target", "target_predicted")]
        expected = [
            accuracy_score(truth, predicted),
            f1_score(truth, predicted, average="macro"),
            f1_score(*targets, pos_label="target", zero_division=0),
        ]
        expected.append((expected[1] + expected[2]) / 2)
        assert [measures[name] for name in MEASURES] == pytest.approx(expected)
        if run_of:
            assert summary(path / run_of)["score"] == measures["score"]
    scores = [fold["score"] for fold in told["folds"]]
    assert (told["mean"]["score"], told["sd"]["score"]) == pytest.approx(
        (statistics.fmean(scores), statistics.stdev(scores))
    )


def test_the_measures_of_the_best_weights_are_those_of_the_best_validation(every: tuple[Path, str]) -> None:
    run_of = every[0] / "fold1"
    validated = [json.loads(line) for line in (run_of / "metrics.jsonl").read_text().splitlines()]
    validated = [record for record in validated if record["kind"] == "val"]
    best = max(validated, key=lambda record: record["score"])
    told = summary(run_of)
    assert (told["monitor"], told["best"], told["best_step"]) == ("score", best["score"], best["step"])
    assert {name: told[name] for name in MEASURES} == pytest.approx({name: best[name] for name in MEASURES})
    assert told["majority_score"] == best["majority_score"]


def killed(words: list[str], when: Path, lines: int) -> None:
    """Run bin/train, and kill it as soon as a file has so many lines."""
    command = [str(ROOT / "bin/train"), "--config", "configs/imu.yaml", *words]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, env={**os.environ, "OMP_NUM_THREADS": "1"})
    until = time.monotonic() + 60
    while not when.exists() or when.read_bytes().count(b"\n") < lines:
        assert process.poll() is None and time.monotonic() < until
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.communicate()


def test_a_killed_run_of_all_folds_goes_on_where_it_was(every: tuple[Path, str], store: Path, tmp_path: Path) -> None:
    path = tmp_path / "run"
    words = [*ALL, "--store", str(store), "--run", str(path), "--fold", "all"]
    killed(words, path / "fold1" / "metrics.jsonl", 5)
    assert (path / "fold0" / "summary.json").exists() and not (path / "fold1" / "summary.json").exists()
    weights = (path / "fold0" / "best.safetensors").stat().st_mtime_ns
    assert f"{path / 'fold0'}: holds a run already; add --resume to continue it" in error(*words)
    printed = output(*words, "--resume")
    assert "Fold 0 of 3, finished before: " in printed and "Fold 1 of 3: " in printed
    assert (path / "fold0" / "best.safetensors").stat().st_mtime_ns == weights
    whole = every[0]
    assert (path / "oof.csv").read_bytes() == (whole / "oof.csv").read_bytes()
    assert (path / "folds.json").read_bytes() == (whole / "folds.json").read_bytes()
    one, other = (load_file(at / "fold1" / "last" / "checkpoint.safetensors") for at in (path, whole))
    assert all(torch.equal(one[name], other[name]) for name in other) and one.keys() == other.keys()
    assert any(name.startswith("average.") for name in one)


def test_training_imports_nothing_heavy(store: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from trainer.train_command import main; from trainer import folds\n"
        "folds.find_spec = lambda name: None\n"  # pictures, which come last, may load what they like
        f"main({['--config', 'configs/imu.yaml', *ALL, '--store', str(store), '--run', str(tmp_path / 'run')]!r},"
        " standalone_mode=False)\n"
        f"print('loaded', *sorted({HEAVY!r} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "loaded"


@pytest.fixture(scope="module")
def pretrained(store: Path) -> Path:
    path = store.parent / "runs" / "pretrained"
    said = output(*DATA, *SMALL, *RECONSTRUCT, "--store", store, "--run", path, "--fold", "1")
    assert said.endswith(f". Learn labels from there: bin/train with --init-from {path}\n")
    return path


def test_a_reconstruction_of_recordings_stands_beside_the_last_value(pretrained: Path) -> None:
    records = [json.loads(line) for line in (pretrained / "metrics.jsonl").read_text().splitlines()]
    validated = [record for record in records if record["kind"] == "val"]
    assert {"loss", "huber", "stft", "amplitude_phase", "correlation", "last_value_loss"} <= validated[0].keys()
    assert validated[-1]["loss"] < validated[0]["loss"]
    assert not (pretrained / "predictions.csv").exists()


def test_a_run_begins_with_a_pretrained_encoder(pretrained: Path, store: Path, tmp_path: Path) -> None:
    path = tmp_path / "run"
    still = ("training.lr=1e-12", "training.weight_decay=0", "training.max_epochs=1")
    words = [*DATA, *SMALL, *still, "--store", store, "--run", path, "--fold", "1", "--init-from", pretrained]
    printed = output(*words)
    assert f"  begins with the encoder of {pretrained}\n" in printed
    begun, given = load_file(path / "best.safetensors"), load_file(pretrained / "best.safetensors")
    backbone = [name for name in given if name.startswith("backbone.")]
    assert backbone and {name for name in begun if name.startswith("backbone.")} == set(backbone)
    assert all(torch.allclose(begun[name], given[name], atol=1e-9) for name in backbone)
    # it is part of the run's configuration, so that a resumed run is the same
    assert f"init_from: {pretrained}" in (path / "config.yaml").read_text()
    words[words.index("1")] = "2"
    words[words.index(path)] = tmp_path / "other"
    assert "; it has seen, without their labels, recordings that fold 2 validates on" in output(*words)
    # the labels that fold 2 has learnt would make its scores on fold 0 meaningless
    words = [*DATA, *SMALL, "--store", store, "--run", tmp_path / "third", "--fold", "0"]
    told = error(*words, "--init-from", tmp_path / "other")
    assert f"{tmp_path / 'other'}: it has learnt the labels of recordings that fold 0 validates on, so that" in told
    # a run carries what those before it have learnt
    between = [*DATA, *SMALL, *RECONSTRUCT, *still, "--store", store, "--run", tmp_path / "between", "--fold", "2"]
    output(*between, "--init-from", tmp_path / "other")
    told = error(*words, "--init-from", tmp_path / "between")
    assert f"{tmp_path / 'between'}: it began with a run that has learnt the labels of recordings that fold 0" in told
    assert "name a run of fold 0 of this dataset, or of all its folds, that began with none of another" in told
    # the same recordings in other folds are the same recordings
    divided = [*words, "data.name=divided", "data.folds.seed=1"]
    build(store.parent / "data", store, *DATA, *divided[-2:])
    assert "other: it has learnt the labels of recordings that fold 0" in error(
        *divided, "--init-from", tmp_path / "other"
    )
    # read in another way, they are other entries
    otherwise = [*words, "data.name=otherwise", "data.source.sentinels=[-99]"]
    build(store.parent / "data", store, *DATA, *otherwise[-2:])
    told = output(*otherwise, *still, "--init-from", tmp_path / "other")
    may = "it has seen recordings of another dataset, with their labels, and fold 0 may validate on some of them"
    assert f"{tmp_path / 'other'}; {may}" in told


def test_what_a_run_began_with_may_be_gone_when_it_goes_on(pretrained: Path, store: Path, tmp_path: Path) -> None:
    given, path = tmp_path / "given", tmp_path / "run"
    shutil.copytree(pretrained, given)
    words = [
        *DATA,
        *SMALL,
        "training.max_epochs=6",
        "--store",
        str(store),
        "--run",
        str(path),
        "--init-from",
        str(given),
    ]
    killed(words, path / "metrics.jsonl", 6)
    shutil.rmtree(given)
    assert "begins with" not in output(*words, "--resume")
    assert summary(path)["epochs"] == 6


def test_an_encoder_of_another_kind_is_refused(pretrained: Path, store: Path, tmp_path: Path) -> None:
    words = [*DATA, *SMALL, "--store", store, "--run", tmp_path / "run", "--fold", "1", "--init-from"]
    said = error(*words, pretrained, "model.d_model=32", "model.dropout=0.3")
    assert f"training.init_from = {pretrained}: its encoder is not of the kind that is wanted here:\n" in said
    assert "  model.d_model: 16 there, 32 here" in said
    assert "dropout" not in said
    said = error(*words, tmp_path)
    assert f"training.init_from = {tmp_path}: it has no encoder.json; name a run that has been trained" in said
    changed = tmp_path / "changed"
    shutil.copytree(pretrained, changed)
    described = json.loads((changed / "encoder.json").read_text())
    described["features"]["columns"][0] = "gyro_x"
    (changed / "encoder.json").write_text(json.dumps(described))
    assert "  features.columns: ['gyro_x', 'acc_y', " in error(*words, changed)


def test_live_windows_and_predictions_are_those_of_the_store(
    every: tuple[Path, str], recordings: dict[str, pd.DataFrame], store: Path
) -> None:
    path, _ = every
    found = {row["id"]: row for row in rows(path / "oof.csv")}
    for fold in range(3):
        part = part_of(opened(store), fold)
        encoder = Encoder.load(path / f"fold{fold}")
        values = part.streams["sequence"].array("values")
        ids = [bytes(one).rstrip(b"\0").decode() for one in part.windows.array("id")]
        for number in [*part.val][:12]:
            frame, end = recordings[ids[number]], int(part.windows.array("ends")[number, 0])
            (x,), (padding,) = encoder.windows(frame)
            np.testing.assert_array_equal(x[0].numpy(), values[end - 26 : end])
            assert not padding.any()
            told = encoder.predict(frame)
            assert {name: list(of) for name, of in told.items()} == part.windows.manifest["classes"]
            for label, classes in told.items():
                for name, value in classes.items():
                    assert value == pytest.approx(float(found[ids[number]][f"{label}_p_{name}"]), abs=0.02)  # bf16
        assert encoder.encode(recordings[ids[0]]).shape == (1, 1, 7, 16)
    frame = recordings[ids[0]]
    each = [Encoder.load(path / f"fold{fold}").predict(frame)["gesture"] for fold in range(3)]
    for name, value in Ensemble.load(path).predict(frame)["gesture"].items():
        assert value == pytest.approx(statistics.fmean(one[name] for one in each))


def test_padded_recordings_are_predicted_as_offline(
    store: Path, recordings: dict[str, pd.DataFrame], tmp_path: Path
) -> None:
    path = tmp_path / "run"
    output(*PAD, *SMALL, "training.max_epochs=1", "--store", store, "--run", path, "--fold", "2")
    encoder, part = Encoder.load(path), part_of(opened(store, "padded"), 2)
    for row in rows(path / "predictions.csv")[:20]:
        frame = recordings[row["id"]]
        (x,), (padding,) = encoder.windows(frame)
        assert int(padding.sum()) == max(64 - len(frame), 0)
        told = encoder.predict(frame)["gesture"]
        assert told == pytest.approx({name: float(row[f"gesture_p_{name}"]) for name in told}, abs=1e-4)
    assert x.shape == (1, 64, 8) and part.windows.shape("ends")[0] == len(recordings)


def embeddings(run_of: Path, out: Path, *words: str) -> tuple[dict[str, Any], xarray.Dataset, pd.DataFrame]:
    """What bin/encode leaves: encode.json, all parts and recordings.csv."""
    done = CliRunner().invoke(encode, [str(run_of), "--out", str(out), "--batch-size", "7", *words])
    assert done.exit_code == 0, done.output
    told = json.loads((out / "encode.json").read_text())
    parts = [xarray.open_zarr(out / part["path"], consolidated=False) for part in told["parts"]]
    return told, xarray.concat(parts, "window"), pd.read_csv(out / told["recordings"])


@pytest.mark.parametrize("split", ["all", "train", "val"])
def test_embeddings_of_a_fold_are_those_of_its_recordings(
    split: str, every: tuple[Path, str], recordings: dict[str, pd.DataFrame], tmp_path: Path
) -> None:
    run_of = every[0] / "fold1"
    told, found, known = embeddings(run_of, tmp_path / "out", "--split", split)
    assert (told["complete"], told["fold"], told["split"]) == (True, 1, split)
    assert found.embedding.shape == (len(known), 1, 7, 16) == tuple(told["shape"])
    assert not found.padding.any()
    fold = pd.read_csv(every[0] / "oof.csv").set_index("id")["fold"]
    of = {"all": fold >= 0, "train": fold != 1, "val": fold == 1}[split]
    assert sorted(known["id"]) == sorted(fold[of].index)
    assert list(known.columns) == ["id", "group", "fold", "gesture", "target"]
    encoder = Encoder.load(run_of)
    for row in known.itertuples():
        frame = recordings[row.id]
        assert (row.group, row.fold, row.gesture) == (frame.subject.iloc[0], fold[row.id], frame.gesture.iloc[0])
        live = encoder.encode(frame)[0].numpy()
        np.testing.assert_allclose(found.embedding[row.Index].to_numpy(), live, rtol=1e-4, atol=1e-5)


def test_embeddings_tell_which_of_their_latents_are_padding(
    store: Path, recordings: dict[str, pd.DataFrame], tmp_path: Path
) -> None:
    words = [*PAD, *SMALL, "training.max_epochs=1", "--store", store, "--run", tmp_path / "run", "--fold", "2"]
    output(*words, "model.latent_stride=5")
    _, found, known = embeddings(tmp_path / "run", tmp_path / "out")
    encoder = Encoder.load(tmp_path / "run")
    assert isinstance(encoder.model, Classifier)
    for row in known.itertuples():
        (x,), (padding,) = encoder.windows(recordings[row.id])
        expected = encoder.model._all_hidden(padding.float())[0].numpy()
        np.testing.assert_array_equal(found.padding[row.Index].to_numpy(), expected)
        live = encoder.embed([x], [padding])[0].numpy()
        np.testing.assert_allclose(found.embedding[row.Index].to_numpy(), live, rtol=1e-4, atol=1e-5)
    assert 0 < found.padding.mean() < 1


def test_embeddings_that_are_not_finite_name_the_recording(
    every: tuple[Path, str], store: Path, tmp_path: Path
) -> None:
    encoder, dataset = Encoder.load(every[0] / "fold0"), opened(store)
    with torch.no_grad():
        next(encoder.model.parameters()).fill_(3e38)
    name = part_of(dataset, 0).windows.array("id")[dataset.folds[0].start].tobytes().rstrip(b"\0").decode()
    with pytest.raises(UserError, match=f"not finite of the window of imu that is recording {name}; train again"):
        encode_dataset(encoder, dataset, tmp_path / "out", "val", 8, lambda count: None)


def test_frames_that_are_no_recording(every: tuple[Path, str], recordings: dict[str, pd.DataFrame]) -> None:
    encoder = Encoder.load(every[0] / "fold0")
    frame = recordings["SEQ_000003"].reset_index(drop=True)
    infinite, text = frame.copy(), frame.astype({"acc_y": object})
    infinite.loc[4, "rot_x"], text.loc[2, "acc_y"] = np.inf, "much"
    faults: list[tuple[Any, str]] = [
        ({"m1": frame}, "frame is a dict, not a pandas.DataFrame with a row a moment"),
        (frame.drop(columns="acc_y"), "frame lacks the channel acc_y; it has row_id, sequence_id"),
        (frame.iloc[:0], "frame has no rows; a recording needs one at least"),
        (frame.iloc[::-1], "frame, row 1: sequence_counter does not rise from the row before; give one recording"),
        (infinite, "frame, row 4: rot_x is infinite; correct it, or write NaN for a missing value"),
        (frame.assign(acc_x=1e30), "frame, row 0: acc_x is 1e+30, beyond 1e+15; correct it, or write NaN"),
        (text, "frame: channel acc_y holds object, not numbers; convert it to float64"),
        (pd.concat([frame, frame[["acc_y"]]], axis=1), "frame has the column acc_y more than once; keep one"),
    ]
    for wrong, words in faults:
        with pytest.raises(UserError) as failure:
            encoder.predict(wrong)
        assert words in str(failure.value)
    # a sentinel is a missing value, as NaN is
    coded, missing = frame.copy(), frame.copy()
    coded.loc[3:5, "acc_x"], missing.loc[3:5, "acc_x"] = -999.0, np.nan
    assert encoder.predict(coded) == encoder.predict(missing) != encoder.predict(frame)
    # columns of another order, and others beside them, do not matter; the order of rows need not be told
    expected = encoder.predict(frame)
    assert encoder.predict(frame[frame.columns[::-1]].assign(more=1)) == expected
    assert encoder.predict(frame.drop(columns=["sequence_counter", "subject", "gesture"])) == expected


def test_what_runs_are_for_what(every: tuple[Path, str], pretrained: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds a run for every fold; load .*fold0, or all by Ensemble\.load"):
        Encoder.load(every[0])
    with pytest.raises(UserError, match=r"no run of all folds there; bin/train --fold all makes one"):
        Ensemble.load(pretrained)
    (tmp_path / "all").mkdir()
    shutil.copytree(every[0] / "fold0", tmp_path / "all" / "fold0")
    with pytest.raises(UserError, match=r"all: not all folds are trained; bin/train --fold all --resume goes on"):
        Ensemble.load(tmp_path / "all")
    with pytest.raises(UserError, match=r"was not trained to tell classes \(training.task=classify\)"):
        Encoder.load(pretrained).predict(pd.DataFrame())
    with pytest.raises(UserError, match=r"was trained on recordings, of which there is no export; use predict\(\)"):
        export_encoder(Encoder.load(every[0] / "fold0"), tmp_path / "e.pt2")
    done = CliRunner().invoke(encode, [str(pretrained), "--latency"])
    assert "was trained on recordings, and --latency is that of windows of bars; leave it out" in done.stderr
    done = CliRunner().invoke(encode, [str(every[0]), "--out", str(tmp_path / "e")])
    assert f"{every[0]}: holds a run for every fold; name one of them, such as {every[0] / 'fold0'}" in done.stderr
    done = CliRunner().invoke(encode, [str(pretrained), "--out", str(tmp_path / "e"), "--split", "hold_out"])
    assert "imu: the split hold_out has no windows; choose another --split" in done.stderr
    done = CliRunner().invoke(evaluate, [str(pretrained)])
    assert "reconstructs recordings, and bin/evaluate scores prices and classes" in done.stderr
    done = CliRunner().invoke(evaluate, [str(every[0])])
    assert f"{every[0]}: holds a run for every fold; name one of them, such as {every[0] / 'fold0'}" in done.stderr


def test_evaluation_repeats_the_scores_of_a_run(every: tuple[Path, str], tmp_path: Path) -> None:
    run_of = every[0] / "fold2"
    done = CliRunner().invoke(evaluate, [str(run_of), "--output", str(tmp_path / "x.json"), "--plots", str(tmp_path)])
    assert done.exit_code == 0, done.output
    found = json.loads((tmp_path / "x.json").read_text())
    assert found["summary"]["fold"] == 2
    assert found["majority"]["score"] == summary(run_of)["majority_score"]
    truth = [row["gesture"] for row in rows(run_of / "predictions.csv")]
    assert {name: of["recordings"] for name, of in found["classes"]["gesture"].items() if of["recordings"]} == {
        name: truth.count(name) for name in set(truth)
    }
    assert "majority class  accuracy" in done.stdout
    assert (tmp_path / "confusion.png").stat().st_size > 5000


def test_the_report_of_a_fold_holds_its_scores_and_is_to_be_seen(every: tuple[Path, str], tmp_path: Path) -> None:
    page = tmp_path / "fold1.html"
    words = ["--report", str(page), "--output", str(tmp_path / "x.json")]
    done = CliRunner().invoke(evaluate, [str(every[0] / "fold1"), *words])
    assert done.exit_code == 0, done.output
    assert f"report: {page}; open it in a browser\n" in done.stdout
    found, text = json.loads((tmp_path / "x.json").read_text()), page.read_text()
    assert re.findall(r'<section id="(.*?)">', text) == ["scores", "label-0", "label-1", "losses"]
    majority = found["majority"]["score"]
    assert f"score</th><td>{found['measures']['score']:.4f}</td><td>{majority:.4f}</td>" in text
    for counts in found["confusion"].values():
        for row in counts:
            cells = "".join(rf"<td[^>]*>{n:,}</td>" if n else "<td>·</td>" for n in row)
            assert re.search(cells, text)
    scored = sum(map(sum, found["confusion"]["gesture"]))
    assert f"<dt>fold</dt><dd>1</dd></div><div><dt>recordings scored</dt><dd>{scored}</dd>" in text
    if FOUND is None:
        pytest.skip(REASON)
    with chromium(tmp_path / "profile") as browser:
        for width, dark in ((390, False), (390, True), (1200, False), (1200, True)):
            browser.open(page, width, dark)
            assert browser.ask(FAULTS) == []
        assert browser.complaints == []


def test_a_fold_begins_with_the_encoder_of_the_same_fold(every: tuple[Path, str], store: Path, tmp_path: Path) -> None:
    words = [*ALL, "--store", store, "--fold", "1", "--fast-dev-run", "--run"]
    said = output(*words, tmp_path / "a", "--init-from", every[0])
    assert f"begins with the encoder of {every[0] / 'fold1'}\n" in said
    said = error(*words, tmp_path / "b", "--init-from", every[0] / "fold0")
    assert "it has learnt the labels of recordings that fold 1 validates on" in said
    shutil.copytree(every[0] / "fold1", tmp_path / "damaged")
    (tmp_path / "damaged" / "encoder.json").write_text("[1]")
    said = error(*words, tmp_path / "c", "--init-from", tmp_path / "damaged")
    assert f"{tmp_path / 'damaged' / 'encoder.json'}: damaged; name another run as training.init_from" in said


def test_options_that_do_not_fit(store: Path, test_store: Path, every: tuple[Path, str], tmp_path: Path) -> None:
    words = [*DATA, *SMALL, "--store", store, "--run"]
    said = error(*words, tmp_path / "a", "training.monitor=correlation")
    assert "training.monitor = correlation is not measured by training.task = classify on imu; choose loss, " in said
    assert "score, accuracy, macro_f1, binary_f1" in said
    said = error(*words, every[0] / "fold1", "--fold", "0", "--resume", *ALL)
    assert f"{every[0] / 'fold1'}: the run validates on fold 1, not on fold 0; name another --run for that" in said
    said = error(*words, tmp_path / "b", "classify.augment.mirror_axis=w")
    assert "classify.augment.mirror_axis = 'w': input should be 'x', 'y' or 'z'" in said
    assert "--fold 3: imu has the folds 0 to 2; name one of them, or all" in error(
        *words, tmp_path / "c", "--fold", "3"
    )
    for option in (("--devices", "2"), ("--find-lr",)):
        assert "--fold all trains on one device, and goes with neither --find-lr nor --profile; name one fold" in error(
            *words, tmp_path / "e", "--fold", "all", *option
        )
    bars = ["--config", "configs/test.yaml", "--store", str(test_store), "--run", str(tmp_path / "d"), "--fold"]
    for fold in ("0", "all"):
        said = CliRunner().invoke(train, [*bars, fold]).stderr
        assert f"--fold {fold}: test is made of bars, which are split by time; leave it out" in said
    said = error(*words, every[0] / "fold0", "--fold", "all")
    assert f"{every[0] / 'fold0'}: holds a run of one fold; name another --run for all of them" in said
    said = error(*words, every[0], *ALL)
    assert f"{every[0]}: holds a run for every fold; add --fold all, or name another --run" in said
