import itertools
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from cache.reader import open_dataset
from cache.recipe import Session
from pipeline.bars import Block
from pipeline.children import base_rows
from pipeline.derive import derive_bars
from tests.unit.pipeline.making import MINUTE, MemorySeries, joined, random_ohlc
from trainer.data import WindowSource
from trainer.losses import composite, cross_timeframe, huber, price_scale
from trainer.prices import Scale, scales_of, true_log_prices


@pytest.mark.parametrize("delta", [0.3, 1.0, 2.5])
def test_huber_against_a_loop(delta: float) -> None:
    generator = torch.Generator().manual_seed(0)
    prediction, target = (2 * torch.randn(3, 7, 4, generator=generator) for _ in range(2))
    hidden = torch.rand(3, 7, generator=generator) < 0.4
    values = []
    for b, t, c in itertools.product(range(3), range(7), range(4)):
        if hidden[b, t]:
            error = abs(float(prediction[b, t, c]) - float(target[b, t, c]))
            values.append(error**2 / 2 if error <= delta else delta * (error - delta / 2))
    result = huber(prediction, target, hidden, delta)
    assert result.shape == ()
    assert result.item() == pytest.approx(sum(values) / len(values), rel=1e-6)


def test_visible_bars_and_their_gradients_do_not_count() -> None:
    prediction = torch.randn(2, 5, 4, requires_grad=True)
    hidden = torch.tensor([[0, 1, 1, 0, 0], [0, 0, 0, 0, 1]]).bool()
    huber(prediction, torch.zeros(2, 5, 4), hidden, 1.0).backward()
    assert prediction.grad is not None
    assert (prediction.grad[~hidden] == 0).all()
    assert (prediction.grad[hidden] != 0).all()


def test_float32_under_autocast() -> None:
    # 2049 is not a bfloat16: computed there, the loss would be 0 or wrong by 100 %.
    prediction = torch.full((1, 2, 4), 2048.0, dtype=torch.bfloat16)
    target = torch.full((1, 2, 4), 2049.0)
    with torch.autocast("cpu", torch.bfloat16):
        result = huber(prediction, target, torch.ones(1, 2).bool(), 1.0)
    assert result.dtype == torch.float32
    assert result.item() == 0.5


def test_nothing_hidden_is_not_a_silent_zero() -> None:
    assert huber(torch.zeros(1, 2, 4), torch.zeros(1, 2, 4), torch.zeros(1, 2).bool(), 1.0).isnan()


def test_a_composite_is_the_prediction_where_hidden() -> None:
    prediction, target = torch.randn(2, 5, 4, requires_grad=True), torch.randn(2, 5, 4).double()
    hidden = torch.tensor([[0, 1, 1, 0, 0], [0, 0, 0, 0, 1]]).bool()
    found = composite(prediction, target, hidden)
    assert found.dtype == torch.float64
    for b, t in itertools.product(range(2), range(5)):
        assert torch.equal(found[b, t], prediction[b, t].double() if hidden[b, t] else target[b, t])
    found.sum().backward()
    assert prediction.grad is not None
    assert torch.equal(prediction.grad, hidden[..., None].expand(2, 5, 4).float())
    spoilt = torch.where(hidden[..., None], prediction, torch.nan)
    assert torch.equal(composite(spoilt, target, hidden), found)


@dataclass(frozen=True)
class Case:
    """Arguments of `cross_timeframe`, but for `relative`."""

    fine: Tensor
    coarse: Tensor
    fine_rows: Tensor
    coarse_rows: Tensor
    hidden: Tensor
    scale: Tensor
    delta: float = 1.0

    def loss(self, relative: bool = True) -> tuple[Tensor, Tensor]:
        parts = (self.fine, self.coarse, self.fine_rows, self.coarse_rows, self.hidden, self.scale, self.delta)
        return cross_timeframe(*parts, relative=relative)


