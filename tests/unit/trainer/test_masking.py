import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.masking import Masks, apply_masks, draw_masks, realised_ratio, window_keys
from trainer.order import mix


def keys(n: int, stream: int = 0) -> torch.Tensor:
    return window_keys(3, stream, torch.arange(n))


def runs(row: list[bool]) -> list[int]:
    """Lengths of the hidden stretches."""
    return [len(list(group)) for value, group in itertools.groupby(row) if value]


def oracle_mask(key: int, timeframe: int, length: int, ratio: float, span_min: int, span_max: int) -> list[bool]:
    """Add one block after the other to a set of bars, and remember the set nearest to the target."""
    stream_key = int(mix(torch.tensor(key) + timeframe))
    hidden: set[int] = set()
    best: set[int] = set()
    for k in range(200):
        bits = int(mix(torch.tensor(stream_key) + k)) % 2**64
        span = span_min + bits % 2**32 % (span_max - span_min + 1)
        high = bits >> 32
        high = high - 2**32 if high >= 2**31 else high
        start = high % (length - span + 1)
        hidden |= set(range(start, start + span))
        if k == 0 or abs(len(hidden) - ratio * length) < abs(len(best) - ratio * length):
            best = set(hidden)
        if len(hidden) > 2 * ratio * length + span_max:
            break
    return [bar in best for bar in range(length)]


@settings(max_examples=25, deadline=None)
@given(
    index=st.integers(0, 2**40),
    lengths=st.lists(st.sampled_from([12, 33, 50, 64]), min_size=1, max_size=4),
    ratio=st.floats(0.05, 0.6),
    span_min=st.integers(1, 5),
    extra=st.integers(0, 7),
)
def test_equals_the_oracle(index: int, lengths: list[int], ratio: float, span_min: int, extra: int) -> None:
    # The difference to the target is float32 on the device: keep ties exact.
    ratio = round(ratio * 64) / 64
    key = window_keys(0, 1, torch.tensor([index]))
    masks = draw_masks(key, lengths, ratio, span_min, span_min + extra)
    for j, length in enumerate(lengths):
        expected = oracle_mask(int(key), j, length, ratio, span_min, span_min + extra)
        assert masks.hidden[j][0].tolist() == expected


@pytest.mark.parametrize(("span_min", "span_max"), [(1, 1), (3, 12), (5, 5), (4, 20)])
def test_blocks_are_contiguous_and_long_enough(span_min: int, span_max: int) -> None:
    masks = draw_masks(keys(100), [64, 50, 20], 0.3, span_min, span_max)
    for hidden, length in zip(masks.hidden, [64, 50, 20], strict=True):
        assert hidden.dtype == torch.bool
        assert hidden.shape == (100, length)
        for row in hidden.tolist():
            found = runs(row)
            assert found
            assert min(found) >= span_min
            # What is longer than span_max is a merger of blocks, of which at most three fit the target.
            if sum(row) <= span_max:
                assert max(found) <= span_max


def test_single_blocks_have_uniform_lengths_and_starts() -> None:
    hidden = draw_masks(keys(6000), [40], 0.02, 3, 6).hidden[0]
    lengths = hidden.sum(dim=1)
    assert set(lengths.tolist()) == {3, 4, 5, 6}
    shares = torch.bincount(lengths)[3:] / 6000
    assert (shares - 0.25).abs().max() < 0.03
    starts = hidden[lengths == 4].int().argmax(dim=1)
    counts = torch.bincount(starts, minlength=37).double()
    assert counts.numel() == 37
    expected = counts.mean()
    assert ((counts - expected) ** 2 / expected).sum() < 36 + 5 * (2 * 36) ** 0.5


@pytest.mark.parametrize(
    ("length", "ratio", "span_min", "span_max"),
    [(64, 0.15, 2, 6), (64, 0.3, 3, 12), (50, 0.25, 5, 15), (48, 0.5, 3, 12), (128, 0.4, 4, 16), (64, 0.9, 3, 8)],
)
def test_realised_ratio_is_near_the_target(length: int, ratio: float, span_min: int, span_max: int) -> None:
    masks = draw_masks(keys(3000), [length, length], ratio, span_min, span_max)
    assert realised_ratio(masks).shape == (2,)
    assert (realised_ratio(masks) - ratio).abs().max() < 0.02


