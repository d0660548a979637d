import numpy as np
import pytest

from configs.errors import UserError
from pipeline.channels import DERIVATIONS, channels_of, prepared

WATCH = ("acc_x", "acc_y", "acc_z", "rot_w", "rot_x", "rot_y", "rot_z")


@pytest.mark.parametrize(
    ("derive", "added"),
    [
        ([], ()),
        (["sign_continuity"], ()),
        (["magnitude"], ("acc_magnitude",)),
        (["differences"], tuple(f"{name}_difference" for name in WATCH)),
        (["gravity_removed"], ("acc_linear_x", "acc_linear_y", "acc_linear_z")),
        (["angular_velocity"], ("rot_velocity_x", "rot_velocity_y", "rot_velocity_z")),
    ],
)
def test_channels_are_found_by_the_names_of_axes(derive: list[str], added: tuple[str, ...]):
    found = channels_of(WATCH, derive)
    assert found.names == (*WATCH, *added)
    assert found.given == 7


def test_several_sensors():
    found = channels_of(("gyro_x", "acc_z", "acc_y", "acc_x", "gyro_y", "gyro_z", "temperature"), ["magnitude"])
    assert found.names[7:] == ("gyro_magnitude", "acc_magnitude")
    assert [step.read.tolist() for step in found.steps] == [[0, 4, 5], [3, 2, 1]]


@pytest.mark.parametrize("name", sorted(set(DERIVATIONS) - {"differences", "magnitude"}))
def test_a_derivation_without_its_channels(name: str):
    with pytest.raises(UserError) as caught:
        channels_of(("acc_x", "acc_y", "acc_z"), [name])
    assert str(caught.value).startswith(f"data.derive has {name}, which needs ")
    assert str(caught.value).endswith(
        "a quaternion, such as rot_w, rot_x, rot_y and rot_z; the channels are acc_x, acc_y, acc_z"
    )


def test_an_unknown_derivation():
    with pytest.raises(
        UserError, match=r"data\.derive has jerk, which is not known; known ones: sign_continuity, magn"
    ):
        channels_of(WATCH, ["jerk"])


def test_gaps_are_filled_before_anything_is_derived_and_signs_are_mended_before_velocities():
    values = np.zeros((3, 7))
    values[:, 3:] = [[1, 0, 0, 0], [-1, 0, 0, 0], [1, 0, 0, 0]]
    values[1, 0] = np.nan
    values[0, 0] = 3
    channels = channels_of(WATCH, ["sign_continuity", "magnitude", "differences", "angular_velocity"])
    found = prepared(values, np.array([0, 3]), channels, ["forward", "zero"])
    assert not np.isnan(found).any()
    assert found[:, channels.names.index("rot_w")].tolist() == [1, 1, 1]
    assert found[:, channels.names.index("acc_magnitude")].tolist() == [3, 3, 0]
    assert found[:, channels.names.index("rot_w_difference")].tolist() == [0, 0, 0]
    assert found[:, channels.names.index("rot_velocity_x")].tolist() == [0, 0, 0]
