import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.inputs import apply_masks
from trainer.masking import Masks, draw_masks, mask_ratios, realised_ratio, window_keys
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
    masks = draw_masks(key, lengths, [ratio] * len(lengths), span_min, span_min + extra, None)
    for j, length in enumerate(lengths):
        expected = oracle_mask(int(key), j, length, ratio, span_min, span_min + extra)
        assert masks.hidden[j][0].tolist() == expected


@pytest.mark.parametrize(("span_min", "span_max"), [(1, 1), (3, 12), (5, 5), (4, 20)])
def test_blocks_are_contiguous_and_long_enough(span_min: int, span_max: int) -> None:
    masks = draw_masks(keys(100), [64, 50, 20], [0.3] * 3, span_min, span_max, None)
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
    hidden = draw_masks(keys(6000), [40], [0.02], 3, 6, None).hidden[0]
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
    masks = draw_masks(keys(3000), [length, length], [ratio] * 2, span_min, span_max, None)
    assert realised_ratio(masks).shape == (2,)
    assert (realised_ratio(masks) - ratio).abs().max() < 0.02


def test_masks_depend_on_the_key_alone() -> None:
    lengths = [64, 50, 64]
    whole = draw_masks(keys(32), lengths, [0.3] * 3, 3, 12, None)
    again = draw_masks(keys(32), lengths, [0.3] * 3, 3, 12, None)
    shuffled = torch.randperm(32, generator=torch.Generator().manual_seed(1))
    part = draw_masks(keys(32)[shuffled][:5], lengths, [0.3] * 3, 3, 12, None)
    for a, b, c in zip(whole.hidden, again.hidden, part.hidden, strict=True):
        assert torch.equal(a, b)
        assert torch.equal(a[shuffled[:5]], c)


def test_global_random_state_is_neither_used_nor_changed() -> None:
    torch.manual_seed(0)
    state = torch.get_rng_state()
    first = draw_masks(keys(4), [64], [0.3], 3, 12, None)
    assert torch.equal(state, torch.get_rng_state())
    torch.manual_seed(1)
    assert torch.equal(first.hidden[0], draw_masks(keys(4), [64], [0.3], 3, 12, None).hidden[0])


def test_windows_epochs_seeds_and_timeframes_get_different_masks() -> None:
    masks = draw_masks(keys(64), [64, 64], [0.3] * 2, 3, 12, None)
    assert masks.hidden[0].unique(dim=0).shape[0] == 64
    other_epoch = draw_masks(keys(64, stream=1), [64, 64], [0.3] * 2, 3, 12, None)
    other_seed = draw_masks(window_keys(4, 0, torch.arange(64)), [64, 64], [0.3] * 2, 3, 12, None)
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
    masks = draw_masks(window_keys(seed, 0, torch.arange(3)), lengths, [0.3] * 2, 2, 6, None)
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
    masks = draw_masks(keys(3), [20, 12], [0.3] * 2, 2, 6, None)
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
        (
            ([64, 30], [0.3] * 2, 3, 40),
            "span_max = 40, and a window has 30 bars only; lower it, or lengthen data.window.seq_len",
        ),
        (([64], [0.3], 0, 4), "span_min = 0, and a hidden block needs 1 bar at least"),
        (([64], [0.3], 5, 4), "span_min = 5 is larger than masking.span_max = 4; lower it"),
        (([64], [0.0], 3, 4), "mask_ratio = 0.0 does not lie strictly between 0 and 1"),
        (([64, 64], [0.3, 1.0], 3, 4), "mask_ratio = 1.0"),
    ],
)
def test_impossible_masks_are_refused(arguments: tuple[list[int], list[float], int, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        draw_masks(keys(1), *arguments, None)


def test_ratios_by_name() -> None:
    timeframes = ("m1", "h1", "h4")
    assert mask_ratios(0.3, timeframes) == [0.3, 0.3, 0.3]
    assert mask_ratios({"h4": 0.1, "m1": 0.3, "h1": 0.2}, timeframes) == [0.3, 0.2, 0.1]
    with pytest.raises(
        ValueError, match=r"^masking.mask_ratio names no share for h1, h4; give one for every timeframe$"
    ):
        mask_ratios({"m1": 0.3}, timeframes)
    message = r"^masking.mask_ratio names d1, but the dataset's timeframes are m1, h1, h4$"
    with pytest.raises(ValueError, match=message):
        mask_ratios({"m1": 0.3, "h1": 0.2, "h4": 0.1, "d1": 0.1}, timeframes)


def test_every_timeframe_has_its_own_ratio() -> None:
    masks = draw_masks(keys(2000), [64, 64, 50], [0.1, 0.5, 0.3], 3, 8, None)
    assert (realised_ratio(masks) - torch.tensor([0.1, 0.5, 0.3])).abs().max() < 0.02
    for j, ratio in enumerate([0.1, 0.5, 0.3]):
        alone = draw_masks(keys(2000), [64, 64, 50], [ratio] * 3, 3, 8, None)
        assert torch.equal(masks.hidden[j], alone.hidden[j])


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (
            ([64, 50, 64], [0.3] * 3, 3, 8),
            [
                ["3c000ff03f80000", "fe780fe000000", "3f0007be01f8"],
                ["fe001f80000", "1c7f80780000", "3ffbf8000"],
                ["1fe0003f8003e", "7c003e0001c01f80", "ffe0000ff000000"],
            ],
        ),
        (([24, 12], [0.5] * 2, 1, 5), [["77007c", "30ddf", "3f89e0"], ["f8", "fc", "1e1"]]),
        (([40], [0.05], 4, 4), [["7800", "f000000000", "f0000000"]]),
    ],
)
def test_masks_without_synchronisation_stay_what_they_were(
    arguments: tuple[list[int], list[float], int, int], expected: list[list[str]]
) -> None:
    masks = draw_masks(window_keys(7, 2, torch.tensor([0, 5, 123456789])), *arguments, None)
    found = [[format(int("".join(map(str, row)), 2), "x") for row in hidden.int().tolist()] for hidden in masks.hidden]
    assert found == expected