def by_hand(case: Case, relative: bool) -> tuple[float, list[tuple[int, int]]]:
    """The loss, and the coarse bars compared, as sets of base rows and loops over bars."""
    values, compared = [], []
    for b, m in itertools.product(range(len(case.coarse)), range(case.coarse.shape[1])):
        rows = set(range(*case.coarse_rows[b, m].tolist()))
        held = [set(range(*bar.tolist())) for bar in case.fine_rows[b]]
        children = [k for k, own in enumerate(held) if own and own <= rows]
        complete = bool(rows) and set().union(*(held[k] for k in children)) == rows
        if not complete or not any(case.hidden[b, k] for k in children):
            continue
        compared.append((b, m))
        bars = case.fine[b, children].tolist()
        aggregate = bars[0][0], max(bar[1] for bar in bars), min(bar[2] for bar in bars), bars[-1][3]
        for p, (ours, theirs) in enumerate(zip(aggregate, case.coarse[b, m].tolist(), strict=True)):
            difference = ours - theirs if relative else np.exp(ours) - np.exp(theirs)
            error = abs(difference) / float(case.scale[p])
            values.append(error**2 / 2 if error <= case.delta else case.delta * (error - case.delta / 2))
    return float(np.mean(values)) if values else 0.0, compared


def random_case(seed: int, length: int, n_coarse: int, faults: float, hide: float) -> Case:
    """Windows into a series whose bars hold runs of base rows; with `faults`, not as they should.

    Then fine bars lack, straddle two coarse bars or hold no base rows, and so do coarse ones.
    """
    rng = np.random.default_rng(seed)
    batch = 3

    def broken() -> bool:
        return bool(rng.random() < faults)

    fine, coarse, row, begin = [], [], int(rng.integers(1000)), None
    begin = row
    while min(len(fine) - 3 * length, len(coarse) - 3 * n_coarse) < 0:
        for _ in range(rng.integers(1, 5)):
            if broken():
                fine.append((row, row))
            count = int(rng.integers(1, 4))
            if not broken():
                fine.append((row, row + count))
            row += count
        end = row - 1 if broken() and row - 1 > begin else row
        if not broken():
            coarse.append((begin, end))
        if broken():
            coarse.append((end, end))
        begin = end
    stops = np.sort(rng.integers(length, len(fine) + 1, batch))
    known = [fine[stop - 1][1] for stop in stops]
    last = [max(sum(end <= row for _, end in coarse), n_coarse) for row in known]
    fine_rows = np.array([fine[stop - length : stop] for stop in stops], np.int32)
    coarse_rows = np.array([coarse[stop - n_coarse : stop] for stop in last], np.int32)
    return Case(
        torch.from_numpy(4 + 0.3 * rng.normal(size=(batch, length, 4))),
        torch.from_numpy(4 + 0.3 * rng.normal(size=(batch, n_coarse, 4))),
        torch.from_numpy(fine_rows),
        torch.from_numpy(coarse_rows),
        torch.from_numpy(rng.random((batch, length)) < hide),
        torch.from_numpy(rng.uniform(0.2, 2, 4)),
    )


@settings(max_examples=200, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    length=st.integers(1, 24),
    n_coarse=st.integers(1, 12),
    faults=st.sampled_from([0.0, 0.03, 0.3]),
    hide=st.sampled_from([0.0, 0.1, 0.5, 1.0]),
    delta=st.sampled_from([0.1, 1.0, 100.0]),
    relative=st.booleans(),
)
def test_cross_timeframe_against_a_loop(
    seed: int, length: int, n_coarse: int, faults: float, hide: float, delta: float, relative: bool
) -> None:
    case = replace(random_case(seed, length, n_coarse, faults, hide), delta=delta)
    expected, compared = by_hand(case, relative)
    loss, support = case.loss(relative)
    assert (loss.shape, loss.dtype, support.shape, support.dtype) == ((), torch.float64, (), torch.int64)
    assert support.item() == len(compared)
    assert loss.item() == pytest.approx(expected, rel=1e-12)


def small_case(hidden: list[int]) -> Case:
    """Six fine bars of two base rows; four coarse bars: cut by the window's start, whole, without rows, whole."""
    fine_rows = torch.tensor([[[10, 12], [12, 14], [14, 16], [16, 18], [18, 20], [20, 22]]], dtype=torch.int32)
    coarse_rows = torch.tensor([[[8, 12], [12, 16], [16, 16], [16, 22]]], dtype=torch.int32)
    generator = torch.Generator().manual_seed(0)
    fine, coarse = (torch.randn(1, bars, 4, dtype=torch.float64, generator=generator) for bars in (6, 4))
    mask = torch.zeros(1, 6).bool()
    mask[0, hidden] = True
    return Case(fine, coarse, fine_rows, coarse_rows, mask, torch.tensor([0.5, 1, 2, 4]).double())


