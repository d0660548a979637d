import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from cache.reader import Dataset, open_dataset
from configs.loader import load_config
from pipeline.build_command import main as build_cache
from trainer.config import parse_trainer
from trainer.data import WindowSource
from trainer.evaluate import BATCH, Pearson, evaluate
from trainer.evaluate_command import table
from trainer.tasks import VALIDATION_STREAM, Reconstruct, reconstruct_task

CPU = torch.device("cpu")
WINDOWS = BATCH + 40  # more than a batch


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Several threads that spin on busy cores make small tensors slow."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def pearson(pieces: list[tuple[np.ndarray, np.ndarray]]) -> Pearson:
    result = Pearson()
    for x, y in pieces:
        result.add(torch.from_numpy(x), torch.from_numpy(y))
    return result


@settings(max_examples=100, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    lengths=st.lists(st.integers(0, 60), min_size=1, max_size=6).filter(lambda lengths: sum(lengths) >= 30),
    slope=st.sampled_from([-2.0, -0.01, 0.0, 0.3, 5.0]),
    offsets=st.sampled_from([(0.0, 0.0), (1e4, 1e4), (-3e6, -3e6), (1e6, 0.0), (0.0, 1e6)]),
    spreads=st.sampled_from([(1.0, 1.0), (1e-3, 1e-3), (1e-3, 2.0), (5.0, 1e-4)]),
)
def test_correlation_from_pieces_equals_numpy(seed: int, lengths: list[int], slope: float, offsets, spreads):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=sum(lengths))
    y = slope * x + rng.normal(size=sum(lengths))
    expected = np.corrcoef(x, y)[0, 1]
    x, y = offsets[0] + spreads[0] * x, offsets[1] + spreads[1] * y
    cuts = np.cumsum(lengths)[:-1]
    found = pearson(list(zip(np.split(x, cuts), np.split(y, cuts), strict=True)))
    assert found.count == sum(lengths)
    # an offset of 3e6 leaves a spread of 1e-4 some 1e-6 of its digits
    assert found.r == pytest.approx(expected, abs=1e-9 if offsets == (0.0, 0.0) else 2e-5)


@pytest.mark.parametrize("n", [29, 30])
def test_correlation_needs_thirty_pairs(n: int):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, n))
    found = pearson([(x[:10], y[:10]), (x[10:10], y[10:10]), (x[10:], y[10:])])
    assert found.count == n
    assert math.isnan(found.r) == (n < 30)


@pytest.mark.parametrize("constant", [0.0, 0.1, -7.3, 1e6 + 0.1])
def test_what_does_not_vary_has_no_correlation(constant: float):
    rng = np.random.default_rng(1)
    varying, still = rng.normal(size=100) * 1e-3, np.full(100, constant)
    assert math.isnan(pearson([(still[:40], varying[:40]), (still[40:], varying[40:])]).r)
    assert math.isnan(pearson([(varying, still)]).r)
    assert math.isnan(pearson([(still, still)]).r)
    assert math.isnan(pearson([]).r)


class Answers(nn.Module):
    """A model that answers from a list: [W, L, 4] a timeframe, in the order of evaluation."""

    def __init__(self, answers: list[Tensor]) -> None:
        super().__init__()
        self.answers, self.asked = answers, 0

    def forward(self, x: list[Tensor]) -> list[Tensor]:
        start, self.asked = self.asked, self.asked + len(x[0])
        return [answer[start : self.asked] for answer in self.answers]


