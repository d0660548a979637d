import itertools
import math
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.order import ROUNDS, RUNS, batch_indices, mix, permute, permute_in_blocks

WORD = 2**64


def signed(value: int) -> int:
    return value - WORD if value >= WORD // 2 else value


def oracle_mix(x: int) -> int:
    """SplitMix64 as published in C, in Python's unbounded integers."""
    z = (x + 0x9E3779B97F4A7C15) % WORD
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) % WORD
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) % WORD
    return signed(z ^ (z >> 31))


def oracle_permutation(n: int, seed: int, epoch: int) -> list[int]:
    """Lay the positions out as a ragged table and really rotate its columns and rows; read off where each went."""
    base = oracle_mix((oracle_mix(seed) + epoch) % WORD)
    width = math.ceil(math.sqrt(n))
    table = {divmod(cell, width): cell for cell in range(n)}
    for i in range(ROUNDS):
        key = oracle_mix((base + i) % WORD)
        axis = 1 - i % 2  # the coordinate that a round keeps
        lines: dict[int, list[tuple[int, int]]] = {}
        for cell in sorted(table):
            lines.setdefault(cell[axis], []).append(cell)
        rotated = {}
        for line, cells in lines.items():
            turn = (oracle_mix((key + line) % WORD) >> 1) % len(cells)
            for k, cell in enumerate(cells):
                rotated[cells[(k + turn) % len(cells)]] = table[cell]
        table = rotated
    places = {position: row * width + column for (row, column), position in table.items()}
    return [places[position] for position in range(n)]


def test_mix_gives_the_published_splitmix64_numbers() -> None:
    # The first three outputs for seed 1234567; state n is the seed plus n gammas.
    gamma = signed(0x9E3779B97F4A7C15)
    states = torch.tensor(1234567) + torch.arange(3) * gamma
    expected = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    assert mix(states).tolist() == [signed(value) for value in expected]


@given(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=20))
def test_mix_equals_the_oracle(values: list[int]) -> None:
    assert mix(torch.tensor(values)).tolist() == [oracle_mix(value % WORD) for value in values]


@settings(max_examples=80, deadline=None)
@given(n=st.integers(1, 3000), seed=st.integers(0, 2**62), epoch=st.integers(0, 1000))
def test_every_window_occurs_once(n: int, seed: int, epoch: int) -> None:
    places = permute(torch.arange(n), n, seed, epoch)
    assert torch.equal(places.sort().values, torch.arange(n))


@settings(max_examples=40, deadline=None)
@given(n=st.integers(1, 400), seed=st.integers(0, 2**62), epoch=st.integers(0, 1000))
def test_equals_the_oracle(n: int, seed: int, epoch: int) -> None:
    assert permute(torch.arange(n), n, seed, epoch).tolist() == oracle_permutation(n, seed, epoch)


@pytest.mark.parametrize("n", [2**40, 2**40 - 1, 10**12 + 39, 2**62])
def test_large_n_has_no_collision_among_neighbours(n: int) -> None:
    places = permute(torch.arange(n - 50_000, n), n, seed=7, epoch=3)
    assert places.min() >= 0
    assert places.max() < n
    assert places.unique().numel() == 50_000
    assert abs(places.double().mean().item() / n - 0.5) < 0.01


def test_needs_a_window() -> None:
    with pytest.raises(ValueError, match="cannot order n = 0 windows"):
        permute(torch.arange(0), 0, 0, 0)


