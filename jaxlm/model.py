"""The decoder: RMSNorm, rotary grouped-query attention and SwiGLU, in that reading order, as in Llama.

Shape letters: B batch, T query positions, S key positions, D model width, N query heads, K key/value heads, G = N/K,
H head width, R = H/2, F feed-forward width, V vocabulary, L layers. Parameters are float32 (float64 in the float64
mode) and so are the residual stream, norms and softmax; `dtype` is the type of the matrix products.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from jaxlm.attention import by_head, cached_attention, causal_attention
from jaxlm.linear import Linear, product
from lmcore.config import ModelConfig
from lmcore.rope import rope_tables

__all__ = ["Attention", "Block", "Cache", "Decoder", "Embedding", "RMSNorm", "SwiGLU", "dropout", "rotate"]

Attend = Callable[[Array, Array, Array], Array]
"""Mixes values: queries B T N H, keys and values B S K H -> B T N H."""


class Embedding(nnx.Module):
    """One row of weights per token id."""

    def __init__(self, vocab_size: int, dim: int):
        self.weight = nnx.Param(jnp.zeros((vocab_size, dim)))

    def __call__(self, tokens: Int[Array, "B T"]) -> Float[Array, "B T D"]:
        return self.weight[...][tokens]


class RMSNorm(nnx.Module):
    """x / √(mean(x²) + eps), then times weight (Zhang & Sennrich 2019, arXiv:1910.07467; the order is Llama's)."""

    def __init__(self, dim: int, eps: float):
        self.weight = nnx.Param(jnp.ones(dim))
        self.eps = eps

    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        wide = x.astype(self.weight.dtype)
        normed = wide * jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + self.eps)
        return normed.astype(x.dtype) * self.weight[None, None]


def rotate(
    x: Float[Array, "B T N H"], cos: Float[Array, "#B T R"], sin: Float[Array, "#B T R"]
) -> Float[Array, "B T N H"]:
    """Turn feature pairs (i, i + H/2) of every head by their position's angles, in the tables' type."""
    cos, sin = cos[:, :, None], sin[:, :, None]  # the same for all heads
    first, second = jnp.split(x.astype(cos.dtype), 2, axis=-1)
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return turned.astype(x.dtype)


def dropout(x: Float[Array, "*S"], rate: float, key: jax.Array | None) -> Float[Array, "*S"]:
    """Zero a share `rate` of x and scale up the rest; without a key, x itself."""
    if key is None:
        return x
    kept = jax.random.bernoulli(key, 1 - rate, x.shape)
    return jnp.where(kept, x / (1 - rate), 0)


class Attention(nnx.Module):
    """Self-attention whose query heads share key/value heads in groups (Ainslie et al. 2023, arXiv:2305.13245)."""

    def __init__(self, config: ModelConfig, dtype: jnp.dtype):
        self.head_dim = config.head_dim
        self.q_proj = Linear(config.dim, config.n_heads * config.head_dim, dtype)
        self.k_proj = Linear(config.dim, config.n_kv_heads * config.head_dim, dtype)
        self.v_proj = Linear(config.dim, config.n_kv_heads * config.head_dim, dtype)
        self.o_proj = Linear(config.n_heads * config.head_dim, config.dim, dtype)

    def __call__(
        self, x: Float[Array, "B T D"], cos: Float[Array, "#B T R"], sin: Float[Array, "#B T R"], attend: Attend
    ) -> Float[Array, "B T D"]:
        heads = (*x.shape[:2], -1, self.head_dim)
        q = rotate(self.q_proj(x).reshape(heads), cos, sin)
        k = rotate(self.k_proj(x).reshape(heads), cos, sin)
        v = self.v_proj(x).reshape(heads)
        return self.o_proj(attend(q, k, v).reshape(*x.shape[:2], -1))


class SwiGLU(nnx.Module):
    """Feed-forward layer gated by SiLU (Shazeer 2020, arXiv:2002.05202)."""

    def __init__(self, config: ModelConfig, dtype: jnp.dtype):
        self.gate_proj = Linear(config.dim, config.ffn_dim, dtype)
        self.up_proj = Linear(config.dim, config.ffn_dim, dtype)
        self.down_proj = Linear(config.ffn_dim, config.dim, dtype)

    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        return self.down_proj(jax.nn.silu(self.gate_proj(x)) * self.up_proj(x))


class Block(nnx.Module):
    """Attention, then feed-forward, each normed before and added to the residual stream after."""

    def __init__(self, config: ModelConfig, dtype: jnp.dtype):
        self.input_layernorm = RMSNorm(config.dim, config.norm_eps)
        self.self_attn = Attention(config, dtype)
        self.post_attention_layernorm = RMSNorm(config.dim, config.norm_eps)
        self.mlp = SwiGLU(config, dtype)
        self.dropout = config.dropout

    def __call__(
        self,
        x: Float[Array, "B T D"],
        cos: Float[Array, "#B T R"],
        sin: Float[Array, "#B T R"],
        attend: Attend,
        key: jax.Array | None = None,
    ) -> Float[Array, "B T D"]:
        attn_key, mlp_key = (None, None) if key is None else jax.random.split(key)
        x = x + dropout(self.self_attn(self.input_layernorm(x), cos, sin, attend), self.dropout, attn_key)
        return x + dropout(self.mlp(self.post_attention_layernorm(x)), self.dropout, mlp_key)