class Case:
    """A dataset, the first windows of its validation split, their masks and their actual bars."""

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset
        self.task: Reconstruct = reconstruct_task(parse_trainer(load_config("configs/test.yaml")), dataset)
        self.source = WindowSource(dataset, CPU)
        self.source.val = self.source.val[:WINDOWS]
        index = torch.arange(self.source.val.start, self.source.val.stop)
        self.hidden = [part.numpy() for part in self.task.masks(VALIDATION_STREAM, self.source.gather(index)).hidden]
        (entries,) = dataset.symbols.values()
        self.features, self.bars, self.closes_before, self.means, self.stds = [], [], [], [], []
        all_ends = zarr.open_group(entries.windows.path, mode="r")["ends"][:]
        for j, stream in enumerate(entries.streams.values()):
            (key,) = stream.manifest["components"]["inputs"]["bars"]
            bars = zarr.open_group(stream.path.parents[1] / "bars" / key, mode="r")["ohlc"][:]
            values = zarr.open_group(stream.path, mode="r")["values"][:]
            length, ends = self.source.seq_lens[j], all_ends[index.numpy(), j]
            self.features.append(np.stack([values[end - length : end] for end in ends]))
            self.bars.append(np.stack([bars[end - length : end] for end in ends]))
            self.closes_before.append(np.array([bars[end - length - 1, 3] for end in ends]))
            statistics = stream.manifest["statistics"]
            self.means.append(np.array([statistics["mean"][name] for name in stream.manifest["features"][:4]]))
            self.stds.append(np.array([statistics["std"][name] for name in stream.manifest["features"][:4]]))

    def scores(self, answers: list[np.ndarray]) -> dict[str, Any]:
        done: list[int] = []
        model = Answers([torch.from_numpy(answer) for answer in answers])
        result = evaluate(model, self.task, self.source, done.append)
        assert model.asked == sum(done) == WINDOWS
        return result

    def truth(self) -> list[np.ndarray]:
        return [features[..., :4].copy() for features in self.features]


@pytest.fixture(scope="module")
def cases(test_store: Path, simulated_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Case]:
    store = tmp_path_factory.mktemp("price") / "store"
    options = ["--config", "configs/test.yaml", "--data-dir", str(simulated_dir), "--store", str(store)]
    build_cache([*options, "data.features.set=price"], standalone_mode=False)
    return {"returns": Case(open_dataset(test_store, "test")), "price": Case(open_dataset(store, "test"))}


@pytest.fixture(params=["returns", "price"])
def case(request: pytest.FixtureRequest, cases: dict[str, Case]) -> Case:
    return cases[request.param]


def test_the_truth_scores_perfectly(case: Case):
    scores = case.scores(case.truth())
    assert list(scores) == ["m1", "m5", "m15"]
    for of, hidden in zip(scores.values(), case.hidden, strict=True):
        assert of["n"] == hidden.sum() > WINDOWS
        model = of["model"]
        assert (model["mse"], model["mae"], model["rmse"]) == (0, 0, 0)
        assert model["correlation"] == {
            quantity: pytest.approx(1, abs=1e-9) for quantity in ("level", "log_return", "log_range")
        }
        # and nobody else does
        for baseline in ("last_value", "straight_line"):
            assert of[baseline]["mse"] > 0
            assert of[baseline]["correlation"]["level"] < 1 - 1e-7


@pytest.mark.parametrize("planted", [1e4, float("nan")])
def test_visible_positions_do_not_count(case: Case, planted: float):
    rng = np.random.default_rng(3)
    noisy = [(truth + 0.1 * rng.normal(size=truth.shape)).astype(np.float32) for truth in case.truth()]
    spoilt = [
        np.where(hidden[..., None], answer, np.float32(planted))
        for hidden, answer in zip(case.hidden, noisy, strict=True)
    ]
    expected = case.scores(noisy)
    assert all(of["model"]["mse"] > 0.001 for of in expected.values())
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


def test_scores_equal_a_bar_by_bar_oracle(case: Case):
    rng = np.random.default_rng(4)
    answers = [(truth + 0.2 * rng.normal(size=truth.shape)).astype(np.float32) for truth in case.truth()]
    scores = case.scores(answers)
    for j, of in enumerate(scores.values()):
        pairs: dict[str, list[tuple[float, float]]] = {"level": [], "log_return": [], "log_range": []}
        errors = []
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
                before = [predicted[t][3], true[3]]
        assert of["n"] == len(errors)
        for quantity, values in pairs.items():
            expected = np.corrcoef(np.array(values).T)[0, 1]
            # the trainer's truth is known to the digits of a float32 feature only
            assert of["model"]["correlation"][quantity] == pytest.approx(expected, abs=2e-6), quantity
            assert expected < 0.99999 or quantity == "level"
        assert of["model"]["mse"] == pytest.approx(np.mean(np.square(errors)), rel=1e-9)
        assert of["model"]["mae"] == pytest.approx(np.mean(np.abs(errors)), rel=1e-9)
        assert of["model"]["rmse"] == pytest.approx(np.sqrt(np.mean(np.square(errors))), rel=1e-9)


