"""Pairs of small models in JAX and torch. Both are the same, unless an option, a pair of values, says otherwise."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

import equinox
import haiku
import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
import torch.nn.functional as F
from flax import linen, nnx
from torch import nn

import torchlm.model
from lmcore.config import ModelConfig
from parity.transforms import chain, concat, flip, reshape, transpose, unstack

__all__ = ["PAIRS", "Build", "Pair"]

V = TypeVar("V")
Both = tuple[V, V]
"""A value for JAX, and one for torch."""
T = (1, 0)
IMAGE = (3, 2, 0, 1)


@dataclass
class Pair:
    """What `parity.compare` takes."""

    jax: Any
    torch: Any
    inputs: tuple[Any, ...]
    options: dict[str, Any] = field(default_factory=dict)


Build = Callable[..., Pair]
"""From a seed, a size of one or two, and options, to a pair."""


def drawn(rng: np.random.Generator, tree: Any) -> Any:
    """Return a tree of the same shapes, drawn at random: no scale is one, and no bias is zero."""
    return jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape) / np.sqrt(leaf.shape[0]), tree)


def attention(
    seed: int,
    size: int,
    *,
    diagonal: Both[int | None] = (0, 0),
    fused: str = "query key value",
    out: tuple[int, int] = T,
) -> Pair:
    """linen's attention and nn.MultiheadAttention; `diagonal` is the last that is seen, None for no mask."""
    rng, width, heads, length = np.random.default_rng(seed), 8 * size, 2 * size, 4 + size
    model = linen.MultiHeadDotProductAttention(num_heads=heads)
    x = rng.standard_normal((2, length, width))
    params = drawn(rng, model.init(jax.random.key(0), x))
    seen = [None if d is None else np.tril(np.ones((length, length), bool), d) for d in diagonal]
    parts = fused.split()
    names: dict = {
        tuple(f"params.{n}.kernel" for n in parts): (
            "in_proj_weight",
            chain(reshape(width, width), transpose(), concat()),
        ),
        tuple(f"params.{n}.bias" for n in parts): ("in_proj_bias", chain(reshape(width), concat())),
        "params.out.kernel": ("out_proj.weight", chain(reshape(width, width), transpose(*out))),
        "params.out.bias": "out_proj.bias",
    }

    def call_jax(model: Any, x: jax.Array) -> jax.Array:
        return model(x, mask=None if seen[0] is None else seen[0][None, None])

    def call_module(module: nn.Module, x: torch.Tensor) -> torch.Tensor:
        mask = None if seen[1] is None else torch.from_numpy(~seen[1])
        return module(x, x, x, attn_mask=mask, need_weights=False)[0]

    module = nn.MultiheadAttention(width, heads, batch_first=True)
    return Pair(
        model, module, (x,), {"params": params, "names": names, "call_jax": call_jax, "call_module": call_module}
    )


class LinenRecurrent(linen.Module):
    """An LSTM and a linear layer."""

    hidden: int
    reverse: bool = False

    @linen.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        cell = linen.OptimizedLSTMCell(self.hidden, name="rnn")
        return linen.Dense(2, name="head")(linen.RNN(cell, reverse=self.reverse, keep_order=True)(x))


class TorchRecurrent(nn.Module):
    """The same."""

    def __init__(self, inner: int, hidden: int):
        super().__init__()
        self.rnn, self.head = nn.LSTM(inner, hidden, batch_first=True), nn.Linear(hidden, 2)
        nn.init.zeros_(self.rnn.bias_ih_l0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.rnn(x)[0])


def lstm(seed: int, size: int, *, gates: Both[str] = ("ifgo", "ifgo"), reverse: bool = False) -> Pair:
    """linen's LSTM, four gates each its own, and torch's, one matrix; `gates` are those that are joined."""
    rng, hidden = np.random.default_rng(seed), 4 + size
    model = LinenRecurrent(hidden, reverse)
    x = rng.standard_normal((2, 3 + size, 3))
    params = drawn(rng, model.init(jax.random.key(0), x))
    join = chain(transpose(), concat())
    order = [gates[0][gates[1].index(g)] for g in "ifgo"]
    names: dict = {
        tuple(f"params.rnn.i{g}.kernel" for g in order): ("rnn.weight_ih_l0", join),
        tuple(f"params.rnn.h{g}.kernel" for g in order): ("rnn.weight_hh_l0", join),
        tuple(f"params.rnn.h{g}.bias" for g in order): ("rnn.bias_hh_l0", concat()),
        "params.head.kernel": ("head.weight", T),
        "params.head.bias": "head.bias",
    }
    options = {"params": params, "names": names, "only_torch": ["rnn.bias_ih_l0"]}
    return Pair(model, TorchRecurrent(3, hidden), (x,), options)


