"""What `model.mlp` chooses in place of SwiGLU."""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from lmcore.config import ModelConfig
from torchlm.linear import LINEARS

__all__ = ["GEGLU", "GELU", "ReLU"]


class GEGLU(nn.Module):
    """Feed-forward layer gated by the exact GELU (Shazeer 2020, arXiv:2002.05202)."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        linear = LINEARS[config.bias]
        self.gate_proj = linear(config.dim, config.ffn_dim)
        self.up_proj = linear(config.dim, config.ffn_dim)
        self.down_proj = linear(config.ffn_dim, config.dim)

    def forward(self, x: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:
        gate, up = self.project(x)
        return self.down_proj(F.gelu(gate) * up)

    def project(self, x: Float[Tensor, "B T D"]) -> tuple[Tensor, ...]:
        """The gate before its GELU, and what it lets through."""
        return self.gate_proj(x), self.up_proj(x)


class GELU(nn.Module):
    """Two layers with x · Φ(x) between them, exactly (Hendrycks & Gimpel 2016, arXiv:1606.08415)."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        linear = LINEARS[config.bias]
        self.up_proj = linear(config.dim, config.ffn_dim)
        self.down_proj = linear(config.ffn_dim, config.dim)

    def forward(self, x: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:
        return self.down_proj(F.gelu(self.up_proj(x)))


class ReLU(nn.Module):
    """Two layers with max(x, 0) between them (Vaswani et al. 2017, arXiv:1706.03762)."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        linear = LINEARS[config.bias]
        self.up_proj = linear(config.dim, config.ffn_dim)
        self.down_proj = linear(config.ffn_dim, config.dim)

    def forward(self, x: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:
        return self.down_proj(F.relu(self.up_proj(x)))