@pytest.mark.parametrize(
    ("hidden", "support"), [([], 0), ([0], 0), ([1], 1), ([2], 1), ([1, 2], 1), ([3], 1), ([0, 2, 4], 2)]
)
@pytest.mark.parametrize("relative", [True, False])
def test_which_bars_are_compared(hidden: list[int], support: int, relative: bool) -> None:
    case = small_case(hidden)
    case.fine.requires_grad_()
    case.coarse.requires_grad_()
    loss, found = case.loss(relative)
    assert found.item() == support
    assert loss.isfinite()
    assert (loss.item() == 0) == (support == 0)
    loss.backward()
    compared = {m for m, children in ((1, {1, 2}), (3, {3, 4, 5})) if children & set(hidden)}
    assert case.coarse.grad is not None and case.fine.grad is not None
    assert {m for m in range(4) if (case.coarse.grad[0, m] != 0).all()} == compared
    assert (case.coarse.grad[0, [m for m in range(4) if m not in compared]] == 0).all()
    expected = torch.zeros(6, 4).bool()
    for m, children in ((1, [1, 2]), (3, [3, 4, 5])):
        if m in compared:
            expected[children[0], 0] = expected[children[-1], 3] = True
            expected[max(children, key=lambda k: float(case.fine.detach()[0, k, 1])), 1] = True
            expected[min(children, key=lambda k: float(case.fine.detach()[0, k, 2])), 2] = True
    assert torch.equal(case.fine.grad[0] != 0, expected)


def test_incomplete_bars_do_not_count() -> None:
    case = small_case([1, 3])
    assert case.loss()[1] == 2
    gap = replace(case, fine_rows=case.fine_rows.clone())
    gap.fine_rows[0, 4] = torch.tensor([20, 20])  # the rows 18 and 19 are in no fine bar
    assert gap.loss()[1] == 1
    straddling = replace(case, fine_rows=case.fine_rows.clone())
    straddling.fine_rows[0, 2, 1] = straddling.fine_rows[0, 3, 0] = 17
    assert straddling.loss()[1] == 0
    unfinished = replace(case, coarse_rows=case.coarse_rows.clone())
    unfinished.coarse_rows[0, 3, 1] = 23
    assert unfinished.loss()[1] == 1


@pytest.mark.parametrize("relative", [True, False])
def test_cross_timeframe_gradients_against_finite_differences(relative: bool) -> None:
    case = random_case(5, 12, 5, 0.0, 0.5)
    assert case.loss()[1] > 4
    inputs = (case.fine.requires_grad_(), case.coarse.requires_grad_())
    assert torch.autograd.gradcheck(lambda f, c: replace(case, fine=f, coarse=c).loss(relative)[0], inputs)


def test_bars_that_are_not_compared_do_no_harm() -> None:
    case = small_case([0, 3])
    expected = case.loss()[0]
    case.fine[0, :3] = torch.tensor([torch.nan, torch.inf, -torch.inf, torch.nan])
    case.coarse[0, :3] = torch.nan
    case.fine.requires_grad_()
    loss, support = case.loss()
    loss.backward()
    assert (loss, support) == (expected, 1)
    assert case.fine.grad is not None and case.fine.grad.isfinite().all()
    case.fine.detach()[0, 4, 1] = torch.nan
    assert case.loss()[0].isnan()  # but what is compared is not healed


def test_the_order_of_windows_and_the_unit_do_not_matter() -> None:
    case = random_case(1, 20, 8, 0.0, 0.5)
    for relative in (True, False):
        loss, support = case.loss(relative)
        turned = Case(*(part.flip(0) for part in list(vars(case).values())[:5]), case.scale).loss(relative)
        assert turned[0].item() == pytest.approx(loss.item(), rel=1e-12)
        assert turned[1] == support
        dearer = replace(case, fine=case.fine + np.log(100), coarse=case.coarse + np.log(100))
        if not relative:
            assert dearer.loss(relative)[0] > 2 * loss
            dearer = replace(dearer, scale=100 * case.scale)
        assert dearer.loss(relative)[0].item() == pytest.approx(loss.item(), rel=1e-9)


def test_cross_timeframe_in_float64_whatever_autocast_does() -> None:
    case = random_case(2, 20, 8, 0.0, 0.5)
    half = replace(case, fine=case.fine.bfloat16(), coarse=case.coarse.bfloat16())
    exact = replace(half, fine=half.fine.double(), coarse=half.coarse.double())
    for relative in (True, False):
        with torch.autocast("cpu", torch.bfloat16):
            loss = half.loss(relative)[0]
        assert loss.dtype == torch.float64
        assert loss == exact.loss(relative)[0]


