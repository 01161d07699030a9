"""The alternatives to RMSNorm among which `model.norm` chooses."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

__all__ = ["LayerNorm", "NoNorm", "unnormed"]


class LayerNorm(nn.Module):
    """LayerNorm: (x − mean(x)) / √(var(x) + eps), times weight, plus bias (Ba et al. 2016, arXiv:1607.06450)."""

    def __init__(self, dim: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.bias = nn.Parameter(torch.zeros(dim))
        self.eps = eps

    def forward(self, x: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:
        full = x.to(self.weight.dtype)
        centred = full - torch.mean(full, dim=-1, keepdim=True)
        normed = centred * torch.rsqrt(torch.mean(centred * centred, dim=-1, keepdim=True) + self.eps)
        return (normed * self.weight + self.bias).to(x.dtype)


class NoNorm(nn.Module):
    """Identity, for a model without norms."""

    def __init__(self, dim: int, eps: float):
        super().__init__()

    def forward(self, x: Float[Tensor, "*B D"]) -> Float[Tensor, "*B D"]:
        return x


def unnormed(x: Float[Tensor, "*B D"]) -> Float[Tensor, "*B D"]:
    """Return x unchanged: stands where `norm_placement` has no norm, without being a module."""
    return x
