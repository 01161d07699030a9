"""The decoder: RMSNorm, rotary grouped-query attention and blocks of attention and feed-forward, in reading order.

The default is the Llama architecture. Other configs replace parts of it, one field each: norms from `norms.py`,
positions from `positions.py`, activations from `mlps.py` and linear layers from `linear.py`.

Shape letters: B batch, T query positions, S key positions, D model width, N query heads, K key/value heads, G = N/K,
H head width, F feed-forward width, V vocabulary, L layers. Parameters are float32 (float64 in the float64
mode) and so are the residual stream, norms and softmax; `dtype` is the dtype of the matmuls.
"""

import math
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from jaxlm.attention import attention, by_head, causal_mask
from jaxlm.cache import Cache, at, write
from jaxlm.dropout import Key, dropout, split
from jaxlm.fast.attention import causal_attention
from jaxlm.fast.linear import linear
from jaxlm.layers import LAYERS
from jaxlm.linear import LINEARS, Linear
from jaxlm.mlps import make_mlp
from jaxlm.norms import LayerNorm, NoNorm, ZeroCenteredRMSNorm
from jaxlm.positions import POSITIONS, unrotated
from jaxlm.previous import PREVIOUS, latest, preceding
from jaxlm.scales import softcapped, times, unchanged
from jaxlm.sharding import gather_positions, on_mesh, over_heads, split_positions
from lmcore.config import ModelConfig
from lmcore.model.rope import rope_tables

__all__ = ["Attention", "Block", "Decoder", "Embedding", "RMSNorm", "rotate"]

Attend = Callable[[Array, Array, Array], Array]
"""Attention of queries B T N H to keys and values B S K H -> B T N H."""


class Embedding(nnx.Module):
    """One row of weights per token id."""

    def __init__(self, vocab_size: int, dim: int):
        self.weight = nnx.Param(jnp.zeros((vocab_size, dim)))

    def __call__(self, tokens: Int[Array, "B T"]) -> Float[Array, "B T D"]:
        # Whole rows: of those split over fsdp, as the sequences are too, XLA would gather the gradients of all tokens.
        return on_mesh(self.weight[...], "tensor", None)[tokens]


