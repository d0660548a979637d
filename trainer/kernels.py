"""The Triton kernels of a transformer block but for attention; `trainer.fused` puts them to use.

A program holds some rows of tokens and goes through all products with them. Products are of half-precision tiles with
float32 sums. Weights are [out, in], so they are read across where they stand on the right.

Names: x what came into the block, t between its two branches, n normalised, d… the gradient of; D d_model, E channels a
head, P hidden width; BLOCK_D is the power of 2 that holds D.
"""

import triton
import triton.language as tl


@triton.jit
def _normalise(x, inside, D: tl.constexpr, eps: tl.constexpr):
    """Rows with mean 0 and variance 1, float32, and 1 / deviation."""
    mean = tl.sum(x, 1) / D
    centred = tl.where(inside, x - mean[:, None], 0.0)
    rstd = tl.rsqrt(tl.sum(centred * centred, 1) / D + eps)
    return centred * rstd[:, None], rstd


@triton.jit
def _normalise_backward(dn, n, rstd, inside, D: tl.constexpr):
    """The gradient of what was normalised to n."""
    along = tl.sum(dn * n, 1) / D
    mean = tl.sum(dn, 1) / D
    return tl.where(inside, (dn - mean[:, None] - n * along[:, None]) * rstd[:, None], 0.0)


@triton.jit
def _keep(seed, offset, dropped, branch: tl.constexpr):
    """1 / (1 − dropped) where a value is kept and 0 where not: hashed from its place (Wellons 2018, lowbias32)."""
    bits = offset.to(tl.uint32) * 2 + branch
    bits ^= seed.to(tl.uint32) * 0x9E3779B9
    bits ^= bits >> 16
    bits *= 0x7FEB352D
    bits ^= bits >> 15
    bits *= 0x846CA68B
    bits ^= bits >> 16
    return tl.where((bits >> 8).to(tl.float32) * (1.0 / 16777216) < dropped, 0.0, 1 / (1 - dropped))


@triton.jit
def _sigmoid_of_gelu(h):
    """GELU is h times this, in the approximation by tanh (Hendrycks and Gimpel 2016): ½(1 + tanh u) = 1/(1 + e^−2u)."""
    return 1 / (1 + tl.exp2(h * (-2.302208198 - 0.1029432397 * h * h)))  # −2 √(2/π) log₂e, and · 0.044715


