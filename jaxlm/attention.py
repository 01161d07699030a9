"""The mixing of values by attention weights: causal over a whole sequence, and over a cache of earlier columns.

Scale 1/√H and softmax in float32 (float64 in the float64 mode), whatever the type of q, k and v. Shape letters as in
`jaxlm.model`.
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

__all__ = ["attention", "cached_attention", "causal_attention"]

QUERY_BLOCK = 128
"""Queries per block on a CPU: small enough to skip most of the masked half, large enough for fast products."""


def attention(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B S K H"],
    v: Float[Array, "B S K H"],
    mask: Bool[Array, "#B T S"],
) -> Float[Array, "B T N H"]:
    """softmax(q kᵀ / √H) v over the keys that the mask allows (Vaswani et al. 2017, arXiv:1706.03762)."""
    batch, length, _, head_dim = q.shape
    grouped = q.reshape(batch, length, k.shape[2], -1, head_dim)
    wide = jnp.promote_types(q.dtype, jnp.float32)
    scores = jnp.einsum("btkgh,bskh->bkgts", grouped, k, preferred_element_type=wide) / math.sqrt(head_dim)
    scores = jnp.where(mask[:, None, None], scores, jnp.finfo(wide).min)
    weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
    return jnp.einsum("bkgts,bskh->btkgh", weights, v).reshape(q.shape)


def causal_attention(
    q: Float[Array, "B T N H"], k: Float[Array, "B T K H"], v: Float[Array, "B T K H"]
) -> Float[Array, "B T N H"]:
    """Attention of every position to itself and those before it."""
    if jax.default_backend() == "gpu" and q.dtype in (jnp.bfloat16, jnp.float16):
        return jax.nn.dot_product_attention(q, k, v, is_causal=True, implementation="cudnn")
    length = q.shape[1]
    blocks = []
    for start in range(0, length, QUERY_BLOCK):
        end = min(start + QUERY_BLOCK, length)
        mask = jnp.arange(start, end)[:, None] >= jnp.arange(end)[None, :]
        blocks.append(attention(q[:, start:end], k[:, :end], v[:, :end], mask[None]))
    return jnp.concatenate(blocks, axis=1)


def cached_attention(
    q: Float[Array, "B T N H"],
    keys: Float[Array, "B S K H"],
    values: Float[Array, "B S K H"],
    columns: Int[Array, " T"],
    pads: Int[Array, " B"],
) -> Float[Array, "B T N H"]:
    """Attention of the queries in `columns` to the cache's columns from each row's padding up to their own."""
    seen = jnp.arange(keys.shape[1])
    mask = (seen[None, None] <= columns[None, :, None]) & (seen[None, None] >= pads[:, None, None])
    return attention(q, keys, values, mask)
