"""Which channels of a sensor are the axes of one vector or quaternion, told by their names.

acc_x, acc_y, acc_z                a vector; so are acc_linear_x … and acc_x_difference …
rot_w, rot_x, rot_y, rot_z         a quaternion: the pose, from the sensor's axes to the world's
acc_magnitude                      of vectors that begin with acc_
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

_NAME = re.compile(r"(?P<stem>.+)_(?P<axis>[wxyz])(?P<rest>_.*)?")
_POLAR, _AXIAL = ("acc",), ("gyr", "rot", "mag")  # the beginnings of what a mirror turns as an arrow, and as a rotation


@dataclass(frozen=True)
class Axes:
    """Numbers of channels.

    Attributes:
        vectors: x, y and z of each vector, with the word that its name begins with.
        quaternions: w, x, y and z of each.
        sized: channels by the word that their names begin with, which grow together: its vectors and magnitudes.
    """

    vectors: tuple[tuple[str, tuple[int, int, int]], ...]
    quaternions: tuple[tuple[int, int, int, int], ...]
    sized: dict[str, tuple[int, ...]]

    def mirrored(self, axis: str) -> list[int]:
        """The channels whose sign a mirror across `axis` (x, y or z) turns.

        Of an arrow, such as an acceleration, it turns the axis itself; of a rotation, the two others. Raises ValueError
        naming vectors of which it cannot tell what they are.
        """
        k = "xyz".index(axis)
        turned = []
        for word, columns in self.vectors:
            if word.startswith(_POLAR):
                turned.append(columns[k])
            elif word.startswith(_AXIAL):
                turned += [column for i, column in enumerate(columns) if i != k]
            else:
                raise ValueError(
                    f"classify.augment.mirror does not know how a mirror turns {word}_x, {word}_y, {word}_z: it knows "
                    f"names that begin with {', '.join((*_POLAR, *_AXIAL))}; set it to 0"
                )
        for quaternion in self.quaternions:
            turned += [column for i, column in enumerate(quaternion[1:]) if i != k]
        return turned


def axes_of(channels: Sequence[str]) -> Axes:
    """Find vectors and quaternions among channels."""
    found: dict[tuple[str, str], dict[str, int]] = {}
    for number, name in enumerate(channels):
        if match := _NAME.fullmatch(name):
            found.setdefault((match["stem"], match["rest"] or ""), {})[match["axis"]] = number
    vectors, quaternions = [], []
    sized: dict[str, list[int]] = {}
    for (stem, _), columns in found.items():
        if len(columns) == 4:
            quaternions.append((columns["w"], columns["x"], columns["y"], columns["z"]))
        elif set(columns) == set("xyz"):
            word = stem.split("_")[0]
            vectors.append((word, (columns["x"], columns["y"], columns["z"])))
            sized.setdefault(word, []).extend(columns.values())
    for number, name in enumerate(channels):
        word = name.split("_")[0]
        if word in sized and "_magnitude" in name:
            sized[word].append(number)
    return Axes(tuple(vectors), tuple(quaternions), {word: tuple(columns) for word, columns in sized.items()})
