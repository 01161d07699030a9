"""The model's group of the config: architecture and sizes, the same for both twins."""

from dataclasses import dataclass
from typing import Literal

from lmcore.config.values import Derived, at_least, explicit, require

__all__ = ["GATED", "ModelConfig", "RopeScaling"]

GATED = ("swiglu", "geglu")
"""Gated kinds of `model.mlp`, which have three matrices; the others have two."""


@dataclass(frozen=True, kw_only=True)
class RopeScaling:
    """Llama 3's scaling of the RoPE frequencies, for contexts longer than the model was trained on."""

    factor: float = 8.0
    """Ratio of the new context length to the original one."""
    low_freq_factor: float = 1.0
    """Wavelengths longer than original_max_seq_len / low_freq_factor are scaled by the full factor."""
    high_freq_factor: float = 4.0
    """Wavelengths shorter than original_max_seq_len / high_freq_factor are not scaled."""
    original_max_seq_len: int = 8192
    """Context length, in tokens, that the unscaled frequencies were trained for."""

    def __post_init__(self) -> None:
        group = "model.rope_scaling"
        at_least(group, self, 1, "factor", "original_max_seq_len")
        require(group, "low_freq_factor", self.low_freq_factor, self.low_freq_factor > 0, "more than 0")
        ordered = self.high_freq_factor > self.low_freq_factor
        require(group, "high_freq_factor", self.high_freq_factor, ordered, "more than low_freq_factor")


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The decoder's architecture and sizes."""

    vocab_size: int = 0
    """Vocabulary size V; 0 takes the tokenizer's size."""
    dim: int = 128
    """Model width D."""
    n_layers: int = 4
    """Number of blocks L."""
    n_heads: int = 4
    """Number of query heads N."""
    n_kv_heads: int = 0
    """Number of key/value heads K, a divisor of n_heads; 0 takes n_heads (multi-head attention)."""
    head_dim: int = 0
    """Head width H, an even number with position: rope; 0 takes dim / n_heads."""
    ffn_dim: int = 0
    """Feed-forward width F; 0 takes 8/3 of dim, rounded up to a multiple of 32, or, without a gate, four times dim,
    which gives the same number of parameters."""
    max_seq_len: int = 256
    """Maximum context length in tokens."""
    position: Literal["rope", "learned", "sinusoidal", "none"] = "rope"
    """Position encoding: rope rotates queries and keys; learned adds a trained position embedding to the token
    embedding; sinusoidal multiplies the token embedding by √dim and adds sines and cosines, as in the original
    Transformer; none leaves only the causal mask."""
    rope_theta: float = 10000.0
    """Base θ of the RoPE frequencies."""
    rope_scaling: RopeScaling | None = None
    """Llama 3's frequency scaling; null for none."""
    norm: Literal["rmsnorm", "layernorm", "none"] = "rmsnorm"
    """Normalization layer; layernorm always has a weight and a bias, whatever model.bias says."""
    norm_placement: Literal["pre", "post", "sandwich"] = "pre"
    """pre normalizes the inputs of attention and feed-forward; post normalizes the residual stream after each, and has
    no final norm, as in the original Transformer; sandwich normalizes both inputs and outputs."""
    norm_eps: float = 1e-5
    """Added, inside the square root, to the mean square in RMSNorm and to the variance in LayerNorm."""
    qk_norm: bool = False
    """Apply RMSNorm to each head's queries and keys before rotation, with weights shared by all heads, as in Qwen3."""
    mlp: Literal["swiglu", "geglu", "gelu", "relu"] = "swiglu"
    """Feed-forward layer: gated with SiLU or GELU, or two linear layers with GELU or ReLU; GELU is exact, x · Φ(x)."""
    bias: bool = False
    """Give every linear layer of the blocks a bias; the output head has none."""
    init: Literal["normal", "xavier", "kaiming"] = "normal"
    """Initialization of the matrices: normal with std 0.02, projections onto the residual stream scaled by
    1/√(2 · n_layers); xavier uniform; kaiming normal, by fan-in. Embeddings are always normal with std 0.02."""
    tie_embeddings: bool = True
    """Share the embedding's weights with the output head."""
    dropout: float = 0.0
    """Dropout probability in training, for the outputs of the embedding and of every residual branch, and for
    attention weights."""
    scan_layers: bool = False
    """Compile one block for all layers; each layer keeps its own weights. jax stacks the layers' parameters and
    optimizer state, scans over them, and compiles forward pass and update once. torch, with train.compile, calls one
    compiled block for each layer, so that compilation time does not grow with depth."""

    def __post_init__(self) -> None:
        at_least("model", self, 0, "vocab_size", "n_kv_heads", "head_dim", "ffn_dim")
        at_least("model", self, 1, "dim", "n_layers", "n_heads")
        at_least("model", self, 2, "max_seq_len")
        if explicit(self.head_dim) == 0:
            even = self.dim % self.n_heads == 0
            require("model", "dim", self.dim, even, f"a multiple of n_heads = {self.n_heads}, or set model.head_dim")
        derived = {
            "n_kv_heads": self.n_heads,
            "head_dim": self.dim // self.n_heads,
            "ffn_dim": -(-self.dim * 8 // (3 * 32)) * 32 if self.mlp in GATED else 4 * self.dim,
        }
        for name, value in derived.items():
            object.__setattr__(self, name, explicit(getattr(self, name)) or Derived(value))
        divides = self.n_heads % self.n_kv_heads == 0
        require("model", "n_kv_heads", self.n_kv_heads, divides, f"a divisor of n_heads = {self.n_heads}")
        rotary = self.position == "rope"
        even = not rotary or self.head_dim % 2 == 0
        require("model", "head_dim", self.head_dim, even, "an even number (rotary pairs)")
        unscaled = self.rope_scaling is None
        expected = f"null with position: {self.position}"
        require("model", "rope_scaling", self.rope_scaling, rotary or unscaled, expected)
        require("model", "rope_theta", self.rope_theta, self.rope_theta > 0, "more than 0")
        require("model", "norm_eps", self.norm_eps, self.norm_eps > 0, "more than 0")
        require("model", "dropout", self.dropout, 0 <= self.dropout < 1, "at least 0 and less than 1")
