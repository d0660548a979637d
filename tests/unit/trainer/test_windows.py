from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.windows import Windows

RANGES = st.lists(st.tuples(st.integers(0, 30), st.integers(0, 40)), min_size=1, max_size=6)


def made(steps: list[tuple[int, int]]) -> np.ndarray:
    """Ranges in rising order, some of them empty, of (gap before it, length)."""
    found, at = [], 0
    for gap, length in steps:
        found.append((at + gap, at + gap + length))
        at = found[-1][1]
    return np.array(found)


@given(RANGES, st.integers(0, 5))
def test_an_epoch_without_weights_has_every_window_once(steps: list[tuple[int, int]], epoch: int):
    ranges = made(steps)
    windows = Windows(ranges)
    numbers = [number for start, stop in ranges.tolist() for number in range(start, stop)]
    assert len(windows) == len(numbers)
    assert windows.at(torch.arange(len(windows)), epoch).tolist() == list(windows) == numbers
    assert windows.ranges == [range(start, stop) for start, stop in ranges.tolist() if stop > start]
    if numbers:
        assert (windows[0], windows[-1]) == (numbers[0], numbers[-1])
        with pytest.raises(IndexError):
            windows[len(numbers)]


@given(RANGES, st.data())
def test_whole_weights_give_every_window_so_many_places(steps: list[tuple[int, int]], data: st.DataObject):
    ranges = made(steps)
    weights = data.draw(st.lists(st.integers(1, 4), min_size=len(ranges), max_size=len(ranges)))
    windows = Windows(ranges, np.array(weights, float))
    expected = Counter(
        {n: weight for (start, stop), weight in zip(ranges.tolist(), weights, strict=True) for n in range(start, stop)}
    )
    for epoch in (0, 1, 7):
        assert Counter(windows.at(torch.arange(len(windows)), torch.tensor(epoch)).tolist()) == expected


@settings(deadline=None)
@given(st.integers(2, 200), st.floats(0.05, 4))
def test_over_epochs_windows_of_a_range_come_equally_often(length: int, weight: float):
    windows, epochs = Windows(np.array([[5, 5 + length], [1000, 1010]]), np.array([weight, 1.0])), 200
    draws = max(round(length * weight), 1)
    assert len(windows) == draws + 10
    total: Counter[int] = Counter()
    for epoch in range(epochs):
        found = windows.at(torch.arange(len(windows)), epoch).tolist()
        assert found == sorted(found)  # so that neighbouring places lie near each other in the store
        assert found[draws:] == list(range(1000, 1010))
        counts = Counter(found[:draws])
        assert max(counts.values()) - min(counts.get(5 + k, 0) for k in range(length)) <= 1
        total.update(counts)
    shares = np.array([total.get(5 + k, 0) for k in range(length)]) / epochs
    np.testing.assert_allclose(shares, draws / length, atol=0.1)


def test_the_first_windows():
    windows = Windows(np.array([[3, 6], [6, 6], [10, 20]]), np.array([2.0, 1.0, 1.0]))
    assert list(windows.first(2)) == [3, 4]
    assert list(windows.first(5)) == [3, 4, 5, 10, 11]
    assert len(windows.first(100)) == 13
