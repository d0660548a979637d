import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import zarr
from torch import Tensor, nn

import trainer.evaluate
from cache.reader import Dataset, open_dataset
from configs.loader import load_config
from pipeline.build_command import main as build_cache
from trainer.carried import carry_last
from trainer.config import parse_trainer
from trainer.data import Batch, WindowSource
from trainer.evaluate import BATCH, evaluate, reconstruct
from trainer.masking import Masks
from trainer.metrics import Pairs, TimeOfWeek
from trainer.reconstruct import VALIDATION_STREAM, Reconstruct, reconstruct_task
from trainer.report import table
from trainer.scores import PREDICTORS, QUANTITIES

CPU = torch.device("cpu")
WINDOWS = BATCH + 40  # more than a batch
PRICES = ["open", "high", "low", "close"]


class Answers(nn.Module):
    """A model that answers from a list: [W, L, 4] a timeframe, in the order of evaluation."""

    def __init__(self, answers: list[Tensor]) -> None:
        super().__init__()
        self.answers, self.asked = answers, 0

    def forward(self, x: list[Tensor]) -> list[Tensor]:
        start, self.asked = self.asked, self.asked + len(x[0])
        return [answer[start : self.asked] for answer in self.answers]


class Synchronised(Reconstruct):
    """Hides every bar that overlaps a stretch of base bars, which may be none of a timeframe's, or all."""

    def masks(self, stream: int, batch: Batch) -> Masks:
        now = batch.rows[0][:, -1, 1][:, None]
        offset = 3 + batch.index[:, None] % 200
        return Masks([(rows[..., 0] < now - offset) & (rows[..., 1] > now - offset - 12) for rows in batch.rows])


class Case:
    """A dataset, the first windows of its validation split, their masks and their actual bars."""

    def __init__(self, dataset: Dataset, kind: type[Reconstruct] = Reconstruct) -> None:
        self.dataset = dataset
        task = reconstruct_task(parse_trainer(load_config("configs/test.yaml")), dataset, torch.device("cpu"))
        self.task = kind(**vars(task))
        self.source = WindowSource(dataset, CPU)
        self.source.val = self.source.val.first(WINDOWS)
        index = self.source.val.all()
        self.hidden = [part.numpy() for part in self.task.masks(VALIDATION_STREAM, self.source.gather(index)).hidden]
        (entries,) = dataset.symbols.values()
        self.features, self.bars, self.closes_before, self.means, self.stds = [], [], [], [], []
        self.base_rows, self.times, self.all_bars = [], [], []
        all_ends = zarr.open_group(entries.windows.path, mode="r")["ends"][:]
        for j, stream in enumerate(entries.streams.values()):
            (key,) = stream.manifest["components"]["inputs"]["bars"]
            group = zarr.open_group(stream.path.parents[1] / "bars" / key, mode="r")
            stored = zarr.open_group(stream.path, mode="r")
            bars, times = group["ohlc"][:], pd.to_datetime(group["close_time"][:], utc=True)
            rows = np.stack([np.arange(len(bars)), np.arange(len(bars)) + 1], axis=1)
            length, ends = self.source.seq_lens[j], all_ends[index.numpy(), j]

            def cut(array: Any, ends: Any = ends, length: int = length) -> np.ndarray:
                return np.stack([array[end - length : end] for end in ends])

            self.features.append(cut(stored["values"][:]))
            self.bars.append(cut(bars))
            self.base_rows.append(cut(stored["base_rows"][:] if j else rows))
            self.times.append([times[end - length : end] for end in ends])
            self.all_bars.append(pd.DataFrame(bars, times, PRICES))
            self.closes_before.append(np.array([bars[end - length - 1, 3] for end in ends]))
            statistics = stream.manifest["statistics"]
            self.means.append(np.array([statistics["mean"][name] for name in stream.manifest["features"][:4]]))
            self.stds.append(np.array([statistics["std"][name] for name in stream.manifest["features"][:4]]))

    def scores(self, answers: list[np.ndarray]) -> dict[str, Any]:
        done: list[int] = []
        model = Answers([torch.from_numpy(answer) for answer in answers])
        result = evaluate(model, self.task, self.dataset, self.source, done.append)
        assert model.asked == sum(done) == WINDOWS
        return result

    def truth(self) -> list[np.ndarray]:
        return [features[..., :4].copy() for features in self.features]

    def noisy(self, seed: int, size: float) -> list[np.ndarray]:
        rng = np.random.default_rng(seed)
        return [(truth + size * rng.normal(size=truth.shape)).astype(np.float32) for truth in self.truth()]


