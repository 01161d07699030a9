"""The decoder: RMSNorm, rotary grouped-query attention and SwiGLU, in that reading order, as in Llama.

Other configs choose other parts by a field each, when the model is made: norms from `norms.py`, positions from
`positions.py`, feed-forward layers from `mlps.py`, linear layers from `linear.py`, and a block below.

Shape letters: B batch, T query positions, S key positions, D model width, N query heads, K key/value heads, G = N/K,
H head width, F feed-forward width, V vocabulary, L layers. Parameters are float32 (float64 in the float64
mode) and so are the residual stream, norms and softmax; `dtype` is the type of the matrix products.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lmcore.config import ModelConfig
from lmcore.model.rope import rope_tables
from torchlm.attention import attention, by_head, cache_mask, causal_attention
from torchlm.dropout import Key, dropout, split
from torchlm.gradients import rms_normed
from torchlm.linear import LINEARS, Linear, product
from torchlm.mlps import GEGLU, GELU, ReLU
from torchlm.norms import LayerNorm, NoNorm
from torchlm.positions import POSITIONS, unturned

__all__ = [
    "Attention",
    "Block",
    "Cache",
    "Decoder",
    "PostNormBlock",
    "RMSNorm",
    "SandwichBlock",
    "SwiGLU",
    "rotate",
]

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Mixes values: queries B T N H, keys and values B S K H -> B T N H."""


class RMSNorm(nn.Module):
    """x / √(mean(x²) + eps), then times weight (Zhang & Sennrich 2019, arXiv:1910.07467; the order is Llama's)."""

    def __init__(self, dim: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x: Float[Tensor, "*B D"]) -> Float[Tensor, "*B D"]:
        wide = x.to(self.weight.dtype)
        normed = rms_normed(wide, self.eps)
        return normed.to(x.dtype) * self.weight.to(x.dtype)


NORMS = {"rmsnorm": RMSNorm, "layernorm": LayerNorm, "none": NoNorm}
"""`model.norm` -> its class."""


