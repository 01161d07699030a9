"""The mixing of values by attention weights: causal over a whole sequence, and over a cache of earlier columns.

Scale 1/√H and softmax in float32 (float64 in the float64 mode), whatever the type of q, k and v. Shape letters as in
`torchlm.model`. Keys and values lie head by head, because torch's kernel on a CPU takes half as long again or more over
a cache of many texts that lies S × K × H.
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from torchlm.dropout import Key, dropout
from torchlm.linear import matmul

__all__ = ["attention", "by_head", "cache_mask", "causal_attention"]

QUERY_BLOCK = 128
"""Queries per block on a CPU: small enough to skip most of the masked half, large enough for fast products."""
LONGEST_IN_BLOCKS = 1024
"""Longer sequences go to torch's own kernel on a CPU too: slower, but it keeps no weights for the backward pass."""


def by_head(x: Float[Tensor, "B S K H"]) -> Float[Tensor, "B K S H"]:
    """Keys or values with heads before positions."""
    return x.transpose(1, 2)


def attention(
    q: Float[Tensor, "B T N H"],
    k: Float[Tensor, "B K S H"],
    v: Float[Tensor, "B K S H"],
    mask: Bool[Tensor, "#B T S"] | Float[Tensor, "#B T S"] | None,
    rate: float = 0.0,
) -> Float[Tensor, "B T N H"]:
    """softmax(q kᵀ / √H) v over the keys that the mask allows (Vaswani et al. 2017, arXiv:1706.03762).

    A mask of numbers, 0 or −∞, is added to the scores, as torch's kernel does with any. Without a mask, over the keys
    up to the query's own position. Torch's own generator drops a share `rate` of weights.
    """
    q = by_head(q)
    if q.device.type == "mps":  # wrong values from strided inputs were reported there more than once
        q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
    grouped = q.shape[1] != k.shape[1]
    added = None if mask is None else mask.unsqueeze(1)
    mixed = F.scaled_dot_product_attention(q, k, v, added, rate, is_causal=mask is None, enable_gqa=grouped)
    return mixed.transpose(1, 2)


def causal_attention(
    q: Float[Tensor, "B T N H"],
    k: Float[Tensor, "B T K H"],
    v: Float[Tensor, "B T K H"],
    rate: float = 0.0,
    key: Key = None,
) -> Float[Tensor, "B T N H"]:
    """Attention of every position to itself and those before it; a key drops a share `rate` of its weights."""
    own = not isinstance(key, Tensor)  # torch's kernels take no mask of ours
    if own and (q.device.type != "cpu" or q.shape[1] > LONGEST_IN_BLOCKS):
        return attention(q, by_head(k), by_head(v), None, 0.0 if key is None else rate)
    with torch.autocast(q.device.type, enabled=False):  # the scores are float32
        return block_attention(q, k, v, rate, key)


def block_attention(
    q: Float[Tensor, "B T N H"], k: Float[Tensor, "B T K H"], v: Float[Tensor, "B T K H"], rate: float, key: Key
) -> Float[Tensor, "B T N H"]:
    """`causal_attention` by blocks of queries: at these lengths a CPU does it faster than torch's own kernel."""
    batch, length, n_heads, head_dim = q.shape
    wide = torch.promote_types(q.dtype, torch.float32)
    grouped = (batch * k.shape[2], -1, length, head_dim)  # BK G T H
    q = by_head(q.to(wide) / math.sqrt(head_dim)).reshape(grouped)
    k, v = by_head(k.to(wide)).reshape(grouped)[:, 0].mT, by_head(v).reshape(grouped)[:, 0]
    if isinstance(key, Tensor):  # drawn for the whole square, so that no mask depends on how the queries are cut
        factors = dropout(torch.ones(batch, n_heads, length, length, dtype=wide, device=q.device), rate, key)
    blocks = []
    for start in range(0, length, QUERY_BLOCK):
        end = min(start + QUERY_BLOCK, length)
        later = torch.full((end - start, end), -math.inf, dtype=wide, device=q.device).triu(start + 1)
        queries = q[:, :, start:end].flatten(1, 2)
        scores = torch.baddbmm(later.repeat(q.shape[1], 1), queries, k[..., :end])
        weights = torch.softmax(scores, dim=-1)
        if isinstance(key, Tensor):
            weights = weights * factors[:, :, start:end, :end].reshape(weights.shape)
        elif key is not None:
            weights = dropout(weights, rate, key)
        mixed = matmul(weights.to(v.dtype), v[:, :end])
        blocks.append(mixed.view(batch, n_heads, end - start, head_dim))
    return torch.cat(blocks, dim=2).transpose(1, 2)


def cache_mask(columns: Int[Tensor, " T"], pads: Int[Tensor, " B"], size: int) -> Bool[Tensor, "B T S"]:
    """Which of a cache's first `size` columns each query sees: from its row's padding up to its own column."""
    seen = torch.arange(size, device=columns.device)
    return (seen[None, None] <= columns[None, :, None]) & (seen[None, None] >= pads[:, None, None])
