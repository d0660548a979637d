import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from trainer.optim import AdamW, LossScaler, clip_gradients, one_cycle


def small_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 7), nn.LayerNorm(7), nn.GELU(), nn.Linear(7, 3))


def set_gradients(model: nn.Module, step: int) -> None:
    generator = torch.Generator().manual_seed(step)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)


def reference(model: nn.Module, lr: float, weight_decay: float, eps: float) -> torch.optim.AdamW:
    groups = [
        {"params": [p for p in model.parameters() if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in model.parameters() if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=lr, betas=(0.8, 0.95), eps=eps, foreach=False, fused=False)


@pytest.mark.parametrize("weight_decay", [0.0, 0.3])
def test_adamw_equals_torch(weight_decay: float) -> None:
    ours, theirs = small_model(), small_model()
    optimizer = AdamW(ours.named_parameters(), lr=1.0, weight_decay=weight_decay, betas=(0.8, 0.95), eps=1e-6)
    expected = reference(theirs, 1.0, weight_decay, 1e-6)
    for step, lr in enumerate(one_cycle(30, 0.05, 0.3).tolist()):
        optimizer.lr.fill_(lr)
        for group in expected.param_groups:
            group["lr"] = lr
        set_gradients(ours, step)
        set_gradients(theirs, step)
        optimizer.step()
        expected.step()
        for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=2e-6, atol=2e-7)
    assert optimizer.steps == 30
    assert optimizer.skipped == 0


def test_found_inf_skips_the_update() -> None:
    model, twin = small_model(), small_model()
    optimizer, expected = (AdamW(m.named_parameters(), lr=0.1, weight_decay=0.1) for m in (model, twin))
    for step in range(6):
        set_gradients(model, step)
        if step in (2, 3):
            next(model.parameters()).grad.fill_(torch.inf)  # type: ignore[union-attr]
        else:
            set_gradients(twin, step)
            expected.step()
        found_inf = LossScaler(False, "cpu").unscale(optimizer.gradients())
        optimizer.step(found_inf)
    assert optimizer.steps == 4
    assert optimizer.skipped == 2
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters(), strict=True))


def test_state_round_trip_continues_exactly() -> None:
    model, twin = small_model(), small_model()
    optimizer = AdamW(model.named_parameters(), lr=0.1, weight_decay=0.1)
    for step in range(3):
        set_gradients(model, step)
        optimizer.step()
    saved = {name: tensor.clone() for name, tensor in optimizer.state_tensors().items()}
    assert {"steps", "skipped", "exp_avg.0.weight", "exp_avg_sq.3.bias"} <= saved.keys()
    twin.load_state_dict(model.state_dict())
    resumed = AdamW(twin.named_parameters(), lr=0.1, weight_decay=0.1)
    resumed.load_state_tensors(saved)
    for m, o in ((model, optimizer), (twin, resumed)):
        set_gradients(m, 9)
        o.step()
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters(), strict=True))


def test_foreign_state_is_refused() -> None:
    optimizer = AdamW(small_model().named_parameters(), lr=0.1, weight_decay=0.1)
    state = dict(optimizer.state_tensors())
    del state["exp_avg.0.bias"]
    state["exp_avg.other"] = torch.zeros(1)
    state["exp_avg.3.bias"] = torch.zeros(4)
    with pytest.raises(
        ValueError, match=r"exp_avg.0.bias is missing; exp_avg.3.bias has shape \(4,\), not \(3,\); exp_a"
    ):
        optimizer.load_state_tensors(state)


def test_frozen_parameters_are_left_alone_and_unused_ones_are_named() -> None:
    model = small_model()
    frozen = next(model.parameters()).requires_grad_(False)
    before = frozen.clone()
    optimizer = AdamW(model.named_parameters(), lr=0.1, weight_decay=0.1)
    with pytest.raises(ValueError, match=r"no gradient reached 0.bias, 1.weight.*requires_grad_\(False\)"):
        optimizer.step()
    set_gradients(model, 0)
    optimizer.step()
    assert torch.equal(frozen, before)
    with pytest.raises(ValueError, match="no trainable parameters"):
        AdamW(nn.Linear(2, 2).requires_grad_(False).named_parameters(), lr=0.1, weight_decay=0.1)


def run_scaler(overflows: set[int], n_steps: int, ours: bool) -> tuple[list[float], list[Tensor]]:
    """Scale, unscale, clip, step, update with our parts or PyTorch's; the scales seen and the final parameters."""
    model = small_model()
    x = torch.randn(4, 5, generator=torch.Generator().manual_seed(1))
    settings = {"init_scale": 1024.0, "growth_factor": 2.0, "backoff_factor": 0.5, "growth_interval": 3}
    scales = []
    mine, optimizer = LossScaler(True, "cpu", **settings), AdamW(model.named_parameters(), 0.01, 0.1, (0.8, 0.95))  # type: ignore[arg-type]
    theirs, expected = torch.amp.GradScaler("cpu", **settings), reference(model, 0.01, 0.1, 1e-8)  # type: ignore[arg-type]
    for step in range(n_steps):
        model.zero_grad()
        loss = model(x).square().mean() * (torch.inf if step in overflows else 1.0)
        if ours:
            mine.scale(loss).backward()  # type: ignore[no-untyped-call]
            found_inf = mine.unscale(optimizer.gradients())
            assert found_inf == (step in overflows)
            clip_gradients(optimizer.gradients(), 0.1)
            optimizer.step(found_inf)
            mine.update(found_inf)
            scales.append(mine.factor.item())
        else:
            theirs.scale(loss).backward()
            theirs.unscale_(expected)
            torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)
            theirs.step(expected)
            theirs.update()
            scales.append(theirs.get_scale())
    return scales, [parameter.detach() for parameter in model.parameters()]


