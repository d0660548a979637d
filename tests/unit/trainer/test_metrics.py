import itertools
import math
from importlib.util import find_spec

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.metrics import (
    Pairs,
    aggregate,
    children_of,
    hours_of_week,
    interval,
    ohlc_valid,
    pearson,
    resampled_weeks,
    segment_length,
    some_child,
    spectral_delta,
    tick_of,
    weeks_of,
    welch,
)

HOUR = 3600 * 10**9


def filled(pieces: list[tuple[np.ndarray, np.ndarray]], weeks: list[int] | None = None) -> Pairs:
    """One window a piece, all of it hidden."""
    weeks = weeks or [0] * len(pieces)
    pairs = Pairs(max(weeks, default=0) + 1)
    for (x, y), week in zip(pieces, weeks, strict=True):
        hidden = torch.ones((1, len(x)), dtype=torch.bool)
        pairs.add_pairs(torch.from_numpy(x)[None], torch.from_numpy(y)[None], hidden, np.array([week]))
    return pairs


def r(pairs: Pairs) -> float:
    return float(pearson(pairs.sums.sum(axis=0)))


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
    pairs = filled(list(zip(np.split(x, cuts), np.split(y, cuts), strict=True)))
    assert pairs.sums[:, 0].sum() == sum(lengths)
    # an offset of 3e6 leaves a spread of 1e-4 some 1e-6 of its digits
    assert r(pairs) == pytest.approx(expected, abs=1e-9 if offsets == (0.0, 0.0) else 2e-5)


@pytest.mark.parametrize("n", [29, 30])
def test_correlation_needs_thirty_pairs(n: int):
    x, y = np.random.default_rng(0).normal(size=(2, n))
    pairs = filled([(x[:10], y[:10]), (x[10:10], y[10:10]), (x[10:], y[10:])])
    assert math.isnan(r(pairs)) == (n < 30)


@pytest.mark.parametrize("constant", [0.0, 0.1, -7.3, 1e6 + 0.1])
def test_what_does_not_vary_has_no_correlation(constant: float):
    varying, still = np.random.default_rng(1).normal(size=100) * 1e-3, np.full(100, constant)
    assert math.isnan(r(filled([(still[:40], varying[:40]), (still[40:], varying[40:])])))
    assert math.isnan(r(filled([(varying, still)])))
    assert math.isnan(r(filled([(still, still)])))
    assert math.isnan(r(filled([])))


@pytest.mark.parametrize("planted", [1e6, math.nan, math.inf])
def test_visible_pairs_do_not_count(planted: float):
    rng = np.random.default_rng(2)
    x, y, hidden = rng.normal(size=(3, 40)), rng.normal(size=(3, 40)), rng.random((3, 40)) < 0.5
    spoilt_x, spoilt_y = np.where(hidden, x, planted), np.where(hidden, y, planted)
    pairs = Pairs(1)
    pairs.add_pairs(*map(torch.from_numpy, (spoilt_x, spoilt_y, hidden)), np.zeros(3, dtype=int))
    assert r(pairs) == pytest.approx(np.corrcoef(x[hidden], y[hidden])[0, 1], abs=1e-12)


def test_resampling_weekly_sums_is_resampling_the_pairs():
    rng = np.random.default_rng(3)
    weeks = [0, 0, 1, 2, 2, 3]
    pieces = [(x, 0.5 * x + rng.normal(size=len(x))) for x in (rng.normal(size=n) for n in (30, 5, 40, 31, 8, 50))]
    draws = resampled_weeks(4, seed=5)
    assert draws.shape == (1000, 4)
    assert (draws.sum(axis=1) == 4).all()
    found = pearson(draws @ filled(pieces, weeks).sums)
    for draw, value in list(zip(draws, found, strict=True))[:40]:
        again = [piece for piece, week in zip(pieces, weeks, strict=True) for _ in range(int(draw[week]))]
        x, y = (np.concatenate(part) for part in zip(*again, strict=True))
        assert value == pytest.approx(np.corrcoef(x, y)[0, 1], abs=1e-12)
    assert np.array_equal(draws, resampled_weeks(4, seed=5))
    assert not np.array_equal(draws, resampled_weeks(4, seed=6))