def test_baselines_do_not_depend_on_the_model_and_are_what_they_say(case: Case):
    zeros = [np.zeros_like(truth) for truth in case.truth()]
    scores, others = case.scores(zeros), case.scores(case.truth())
    for j, (name, of) in enumerate(scores.items()):
        for baseline in ("last_value", "straight_line"):
            assert of[baseline] == others[name][baseline]
        # a price that stays has no returns
        assert of["last_value"]["correlation"]["log_return"] is None
        assert of["straight_line"]["correlation"]["log_return"] is not None
        carried, true = [], []
        for window in range(WINDOWS):
            close = case.closes_before[j][window]
            for t, hidden in enumerate(case.hidden[j][window]):
                if hidden:
                    carried.append(math.log(close))
                    true.append(math.log(case.bars[j][window, t, 3]))
                else:
                    close = case.bars[j][window, t, 3]
        assert of["last_value"]["correlation"]["level"] == pytest.approx(np.corrcoef(carried, true)[0, 1], abs=2e-6)


def test_validation_and_evaluation_agree_on_the_last_value(cases: dict[str, Case]):
    case = cases["returns"]
    # Huber with so large a delta is half the squared error
    config = parse_trainer(
        load_config("configs/test.yaml", ["loss.huber_delta=1e6", f"training.val_windows={WINDOWS}"])
    )
    carried = reconstruct_task(config, case.dataset).baseline(case.source, lambda windows: None)
    scores = case.scores(case.truth())
    assert carried == pytest.approx(sum(of["last_value"]["mse"] for of in scores.values()) / 6, rel=0.02)


def test_scores_are_json(cases: dict[str, Case]):
    scores = cases["returns"].scores(cases["returns"].truth())
    assert json.loads(json.dumps(scores, allow_nan=False)) == scores


def test_the_table_shows_every_score():
    def score(first: float, log_return: float | None) -> dict[str, Any]:
        correlation = {"level": first, "log_return": log_return, "log_range": -0.25}
        return {"correlation": correlation, "mse": 4 + first, "mae": 2 + first, "rmse": 3 + first}

    def timeframe(n: int, first: float) -> dict[str, Any]:
        scores = {"model": score(first, 0.5), "last_value": score(first + 0.1, None)}
        return {"n": n, **scores, "straight_line": score(first + 0.2, 0.0)}

    lines = table({"windows": 12345, "timeframes": {"m1": timeframe(67890, 0.125), "h1": timeframe(29, 0.375)}})
    assert "12,345 validation windows" in lines[0]
    text = "\n".join(lines)
    assert all(word in text for word in ("level", "log-return", "log-range", "MSE", "MAE", "RMSE"))
    rows = [line.split() for line in lines[3:-1]]
    assert rows == [
        ["m1", "(67,890", "hidden", "bars)"],
        ["model", "0.1250", "0.5000", "-0.2500", "4.1250", "2.1250", "3.1250"],
        ["last", "value", "0.2250", "–", "-0.2500", "4.2250", "2.2250", "3.2250"],
        ["straight", "line", "0.3250", "0.0000", "-0.2500", "4.3250", "2.3250", "3.3250"],
        ["h1", "(29", "hidden", "bars)"],
        ["model", "0.3750", "0.5000", "-0.2500", "4.3750", "2.3750", "3.3750"],
        ["last", "value", "0.4750", "–", "-0.2500", "4.4750", "2.4750", "3.4750"],
        ["straight", "line", "0.5750", "0.0000", "-0.2500", "4.5750", "2.5750", "3.5750"],
    ]
    assert len({len(line) for line in lines if "0.2500" in line}) == 1
