"""The Triton kernels against the layers they stand for: on a GPU where there is one, else interpreted."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from trainer.config import EncoderConfig, ModelConfig
from trainer.layers import Block, attention, rotary_table, runs_of
from trainer.model import MaskedAutoencoder

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
pytest.importorskip("triton")
from trainer import fused  # noqa: E402

DTYPES = [torch.float16, torch.bfloat16] if DEVICE == "cuda" else [torch.float16]  # Triton does not interpret bfloat16
SIZES = [(2, 10, 16, 1, "within"), (2, 10, 32, 2, "across"), (3, 7, 48, 3, "within"), (1, 33, 128, 4, "within")]


def make(length: int, width: int, heads: int, where: str, dropout: float = 0.0) -> tuple[Block, Tensor]:
    torch.manual_seed(0)
    lengths = (length,) * 3
    block = Block(width, heads, 4, dropout, runs_of(lengths) if where == "within" else None).to(DEVICE)
    for weight in block.parameters():
        torch.nn.init.normal_(weight, std=1.2 / weight.shape[1] ** 0.5)
    return block, rotary_table(lengths, (1, 5, 15), width // heads).to(DEVICE)


def outcome(block: Block, x: Tensor, rotary: Tensor, along: Tensor) -> list[Tensor]:
    """What the block gives, and gradients of its input and its weights."""
    block.zero_grad(set_to_none=True)
    x = x.clone().requires_grad_()
    y = block(x, rotary)
    (y.float() * along).sum().backward()
    assert x.grad is not None
    return [
        y.detach().float(),
        x.grad.float(),
        *(weight.grad for weight in block.parameters() if weight.grad is not None),
    ]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("batch", "length", "width", "heads", "where"), SIZES)
def test_values_and_gradients(batch: int, length: int, width: int, heads: int, where: str, dtype: torch.dtype):
    block, rotary = make(length, width, heads, where)
    x, along = (torch.randn(batch, 3 * length, width, device=DEVICE).to(dtype).float() for _ in range(2))
    expected = outcome(block, x, rotary, along)
    fused.Kernels([block]).refresh(dtype)
    found = outcome(block, x.to(dtype), rotary, along)
    assert len(found) == len(expected) == 6
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == torch.float32
        assert (one - other).norm() < 10 * torch.finfo(dtype).eps * other.norm()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("length", "channels"), [(1, 2), (16, 16), (63, 24), (64, 64), (65, 8), (150, 40), (192, 128)])
def test_attention(length: int, channels: int, dtype: torch.dtype):
    qkv = torch.randn(2, length, 3, 2, channels, generator=torch.Generator().manual_seed(0)).to(DEVICE, dtype)
    qkv[:, length // 2 :, 1] *= 8  # keys that outweigh those before them
    along = torch.randn(2, length, 2, channels, device=DEVICE).to(dtype)

    def outcome(dtype: torch.dtype, attend: Callable[..., Tensor]) -> list[Tensor]:
        leaf = qkv.to(dtype, copy=True).requires_grad_()
        y = attend(*leaf.unbind(2))
        y.backward(along.to(dtype))
        assert leaf.grad is not None
        return [y.detach(), *leaf.grad.unbind(2)]

    block = make(8, 16, 1, "across")[0]
    fused.Kernels([block])
    assert block.kernels is not None
    found, again = (outcome(dtype, block.kernels.attention) for _ in range(2))
    for one, same, other in zip(found, again, outcome(torch.float64, attention), strict=True):
        assert torch.equal(one, same)
        assert (one - other).norm() <= 4 * torch.finfo(dtype).eps * other.norm()


def make_model(width: int) -> MaskedAutoencoder:
    encoder = EncoderConfig(n_layers=2)
    settings = ModelConfig(
        d_model=width, n_heads=2, mlp_ratio=4, latent_stride=4, dropout=0, instance_norm=False, encoder=encoder
    )
    return MaskedAutoencoder(6, 0, (16, 16), (1, 5), settings).to(DEVICE)


def test_a_model_with_kernels():
    model = make_model(96)
    assert model.without_kernels() is None
    x = [torch.randn(2, 16, 7, device=DEVICE) for _ in range(2)]
    expected = model(x)
    model.use_kernels()
    assert all(map(torch.equal, model(x), expected))  # not in float32
    with torch.autocast(DEVICE, torch.float16):
        found = model(x)
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == torch.float16 and 0 < (one - other).norm() < 0.02 * other.norm()


def test_a_model_too_wide_for_kernels():
    words = make_model(144).without_kernels()
    assert words is not None and "need a model.d_model of at most 128" in words


def test_weights_are_copied_when_told():
    block, rotary = make(8, 16, 1, "across")
    x = torch.randn(1, 24, 16, device=DEVICE).half()
    kernels = fused.Kernels([block])
    kernels.refresh(torch.float16)
    before = block(x, rotary)
    with torch.no_grad():
        block.update.mlp_out.weight.mul_(2)
    assert torch.equal(block(x, rotary), before)
    kernels.refresh(torch.float16)
    assert not torch.equal(block(x, rotary), before)


def test_dropout_drops_its_share_there_and_back():
    block, _ = make(64, 32, 1, "across", dropout=0.25)
    with torch.no_grad():
        block.update.attention_out.weight.copy_(torch.eye(32))
        block.update.mlp_out.weight.zero_()
    fused.Kernels([block]).refresh(torch.float16)
    assert block.kernels is not None
    tokens = torch.zeros(2, 192, 32, device=DEVICE).half()
    attended = torch.ones(2, 192, 1, 32, device=DEVICE).half().requires_grad_()

    y = block.kernels.update(tokens, attended)  # what is kept of ones, and nothing of the hidden layer
    kept = y > 0
    assert torch.allclose(y[kept], torch.tensor(4 / 3, device=DEVICE).half())
    assert (~kept).float().mean().item() == pytest.approx(0.25, abs=0.01)
    assert (~kept).float().mean(dim=(0, 1)).std() < 0.06 and (~kept).float().mean(dim=(0, 2)).std() < 0.09  # no stripes
    y.backward(torch.ones_like(y))
    assert attended.grad is not None and torch.equal(attended.grad.flatten(2), y.detach())

    assert not torch.equal(block.kernels.update(tokens, attended) > 0, kept)
    block.eval()
    assert bool((block.kernels.update(tokens, attended) == 1).all())