@pytest.fixture(scope="module")
def cases(test_store: Path, simulated_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Case]:
    def built(name: str, *overrides: str) -> Dataset:
        store = tmp_path_factory.mktemp(name) / "store"
        options = ["--config", "configs/test.yaml", "--data-dir", str(simulated_dir), "--store", str(store)]
        build_cache([*options, *overrides], standalone_mode=False)
        return open_dataset(store, "test")

    returns = open_dataset(test_store, "test")
    return {
        "returns": Case(returns),
        "price": Case(built("price", "data.features.set=price")),
        "uneven": Case(built("uneven", "data.window.seq_len={m1: 48, m5: 16, m15: 10}")),
        "single": Case(built("single", "data.timeframes=[m1]", "data.features.set=price")),
        "synchronised": Case(returns, Synchronised),
    }


@pytest.fixture(params=["returns", "price", "uneven", "single", "synchronised"])
def case(request: pytest.FixtureRequest, cases: dict[str, Case]) -> Case:
    return cases[request.param]


def test_the_truth_scores_perfectly(case: Case):
    scores = case.scores(case.truth())
    assert list(scores) == [
        *("correlation_per_tf", "reconstruction_quality", "spectral_delta", "consistency_ratio", "summary")
    ]
    assert list(scores["correlation_per_tf"]) == list(case.task.timeframes)
    for name, hidden in zip(case.task.timeframes, case.hidden, strict=True):
        correlation, quality = scores["correlation_per_tf"][name], scores["reconstruction_quality"][name]
        assert correlation["n"] == quality["n"] == hidden.sum() > 250
        assert quality["model"] == {"mse": 0, "mae": 0, "rmse": 0, "ohlc_validity": 1}
        assert correlation["model"] == {quantity: pytest.approx(1, abs=1e-9) for quantity in QUANTITIES}
        assert scores["spectral_delta"][name]["model"] == 0
        # and nobody else does
        for baseline in ("last_value", "straight_line"):
            assert quality[baseline]["mse"] > 0
            assert correlation[baseline]["level"] < 1 - 1e-7
            assert scores["spectral_delta"][name][baseline] > 0.001
        assert correlation["time_of_week"]["log_range"] < 0.9
    for of in scores["consistency_ratio"]["pairs"].values():
        assert of["eligible"] > 50
        assert of["model"]["ratio"] == of["truth"]["ratio"] == 1.0
        assert max(of["model"]["gap_ticks"], of["truth"]["gap_ticks"]) < 1e-3
        assert of["last_value"]["ratio"] < 0.5


@pytest.mark.parametrize("planted", [1e4, float("nan")])
def test_visible_positions_do_not_count(case: Case, planted: float):
    noisy = case.noisy(3, 0.1)
    spoilt = [
        np.where(hidden[..., None], answer, np.float32(planted))
        for hidden, answer in zip(case.hidden, noisy, strict=True)
    ]
    expected = case.scores(noisy)
    assert all(of["model"]["mse"] > 0.001 for of in expected["reconstruction_quality"].values())
    assert case.scores(spoilt) == expected


def log_prices(case: Case, j: int, window: int, answer: np.ndarray) -> list[list[float]]:
    """One window as predicted, bar by bar: log open, high, low, close; true where visible."""
    close = math.log(case.closes_before[j][window])
    result = []
    for t, hidden in enumerate(case.hidden[j][window]):
        if not hidden:
            row = [math.log(price) for price in case.bars[j][window, t]]
        else:
            raw = [float(answer[t, p]) * case.stds[j][p] + case.means[j][p] for p in range(4)]
            row = [close + r for r in raw] if "log_close" in case.task.features else [math.log(price) for price in raw]
        result.append(row)
        close = row[3]
    return result


