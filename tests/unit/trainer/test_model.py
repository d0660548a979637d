import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from configs.loader import load_config
from trainer.config import EncoderConfig, ModelConfig
from trainer.layers import rotary_table, rotate
from trainer.losses import huber
from trainer.model import MaskedAutoencoder, instance_normalise
from trainer.model_size import forward_flops, model_info, parameter_count
from trainer.optim import AdamW

F, K = 6, 3  # features, and channels that are known of every bar


KNOWN = torch.tensor([0.5, -0.5, 1.0])


def small(seq_lens: tuple[int, ...], **changes: Any) -> MaskedAutoencoder:
    torch.manual_seed(0)
    bar_lengths = tuple(5**j for j in range(len(seq_lens)))
    return MaskedAutoencoder(F, K, seq_lens, bar_lengths, settings_of(**changes))


def settings_of(n_layers: int = 2, **changes: Any) -> ModelConfig:
    settings: dict[str, Any] = {
        "d_model": 16, "n_heads": 2, "mlp_ratio": 2.0, "latent_stride": 4, "dropout": 0.0, "instance_norm": False,
    }  # fmt: skip
    return ModelConfig(**(settings | changes), encoder=EncoderConfig.model_construct(n_layers=n_layers))


def inputs(batch: int, seq_lens: tuple[int, ...], seed: int = 1) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(batch, length, F + 1 + K, generator=generator) for length in seq_lens]