class LinenResidual(linen.Module):
    """Two convolutions with norms over the batch, the first with a stride; a linear layer on what is left."""

    channels: int
    eps: float
    momentum: float
    padding: Any
    train: bool

    @linen.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        conv = partial(linen.Conv, self.channels, (3, 3), use_bias=False)
        norm = partial(linen.BatchNorm, use_running_average=not self.train, momentum=self.momentum, epsilon=self.eps)
        x = linen.relu(norm(name="norm0")(conv(strides=2, padding=self.padding, name="conv0")(x)))
        x = linen.relu(x + norm(name="norm1")(conv(padding=1, name="conv1")(x)))
        return linen.Dense(3, name="head")(x.reshape(len(x), -1))


class BiasedNorm(nn.BatchNorm2d):
    """torch's norm, keeping the variance that it divides by, as Flax does."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            with torch.no_grad():
                variance, mean = torch.var_mean(x, dim=(0, 2, 3), correction=0)
                self.running_mean.lerp_(mean, self.momentum)
                self.running_var.lerp_(variance, self.momentum)
            return F.batch_norm(x, None, None, self.weight, self.bias, True, 0.0, self.eps)
        return super().forward(x)


class TorchResidual(nn.Module):
    """The same, B C H W inside."""

    def __init__(self, inner: int, channels: int, side: int, norm: Callable[[int], nn.Module], flatten: str):
        super().__init__()
        self.conv0 = nn.Conv2d(inner, channels, 3, 2, padding=1, bias=False)
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm0, self.norm1, self.flatten = norm(channels), norm(channels), flatten
        self.head = nn.Linear(channels * side * side, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.norm0(self.conv0(x.movedim(-1, 1))))
        x = F.relu(x + self.norm1(self.conv1(x)))
        return self.head((x.movedim(1, -1) if self.flatten == "HWC" else x).flatten(1))


def resnet(
    seed: int,
    size: int,
    *,
    eps: Both[float] = (1e-5, 1e-5),
    momentum: Both[float] = (0.9, 0.1),
    padding: Any = ((1, 1), (1, 1)),
    norm: type = BiasedNorm,
    flatten: str = "HWC",
    train: bool = True,
) -> Pair:
    """A residual block with norms over the batch, in training mode. Flax's momentum is one minus torch's."""
    rng, channels, side = np.random.default_rng(seed), 2 + size, 2 + size
    model = LinenResidual(channels, eps[0], momentum[0], padding, train)
    x = rng.standard_normal((2 + size, 2 * side, 2 * side, 3))
    variables = model.init(jax.random.key(0), x)
    variables = {
        "params": drawn(rng, variables["params"]),
        "batch_stats": jax.tree.map(lambda leaf: rng.uniform(0.5, 2, leaf.shape), variables["batch_stats"]),
    }
    module = TorchResidual(3, channels, side, partial(norm, eps=eps[1], momentum=momentum[1]), flatten)
    names: dict = {
        "params.conv{i}.kernel": ("conv{i}.weight", IMAGE),
        "params.norm{i}.scale": "norm{i}.weight",
        "params.norm{i}.bias": "norm{i}.bias",
        "batch_stats.norm{i}.mean": "norm{i}.running_mean",
        "batch_stats.norm{i}.var": "norm{i}.running_var",
        "params.head.kernel": ("head.weight", T),
        "params.head.bias": "head.bias",
    }
    return Pair(model, module, (x,), {"params": variables, "names": names, "train": train})


class NnxBlock(nnx.Module):
    """Attention and an MLP, each after a norm, each added."""

    def __init__(self, width: int, heads: int, eps: float, rngs: nnx.Rngs):
        self.norm1 = nnx.LayerNorm(width, epsilon=eps, rngs=rngs)
        self.attn = nnx.MultiHeadAttention(heads, width, decode=False, rngs=rngs)
        self.norm2 = nnx.LayerNorm(width, epsilon=eps, rngs=rngs)
        self.up = nnx.Linear(width, width, rngs=rngs)
        self.down = nnx.Linear(width, width, rngs=rngs)


class NnxTransformer(nnx.Module):
    """Blocks and a norm."""

    def __init__(self, width: int, heads: int, eps: float, approximate: bool, stopped: bool, rngs: nnx.Rngs):
        self.blocks = nnx.List([NnxBlock(width, heads, eps, rngs) for _ in range(2)])
        self.norm = nnx.LayerNorm(width, epsilon=eps, rngs=rngs)
        self.approximate, self.stopped = approximate, stopped

    def __call__(self, x: jax.Array) -> jax.Array:
        for block in self.blocks:
            x = x + block.attn(block.norm1(x))
            y = nnx.gelu(block.up(block.norm2(x)), approximate=self.approximate)
            x = x + block.down(jax.lax.stop_gradient(y) if self.stopped else y)
        return self.norm(x)


class TorchBlock(nn.Module):
    """The same."""

    def __init__(self, width: int, heads: int, eps: float, gelu: str, scale: float | None, residual: bool):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=eps), nn.LayerNorm(width, eps=eps)
        for name in ("q", "k", "v", "o", "up", "down"):
            setattr(self, name, nn.Linear(width, width))
        self.act, self.heads, self.scale, self.residual = nn.GELU(gelu), heads, scale, residual

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm1(x)
        q, k, v = (part(y).unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (self.q, self.k, self.v))
        y = F.scaled_dot_product_attention(q, k, v, scale=self.scale).transpose(1, 2).flatten(2)
        x = x + self.o(y)
        y = self.down(self.act(self.up(self.norm2(x))))
        return x + y if self.residual else y


class TorchTransformer(nn.Module):
    """The same."""

    def __init__(self, blocks: list[TorchBlock], width: int, eps: float):
        super().__init__()
        self.blocks, self.norm = nn.ModuleList(blocks), nn.LayerNorm(width, eps=eps)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


def transformer(
    seed: int,
    size: int,
    *,
    eps: Both[float] = (1e-6, 1e-6),
    only: str = "",
    gelu: Both[str] = ("tanh", "tanh"),
    scale: Callable[[int], float] | None = None,
    residual: bool = True,
    stopped: bool = False,
    up: tuple[int, int] = T,
    order: tuple[int, int] = (0, 1),
) -> Pair:
    """A transformer in Flax NNX, whose matrices are square, and one in torch; `only` is the place of torch's eps."""
    rng, width, heads = np.random.default_rng(seed), 8 * size, 2 * size
    model = NnxTransformer(width, heads, eps[0], gelu[0] == "tanh", stopped, nnx.Rngs(0))
    nnx.update(model, drawn(rng, nnx.state(model, nnx.Param)))
    blocks = [
        TorchBlock(width, heads, eps[not only], gelu[1], scale and scale(width), residual or i == 0) for i in (0, 1)
    ]
    module = TorchTransformer(blocks, width, eps[not only])
    if only:
        module.get_submodule(only).eps = eps[1]
    names: dict = {"norm.scale": "norm.weight", "norm.bias": "norm.bias"}
    for i, there in enumerate(order):
        a, b = f"blocks.{i}.", f"blocks.{there}."
        for one, other in (("query", "q"), ("key", "k"), ("value", "v"), ("out", "o")):
            names[f"{a}attn.{one}.kernel"] = (f"{b}{other}.weight", chain(reshape(width, width), transpose()))
            names[f"{a}attn.{one}.bias"] = (f"{b}{other}.bias", reshape(width))
        names |= {f"{a}{n}.kernel": (f"{b}{n}.weight", up if (n, i) == ("up", 1) else T) for n in ("up", "down")}
        names |= {f"{a}{n}.bias": f"{b}{n}.bias" for n in ("up", "down")}
        names |= {f"{a}{n}.scale": f"{b}{n}.weight" for n in ("norm1", "norm2")}
        names |= {f"{a}{n}.bias": f"{b}{n}.bias" for n in ("norm1", "norm2")}
    return Pair(model, module, (rng.standard_normal((2, 4 + size, width)),), {"names": names})