# Synchronised masks. The oracle and the checks know bars as sets of points: base row k is the point 2k + 1, and 2k is
# the boundary before it; a bar without base rows is its boundary alone.


@dataclass(frozen=True)
class Market:
    """Windows of several timeframes over one history, with base bars and coarse bars missing."""

    lengths: list[int]
    rows: list[torch.Tensor]

    def __len__(self) -> int:
        return len(self.rows[0])


def market(seed: int, lengths: list[int], steps: list[int], windows: int, gap: float, dropped: float) -> Market:
    """Bars of `steps` minutes, some on shifted grids; `dropped` is the share of coarse bars that no file holds."""
    rng = np.random.default_rng(seed)
    minutes = 400 + 4 * max(map(int.__mul__, lengths, steps))
    opened = np.cumsum(np.where(rng.random(minutes) < gap, rng.integers(2, 90, minutes), 1)) + 10_000
    streams = [(opened, opened + 1)]
    for step in steps[1:]:
        edges = np.arange(int(rng.integers(0, step)) * int(rng.random() < 0.3), opened[-1] + step, step)
        edges = edges[rng.random(len(edges)) >= dropped * rng.random()]
        if rng.random() < 0.5:  # a file without bars where there are no base bars; the others begin before the base
            edges = edges[np.searchsorted(opened, edges) < np.searchsorted(opened, edges + step)]
        streams.append((edges, edges + step))
    least = max(closes[length - 1] for (_, closes), length in zip(streams, lengths, strict=True))
    times = rng.choice(opened[opened + 1 >= least] + 1, windows)
    rows = []
    for (opens, closes), length in zip(streams, lengths, strict=True):
        bars = np.searchsorted(closes, times, side="right")[:, None] + np.arange(-length, 0)
        assert bars.min() >= 0
        edges = np.stack([opens[bars], closes[bars]], axis=-1)
        rows.append(torch.from_numpy(np.searchsorted(opened, edges).astype(np.int32)))
    return Market(lengths, rows)


@st.composite
def markets(draw: st.DrawFn) -> Market:
    count = draw(st.integers(1, 4))
    steps = sorted(
        [1, *draw(st.lists(st.sampled_from([2, 5, 7, 15, 30, 60, 240]), min_size=count - 1, max_size=count - 1))]
    )
    return market(
        draw(st.integers(0, 2**32)),
        draw(st.lists(st.integers(8, 40), min_size=count, max_size=count)),
        steps,
        4,
        draw(st.sampled_from([0.0, 0.02, 0.3])),
        draw(st.sampled_from([0.0, 0.5])),
    )