@triton.jit
def _angles(rotary_ptr, row, rows, length, D: tl.constexpr, E: tl.constexpr, BLOCK_D: tl.constexpr):
    """Cosines and sines for the channel pairs of all heads."""
    pair = tl.arange(0, BLOCK_D // 2)[None, :]
    at = (row % length)[:, None] * (E // 2) + pair % (E // 2)
    kept = (row < rows)[:, None] & (pair < D // 2)
    cos = tl.load(rotary_ptr + at, mask=kept, other=0.0)
    return cos, tl.load(rotary_ptr + length * (E // 2) + at, mask=kept, other=0.0)


@triton.jit
def queries_forward(
    x_ptr, w_ptr, rotary_ptr, qkv_ptr, rows, length,
    D: tl.constexpr, E: tl.constexpr, eps: tl.constexpr,
    ROWS: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Normalise rows x [N, D], make queries, keys and values [N, 3, D], and turn the first two by their angles."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    d = tl.arange(0, BLOCK_D)
    inside = (row < rows)[:, None] & (d < D)[None, :]
    known = (d < D)[:, None] & (d < D)[None, :]
    row64 = row.to(tl.int64)
    x = tl.load(x_ptr + row64[:, None] * D + d[None, :], mask=inside, other=0.0)
    n = _normalise(x.to(tl.float32), inside, D, eps)[0].to(x.dtype)

    cos, sin = _angles(rotary_ptr, row, rows, length, D, E, BLOCK_D)
    for part in tl.static_range(3):
        weight = tl.load(w_ptr + (part * D + d[None, :]) * D + d[:, None], mask=known, other=0.0)
        found = tl.dot(n, weight)
        if part < 2:
            a, b = tl.split(found.reshape(ROWS, BLOCK_D // 2, 2))
            found = tl.join(a * cos - b * sin, b * cos + a * sin).reshape(ROWS, BLOCK_D)
        tl.store(qkv_ptr + row64[:, None] * (3 * D) + part * D + d[None, :], found.to(x.dtype), mask=inside)


@triton.jit
def queries_backward(
    x_ptr, w_ptr, rotary_ptr, dq_ptr, dk_ptr, dv_ptr, dres_ptr, dqkv_ptr, n_ptr, dx_ptr,
    q_b, q_t, q_h, k_b, k_t, k_h, v_b, v_t, v_h, rows, length,
    D: tl.constexpr, E: tl.constexpr, eps: tl.constexpr,
    ROWS: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Turn the gradients of q and k [B, T, H, E] back; give dqkv [N, 3 D], n [N, D], and dx with the residual's."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    d = tl.arange(0, BLOCK_D)
    inside = (row < rows)[:, None] & (d < D)[None, :]
    known = (d < D)[:, None] & (d < D)[None, :]
    row64 = row.to(tl.int64)
    at = row64[:, None] * D + d[None, :]
    cos, sin = _angles(rotary_ptr, row, rows, length, D, E, BLOCK_D)
    batch, time = (row64 // length)[:, None], (row64 % length)[:, None]
    head, channel = (d // E)[None, :], (d % E)[None, :]
    dn = tl.zeros((ROWS, BLOCK_D), tl.float32)
    for part in tl.static_range(3):
        if part == 0:
            source = dq_ptr + batch * q_b + time * q_t + head * q_h + channel
        elif part == 1:
            source = dk_ptr + batch * k_b + time * k_t + head * k_h + channel
        else:
            source = dv_ptr + batch * v_b + time * v_t + head * v_h + channel
        found = tl.load(source, mask=inside, other=0.0)
        if part < 2:
            a, b = tl.split(found.reshape(ROWS, BLOCK_D // 2, 2))
            found = tl.join(a * cos + b * sin, b * cos - a * sin).reshape(ROWS, BLOCK_D).to(found.dtype)
        tl.store(dqkv_ptr + row64[:, None] * (3 * D) + part * D + d[None, :], found, mask=inside)
        weight = tl.load(w_ptr + (part * D + d[:, None]) * D + d[None, :], mask=known, other=0.0)
        dn = tl.dot(found, weight, dn)
    x = tl.load(x_ptr + at, mask=inside, other=0.0)
    n, rstd = _normalise(x.to(tl.float32), inside, D, eps)
    dx = tl.load(dres_ptr + at, mask=inside, other=0.0).to(tl.float32) + _normalise_backward(dn, n, rstd, inside, D)
    tl.store(n_ptr + at, n.to(x.dtype), mask=inside)
    tl.store(dx_ptr + at, dx.to(x.dtype), mask=inside)


@triton.jit
def update_forward(
    x_ptr, attended_ptr, out_ptr, up_ptr, down_ptr, between_ptr, y_ptr, seed_ptr, rows, dropped,
    D: tl.constexpr, P: tl.constexpr, eps: tl.constexpr, DROPPED: tl.constexpr,
    ROWS: tl.constexpr, BLOCK_D: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """t = x + attended · out, y = t + gelu(norm(t) · up) · down, each branch with dropout: [N, D]."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    d = tl.arange(0, BLOCK_D)
    real = d < D
    inside = (row < rows)[:, None] & real[None, :]
    at = row.to(tl.int64)[:, None] * D + d[None, :]
    attended = tl.load(attended_ptr + at, mask=inside, other=0.0)
    # weights are [out, in]: read across for products with their transpose
    out = tl.load(out_ptr + d[None, :] * D + d[:, None], mask=real[:, None] & real[None, :], other=0.0)
    branch = tl.dot(attended, out)
    if DROPPED:
        branch *= _keep(tl.load(seed_ptr), at, dropped, 0)
    t = (tl.load(x_ptr + at, mask=inside, other=0.0) + branch).to(attended.dtype)
    tl.store(between_ptr + at, t, mask=inside)
    n = _normalise(t.to(tl.float32), inside, D, eps)[0].to(t.dtype)
    branch = tl.zeros((ROWS, BLOCK_D), tl.float32)
    for chunk in range(0, P, CHUNK):
        p = chunk + tl.arange(0, CHUNK)
        h = tl.dot(n, tl.load(up_ptr + p[None, :] * D + d[:, None], mask=real[:, None], other=0.0))
        g = (h * _sigmoid_of_gelu(h)).to(t.dtype)
        branch = tl.dot(g, tl.load(down_ptr + d[None, :] * P + p[:, None], mask=real[None, :], other=0.0), branch)
    if DROPPED:
        branch *= _keep(tl.load(seed_ptr), at, dropped, 1)
    tl.store(y_ptr + at, (t + branch).to(t.dtype), mask=inside)


@triton.jit
def update_backward(
    dy_ptr, between_ptr, out_ptr, up_ptr, down_ptr,
    dhidden_ptr, activated_ptr, n_ptr, dbetween_ptr, dattended_ptr, dout_ptr, ddown_ptr, seed_ptr, rows, dropped,
    D: tl.constexpr, P: tl.constexpr, eps: tl.constexpr, DROPPED: tl.constexpr,
    ROWS: tl.constexpr, BLOCK_D: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """The gradients of `update_forward`, from dy and t; what those of the weights are products of is written too."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    d = tl.arange(0, BLOCK_D)
    real = d < D
    inside = (row < rows)[:, None] & real[None, :]
    row64 = row.to(tl.int64)
    at = row64[:, None] * D + d[None, :]
    t = tl.load(between_ptr + at, mask=inside, other=0.0)
    n32, rstd = _normalise(t.to(tl.float32), inside, D, eps)
    n = n32.to(t.dtype)
    tl.store(n_ptr + at, n, mask=inside)
    dy = tl.load(dy_ptr + at, mask=inside, other=0.0)
    ddown = dy
    if DROPPED:
        ddown = (dy * _keep(tl.load(seed_ptr), at, dropped, 1)).to(t.dtype)
        tl.store(ddown_ptr + at, ddown, mask=inside)
    dn = tl.zeros((ROWS, BLOCK_D), tl.float32)
    for chunk in range(0, P, CHUNK):
        p = chunk + tl.arange(0, CHUNK)
        up = tl.load(up_ptr + p[:, None] * D + d[None, :], mask=real[None, :], other=0.0)
        h = tl.dot(n, tl.trans(up))
        s = _sigmoid_of_gelu(h)
        dg = tl.dot(ddown, tl.load(down_ptr + d[:, None] * P + p[None, :], mask=real[:, None], other=0.0))
        # d(h·s)/dh = s + h · s (1 − s) · 2 √(2/π) (1 + 3 · 0.044715 h²)
        dh = (dg * (s + h * s * (1 - s) * (1.5957691216 + 0.2140643468 * h * h))).to(t.dtype)
        to = row64[:, None] * P + p[None, :]
        tl.store(activated_ptr + to, (h * s).to(t.dtype), mask=(row < rows)[:, None])
        tl.store(dhidden_ptr + to, dh, mask=(row < rows)[:, None])
        dn = tl.dot(dh, up, dn)
    # normalised anew, so that it need not be kept through the loop
    n32, rstd = _normalise(tl.load(between_ptr + at, mask=inside, other=0.0).to(tl.float32), inside, D, eps)
    dt = tl.load(dy_ptr + at, mask=inside, other=0.0) + _normalise_backward(dn, n32, rstd, inside, D)
    half = dt.to(t.dtype)
    tl.store(dbetween_ptr + at, half, mask=inside)
    if DROPPED:
        half = (dt * _keep(tl.load(seed_ptr), at, dropped, 0)).to(t.dtype)
        tl.store(dout_ptr + at, half, mask=inside)
    out = tl.load(out_ptr + d[:, None] * D + d[None, :], mask=real[:, None] & real[None, :], other=0.0)
    tl.store(dattended_ptr + at, tl.dot(half, out).to(t.dtype), mask=inside)
