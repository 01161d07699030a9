"""Attention, the plain form: causal over a whole sequence, and over a KV cache.

Scale 1/√H and softmax in float32 (float64 in the float64 mode), whatever the dtype of q, k and v. Shape letters as in
`jaxlm.model`; BK is batch and key/value heads as one axis. `jaxlm.fast.attention` computes the same in blocks of
queries.

Keys and values are stored head by head: with B and K as separate axes, XLA on a CPU copied the whole cache for each
decoded token.
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxlm.dropout import Key, dropout
from jaxlm.fast.linear import accumulated, matmul
from jaxlm.scales import softcapped

__all__ = ["attention", "by_head", "causal_attention", "causal_mask"]


def by_head(x: Float[Array, "B S K H"]) -> Float[Array, "BK S H"]:
    """Return keys or values with batch and heads as one leading axis."""
    return x.swapaxes(1, 2).reshape(-1, x.shape[1], x.shape[3])


def causal_mask(
    positions: Int[Array, "*B T"],
    size: int,
    pads: Int[Array, " B"] | None = None,
    documents: Int[Array, "B _"] | None = None,
    window: int = 0,
) -> Bool[Array, "#B T S"]:
    """Return which of the first `size` key positions each query may attend to: its own and those before it.

    Args:
        positions: the queries' own positions among the keys, which are counted from 0: those of each sequence, or T for
            all.
        size: number of key positions, S.
        pads: positions of left padding in each sequence, which no query attends to; None where there are none.
        documents: position at which each token's document begins; None where a sequence is one document.
        window: number of key positions that a query attends to, with its own the last; 0 for all.
    """
    keys, positions = jnp.arange(size)[None, None], jnp.atleast_2d(positions)
    mask = keys <= positions[:, :, None]
    if window:
        mask &= keys > positions[:, :, None] - window
    if documents is not None:
        mask = mask & (jnp.take_along_axis(documents, positions, axis=1)[:, :, None] == documents[:, None, :size])
    return mask if pads is None else mask & (keys >= pads[:, None, None])


def attention(
    q: Float[Array, "B T N H"],
    k: Float[Array, "BK S H"],
    v: Float[Array, "BK S W"],
    mask: Bool[Array, "#B T S"],
    factors: Float[Array, "B N T S"] | None = None,
    softcap: float = 0.0,
) -> Float[Array, "B T N W"]:
    """Return softmax(q kᵀ / √H) v over the keys that the mask allows (Vaswani et al. 2017, arXiv:1706.03762).

    Args:
        q: queries; query head n attends to key/value head n // G.
        k: keys, from `by_head`.
        v: values, from `by_head`, of any width W.
        mask: True where a query may attend to a key.
        factors: multiplied into the attention weights, such as a scaled dropout mask; None leaves them as they are.
        softcap: of the scores, as in `model.attention_softcap`; 0 for none.
    """
    batch, length, n_heads, head_dim = q.shape
    groups = batch * n_heads // len(k)
    accumulation = jnp.promote_types(q.dtype, jnp.float32)
    # The G query heads of a key/value head become G · T rows of one matmul, so that no key or value is repeated.
    grouped = q.reshape(batch, length, -1, groups, head_dim).transpose(0, 2, 3, 1, 4)
    grouped = grouped.reshape(len(k), groups * length, head_dim)
    scores = accumulated(grouped, k.swapaxes(1, 2)).reshape(batch, n_heads, length, -1)
    scores = softcapped(softcap)(scores / math.sqrt(head_dim))
    scores = jnp.where(mask[:, None], scores, jnp.finfo(accumulation).min)  # −∞ would make NaN of a fully masked row
    weights = jax.nn.softmax(scores, axis=-1)
    if factors is not None:
        weights = weights * factors.astype(accumulation)
    weights = weights.astype(v.dtype)
    mixed = matmul(weights.reshape(len(k), groups * length, -1), v)
    return mixed.reshape(batch, n_heads, length, -1).swapaxes(1, 2)


def causal_attention(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B T K H"],
    v: Float[Array, "B T K H"],
    rate: float = 0.0,
    key: Key = None,
    documents: Int[Array, "B T"] | None = None,
    window: int = 0,
    softcap: float = 0.0,
) -> Float[Array, "B T N H"]:
    """Return the attention of every position to itself and those before it, in its document.

    Args:
        q: queries.
        k: keys.
        v: values.
        rate: fraction of the attention weights to drop where there is a key.
        key: random key of the dropout mask; None switches dropout off.
        documents: position at which each token's document begins; None where a sequence is one document.
        window: number of positions that each attends to, with its own the last; 0 for all.
        softcap: of the scores, as in `model.attention_softcap`; 0 for none.
    """
    batch, length, n_heads, _ = q.shape
    factors = None if key is None else dropout(jnp.ones((batch, n_heads, length, length)), rate, key)
    mask = causal_mask(jnp.arange(length), length, documents=documents, window=window)
    return attention(q, by_head(k), by_head(v), mask, factors, softcap)
