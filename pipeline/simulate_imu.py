"""Seeded recordings of gestures on a wrist, so that everything about sequences can be tried without any.

A person brings the hand into the pose of a gesture and then repeats a movement there, turning the hand and shaking it.
The watch measures acceleration (gravity included, in its own axes) and its pose as a quaternion, 20 times a second.
Persons differ in how the watch sits, in strength and speed, and some wear it on the other hand. Values are missing here
and there, for some sequences the pose altogether, and the quaternion now and then jumps to its negative, the same pose.
All randomness of a person comes from (seed, person): a long simulation begins with a short one.
"""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
from numpy.typing import NDArray

from cache.files import becoming

CHANNELS = ("acc_x", "acc_y", "acc_z", "rot_w", "rot_x", "rot_y", "rot_z")
SCHEMA = pa.schema(
    [
        ("row_id", pa.string()),
        ("sequence_id", pa.string()),
        ("sequence_counter", pa.int64()),
        ("subject", pa.string()),
        ("gesture", pa.string()),
        *((name, pa.float64()) for name in CHANNELS),
    ]
)
MAX_SEQUENCES = 1_000_000
SEQUENCES_A_SUBJECT = 50
HERTZ = 20.0
GRAVITY = 9.80665

# Of each gesture: the pose (a rotation vector), the axis of the movement, its strokes a second, how far it turns
# (radians) and how hard it shakes (m/s²).
GESTURES: dict[str, tuple[tuple[float, ...], tuple[float, ...], float, float, float]] = {
    "scratch": ((1.2, 0.2, 0.0), (0.0, 0.3, 1.0), 3.2, 0.25, 2.5),
    "pinch": ((1.0, -0.5, 0.2), (1.0, 0.2, 0.0), 1.6, 0.12, 0.8),
    "pull": ((1.1, -0.3, 0.2), (0.2, 0.0, 1.0), 1.1, 0.35, 1.6),
    "pluck": ((1.3, 0.1, -0.3), (0.0, 1.0, 0.3), 2.3, 0.18, 1.8),
    "wave": ((0.6, 0.0, 0.9), (0.0, 0.0, 1.0), 1.8, 0.60, 2.2),
    "drink": ((0.9, 0.4, 0.3), (1.0, 0.0, 0.0), 0.4, 0.80, 0.5),
    "write": ((0.1, 0.1, -0.2), (0.3, 1.0, 0.0), 2.6, 0.10, 0.7),
    "text": ((0.4, -0.2, 0.0), (1.0, 0.5, 0.5), 3.0, 0.06, 0.5),
}
MEDIAN_ROWS, SPREAD_ROWS, LEAST_ROWS, MOST_ROWS = 67.0, 0.35, 16, 240
NOISE = 0.25
MISSING_ACC, MISSING_ROT, GAP_ROWS = 0.002, 0.004, 6  # share of rows where a gap begins, and its longest
NO_POSE, TURNED_SIGN, OTHER_HAND = 0.02, 0.02, 0.15  # shares of sequences, of rows and of persons

Floats = NDArray[np.float64]


def simulate_imu(path: Path, sequences: int, seed: int, progress: Callable[[int], None]) -> int:
    """Write `sequences` recordings to the CSV file `path`, whose folder must exist; how many rows they have.

    The file appears whole or not at all. `progress` is called with the sequences written so far. The same (sequences,
    seed) give the same file, and a longer one begins with the same sequences. Raises OSError.
    """
    rows = written = 0
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    with partial.open("wb") as file, becoming(path, file), pa.csv.CSVWriter(file, SCHEMA) as writer:
        for person, start in enumerate(range(0, sequences, SEQUENCES_A_SUBJECT)):
            found = list(_recordings(seed, person, min(SEQUENCES_A_SUBJECT, sequences - start)))
            writer.write_table(_table(person, start, found))
            rows, written = rows + sum(len(values) for _, values in found), written + len(found)
            progress(written)
    return rows