def cell_statistic(p: torch.Tensor) -> float:
    """Chi-square of (position, value) counts in a 16 × 16 table."""
    n = p.numel()
    cells = (torch.arange(n) * 16 // n) * 16 + p * 16 // n
    counts = torch.bincount(cells, minlength=256).double()
    return ((counts - n / 256) ** 2 / (n / 256)).sum().item()


def step_statistic(p: torch.Tensor) -> float:
    """Chi-square of the differences between neighbours, modulo n, in 64 bins."""
    n = p.numel()
    counts = torch.bincount((p[1:] - p[:-1]) % n * 64 // n, minlength=64).double()
    return ((counts - (n - 1) / 64) ** 2 / ((n - 1) / 64)).sum().item()


@pytest.mark.parametrize("n", [1000, 4096, 5003])
@pytest.mark.parametrize("statistic", [cell_statistic, step_statistic])
def test_looks_like_a_random_permutation(n: int, statistic) -> None:  # type: ignore[no-untyped-def]
    generator = torch.Generator().manual_seed(0)
    ours = torch.tensor([statistic(permute(torch.arange(n), n, 11, epoch)) for epoch in range(150)])
    theirs = torch.tensor([statistic(torch.randperm(n, generator=generator)) for _ in range(150)])
    error = ((ours.var() + theirs.var()) / 150).sqrt()
    assert abs(ours.mean() - theirs.mean()) < 4 * error
    assert 0.6 < ours.std() / theirs.std() < 1.6


def test_the_statistics_tell_an_affine_map_from_a_random_permutation() -> None:
    n = 4096
    affine = (torch.arange(n) * 1597 + 12) % n
    assert step_statistic(affine) > 10 * step_statistic(torch.randperm(n, generator=torch.Generator().manual_seed(0)))


def test_every_place_is_equally_likely_for_a_position() -> None:
    n, epochs = 60, 6000
    places = torch.stack([permute(torch.arange(n), n, 5, epoch) for epoch in range(epochs)])
    for position in (0, 1, 31, 59):
        counts = torch.bincount(places[:, position], minlength=n).double()
        chi_square = ((counts - epochs / n) ** 2 / (epochs / n)).sum().item()
        assert chi_square < n - 1 + 5 * math.sqrt(2 * (n - 1))


def test_all_orders_of_a_tiny_set_occur() -> None:
    seen = Counter(tuple(permute(torch.arange(4), 4, 0, epoch).tolist()) for epoch in range(1000))
    assert set(seen) == set(itertools.permutations(range(4)))


def test_seeds_and_epochs_give_other_orders() -> None:
    n = 2000
    orders = [permute(torch.arange(n), n, seed, epoch) for seed in range(3) for epoch in range(3)]
    for a, b in itertools.combinations(orders, 2):
        # Two independent permutations agree in Poisson(1) many places.
        assert (a == b).sum() < 10


def test_independent_of_the_shape_of_the_call() -> None:
    n = 777
    whole = permute(torch.arange(n), n, 1, 2)
    assert torch.equal(whole, torch.stack([permute(torch.tensor(i), n, 1, 2) for i in range(n)]))
    assert torch.equal(whole.view(7, 3, 37), permute(torch.arange(n).view(7, 3, 37), n, 1, 2))


def test_step_and_epoch_may_be_tensors() -> None:
    assert torch.equal(batch_indices(torch.tensor(3), 8, 100, 1, torch.tensor(2)), batch_indices(3, 8, 100, 1, 2))


@given(batch_size=st.integers(1, 9), world=st.integers(1, 5), n=st.integers(50, 300), seed=st.integers(0, 9))
@settings(max_examples=40, deadline=None)
def test_ranks_partition_the_global_batch(batch_size: int, world: int, n: int, seed: int) -> None:
    steps = n // (world * batch_size)
    seen: list[int] = []
    for step in range(steps):
        alone = batch_indices(step, world * batch_size, n, seed, 0)
        shares = [batch_indices(step, batch_size, n, seed, 0, rank, world) for rank in range(world)]
        assert torch.equal(alone, torch.cat(shares))
        seen += alone.tolist()
    assert len(set(seen)) == len(seen) == steps * world * batch_size


# --- blocks


@settings(max_examples=80, deadline=None)
@given(n=st.integers(1, 5000), block=st.integers(1, 3000), seed=st.integers(0, 2**31 - 1), epoch=st.integers(0, 1000))
def test_every_window_occurs_once_in_blocks(n: int, block: int, seed: int, epoch: int) -> None:
    assert sorted(permute_in_blocks(torch.arange(n), n, block, seed, epoch).tolist()) == list(range(n))


def test_a_block_is_of_few_runs_from_everywhere() -> None:
    n, block = 1_000_003, 64_000
    order = permute_in_blocks(torch.arange(n), n, block, 3, 1)
    size = n // (RUNS * 16) * RUNS
    for start in range(0, 16 * size, size):
        found = order[start : start + size].sort().values
        gaps = (found.diff() > 1).sum() + 1
        assert gaps <= RUNS + 1  # one may go around the end
        assert int(found.float().std()) > n / 6  # a block of neighbours would have n / 55
        shuffled = order[start : start + size].diff().abs()
        assert int((shuffled < 10).sum()) < size / 50
    others = permute_in_blocks(torch.arange(n), n, block, 3, 2)
    assert int((order == others).sum()) < 20
    left_over = {*order[16 * size :].tolist()}
    assert len(left_over) == n - 16 * size > 100
    assert len(left_over & {*others[16 * size :].tolist()}) < len(left_over) / 2


def test_a_block_of_all_is_the_usual_order() -> None:
    for block in (5000, 3500, 10**9):
        assert torch.equal(
            permute_in_blocks(torch.arange(5000), 5000, block, 1, 2), permute(torch.arange(5000), 5000, 1, 2)
        )


def test_batches_in_blocks_take_tensors_and_ranks() -> None:
    whole = batch_indices(torch.tensor(7), 60, 9000, 4, torch.tensor(3), block=1000)
    parts = [batch_indices(7, 20, 9000, 4, 3, rank, 3, block=1000) for rank in range(3)]
    assert torch.equal(torch.cat(parts), whole)
    assert torch.equal(whole, permute_in_blocks(torch.arange(420, 480), 9000, 1000, 4, 3))


def test_batches_outside_the_epoch_are_refused() -> None:
    with pytest.raises(ValueError, match="step 12 is not in this epoch: 100 windows make 12 global batches of 1 × 8"):
        batch_indices(12, 8, 100, 0, 0)
    with pytest.raises(ValueError, match="lower batch_size"):
        batch_indices(0, 101, 100, 0, 0)
    with pytest.raises(ValueError, match="rank 2 does not exist in a world of 2"):
        batch_indices(0, 8, 100, 0, 0, rank=2, world=2)
