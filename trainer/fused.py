"""Transformer blocks by Triton kernels: what stands before attention, attention, and what stands behind it.

What lies within such a part (norms, queries before they are turned, the hidden layer) never travels through the GPU's
memory in the forward pass. Backward it is computed again from the tokens; only what the products for the weights'
gradients need is written. The same functions as `layers.Queries`, `layers.attention` and `layers.Update`.

Shape suffixes: B batch, T tokens, N all tokens of a batch, D d_model, H heads, E channels per head, P hidden width.
"""

from collections.abc import Iterable
from typing import Any

import torch
import triton
from torch import Tensor
from torch.autograd.function import once_differentiable

from trainer import attention_kernels, kernels
from trainer.layers import KERNEL_CHUNK, NORM_EPS, Block

_ROWS = 64  # tokens a program
_OWN = 64  # tokens a program of attention


class Kernels:
    """What the kernels of a model's blocks share: copies of all weights in half precision, made at once."""

    def __init__(self, blocks: Iterable[Block]) -> None:
        self._weights: list[Tensor] = []
        self._copies: list[Tensor] = []
        for block in blocks:
            block.kernels = FusedBlock(block, self._copies, len(self._weights))
            self._weights += block.parameters()

    def refresh(self, dtype: torch.dtype) -> None:
        """Copy the weights as they are now."""
        if not self._copies or self._copies[0].dtype != dtype:
            self._copies[:] = [torch.empty_like(weight, dtype=dtype) for weight in self._weights]
        with torch.no_grad():
            torch._foreach_copy_(self._copies, self._weights)