def _table(person: int, first: int, found: list[tuple[str, Floats]]) -> pa.Table:
    lengths = [len(values) for _, values in found]
    names = np.repeat([f"SEQ_{first + k:06d}" for k in range(len(found))], lengths)
    counter = np.concatenate([np.arange(length) for length in lengths])
    values = np.round(np.concatenate([values for _, values in found]), 6)
    columns: dict[str, Any] = {
        "row_id": [f"{name}_{row:06d}" for name, row in zip(names, counter, strict=True)],
        "sequence_id": names,
        "sequence_counter": counter,
        "subject": [f"SUBJ_{person:05d}"] * len(names),
        "gesture": np.repeat([gesture for gesture, _ in found], lengths),
        **{name: pa.array(values[:, k], from_pandas=True) for k, name in enumerate(CHANNELS)},
    }
    return pa.table(columns, schema=SCHEMA)


def _recordings(seed: int, person: int, count: int) -> Iterator[tuple[str, Floats]]:
    """Gestures of one person, each with its name and values [T, 7] (NaN for nothing)."""
    rng = np.random.default_rng([seed, person])
    worn, strength, speed = rng.normal(0, 0.25, 3), np.exp(rng.normal(0, 0.25)), np.exp(rng.normal(0, 0.1))
    mirrored = rng.random() < OTHER_HAND
    for _ in range(count):
        name = list(GESTURES)[rng.integers(len(GESTURES))]
        values = _gesture(rng, name, _quaternion(worn), strength, speed)
        if mirrored:  # on the plane between the hands
            values[:, [0, 5, 6]] *= -1
        yield name, _flawed(rng, values)


def _gesture(rng: np.random.Generator, name: str, worn: Floats, strength: float, speed: float) -> Floats:
    pose, axis, strokes, turn, shake = GESTURES[name]
    length = int(np.clip(MEDIAN_ROWS * np.exp(rng.normal(0, SPREAD_ROWS)), LEAST_ROWS, MOST_ROWS))
    time = np.arange(length) / HERTZ
    arrives = rng.uniform(0.15, 0.4) * time[-1]
    there = 1 / (1 + np.exp(-6 * (time - arrives)))  # 0 at first, 1 in the pose
    stroke = 2 * np.pi * strokes * speed * np.exp(rng.normal(0, 0.1)) * time + rng.uniform(0, 2 * np.pi)
    along = np.array(axis) / np.linalg.norm(axis)
    rest, held = rng.normal(0, 0.2, 3), np.array(pose) + rng.normal(0, 0.12, 3)
    angle = turn * strength * there * np.sin(stroke)
    turned = rest + there[:, None] * (held - rest) + angle[:, None] * along
    pose_T4 = _product(_quaternion(turned), worn)
    shaken = (shake * strength * there * np.sin(stroke + 0.7))[:, None] * np.roll(along, 1)
    acceleration = _gravity(pose_T4) + shaken + rng.normal(0, NOISE, (length, 3))
    return np.concatenate([acceleration, pose_T4], axis=1)


def _flawed(rng: np.random.Generator, values: Floats) -> Floats:
    """The same with gaps, and with quaternions that change their sign."""
    length = len(values)
    values[:, 3:] *= np.where(rng.random(length) < TURNED_SIGN, -1, 1).cumprod()[:, None]
    for columns, share in ((slice(0, 3), MISSING_ACC), (slice(3, 7), MISSING_ROT)):
        for start in np.flatnonzero(rng.random(length) < share):
            values[start : start + rng.integers(1, GAP_ROWS + 1), columns] = np.nan
    if rng.random() < NO_POSE:
        values[:, 3:] = np.nan
    return values


def _quaternion(vectors: Floats) -> Floats:
    """Rotation vectors [..., 3] as quaternions [..., 4] (w, x, y, z)."""
    angle = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return np.concatenate([np.cos(angle / 2), vectors * np.sinc(angle / (2 * np.pi)) / 2], axis=-1)


def _product(p: Floats, q: Floats) -> Floats:
    """Hamilton's product of quaternions [..., 4]."""
    w, v, u, r = p[..., :1], p[..., 1:], q[..., :1], q[..., 1:]
    return np.concatenate([w * u - (v * r).sum(-1, keepdims=True), w * r + u * v + np.cross(v, r)], axis=-1)


def _gravity(pose_T4: Floats) -> Floats:
    """What an accelerometer at rest measures in each pose, [T, 3]: gravity's reaction, upwards, in its own axes."""
    w, x, y, z = pose_T4.T
    return GRAVITY * np.stack([2 * (x * z - w * y), 2 * (y * z + w * x), w * w - x * x - y * y + z * z], axis=1)
