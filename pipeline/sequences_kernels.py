"""The Numba kernels of sequences: one sweep each over many sequences, compiled once and kept beside this file.

Sequences lie one behind another; sequence s is the rows [offsets[s], offsets[s+1]). All kernels run without the
interpreter lock, so that threads work on several blocks at once (Numba's own threads may not be entered by two callers
at a time, which a build of several entries would do). Axes: R rows · C channels · n sequences · L rows of each.
"""

import math

import numba
import numpy as np

FORWARD, BACKWARD, ZERO = 0, 1, 2
GRAVITY = 9.80665  # m/s²


@numba.njit(cache=True, nogil=True)
def fill(values, offsets, channels, steps):
    """Replace NaN in the first `channels` columns of values float64 [R, C] in place, by one step after the other.

    FORWARD takes the last value before, BACKWARD the next one after, of the same sequence; ZERO takes 0.
    """
    for s in range(len(offsets) - 1):
        start, stop = offsets[s], offsets[s + 1]
        for step in steps:
            for k in range(channels):
                if step == FORWARD:
                    for i in range(start + 1, stop):
                        if math.isnan(values[i, k]):
                            values[i, k] = values[i - 1, k]
                elif step == BACKWARD:
                    for i in range(stop - 2, start - 1, -1):
                        if math.isnan(values[i, k]):
                            values[i, k] = values[i + 1, k]
                else:
                    for i in range(start, stop):
                        if math.isnan(values[i, k]):
                            values[i, k] = 0.0


@numba.njit(cache=True, nogil=True)
def interpolate(values, offsets, out):
    """Sequences of values float64 [R, C], each drawn out or pressed together to L rows: out float32 [n, L, C].

    Row j is numpy.interp at numpy.linspace(0, rows - 1, L)[j], to the last bit.
    """
    length, channels = out.shape[1], out.shape[2]
    for s in range(len(offsets) - 1):
        start, last = offsets[s], offsets[s + 1] - offsets[s] - 1
        step = last / (length - 1)
        for j in range(length):
            x = j * step if j < length - 1 else float(last)
            i = int(x)
            if i >= last:
                for k in range(channels):
                    out[s, j, k] = values[start + last, k]
            else:
                for k in range(channels):
                    left = values[start + i, k]
                    out[s, j, k] = (values[start + i + 1, k] - left) * (x - i) + left


@numba.njit(cache=True, nogil=True)
def pad(values, offsets, out):
    """The last L rows of sequences of values float64 [R, C], after zeros for missing ones: out float32 [n, L, C]."""
    length, channels = out.shape[1], out.shape[2]
    for s in range(len(offsets) - 1):
        rows = min(offsets[s + 1] - offsets[s], length)
        out[s, : length - rows] = 0.0
        for j in range(rows):
            for k in range(channels):
                out[s, length - rows + j, k] = values[offsets[s + 1] - rows + j, k]


@numba.njit(cache=True, nogil=True)
def scale(values, center, spread, starts, out):
    """(values − center) / spread of sequences float32 [n, L, C], rows before starts int64 [n] left 0: out float32."""
    count, length, channels = values.shape
    for s in range(count):
        out[s, : starts[s]] = 0.0
        for j in range(starts[s], length):
            for k in range(channels):
                out[s, j, k] = (values[s, j, k] - center[k]) / spread[k]


# Derived channels: values float64 [R, C] without NaN, columns to read int64 and columns to write int64.


@numba.njit(cache=True, nogil=True)
def sign_continuity(values, offsets, read, write):
    """Turn the sign of a quaternion (w, x, y, z) so that it never jumps to −q, the same rotation, inside a sequence."""
    for s in range(len(offsets) - 1):
        for i in range(offsets[s], offsets[s + 1]):
            product = 0.0
            if i > offsets[s]:
                for k in range(4):
                    product += values[i, read[k]] * values[i - 1, write[k]]
            for k in range(4):
                values[i, write[k]] = -values[i, read[k]] if product < 0.0 else values[i, read[k]]


