"""The alternatives to RMSNorm among which `model.norm` chooses."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from torchlm.fast.norms import rms_normed

__all__ = ["LayerNorm", "NoNorm", "ZeroCenteredRMSNorm"]


class ZeroCenteredRMSNorm(nn.Module):
    """RMSNorm whose weight is stored less one: x / √(mean(x²) + eps), times 1 + weight, as in Gemma."""

    def __init__(self, dim: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(dim))
        self.eps = eps

    def forward(self, x: Float[Tensor, "*B D"]) -> Float[Tensor, "*B D"]:
        return (rms_normed(x.to(self.weight.dtype), self.eps) * (1 + self.weight)).to(x.dtype)


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
