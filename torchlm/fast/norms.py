"""RMSNorm with its gradient written out: eager autograd would pass over memory twice as often.

jaxlm has the formula alone, since XLA fuses its gradient.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["rms_normed"]


def rms_normed(x: Float[Tensor, "*B D"], eps: float) -> Float[Tensor, "*B D"]:
    """Return x / √(mean(x²) + eps)."""
    return _RMSNormed.apply(x, eps)


class _RMSNormed(torch.autograd.Function):
    """RMSNorm without its weight.

    With y = x r and r = 1 / √(mean(x²) + eps), the gradient with respect to x is r (grad − y · mean(grad · y)).
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, eps: float) -> Tensor:
        inverse = torch.rsqrt(torch.mean(x * x, dim=-1, keepdim=True) + eps)
        normed = x * inverse
        ctx.save_for_backward(normed, inverse)
        return normed

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        normed, inverse = ctx.saved_tensors
        along = torch.mean(grad * normed, dim=-1, keepdim=True)
        return torch.addcmul(grad, normed, along, value=-1).mul_(inverse), None
