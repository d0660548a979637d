import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from trainer.augment import Sensor, augmented, mixed, mixing, rotated, sensor_of, warped, window_draws
from trainer.axes import axes_of
from trainer.config import AugmentConfig

CHANNELS = ("acc_x", "acc_y", "acc_z", "rot_w", "rot_x", "rot_y", "rot_z", "thm_1")
OFF = {"noise": 0.0, "scale": 0.0, "time_warp": 0.0, "rotate": 0.0, "mirror": 0.0, "mirror_axis": "x", "mixup": 0.0}
CENTER, SCALE = torch.linspace(-2, 2, 8), torch.linspace(0.5, 3, 8)
ALL = {"noise": 0.1, "scale": 0.2, "time_warp": 0.5, "rotate": 40.0, "mirror": 0.5}


def settings(**changes: Any) -> AugmentConfig:
    return AugmentConfig(**(OFF | changes))


def sensor(chosen: AugmentConfig, center: Tensor = CENTER, scale: Tensor = SCALE) -> Sensor:
    return sensor_of(axes_of(CHANNELS), center, scale, chosen)


def windows(batch: int = 64, length: int = 20) -> tuple[Tensor, Tensor, Tensor]:
    """Values, padding (none) and keys."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(batch, length, len(CHANNELS), generator=generator)
    return x, torch.zeros(batch, length, dtype=torch.bool), window_draws(3, 1, torch.arange(batch))


def raw(x: Tensor) -> Tensor:
    return x * SCALE + CENTER


def test_all_are_off_by_default() -> None:
    x, padding, keys = windows()
    assert torch.equal(augmented(x, padding, keys, settings(), sensor(settings())), x)


@pytest.mark.parametrize("name", ALL)
def test_each_is_a_function_of_seed_epoch_and_window(name: str) -> None:
    x, padding, _ = windows()
    chosen = settings(**{name: ALL[name]})

    def changed(seed: int, epoch: int | Tensor, order: Tensor) -> Tensor:
        keys = window_draws(seed, epoch, order)
        return augmented(x[order], padding[order], keys, chosen, sensor(chosen))

    forwards = torch.arange(len(x))
    backwards = forwards.flip(0)
    usual = changed(3, 1, forwards)
    assert torch.equal(changed(3, torch.tensor(1), forwards), usual)
    assert torch.equal(changed(3, 1, backwards), usual[backwards])
    assert (usual != x).any()
    for other in (changed(4, 1, forwards), changed(3, 2, forwards)):
        assert (other != usual).any()


def test_windows_do_not_get_the_same_change() -> None:
    x, padding, keys = windows()
    same = x[:1].expand_as(x).contiguous()
    for name in ("noise", "scale", "time_warp", "rotate"):
        chosen = settings(**{name: ALL[name]})
        found = augmented(same, padding, keys, chosen, sensor(chosen))
        assert len(torch.unique(found, dim=0)) == len(x)


def test_noise_is_normal() -> None:
    x, padding, keys = windows(512)
    found = augmented(x, padding, keys, settings(noise=0.3), sensor(settings())) - x
    assert float(found.mean()) == pytest.approx(0, abs=0.005)
    assert float(found.std()) == pytest.approx(0.3, rel=0.01)
    assert float((found.abs() > 0.6).float().mean()) == pytest.approx(0.0455, rel=0.05)
    # values beside each other, and windows, have nothing to do with each other
    flat = found.flatten(1)
    for one, other in ((flat[:, :-1], flat[:, 1:]), (flat[:-1], flat[1:])):
        assert abs(float(torch.corrcoef(torch.stack([one.flatten(), other.flatten()]))[0, 1])) < 0.02


def test_scaling_keeps_directions_and_leaves_poses_alone() -> None:
    x, padding, keys = windows(512)
    before, after = raw(x), raw(augmented(x, padding, keys, settings(scale=0.2), sensor(settings(scale=0.2))))
    factor = after[..., :3] / before[..., :3]
    torch.testing.assert_close(factor, factor[:, :1, :1].expand_as(factor), rtol=1e-3, atol=1e-3)
    assert float(factor[:, 0, 0].log().std()) == pytest.approx(0.2, rel=0.1)
    torch.testing.assert_close(after[..., 3:], before[..., 3:])


def test_a_mirror_is_undone_by_itself_and_takes_its_share() -> None:
    x, padding, keys = windows(1000)
    chosen = settings(mirror=0.3)
    once = augmented(x, padding, keys, chosen, sensor(chosen))
    turned = (raw(once) - raw(x)).abs().amax(dim=(1, 2)) > 1e-3
    assert float(turned.float().mean()) == pytest.approx(0.3, abs=0.05)
    signs = torch.tensor([-1, 1, 1, 1, 1, -1, -1, 1.0])
    torch.testing.assert_close(raw(once)[turned], raw(x)[turned] * signs)
    torch.testing.assert_close(augmented(once, padding, keys, chosen, sensor(chosen)), x)


def matrix(q: Tensor) -> Tensor:
    """What a unit quaternion (w, x, y, z) does to vectors, as matrices."""
    w, x, y, z = q.unbind(-1)
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    return torch.stack([torch.stack(row, dim=-1) for row in rows], dim=-2)


def test_turning_the_sensor_changes_nothing_in_the_world() -> None:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(16, 20, 8, generator=generator, dtype=torch.float64)
    x[..., 3:7] = torch.nn.functional.normalize(x[..., 3:7], dim=-1)
    rotation = torch.nn.functional.normalize(torch.randn(16, 4, generator=generator, dtype=torch.float64), dim=-1)
    found = rotated(x, rotation, axes_of(CHANNELS))
    expected = (matrix(rotation)[:, None] @ x[..., :3, None])[..., 0]
    torch.testing.assert_close(found[..., :3], expected)

    def in_the_world(values: Tensor) -> Tensor:
        return (matrix(values[..., 3:7]) @ values[..., :3, None])[..., 0]

    torch.testing.assert_close(in_the_world(found), in_the_world(x))
    assert torch.equal(found[..., 7], x[..., 7])


def test_rotations_reach_the_angle_that_is_asked_for_and_no_more() -> None:
    x, padding, keys = windows(2000, 2)
    chosen = settings(rotate=30.0)
    plain = sensor(chosen, torch.zeros(8), torch.ones(8))
    x[..., :] = torch.tensor(
        [0, 0, 1.0, 1, 0, 0, 0, 0]
    )  # the pose of no rotation becomes the inverse of what was drawn
    found = augmented(x, padding, keys, chosen, plain)
    angle = torch.rad2deg(2 * found[:, 0, 3].clamp(max=1).acos())
    assert 29 < float(angle.max()) <= 30.001
    assert float(angle.mean()) == pytest.approx(15, abs=1)
    axis = torch.nn.functional.normalize(found[:, 0, 4:7], dim=-1)
    assert axis.mean(dim=0).abs().max() < 0.06
    torch.testing.assert_close(axis.std(dim=0), torch.full((3,), 3**-0.5), rtol=0.05, atol=0)


def test_time_runs_forwards_and_both_ends_stay() -> None:
    ramp = torch.arange(50.0)[None, :, None].expand(200, -1, 1).contiguous()
    draws = torch.rand(200, 2, generator=torch.Generator().manual_seed(2))
    found = warped(ramp, torch.zeros(200, 50, dtype=torch.bool), draws, 0.6)[..., 0]
    assert torch.equal(found[:, 0], ramp[:, 0, 0])
    torch.testing.assert_close(found[:, -1], ramp[:, -1, 0])
    speed = found.diff(dim=1)
    assert 0.39 < float(speed.min()) < 0.6 and 1.4 < float(speed.max()) < 1.61
    assert (found - ramp[..., 0]).abs().max() > 3


def test_values_between_rows_are_those_of_numpy() -> None:
    x, padding, _ = windows(8)
    draws = torch.rand(8, 2, generator=torch.Generator().manual_seed(3))
    found = warped(x, padding, draws, 0.5)
    last = x.shape[1] - 1
    u = np.arange(last + 1) / last
    for row, (a, b) in enumerate(((draws - 0.5) * 0.5).tolist()):
        at = last * (u + a * np.sin(math.pi * u) / math.pi + b * np.sin(2 * math.pi * u) / (2 * math.pi))
        for channel in range(x.shape[2]):
            expected = np.interp(at, np.arange(last + 1), x[row, :, channel].numpy())
            np.testing.assert_allclose(found[row, :, channel].numpy(), expected, atol=1e-4)


def test_padding_stays_nothing_and_tells_nothing() -> None:
    x, padding, keys = windows(32)
    first = torch.arange(32)[:, None] % 20
    padding = torch.arange(20) < first
    x = x.masked_fill(padding[..., None], 0)
    chosen = settings(**ALL)
    found = augmented(x, padding, keys, chosen, sensor(chosen))
    assert found[padding].abs().max() == 0
    assert found.isfinite().all()
    # what stands in padded rows is not read, whatever it is
    other = augmented(x.masked_fill(padding[..., None], 9), padding, keys, settings(time_warp=0.5), sensor(settings()))
    torch.testing.assert_close(other, augmented(x, padding, keys, settings(time_warp=0.5), sensor(settings())))


def test_mixing_takes_shares_of_a_beta_distribution() -> None:
    keys = window_draws(0, 0, torch.arange(20_000))
    for alpha in (0.2, 2.0):
        share = mixing(keys, sensor(settings(mixup=alpha)))
        assert float(share.mean()) == pytest.approx(0.5, abs=0.01)
        assert float(share.var()) == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.03)
    values, share = torch.tensor([[1.0, 10], [2, 20], [4, 40]]), torch.tensor([1, 0.5, 0.25])
    assert mixed(values, share).tolist() == [[1, 10], [1.5, 15], [2.5, 25]]


@pytest.mark.parametrize("name", ["scale", "rotate", "mirror"])
def test_what_needs_axes_says_so(name: str) -> None:
    chosen = settings(**{name: 0.5})
    with pytest.raises(ValueError, match=f"classify.augment.{name} needs channels that are the three axes of a vector"):
        sensor_of(axes_of(["thm_1", "acc_x"]), CENTER[:2], SCALE[:2], chosen)