@numba.njit(cache=True, nogil=True)
def magnitude(values, offsets, read, write):
    """√(x² + y² + z²)."""
    for i in range(offsets[0], offsets[-1]):
        x, y, z = values[i, read[0]], values[i, read[1]], values[i, read[2]]
        values[i, write[0]] = math.sqrt(x * x + y * y + z * z)


@numba.njit(cache=True, nogil=True)
def differences(values, offsets, read, write):
    """Row less the row before, 0 in the first row of a sequence."""
    for s in range(len(offsets) - 1):
        values[offsets[s], write[0]] = 0.0
        for i in range(offsets[s] + 1, offsets[s + 1]):
            values[i, write[0]] = values[i, read[0]] - values[i - 1, read[0]]


@numba.njit(cache=True, nogil=True)
def gravity_removed(values, offsets, read, write):
    """Acceleration (x, y, z) in m/s² less gravity as the sensor feels it at rest, its pose being (w, x, y, z).

    The quaternion turns the sensor's axes into the world's, whose z points up; its length does not matter. Where it is
    0, nothing is removed.
    """
    for i in range(offsets[0], offsets[-1]):
        w, x, y, z = values[i, read[3]], values[i, read[4]], values[i, read[5]], values[i, read[6]]
        square = w * w + x * x + y * y + z * z
        g = GRAVITY / square if square > 0.0 else 0.0
        values[i, write[0]] = values[i, read[0]] - 2.0 * (x * z - w * y) * g
        values[i, write[1]] = values[i, read[1]] - 2.0 * (y * z + w * x) * g
        values[i, write[2]] = values[i, read[2]] - (w * w - x * x - y * y + z * z) * g


@numba.njit(cache=True, nogil=True)
def angular_velocity(values, offsets, read, write):
    """The rotation (x, y, z) from the row before to this one, about the sensor's axes, in radians a row.

    It is the logarithm of q₋₁⁻¹·q by the shorter way; 0 in the first row of a sequence and beside a quaternion of 0.
    """
    for s in range(len(offsets) - 1):
        for i in range(offsets[s], offsets[s + 1]):
            b = max(i - 1, offsets[s])
            a0, a1, a2, a3 = values[b, read[0]], values[b, read[1]], values[b, read[2]], values[b, read[3]]
            b0, b1, b2, b3 = values[i, read[0]], values[i, read[1]], values[i, read[2]], values[i, read[3]]
            w = a0 * b0 + a1 * b1 + a2 * b2 + a3 * b3
            x = a0 * b1 - a1 * b0 - a2 * b3 + a3 * b2
            y = a0 * b2 + a1 * b3 - a2 * b0 - a3 * b1
            z = a0 * b3 - a1 * b2 + a2 * b1 - a3 * b0
            if w < 0.0:
                w, x, y, z = -w, -x, -y, -z
            sine = math.sqrt(x * x + y * y + z * z)
            factor = 2.0 * math.atan2(sine, w) / sine if sine > 0.0 and i > offsets[s] else 0.0
            values[i, write[0]], values[i, write[1]], values[i, write[2]] = x * factor, y * factor, z * factor


def load() -> None:
    """Call every kernel once on next to nothing, so that they are loaded (or, the first time, compiled) by now."""
    values, offsets = np.zeros((2, 8)), np.array([0, 2], np.int64)
    out, columns = np.zeros((1, 2, 8), np.float32), np.arange(8, dtype=np.int64)
    fill(values, offsets, 8, columns[:3])
    interpolate(values, offsets, out)
    pad(values, offsets, out)
    scale(out, np.zeros(8), np.ones(8), columns[:1], out)
    for kernel in (sign_continuity, magnitude, differences, gravity_removed, angular_velocity):
        kernel(values, offsets, columns, columns)
