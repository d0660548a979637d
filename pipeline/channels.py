"""Derived channels: each a named, versioned function of the channels of a file, found by the names of their axes.

sign_continuity   w, x, y, z → the same: a quaternion keeps its sign from row to row
magnitude         x, y, z (and no w) → magnitude
differences       every channel → its difference to the row before
gravity_removed   acc_x, acc_y, acc_z and a quaternion → acc_linear_x, acc_linear_y, acc_linear_z
angular_velocity  w, x, y, z → velocity_x, velocity_y, velocity_z, in radians a row

They work on the rows as they were recorded, with gaps filled, in the order in which the recipe has them.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from configs.errors import UserError
from pipeline import sequences_kernels as kernels

Kernel = Callable[[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]], None]
LARGEST = 1e15  # no measurement is beyond it, and a model in float32, which squares what it sees, finds no number there
_Reads = Iterator[tuple[list[str], list[str]]]


@dataclass(frozen=True)
class Derivation:
    """A named function of channels; `version` rises whenever its values change.

    `columns` tells which channels it reads and writes, once for every place where it applies; `needs` tells people.
    """

    version: int
    needs: str
    columns: Callable[[Sequence[str]], _Reads]
    kernel: Kernel


@dataclass(frozen=True)
class Step:
    """A kernel and the columns it reads and writes, int64."""

    kernel: Kernel
    read: NDArray[np.int64]
    write: NDArray[np.int64]


@dataclass(frozen=True)
class Channels:
    """The channels of a stream: those of the files first, then what `steps` derive from them."""

    names: tuple[str, ...]
    given: int
    steps: tuple[Step, ...]


def _axes(channels: Sequence[str], axes: str, without: str = "") -> Iterator[str]:
    """The prefixes of channels such as rot_w, rot_x, rot_y, rot_z, which have all of `axes` and none of `without`."""
    for name in channels:
        prefix, mark, axis = name.rpartition("_")
        whole = all(f"{prefix}_{one}" in channels for one in axes)
        if mark and axis == axes[0] and whole and not any(f"{prefix}_{one}" in channels for one in without):
            yield prefix


def _named(prefix: str, axes: str) -> list[str]:
    return [f"{prefix}_{axis}" for axis in axes]


def _quaternions(channels: Sequence[str]) -> _Reads:
    return ((_named(prefix, "wxyz"), _named(prefix, "wxyz")) for prefix in _axes(channels, "wxyz"))


def _vectors(channels: Sequence[str]) -> _Reads:
    return ((_named(prefix, "xyz"), [f"{prefix}_magnitude"]) for prefix in _axes(channels, "xyz", without="w"))


def _each(channels: Sequence[str]) -> _Reads:
    return (([name], [f"{name}_difference"]) for name in channels)


def _accelerations(channels: Sequence[str]) -> _Reads:
    for prefix in _axes(channels, "wxyz"):
        if all(name in channels for name in _named("acc", "xyz")):
            yield [*_named("acc", "xyz"), *_named(prefix, "wxyz")], _named("acc_linear", "xyz")
            return


def _velocities(channels: Sequence[str]) -> _Reads:
    return ((_named(prefix, "wxyz"), _named(f"{prefix}_velocity", "xyz")) for prefix in _axes(channels, "wxyz"))


_QUATERNION = "a quaternion, such as rot_w, rot_x, rot_y and rot_z"
DERIVATIONS = {
    "sign_continuity": Derivation(1, _QUATERNION, _quaternions, kernels.sign_continuity),
    "magnitude": Derivation(1, "three axes, such as acc_x, acc_y and acc_z", _vectors, kernels.magnitude),
    "differences": Derivation(1, "a channel", _each, kernels.differences),
    "gravity_removed": Derivation(1, f"acc_x, acc_y, acc_z and {_QUATERNION}", _accelerations, kernels.gravity_removed),
    "angular_velocity": Derivation(1, _QUATERNION, _velocities, kernels.angular_velocity),
}


def derivation(name: str) -> Derivation:
    """Look up a derivation. Raises UserError listing the known ones."""
    if name not in DERIVATIONS:
        raise UserError(f"data.derive has {name}, which is not known; known ones: {', '.join(DERIVATIONS)}")
    return DERIVATIONS[name]


def channels_of(given: Sequence[str], derive: Sequence[str]) -> Channels:
    """What the stream's columns are. Raises UserError where a derivation lacks its channels."""
    names, steps = list(given), []
    for name in derive:
        found = list(derivation(name).columns(given))
        if not found:
            raise UserError(
                f"data.derive has {name}, which needs {derivation(name).needs}; the channels are {', '.join(given)}"
            )
        for read, write in found:
            names += [column for column in write if column not in names]
            steps.append(Step(derivation(name).kernel, _places(names, read), _places(names, write)))
    return Channels(tuple(names), len(given), tuple(steps))


def prepared(values: NDArray[Any], offsets: NDArray[np.int64], channels: Channels, fill: Sequence[str]) -> NDArray[Any]:
    """All channels of sequences, gaps filled: values float64 [R, C] with NaN → [R, all channels]."""
    wide = np.empty((len(values), len(channels.names)))
    wide[:, : channels.given] = values
    order = {"forward": kernels.FORWARD, "backward": kernels.BACKWARD, "zero": kernels.ZERO}
    kernels.fill(wide, offsets, channels.given, np.array([order[step] for step in fill], np.int64))
    for step in channels.steps:
        step.kernel(wide, offsets, step.read, step.write)
    return wide


def _places(names: list[str], wanted: list[str]) -> NDArray[np.int64]:
    return np.array([names.index(name) for name in wanted], np.int64)
