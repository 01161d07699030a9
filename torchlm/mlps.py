"""Feed-forward layers: gated, or two plain layers, with the activation that `model.mlp` names."""

from collections.abc import Callable

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from lmcore.config import GATED, ModelConfig
from torchlm.linear import LINEARS

__all__ = ["ACTIVATIONS", "MLP", "GatedMLP", "make_mlp"]


def gelu(x: Float[Tensor, "*S"]) -> Float[Tensor, "*S"]:
    """Return x · Φ(x), exactly (Hendrycks & Gimpel 2016, arXiv:1606.08415)."""
    return F.gelu(x, approximate="none")


def gelu_tanh(x: Float[Tensor, "*S"]) -> Float[Tensor, "*S"]:
    """Return ½ x (1 + tanh(√(2/π) (x + 0.044715 x³))), the approximation of GELU in its paper."""
    return F.gelu(x, approximate="tanh")


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "swiglu": F.silu,
    "geglu": gelu,
    "geglu_tanh": gelu_tanh,
    "gelu": gelu,
    "gelu_tanh": gelu_tanh,
    "relu": F.relu,
}
"""`model.mlp` -> its activation function."""


class GatedMLP(nn.Module):
    """Gated feed-forward layer: down(act(gate(x)) · up(x)) (Shazeer 2020, arXiv:2002.05202)."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.act = ACTIVATIONS[config.mlp]
        self.gate_proj = LINEARS[config.biased("gate_proj")](config.dim, config.ffn_dim)
        self.up_proj = LINEARS[config.biased("up_proj")](config.dim, config.ffn_dim)
        self.down_proj = LINEARS[config.biased("down_proj")](config.ffn_dim, config.dim)

    def forward(self, x: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:
        gate, up = self.project(x)
        return self.down_proj(self.act(gate) * up)

    def project(self, x: Float[Tensor, "B T D"]) -> tuple[Tensor, ...]:
        """Return gate(x), before the activation, and up(x), B × T × F each."""
        return self.gate_proj(x), self.up_proj(x)


class MLP(nn.Module):
    """Feed-forward layer without a gate: down(act(up(x))) (Vaswani et al. 2017, arXiv:1706.03762)."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.act = ACTIVATIONS[config.mlp]
        self.up_proj = LINEARS[config.biased("up_proj")](config.dim, config.ffn_dim)
        self.down_proj = LINEARS[config.biased("down_proj")](config.ffn_dim, config.dim)

    def forward(self, x: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:
        return self.down_proj(self.act(self.up_proj(x)))


def make_mlp(config: ModelConfig) -> GatedMLP | MLP:
    """Return the feed-forward layer that `model.mlp` names."""
    return (GatedMLP if config.mlp in GATED else MLP)(config)
