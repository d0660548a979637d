from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from pipeline import sequences_kernels as kernels

lengths_of = st.lists(st.integers(1, 12), min_size=1, max_size=5)


def rows(lengths: list[int], channels: int, seed: int, missing: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    values = rng.normal(0, 5, (sum(lengths), channels))
    values[rng.random(values.shape) < missing] = np.nan
    return values, np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)


def each(values: np.ndarray, offsets: np.ndarray) -> list[np.ndarray]:
    return [values[start:stop] for start, stop in pairwise(offsets)]


def called(kernel, values: np.ndarray, offsets: np.ndarray, read: list[int], write: list[int]) -> np.ndarray:
    """What a derivation writes into columns of their own."""
    wide = np.concatenate([values, np.full((len(values), max(write) + 1 - values.shape[1]), np.nan)], axis=1)
    kernel(wide, offsets, np.array(read, np.int64), np.array(write, np.int64))
    return wide[:, write]


@given(lengths_of, st.permutations([0, 1]), st.integers(0, 99), st.sampled_from([0.2, 0.9]))
def test_fill_is_that_of_pandas(lengths: list[int], steps: list[int], seed: int, missing: float):
    values, offsets = rows(lengths, 3, seed, missing)
    filled = values.copy()
    kernels.fill(filled, offsets, 2, np.array([*steps, kernels.ZERO], np.int64))
    frame = pd.DataFrame(values[:, :2]).groupby(np.repeat(np.arange(len(lengths)), lengths))
    for step in steps:
        expected = frame.ffill() if step == kernels.FORWARD else frame.bfill()
        frame = expected.groupby(np.repeat(np.arange(len(lengths)), lengths))
    np.testing.assert_array_equal(filled[:, :2], expected.fillna(0).to_numpy())
    np.testing.assert_array_equal(filled[:, 2], values[:, 2])  # a column that is derived later


@given(lengths_of, st.integers(2, 30), st.integers(0, 99))
def test_interpolation_is_that_of_numpy(lengths: list[int], length: int, seed: int):
    values, offsets = rows(lengths, 2, seed)
    out = np.empty((len(lengths), length, 2), np.float32)
    kernels.interpolate(values, offsets, out)
    for found, part in zip(out, each(values, offsets), strict=True):
        at = np.linspace(0, len(part) - 1, length)
        expected = [np.interp(at, np.arange(len(part)), column).astype(np.float32) for column in part.T]
        np.testing.assert_array_equal(found, np.stack(expected, axis=1))


@given(lengths_of, st.integers(2, 9), st.integers(0, 99))
def test_padding_keeps_the_last_rows(lengths: list[int], length: int, seed: int):
    values, offsets = rows(lengths, 2, seed)
    out = np.full((len(lengths), length, 2), np.nan, np.float32)
    kernels.pad(values, offsets, out)
    for found, part in zip(out, each(values, offsets), strict=True):
        expected = np.concatenate([np.zeros((length, 2)), part])[-length:].astype(np.float32)
        np.testing.assert_array_equal(found, expected)


def test_scaling_leaves_padding_alone():
    values = np.arange(12, dtype=np.float32).reshape(2, 3, 2)
    out = np.full_like(values, np.nan)
    kernels.scale(values, np.array([1.0, 2.0]), np.array([2.0, 4.0]), np.array([0, 2]), out)
    expected = (values - [1, 2]) / [2, 4]
    expected[1, :2] = 0
    np.testing.assert_array_equal(out, expected.astype(np.float32))


def test_a_quaternion_never_jumps_to_its_negative():
    rng = np.random.default_rng(0)
    lengths = [40, 1, 30]
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    smooth = np.concatenate(
        [
            Rotation.from_rotvec(np.cumsum(rng.normal(0, 0.1, (n, 3)), axis=0)).as_quat(scalar_first=True)
            for n in lengths
        ]
    )
    turned = smooth * rng.choice([-1, 1], (len(smooth), 1))
    assert (np.sum(turned[1:] * turned[:-1], axis=1) < 0).any()
    columns = np.arange(4, dtype=np.int64)
    found = turned.copy()
    kernels.sign_continuity(found, offsets, columns, columns)
    for part, before in zip(each(found, offsets), each(turned, offsets), strict=True):
        np.testing.assert_array_equal(part[0], before[0])
        assert (np.sum(part[1:] * part[:-1], axis=1) > 0).all()
        np.testing.assert_array_equal(np.abs(part), np.abs(before))


@given(lengths_of, st.integers(0, 99))
def test_magnitude_and_differences(lengths: list[int], seed: int):
    values, offsets = rows(lengths, 3, seed)
    found = called(kernels.magnitude, values, offsets, [0, 1, 2], [3])
    np.testing.assert_allclose(found[:, 0], np.linalg.norm(values, axis=1), rtol=1e-14)
    found = called(kernels.differences, values, offsets, [1], [3])
    expected = [np.diff(part[:, 1], prepend=part[0, 1]) for part in each(values, offsets)]
    np.testing.assert_array_equal(found[:, 0], np.concatenate(expected))


@pytest.mark.parametrize("length", [1.0, 0.5])
def test_gravity_is_what_a_sensor_at_rest_feels(length: float):
    rng = np.random.default_rng(1)
    poses = Rotation.random(50, rng=rng)
    moved = rng.normal(0, 2, (50, 3))
    felt = poses.inv().apply([0, 0, kernels.GRAVITY]) + moved
    values = np.concatenate([felt, poses.as_quat(scalar_first=True) * length], axis=1)
    found = called(kernels.gravity_removed, values, np.array([0, 50]), list(range(7)), [7, 8, 9])
    np.testing.assert_allclose(found, moved, atol=1e-12)
    values[:, 3:] = 0
    found = called(kernels.gravity_removed, values, np.array([0, 50]), list(range(7)), [7, 8, 9])
    np.testing.assert_array_equal(found, felt)


def test_angular_velocity_is_that_of_scipy():
    rng = np.random.default_rng(2)
    poses = Rotation.random(60, rng=rng)
    values = poses.as_quat(scalar_first=True) * rng.choice([-1, 1], (60, 1))
    offsets = np.array([0, 1, 25, 60])
    found = called(kernels.angular_velocity, values, offsets, [0, 1, 2, 3], [4, 5, 6])
    expected = np.zeros((60, 3))
    for start, stop in ((0, 1), (1, 25), (25, 60)):
        part = poses[start:stop]
        expected[start + 1 : stop] = (part[:-1].inv() * part[1:]).as_rotvec() if stop - start > 1 else 0
    np.testing.assert_allclose(found, expected, atol=1e-12)
    values[30] = 0
    found = called(kernels.angular_velocity, values, offsets, [0, 1, 2, 3], [4, 5, 6])
    assert (found[30:32] == 0).all()