def check_scores(case: Case) -> None:
    """That a noisy model's scores are those found bar by bar. Raises AssertionError."""
    answers = case.noisy(4, 0.2)
    scores = case.scores(answers)
    for j, name in enumerate(case.task.timeframes):
        correlation, quality = scores["correlation_per_tf"][name], scores["reconstruction_quality"][name]
        pairs: dict[str, list[tuple[float, float]]] = {quantity: [] for quantity in QUANTITIES}
        errors, valid = [], []
        for window in range(WINDOWS):
            predicted = log_prices(case, j, window, answers[j][window])
            before = [math.log(case.closes_before[j][window])] * 2
            for t, hidden in enumerate(case.hidden[j][window]):
                true = [math.log(price) for price in case.bars[j][window, t]]
                if hidden:
                    pairs["level"].append((predicted[t][3], true[3]))
                    pairs["log_return"].append((predicted[t][3] - before[0], true[3] - before[1]))
                    pairs["log_range"].append((predicted[t][1] - predicted[t][2], true[1] - true[2]))
                    errors.append(answers[j][window, t].astype(float) - case.features[j][window, t, :4])
                    body = predicted[t][0], predicted[t][3]
                    valid.append(max(body) - predicted[t][1] <= 1e-6 and predicted[t][2] - min(body) <= 1e-6)
                before = [predicted[t][3], true[3]]
        assert correlation["n"] == quality["n"] == len(errors)
        for quantity, values in pairs.items():
            expected = np.corrcoef(np.array(values).T)[0, 1]
            # the trainer's truth is known to the digits of a float32 feature only
            assert correlation["model"][quantity] == pytest.approx(expected, abs=2e-6), quantity
            assert expected < 0.99999 or quantity == "level"
        assert quality["model"]["mse"] == pytest.approx(np.mean(np.square(errors)), rel=1e-9)
        assert quality["model"]["mae"] == pytest.approx(np.mean(np.abs(errors)), rel=1e-9)
        assert quality["model"]["rmse"] == pytest.approx(np.sqrt(np.mean(np.square(errors))), rel=1e-9)
        assert quality["model"]["ohlc_validity"] == pytest.approx(np.mean(valid), abs=1e-12)
        assert 0.02 < np.mean(valid) < 1


def test_scores_equal_a_bar_by_bar_oracle(case: Case):
    check_scores(case)


def test_correlation_taken_on_visible_positions_would_be_found(cases: dict[str, Case], monkeypatch):
    honest = Pairs.add_pairs
    monkeypatch.setattr(Pairs, "add_pairs", lambda self, x, y, hidden, week: honest(self, x, y, ~hidden, week))
    with pytest.raises(AssertionError):
        check_scores(cases["returns"])


@pytest.mark.parametrize("fault", ["everything counts", "masks of another stream"])
def test_masks_for_the_input_but_not_for_the_metric_would_be_found(cases, monkeypatch, fault: str):
    def faulty(model: nn.Module, task: Reconstruct, source: WindowSource, index: Tensor) -> Any:
        batch, masks, predicted = reconstruct(model, task, source, index)
        if fault == "everything counts":
            return batch, Masks([torch.ones_like(hidden) for hidden in masks.hidden]), predicted
        return batch, task.masks(0, batch), predicted

    monkeypatch.setattr(trainer.evaluate, "reconstruct", faulty)
    with pytest.raises(AssertionError):
        check_scores(cases["returns"])


def test_baselines_do_not_depend_on_the_model_and_are_what_they_say(case: Case):
    zeros = [np.zeros_like(truth) for truth in case.truth()]
    scores, others = case.scores(zeros), case.scores(case.truth())
    for j, name in enumerate(case.task.timeframes):
        of, quality = scores["correlation_per_tf"][name], scores["reconstruction_quality"][name]
        for baseline in ("last_value", "straight_line"):
            assert of[baseline] == others["correlation_per_tf"][name][baseline]
            assert quality[baseline] == others["reconstruction_quality"][name][baseline]
            assert scores["spectral_delta"][name][baseline] == others["spectral_delta"][name][baseline]
            assert quality[baseline]["ohlc_validity"] == 1
        assert of["time_of_week"] == others["correlation_per_tf"][name]["time_of_week"]
        # a price that stays has no returns
        assert of["last_value"]["log_return"] is None
        assert of["straight_line"]["log_return"] is not None
        carried, true = [], []
        for window in range(WINDOWS):
            close = case.closes_before[j][window]
            for t, hidden in enumerate(case.hidden[j][window]):
                if hidden:
                    carried.append(math.log(close))
                    true.append(math.log(case.bars[j][window, t, 3]))
                else:
                    close = case.bars[j][window, t, 3]
        assert of["last_value"]["level"] == pytest.approx(np.corrcoef(carried, true)[0, 1], abs=2e-6)


