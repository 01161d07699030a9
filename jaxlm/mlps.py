"""Feed-forward layers: gated, or two plain layers, with the activation that `model.mlp` names."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jaxlm.linear import LINEARS
from lmcore.config import GATED, ModelConfig

__all__ = ["ACTIVATIONS", "MLP", "GatedMLP", "make_mlp"]


def gelu(x: Float[Array, "*S"]) -> Float[Array, "*S"]:
    """Return x · Φ(x), exactly (Hendrycks & Gimpel 2016, arXiv:1606.08415)."""
    return jax.nn.gelu(x, approximate=False)


def gelu_tanh(x: Float[Array, "*S"]) -> Float[Array, "*S"]:
    """Return ½ x (1 + tanh(√(2/π) (x + 0.044715 x³))), the approximation of GELU in its paper."""
    return jax.nn.gelu(x, approximate=True)


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "swiglu": jax.nn.silu,
    "geglu": gelu,
    "geglu_tanh": gelu_tanh,
    "gelu": gelu,
    "gelu_tanh": gelu_tanh,
    "relu": jax.nn.relu,
}
"""`model.mlp` -> its activation function."""


class GatedMLP(nnx.Module):
    """Gated feed-forward layer: down(act(gate(x)) · up(x)) (Shazeer 2020, arXiv:2002.05202)."""

    def __init__(self, config: ModelConfig, dtype: jnp.dtype):
        self.act = ACTIVATIONS[config.mlp]
        self.gate_proj = LINEARS[config.biased("gate_proj")](config.dim, config.ffn_dim, dtype)
        self.up_proj = LINEARS[config.biased("up_proj")](config.dim, config.ffn_dim, dtype)
        self.down_proj = LINEARS[config.biased("down_proj")](config.ffn_dim, config.dim, dtype)

    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        gate, up = self.project(x)
        return self.down_proj(self.act(gate) * up)

    def project(self, x: Float[Array, "B T D"]) -> tuple[Array, ...]:
        """Return gate(x), before the activation, and up(x), B × T × F each."""
        return self.gate_proj(x), self.up_proj(x)


class MLP(nnx.Module):
    """Feed-forward layer without a gate: down(act(up(x))) (Vaswani et al. 2017, arXiv:1706.03762)."""

    def __init__(self, config: ModelConfig, dtype: jnp.dtype):
        self.act = ACTIVATIONS[config.mlp]
        self.up_proj = LINEARS[config.biased("up_proj")](config.dim, config.ffn_dim, dtype)
        self.down_proj = LINEARS[config.biased("down_proj")](config.ffn_dim, config.dim, dtype)

    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        return self.down_proj(self.act(self.up_proj(x)))


def make_mlp(config: ModelConfig, dtype: jnp.dtype) -> GatedMLP | MLP:
    """Return the feed-forward layer that `model.mlp` names."""
    return (GatedMLP if config.mlp in GATED else MLP)(config, dtype)
