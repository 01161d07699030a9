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

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lmcore.config import ModelConfig
from lmcore.model.rope import rope_tables
from torchlm.attention import additive, attention, by_head, causal_mask
from torchlm.attention import causal_attention as plain_attention
from torchlm.cache import Cache, at, write
from torchlm.dropout import Key, dropout, split
from torchlm.fast.attention import causal_attention
from torchlm.fast.linear import linear
from torchlm.fast.norms import rms_normed
from torchlm.linear import LINEARS, Linear
from torchlm.mlps import make_mlp
from torchlm.norms import LayerNorm, NoNorm, ZeroCenteredRMSNorm
from torchlm.positions import POSITIONS, unrotated
from torchlm.previous import PREVIOUS, latest, preceding
from torchlm.scales import softcapped, times, unchanged
from torchlm.tensor_parallel import own_part, whole_last

__all__ = ["Attention", "Block", "Decoder", "RMSNorm", "rotate"]

KEYS = 64
"""Decoding reads a multiple of so many key positions: kernels for other numbers of them sum in another order, so that a
sequence's rounding would depend on the lengths of those beside it."""

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Attention of queries B T N H to keys and values B S K H -> B T N H."""


class RMSNorm(nn.Module):
    """RMSNorm: x / √(mean(x²) + eps), then times weight (Zhang & Sennrich 2019, arXiv:1910.07467; in Llama's order)."""

    def __init__(self, dim: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x: Float[Tensor, "*B D"]) -> Float[Tensor, "*B D"]:
        full = x.to(self.weight.dtype)
        if torch.is_grad_enabled():
            normed = rms_normed(full, self.eps)
        else:
            normed = full * torch.rsqrt(torch.mean(full * full, dim=-1, keepdim=True) + self.eps)
        return normed.to(x.dtype) * self.weight.to(x.dtype)


class AllHeadsRMSNorm(RMSNorm):
    """RMSNorm over the features of all heads, as in OLMo 2."""

    def forward(self, x: Float[Tensor, "B T N H"]) -> Float[Tensor, "B T N H"]:
        return super().forward(x.flatten(2)).view(x.shape)


NORMS = {"rmsnorm": RMSNorm, "zero_centered_rmsnorm": ZeroCenteredRMSNorm, "layernorm": LayerNorm, "none": NoNorm}
"""`model.norm` -> its class."""


def head_norm(config: ModelConfig, n_heads: int) -> nn.Module:
    """Return the norm of queries or keys that `model.qk_norm` asks for."""
    if config.qk_norm == "all_heads":
        return AllHeadsRMSNorm(n_heads * config.head_dim, config.norm_eps)
    per_head = ZeroCenteredRMSNorm if config.norm == "zero_centered_rmsnorm" else RMSNorm
    return (per_head if config.qk_norm else NoNorm)(config.head_dim, config.norm_eps)


def rotate(
    x: Float[Tensor, "B T N H"], cos: Float[Tensor, "#B T H"], sin: Float[Tensor, "#B T H"]
) -> Float[Tensor, "B T N H"]:
    """Rotate feature pairs (i, i + H/2) of every head by their position's angles, in the tables' dtype.

    Args:
        x: queries or keys.
        cos: cosine of each feature's angle.
        sin: sine of each feature's angle, negative in the first half of the features, so that one roll suffices.
    """
    cos, sin = cos.unsqueeze(2), sin.unsqueeze(2)  # the same for all heads
    full = x.to(cos.dtype)
    rotated = torch.addcmul(full * cos, full.roll(x.shape[-1] // 2, dims=-1), sin)
    return rotated.to(x.dtype)


class Attention(nn.Module):
    """Self-attention whose query heads share key/value heads in groups (Ainslie et al. 2023, arXiv:2305.13245)."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        queries, keys = config.n_heads * config.head_dim, config.n_kv_heads * config.head_dim
        self.head_dim = config.head_dim
        self.q_proj = LINEARS[config.biased("q_proj")](config.dim, queries)
        self.k_proj = LINEARS[config.biased("k_proj")](config.dim, keys)
        self.v_proj = LINEARS[config.biased("v_proj")](config.dim, keys)
        self.q_norm = head_norm(config, config.n_heads)
        self.k_norm = head_norm(config, config.n_kv_heads)
        self.o_proj = LINEARS[config.biased("o_proj")](queries, config.dim)
        # `attention` divides the scores by √H.
        self.scale = times(config.attention_scale * math.sqrt(config.head_dim) or 1.0)
        self.rotate = rotate if config.position == "rope" else unrotated

    def forward(
        self, x: Float[Tensor, "B T D"], cos: Float[Tensor, "#B T H"], sin: Float[Tensor, "#B T H"], attend: Attend
    ) -> Float[Tensor, "B _ D"]:
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
        self, x: Float[Tensor, "B T D"], cos: Float[Tensor, "#B T _"], sin: Float[Tensor, "#B T _"]
    ) -> tuple[Float[Tensor, "B T N H"], Float[Tensor, "B T K H"], Float[Tensor, "B T K H"]]:
        """Return queries, keys and values; queries and keys are normed and rotated.

        Args:
            x: normed activations.
            cos: RoPE cosines of each position.
            sin: RoPE sines of each position, signed as `rotate` takes them.
        """
        q, k, v = (y.view(*x.shape[:2], -1, self.head_dim) for y in (self.q_proj(x), self.k_proj(x), self.v_proj(x)))
        return self.scale(self.rotate(self.q_norm(q), cos, sin)), self.rotate(self.k_norm(k), cos, sin), v


class Block(nn.Module):
    """Attention, then feed-forward, each a branch of the residual stream, with norms where `norm_placement` has them.

    pre: before each branch; post: of the stream, after each branch is added (Vaswani et al. 2017, arXiv:1706.03762);
    sandwich: before and after each branch (Ding et al. 2021, arXiv:2105.13290); output: after each branch (OLMo et al.
    2025, arXiv:2501.00656).
    """

    def __init__(self, config: ModelConfig):
        super().__init__()
        norm = partial(NORMS[config.norm], config.dim, config.norm_eps)
        self.placement = config.norm_placement
        before, after = self.placement in ("pre", "sandwich"), self.placement != "pre"
        self.input_layernorm = norm() if before else unchanged
        self.self_attn = Attention(config)
        self.attention_output_layernorm = norm() if after else unchanged
        self.post_attention_layernorm = norm() if before else unchanged
        self.mlp = make_mlp(config)
        self.mlp_output_layernorm = norm() if after else unchanged
        self.dropout = config.dropout
        self.scale = times(config.residual_scale)
        self.parallel = config.parallel_residual

    def forward(
        self,
        x: Float[Tensor, "B T D"],
        cos: Float[Tensor, "#B S H"],
        sin: Float[Tensor, "#B S H"],
        attend: Attend,
        key: Key = None,
        keep: Callable[[Tensor], Tensor] = unchanged,
    ) -> Float[Tensor, "B _ D"]:
        """Apply attention, then the feed-forward layer, to the residual stream.

        Args:
            x: the residual stream; a part of its positions, with sequence parallelism.
            cos: RoPE cosines of each position.
            sin: RoPE sines of each position, signed as `rotate` takes them.
            attend: attention of queries to keys and values: over the whole sequence, or over a KV cache.
            key: random key of the branches' dropout masks; None switches dropout off.
            keep: selects the positions of the residual stream that `attend` has queries for; all, unless others are
                not needed.
        """
        attn_key, mlp_key = split(key, 2)
        mixed = self.self_attn(self.input_layernorm(x), cos, sin, attend)
        x = keep(x)
        attended = self.add(x, mixed, self.attention_output_layernorm, attn_key)
        fed = self.mlp(self.post_attention_layernorm(x if self.parallel else attended))
        return self.add(attended, fed, self.mlp_output_layernorm, mlp_key)

    def add(
        self,
        x: Float[Tensor, "B T D"],
        branch: Float[Tensor, "B T D"],
        norm: Callable[[Tensor], Tensor],
        key: Key,
    ) -> Float[Tensor, "B T D"]:
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
        self.embed_previous = PREVIOUS[config.previous_tokens > 0](config)
        self.embed_positions = POSITIONS[config.position](config)
        self.layers = nn.ModuleList([Block(config) for _ in range(config.n_layers)])
        final = NoNorm if config.norm_placement == "post" else NORMS[config.norm]
        self.norm = final(config.dim, config.norm_eps)
        if not config.tie_embeddings:
            self.lm_head = Linear(config.dim, config.vocab_size)
        parameter_dtype = torch.promote_types(dtype, torch.float32)
        self.to(parameter_dtype)
        for kind in dict.fromkeys(config.layer_types):
            for name, table in zip(("cos", "sin"), rope_tables(config, kind)):
                buffer = torch.tensor(table, dtype=parameter_dtype, device="cpu")
                self.register_buffer(f"{kind}_{name}", buffer, persistent=False)
        self.scale = times(config.embedding_scale)
        self.divide, self.softcap = times(1 / config.logit_divisor), softcapped(config.logit_softcap)

    def forward(
        self, tokens: Int[Tensor, "B T"], documents: Int[Tensor, "B T"] | None = None
    ) -> Float[Tensor, "B T V"]:
        """Return the logits of the next token at every position, in the parameters' dtype."""
        return self.logits(self.hidden(tokens, documents=documents))

    def autocast(self) -> torch.autocast:
        """Return the context in which matmuls are in `dtype`."""
        lower = self.dtype in (torch.bfloat16, torch.float16)
        return torch.autocast(self.embed_tokens.weight.device.type, self.dtype if lower else None, enabled=lower)

    @property
    def head(self) -> Float[Tensor, "V D"]:
        """Weight of the output head, the embedding's where they are tied."""
        return self.get_parameter("embed_tokens.weight" if self.config.tie_embeddings else "lm_head.weight")

    def hidden(
        self, tokens: Int[Tensor, "B T"], key: Key = None, documents: Int[Tensor, "B T"] | None = None
    ) -> Float[Tensor, "B T D"]:
        """Return the activations after the final norm.

        Args:
            tokens: token ids.
            key: random key of the dropout masks; None switches dropout off.
            documents: position at which each token's document begins: attention is masked, and positions are counted,
                as if each document were a sequence by itself; None where a sequence is one document.
        """
        positions = torch.arange(tokens.shape[1], device=tokens.device)[None]
        if documents is not None:
            positions = positions - documents
        tables = self.rope(positions)
        first, *keys = split(key, 2 * len(self.layers) + 1)
        x = dropout(self.embed(tokens, positions), self.config.dropout, first)
        plain = partial(causal_attention, rate=self.config.dropout, softcap=self.config.attention_softcap)
        with self.autocast():
            for layer, block in enumerate(self.layers):
                weights_key, block_key = keys[2 * layer : 2 * layer + 2]
                cos, sin = tables[self.config.layer_type(layer)]
                attend = partial(plain, window=self.config.window(layer), key=weights_key, documents=documents)
                step = partial(block, cos=cos, sin=sin, attend=attend, key=block_key)
                x = checkpoint(step, x, use_reentrant=False) if self.remat and self.training else step(x)
        return self.norm(x)

    def logits(self, hidden: Float[Tensor, "*B D"]) -> Float[Tensor, "*B V"]:
        """Apply the output head: a matmul in `dtype`, its result in the parameters' dtype."""
        weight, group = own_part(self.head)
        with self.autocast():
            return self.softcap(whole_last(linear(self.divide(hidden), weight).to(hidden.dtype), group))

    def embed(
        self, tokens: Int[Tensor, "B T"], positions: Int[Tensor, "#B T"], previous: Int[Tensor, "B P"] | None = None
    ) -> Float[Tensor, "B _ D"]:
        """Return the embeddings of these tokens at these positions; a part of them, with sequence parallelism.

        Args:
            tokens: token ids.
            positions: of the tokens in their documents.
            previous: ids of the `model.previous_tokens` tokens before the first; None where its document begins.
        """
        if previous is None:
            previous = tokens.new_zeros(len(tokens), self.config.previous_tokens)
        x = self.embed_previous(self.embed_tokens(tokens), preceding(tokens, previous), positions)
        return self.embed_positions(self.scale(x), positions)

    def rope(self, positions: Int[Tensor, "B T"]) -> dict[str, tuple[Float[Tensor, "#B T H"], Float[Tensor, "#B T H"]]]:
        """Return layer type -> RoPE cosines and sines of these positions, in the parameters' dtype."""
        tables = {}
        for kind in dict.fromkeys(self.config.layer_types):
            cos, sin = self.get_buffer(f"{kind}_cos"), self.get_buffer(f"{kind}_sin")
            tables[kind] = cos[positions], sin[positions]
        return tables

    def empty_cache(self, pads: Int[Tensor, " B"], size: int) -> Cache:
        """Return an empty cache of `size` slots per sequence; the first pads[b] slots of sequence b are masked."""
        shape = (len(pads), self.config.n_kv_heads, size, self.config.head_dim)
        keys, values = (
            tuple(torch.zeros(shape, dtype=self.dtype, device=pads.device) for _ in self.layers) for _ in range(2)
        )
        previous = torch.zeros(len(pads), self.config.previous_tokens, dtype=torch.int64, device=pads.device)
        return Cache(keys, values, pads, torch.zeros(len(pads), dtype=torch.int64), previous)

    def decode(
        self, tokens: Int[Tensor, "B T"], cache: Cache, counts: Int[Tensor, " B"] | None = None
    ) -> tuple[Float[Tensor, "B V"], Cache]:
        """Append tokens to the cache; return the logits of the token after each sequence's last, and the new cache.

        Args:
            tokens: token ids.
            cache: with room for T more positions of each sequence.
            counts: number of tokens of each sequence that are appended, the rest being padding; None for all T. On the
                CPU.
        """
        counts = torch.full((len(tokens),), tokens.shape[1]) if counts is None else counts
        size = cache.keys[0].shape[2]
        starts = cache.lengths.clamp_max(size - tokens.shape[1])  # in range also where no token is to be appended
        end = min(size, -(-(int(starts.max()) + tokens.shape[1]) // KEYS) * KEYS)
        new = torch.arange(tokens.shape[1])
        slots = (starts[:, None] + new).to(tokens.device)  # where left padding comes first
        positions = (slots - cache.pads[:, None]).clamp_min(0)
        tables = self.rope(positions)
        windows = set(map(self.config.window, range(len(self.layers))))
        masks = {window: additive(causal_mask(slots, end, cache.pads, window=window), self.dtype) for window in windows}

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            keys, values = cache.keys[layer], cache.values[layer]
            write(keys, k, starts)
            write(values, v, starts)
            mask = masks[self.config.window(layer)]
            return attention(q, keys[:, :, :end], values[:, :, :end], mask, softcap=self.config.attention_softcap)

        x = self.embed(tokens, positions, cache.previous)
        with self.autocast():
            for layer, block in enumerate(self.layers):
                x = block(x, *tables[self.config.layer_type(layer)], partial(attend, layer))
        x = at(x, (counts - 1).clamp_min(0))
        cache = cache._replace(lengths=cache.lengths + counts, previous=latest(tokens, cache.previous, counts))
        return self.logits(self.norm(x)[:, 0]), cache

    def prefill(
        self, tokens: Int[Tensor, "B T"], cache: Cache, counts: Int[Tensor, " B"] | None = None
    ) -> tuple[Float[Tensor, "B V"], Cache]:
        """Do what `decode` does, faster, with an empty cache.

        Attention is that of training, and the last block computes no more than the logits need.

        Args:
            tokens: token ids.
            cache: empty, with room for T positions of each sequence.
            counts: number of tokens of each sequence, the rest being padding; None for all T. On the CPU.
        """
        counts = torch.full((len(tokens),), tokens.shape[1]) if counts is None else counts
        slots = torch.arange(tokens.shape[1], device=tokens.device)[None]
        pads = cache.pads[:, None]
        positions = (slots - pads).clamp_min(0)
        tables = self.rope(positions)
        last = (counts - 1).clamp_min(0).to(tokens.device)
        # Left padding is a document of its own. Kernels are fastest without documents.
        documents = torch.where(slots < pads, 0, pads) if pads.any() else None

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            for cached, new in ((cache.keys[layer], k), (cache.values[layer], v)):
                cached[:, :, : new.shape[1]] = by_head(new)
            window, softcap = self.config.window(layer), self.config.attention_softcap
            if layer < len(self.layers) - 1:
                # Without a gradient, torch's kernel is the fastest, where it needs no mask.
                attend = plain_attention if documents is None and not window and not softcap else causal_attention
                return attend(q, k, v, documents=documents, window=window, softcap=softcap)
            mask = additive(causal_mask(last[:, None], k.shape[1], cache.pads, window=window), q.dtype)
            return attention(at(q, last), by_head(k), by_head(v), mask, softcap=softcap)

        x = self.embed(tokens, positions)
        with self.autocast():
            for layer, block in enumerate(self.layers):
                keep = partial(at, index=last) if layer == len(self.layers) - 1 else unchanged
                x = block(x, *tables[self.config.layer_type(layer)], partial(attend, layer), keep=keep)
        cache = cache._replace(lengths=cache.lengths + counts, previous=latest(tokens, cache.previous, counts))
        return self.logits(self.norm(x)[:, 0]), cache