class Cache(NamedTuple):
    """Keys and values of the columns seen so far, one array per layer, for decoding."""

    keys: tuple[Float[Array, "BK H S"], ...]
    values: tuple[Float[Array, "BK S H"], ...]
    pads: Int[Array, " B"]
    """Columns of left padding in each row."""
    length: Int[Array, ""]
    """Columns filled, the same for all rows."""


class Decoder(nnx.Module):
    """The language model: embedding, L blocks, final norm, output head."""

    def __init__(self, config: ModelConfig, dtype: jnp.dtype = jnp.float32, remat: bool = False):
        self.config = config
        self.dtype = dtype
        self.remat = remat
        self.embed_tokens = Embedding(config.vocab_size, config.dim)
        self.layers = nnx.List([Block(config, dtype) for _ in range(config.n_layers)])
        self.norm = RMSNorm(config.dim, config.norm_eps)
        if not config.tie_embeddings:
            self.lm_head = Linear(config.dim, config.vocab_size, dtype)

    def __call__(self, tokens: Int[Array, "B T"]) -> Float[Array, "B T V"]:
        """Logits of the next token at every position, in the parameters' type."""
        return self.logits(self.hidden(tokens))

    def hidden(self, tokens: Int[Array, "B T"], key: jax.Array | None = None) -> Float[Array, "B T D"]:
        """Final normed activations; a key switches dropout on."""
        cos, sin = self.rope(jnp.arange(tokens.shape[1])[None])
        keys = [None] * (len(self.layers) + 1) if key is None else list(jax.random.split(key, len(self.layers) + 1))
        x = dropout(self.embed_tokens(tokens), self.config.dropout, keys[-1])
        for block, block_key in zip(self.layers, keys):
            step = partial(block, cos=cos, sin=sin, attend=causal_attention, key=block_key)
            x = jax.checkpoint(step)(x) if self.remat else step(x)
        return self.norm(x)

    def logits(self, hidden: Float[Array, "*B D"]) -> Float[Array, "*B V"]:
        """Output head, its products in `dtype` and its result in the parameters' type."""
        if not self.config.tie_embeddings:
            return self.lm_head(hidden).astype(hidden.dtype)
        kernel = self.embed_tokens.weight[...].T
        return product(hidden.astype(self.dtype), kernel.astype(self.dtype)).astype(hidden.dtype)

    def rope(self, positions: Int[Array, "B T"]) -> tuple[Float[Array, "#B T R"], Float[Array, "#B T R"]]:
        """Cosines and sines of the given positions, in the parameters' type."""
        cos, sin = (jnp.asarray(table, self.embed_tokens.weight.dtype) for table in rope_tables(self.config))
        return cos[positions], sin[positions]

    def empty_cache(self, pads: Int[Array, " B"], size: int) -> Cache:
        """Room for `size` columns, of which row b leaves its first pads[b] empty."""
        rows, width = len(pads) * self.config.n_kv_heads, self.config.head_dim
        keys = tuple(jnp.zeros((rows, width, size), self.dtype) for _ in self.layers)
        values = tuple(jnp.zeros((rows, size, width), self.dtype) for _ in self.layers)
        return Cache(keys, values, pads, jnp.zeros((), jnp.int32))

    def decode(self, tokens: Int[Array, "B T"], cache: Cache) -> tuple[Float[Array, "B V"], Cache]:
        """Append T columns to the cache; logits of the token after the last of them."""
        columns = cache.length + jnp.arange(tokens.shape[1])
        cos, sin = self.rope(jnp.maximum(columns[None] - cache.pads[:, None], 0))
        keys, values = list(cache.keys), list(cache.values)

        def attend(layer: int, q: Array, k: Array, v: Array) -> Array:
            k, v = by_head(k).swapaxes(1, 2), by_head(v)
            keys[layer] = jax.lax.dynamic_update_slice_in_dim(keys[layer], k, cache.length, axis=2)
            values[layer] = jax.lax.dynamic_update_slice_in_dim(values[layer], v, cache.length, axis=1)
            return cached_attention(q, keys[layer], values[layer], columns, cache.pads)

        x = self.embed_tokens(tokens)
        for layer, block in enumerate(self.layers):
            x = block(x, cos, sin, partial(attend, layer))
        cache = Cache(tuple(keys), tuple(values), cache.pads, cache.length + tokens.shape[1])
        return self.logits(self.norm(x[:, -1:])[:, 0]), cache