def test_masks_depend_on_the_key_alone() -> None:
    lengths = [64, 50, 64]
    whole = draw_masks(keys(32), lengths, 0.3, 3, 12)
    again = draw_masks(keys(32), lengths, 0.3, 3, 12)
    shuffled = torch.randperm(32, generator=torch.Generator().manual_seed(1))
    part = draw_masks(keys(32)[shuffled][:5], lengths, 0.3, 3, 12)
    for a, b, c in zip(whole.hidden, again.hidden, part.hidden, strict=True):
        assert torch.equal(a, b)
        assert torch.equal(a[shuffled[:5]], c)


def test_global_random_state_is_neither_used_nor_changed() -> None:
    torch.manual_seed(0)
    state = torch.get_rng_state()
    first = draw_masks(keys(4), [64], 0.3, 3, 12)
    assert torch.equal(state, torch.get_rng_state())
    torch.manual_seed(1)
    assert torch.equal(first.hidden[0], draw_masks(keys(4), [64], 0.3, 3, 12).hidden[0])


def test_windows_epochs_seeds_and_timeframes_get_different_masks() -> None:
    masks = draw_masks(keys(64), [64, 64], 0.3, 3, 12)
    assert masks.hidden[0].unique(dim=0).shape[0] == 64
    other_epoch = draw_masks(keys(64, stream=1), [64, 64], 0.3, 3, 12)
    other_seed = draw_masks(window_keys(4, 0, torch.arange(64)), [64, 64], 0.3, 3, 12)
    for other in (masks.hidden[1], other_epoch.hidden[0], other_seed.hidden[0]):
        assert not (masks.hidden[0] == other).all(dim=1).any()


def test_window_keys_do_not_collide() -> None:
    found = torch.cat([window_keys(seed, epoch, torch.arange(5000)) for seed in range(3) for epoch in range(3)])
    assert found.unique().numel() == 45_000
    assert torch.equal(window_keys(1, torch.tensor(2), torch.arange(9)), window_keys(1, 2, torch.arange(9)))


def test_after_block_is_the_first_visible_bar() -> None:
    masks = Masks([torch.tensor([[0, 1, 1, 0, 0, 1, 0], [1, 0, 1, 1, 1, 1, 1]]).bool()])
    assert masks.after_block()[0].int().tolist() == [[0, 0, 0, 1, 0, 0, 1], [0, 1, 0, 0, 0, 0, 0]]


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 1000), value=st.sampled_from([1e30, -7.0, float("nan"), float("inf")]))
def test_hidden_values_do_not_reach_the_model(seed: int, value: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    lengths, n_features = [20, 13], 5
    masks = draw_masks(window_keys(seed, 0, torch.arange(3)), lengths, 0.3, 2, 6)
    x = [torch.randn(3, length, n_features, generator=generator) for length in lengths]
    changed = [values.clone() for values in x]
    for values, hidden, after in zip(changed, masks.hidden, masks.after_block(), strict=True):
        values[hidden] = value
        for column in (0, 2):
            values[..., column][after] = value
    before = [values.clone() for values in x]
    for a, b in zip(apply_masks(x, masks, [0, 2]), apply_masks(changed, masks, [0, 2]), strict=True):
        assert torch.equal(a, b)
    assert all(torch.equal(a, b) for a, b in zip(x, before, strict=True))


@pytest.mark.parametrize("revealing", [[], [4], [1, 5]])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_apply_masks_against_a_loop(revealing: list[int], dtype: torch.dtype) -> None:
    masks = draw_masks(keys(3), [20, 12], 0.3, 2, 6)
    x = [torch.randn(3, length, 6).to(dtype) for length in (20, 12)]
    for values, hidden, out in zip(x, masks.hidden, apply_masks(x, masks, revealing), strict=True):
        assert out.dtype == dtype
        for b, t in itertools.product(range(3), range(values.shape[1])):
            row = [0.0] * 6 + [1.0] if hidden[b, t] else [*values[b, t].tolist(), 0.0]
            for column in revealing if t > 0 and hidden[b, t - 1] else []:
                row[column] = 0.0
            assert out[b, t].tolist() == row


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([64, 30], 0.3, 3, 40), "span_max is 40, but timeframe number 1 has windows of 30 bars only: lower span_max"),
        (([64], 0.3, 0, 4), "span_min is 0: a hidden block needs at least 1 bar"),
        (([64], 0.3, 5, 4), r"span_min \(5\) is larger than masking.span_max \(4\)"),
        (([64], 0.0, 3, 4), "mask_ratio is 0.0: it must lie strictly between 0 and 1"),
        (([64], 1.0, 3, 4), "mask_ratio is 1.0"),
    ],
)
def test_impossible_masks_are_refused(arguments: tuple[list[int], float, int, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        draw_masks(keys(1), *arguments)
