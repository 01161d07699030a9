"""Summed cross-entropy of next-token predictions, over chunks of positions so that all logits never exist at once."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from torchlm.dropout import Key
from torchlm.fast.loss import HeadLoss
from torchlm.model import Decoder
from torchlm.tensor_parallel import own_part

__all__ = ["IGNORED", "cross_entropy", "loss_sum"]

IGNORED = -1
"""Target of a position that is left out of the loss."""
CHUNK_LOGITS = {"cpu": 2**21, "cuda": 2**25, "mps": 2**25}
"""Maximum number of logits at once: on a CPU, about what its cache holds; elsewhere, enough work for one call."""
MIN_POSITIONS = 256
"""Minimum number of positions in a chunk: fewer would make slow matmuls."""


def cross_entropy(logits: Float[Tensor, "*B V"], targets: Int[Tensor, "*B"]) -> Float[Tensor, "*B"]:
    """Return −log softmax(logits)[target] of each position, 0 where the target is ignored; in the logits' dtype."""
    chosen = logits.gather(-1, targets.clamp_min(0).long()[..., None])[..., 0]
    return (torch.logsumexp(logits, dim=-1) - chosen) * (targets != IGNORED)


def loss_sum(
    model: Decoder,
    tokens: Int[Tensor, "B T"],
    targets: Int[Tensor, "B T"],
    key: Key = None,
    documents: Int[Tensor, "B T"] | None = None,
) -> Float[Tensor, ""]:
    """Return the summed token loss, in the parameters' dtype.

    Args:
        model: the decoder.
        tokens: token ids.
        targets: the id that follows each token, or IGNORED.
        key: random key of the dropout masks; None switches dropout off.
        documents: position at which each token's document begins; None where a sequence is one document.
    """
    hidden, targets = model.hidden(tokens, key, documents).flatten(0, 1), targets.flatten()
    positions = max(MIN_POSITIONS, CHUNK_LOGITS[hidden.device.type] // model.config.vocab_size)
    if torch.is_grad_enabled():  # the same loss, its gradient computed with it
        weight, group = own_part(model.head)
        hidden, softcap = model.divide(hidden), model.config.logit_softcap
        return HeadLoss.apply(hidden, weight, targets, targets != IGNORED, positions, model.dtype, group, softcap)
    chunks = zip(hidden.split(positions), targets.split(positions), strict=True)
    return torch.stack([cross_entropy(model.logits(h), t).sum() for h, t in chunks]).sum()