def test_scaler_equals_gradscaler() -> None:
    overflows = {2, 3, 16}
    scales, parameters = run_scaler(overflows, 20, ours=True)
    expected_scales, expected_parameters = run_scaler(overflows, 20, ours=False)
    assert scales == expected_scales
    assert min(scales) < 1024 < max(scales)
    for a, b in zip(parameters, expected_parameters, strict=True):
        torch.testing.assert_close(a, b, rtol=2e-6, atol=2e-7)


@pytest.mark.parametrize("bad", [torch.inf, -torch.inf, torch.nan])
def test_disabled_scaler_checks_but_keeps_the_scale(bad: float) -> None:
    scaler = LossScaler(False, "cpu")
    good = [torch.ones(3), torch.ones(2, 2)]
    assert scaler.scale(torch.tensor(3.0)) == 3
    assert scaler.unscale(good) == 0
    assert torch.equal(good[0], torch.ones(3))
    found_inf = scaler.unscale([torch.ones(3), torch.tensor([1.0, bad])])
    assert found_inf == 1
    for _ in range(5):
        scaler.update(found_inf)
    assert scaler.factor == 1


def test_scaler_state_round_trip() -> None:
    scaler, other = (LossScaler(True, "cpu", growth_interval=5) for _ in range(2))
    for overflow in (1.0, 0.0, 0.0):
        scaler.update(torch.tensor(overflow))
    other.load_state_tensors({name: tensor.clone() for name, tensor in scaler.state_tensors().items()})
    assert other.factor == scaler.factor == 2**15
    assert other.growth == scaler.growth == 2


@pytest.mark.parametrize("max_norm", [0.01, 1.0, 1e6])
def test_clip_equals_torch(max_norm: float) -> None:
    ours, theirs = small_model(), small_model()
    set_gradients(ours, 1)
    set_gradients(theirs, 1)
    norm = clip_gradients([p.grad for p in ours.parameters() if p.grad is not None], max_norm)
    torch.testing.assert_close(norm, torch.nn.utils.clip_grad_norm_(theirs.parameters(), max_norm))
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)


@pytest.mark.parametrize(
    ("total_steps", "warmup_fraction"),
    # Not where the warm-up is exactly one step long: PyTorch divides by zero there.
    [(1, 0.0), (1, 0.3), (2, 0.3), (2, 1.0), (7, 0.0), (7, 0.3), (7, 1.0), (100, 0.05), (100, 0.3), (1003, 0.05)],
)
def test_one_cycle_equals_torch(total_steps: int, warmup_fraction: float) -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, 3e-3, total_steps, pct_start=warmup_fraction, cycle_momentum=False
    )
    rates = one_cycle(total_steps, 3e-3, warmup_fraction)
    for step in range(total_steps):
        assert float(rates[step]) == pytest.approx(scheduler.get_last_lr()[0], rel=1e-12, abs=0)
        optimizer.step()
        if step + 1 < total_steps:
            scheduler.step()


def test_one_cycle_limits() -> None:
    assert one_cycle(10, 1.0, 0.1)[0] == 1.0
    with pytest.raises(ValueError, match=r"warmup_fraction is 1\.5: it must lie in \[0, 1\]"):
        one_cycle(10, 1.0, 1.5)


SCRIPT = """
import sys
import torch
from trainer.config import ModelConfig
from trainer.losses import huber
from trainer.inputs import apply_masks
from trainer.masking import draw_masks, window_keys
from trainer.model import MaskedAutoencoder
from trainer.optim import AdamW, LossScaler, clip_gradients, one_cycle
from trainer.order import batch_indices

settings = dict(d_model=16, n_heads=2, mlp_ratio=2.0, latent_stride=4, dropout=0.1, instance_norm=False)
settings = ModelConfig(**settings, encoder={"n_layers": 2})
model = MaskedAutoencoder(6, 0, (16, 12), (1, 5), settings)
optimizer, scaler = AdamW(model.named_parameters(), 1e-3, 0.1), LossScaler(True, "cpu")
masks = draw_masks(window_keys(0, 0, batch_indices(0, 8, 100, 0, 0)), (16, 12), [0.3, 0.3], 2, 4, None)
x = [torch.randn(8, length, 6) for length in (16, 12)]
with torch.autocast("cpu", torch.bfloat16):
    outputs = model(apply_masks(x, masks, [4]))
losses = [huber(p, values[..., :4], hidden, 1.0) for p, values, hidden in zip(outputs, x, masks.hidden)]
scaler.scale(torch.stack(losses).mean()).backward()
found_inf = scaler.unscale(optimizer.gradients())
clip_gradients(optimizer.gradients(), 1.0)
optimizer.lr.copy_(one_cycle(10, 1e-3, 0.3)[0])
optimizer.step(found_inf)
scaler.update(found_inf)
print(float(optimizer.steps), sorted(name for name in sys.modules if name in ("torch._dynamo", "sympy")))
"""


def test_a_whole_step_imports_neither_dynamo_nor_sympy() -> None:
    root = Path(__file__).parents[3]
    done = subprocess.run([sys.executable, "-c", SCRIPT], cwd=root, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "1.0 []", done.stdout + done.stderr
