"""Summed cross-entropy of next-token predictions, over chunks of positions so that all logits never exist at once."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from torchlm.dropout import Key
from torchlm.linear import matmul, product
from torchlm.model import Decoder

__all__ = ["IGNORED", "cross_entropy", "loss_sum"]

IGNORED = -1
"""Target of a position that does not count."""
CHUNK_LOGITS = {"cpu": 2**21, "cuda": 2**25, "mps": 2**25}
"""Most logits to hold at once: on a CPU, about what its cache holds; elsewhere, enough work for one call."""
LEAST_POSITIONS = 256
"""Positions of a chunk in any case: fewer would make slow products."""


def cross_entropy(logits: Float[Tensor, "*B V"], targets: Int[Tensor, "*B"]) -> Float[Tensor, "*B"]:
    """−log softmax(logits)[target] of each position, 0 where the target is ignored; in the logits' type."""
    chosen = logits.gather(-1, targets.clamp_min(0).long()[..., None])[..., 0]
    return (torch.logsumexp(logits, dim=-1) - chosen) * (targets != IGNORED)


def loss_sum(
    model: Decoder, tokens: Int[Tensor, "B T"], targets: Int[Tensor, "B T"], key: Key = None
) -> Float[Tensor, ""]:
    """Sum of the token losses, in the parameters' type; a key switches dropout on."""
    hidden, targets = model.hidden(tokens, key).flatten(0, 1), targets.flatten()
    positions = max(LEAST_POSITIONS, CHUNK_LOGITS[hidden.device.type] // model.config.vocab_size)
    if torch.is_grad_enabled():
        return HeadLoss.apply(hidden, model.head, targets, positions, model.dtype)
    chunks = zip(hidden.split(positions), targets.split(positions), strict=True)
    return torch.stack([cross_entropy(model.logits(h), t).sum() for h, t in chunks]).sum()


class HeadLoss(torch.autograd.Function):
    """Output head and summed cross-entropy, with the gradient made in the forward pass, chunk by chunk.

    The gradient of a sum at its logits is softmax − onehot whatever follows, so the backward pass only scales by one
    number, and neither keeps the logits nor makes them again (Hsu et al. 2024, Liger Kernel, arXiv:2410.10989). Not by
    torch's own softmax: its fast exponential on a CPU makes every loss about 4e-7 too small.
    """

    @staticmethod
    def forward(ctx, hidden, weight, targets, positions, dtype):
        """Sum over hidden P D, weight V D and targets P; products in `dtype`, all else in the type of `hidden`."""
        with torch.autocast(hidden.device.type, enabled=False):
            low, head = hidden.to(dtype), weight.to(dtype)
            grad_hidden, grad_weight, total = torch.empty_like(low), torch.zeros_like(weight), hidden.new_zeros(())
            for h, t, out in zip(*(x.split(positions) for x in (low, targets, grad_hidden)), strict=True):
                counted, index = (t != IGNORED)[:, None], t.clamp_min(0)[:, None]
                logits = product(h, head).to(hidden.dtype)
                logits -= logits.amax(dim=-1, keepdim=True)
                chosen = logits.gather(-1, index)
                weights = logits.exp_()
                sums = weights.sum(dim=-1, keepdim=True)
                total += ((sums.log() - chosen) * counted).sum()
                weights *= counted / sums
                grads = weights.scatter_add_(-1, index, -counted.to(weights.dtype)).to(dtype)
                out.copy_(product(grads, head.T))
                add_product(grad_weight, grads.T, h)
        ctx.save_for_backward(grad_hidden, grad_weight)
        return total

    @staticmethod
    def backward(ctx, grad):
        """Gradients at hidden and weight."""
        grad_hidden, grad_weight = ctx.saved_tensors
        return grad_hidden.to(grad.dtype) * grad, grad_weight * grad, None, None, None


def add_product(total: Float[Tensor, "V D"], a: Float[Tensor, "V P"], b: Float[Tensor, "P D"]) -> None:
    """total += a b, in place; the product in its factors' type."""
    if total.dtype == a.dtype:
        total.addmm_(a, b)
    else:
        total += matmul(a, b)