def test_the_time_of_the_week_equals_pandas_and_knows_training_only(case: Case):
    until = pd.Timestamp(case.dataset.splits["train"]["until"], tz="UTC")
    scores = case.scores(case.truth())
    (entries,) = case.dataset.symbols.values()
    for j, (name, stream) in enumerate(entries.streams.items()):
        bars = case.all_bars[j]
        ranges = np.log(bars["high"] / bars["low"])
        hour = (bars.index - pd.Timedelta("1ns")).floor("h")
        known = ranges[bars.index <= until]
        labels = pd.Series(hour.strftime("%a %H"), bars.index)
        means = known.groupby(labels[known.index]).mean()
        expected = labels.map(means).fillna(known.mean())
        fitted = TimeOfWeek.fitted(stream, until.as_unit("ns").value)
        np.testing.assert_allclose(fitted.ranges(np.arange(len(bars))), expected, rtol=1e-4)
        everything = TimeOfWeek.fitted(stream, bars.index[-1].as_unit("ns").value)
        assert not np.allclose(everything.mean, fitted.mean, rtol=1e-3)

        guesses, true = [], []
        for window in range(WINDOWS):
            at = case.times[j][window][case.hidden[j][window]]
            guesses += expected[at].tolist()
            true += ranges[at].tolist()
        found = scores["correlation_per_tf"][name]["time_of_week"]["log_range"]
        assert found == pytest.approx(np.corrcoef(guesses, true)[0, 1], abs=1e-4)


@pytest.mark.parametrize("name", ["returns", "price", "uneven", "synchronised"])
def test_consistency_equals_a_bar_by_bar_oracle(cases: dict[str, Case], name: str):
    case = cases[name]
    tick = 1e-5
    # nearly true, so that some coarse bars agree and some do not
    answers = case.noisy(5, 0.01)
    for answer in answers:
        answer[::3] = case.truth()[0][:1, :1, :1]
    found = case.scores(answers)["consistency_ratio"]
    assert found["tick"] == pytest.approx(tick, rel=1e-6)
    pairs = list(zip(case.task.timeframes, case.task.timeframes[1:], strict=False))
    assert list(found["pairs"]) == [f"{fine} → {coarse}" for fine, coarse in pairs]
    for j, of in enumerate(found["pairs"].values()):
        eligible, gaps = 0, []
        for window in range(WINDOWS):
            fine = np.exp(log_prices(case, j, window, answers[j][window]))
            coarse = np.exp(log_prices(case, j + 1, window, answers[j + 1][window]))
            for c, (begin, end) in enumerate(case.base_rows[j + 1][window]):
                children = [i for i, (a, b) in enumerate(case.base_rows[j][window]) if begin <= a < b <= end]
                rows = [row for i in children for row in range(*case.base_rows[j][window, i])]
                if rows == list(range(begin, end)) and rows and case.hidden[j][window, children].any():
                    eligible += 1
                    bars = fine[children]
                    made = [bars[0, 0], bars[:, 1].max(), bars[:, 2].min(), bars[-1, 3]]
                    gaps.append(np.abs(made - coarse[c]))
        assert of["eligible"] == eligible > 50
        equal = np.mean(np.max(gaps, axis=1) <= tick / 2)
        assert of["model"]["ratio"] == pytest.approx(equal, abs=1.5 / eligible)  # one may lie at the edge
        assert of["model"]["gap_ticks"] == pytest.approx(np.mean(gaps) / tick, rel=1e-3)
        assert of["truth"]["ratio"] == 1.0


def test_without_a_coarser_timeframe_there_is_no_consistency(cases: dict[str, Case]):
    result = cases["single"].scores(cases["single"].truth())
    assert result["consistency_ratio"]["pairs"] == {}
    assert result["consistency_ratio"]["reason"] == "there is one timeframe only"
    assert result["summary"]["means"]["model"]["consistency_ratio"] is None
    assert "Consistency between timeframes: none, there is one timeframe only." in table(result)


