"""Recordings as they might have been: seeded changes of training windows, made where the batch is.

Every draw is a hash of (seed, epoch, window), so that a resumed run repeats what an uninterrupted one would have done.
Free of host synchronisation and of shapes that depend on data.

Shape suffixes: B batch, L rows, F channels, K draws.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from trainer.axes import Axes
from trainer.config import AugmentConfig
from trainer.order import mix, mix_parts

_NOISE, _SCALE, _WARP, _ROTATE, _MIRROR, _MIXUP = range(6)
_STREAM = 1 << 32  # keeps these draws apart from those of the same seed and epoch elsewhere
_TABLE = 1 << 14


@dataclass(frozen=True)
class Sensor:
    """What is known of the channels of a stream.

    Attributes:
        axes: which of them belong together.
        center, scale: float32 [F], by which values were normalised.
        signs: float32 [F], −1 where a mirror turns the sign.
        shares: float32 [_TABLE], quantiles of the shares of two windows that are mixed.
    """

    axes: Axes
    center: Tensor
    scale: Tensor
    signs: Tensor
    shares: Tensor


def sensor_of(axes: Axes, center: Tensor, scale: Tensor, settings: AugmentConfig) -> Sensor:
    """Prepare what augmentations need. Raises ValueError where the channels have no axes for them."""
    for name in ("scale", "rotate", "mirror"):
        if getattr(settings, name) and not axes.vectors:
            raise ValueError(
                f"classify.augment.{name} needs channels that are the three axes of a vector, such as acc_x, acc_y and "
                "acc_z, and there are none; set it to 0"
            )
    signs = torch.ones_like(center)
    if settings.mirror:
        signs[axes.mirrored(settings.mirror_axis)] = -1
    drawn = np.random.default_rng(0).beta(settings.mixup or 1, settings.mixup or 1, _TABLE)
    return Sensor(axes, center, scale, signs, torch.from_numpy(np.sort(drawn)).to(center))


def window_draws(seed: int, epoch: int | Tensor, index_B: Tensor) -> Tensor:
    """Hash windows in an epoch to the keys of their draws, int64 [B]."""
    return mix_parts(seed, _STREAM, epoch, index_B, device=index_B.device)


def augmented(x_BLF: Tensor, padding_BL: Tensor, keys_B: Tensor, settings: AugmentConfig, sensor: Sensor) -> Tensor:
    """Change windows in every way that `settings` turns on, but for mixing: float32 [B, L, F].

    Args:
        x_BLF: normalised values. Vectors are scaled, mirrored and turned in the units of the sensor.
        padding_BL: bool, rows before a recording begins, which stay 0.
        keys_B: int64, of `window_draws`.
        settings: the `classify.augment` section.
        sensor: of the same settings.
    """
    if settings.time_warp:
        x_BLF = warped(x_BLF, padding_BL, _uniform(keys_B, _WARP, 2), settings.time_warp)
    if settings.scale or settings.mirror or settings.rotate:
        raw_BLF = x_BLF * sensor.scale + sensor.center
        if settings.scale:
            raw_BLF = _scaled(raw_BLF, keys_B, settings.scale, sensor.axes)
        if settings.mirror:
            turned_B1 = _uniform(keys_B, _MIRROR, 1) < settings.mirror
            raw_BLF = raw_BLF * torch.where(turned_B1, sensor.signs, 1)[:, None]
        if settings.rotate:
            raw_BLF = rotated(raw_BLF, _random_rotation(keys_B, settings.rotate), sensor.axes)
        x_BLF = (raw_BLF - sensor.center) / sensor.scale
    if settings.noise:
        x_BLF = x_BLF + settings.noise * _normal(keys_B, _NOISE, x_BLF[0].numel()).view(x_BLF.shape)
    return x_BLF.masked_fill(padding_BL[..., None], 0)


def mixing(keys_B: Tensor, sensor: Sensor) -> Tensor:
    """The share that each window keeps of itself when mixed with the one before it in the batch: float32 [B].

    Beta(α, α) (Zhang et al. 2018, "mixup"), by its quantiles. The order of a batch is random, so its neighbours are.
    """
    return sensor.shares[(mix(keys_B + _MIXUP) >> 1) % _TABLE]


def mixed(values: Tensor, share_B: Tensor) -> Tensor:
    """The weighted mean of each window's values, [B, …], with those of the one before it in the batch."""
    share = share_B.view(-1, *(1 for _ in values.shape[1:]))
    return share * values + (1 - share) * values.roll(1, 0)


