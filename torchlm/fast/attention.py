"""`torchlm.attention.causal_attention` in blocks of queries, each over the keys up to its own end.

A causal mask hides half of a square of scores. In blocks, most of that half is never computed, and since a CPU's cache
holds the scores of a block, the passes of the softmax over them are fast.
"""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from torchlm.attention import additive, by_head, causal_mask
from torchlm.attention import causal_attention as plain_attention
from torchlm.dropout import Key, MaskKey, dropout
from torchlm.fast.linear import matmul
from torchlm.scales import softcapped

__all__ = ["causal_attention"]

QUERY_BLOCK = 128
"""Queries in a block: few enough to skip most of the masked half, enough for fast matmuls."""
LONGEST_IN_BLOCKS = 1024
"""Longer sequences go to torch's own kernel on a CPU too: slower, but it keeps no weights for the backward pass."""


def causal_attention(
    q: Float[Tensor, "B T N H"],
    k: Float[Tensor, "B T K H"],
    v: Float[Tensor, "B T K H"],
    rate: float = 0.0,
    key: Key = None,
    documents: Int[Tensor, "B T"] | None = None,
    window: int = 0,
    softcap: float = 0.0,
) -> Float[Tensor, "B T N H"]:
    """Return the attention of every position to itself and those before it, in its document.

    On a CPU in blocks, up to LONGEST_IN_BLOCKS or with keyed dropout, a window or a soft cap; elsewhere by the plain
    form.

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
    plain = not isinstance(key, MaskKey) and window == 0 and softcap == 0
    if q.device.type != "cpu" or (q.shape[1] > LONGEST_IN_BLOCKS and plain):
        return plain_attention(q, k, v, rate, key, documents, window, softcap)
    with torch.autocast("cpu", enabled=False):  # the scores are float32
        return block_attention(q, k, v, rate, key, documents, window, softcap)


def block_attention(
    q: Float[Tensor, "B T N H"],
    k: Float[Tensor, "B T K H"],
    v: Float[Tensor, "B T K H"],
    rate: float,
    key: Key,
    documents: Int[Tensor, "B T"] | None = None,
    window: int = 0,
    softcap: float = 0.0,
) -> Float[Tensor, "B T N H"]:
    """Return `causal_attention` by blocks of queries, at these lengths faster on a CPU than torch's own kernel.

    The G query heads of a key/value head become G · T rows of one matmul, so that no key or value is repeated. The
    queries are scaled and the mask is added by `baddbmm`, so that neither takes a pass over the scores.

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
    batch, length, n_heads, head_dim = q.shape
    accumulation = torch.promote_types(q.dtype, torch.float32)
    grouped = (batch * k.shape[2], -1, length, head_dim)  # BK G T H
    q = by_head(q.to(accumulation) / math.sqrt(head_dim)).reshape(grouped)
    k, v = by_head(k.to(accumulation)).reshape(grouped)[:, 0].mT, by_head(v).reshape(grouped)[:, 0]
    if isinstance(key, MaskKey):  # drawn for the whole square, so that no mask depends on how the queries are cut
        ones = torch.ones(batch, n_heads, length, length, dtype=accumulation, device=q.device)
        factors = dropout(ones, rate, key)
    # The gradient of a split is one concatenation; that of a slice is as long as the whole, for each block.
    split_q, split_k, split_v = (x.split(QUERY_BLOCK, dim=dim) for x, dim in ((q, 2), (k, 2), (v, 1)))
    blocks = []
    for block, start in enumerate(range(0, length, QUERY_BLOCK)):
        end = min(start + QUERY_BLOCK, length)
        first = max(0, start + 1 - window) if window else 0  # the first key that a query of the block attends to
        positions = torch.arange(start, end, device=q.device) - first
        own = None if documents is None else documents[:, first:end]
        mask = additive(causal_mask(positions, end - first, documents=own, window=window), accumulation)
        mask = mask.repeat_interleave(len(k) // batch, dim=0) if len(mask) > 1 else mask  # for each key/value head
        mask = mask.repeat(1, q.shape[1], 1)
        queries, keys, values = split_q[block].flatten(1, 2), k[..., :end], v[:, :end]
        if window:
            seen, cut = slice(first // QUERY_BLOCK, block + 1), first % QUERY_BLOCK
            keys = torch.cat(split_k[seen], dim=2)[..., cut:]
            values = torch.cat(split_v[seen], dim=1)[:, cut:]
        scores = softcapped(softcap)(queries @ keys) + mask if softcap else torch.baddbmm(mask, queries, keys)
        weights = torch.softmax(scores, dim=-1)
        if isinstance(key, MaskKey):
            weights = weights * factors[:, :, start:end, first:end].reshape(weights.shape)
        elif key is not None:
            weights = dropout(weights, rate, key)
        mixed = matmul(weights.to(v.dtype), values)
        blocks.append(mixed.view(batch, n_heads, end - start, head_dim))
    return torch.cat(blocks, dim=2).transpose(1, 2)
