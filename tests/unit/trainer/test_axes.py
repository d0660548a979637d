import pytest

from trainer.axes import axes_of

IMU = ["acc_x", "acc_y", "acc_z", "rot_w", "rot_x", "rot_y", "rot_z"]


def test_vectors_and_quaternions_are_found_by_their_names() -> None:
    axes = axes_of([*IMU, "acc_magnitude", "acc_linear_z", "acc_linear_y", "acc_linear_x", "thm_1", "gyro_x", "gyro_y"])
    assert axes.vectors == (("acc", (0, 1, 2)), ("acc", (10, 9, 8)))
    assert axes.quaternions == ((3, 4, 5, 6),)
    assert {word: sorted(columns) for word, columns in axes.sized.items()} == {"acc": [0, 1, 2, 7, 8, 9, 10]}


def test_what_is_derived_of_axes_has_axes_too() -> None:
    derived = [f"{name}_difference" for name in IMU] + ["rot_velocity_x", "rot_velocity_y", "rot_velocity_z"]
    axes = axes_of([*IMU, *derived])
    assert axes.vectors == (("acc", (0, 1, 2)), ("acc", (7, 8, 9)), ("rot", (14, 15, 16)))
    assert axes.quaternions == ((3, 4, 5, 6), (10, 11, 12, 13))


def test_a_mirror_turns_arrows_and_rotations_differently() -> None:
    axes = axes_of([*IMU, "gyro_x", "gyro_y", "gyro_z"])
    assert sorted(axes.mirrored("x")) == [0, 5, 6, 8, 9]  # as bin/simulate has persons who wear it on the other hand
    assert sorted(axes.mirrored("z")) == [2, 4, 5, 7, 8]


def test_a_mirror_needs_to_know_what_a_vector_is() -> None:
    with pytest.raises(ValueError, match="does not know how a mirror turns force_x, force_y, force_z: it knows names"):
        axes_of(["force_x", "force_y", "force_z"]).mirrored("x")