def points(first: int, past: int) -> set[int]:
    return set(range(2 * first + 1, 2 * past)) or {2 * first}


def overlap(one: tuple[int, int], other: tuple[int, int]) -> bool:
    return (one[0] < one[1] or other[0] < other[1]) and bool(points(*one) & points(*other))


def reach(bars: list[list[int]], bar: int) -> tuple[int, int]:
    """What a bar tells of: its rows and, of a window's first bar, the row before."""
    first, past = bars[bar]
    return (first - 1 if bar == 0 else first), past


def room_of(bars: list[list[list[int]]], j: int) -> list[int]:
    """The bars of timeframe j that are older than what the finer windows tell of."""
    told = [row for finer in bars[:j] for bar in range(len(finer)) for row in range(*reach(finer, bar))]
    return [bar for bar, (_, past) in enumerate(bars[j]) if not told or past - 1 < min(told)]


def intervals(bars: list[list[int]], room: list[int], hidden: list[bool]) -> list[tuple[int, int]]:
    """The blocks of a timeframe, from what is hidden of its room."""
    blocks = []
    for is_hidden, group in itertools.groupby(room, key=lambda bar: hidden[bar]):
        members = list(group)
        if is_hidden:
            blocks.append((bars[members[0]][0], bars[members[-1]][1]))
    return blocks


def faults(bars: list[list[list[int]]], hidden: list[list[bool]]) -> Iterator[str]:
    """What can be read off another timeframe, or is hidden without a reason, in one window."""
    rooms = [room_of(bars, j) for j in range(len(bars))]
    blocks = list(map(intervals, bars, rooms, hidden))
    for j, bar in [(j, bar) for j, rows in enumerate(bars) for bar in range(len(rows))]:
        others = [(i, block) for i in range(len(bars)) if i != j for block in blocks[i]]
        touching = [i for i, block in others if overlap(reach(bars[j], bar), block)]
        if touching and not hidden[j][bar]:
            yield f"bar {bar} of timeframe {j} tells of timeframe {touching[0]}"
        if hidden[j][bar] and not (touching or bar in rooms[j]):
            yield f"bar {bar} of timeframe {j} is hidden without a reason"


def synchronised(
    window: int, key: int, found: Market, ratios: list[float], span_min: int, span_max: int
) -> list[list[bool]]:
    """One window's masks, bar by bar: block after block into a set, keeping the set nearest to the target."""
    bars = [rows[window].tolist() for rows in found.rows]
    hidden: list[list[bool]] = []
    blocks: list[tuple[int, int]] = []
    for j, (length, ratio) in enumerate(zip(found.lengths, ratios, strict=True)):
        room = room_of(bars, j)
        inherited = {bar for bar in range(length) if any(overlap(reach(bars[j], bar), block) for block in blocks)}
        candidates = 2 * math.ceil(-math.log(1 - ratio) * length / ((span_min + span_max) / 2)) + 4
        drawn = mix(mix(torch.tensor(key) + j) + torch.arange(candidates)).tolist()
        own: set[int] = set()
        tried = [set(own)] if inherited else []
        for bits in drawn:
            low, high = min(span_min, len(room)), min(span_max, len(room))
            span = low + bits % 2**32 % (high - low + 1)
            start = (bits >> 32) % (len(room) - span + 1)
            own |= set(room[start : start + span])
            tried.append(set(own))
        best = min(tried, key=lambda bars: abs(len(bars) + len(inherited) - ratio * length))
        hidden.append([bar in best or bar in inherited for bar in range(length)])
        blocks += intervals(bars[j], room, [bar in best for bar in range(length)])
    return hidden


def drawn_for(found: Market, ratios: list[float], span_min: int, span_max: int, stream: int = 0) -> Masks:
    return draw_masks(keys(len(found), stream), found.lengths, ratios, span_min, span_max, found.rows)


def all_faults(found: Market, masks: Masks) -> list[str]:
    return [
        fault
        for window in range(len(found))
        for fault in faults(
            [rows[window].tolist() for rows in found.rows], [hidden[window].tolist() for hidden in masks.hidden]
        )
    ]