class RMSNorm(nnx.Module):
    """RMSNorm: x / √(mean(x²) + eps), then times weight (Zhang & Sennrich 2019, arXiv:1910.07467; in Llama's order)."""

    def __init__(self, dim: int, eps: float):
        self.weight = nnx.Param(jnp.ones(dim))
        self.eps = eps

    def __call__(self, x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
        full = x.astype(self.weight.dtype)
        normed = full * jax.lax.rsqrt(jnp.mean(full * full, axis=-1, keepdims=True) + self.eps)
        return normed.astype(x.dtype) * self.weight[(None,) * (x.ndim - 1)].astype(x.dtype)


class AllHeadsRMSNorm(RMSNorm):
    """RMSNorm over the features of all heads, as in OLMo 2."""

    def __call__(self, x: Float[Array, "B T N H"]) -> Float[Array, "B T N H"]:
        return super().__call__(x.reshape(*x.shape[:2], -1)).reshape(x.shape)


NORMS = {"rmsnorm": RMSNorm, "zero_centered_rmsnorm": ZeroCenteredRMSNorm, "layernorm": LayerNorm, "none": NoNorm}
"""`model.norm` -> its class."""


def head_norm(config: ModelConfig, n_heads: int) -> nnx.Module:
    """Return the norm of queries or keys that `model.qk_norm` asks for."""
    if config.qk_norm == "all_heads":
        return AllHeadsRMSNorm(n_heads * config.head_dim, config.norm_eps)
    per_head = ZeroCenteredRMSNorm if config.norm == "zero_centered_rmsnorm" else RMSNorm
    return (per_head if config.qk_norm else NoNorm)(config.head_dim, config.norm_eps)


def rotate(
    x: Float[Array, "B T N H"], cos: Float[Array, "#B T H"], sin: Float[Array, "#B T H"]
) -> Float[Array, "B T N H"]:
    """Rotate feature pairs (i, i + H/2) of every head by their position's angles, in the tables' dtype.

    Args:
        x: queries or keys.
        cos: cosine of each feature's angle.
        sin: sine of each feature's angle, negative in the first half of the features, so that one roll suffices.
    """
    cos, sin = cos[:, :, None], sin[:, :, None]  # the same for all heads
    full = x.astype(cos.dtype)
    rotated = full * cos + jnp.roll(full, x.shape[-1] // 2, axis=-1) * sin
    return rotated.astype(x.dtype)


class Attention(nnx.Module):
    """Self-attention whose query heads share key/value heads in groups (Ainslie et al. 2023, arXiv:2305.13245)."""

    def __init__(self, config: ModelConfig, dtype: jnp.dtype):
        queries, keys = config.n_heads * config.head_dim, config.n_kv_heads * config.head_dim
        self.head_dim = config.head_dim
        self.q_proj = LINEARS[config.biased("q_proj")](config.dim, queries, dtype)
        self.k_proj = LINEARS[config.biased("k_proj")](config.dim, keys, dtype)
        self.v_proj = LINEARS[config.biased("v_proj")](config.dim, keys, dtype)
        self.q_norm = head_norm(config, config.n_heads)
        self.k_norm = head_norm(config, config.n_kv_heads)
        self.o_proj = LINEARS[config.biased("o_proj")](queries, config.dim, dtype)
        # `attention` divides the scores by √H.
        self.scale = times(config.attention_scale * math.sqrt(config.head_dim) or 1.0)
        self.rotate = rotate if config.position == "rope" else unrotated

    def __call__(
        self, x: Float[Array, "B T D"], cos: Float[Array, "#B T H"], sin: Float[Array, "#B T H"], attend: Attend
    ) -> Float[Array, "B _ D"]:
        """Apply self-attention; `attend` decides which positions each query attends to, and which queries there are.

        Args:
            x: normed activations.
            cos: RoPE cosines of each position.
            sin: RoPE sines of each position, signed as `rotate` takes them.
            attend: attention of queries to keys and values: over the whole sequence, or over a KV cache.
        """
        q, k, v = self.heads(x, cos, sin)
        mixed = attend(q, k, v)
        return self.o_proj(mixed.reshape(*mixed.shape[:2], -1))

    def heads(
        self, x: Float[Array, "B T D"], cos: Float[Array, "#B T _"], sin: Float[Array, "#B T _"]
    ) -> tuple[Float[Array, "B T N H"], Float[Array, "B T K H"], Float[Array, "B T K H"]]:
        """Return queries, keys and values; queries and keys are normed and rotated.

        Args:
            x: normed activations.
            cos: RoPE cosines of each position.
            sin: RoPE sines of each position, signed as `rotate` takes them.
        """
        q, k, v = (y.reshape(*x.shape[:2], -1, self.head_dim) for y in (self.q_proj(x), self.k_proj(x), self.v_proj(x)))
        return self.scale(self.rotate(self.q_norm(q), cos, sin)), self.rotate(self.k_norm(k), cos, sin), v


class Block(nnx.Module):
    """Attention, then feed-forward, each a branch of the residual stream, with norms where `norm_placement` has them.

    pre: before each branch; post: of the stream, after each branch is added (Vaswani et al. 2017, arXiv:1706.03762);
    sandwich: before and after each branch (Ding et al. 2021, arXiv:2105.13290); output: after each branch (OLMo et al.
    2025, arXiv:2501.00656).
    """

    def __init__(self, config: ModelConfig, dtype: jnp.dtype, sequence: bool = False, layer: int = 0):
        norm = partial(NORMS[config.norm], config.dim, config.norm_eps)
        self.placement = config.norm_placement
        before, after = self.placement in ("pre", "sandwich"), self.placement != "pre"
        self.input_layernorm = norm() if before else unchanged
        self.self_attn = Attention(config, dtype)
        self.attention_output_layernorm = norm() if after else unchanged
        self.post_attention_layernorm = norm() if before else unchanged
        self.mlp = make_mlp(config, dtype)
        self.mlp_output_layernorm = norm() if after else unchanged
        self.dropout = config.dropout
        self.scale = times(config.residual_scale)
        self.parallel = config.parallel_residual
        self.layer = layer
        self.split, self.gather = (partial(f, sequence=sequence) for f in (split_positions, gather_positions))

    def __call__(
        self,
        x: Float[Array, "B T D"],
        cos: Float[Array, "#B T H"],
        sin: Float[Array, "#B T H"],
        attend: Attend,
        key: Key = None,
        keep: Callable[[Array], Array] = unchanged,
    ) -> Float[Array, "B _ D"]:
        """Apply attention, then the feed-forward layer, to the residual stream.

        Args:
            x: the residual stream.
            cos: RoPE cosines of each position.
            sin: RoPE sines of each position, signed as `rotate` takes them.
            attend: attention of queries to keys and values: over the whole sequence, or over a KV cache.
            key: random key of the branches' dropout masks; None switches dropout off.
            keep: selects the positions of the residual stream that `attend` has queries for; all, unless others are
                not needed.
        """
        attn_key, mlp_key = split(key, 2)
        mixed = self.self_attn(self.gather(self.input_layernorm(x)), cos, sin, attend)
        x = keep(x)
        attended = self.add(x, self.split(mixed), self.attention_output_layernorm, attn_key)
        fed = self.mlp(self.gather(self.post_attention_layernorm(x if self.parallel else attended)))
        return self.add(attended, self.split(fed), self.mlp_output_layernorm, mlp_key)

    def add(
        self,
        x: Float[Array, "B T D"],
        branch: Float[Array, "B T D"],
        norm: Callable[[Array], Array],
        key: Key,
    ) -> Float[Array, "B T D"]:
        """Add a branch to the residual stream, and apply the norm to the sum or to the branch.

        Args:
            x: the residual stream.
            branch: output of attention or of the feed-forward layer.
            norm: applied to the sum where `norm_placement` is post, else to the branch.
            key: random key of the branch's dropout mask; None switches dropout off.
        """
        if self.placement == "post":
            return norm(x + dropout(self.scale(branch), self.dropout, key))
        return x + dropout(self.scale(norm(branch)), self.dropout, key)


class Decoder(nnx.Module):
    """The language model: embedding, L blocks, final norm, output head.

    With norm_placement: post there is no final norm, since the last block ends with one.
    """

    def __init__(
        self, config: ModelConfig, dtype: jnp.dtype = jnp.float32, remat: bool = False, sequence: bool = False
    ):
        self.config = config
        self.dtype = dtype
        self.remat = remat
        self.split, self.gather = (partial(f, sequence=sequence) for f in (split_positions, gather_positions))
        self.through = LAYERS[config.scan_layers]
        self.embed_tokens = Embedding(config.vocab_size, config.dim)
        self.embed_previous = PREVIOUS[config.previous_tokens > 0](config)
        self.embed_positions = POSITIONS[config.position](config)
        self.layers = nnx.List([Block(config, dtype, sequence, layer) for layer in range(config.n_layers)])
        final = NoNorm if config.norm_placement == "post" else NORMS[config.norm]
        self.norm = final(config.dim, config.norm_eps)
        if not config.tie_embeddings:
            self.lm_head = Linear(config.dim, config.vocab_size, dtype)
        self.scale = times(config.embedding_scale)
        self.divide, self.softcap = times(1 / config.logit_divisor), softcapped(config.logit_softcap)

    def __call__(self, tokens: Int[Array, "B T"], documents: Int[Array, "B T"] | None = None) -> Float[Array, "B T V"]:
        """Return the logits of the next token at every position, in the parameters' dtype."""
        return self.logits(self.hidden(tokens, documents=documents))

    def hidden(
        self, tokens: Int[Array, "B T"], key: Key = None, documents: Int[Array, "B T"] | None = None
    ) -> Float[Array, "B T D"]:
        """Return the activations after the final norm.

        Args:
            tokens: token ids.
            key: random key of the dropout masks; None switches dropout off.
            documents: position at which each token's document begins: attention is masked, and positions are counted,
                as if each document were a sequence by itself; None where a sequence is one document.
        """
        positions = jnp.arange(tokens.shape[1])[None]
        if documents is not None:
            positions = positions - documents
        tables = self.rope(positions)
        first, *keys = split(key, 2 * len(self.layers) + 1)
        x = dropout(self.embed(tokens, positions), self.config.dropout, first)
        plain = partial(causal_attention, rate=self.config.dropout, softcap=self.config.attention_softcap)

        def step(block: Block, x: Array, weights_key: Key, block_key: Key) -> Array:
            cos, sin = tables[self.config.layer_type(block.layer)]
            attend = over_heads(partial(plain, window=self.config.window(block.layer)), weights_key, documents)
            apply = partial(block, cos=cos, sin=sin, attend=attend, key=block_key)
            return jax.checkpoint(apply)(x) if self.remat else apply(x)

        x = self.through(step, self.layers, self.split(x), list(zip(keys[::2], keys[1::2])))
        return self.gather(self.norm(x))

    def logits(self, hidden: Float[Array, "*B D"]) -> Float[Array, "*B V"]:
        """Apply the output head: a matmul in `dtype`, its result in the parameters' dtype."""
        hidden = self.divide(hidden)
        if not self.config.tie_embeddings:
            return self.softcap(self.lm_head(hidden).astype(hidden.dtype))
        kernel = self.embed_tokens.weight[...].T
        return self.softcap(linear(hidden.astype(self.dtype), kernel.astype(self.dtype)).astype(hidden.dtype))

    def embed(
        self, tokens: Int[Array, "B T"], positions: Int[Array, "#B T"], previous: Int[Array, "B P"] | None = None
    ) -> Float[Array, "B T D"]:
        """Return the embeddings of these tokens at these positions.

        Args:
            tokens: token ids.
            positions: of the tokens in their documents.
            previous: ids of the `model.previous_tokens` tokens before the first; None where its document begins.
        """
        if previous is None:
            previous = jnp.zeros((len(tokens), self.config.previous_tokens), tokens.dtype)
        x = self.embed_previous(self.embed_tokens(tokens), preceding(tokens, previous), positions)
        return self.embed_positions(self.scale(x), positions)

    def rope(self, positions: Int[Array, "B T"]) -> dict[str, tuple[Float[Array, "#B T H"], Float[Array, "#B T H"]]]:
        """Return layer type -> RoPE cosines and sines of these positions, in the parameters' dtype."""
        tables = {}
        for kind in dict.fromkeys(self.config.layer_types):
            cos, sin = (jnp.asarray(table, self.embed_tokens.weight.dtype) for table in rope_tables(self.config, kind))
            tables[kind] = cos[positions], sin[positions]
        return tables

    def empty_cache(self, pads: Int[Array, " B"], size: int) -> Cache:
        """Return an empty cache of `size` slots per sequence; the first pads[b] slots of sequence b are masked."""
        shape = (len(pads) * self.config.n_kv_heads, size, self.config.head_dim)
        keys, values = (tuple(jnp.zeros(shape, self.dtype) for _ in self.layers) for _ in range(2))
        previous = jnp.zeros((len(pads), self.config.previous_tokens), jnp.int32)
        return Cache(keys, values, pads, jnp.zeros(len(pads), jnp.int32), previous)

    def decode(
        self, tokens: Int[Array, "B T"], cache: Cache, counts: Int[Array, " B"] | None = None
    ) -> tuple[Float[Array, "B V"], Cache]:
        """Append tokens to the cache; return the logits of the token after each sequence's last, and the new cache.

        Args:
            tokens: token ids.
            cache: with room for T more positions of each sequence.
            counts: number of tokens of each sequence that are appended, the rest being padding; None for all T.
        """
        counts = jnp.full(len(tokens), tokens.shape[1]) if counts is None else counts
        size = cache.keys[0].shape[1]
        starts = jnp.minimum(cache.lengths, size - tokens.shape[1])  # in range also where no token is to be appended
        slots = starts[:, None] + jnp.arange(tokens.shape[1])[None]  # KV-cache slots, where left padding comes first
        positions = jnp.maximum(slots - cache.pads[:, None], 0)
        tables = self.rope(positions)
        keys, values = list(cache.keys), list(cache.values)
        windows = set(map(self.config.window, range(len(self.layers))))
        masks = {window: causal_mask(slots, size, cache.pads, window=window) for window in windows}

        def attend(layer: int, q: Array, k: Array, v: Array) -> Array:
            keys[layer] = write(keys[layer], k, starts)
            values[layer] = write(values[layer], v, starts)
            mask = masks[self.config.window(layer)]
            return attention(q, keys[layer], values[layer], mask, softcap=self.config.attention_softcap)

        x = self.embed(tokens, positions, cache.previous)
        for layer, block in enumerate(self.layers):
            x = block(x, *tables[self.config.layer_type(layer)], partial(attend, layer))
        x = at(x, jnp.maximum(counts - 1, 0))
        previous = latest(tokens, cache.previous, counts)
        cache = Cache(tuple(keys), tuple(values), cache.pads, cache.lengths + counts, previous)
        return self.logits(self.norm(x)[:, 0]), cache

    def prefill(
        self, tokens: Int[Array, "B T"], cache: Cache, counts: Int[Array, " B"] | None = None
    ) -> tuple[Float[Array, "B V"], Cache]:
        """Do what `decode` does, faster, with an empty cache.

        Attention is that of training, and the last block computes no more than the logits need.

        Args:
            tokens: token ids.
            cache: empty, with room for T positions of each sequence.
            counts: number of tokens of each sequence, the rest being padding; None for all T.
        """
        counts = jnp.full(len(tokens), tokens.shape[1]) if counts is None else counts
        slots = jnp.arange(tokens.shape[1])[None]
        pads = cache.pads[:, None]
        positions = jnp.maximum(slots - pads, 0)
        tables = self.rope(positions)
        last = jnp.maximum(counts - 1, 0)
        documents = jnp.where(slots < pads, 0, pads)  # left padding is a document of its own
        keys, values = list(cache.keys), list(cache.values)

        def attend(layer: int, q: Array, k: Array, v: Array) -> Array:
            for cached, new in ((keys, k), (values, v)):
                cached[layer] = jax.lax.dynamic_update_slice(cached[layer], by_head(new), (0, 0, 0))
            window, softcap = self.config.window(layer), self.config.attention_softcap
            if layer < len(self.layers) - 1:
                return causal_attention(q, k, v, documents=documents, window=window, softcap=softcap)
            mask = causal_mask(last[:, None], k.shape[1], cache.pads, window=window)
            return attention(at(q, last), by_head(k), by_head(v), mask, softcap=softcap)

        x = self.embed(tokens, positions)
        for layer, block in enumerate(self.layers):
            keep = partial(at, index=last) if layer == len(self.layers) - 1 else unchanged
            x = block(x, *tables[self.config.layer_type(layer)], partial(attend, layer), keep=keep)
        previous = latest(tokens, cache.previous, counts)
        cache = Cache(tuple(keys), tuple(values), cache.pads, cache.lengths + counts, previous)
        return self.logits(self.norm(x)[:, 0]), cache
