"""The Triton kernels of attention; `trainer.fused` puts them to use.

Two runs give the same gradients to the bit, which of PyTorch's own fast ways only one can do, at half the speed.

Names: q, k, v, out, dout [B, LENGTH, H, E], the first three with strides of their own; E channels a head, of which
CHANNELS, a power of 2, have a place; OWN tokens a program, STEP of the others at a time.
"""

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def attention_forward(
    q_ptr, k_ptr, v_ptr, out_ptr, lse_ptr, by_batch, by_time, by_head, heads,
    LENGTH: tl.constexpr, E: tl.constexpr, CHANNELS: tl.constexpr, scale: tl.constexpr,
    OWN: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    """Attention of OWN queries of a head, STEP keys at a time (Dao 2023, FlashAttention-2).

    lse [B, H, LENGTH]: log₂ of what the softmax of each query divides by, float32.
    """
    t, batch, head = _place(heads, LENGTH, OWN)
    at = batch * by_batch + head * by_head
    q = _rows(q_ptr + at, t, by_time, LENGTH, E, CHANNELS)
    highest = tl.full((OWN,), float("-inf"), tl.float32)
    total = tl.zeros((OWN,), tl.float32)
    attended = tl.zeros((OWN, CHANNELS), tl.float32)
    for start in range(0, LENGTH, STEP):
        other = start + tl.arange(0, STEP)
        k = _rows(k_ptr + at, other, by_time, LENGTH, E, CHANNELS)
        v = _rows(v_ptr + at, other, by_time, LENGTH, E, CHANNELS)
        score = tl.where((other < LENGTH)[None, :], tl.dot(q, tl.trans(k)) * (scale * LOG2_E), float("-inf"))
        higher = tl.maximum(highest, tl.max(score, 1))
        p = tl.exp2(score - higher[:, None])
        shrunk = tl.exp2(highest - higher)
        total = total * shrunk + tl.sum(p, 1)
        attended = tl.dot(p.to(v.dtype), v, attended * shrunk[:, None])
        highest = higher
    _store_rows(out_ptr, attended / total[:, None], t, batch, head, heads, LENGTH, E, CHANNELS)
    tl.store(lse_ptr + (batch * heads + head) * LENGTH + t, highest + tl.log2(total), mask=t < LENGTH)


@triton.jit
def attention_backward(
    q_ptr, k_ptr, v_ptr, out_ptr, lse_ptr, dout_ptr, dq_ptr, dk_ptr, dv_ptr, by_batch, by_time, by_head, heads,
    LENGTH: tl.constexpr, E: tl.constexpr, CHANNELS: tl.constexpr, scale: tl.constexpr,
    OWN: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    """The gradients of OWN keys and values of a head, then of its OWN queries of the same places.

    The queries' need all shares once more, unless they are all here. In return each sum is one program's, in one order.
    """
    t, batch, head = _place(heads, LENGTH, OWN)
    at = batch * by_batch + head * by_head
    to = (batch * LENGTH * heads + head) * E
    q_ptr, k_ptr, v_ptr = q_ptr + at, k_ptr + at, v_ptr + at
    out_ptr, dout_ptr, lse_ptr = out_ptr + to, dout_ptr + to, lse_ptr + (batch * heads + head) * LENGTH

    k = _rows(k_ptr, t, by_time, LENGTH, E, CHANNELS)
    v = _rows(v_ptr, t, by_time, LENGTH, E, CHANNELS)
    dk = tl.zeros((OWN, CHANNELS), tl.float32)
    dv = tl.zeros((OWN, CHANNELS), tl.float32)
    for start in range(0, LENGTH, STEP):
        other = start + tl.arange(0, STEP)
        q = _rows(q_ptr, other, by_time, LENGTH, E, CHANNELS)
        dout = _rows(dout_ptr, other, heads * E, LENGTH, E, CHANNELS)
        lse, along = _of_softmax(lse_ptr, out_ptr, dout, other, heads, LENGTH, E, CHANNELS)
        p = tl.exp2(tl.dot(k, tl.trans(q)) * (scale * LOG2_E) - lse[None, :])
        dv = tl.dot(p.to(q.dtype), dout, dv)
        ds = (p * (tl.dot(v, tl.trans(dout)) - along[None, :])).to(q.dtype)
        dk = tl.dot(ds, q, dk)
        if STEP >= LENGTH:
            _store_rows(dq_ptr, tl.dot(tl.trans(ds), k) * scale, t, batch, head, heads, LENGTH, E, CHANNELS)
    _store_rows(dk_ptr, dk * scale, t, batch, head, heads, LENGTH, E, CHANNELS)
    _store_rows(dv_ptr, dv, t, batch, head, heads, LENGTH, E, CHANNELS)

    if STEP < LENGTH:
        q_own = _rows(q_ptr, t, by_time, LENGTH, E, CHANNELS)
        dout_own = _rows(dout_ptr, t, heads * E, LENGTH, E, CHANNELS)
        lse_own, along_own = _of_softmax(lse_ptr, out_ptr, dout_own, t, heads, LENGTH, E, CHANNELS)
        dq = tl.zeros((OWN, CHANNELS), tl.float32)
        for start in range(0, LENGTH, STEP):
            other = start + tl.arange(0, STEP)
            k_other = _rows(k_ptr, other, by_time, LENGTH, E, CHANNELS)
            v_other = _rows(v_ptr, other, by_time, LENGTH, E, CHANNELS)
            p_own = tl.exp2(tl.dot(q_own, tl.trans(k_other)) * (scale * LOG2_E) - lse_own[:, None])
            ds_own = p_own * (tl.dot(dout_own, tl.trans(v_other)) - along_own[:, None])
            dq = tl.dot(ds_own.to(k_other.dtype), k_other, dq)
        _store_rows(dq_ptr, dq * scale, t, batch, head, heads, LENGTH, E, CHANNELS)


@triton.jit
def _place(heads, LENGTH: tl.constexpr, OWN: tl.constexpr):
    """A program's tokens, and whose they are: batch and head."""
    blocks = tl.cdiv(LENGTH, OWN)
    sequence = tl.program_id(0) // blocks
    t = tl.program_id(0) % blocks * OWN + tl.arange(0, OWN)
    return t, (sequence // heads).to(tl.int64), sequence % heads


@triton.jit
def _rows(ptr, t, by_time, LENGTH: tl.constexpr, E: tl.constexpr, CHANNELS: tl.constexpr):
    """Tokens t; zeros behind the last one."""
    e = tl.arange(0, CHANNELS)
    return tl.load(ptr + t[:, None] * by_time + e[None, :], mask=(t < LENGTH)[:, None] & (e < E)[None, :], other=0.0)


@triton.jit
def _store_rows(ptr, found, t, batch, head, heads, LENGTH: tl.constexpr, E: tl.constexpr, CHANNELS: tl.constexpr):
    """Tokens t of a contiguous [B, LENGTH, H, E]."""
    e = tl.arange(0, CHANNELS)
    to = ptr + ((batch * LENGTH + t[:, None]) * heads + head) * E + e[None, :]
    tl.store(to, found.to(ptr.dtype.element_ty), mask=(t < LENGTH)[:, None] & (e < E)[None, :])


@triton.jit
def _of_softmax(lse_ptr, out_ptr, dout, t, heads, LENGTH: tl.constexpr, E: tl.constexpr, CHANNELS: tl.constexpr):
    """Of queries t: lse, infinite behind the last one, so that it has no shares; and the sum of dout · out."""
    lse = tl.load(lse_ptr + t, mask=t < LENGTH, other=float("inf"))
    out = _rows(out_ptr, t, heads * E, LENGTH, E, CHANNELS)
    return lse, tl.sum(dout.to(tl.float32) * out, 1)
