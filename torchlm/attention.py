"""Attention, the plain form: causal over a whole sequence, and over a KV cache.

Scale 1/√H and softmax in float32 (float64 in the float64 mode), whatever the dtype of q, k and v. Shape letters as in
`torchlm.model`. `torchlm.fast.attention` computes the same in blocks of queries.

Keys and values are stored head by head, because over a cache of many sequences that is stored S × K × H torch's kernel
on a CPU takes one and a half times as long or more.
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from torchlm.dropout import Key, MaskKey, dropout
from torchlm.fast.linear import matmul
from torchlm.scales import softcapped

__all__ = ["additive", "attention", "by_head", "causal_attention", "causal_mask"]

EXACT = (torch.float32, torch.float64)
"""Dtypes whose matmuls need no wider sums."""


def by_head(x: Float[Tensor, "B S K H"]) -> Float[Tensor, "B K S H"]:
    """Return keys or values with heads before positions."""
    return x.transpose(1, 2)


def causal_mask(
    positions: Int[Tensor, "*B T"],
    size: int,
    pads: Int[Tensor, " B"] | None = None,
    documents: Int[Tensor, "B _"] | None = None,
    window: int = 0,
) -> Bool[Tensor, "#B T S"]:
    """Return which of the first `size` key positions each query may attend to: its own and those before it.

    Args:
        positions: the queries' own positions among the keys, which are counted from 0: those of each sequence, or T for
            all.
        size: number of key positions, S.
        pads: positions of left padding in each sequence, which no query attends to; None where there are none.
        documents: position at which each token's document begins; None where a sequence is one document.
        window: number of key positions that a query attends to, with its own the last; 0 for all.
    """
    keys, positions = torch.arange(size, device=positions.device)[None, None], torch.atleast_2d(positions)
    mask = keys <= positions[:, :, None]
    if window:
        mask &= keys > positions[:, :, None] - window
    if documents is not None:
        mask = mask & (torch.take_along_dim(documents, positions, dim=1)[:, :, None] == documents[:, None, :size])
    return mask if pads is None else mask & (keys >= pads[:, None, None])


def additive(mask: Bool[Tensor, "#B T S"], dtype: torch.dtype) -> Float[Tensor, "#B T S"]:
    """Return the mask as a float mask to add to the scores, 0 or −∞: torch's kernels convert any mask to that."""
    return torch.zeros_like(mask, dtype=dtype).masked_fill_(~mask, -torch.inf)


def attention(
    q: Float[Tensor, "B T N H"],
    k: Float[Tensor, "B K S H"],
    v: Float[Tensor, "B K S W"],
    mask: Bool[Tensor, "#B T S"] | Float[Tensor, "#B T S"] | None,
    rate: float = 0.0,
    factors: Float[Tensor, "B N T S"] | None = None,
    softcap: float = 0.0,
) -> Float[Tensor, "B T N W"]:
    """Return softmax(q kᵀ / √H) v over the keys that the mask allows (Vaswani et al. 2017, arXiv:1706.03762).

    Args:
        q: queries; query head n attends to key/value head n // G.
        k: keys, from `by_head`.
        v: values, from `by_head`, of any width W.
        mask: True where a query may attend to a key, or a float mask from `additive`; None is causal.
        rate: fraction of the attention weights that torch's own generator drops.
        factors: multiplied into the attention weights, such as a scaled dropout mask; None leaves them as they are.
        softcap: of the scores, as in `model.attention_softcap`; 0 for none.
    """
    if q.shape[1] == 1 and mask is not None and rate == 0 and factors is None and q.dtype in EXACT and q.is_cpu:
        return _one_query(q, k, v, mask, softcap)
    q, grouped = by_head(q), q.shape[2] != k.shape[1]
    if factors is not None or softcap:  # torch's kernel takes neither
        return _stepwise(q, k, v, mask, rate, factors, softcap).transpose(1, 2)
    if q.device.type == "mps":  # wrong values from strided inputs were reported there more than once
        q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
    added = None if mask is None else mask.unsqueeze(1)
    mixed = F.scaled_dot_product_attention(q, k, v, added, rate, is_causal=mask is None, enable_gqa=grouped)
    return mixed.transpose(1, 2)


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
    rate, factors, mask = 0.0 if key is None else rate, None, None
    if isinstance(key, MaskKey):
        accumulation = torch.promote_types(q.dtype, torch.float32)
        ones = torch.ones(batch, n_heads, length, length, dtype=accumulation, device=q.device)
        rate, factors = 0.0, dropout(ones, rate, key)
    if factors is not None or documents is not None or window or softcap:  # torch's kernel is causal without a mask
        mask = causal_mask(torch.arange(length, device=q.device), length, documents=documents, window=window)
    k, v = by_head(k), by_head(v)
    if q.device.type == "cuda" and (mask is not None or q.itemsize > 2):
        # Only flash attention takes fewer key/value heads there, and neither a mask nor float32: torch would compute
        # step by step, and keep all weights.
        k, v = (x.repeat_interleave(n_heads // x.shape[1], dim=1) for x in (k, v))
    return attention(q, k, v, mask, rate, factors, softcap)


def _one_query(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, softcap: float) -> Tensor:
    """Compute `attention` of a decoded token on a CPU: no slower than torch's kernel, and with groups a third faster.

    That kernel rounds a sequence's result otherwise for each of its threads.
    """
    batch, _, n_heads, head_dim = q.shape
    mask = mask if mask.dtype != torch.bool else additive(mask, q.dtype)
    scores = softcapped(softcap)(q.reshape(batch, k.shape[1], -1, head_dim) @ k.mT / math.sqrt(head_dim))
    return (torch.softmax(scores + mask[:, None], dim=-1) @ v).reshape(batch, 1, n_heads, -1)


def _stepwise(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, rate: float, factors: Tensor | None, softcap: float
) -> Tensor:
    """Compute `attention` step by step, on tensors B × N × T × H."""
    assert mask is not None
    accumulation = torch.promote_types(q.dtype, torch.float32)
    mask = mask.to(accumulation) if mask.dtype != torch.bool else additive(mask, accumulation)
    mask = mask.clamp_min(torch.finfo(accumulation).min)  # −∞ would make NaN of a fully masked row
    k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for x in (k, v))
    with torch.autocast(q.device.type, enabled=False):  # the scores are float32
        scores = q.to(accumulation) @ k.to(accumulation).mT / math.sqrt(q.shape[-1])
        weights = torch.softmax(softcapped(softcap)(scores) + mask[:, None], dim=-1)
        weights = F.dropout(weights, rate) if factors is None else weights * factors
        return matmul(weights.to(v.dtype), v)