@settings(max_examples=80, deadline=None)
@given(
    found=markets(),
    ratios=st.lists(st.integers(3, 45), min_size=4, max_size=4),
    span_min=st.integers(1, 4),
    extra=st.integers(0, 4),
)
def test_synchronised_masks_equal_the_oracle(found: Market, ratios: list[int], span_min: int, extra: int) -> None:
    shares = [ratio / 64 for ratio in ratios[: len(found.lengths)]]  # ties stay exact in float32
    masks = drawn_for(found, shares, span_min, span_min + extra)
    assert all_faults(found, masks) == []
    for window, key in enumerate(keys(len(found)).tolist()):
        expected = synchronised(window, key, found, shares, span_min, span_min + extra)
        assert [hidden[window].tolist() for hidden in masks.hidden] == expected


REAL = ([1, 5, 15, 30, 60, 240], [48, 48, 40, 48, 30, 48])


def real(windows: int = 200, gap: float = 0.01) -> Market:
    steps, lengths = REAL
    return market(5, lengths, steps, windows, gap, 0.0)


def test_synchronised_ratios_are_near_their_targets() -> None:
    found = real()
    for ratios in ([0.3] * 6, [0.15, 0.2, 0.25, 0.3, 0.35, 0.4]):
        masks = drawn_for(found, ratios, 3, 8)
        assert (realised_ratio(masks) - torch.tensor(ratios)).abs().max() < 0.03
        for hidden in masks.hidden:
            assert hidden.any(dim=1).all()
            assert not hidden.all(dim=1).any()


def test_the_base_hides_what_it_would_alone() -> None:
    found = real(20)
    alone = draw_masks(keys(len(found)), found.lengths, [0.3] * 6, 3, 8, None)
    together = drawn_for(found, [0.3] * 6, 3, 8)
    assert torch.equal(alone.hidden[0], together.hidden[0])
    assert all_faults(found, together) == []
    assert all_faults(found, alone) != []


@pytest.mark.parametrize("forgotten", range(6))
def test_a_forgotten_timeframe_is_noticed(forgotten: int) -> None:
    found = real(20)
    ratios = [0.3] * 6
    hidden = list(drawn_for(found, ratios, 3, 8).hidden)
    hidden[forgotten] = draw_masks(keys(20, stream=9), found.lengths, ratios, 3, 8, None).hidden[forgotten]
    assert any(f"timeframe {forgotten}" in fault for fault in all_faults(found, Masks(hidden)))


def test_a_bar_that_touches_a_block_by_one_base_row_is_noticed() -> None:
    found = real(20)
    masks = drawn_for(found, [0.3] * 6, 3, 8)
    planted = 0
    for window, j in itertools.product(range(20), range(1, 6)):
        bars = [rows[window].tolist() for rows in found.rows]
        hidden = [one[window].tolist() for one in masks.hidden]
        room = room_of(bars, j)
        blocks = [block for i in range(j) for block in intervals(bars[i], room_of(bars, i), hidden[i])]
        for bar, (first, past) in enumerate(bars[j]):
            rows = sum(max(0, min(past, block[1]) - max(first, block[0])) for block in blocks)
            if rows == 1 and past - first > 1 and bar not in room:
                shown = [list(one) for one in hidden]
                shown[j][bar] = False
                assert any(fault.startswith(f"bar {bar} of timeframe {j} tells") for fault in faults(bars, shown))
                planted += 1
    assert planted > 20


def test_bars_without_a_room_are_hidden_by_the_finer_ones_alone() -> None:
    # Nine m10 bars, all within one m1 window of 100 rows, of which 3 … 8 rows in the middle are hidden.
    first = torch.arange(100, dtype=torch.int32)
    coarse = torch.arange(5, 95, 10, dtype=torch.int32)
    rows = [torch.stack([first, first + 1], dim=-1)[None], torch.stack([coarse, coarse + 10], dim=-1)[None]]
    for stream in range(20):
        masks = draw_masks(keys(1, stream), [100, 9], [0.05, 0.9], 3, 8, rows)
        expected = [bool(masks.hidden[0][0, start : start + 10].any()) for start in coarse.tolist()]
        assert masks.hidden[1][0].tolist() == expected