def rotate(
    x: Float[Tensor, "B T N H"], cos: Float[Tensor, "#B T H"], sin: Float[Tensor, "#B T H"]
) -> Float[Tensor, "B T N H"]:
    """Turn feature pairs (i, i + H/2) of every head by their position's angles, in the tables' type."""
    cos, sin = cos.unsqueeze(2), sin.unsqueeze(2)  # the same for all heads
    wide = x.to(cos.dtype)
    turned = torch.addcmul(wide * cos, wide.roll(x.shape[-1] // 2, dims=-1), sin)
    return turned.to(x.dtype)


class Attention(nn.Module):
    """Self-attention whose query heads share key/value heads in groups (Ainslie et al. 2023, arXiv:2305.13245)."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        linear, norm = LINEARS[config.bias], RMSNorm if config.qk_norm else NoNorm
        self.head_dim = config.head_dim
        self.q_proj = linear(config.dim, config.n_heads * config.head_dim)
        self.k_proj = linear(config.dim, config.n_kv_heads * config.head_dim)
        self.v_proj = linear(config.dim, config.n_kv_heads * config.head_dim)
        self.q_norm = norm(config.head_dim, config.norm_eps)
        self.k_norm = norm(config.head_dim, config.norm_eps)
        self.o_proj = linear(config.n_heads * config.head_dim, config.dim)
        self.turn = rotate if config.position == "rope" else unturned

    def forward(
        self, x: Float[Tensor, "B T D"], cos: Float[Tensor, "#B T H"], sin: Float[Tensor, "#B T H"], attend: Attend
    ) -> Float[Tensor, "B T D"]:
        q, k, v = self.heads(x, cos, sin)
        return self.o_proj(attend(q, k, v).reshape(*x.shape[:2], -1))

    def heads(
        self, x: Float[Tensor, "B T D"], cos: Float[Tensor, "#B T _"], sin: Float[Tensor, "#B T _"]
    ) -> tuple[Float[Tensor, "B T N H"], Float[Tensor, "B T K H"], Float[Tensor, "B T K H"]]:
        """Queries, keys and values, the first two normed and turned."""
        q, k, v = (y.view(*x.shape[:2], -1, self.head_dim) for y in (self.q_proj(x), self.k_proj(x), self.v_proj(x)))
        return self.turn(self.q_norm(q), cos, sin), self.turn(self.k_norm(k), cos, sin), v


class SwiGLU(nn.Module):
    """Feed-forward layer gated by SiLU (Shazeer 2020, arXiv:2002.05202)."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        linear = LINEARS[config.bias]
        self.gate_proj = linear(config.dim, config.ffn_dim)
        self.up_proj = linear(config.dim, config.ffn_dim)
        self.down_proj = linear(config.ffn_dim, config.dim)

    def forward(self, x: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:
        gate, up = self.project(x)
        return self.down_proj(F.silu(gate) * up)

    def project(self, x: Float[Tensor, "B T D"]) -> tuple[Tensor, ...]:
        """The gate before its SiLU, and what it lets through."""
        return self.gate_proj(x), self.up_proj(x)


MLPS = {"swiglu": SwiGLU, "geglu": GEGLU, "gelu": GELU, "relu": ReLU}
"""`model.mlp` -> its class."""


class Block(nn.Module):
    """Attention, then feed-forward, each normed before and added to the residual stream after."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        norm = NORMS[config.norm]
        self.input_layernorm = norm(config.dim, config.norm_eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = norm(config.dim, config.norm_eps)
        self.mlp = MLPS[config.mlp](config)
        self.dropout = config.dropout

    def forward(
        self,
        x: Float[Tensor, "B T D"],
        cos: Float[Tensor, "#B T H"],
        sin: Float[Tensor, "#B T H"],
        attend: Attend,
        key: Key = None,
    ) -> Float[Tensor, "B T D"]:
        attn_key, mlp_key = split(key, 2)
        x = x + dropout(self.self_attn(self.input_layernorm(x), cos, sin, attend), self.dropout, attn_key)
        return x + dropout(self.mlp(self.post_attention_layernorm(x)), self.dropout, mlp_key)


class PostNormBlock(nn.Module):
    """Attention, then feed-forward, the residual stream itself normed after each (Vaswani et al. 2017)."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        norm = NORMS[config.norm]
        self.self_attn = Attention(config)
        self.attention_output_layernorm = norm(config.dim, config.norm_eps)
        self.mlp = MLPS[config.mlp](config)
        self.mlp_output_layernorm = norm(config.dim, config.norm_eps)
        self.dropout = config.dropout

    def forward(
        self,
        x: Float[Tensor, "B T D"],
        cos: Float[Tensor, "#B T H"],
        sin: Float[Tensor, "#B T H"],
        attend: Attend,
        key: Key = None,
    ) -> Float[Tensor, "B T D"]:
        attn_key, mlp_key = split(key, 2)
        x = x + dropout(self.self_attn(x, cos, sin, attend), self.dropout, attn_key)
        x = self.attention_output_layernorm(x)
        return self.mlp_output_layernorm(x + dropout(self.mlp(x), self.dropout, mlp_key))


class SandwichBlock(nn.Module):
    """Attention, then feed-forward, each normed before and after (Ding et al. 2021, arXiv:2105.13290)."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        norm = NORMS[config.norm]
        self.input_layernorm = norm(config.dim, config.norm_eps)
        self.self_attn = Attention(config)
        self.attention_output_layernorm = norm(config.dim, config.norm_eps)
        self.post_attention_layernorm = norm(config.dim, config.norm_eps)
        self.mlp = MLPS[config.mlp](config)
        self.mlp_output_layernorm = norm(config.dim, config.norm_eps)
        self.dropout = config.dropout

    def forward(
        self,
        x: Float[Tensor, "B T D"],
        cos: Float[Tensor, "#B T H"],
        sin: Float[Tensor, "#B T H"],
        attend: Attend,
        key: Key = None,
    ) -> Float[Tensor, "B T D"]:
        attn_key, mlp_key = split(key, 2)
        mixed = self.attention_output_layernorm(self.self_attn(self.input_layernorm(x), cos, sin, attend))
        x = x + dropout(mixed, self.dropout, attn_key)
        fed = self.mlp_output_layernorm(self.mlp(self.post_attention_layernorm(x)))
        return x + dropout(fed, self.dropout, mlp_key)


BLOCKS = {"pre": Block, "post": PostNormBlock, "sandwich": SandwichBlock}
"""`model.norm_placement` -> its class."""


class Cache(NamedTuple):
    """Keys and values of the columns seen so far, one tensor per layer, for decoding; updated in place."""

    keys: tuple[Float[Tensor, "B K S H"], ...]
    values: tuple[Float[Tensor, "B K S H"], ...]
    pads: Int[Tensor, " B"]
    """Columns of left padding in each row."""
    length: int
    """Columns filled, the same for all rows."""


class Decoder(nn.Module):
    """The language model: embedding, L blocks, final norm, output head.

    With norm_placement: post there is no final norm, since the last block ends with one.
    """

    def __init__(self, config: ModelConfig, dtype: torch.dtype = torch.float32, remat: bool = False):
        super().__init__()
        self.config = config
        self.dtype = dtype
        self.remat = remat
        self.embed_tokens = nn.Embedding(config.vocab_size, config.dim)
        self.embed_positions = POSITIONS[config.position](config)
        self.layers = nn.ModuleList([BLOCKS[config.norm_placement](config) for _ in range(config.n_layers)])
        final = NoNorm if config.norm_placement == "post" else NORMS[config.norm]
        self.norm = final(config.dim, config.norm_eps)
        if not config.tie_embeddings:
            self.lm_head = Linear(config.dim, config.vocab_size)
        wide = torch.promote_types(dtype, torch.float32)
        self.to(wide)
        for name, table in zip(("cos", "sin"), rope_tables(config)):
            self.register_buffer(name, torch.tensor(table, dtype=wide, device="cpu"), persistent=False)

    def forward(self, tokens: Int[Tensor, "B T"]) -> Float[Tensor, "B T V"]:
        """Logits of the next token at every position, in the parameters' type."""
        return self.logits(self.hidden(tokens))

    def products(self) -> torch.autocast:
        """Context in which matrix products are in `dtype`."""
        lower = self.dtype in (torch.bfloat16, torch.float16)
        return torch.autocast(self.embed_tokens.weight.device.type, self.dtype if lower else None, enabled=lower)

    @property
    def head(self) -> Float[Tensor, "V D"]:
        """Weight of the output head, the embedding's where they are tied."""
        return self.get_parameter("embed_tokens.weight" if self.config.tie_embeddings else "lm_head.weight")

    def hidden(self, tokens: Int[Tensor, "B T"], key: Key = None) -> Float[Tensor, "B T D"]:
        """Final normed activations; a key switches dropout on."""
        positions = torch.arange(tokens.shape[1], device=tokens.device)[None]
        cos, sin = self.rope(positions)
        first, *keys = split(key, 2 * len(self.layers) + 1)
        x = dropout(self.embed_positions(self.embed_tokens(tokens), positions), self.config.dropout, first)
        with self.products():
            for block, weights_key, block_key in zip(self.layers, keys[::2], keys[1::2], strict=True):
                attend = partial(causal_attention, rate=self.config.dropout, key=weights_key)
                step = partial(block, cos=cos, sin=sin, attend=attend, key=block_key)
                x = checkpoint(step, x, use_reentrant=False) if self.remat and self.training else step(x)
        return self.norm(x)

    def logits(self, hidden: Float[Tensor, "*B D"]) -> Float[Tensor, "*B V"]:
        """Output head, its products in `dtype` and its result in the parameters' type."""
        with self.products():
            return product(hidden, self.head).to(hidden.dtype)

    def rope(self, positions: Int[Tensor, "B T"]) -> tuple[Float[Tensor, "#B T H"], Float[Tensor, "#B T H"]]:
        """Cosines and sines of the given positions, in the parameters' type."""
        cos, sin = self.get_buffer("cos"), self.get_buffer("sin")
        return cos[positions], sin[positions]

    def empty_cache(self, pads: Int[Tensor, " B"], size: int) -> Cache:
        """Room for `size` columns, of which row b leaves its first pads[b] empty."""
        shape = (len(pads), self.config.n_kv_heads, size, self.config.head_dim)
        keys, values = (
            tuple(torch.zeros(shape, dtype=self.dtype, device=pads.device) for _ in self.layers) for _ in range(2)
        )
        return Cache(keys, values, pads, 0)

    def decode(self, tokens: Int[Tensor, "B T"], cache: Cache) -> tuple[Float[Tensor, "B V"], Cache]:
        """Append T columns to the cache; logits of the token after the last of them."""
        end = cache.length + tokens.shape[1]
        columns = torch.arange(cache.length, end, device=tokens.device)
        positions = (columns[None] - cache.pads[:, None]).clamp_min(0)
        cos, sin = self.rope(positions)
        seen = cache_mask(columns, cache.pads, end)
        mask = torch.zeros_like(seen, dtype=self.dtype).masked_fill_(~seen, -torch.inf)  # as the kernel takes it

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            keys, values = cache.keys[layer], cache.values[layer]
            keys[:, :, cache.length : end] = by_head(k)
            values[:, :, cache.length : end] = by_head(v)
            return attention(q, keys[:, :, :end], values[:, :, :end], mask)

        x = self.embed_positions(self.embed_tokens(tokens), positions)
        with self.products():
            for layer, block in enumerate(self.layers):
                x = block(x, cos, sin, partial(attend, layer))
        return self.logits(self.norm(x[:, -1:])[:, 0]), cache._replace(length=end)
