"""The order of training windows: a pure function of (seed, epoch, position).

Nothing is shuffled and nothing is stored: the window at any position of any epoch is computed where it is needed, on
any device, by any rank, so an epoch over any number of windows starts at once and resuming needs only (epoch, step).
Everything here is exact int64 arithmetic: the same on every device, without host synchronisation, so it can be
captured in a CUDA graph.
"""

import math

import torch
from torch import Tensor

ROUNDS = 6
RUNS = 64  # stretches of neighbouring places in a block, drawn from everywhere

# SplitMix64's constants, as the signed integers that int64 tensors can be combined with.
_GAMMA = 0x9E3779B97F4A7C15 - 2**64
_MULTIPLIER_1 = 0xBF58476D1CE4E5B9 - 2**64
_MULTIPLIER_2 = 0x94D049BB133111EB - 2**64
_IN_BLOCK, _OF_RUNS, _TURNED = (k * 2**32 for k in (1, 2, 3))  # keys of their own, as seeds are below 2³¹


def mix(x: Tensor) -> Tensor:
    """Hash every element of `x` (int64, any shape) to 64 well-mixed bits (int64, same shape, full signed range).

    This is the output of SplitMix64 in state `x` (Steele, Lea & Flood 2014, "Fast splittable pseudorandom number
    generators", with Stafford's variant 13 of the MurmurHash3 finaliser): a bijection on 64-bit integers. int64 tensors
    wrap on overflow, which is the arithmetic modulo 2**64 that it is defined in.
    """
    x = x + _GAMMA
    x = (x ^ _shift_right(x, 30)) * _MULTIPLIER_1
    x = (x ^ _shift_right(x, 27)) * _MULTIPLIER_2
    return x ^ _shift_right(x, 31)


def mix_parts(*parts: int | Tensor, device: torch.device) -> Tensor:
    """Hash a sequence of integers and int64 tensors (broadcast together) to one int64 tensor; their order matters."""
    state = torch.zeros((), dtype=torch.int64, device=device)
    for part in parts:
        state = mix(state + part)
    return state


def permute(position: Tensor, n: int, seed: int, epoch: int | Tensor) -> Tensor:
    """Map positions to their places in a keyed random-looking permutation of [0, n).

    Args:
        position: int64, any shape, every element in [0, n) (not checked: that would synchronise with the device).
        n: how many windows there are, 1 ≤ n ≤ 2**62.
        seed: with `epoch`, the key: each pair is another permutation.
        epoch: an integer, or an int64 tensor on the device of `position` that broadcasts with it.

    Returns:
        int64 of the shape of `position`; over all positions, each of 0 … n−1 occurs exactly once.

    A Feistel network with modular addition (Bellare et al. 2009, "Format-preserving encryption", FE2) works on a
    rectangle and, where n is no product of two near numbers, needs cycle walking: a loop of unknown length. Here
    [0, n) fills a grid of ⌈√n⌉ columns row by row, of which only the last row may be shorter; even rounds rotate every
    column and odd rounds every row by a hash of its number, within the cells that exist. A rotation within a column
    (row) moves no cell to another column (row), so every round is a bijection on exactly the n cells: no walking, and
    a fixed number of operations.
    """
    if n < 1:
        raise ValueError(f"cannot order n = {n} windows: at least one is needed")
    columns = math.isqrt(n - 1) + 1
    rows = -(-n // columns)
    last_width = n - (rows - 1) * columns
    base = mix_parts(seed, epoch, device=position.device)
    keys = mix(base[..., None] + torch.arange(ROUNDS, device=position.device))

    row = position // columns
    column = position - row * columns
    for i in range(ROUNDS):
        # >> 1 leaves room for the addition: a wrapped sum would not be a rotation.
        if i % 2 == 0:
            height = (column < last_width) + (rows - 1)
            row = (row + (mix(keys[..., i] + column) >> 1)) % height
        else:
            width = (n - row * columns).clamp(max=columns)
            column = (column + (mix(keys[..., i] + row) >> 1)) % width
    return row * columns + column


def permute_in_blocks(position: Tensor, n: int, block: int, seed: int, epoch: int | Tensor) -> Tensor:
    """The same, but so that about `block` successive positions stay within `RUNS` runs of neighbouring places.

    Args and result as of `permute`, of which it is one for a block of half of n or more. [0, n) is divided into runs of
    one length, which are shuffled; each `RUNS` of them are a block, whose places are shuffled. The few places that are
    left over come last, and all places are turned by a number of the epoch's, so that they are others every time.
    """
    blocks = round(n / block)
    run = n // (RUNS * max(blocks, 1))
    if blocks < 2 or not run:
        return permute(position, n, seed, epoch)
    size, inside = RUNS * run, RUNS * run * blocks
    within = position.clamp(max=inside - 1)
    place = permute(within % size, size, seed + _IN_BLOCK, epoch)
    found = permute(within // size * RUNS + place // run, RUNS * blocks, seed + _OF_RUNS, epoch) * run + place % run
    if inside < n:
        rest = inside + permute((position - inside).clamp(min=0), n - inside, seed, epoch)
        found = torch.where(position < inside, found, rest)
    return (found + (mix_parts(seed + _TURNED, epoch, device=position.device) >> 2)) % n


def batch_indices(
    step: int | Tensor,
    batch_size: int,
    n: int,
    seed: int,
    epoch: int | Tensor,
    rank: int = 0,
    world: int = 1,
    device: torch.device | str = "cpu",
    block: int | None = None,
) -> Tensor:
    """Give the windows of this rank's share of global batch number `step` of an epoch, int64 [..., batch_size].

    A global batch is world · batch_size consecutive positions; rank r takes the r-th contiguous slice, so the global
    batch is the same windows in the same order however many ranks share it. An epoch has n // (world · batch_size)
    steps; the positions left over are dropped (other windows every epoch). `step` and `epoch` may be int64 tensors
    [..., 1] on `device`, of many batches at once; the range of a tensor is not checked. With `block` the order is that
    of `permute_in_blocks`.

    Raises:
        ValueError: if an integer `step` is not one of the epoch's, or `rank` is not in [0, world).
    """
    if not 0 <= rank < world:
        raise ValueError(f"rank {rank} does not exist in a world of {world}")
    steps = n // (world * batch_size)
    if isinstance(step, int) and not 0 <= step < steps:
        raise ValueError(
            f"step {step} is not in this epoch: {n} windows make {steps} global batches of {world} × {batch_size}"
            + ("; lower batch_size" if steps == 0 else "")
        )
    offset = torch.arange(batch_size, device=device) + rank * batch_size
    position = offset + step * (world * batch_size)
    return permute_in_blocks(position, n, block, seed, epoch) if block else permute(position, n, seed, epoch)


def _shift_right(x: Tensor, bits: int) -> Tensor:
    """Shift in zeros from the left; int64's own >> copies the sign."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)