@pytest.mark.parametrize("relative", [True, False])
def test_no_synchronisation_and_one_graph(relative: bool) -> None:
    case = random_case(3, 20, 8, 0.1, 0.5)

    def loss(fine: Tensor) -> tuple[Tensor, Tensor]:
        return replace(case, fine=fine).loss(relative)

    results = []
    for function in (loss, torch.compile(loss, backend="aot_eager", fullgraph=True)):
        fine = case.fine.clone().requires_grad_()
        value, support = function(fine)
        value.backward()
        results.append((value, support, fine.grad))
    torch.testing.assert_close(*results)
    with FakeTensorMode() as mode:  # has no values: raises where one is asked for
        fakes = [mode.from_tensor(part) for part in list(vars(case).values())[:6]]
        assert cross_timeframe(*fakes, 1.0, relative=relative)[1].shape == ()


def test_scales_of_prices() -> None:
    std = torch.tensor([1.0, 2, 3, 4, 5, 6], dtype=torch.float64)
    for name, expected in (("price", [1, 2, 3, 4]), ("returns", [4, 4, 4, 4])):
        found = price_scale(Scale(name, torch.zeros(1, 6).double(), std[None]))
        assert found.dtype == torch.float64
        assert found.tolist() == [expected]


@pytest.mark.parametrize(("begin", "hours"), [("2024-03-08", [24, 23, 24]), ("2024-11-01", [24, 25, 24])])
def test_session_days_and_their_hours(begin: str, hours: list[int]) -> None:
    zone = Session.model_validate({"tz": "America/New_York", "at": "17:00"})
    opened = np.datetime64(begin, "ns").astype(np.int64) + 15 * MINUTE * np.arange(4 * 24 * 6)
    base = Block(opened, opened + 15 * MINUTE, random_ohlc(np.random.default_rng(0), len(opened)))
    bars = {name: joined(derive_bars([base], name, zone)) for name in ("h1", "d")}
    n_fine, n_coarse = sum(hours), 5
    end = int(np.flatnonzero(bars["h1"].close_time == bars["d"].close_time[3])[0]) + 1
    parts = {"h1": slice(end - n_fine, end), "d": slice(0, n_coarse)}
    logs = {name: torch.from_numpy(np.log(bars[name].ohlc[part]))[None] for name, part in parts.items()}
    rows = {
        name: torch.from_numpy(base_rows(MemorySeries(base), MemorySeries(bars[name]))[part])[None]
        for name, part in parts.items()
    }
    hidden = torch.ones(1, n_fine).bool()
    case = Case(logs["h1"], logs["d"], rows["h1"], rows["d"], hidden, torch.full((4,), 1e-3).double())
    assert [int(past - first) // 4 for first, past in case.coarse_rows[0, 1:4]] == hours
    loss, support = case.loss()
    assert (loss.item(), support.item()) == (0, 3)
    for fewer, left in ((1, 2), (hours[0], 2), (hours[0] + 1, 1), (n_fine - 1, 0)):
        cut = replace(
            case, fine=case.fine[:, fewer:], fine_rows=case.fine_rows[:, fewer:], hidden=case.hidden[:, fewer:]
        )
        assert cut.loss()[1] == left
    case.fine[0, hours[0] + 5, 1] += 1
    assert case.loss()[0] > 1


def test_the_truth_of_a_dataset_is_consistent(test_store: Path) -> None:
    dataset = open_dataset(test_store, "test")
    scales = scales_of(dataset, "returns")
    source = WindowSource(dataset, torch.device("cpu"))
    # not the very first windows: there is no m15 bar before theirs
    batch = source.gather(torch.tensor([20, 1000, 1001, 1002, source.val[0], source.val[-1]]))
    prices = [true_log_prices(*parts) for parts in zip(batch.x, batch.log_before, scales, strict=True)]
    for j in (0, 1):
        hidden = torch.rand(prices[j].shape[:2], generator=torch.Generator().manual_seed(0)) < 0.2
        case = Case(prices[j], prices[j + 1], batch.rows[j], batch.rows[j + 1], hidden, price_scale(scales[j + 1])[0])
        for relative in (True, False):
            loss, support = case.loss(relative)
            assert loss < 1e-8
            assert support == len(by_hand(case, relative)[1]) > 6
        late = replace(case, fine=case.fine.roll(1, dims=1))
        assert late.loss()[0] > 1e-3