def test_intervals_hold_the_truth_about_as_often_as_they_say():
    rng = np.random.default_rng(4)
    rho, weeks, held = 0.6, 30, 0
    for trial in range(200):
        level = rng.normal(size=(weeks, 1))  # that weeks share, so that single pairs would be far too sure
        x = level + rng.normal(size=(weeks, 20))
        y = rho * x + math.sqrt(1 - rho**2) * (rng.normal(size=(weeks, 1)) + rng.normal(size=(weeks, 20)))
        pairs = filled(list(zip(x, y, strict=True)), list(range(weeks)))
        low, high = interval(pearson(resampled_weeks(weeks, trial) @ pairs.sums), weeks)
        held += low <= rho <= high
    assert 0.86 <= held / 200 <= 0.98


def test_no_interval_without_weeks():
    values = np.random.default_rng(0).normal(size=1000)
    assert interval(values, 4) is None
    assert interval(values, 5) == pytest.approx(np.percentile(values, [2.5, 97.5]).tolist())
    assert interval(np.where(values > 0, np.nan, values), 50) is None


def test_weeks_and_hours_of_the_week_equal_pandas():
    times = pd.date_range("2023-12-24 22:30", periods=2000, freq="37min", tz="UTC")
    numbers = weeks_of(times.as_unit("ns").asi8)
    calendar = times.isocalendar()
    expected = calendar["year"].astype(str) + "-" + calendar["week"].astype(str)
    assert (pd.factorize(numbers)[0] == pd.factorize(expected.to_numpy())[0]).all()
    inside = times - pd.Timedelta("1ns")
    hours = hours_of_week(times.as_unit("ns").asi8)
    # 1970 began on a Thursday
    assert (hours == (inside.day_of_week - 3) % 7 * 24 + inside.hour).all()


def test_a_valid_bar():
    bars = torch.tensor([[[2.0, 4, 1, 3], [2, 2.5, 1, 3], [2, 4, 2.5, 3], [2, 2, 2, 2], [3, 4, 1, 2], [5, 4, 1, 2]]])
    assert ohlc_valid(bars).tolist() == [[True, False, False, True, True, False]]


