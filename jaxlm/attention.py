"""The mixing of values by attention weights: causal over a whole sequence, and over a cache of earlier columns.

Scale 1/√H and softmax in float32 (float64 in the float64 mode), whatever the type of q, k and v. Shape letters as in
`jaxlm.model`; BK is batch and key/value heads as one axis.

Keys and values lie head by head: with B and K apart, XLA on a CPU copied the whole cache for each decoded token.
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxlm.dropout import Key, dropout
from jaxlm.linear import matmul

__all__ = ["attention", "by_head", "cache_mask", "causal_attention"]

QUERY_BLOCK = 128
"""Least queries per block: small enough to skip most of the masked half, large enough for fast products."""
MOST_BLOCKS = 8
"""A longer sequence gets larger blocks, not more: each is compiled by itself."""


def by_head(x: Float[Array, "B S K H"]) -> Float[Array, "BK S H"]:
    """Keys or values with batch and heads as one leading axis."""
    return x.swapaxes(1, 2).reshape(-1, x.shape[1], x.shape[3])


def attention(
    q: Float[Array, "B T N H"],
    k: Float[Array, "BK S H"],
    v: Float[Array, "BK S H"],
    mask: Bool[Array, "#B T S"],
    factors: Float[Array, "B N T S"] | None = None,
) -> Float[Array, "B T N H"]:
    """softmax(q kᵀ / √H) v over the keys that the mask allows (Vaswani et al. 2017, arXiv:1706.03762).

    With factors, such as dropout's, the weights are multiplied by them.
    """
    batch, length, n_heads, head_dim = q.shape
    groups = batch * n_heads // len(k)
    wide = jnp.promote_types(q.dtype, jnp.float32)
    grouped = q.reshape(batch, length, -1, groups, head_dim).transpose(0, 2, 3, 1, 4)
    grouped = grouped.reshape(len(k), groups * length, head_dim)
    scores = jnp.matmul(grouped, k.swapaxes(1, 2), preferred_element_type=wide)
    scores = scores.reshape(batch, n_heads, length, -1) / math.sqrt(head_dim)
    scores = jnp.where(mask[:, None], scores, jnp.finfo(wide).min)
    weights = jax.nn.softmax(scores, axis=-1)
    if factors is not None:
        weights = weights * factors.astype(wide)
    weights = weights.astype(v.dtype)
    mixed = matmul(weights.reshape(len(k), groups * length, -1), v)
    return mixed.reshape(batch, n_heads, length, head_dim).swapaxes(1, 2)


def causal_attention(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B T K H"],
    v: Float[Array, "B T K H"],
    rate: float = 0.0,
    key: Key = None,
) -> Float[Array, "B T N H"]:
    """Attention of every position to itself and those before it; a key drops a share `rate` of its weights.

    cuDNN's flash attention where it serves (NVIDIA, 16 bits, its head widths, nothing dropped); elsewhere blocks of
    queries, each of which sees the keys up to its own end.
    """
    batch, length, n_heads, head_dim = q.shape
    served = q.dtype.itemsize == 2 and head_dim % 8 == 0 and head_dim <= 128 and key is None
    if served and jax.default_backend() == "gpu":
        return jax.nn.dot_product_attention(q, k, v, is_causal=True, implementation="cudnn")
    k, v = by_head(k), by_head(v)
    # Drawn for the whole square, so that no mask depends on how the queries are cut.
    factors = None if key is None else dropout(jnp.ones((batch, n_heads, length, length)), rate, key)
    size = max(QUERY_BLOCK, -(-length // MOST_BLOCKS))
    blocks = []
    for start in range(0, length, size):
        end = min(start + size, length)
        seen = q[:, start:end], k[:, :end], v[:, :end]
        if factors is None and size > QUERY_BLOCK:
            blocks.append(attention_in_turns(*seen, start))
            continue
        mask = jnp.arange(start, end)[:, None] >= jnp.arange(end)[None, :]
        thinned = None if factors is None else factors[:, :, start:end, :end]
        blocks.append(attention(*seen, mask[None], thinned))
    return jnp.concatenate(blocks, axis=1)


def attention_in_turns(
    q: Float[Array, "B T N H"], k: Float[Array, "BK S H"], v: Float[Array, "BK S H"], start: int
) -> Float[Array, "B T N H"]:
    """Causal attention of queries from position `start` on, a few at a time, whose weights are made anew for gradients.

    So no more weights exist at once than those of QUERY_BLOCK queries, and memory grows with the length alone.
    """
    length = q.shape[1]
    q = jnp.pad(q, ((0, 0), (0, -length % QUERY_BLOCK), (0, 0), (0, 0)))
    parts = q.reshape(len(q), -1, QUERY_BLOCK, *q.shape[2:]).swapaxes(0, 1)

    @jax.checkpoint
    def one(part: tuple[Array, Array]) -> Array:
        positions = part[0] + jnp.arange(QUERY_BLOCK)
        mask = positions[:, None] >= jnp.arange(v.shape[1])[None, :]
        return attention(part[1], k, v, mask[None])

    mixed = jax.lax.map(one, (start + QUERY_BLOCK * jnp.arange(len(parts)), parts))
    return mixed.swapaxes(0, 1).reshape(q.shape)[:, :length]


def cache_mask(columns: Int[Array, " T"], pads: Int[Array, " B"], size: int) -> Bool[Array, "B T S"]:
    """Which of a cache's first `size` columns each query sees: from its row's padding up to its own column."""
    seen = jnp.arange(size)
    return (seen[None, None] <= columns[None, :, None]) & (seen[None, None] >= pads[:, None, None])