def hide(batch: int, seq_lens: tuple[int, ...]) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Features, the same with hidden bars blanked, and where they are hidden, bool [B, L] a timeframe."""
    generator = torch.Generator().manual_seed(2)
    x = [torch.randn(batch, length, F, generator=generator) for length in seq_lens]
    hidden = [torch.rand(batch, length, generator=generator) < 0.3 for length in seq_lens]
    blanked = [
        torch.cat([values.masked_fill(h[..., None], 0), h[..., None].float(), KNOWN.expand(*h.shape, -1)], dim=-1)
        for values, h in zip(x, hidden, strict=True)
    ]
    return x, blanked, hidden


@pytest.mark.parametrize(("length", "latents"), [(48, 12), (50, 13), (64, 16), (3, 1)])
def test_shapes(length: int, latents: int) -> None:
    model = small((length,) * 3)
    x = inputs(5, (length,) * 3)
    assert [out.shape for out in model(x)] == [(5, length, 4)] * 3
    assert model.encode(x).shape == (5, 3, latents, 16)


def test_shapes_with_different_lengths() -> None:
    seq_lens = (64, 50, 12)
    model = small(seq_lens)
    x = inputs(2, seq_lens)
    assert [out.shape for out in model(x)] == [(2, length, 4) for length in seq_lens]
    assert [latent.shape for latent in model.latents(x)] == [(2, 16, 16), (2, 13, 16), (2, 3, 16)]
    with pytest.raises(ValueError, match=r"latent lengths \[16, 13, 3\] do not stack to one array: use latents\(\)"):
        model.encode(x)


def test_different_lengths_with_equal_latent_lengths_stack() -> None:
    assert small((50, 52)).encode(inputs(2, (50, 52))).shape == (2, 2, 13, 16)


def test_heads_must_have_even_width() -> None:
    with pytest.raises(ValueError, match=r"d_model \(18\) must be a multiple of 2 · model.n_heads \(2 · 6\)"):
        small((8,), d_model=18, n_heads=6)


@pytest.mark.parametrize("seq_lens", [(16, 16), (16, 10, 7)])
def test_gradient_reaches_every_parameter(seq_lens: tuple[int, ...]) -> None:
    model = small(seq_lens)
    torch.stack([out.square().mean() for out in model(inputs(3, seq_lens))]).sum().backward()  # type: ignore[no-untyped-call]
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name
        assert parameter.grad.isfinite().all(), name


def test_rows_of_a_batch_are_independent() -> None:
    model = small((16, 10)).eval()
    x = inputs(6, (16, 10))
    order = torch.tensor([4, 2, 0, 5, 1, 3])
    for out, permuted in zip(model(x), model([values[order] for values in x]), strict=True):
        torch.testing.assert_close(out[order], permuted)


def test_batched_attention_stays_within_timeframes() -> None:
    block = small((12, 12, 12)).backbone.blocks[0]
    tokens = torch.randn(2, 36, 16)
    rotary = rotary_table((12, 12, 12), (1, 1, 1), 8)
    together = block(tokens, rotary)
    block.within = None
    alone = [block(part, rotary[:, :12]) for part in tokens.split(12, dim=1)]
    torch.testing.assert_close(together, torch.cat(alone, dim=1))


def test_looped_attention_stays_within_timeframes() -> None:
    block = small((9, 5)).backbone.blocks[0]
    tokens = torch.randn(2, 14, 16)
    rotary = rotary_table((9, 5), (1, 1), 8)
    changed = tokens.clone()
    changed[:, 9:] += 1
    assert torch.equal(block(tokens, rotary)[:, :9], block(changed, rotary)[:, :9])


def test_joint_blocks_see_other_timeframes() -> None:
    seq_lens = (8, 8)
    x = inputs(2, seq_lens)
    changed = [x[0], x[1] + 1]
    within_only, joint = small(seq_lens, n_layers=1).eval(), small(seq_lens, n_layers=2).eval()
    assert torch.equal(within_only(x)[0], within_only(changed)[0])
    assert not torch.allclose(joint(x)[0], joint(changed)[0])


def test_rotary_angles_by_hand_and_newest_bars_aligned() -> None:
    rotary = rotary_table((5, 3), (1, 1), 4)
    cos, sin = rotary
    assert cos.shape == sin.shape == (8, 2)
    assert torch.equal(cos[2:5], cos[5:8])
    assert cos[4].tolist() == [1, 1]
    # Position −2 of the second timeframe; the frequencies of a head of width 4 are 1 and 1/100.
    assert sin[5].tolist() == pytest.approx([math.sin(-2), math.sin(-0.02)])
    turned = rotate(torch.tensor([1.0, 2, 3, 4]).expand(1, 8, 1, 4), rotary)[0, 5, 0]
    pairs = [
        complex(1, 2) * complex(math.cos(-2), math.sin(-2)),
        complex(3, 4) * complex(math.cos(0.02), -math.sin(0.02)),
    ]
    assert turned.tolist() == pytest.approx([pairs[0].real, pairs[0].imag, pairs[1].real, pairs[1].imag], abs=1e-5)


def test_bars_of_the_same_time_have_the_same_position() -> None:
    rotary = rotary_table((11, 3), (1, 5), 8)
    assert torch.equal(rotary[:, [0, 5, 10]], rotary[:, [11, 12, 13]])


def test_scores_depend_on_relative_position_only() -> None:
    rotary = rotary_table((10,), (1,), 8)
    q, k = torch.randn(2, 1, 1, 1, 8).expand(2, 1, 10, 1, 8)
    scores = rotate(q, rotary)[0, :, 0] @ rotate(k, rotary)[0, :, 0].T
    torch.testing.assert_close(scores[:-1, :-1], scores[1:, 1:])


def test_padding_is_at_the_oldest_end() -> None:
    model = small((10,), n_layers=0).eval()
    x = inputs(1, (10,))
    changed = [x[0].clone()]
    changed[0][:, :1] += 1
    # 10 bars at stride 4: 2 padded, so the first latent holds bars 0 and 1 (the stem lets bar 0 reach bar 1).
    differs = (model.encode(x) != model.encode(changed)).any(dim=-1)[0, 0]
    assert differs.tolist() == [True, False, False]


def test_bfloat16_autocast() -> None:
    model = small((16, 10)).eval()
    x = inputs(4, (16, 10))
    with torch.autocast("cpu", torch.bfloat16):
        low = model(x)
    for a, b in zip(low, model(x), strict=True):
        assert a.isfinite().all()
        assert (a.float() - b).abs().max() < 0.05 * b.abs().max() + 0.01


def test_more_rows_than_a_cuda_grid_dimension() -> None:
    model = small((64, 64), d_model=8, n_heads=2, n_layers=2).eval()
    with torch.no_grad():
        x = inputs(1100, (64, 64))
        out = model(x)
        assert 1100 * 64 > 65_535
        torch.testing.assert_close(out[1][-2:], model([values[-2:] for values in x])[1])


def test_state_dict_round_trip() -> None:
    model = small((16, 10)).eval()
    other = small((16, 10)).eval()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.normal_()
    x = inputs(2, (16, 10))
    assert not torch.equal(model(x)[0], other(x)[0])
    other.load_state_dict(model.state_dict())
    assert torch.equal(model(x)[0], other(x)[0])
    assert not any("cos" in name or "sin" in name for name in model.state_dict())


def test_parameter_count() -> None:
    model = small((16, 16))
    d, per_block = 16, 3 * 16 * 16 + 16 * 16 + 16 * 32 + 32 * 16
    stem = (F + 1 + K) * (3 + d)
    decoder = d * 4 * d + 4 * d + d * 4 + 4
    bottleneck = 4 * d * d + d
    assert parameter_count(model) == 2 * (stem + d + per_block + decoder) + bottleneck
    model.backbone.bottleneck.requires_grad_(False)
    assert parameter_count(model) == 2 * (stem + d + per_block + decoder)


def test_overfits_a_small_batch() -> None:
    seq_lens = (16, 16)
    model = small(seq_lens, d_model=32, n_heads=4)
    optimizer = AdamW(model.named_parameters(), lr=1e-2, weight_decay=0.0)
    x, masked, hidden = hide(4, seq_lens)
    losses = []
    for _ in range(150):
        outputs = model(masked)
        terms = [huber(p, v[..., :4], h, 1.0) for p, v, h in zip(outputs, x, hidden, strict=True)]
        loss = torch.stack(terms).mean()
        model.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.1 * losses[0]


def test_instance_norm_knows_visible_bars_only() -> None:
    (x,), (blanked,), (hidden,) = hide(5, (20,))
    scaled, mean, std = instance_normalise(blanked, F)
    for b in range(5):
        seen = x[b][~hidden[b]]
        torch.testing.assert_close(mean[b, 0], seen.mean(dim=0))
        torch.testing.assert_close(std[b, 0], (seen.var(dim=0, correction=0) + 1e-5).sqrt())
        torch.testing.assert_close(scaled[b, ~hidden[b], :F], (seen - mean[b]) / std[b])
        assert not scaled[b, hidden[b], :F].any()
    assert torch.equal(scaled[..., F:], blanked[..., F:])


def test_instance_norm_of_what_does_not_vary_or_is_hidden_is_finite() -> None:
    x = torch.full((2, 8, F + 1 + K), 3.0)
    x[0, :, F], x[1, :, :F], x[1, :, F] = 0, 0, 1
    scaled, mean, std = instance_normalise(x, F)
    assert not scaled[..., :F].any()
    assert mean[:, 0, 0].tolist() == [3, 0]
    torch.testing.assert_close(std, torch.full_like(std, 1e-5**0.5))
    assert all(out.isfinite().all() for out in small((8,), instance_norm=True)([x]))


def test_instance_norm_gives_predictions_in_the_units_of_the_stream() -> None:
    seq_lens = (16, 10)
    model, plain = small(seq_lens, instance_norm=True).eval(), small(seq_lens).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # at first, predictions are next to nothing
            parameter.normal_(std=0.3)
    plain.load_state_dict(model.state_dict())
    _, x, _ = hide(3, seq_lens)
    # Window by window and feature by feature, another level and another unit change the prediction in the same way,
    level, unit = torch.randn(3, 1, F) * 5, torch.rand(3, 1, F) + 0.5
    moved = [torch.cat([(one[..., :F] * unit + level) * (1 - one[..., F : F + 1]), one[..., F:]], dim=-1) for one in x]
    for before, after in zip(model(x), model(moved), strict=True):
        torch.testing.assert_close(after, before * unit[..., :4] + level[..., :4], rtol=1e-4, atol=1e-3)
    # and the embedding not at all.
    for before, after in zip(model.latents(x), model.latents(moved), strict=True):
        torch.testing.assert_close(after, before, rtol=1e-3, atol=1e-3)
    assert plain.instance_norm is False
    assert not torch.allclose(plain(moved)[0], plain(x)[0] * unit[..., :4] + level[..., :4], atol=0.5)
    assert not torch.allclose(plain.latents(moved)[0], plain.latents(x)[0], atol=0.5)


def test_instance_norm_lets_no_hidden_value_through() -> None:
    model = small((16,), instance_norm=True).eval()
    _, (blanked,), (hidden,) = hide(4, (16,))
    spoiled = blanked.clone()
    spoiled[..., :F][hidden] = 99
    assert torch.equal(instance_normalise(spoiled, F)[0], instance_normalise(blanked, F)[0])
    assert torch.equal(model([spoiled])[0], model([blanked])[0])


def test_instance_norm_needs_a_feature_for_each_target() -> None:
    with pytest.raises(
        ValueError, match=r"model\.instance_norm needs a feature for each target, and there are 4 targets"
    ):
        MaskedAutoencoder(3, 0, (8,), (1,), settings_of(instance_norm=True))


def test_attention_never_has_a_row_for_every_bar_of_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    # A batch of tiny sets, one for each of the B · L bars, would not fit into a dimension of a CUDA grid.
    shapes = []

    def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        shapes.append(tuple(q.shape))
        return v

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", attention)
    with torch.no_grad():
        small((64, 64, 64))([values.expand(1100, -1, -1) for values in inputs(1, (64, 64, 64))])
        small((64, 48))([values.expand(1100, -1, -1) for values in inputs(1, (64, 48))])
    assert shapes == [(3300, 2, 64, 8), (1100, 2, 192, 8), (1100, 2, 64, 8), (1100, 2, 48, 8), (1100, 2, 112, 8)]


@pytest.mark.parametrize(("seq_lens", "stride"), [((48, 48, 48), 4), ((50, 20), 3)])
def test_flops_are_those_that_pytorch_counts(seq_lens: tuple[int, ...], stride: int) -> None:
    model = small(seq_lens, n_layers=3, latent_stride=stride).to("meta")
    with FlopCounterMode(display=False) as counter:
        model([values.to("meta") for values in inputs(1, seq_lens)])
    assert forward_flops(model) == counter.get_total_flops()


def test_model_info() -> None:
    model = small((16, 16))
    count = parameter_count(model)
    expected = (
        f"{count:,} parameters · {4 * count / 1e6:.2f} MB · {forward_flops(model) / 1e6:,.1f} MFLOP a window forward"
    )
    assert model_info(model) == expected


def test_a_model_of_a_configuration() -> None:
    config = load_config(Path(__file__).parents[3] / "configs/test.yaml", ["model.instance_norm=true"])
    model = MaskedAutoencoder(F, K, (12, 12), (1, 5), config.parse("model", ModelConfig))
    assert (model.instance_norm, len(model.backbone.blocks), model.backbone.d_model) == (True, 2, 32)
    assert load_config(Path(__file__).parents[3] / "configs/test.yaml").values["model"]["instance_norm"] is False
