"""The model's group of the config: architecture and sizes, the same for both twins."""

from dataclasses import dataclass, field
from typing import Literal

from lmcore.config.lora import LoraConfig
from lmcore.config.values import Derived, at_least, explicit, require

__all__ = ["GATED", "ModelConfig", "RopeScaling"]

LAYER_TYPES = ("full", "sliding", "nope")
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
GATED = ("swiglu", "geglu", "geglu_tanh")
"""Gated kinds of `model.mlp`, which have three matrices; the others have two."""


@dataclass(frozen=True, kw_only=True)
class RopeScaling:
    """Scaling of the RoPE frequencies, for contexts longer than the model was trained on."""

    type: Literal["llama3", "linear", "yarn", "dynamic"] = "llama3"
    """llama3 divides the frequencies of long wavelengths, as in Llama 3.1; linear divides all; yarn divides those with
    few rotations in the original context, and scales the attention; dynamic (NTK) changes nothing up to max_seq_len,
    and is kept for a conversion."""
    factor: float = 8.0
    """Ratio of the new context length to the original one."""
    low_freq_factor: float = 1.0
    """llama3: wavelengths longer than original_max_seq_len / low_freq_factor are scaled by the full factor."""
    high_freq_factor: float = 4.0
    """llama3: wavelengths shorter than original_max_seq_len / high_freq_factor are not scaled."""
    original_max_seq_len: int = 8192
    """llama3 and yarn: context length, in tokens, that the unscaled frequencies were trained for."""
    beta_fast: float = 32.0
    """yarn: pairs with more rotations than this in the original context are not scaled."""
    beta_slow: float = 1.0
    """yarn: pairs with fewer rotations than this in the original context are scaled by the full factor."""
    attention_factor: float = 0.0
    """yarn: factor of the rotated queries and keys; 0 takes 0.1 · ln(factor) + 1."""
    truncate: bool = True
    """yarn: round the limits between scaled and unscaled pairs to whole pairs."""

    def __post_init__(self) -> None:
        group = "model.rope_scaling"
        at_least(group, self, 1, "factor", "original_max_seq_len")
        require(group, "low_freq_factor", self.low_freq_factor, self.low_freq_factor > 0, "more than 0")
        ordered = self.high_freq_factor > self.low_freq_factor
        require(group, "high_freq_factor", self.high_freq_factor, ordered, "more than low_freq_factor")
        require(group, "beta_slow", self.beta_slow, self.beta_slow > 0, "more than 0")
        require(group, "beta_fast", self.beta_fast, self.beta_fast >= self.beta_slow, "at least beta_slow")
        at_least(group, self, 0, "attention_factor")


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
    previous_tokens: int = 0
    """Number of tokens before each whose embeddings are added to its own, from a table for each distance; not those of
    other documents."""
    rope_theta: float = 10000.0
    """Base θ of the RoPE frequencies."""
    rope_scaling: RopeScaling | None = None
    """Scaling of the RoPE frequencies; null for none."""
    rotary_dim: int = 0
    """Number of features of each head that RoPE rotates, an even number; 0 takes head_dim. Feature i is rotated with
    feature i + head_dim / 2, for i < rotary_dim / 2."""
    layer_types: list[str] = field(default_factory=lambda: ["full"])
    """Attention of each layer; a shorter list repeats. full attends to all tokens before, sliding to the last
    sliding_window of them, and nope is full attention without RoPE."""
    sliding_window: int = 0
    """Number of tokens that a sliding layer attends to, the token itself included."""
    sliding_rope_theta: float = 0.0
    """Base of the unscaled RoPE frequencies of sliding layers; 0 takes those of the other layers."""
    norm: Literal["rmsnorm", "zero_centered_rmsnorm", "layernorm", "none"] = "rmsnorm"
    """Normalization layer. zero_centered_rmsnorm multiplies by 1 + weight, as in Gemma; layernorm always has a weight
    and a bias, whatever model.bias says."""
    norm_placement: Literal["pre", "post", "sandwich", "output"] = "pre"
    """pre normalizes the inputs of attention and feed-forward; post normalizes the residual stream after each, and has
    no final norm, as in the original Transformer; sandwich normalizes both inputs and outputs; output only outputs, as
    in OLMo 2."""
    norm_eps: float = 1e-5
    """Added, inside the square root, to the mean square in RMSNorm and to the variance in LayerNorm."""
    qk_norm: bool | Literal["all_heads"] = False
    """Apply RMSNorm to queries and keys before rotation: true to each head, with weights shared by all heads, as in
    Qwen3; all_heads to all heads at once, as in OLMo 2."""
    mlp: Literal["swiglu", "geglu", "geglu_tanh", "gelu", "gelu_tanh", "relu"] = "swiglu"
    """Feed-forward layer: gated with SiLU or GELU, or two linear layers with GELU or ReLU. GELU is exact, x · Φ(x), or
    its approximation with tanh."""
    bias: bool | Literal["qkv", "attention", "mlp"] = False
    """Give linear layers of the blocks a bias: true all, qkv those of queries, keys and values, attention these and the
    output projection, mlp those of the feed-forward layer. The output head has none."""
    parallel_residual: bool = False
    """Apply attention and feed-forward to the same input and add both, as in GPT-NeoX; with norm_placement: pre."""
    embedding_scale: float = 1.0
    """Factor of the token embeddings."""
    residual_scale: float = 1.0
    """Factor of the output of each residual branch."""
    attention_scale: float = 0.0
    """Factor of the attention scores; 0 takes 1 / √head_dim."""
    attention_softcap: float = 0.0
    """Maximum c of the attention scores s, which become c · tanh(s / c), as in Gemma 2; 0 for none."""
    logit_divisor: float = 1.0
    """Divides the logits."""
    logit_softcap: float = 0.0
    """Maximum c of the logits z, which become c · tanh(z / c); 0 for none."""
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
    lora: LoraConfig | None = None
    """Adapters, which alone are trained; null trains all weights."""

    def __post_init__(self) -> None:
        at_least("model", self, 0, "vocab_size", "n_kv_heads", "head_dim", "ffn_dim", "rotary_dim", "sliding_window")
        at_least("model", self, 0, "previous_tokens")
        at_least("model", self, 1, "dim", "n_layers", "n_heads")
        at_least("model", self, 2, "max_seq_len")
        if explicit(self.head_dim) == 0:
            even = self.dim % self.n_heads == 0
            require("model", "dim", self.dim, even, f"a multiple of n_heads = {self.n_heads}, or set model.head_dim")
        head_dim = explicit(self.head_dim) or self.dim // self.n_heads
        derived = {
            "n_kv_heads": self.n_heads,
            "head_dim": head_dim,
            "rotary_dim": head_dim,
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
        self._check_layers(rotary)
        at_least("model", self, 0, "sliding_rope_theta", "attention_scale", "attention_softcap", "logit_softcap")
        for name in ("embedding_scale", "residual_scale", "logit_divisor"):
            value = getattr(self, name)
            require("model", name, value, value > 0, "more than 0")
        scaling = self.rope_scaling
        grows = scaling is None or scaling.type != "yarn" or self.rope_theta > 1
        require("model", "rope_theta", self.rope_theta, grows, "more than 1 with rope_scaling.type: yarn")
        centered = self.norm == "zero_centered_rmsnorm" and self.qk_norm == "all_heads"
        require("model", "qk_norm", self.qk_norm, not centered, f"true or false with norm: {self.norm}")
        before = self.norm_placement == "pre" or not self.parallel_residual
        require("model", "parallel_residual", True, before, f"false with norm_placement: {self.norm_placement}")
        require("model", "norm_eps", self.norm_eps, self.norm_eps > 0, "more than 0")
        require("model", "dropout", self.dropout, 0 <= self.dropout < 1, "at least 0 and less than 1")

    def _check_layers(self, rotary: bool) -> None:
        whole = self.rotary_dim % 2 == 0 and self.rotary_dim <= self.head_dim
        expected = f"an even number up to head_dim = {self.head_dim}"
        require("model", "rotary_dim", self.rotary_dim, whole or not rotary, expected)
        require("model", "layer_types", self.layer_types, bool(self.layer_types), "at least one layer type")
        for kind in self.layer_types:
            require("model", "layer_types", kind, kind in LAYER_TYPES, f"one of {', '.join(LAYER_TYPES)}")
        fits = len(self.layer_types) <= self.n_layers
        require("model", "layer_types", self.layer_types, fits, f"at most n_layers = {self.n_layers} of them")
        expected = f"other layer types with position: {self.position}"
        require("model", "layer_types", "nope", rotary or "nope" not in self.layer_types, expected)
        sliding = "sliding" in self.layer_types
        expected = "the number of tokens" if sliding else "0 without a sliding layer"
        require("model", "sliding_window", self.sliding_window, sliding == bool(self.sliding_window), expected)
        used = not self.sliding_rope_theta or (sliding and rotary)
        require("model", "sliding_rope_theta", self.sliding_rope_theta, used, "0 without a sliding layer with RoPE")
        same = not self.scan_layers or len(set(self.layer_types)) == 1
        require("model", "scan_layers", True, same, f"false with several layer types: {', '.join(self.layer_types)}")

    def layer_type(self, layer: int) -> str:
        """Return the layer type of one layer, counted from 0."""
        return self.layer_types[layer % len(self.layer_types)]

    def window(self, layer: int) -> int:
        """Return the number of tokens that a token attends to in one layer, counted from 0; 0 for all."""
        return self.sliding_window if self.layer_type(layer) == "sliding" else 0

    def biased(self, projection: str) -> bool:
        """Return whether a linear layer of a block, such as `q_proj`, has a bias."""
        groups = {"qkv": PROJECTIONS[:3], "attention": PROJECTIONS[:4], "mlp": PROJECTIONS[4:]}
        return projection in groups[self.bias] if isinstance(self.bias, str) else self.bias

    def check_lora(self) -> None:
        """Check that the adapters fit the architecture, once that is known: it may be that of `train.init_from`.

        Raises:
            UserError: a target is no layer of this model, or the rank is larger than a side of its matrix.
        """
        if self.lora is None:
            return
        lora, shapes = self.lora, self.linear_shapes
        known = set(lora.targets) <= shapes.keys()
        require("model.lora", "targets", lora.targets, known, f"any of {', '.join(shapes)} with mlp: {self.mlp}")
        name = min(lora.targets, key=lambda name: min(shapes[name]))
        largest = min(shapes[name])
        expected = f"at most {largest}, the smaller side of {name}"
        require("model.lora", "rank", lora.rank, lora.rank <= largest, expected)

    @property
    def linear_shapes(self) -> dict[str, tuple[int, int]]:
        """Number of inputs and of outputs of each linear layer of a block, by its name."""
        queries, keys = self.n_heads * self.head_dim, self.n_kv_heads * self.head_dim
        attention = {"q_proj": queries, "k_proj": keys, "v_proj": keys}
        gated = ("gate_proj", "up_proj") if self.mlp in GATED else ("up_proj",)
        shapes = {name: (self.dim, width) for name, width in attention.items()} | {"o_proj": (queries, self.dim)}
        shapes |= dict.fromkeys(gated, (self.dim, self.ffn_dim))
        return shapes | {"down_proj": (self.ffn_dim, self.dim)}

    @property
    def has_dropout(self) -> bool:
        """Whether training draws random masks."""
        return self.dropout > 0 or (self.lora is not None and self.lora.dropout > 0)
