"""`jaxlm.attention.causal_attention` in blocks of queries, each over the keys up to its own end, or by a kernel.

A causal mask hides half of a square of scores. In blocks, most of that half is never computed, and since a CPU's cache
holds the scores of a block, the passes of the softmax over them are fast. On an accelerator without a kernel that
serves, blocks are recomputed in the backward pass, so that no weights are kept for it.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxlm.attention import attention, by_head, causal_mask
from jaxlm.attention import causal_attention as plain_attention
from jaxlm.dropout import Key, dropout
from jaxlm.fast.kernels import kernel_attention
from jaxlm.sharding import platform

__all__ = ["causal_attention"]

QUERY_BLOCK = 128
"""Minimum number of queries in a block: few enough to skip most of the masked half, enough for fast matmuls."""
MAX_BLOCKS = 8
"""A longer sequence gets larger blocks, not more: each is compiled by itself."""
MAX_WINDOW_BLOCK = 1024
"""Maximum number of queries in a block of `windowed_attention`, which has as many as the window otherwise."""


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

    By an accelerator's kernel where one applies (`jaxlm.fast.kernels`), never with dropout; elsewhere by the plain
    form, for a longer sequence in blocks.

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
    mixed = None if key is not None else kernel_attention(q, k, v, documents, window, softcap)
    if mixed is not None:
        return mixed
    if length <= QUERY_BLOCK:
        return plain_attention(q, k, v, rate, key, documents, window, softcap)
    k, v = by_head(k), by_head(v)
    if window and key is None and length > MAX_BLOCKS * QUERY_BLOCK:
        return windowed_attention(q, k, v, documents, window, softcap)
    # Drawn for the whole square, so that no mask depends on how the queries are cut.
    factors = None if key is None else dropout(jnp.ones((batch, n_heads, length, length)), rate, key)
    size = max(QUERY_BLOCK, -(-length // MAX_BLOCKS))
    recomputed = factors is None and (size > QUERY_BLOCK or platform() in ("gpu", "tpu"))
    blocks = []
    for start in range(0, length, size):
        end = min(start + size, length)
        first = max(0, start + 1 - window) if window else 0  # the first key that a query of the block attends to
        visible = q[:, start:end], k[:, first:end], v[:, first:end]
        if recomputed:
            own = None if documents is None else documents[:, first:]
            blocks.append(attention_in_turns(*visible, start - first, own, window, softcap))
            continue
        own = None if documents is None else documents[:, first:end]
        mask = causal_mask(jnp.arange(start, end) - first, end - first, documents=own, window=window)
        dropped = None if factors is None else factors[:, :, start:end, first:end]
        blocks.append(attention(*visible, mask, dropped, softcap))
    return jnp.concatenate(blocks, axis=1)


def attention_in_turns(
    q: Float[Array, "B T N H"],
    k: Float[Array, "BK S H"],
    v: Float[Array, "BK S H"],
    start: int,
    documents: Int[Array, "B _"] | None = None,
    window: int = 0,
    softcap: float = 0.0,
) -> Float[Array, "B T N H"]:
    """Return the causal attention of a large block, QUERY_BLOCK queries at a time, recomputed in the backward pass.

    `lax.map` compiles one piece for all, and `jax.checkpoint` keeps no attention weights for the backward pass: no more
    of them exist at once than those of QUERY_BLOCK queries, so memory grows with the length alone.

    Args:
        q: queries of the block.
        k: keys up to the block's end, from `by_head`.
        v: values up to the block's end, from `by_head`.
        start: position of the first query among the keys.
        documents: position at which each token's document begins; None where a sequence is one document.
        window: number of positions that each attends to, with its own the last; 0 for all.
        softcap: of the scores, as in `model.attention_softcap`; 0 for none.
    """
    length = q.shape[1]
    q = jnp.pad(q, ((0, 0), (0, -length % QUERY_BLOCK), (0, 0), (0, 0)))  # to whole blocks; cut off again below
    parts = q.reshape(len(q), -1, QUERY_BLOCK, *q.shape[2:]).swapaxes(0, 1)

    @jax.checkpoint
    def one(part: tuple[Array, Array]) -> Array:
        first, queries = part
        mask = causal_mask(first + jnp.arange(QUERY_BLOCK), v.shape[1], documents=documents, window=window)
        return attention(queries, k, v, mask, softcap=softcap)

    mixed = jax.lax.map(one, (start + QUERY_BLOCK * jnp.arange(len(parts)), parts))
    return mixed.swapaxes(0, 1).reshape(q.shape)[:, :length]


def windowed_attention(
    q: Float[Array, "B T N H"],
    k: Float[Array, "BK T H"],
    v: Float[Array, "BK T H"],
    documents: Int[Array, "B T"] | None,
    window: int,
    softcap: float = 0.0,
) -> Float[Array, "B T N H"]:
    """Return causal attention within a window, in time and memory that are linear in the length.

    One compiled piece computes a block of queries with the blocks of keys that its window reaches, and is recomputed in
    the backward pass.

    Args:
        q: queries.
        k: keys, from `by_head`.
        v: values, from `by_head`.
        documents: position at which each token's document begins; None where a sequence is one document.
        window: number of positions that each attends to, with its own the last.
        softcap: of the scores, as in `model.attention_softcap`; 0 for none.
    """
    batch, length = q.shape[:2]
    size = max(QUERY_BLOCK, min(window, MAX_WINDOW_BLOCK))
    count, before = -(-length // size), -(-(window - 1) // size)  # blocks of queries; blocks of keys before each

    def blocks(x: Array, before: int) -> Array:
        """Cut positions, the second axis, into blocks of `size` with the `before` blocks to their left; P B _ …"""
        rest = [(0, 0)] * (x.ndim - 2)
        x = jnp.pad(x, ((0, 0), (before * size, count * size - length), *rest))
        x = x.reshape(len(x), -1, size, *x.shape[2:])
        return jnp.concatenate([x[:, i : i + count] for i in range(before + 1)], axis=2).swapaxes(0, 1)

    @jax.checkpoint
    def one(part: tuple[Array, ...]) -> Array:
        index, queries, keys, values, *own = part
        missing = jnp.full(batch, jnp.maximum(before - index, 0) * size)  # keys to the left of the first position
        positions = before * size + jnp.arange(size)
        mask = causal_mask(positions, keys.shape[1], missing, own[0] if own else None, window)
        return attention(queries, keys, values, mask, softcap=softcap)

    parts = jnp.arange(count), blocks(q, 0), blocks(k, before), blocks(v, before)
    mixed = jax.lax.map(one, parts if documents is None else (*parts, blocks(documents, before)))
    return mixed.swapaxes(0, 1).reshape(batch, count * size, *q.shape[2:])[:, :length]