class FusedBlock:
    """The parts of a block as functions of tokens [B, T, D] in half precision."""

    def __init__(self, block: Block, copies: list[Tensor], first: int) -> None:
        self._queries, self._update = block.queries, block.update
        self._copies, self._first = copies, first

    def queries(self, tokens_BTD: Tensor, rotary_2TE: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Queries, keys and values [B, T, H, E], and the tokens, for `update`: so both gradients meet in one kernel."""
        half = self._queries
        found: tuple[Tensor, Tensor, Tensor, Tensor] = _Queries.apply(  # type: ignore[no-untyped-call]
            tokens_BTD, half.qkv.weight, self._copies[self._first], rotary_2TE, half.n_heads
        )
        return found

    def attention(self, q_BTHE: Tensor, k_BTHE: Tensor, v_BTHE: Tensor) -> Tensor:
        """Scaled dot-product attention over T: [B, T, H, E]."""
        attended: Tensor = _Attention.apply(q_BTHE, k_BTHE, v_BTHE)  # type: ignore[no-untyped-call]
        return attended

    def update(self, tokens_BTD: Tensor, attended_BTHE: Tensor) -> Tensor:
        """Both residual branches: [B, T, D]."""
        half = self._update
        weights = half.attention_out.weight, half.mlp_in.weight, half.mlp_out.weight
        copies = self._copies[self._first + 1 : self._first + 4]
        dropped = half.dropout.p if half.training else 0.0
        updated: Tensor = _Update.apply(  # type: ignore[no-untyped-call]
            tokens_BTD, attended_BTHE, *weights, *copies, dropped
        )
        return updated


class _Queries(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, tokens_BTD: Tensor, weight: Tensor, copy: Tensor, rotary_2TE: Tensor, n_heads: int
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        batch, length, width = tokens_BTD.shape
        qkv = tokens_BTD.new_empty(batch, length, 3, n_heads, width // n_heads)
        kernels.queries_forward[_grid(batch * length)](
            tokens_BTD, copy, rotary_2TE, qkv, batch * length, length, E=width // n_heads, **_sizes(width)
        )
        ctx.save_for_backward(tokens_BTD, copy, rotary_2TE)
        q, k, v = qkv.unbind(2)
        return q, k, v, tokens_BTD.view_as(tokens_BTD)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dq: Tensor, dk: Tensor, dv: Tensor, dres: Tensor) -> tuple[Tensor | None, ...]:
        tokens_BTD, weight, rotary_2TE = ctx.saved_tensors
        batch, length, width = tokens_BTD.shape
        n_heads = dq.shape[2]
        dqkv, normed = tokens_BTD.new_empty(batch * length, 3 * width), torch.empty_like(tokens_BTD)
        dx = torch.empty_like(tokens_BTD)
        strides = [size for one in (dq, dk, dv) for size in one.stride()[:3]]
        assert dq.stride(3) == dk.stride(3) == dv.stride(3) == 1
        kernels.queries_backward[_grid(batch * length)](
            tokens_BTD, weight, rotary_2TE, dq, dk, dv, dres.contiguous(), dqkv, normed, dx,
            *strides, batch * length, length, E=width // n_heads, **_sizes(width),
        )  # fmt: skip
        return dx, _product(dqkv, normed), None, None, None


class _Update(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, tokens_BTD: Tensor, attended_BTHE: Tensor, out: Tensor, up: Tensor, down: Tensor,
        out_copy: Tensor, up_copy: Tensor, down_copy: Tensor, dropped: float,
    ) -> Tensor:  # fmt: skip
        width, rows = tokens_BTD.shape[2], tokens_BTD.shape[0] * tokens_BTD.shape[1]
        weights = out_copy, up_copy, down_copy
        attended = attended_BTHE.reshape(rows, width)
        seed = torch.randint(2**31, (1,), dtype=torch.int32, device=tokens_BTD.device) if dropped else None
        between, y = torch.empty_like(tokens_BTD), torch.empty_like(tokens_BTD)
        kernels.update_forward[_grid(rows)](
            tokens_BTD, attended, *weights, between, y, seed,
            rows, dropped, P=len(up), DROPPED=dropped > 0, CHUNK=KERNEL_CHUNK, **_sizes(width),
        )  # fmt: skip
        ctx.save_for_backward(between, attended, seed, *weights)
        ctx.dropped, ctx.shape = dropped, attended_BTHE.shape
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        between, attended, seed, *weights = ctx.saved_tensors
        rows, width = attended.shape
        hidden = len(weights[1])
        dy = dy.contiguous()
        dhidden, activated = (between.new_empty(rows, hidden) for _ in range(2))
        normed, dbetween, dattended = (torch.empty_like(attended) for _ in range(3))
        dout, ddown = dbetween, dy.view_as(attended)
        if ctx.dropped:  # what goes through it is another gradient than what goes past it
            dout, ddown = (torch.empty_like(attended) for _ in range(2))
        kernels.update_backward[_grid(rows)](
            dy, between, *weights, dhidden, activated, normed, dbetween, dattended, dout, ddown, seed,
            rows, ctx.dropped, P=hidden, DROPPED=ctx.dropped > 0, CHUNK=KERNEL_CHUNK, **_sizes(width),
        )  # fmt: skip
        gradients = _product(dout, attended), _product(dhidden, normed), _product(ddown, activated)
        return dbetween.view_as(dy), dattended.view(ctx.shape), *gradients, None, None, None, None


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q_BTHE: Tensor, k_BTHE: Tensor, v_BTHE: Tensor) -> Tensor:
        batch, length, heads, _ = q_BTHE.shape
        out, lse = q_BTHE.new_empty(q_BTHE.shape), q_BTHE.new_empty(batch, heads, length, dtype=torch.float32)
        assert q_BTHE.stride() == k_BTHE.stride() == v_BTHE.stride() and q_BTHE.stride(3) == 1
        grid, sizes = _attention_sizes(q_BTHE, step=_OWN)
        attention_kernels.attention_forward[grid](
            q_BTHE, k_BTHE, v_BTHE, out, lse, *q_BTHE.stride()[:3], heads, **sizes
        )
        ctx.save_for_backward(q_BTHE, k_BTHE, v_BTHE, out, lse)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v, out, lse = ctx.saved_tensors
        dq, dk, dv = (q.new_empty(q.shape) for _ in range(3))
        grid, sizes = _attention_sizes(q, step=_OWN if q.shape[1] <= _OWN else _OWN // 2)
        attention_kernels.attention_backward[grid](
            q, k, v, out, lse, dout.contiguous(), dq, dk, dv, *q.stride()[:3], q.shape[2], **sizes
        )
        return dq, dk, dv


def _product(gradient_NO: Tensor, of_NI: Tensor) -> Tensor:
    """The gradient of a weight: float32 [O, I]."""
    columns = of_NI.reshape(len(gradient_NO), -1)
    if columns.is_cpu:  # where Triton interprets
        return (gradient_NO.t() @ columns).float()
    return torch.mm(gradient_NO.t(), columns, out_dtype=torch.float32)


def _grid(rows: int) -> tuple[int]:
    return (triton.cdiv(rows, _ROWS),)


def _sizes(width: int) -> dict[str, Any]:
    return {"D": width, "eps": NORM_EPS, "ROWS": _ROWS, "BLOCK_D": _block(width), "num_warps": 4, "num_stages": 3}


def _attention_sizes(q_BTHE: Tensor, step: int) -> tuple[tuple[int], dict[str, Any]]:
    batch, length, heads, width = q_BTHE.shape
    own, channels = min(_block(length), _OWN), _block(width)
    sizes = {
        "LENGTH": length,
        "E": width,
        "CHANNELS": channels,
        "scale": width**-0.5,
        "OWN": own,
        "STEP": min(own, step),
    }
    stages = 3 if channels <= 64 else 2  # more do not fit every GPU's multiprocessors
    return (batch * heads * triton.cdiv(length, own),), {**sizes, "num_warps": 4, "num_stages": stages}


def _block(size: int) -> int:
    return max(int(triton.next_power_of_2(size)), 16)  # what products of tiles can be made of