def warped(x_BLF: Tensor, padding_BL: Tensor, draws_B2: Tensor, strength: float) -> Tensor:
    """Let time run faster here and slower there, by at most the share `strength` < 1; both ends stay where they are.

    Row u (0 at the first row of the recording, 1 at the last) gets what was at u + a·sin(πu)/π + b·sin(2πu)/2π with
    |a|, |b| ≤ strength/2, between rows on a straight line.
    """
    last = x_BLF.shape[1] - 1
    row_L = torch.arange(last + 1, device=x_BLF.device)
    first_B1 = padding_BL.sum(dim=1, keepdim=True).clamp(max=last - 1)
    u_BL = ((row_L - first_B1) / (last - first_B1)).clamp(min=0)
    a_B1, b_B1 = (strength * (draws_B2 - 0.5)).split(1, dim=1)
    moved_BL = u_BL + a_B1 * (math.pi * u_BL).sin() / math.pi + b_B1 * (2 * math.pi * u_BL).sin() / (2 * math.pi)
    at_BL = (first_B1 + moved_BL * (last - first_B1)).clamp(0, last)
    left_BL = at_BL.long().clamp(max=last - 1)
    before, after = (
        x_BLF.gather(1, row_BL[..., None].expand(-1, -1, x_BLF.shape[2])) for row_BL in (left_BL, left_BL + 1)
    )
    moved_BLF: Tensor = before + (after - before) * (at_BL - left_BL)[..., None]
    return moved_BLF


def rotated(raw_BLF: Tensor, rotation_B4: Tensor, axes: Axes) -> Tensor:
    """Turn the sensor's axes: vectors v → r·v·r⁻¹ and poses q → q·r⁻¹, with unit quaternions r (w, x, y, z)."""
    channels = list(raw_BLF.unbind(-1))
    w, *axis = rotation_B4[..., None].unbind(1)
    for _, columns in axes.vectors:
        v = [channels[k] for k in columns]
        turn = _cross(axis, v)
        for k, part, once, twice in zip(columns, v, turn, _cross(axis, turn), strict=True):
            channels[k] = part + 2 * (w * once + twice)
    for first, *others in axes.quaternions:
        scalar, v = channels[first], [channels[k] for k in others]
        channels[first] = scalar * w + sum(part * along for part, along in zip(v, axis, strict=True))
        for k, part, along, crossed in zip(others, v, axis, _cross(v, axis), strict=True):
            channels[k] = part * w - scalar * along - crossed
    return torch.stack(channels, dim=-1)


def _cross(a: Sequence[Tensor], b: Sequence[Tensor]) -> list[Tensor]:
    return [a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]]


def _scaled(raw_BLF: Tensor, keys_B: Tensor, spread: float, axes: Axes) -> Tensor:
    """Multiply the channels of each kind of sensor by one factor a window, whose logarithm is N(0, spread)."""
    factors = (spread * _normal(keys_B, _SCALE, len(axes.sized))).exp()[..., None].unbind(1)
    channels = list(raw_BLF.unbind(-1))
    for columns, factor in zip(axes.sized.values(), factors, strict=True):
        for k in columns:
            channels[k] = channels[k] * factor
    return torch.stack(channels, dim=-1)


def _random_rotation(keys_B: Tensor, degrees: float) -> Tensor:
    """A unit quaternion [B, 4]: an axis without preference, an angle uniform up to so many degrees either way."""
    axis_B3 = torch.nn.functional.normalize(_normal(keys_B, _ROTATE, 3), dim=1)
    half_B1 = math.radians(degrees) / 2 * (2 * _uniform(keys_B, _ROTATE, 4)[:, 3:] - 1)  # the first three made the axis
    return torch.cat([half_B1.cos(), half_B1.sin() * axis_B3], dim=1)


def _bits(keys_B: Tensor, purpose: int, count: int) -> Tensor:
    number_K = torch.arange(count, device=keys_B.device)
    return mix(mix(keys_B + purpose)[:, None] + number_K)


def _uniform(keys_B: Tensor, purpose: int, count: int) -> Tensor:
    """Float32 [B, count], uniform in (0, 1)."""
    return _fraction(_bits(keys_B, purpose, count) >> 40)


def _normal(keys_B: Tensor, purpose: int, count: int) -> Tensor:
    """Float32 [B, count], N(0, 1), by the transform of Box and Muller (1958) of a hash's two halves."""
    bits_BK = _bits(keys_B, purpose, count)
    radius_BK = (-2 * _fraction(bits_BK >> 40).log()).sqrt()
    return radius_BK * (2 * math.pi * _fraction(bits_BK >> 8)).cos()


def _fraction(bits: Tensor) -> Tensor:
    """The lower 24 bits as a number in (0, 1), as fine as float32 tells them apart."""
    return ((bits & 0xFFFFFF).float() + 0.5) / (1 << 24)