def test_spectra_equal_numpy_on_composites(case: Case):
    answers = case.noisy(6, 0.5)
    found = case.scores(answers)["spectral_delta"]
    for j, name in enumerate(case.task.timeframes):
        composite = np.where(case.hidden[j][..., None], answers[j], case.truth()[j]).astype(float)
        length = composite.shape[1]
        segment = found[name]["segment"]
        assert 8 <= segment <= length
        hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(segment) / segment)
        spectra = []
        for signal in (composite, case.truth()[j].astype(float)):
            windows = np.lib.stride_tricks.sliding_window_view(signal, segment, axis=1)[:, :: segment // 2]
            centred = windows - windows.mean(axis=-1, keepdims=True)
            power = np.abs(np.fft.fft(centred * hann)) ** 2
            spectra.append(power.mean(axis=(0, 1))[:, 1 : segment // 2 + 1])
        expected = np.mean(np.abs(np.log(spectra[0] / spectra[1])))
        assert found[name]["model"] == pytest.approx(expected, rel=1e-6)
        assert expected > 0.02


def test_intervals_and_the_lead_on_the_best_baseline(cases: dict[str, Case], monkeypatch: pytest.MonkeyPatch):
    case = cases["returns"]
    answers = case.noisy(7, 0.3)
    without = case.scores(answers)
    assert without["correlation_per_tf"]["m1"]["model_interval"] == dict.fromkeys(QUANTITIES)
    assert "No intervals" in "\n".join(table(without))
    # as if every half hour were a week
    monkeypatch.setattr(trainer.evaluate, "weeks_of", lambda times: times // (1800 * 10**9))
    scores = case.scores(answers)
    assert scores["summary"]["weeks"] > 5
    for name in case.task.timeframes:
        correlation, quality = scores["correlation_per_tf"][name], scores["reconstruction_quality"][name]
        for kind in PREDICTORS:  # points do not depend on weeks
            assert correlation[kind] == pytest.approx(without["correlation_per_tf"][name][kind])
        for key, of in (*((quantity, correlation) for quantity in QUANTITIES), ("mse", quality)):
            value = of["model"][key]
            rivals = {n: of[n][key] for n in (*PREDICTORS[1:], "time_of_week") if of.get(n, {}).get(key) is not None}
            best = (min if key == "mse" else max)(rivals, key=rivals.get)
            low, high = of["model_interval"][key]
            assert low <= value <= high
            lead = of["model_minus_best_baseline"][key]
            assert lead["baseline"] == best
            assert lead["difference"] == pytest.approx(value - rivals[best])
            assert lead["interval"][0] < lead["interval"][1]
    assert scores == case.scores(answers)  # the resamples are seeded
    lines = table(scores)
    assert any("95 % intervals" in line for line in lines)
    assert max(map(len, lines)) <= 100


def test_validation_and_evaluation_agree_on_the_last_value(cases: dict[str, Case]):
    case = cases["returns"]
    # Huber with so large a delta is half the squared error
    config = parse_trainer(
        load_config("configs/test.yaml", ["loss.huber_delta=1e6", f"training.val_windows={WINDOWS}"])
    )
    task = reconstruct_task(config, case.dataset, torch.device("cpu"))
    batch = case.source.gather(case.source.val.all())
    masks = task.masks(VALIDATION_STREAM, batch)
    features = list(map(carry_last, batch.x, masks.hidden, batch.log_before, task.scales))
    losses = task.losses(features, batch, masks)
    quality = case.scores(case.truth())["reconstruction_quality"]
    assert float(losses["huber"]) == pytest.approx(
        sum(of["last_value"]["mse"] for of in quality.values()) / 6, rel=0.02
    )


def test_scores_are_json(case: Case):
    scores = case.scores(case.truth())
    assert json.loads(json.dumps(scores, allow_nan=False)) == scores


def test_the_table_shows_every_score(cases: dict[str, Case]):
    scores = cases["uneven"].scores(cases["uneven"].noisy(8, 0.4))
    lines = table(scores)
    assert max(map(len, lines)) <= 100
    assert f"{WINDOWS:,} validation windows" in lines[0]
    text = "\n".join(lines)
    words = ("level", "log-return", "log-range", "MSE", "MAE", "RMSE", "valid", "spectral", "time of week", "truth")
    assert all(word in text for word in words)
    for name, correlation in scores["correlation_per_tf"].items():
        quality, delta = scores["reconstruction_quality"][name], scores["spectral_delta"][name]
        start = next(i for i, line in enumerate(lines) if line == f"{name}  ({correlation['n']:,} hidden bars)")
        for line, predictor in zip(lines[start + 1 : start + 4], PREDICTORS, strict=True):
            numbers = [*correlation[predictor].values(), *(quality[predictor][e] for e in ("mse", "mae", "rmse"))]
            expected = ["–" if number is None else f"{number:.4f}" for number in numbers]
            share = f"{100 * quality[predictor]['ohlc_validity']:.1f}"
            assert line.split() == [*predictor.split("_"), *expected, share, "%", f"{delta[predictor]:.4f}"]
        assert lines[start + 4].split()[-1] == f"{correlation['time_of_week']['log_range']:.4f}"
    for pair, of in scores["consistency_ratio"]["pairs"].items():
        (line,) = (line for line in lines if line.startswith(pair))
        assert f"{of['eligible']:,}" in line
        assert f"{100 * of['model']['ratio']:.1f} %" in line