LINEARS = [f"self_attn.{part}_proj" for part in "qkvo"] + [f"mlp.{part}_proj" for part in ("gate", "up", "down")]
NORMS = ["input_layernorm", "post_attention_layernorm"]


def decoder(
    seed: int,
    size: int,
    *,
    eps: float = 1e-5,
    rotary: str = "halves",
    theta: float = 10000.0,
    groups: str = "repeated",
    act: Callable[[jax.Array], jax.Array] = jax.nn.silu,
    scale: float = 1.0,
    diagonal: int = 0,
    gate: str = "gate",
) -> Pair:
    """A Llama whose layers run in jax.lax.scan, and torchlm's decoder; the options are JAX's."""
    rng, heads, head = np.random.default_rng(seed), 4, 4
    width, inner, length, vocab = heads * head, 16 + 8 * size, 5 + size, 17
    config = ModelConfig(
        vocab_size=vocab, dim=width, n_layers=1 + size, n_heads=heads, n_kv_heads=2, ffn_dim=inner, norm_eps=1e-5,
        max_seq_len=16, tie_embeddings=False,
    )  # fmt: skip

    def norm(x: jax.Array, weight: jax.Array) -> jax.Array:
        return x * jax.lax.rsqrt((x**2).mean(axis=-1, keepdims=True) + eps) * weight[None, None]

    def rotated(x: jax.Array) -> jax.Array:
        angles = (
            jnp.arange(length)[None, :, None, None]
            * theta ** (-jnp.arange(0, head, 2, dtype=x.dtype) / head)[None, None, None]
        )
        cos, sin = jnp.cos(angles).astype(x.dtype), jnp.sin(angles).astype(x.dtype)
        if rotary == "halves":
            left, right = jnp.split(x, 2, axis=-1)
            return jnp.concatenate([left * cos - right * sin, right * cos + left * sin], axis=-1)
        left, right = x[..., ::2], x[..., 1::2]
        return jnp.stack([left * cos - right * sin, right * cos + left * sin], axis=-1).reshape(x.shape)

    def layer(x: jax.Array, w: dict) -> tuple[jax.Array, None]:
        y = norm(x, w["input_layernorm"])
        q, k, v = ((y @ w[f"self_attn.{part}_proj"]).reshape(*y.shape[:-1], -1, head) for part in "qkv")
        q, k = rotated(q), rotated(k)
        k, v = (jnp.repeat(each, 2, 2) if groups == "repeated" else jnp.tile(each, (1, 1, 2, 1)) for each in (k, v))
        scores = jnp.einsum("btnh,bsnh->bnts", q, k) / head**0.5
        seen = jnp.tril(jnp.ones((length, length), bool), diagonal)
        weights = jax.nn.softmax(jnp.where(seen, scores, -jnp.inf))
        x = x + jnp.einsum("bnts,bsnh->btnh", weights, v).reshape(x.shape) @ w["self_attn.o_proj"]
        y = norm(x, w["post_attention_layernorm"])
        return x + (act(y @ w["mlp.gate_proj"]) * (y @ w["mlp.up_proj"])) @ w["mlp.down_proj"], None

    def model(params: dict, tokens: jax.Array) -> jax.Array:
        x, _ = jax.lax.scan(layer, scale * params["embed"][tokens], params["layers"])
        return norm(x, params["norm"]) @ params["head"]

    shapes = dict.fromkeys(NORMS, (width,)) | dict.fromkeys(LINEARS, (width, width))
    shapes |= {f"self_attn.{part}_proj": (width, width // 2) for part in "kv"}
    shapes |= {"mlp.gate_proj": (width, inner), "mlp.up_proj": (width, inner), "mlp.down_proj": (inner, width)}
    params = {
        "embed": rng.standard_normal((vocab, width)),
        "layers": {name: rng.standard_normal((1 + size, *shape)) / 4 for name, shape in shapes.items()},
        "norm": rng.standard_normal(width),
        "head": rng.standard_normal((width, vocab)) / 4,
    }
    names: dict = {"embed": "embed_tokens.weight", "norm": "norm.weight", "head": ("lm_head.weight", T)}
    swapped = {} if gate == "gate" else {"mlp.gate_proj": "mlp.up_proj", "mlp.up_proj": "mlp.gate_proj"}
    names |= {f"layers.{n}": (f"layers.{{i}}.{n}.weight", unstack()) for n in NORMS}
    names |= {
        f"layers.{n}": (f"layers.{{i}}.{swapped.get(n, n)}.weight", chain(unstack(), transpose())) for n in LINEARS
    }
    tokens = rng.integers(vocab, size=(2, length))
    return Pair(model, torchlm.model.Decoder(config, torch.float64), (tokens,), {"params": params, "names": names})


def squared(y: Any) -> Any:
    """Return the mean square of the distance from one, in either framework."""
    return ((y - 1) ** 2).mean()


def adamw(parameters: list[nn.Parameter], **options: Any) -> torch.optim.Optimizer:
    """Return torch's AdamW with the options that optax's has by default."""
    return torch.optim.AdamW(parameters, **{"lr": 1e-2, "weight_decay": 1e-4} | options)


def cosine(parameters: list[nn.Parameter], horizon: int, early: int = 0) -> tuple[torch.optim.Optimizer, Any]:
    """Return AdamW and a schedule, `early` steps ahead."""
    optimizer = adamw(parameters)
    decay = lambda step: 0.5 * (1 + np.cos(np.pi * min((step + early) / horizon, 1)))  # noqa: E731
    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, decay)


def mlp(
    seed: int,
    size: int,
    *,
    optimizers: tuple[Any, Callable[..., Any]] = (
        optax.adamw(optax.cosine_decay_schedule(1e-2, 50)),
        partial(cosine, horizon=50),
    ),
    losses: Both[Callable[[Any], Any]] = (squared, squared),
    act: type = nn.Tanh,
    steps: int = 50,
) -> Pair:
    """An Equinox MLP with optax, and torch's with its own optimizer, to the training curve."""
    rng, width = np.random.default_rng(seed), 8 * size
    model = equinox.nn.MLP(6, 3, width_size=width, depth=2, activation=jnp.tanh, key=jax.random.key(seed))
    module = nn.Sequential(nn.Linear(6, width), act(), nn.Linear(width, width), act(), nn.Linear(width, 3))
    names = {f"layers.{i}.{part}": f"{2 * i}.{part}" for i in range(3) for part in ("weight", "bias")}
    options = {
        "names": names,
        "call_jax": lambda model, x: jax.vmap(model)(x),
        "losses": losses,
        "optimizers": optimizers,
        "batches": [(rng.standard_normal((16, 6)),) for _ in range(steps)],
    }
    return Pair(model, module, (rng.standard_normal((16, 6)),), options)


class Upsampling(nn.Module):
    """A transposed convolution, a norm over groups, and a larger picture."""

    def __init__(self, channels: int, align: bool, eps: float, padding: tuple[int, int]):
        super().__init__()
        self.up = nn.ConvTranspose2d(3, channels, 3, 2, padding=padding[0], output_padding=padding[1])
        self.norm, self.align = nn.GroupNorm(2, channels, eps=eps), align

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.silu(self.norm(self.up(x.movedim(-1, 1))))
        return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=self.align).movedim(1, -1)