@pytest.mark.parametrize("room", [1, 2, 5])
def test_a_small_room_is_enough_for_a_hidden_bar(room: int) -> None:
    # The m1 window begins at row 1001 and tells of the close of row 1000; `room` bars of 10 rows end at or before it.
    first = torch.arange(1001, 1033, dtype=torch.int32)
    coarse = torch.arange(1000 - 10 * room, 1200, 10, dtype=torch.int32)[:12]
    rows = [torch.stack([first, first + 1], dim=-1)[None], torch.stack([coarse, coarse + 10], dim=-1)[None]]
    for stream in range(50):
        masks = draw_masks(keys(1, stream), [32, 12], [0.1, 0.2], 4, 8, rows)
        assert masks.hidden[1].any()
        if not masks.hidden[1][0, room:].any():
            assert masks.hidden[1][0, :room].sum() == min(4, room)


def test_a_block_at_the_seam_leaves_the_row_that_the_finer_window_gives_away() -> None:
    first = torch.arange(1000, 1032, dtype=torch.int32)
    coarse = torch.arange(900, 1020, 10, dtype=torch.int32)
    rows = [torch.stack([first, first + 1], dim=-1), torch.stack([coarse, coarse + 10], dim=-1)]
    masks = draw_masks(keys(500), [32, 12], [0.1, 0.5], 1, 4, [one.expand(500, -1, -1).contiguous() for one in rows])
    assert masks.hidden[1][:, 8].any()
    assert not masks.hidden[1][:, 9].any()  # rows 990 … 999; the difference at row 1000 would tell its close


def test_a_block_is_the_whole_interval_from_its_first_bar_to_its_last() -> None:
    # No h1 bar was recorded from row 400 to 700, where the h4-like bars were.
    base = torch.arange(2000, 2016)
    middle = torch.tensor([0, 50, 100, 150, 200, 250, 300, 350, 700, 750, 800, 850])
    coarse = torch.arange(0, 1000, 100)
    rows = [
        torch.stack(edges, dim=-1).int() for edges in ((base, base + 1), (middle, middle + 50), (coarse, coarse + 100))
    ]
    masks = draw_masks(
        keys(300), [16, 12, 10], [0.1, 0.3, 0.1], 4, 4, [one.expand(300, -1, -1).contiguous() for one in rows]
    )
    across = masks.hidden[1][:, 7] & masks.hidden[1][:, 8]
    assert 20 < across.sum() < 280
    assert torch.equal(masks.hidden[2][:, 4:7].all(dim=1), across)
    assert torch.equal(masks.hidden[2][:, 4:7].any(dim=1), across)


def test_synchronised_masks_depend_on_the_window_alone() -> None:
    found = real(32)
    whole = drawn_for(found, [0.3] * 6, 3, 8)
    order = torch.randperm(32, generator=torch.Generator().manual_seed(1))[:5]
    state = torch.get_rng_state()
    part = draw_masks(keys(32)[order], found.lengths, [0.3] * 6, 3, 8, [rows[order] for rows in found.rows])
    shifted = draw_masks(keys(32), found.lengths, [0.3] * 6, 3, 8, [rows + 10_000_000 for rows in found.rows])
    wide = draw_masks(keys(32), found.lengths, [0.3] * 6, 3, 8, [rows.long() for rows in found.rows])
    strided = [torch.stack([rows, rows], dim=-1)[..., 0] for rows in found.rows]
    views = draw_masks(keys(32), found.lengths, [0.3] * 6, 3, 8, strided)
    assert torch.equal(state, torch.get_rng_state())
    for a, b, *same in zip(whole.hidden, part.hidden, shifted.hidden, wide.hidden, views.hidden, strict=True):
        assert torch.equal(a[order], b)
        assert all(torch.equal(a, c) for c in same)


@pytest.mark.parametrize("sync", [False, True])
def test_no_shape_and_no_step_depends_on_values(sync: bool) -> None:
    """Tensors without data: whatever asks the device for a value fails."""
    found = real(8)
    rows = [rows.to("meta") for rows in found.rows] if sync else None
    masks = draw_masks(keys(8).to("meta"), found.lengths, [0.3] * 6, 3, 8, rows)
    assert [hidden.shape for hidden in masks.hidden] == [(8, length) for length in found.lengths]
    assert all(hidden.dtype == torch.bool for hidden in masks.hidden)
