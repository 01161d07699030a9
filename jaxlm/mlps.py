"""What `model.mlp` chooses in place of SwiGLU."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jaxlm.linear import LINEARS
from lmcore.config import ModelConfig

__all__ = ["GEGLU", "GELU", "ReLU"]


class GEGLU(nnx.Module):
    """Feed-forward layer gated by the exact GELU (Shazeer 2020, arXiv:2002.05202)."""

    def __init__(self, config: ModelConfig, dtype: jnp.dtype):
        linear = LINEARS[config.bias]
        self.gate_proj = linear(config.dim, config.ffn_dim, dtype)
        self.up_proj = linear(config.dim, config.ffn_dim, dtype)
        self.down_proj = linear(config.ffn_dim, config.dim, dtype)

    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        gate, up = self.project(x)
        return self.down_proj(jax.nn.gelu(gate, approximate=False) * up)

    def project(self, x: Float[Array, "B T D"]) -> tuple[Array, ...]:
        """The gate before its GELU, and what it lets through."""
        return self.gate_proj(x), self.up_proj(x)


class GELU(nnx.Module):
    """Two layers with x · Φ(x) between them, exactly (Hendrycks & Gimpel 2016, arXiv:1606.08415)."""

    def __init__(self, config: ModelConfig, dtype: jnp.dtype):
        linear = LINEARS[config.bias]
        self.up_proj = linear(config.dim, config.ffn_dim, dtype)
        self.down_proj = linear(config.ffn_dim, config.dim, dtype)

    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        return self.down_proj(jax.nn.gelu(self.up_proj(x), approximate=False))


class ReLU(nnx.Module):
    """Two layers with max(x, 0) between them (Vaswani et al. 2017, arXiv:1706.03762)."""

    def __init__(self, config: ModelConfig, dtype: jnp.dtype):
        linear = LINEARS[config.bias]
        self.up_proj = linear(config.dim, config.ffn_dim, dtype)
        self.down_proj = linear(config.ffn_dim, config.dim, dtype)

    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        return self.down_proj(jax.nn.relu(self.up_proj(x)))
