"""`torchlm.attention.causal_attention` in blocks of queries, each over the keys up to its own end.

A causal mask hides half of a square of scores. In blocks, most of that half is never computed, and since a CPU's cache
holds the scores of a block, the passes of the softmax over them are fast. The blocks of a long sequence are recomputed
in the backward pass, so that memory is linear in the length.
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from torchlm.attention import additive, attention, by_head, causal_mask
from torchlm.attention import causal_attention as plain_attention
from torchlm.dropout import Key, MaskKey, dropout
from torchlm.fast.linear import matmul
from torchlm.scales import softcapped

__all__ = ["causal_attention"]

QUERY_BLOCK = 128
"""Queries in a block: few enough to skip most of the masked half, enough for fast matmuls."""
LONGEST_IN_BLOCKS = 1024
"""Longer sequences keep no weights for the backward pass: they go to torch's own kernel on a CPU too where it needs no
mask, and their blocks are recomputed elsewhere."""


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

    By torch's own kernel where it needs no mask and keeps no weights, on a CPU beyond LONGEST_IN_BLOCKS; elsewhere in
    blocks. Keyed dropout, whose masks have T × T elements, is in blocks on a CPU alone.

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
    masked, long = documents is not None or window > 0 or softcap > 0, q.shape[1] > LONGEST_IN_BLOCKS
    if q.device.type == "cpu":
        plain = long and not masked and key is None
    else:  # torch's kernels keep all weights in float64, and on other devices than CUDA
        keeps_none = q.device.type == "cuda" and q.dtype != torch.float64
        plain = isinstance(key, MaskKey) or (not masked and (keeps_none or not long))
    attend = plain_attention if plain else block_attention
    return attend(q, k, v, rate, key, documents, window, softcap)


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
    """Return `causal_attention` by blocks of queries, recomputed in the backward pass beyond LONGEST_IN_BLOCKS.

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
    on_cpu, long = q.device.type == "cpu", length > LONGEST_IN_BLOCKS
    accumulation = torch.promote_types(q.dtype, torch.float32)
    rate, factors = 0.0 if key is None else rate, None
    if isinstance(key, MaskKey):  # drawn for the whole square, so that no mask depends on how the queries are cut
        ones = torch.ones(batch, n_heads, length, length, dtype=accumulation, device=q.device)
        rate, factors = 0.0, dropout(ones, rate, key)
    k, v = by_head(k), by_head(v)
    if on_cpu:
        k, v = k.to(accumulation).contiguous(), v.contiguous()
    elif q.device.type == "cuda" and not softcap:  # torch's kernel takes fewer key/value heads only without a mask
        k, v = (x.repeat_interleave(n_heads // x.shape[1], dim=1) for x in (k, v))
    one = _cpu_attention if on_cpu else attention

    def attend(queries: Tensor, keys: tuple[Tensor, ...], values: tuple[Tensor, ...], start: int, first: int) -> Tensor:
        """Compute one block, which begins at `start`, over the keys from `first` on."""
        end, cut = start + queries.shape[1], first % QUERY_BLOCK
        key, value = ((torch.cat(x, dim=2) if len(x) > 1 else x[0])[:, :, cut:] for x in (keys, values))
        positions = torch.arange(start - first, end - first, device=q.device)
        own = None if documents is None else documents[:, first:end]
        mask = causal_mask(positions, end - first, documents=own, window=window)
        dropped = None if factors is None else factors[:, :, start:end, first:end]
        return one(queries, key, value, mask, rate, dropped, softcap)

    # The gradient of a split is one concatenation; that of a slice is as long as what it is cut from, for each block.
    split_q, split_k, split_v = (x.split(QUERY_BLOCK, dim=dim) for x, dim in ((q, 1), (k, 2), (v, 2)))
    blocks: list[Tensor] = []
    for block in reversed(range(len(split_q))):
        start, queries = block * QUERY_BLOCK, split_q[block]
        k, v = (x[:, :, : start + queries.shape[1]] for x in (k, v))
        first = max(0, start + 1 - window) if window else 0  # the first key that a query of the block attends to
        if documents is not None and long and on_cpu and not torch.compiler.is_compiling():
            first = max(first, int(documents[:, start].min()))
        seen = slice(first // QUERY_BLOCK, block + 1)
        keys, values = (split_k[seen], split_v[seen]) if first else ((k,), (v,))
        if long and factors is None and torch.is_grad_enabled():
            args = (queries, keys, values, start, first)
            mixed = checkpoint(attend, *args, use_reentrant=False, preserve_rng_state=rate > 0)
        else:
            mixed = attend(queries, keys, values, start, first)
        blocks.append(mixed)
    return torch.cat(blocks[::-1], dim=1)


def _cpu_attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor, rate: float, factors: Tensor | None, softcap: float
) -> Tensor:
    """Compute `attention` of one block, at these lengths faster on a CPU than torch's own kernel.

    The G query heads of a key/value head become G · T rows of one matmul, so that no key or value is repeated. The
    queries are scaled and the mask is added by `baddbmm`, so that neither takes a pass over the scores.
    """
    batch, length, n_heads, head_dim = q.shape
    with torch.autocast("cpu", enabled=False):  # the scores are in the dtype of the keys
        q = by_head(q.to(k.dtype) / math.sqrt(head_dim)).reshape(batch * k.shape[1], -1, head_dim)
        k, v = k.flatten(0, 1).mT, v.flatten(0, 1)
        added = additive(mask, k.dtype)
        added = added.repeat_interleave(len(k) // batch, dim=0) if len(added) > 1 else added  # for each key/value head
        added = added.repeat(1, q.shape[1] // length, 1)
        scores = softcapped(softcap)(q @ k) + added if softcap else torch.baddbmm(added, q, k)
        weights = torch.softmax(scores, dim=-1)
        if factors is not None:
            weights = weights * factors.reshape(weights.shape)
        elif rate:
            weights = F.dropout(weights, rate)
        return matmul(weights.to(v.dtype), v).view(batch, n_heads, length, head_dim).transpose(1, 2)