def slow_welch(signals: np.ndarray, segment: int) -> np.ndarray:
    """[P, K] by the definition: a sum over time for every frequency."""
    n = np.arange(segment)
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * n / segment)
    total = np.zeros((signals.shape[2], segment // 2))
    for window in signals:
        pieces = [window[at : at + segment] for at in range(0, len(window) - segment + 1, max(segment // 2, 1))]
        for piece in pieces:
            for k in range(1, segment // 2 + 1):
                wave = hann * np.exp(-2j * np.pi * k * n / segment)
                total[:, k - 1] += np.abs(((piece - piece.mean(axis=0)).T * wave).sum(axis=1)) ** 2 / len(pieces)
    return total


@pytest.mark.parametrize("length", [2, 5, 8, 20, 33, 64])
def test_welch_equals_its_definition(length: int):
    signals = np.random.default_rng(length).normal(size=(7, length, 4)).cumsum(axis=1)
    segment = segment_length(length)
    found = welch(torch.from_numpy(signals), segment).numpy()
    np.testing.assert_allclose(found, slow_welch(signals, segment), rtol=1e-9, atol=1e-9)
    if find_spec("scipy") and length >= 20:
        from scipy.signal import welch as peer

        expected = peer(signals, nperseg=segment, noverlap=segment - segment // 2, axis=1)[1].sum(axis=0).T[:, 1:-1]
        ratio = found[:, :-1] / expected[:, : found.shape[1] - 1]
        np.testing.assert_allclose(ratio, ratio[0, 0], rtol=1e-9)


def test_spectral_delta():
    spectrum = np.random.default_rng(0).random((4, 16)) + 0.1
    assert spectral_delta(spectrum, spectrum) == 0
    assert spectral_delta(3 * spectrum, spectrum) == pytest.approx(math.log(3))
    assert spectral_delta(spectrum / 3, spectrum) == pytest.approx(math.log(3))
    # what is too smooth has lost its high frequencies
    rng = np.random.default_rng(1)
    noise = torch.from_numpy(rng.normal(size=(50, 64, 4)))
    smooth = (noise + noise.roll(1, 1) + noise.roll(2, 1)) / 3
    one, other = welch(noise, 32).numpy(), welch(smooth, 32).numpy()
    assert spectral_delta(other, one) > 1
    assert np.isfinite(spectral_delta(np.zeros((4, 16)), np.zeros((4, 16))))


def cut(rng: np.random.Generator, begin: int, rows: int, longest: int, holes: bool) -> list[tuple[int, int]]:
    """Consecutive bars over base rows from `begin` on, some without rows, with holes between them or not."""
    bars, at = [], begin
    while at < begin + rows:
        length = int(rng.integers(0, longest + 1))
        bars.append((at, at + length))
        at += length + int(holes and rng.random() < 0.1)
    return bars


@pytest.mark.parametrize("seed", range(60))
def test_children_and_their_aggregate_equal_pandas(seed: int):
    rng = np.random.default_rng(seed)
    fine = cut(rng, 5, 60, 3, seed % 2 == 0)
    # coarse bars that end where fine ones do, and coarse bars that end anywhere
    edges = sorted({0, *rng.choice([past for _, past in fine], 8).tolist(), 70})
    coarse = list(itertools.pairwise(edges)) if seed % 2 else cut(rng, 0, 70, 12, True)
    prices, hidden = rng.normal(size=(len(fine), 4)), rng.random(len(fine)) < 0.3
    children = children_of(torch.tensor([fine], dtype=torch.int32), torch.tensor([coarse], dtype=torch.int32))
    made = aggregate(torch.from_numpy(prices)[None], children)
    some = some_child(torch.from_numpy(hidden)[None], children)
    bars = pd.DataFrame(prices, columns=["open", "high", "low", "close"]).assign(hidden=hidden)
    if seed % 2:
        assert children.complete.any()
    for c, (begin, end) in enumerate(coarse):
        inside = [i for i, (first, past) in enumerate(fine) if begin <= first < past <= end]
        rows = {row for i in inside for row in range(*fine[i])}
        complete = end > begin and rows == set(range(begin, end))
        assert bool(children.complete[0, c]) == complete
        if complete:
            of = bars.iloc[inside]
            how = {"open": "first", "high": "max", "low": "min", "close": "last"}
            expected = of.groupby(lambda _: 0).agg(how).iloc[0]
            assert made[0, c].tolist() == expected.tolist()
            assert bool(some[0, c]) == of["hidden"].any()


@pytest.mark.parametrize("tick", [1e-5, 0.01, 0.25, 5.0])
def test_the_tick_is_found(tick: float):
    rng = np.random.default_rng(0)
    steps = rng.integers(-4, 5, size=20_000).cumsum() + 200_000
    decimals = max(0, round(-math.log10(tick))) + 2
    closes = np.round(steps * tick, decimals)
    assert tick_of(closes) == pytest.approx(tick, rel=1e-6)
    # a few that are off the grid, and dust in the last digits
    spoilt = closes * (1 + 1e-15 * rng.normal(size=len(closes)))
    spoilt[rng.integers(0, len(closes), 8)] += tick * rng.random(8)
    assert tick_of(spoilt) == pytest.approx(tick, rel=1e-6)
    # no two prices a tick apart are neighbours in time
    assert tick_of(rng.permutation(closes)) == tick_of(closes)


def test_a_price_that_never_changes_has_no_tick():
    assert math.isnan(tick_of(np.full(100, 1.5)))
    assert tick_of(np.array([1.0, 1.5, 1.0])) == 0.5
