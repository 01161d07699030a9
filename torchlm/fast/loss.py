"""Output head and loss in one function: the forward pass computes the gradient too, one chunk of positions at a time.

In jaxlm, XLA fuses the gradient of the plain form; eager torch would keep or recompute all logits.
"""

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor

from torchlm.fast.linear import linear, matmul

__all__ = ["HeadLoss"]


class HeadLoss(torch.autograd.Function):
    """Output head and summed cross-entropy, with the gradient computed in the forward pass, chunk by chunk.

    The gradient of a sum at its logits is softmax − onehot whatever follows, so the backward pass only scales by one
    number, and neither keeps nor recomputes the logits (Hsu et al. 2024, Liger Kernel, arXiv:2410.10989). Not by
    torch's own softmax: its fast exponential on a CPU makes every loss about 4e-7 too small.
    """

    @staticmethod
    def forward(ctx, hidden, weight, targets, counted, positions, dtype, group=None, softcap=0.0):
        """Return the summed loss of P positions.

        Args:
            ctx: saves tensors for the backward pass.
            hidden: final activations, P × D.
            weight: of the output head, V × D.
            targets: token ids, P.
            counted: whether each target counts, P; the loss of one that doesn't is 0, and so is its gradient.
            positions: number of positions in a chunk.
            dtype: of the matmuls; all else is in that of `hidden`.
            group: processes which each have one part of the vocabulary, in order; None where `weight` is whole.
            softcap: of the logits, as in `model.logit_softcap`; 0 for none.
        """
        with torch.autocast(hidden.device.type, enabled=False):
            low, head, index = hidden.to(dtype), weight.to(dtype), targets.clamp_min(0)
            grad_hidden, total = torch.empty_like(low), hidden.new_zeros(())
            grad_weight = torch.zeros_like(weight) if ctx.needs_input_grad[1] else None
            if group is not None:  # a target elsewhere is found below none of these rows
                index = index - dist.get_rank(group) * len(weight)
            for h, t, c, out in zip(*(x.split(positions) for x in (low, index, counted, grad_hidden)), strict=True):
                t, c = t[:, None], c[:, None]
                logits = linear(h, head).to(hidden.dtype)
                if softcap:
                    tanh = torch.tanh(logits / softcap)
                    logits = softcap * tanh
                # log softmax in place: one buffer holds the logits, their exponentials and at last the gradient.
                logits -= reduced(logits.amax(dim=-1, keepdim=True), group, dist.ReduceOp.MAX)
                here = (t >= 0) & (t < len(weight))
                t = t.clamp(0, len(weight) - 1)
                chosen = logits.gather(-1, t) * here
                weights = logits.exp_()
                sums, chosen = reduced(torch.stack([weights.sum(dim=-1, keepdim=True), chosen]), group)
                total += ((sums.log() - chosen) * c).sum()
                weights *= c / sums
                weights.scatter_add_(-1, t, -(c & here).to(weights.dtype))
                if softcap:
                    weights *= 1 - tanh * tanh
                grads = weights.to(dtype)
                out.copy_(linear(grads, head.T))
                if grad_weight is not None:
                    add_matmul(grad_weight, grads.T, h)
            reduced(grad_hidden, group)
        ctx.save_for_backward(grad_hidden, grad_weight)
        return total

    @staticmethod
    def backward(ctx, grad):
        """Return the gradients with respect to hidden and weight."""
        grad_hidden, grad_weight = ctx.saved_tensors
        weighted = None if grad_weight is None else grad_weight * grad
        return grad_hidden.to(grad.dtype) * grad, weighted, *(None,) * 6


def reduced(
    x: Float[Tensor, "*S"], group: dist.ProcessGroup | None, op: dist.ReduceOp.RedOpType = dist.ReduceOp.SUM
) -> Float[Tensor, "*S"]:
    """Return x, replaced by its sum or maximum over a group of processes; None is a group of one."""
    if group is not None:
        dist.all_reduce(x, op, group)
    return x


def add_matmul(total: Float[Tensor, "V D"], a: Float[Tensor, "V P"], b: Float[Tensor, "P D"]) -> None:
    """Add a b to `total`, in place.

    Args:
        total: the sum so far, in its own dtype.
        a: left factor.
        b: right factor; the matmul is in the factors' common dtype.
    """
    if total.dtype == a.dtype:
        total.addmm_(a, b)  # needs no buffer for the matmul's result
    else:
        total += matmul(a, b)