def upsampling(
    seed: int,
    size: int,
    *,
    align: bool = False,
    eps: Both[float] = (1e-5, 1e-5),
    padding: tuple[int, int] = (0, 0),
    flipped: bool = True,
) -> Pair:
    """Haiku's transposed convolution and jax.image.resize, and torch's."""
    rng, channels, side = np.random.default_rng(seed), 4 * size, 3 + size

    @haiku.without_apply_rng
    @haiku.transform
    def model(x: jax.Array) -> jax.Array:
        x = haiku.Conv2DTranspose(channels, 3, 2, padding="VALID", name="up")(x)
        x = jax.nn.silu(haiku.GroupNorm(2, eps=eps[0], name="norm")(x))
        return jax.image.resize(x, (len(x), 2 * x.shape[1], 2 * x.shape[2], channels), "bilinear")

    x = rng.standard_normal((2, side, side, 3))
    params = drawn(rng, model.init(jax.random.key(0), x))
    names: dict = {
        "up.w": ("up.weight", transpose(3, 2, 0, 1)),
        "up.b": "up.bias",
        "norm.scale": "norm.weight",
        "norm.offset": "norm.bias",
    }
    if flipped:
        names["up.w"] = ("up.weight", chain(transpose(3, 2, 0, 1), flip(2, 3)))
    return Pair(model, Upsampling(channels, align, eps[1], padding), (x,), {"params": params, "names": names})


PAIRS: dict[str, Build] = {
    "attention": attention,
    "lstm": lstm,
    "resnet": resnet,
    "transformer": transformer,
    "decoder": decoder,
    "mlp": mlp,
    "upsampling": upsampling,
}
