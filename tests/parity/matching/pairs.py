"""Pairs of models in JAX and torch as people write them, small, each with its right mapping.

The trees of JAX parameters that hold names alone are those of public models: transformers' Flax classes,
vision_transformer, T5X, MaxText, Gemma, and the examples of Flax and Haiku.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from typing import Any

import flax.linen as linen
import jax
import jax.numpy as jnp
import numpy as np
import transformers
from flax import nnx
from torch import nn

import jaxlm.model
import torchlm.model
from lmcore.config import ModelConfig
from parity.transforms import chain, concat, reshape, split, transpose, unstack

__all__ = ["HELD_OUT", "PAIRS", "RUNNABLE", "Pair"]

T = (1, 0)
IMAGE = (3, 2, 0, 1)


@dataclass
class Pair:
    """Both models, and which parameter is which."""

    params: Any
    module: nn.Module
    names: dict
    only_jax: tuple[str, ...] = ()
    only_torch: tuple[str, ...] = ()
    inputs: tuple = ()
    jax_fn: Callable | None = None
    call_module: Callable | None = None
    options: dict = field(default_factory=dict)


def arrays(shapes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def dense(name: str, inner: Iterable[int] | int, outer: Iterable[int] | int, bias: bool = True, kernel: str = "kernel"):
    ins, outs = (tuple(x) if isinstance(x, tuple) else (x,) for x in (inner, outer))
    return {f"{name}.{kernel}": (*ins, *outs)} | ({f"{name}.bias": outs} if bias else {})


def norm(name: str, size: int, bias: bool = True):
    return {f"{name}.scale": (size,)} | ({f"{name}.bias": (size,)} if bias else {})


def linear_rows(*pairs: tuple[str, str], bias: bool = True) -> dict:
    rows: dict = {f"{a}.kernel": (f"{b}.weight", T) for a, b in pairs}
    return rows | ({f"{a}.bias": f"{b}.bias" for a, b in pairs} if bias else {})


def norm_rows(*pairs: tuple[str, str], bias: bool = True) -> dict:
    rows: dict = {f"{a}.scale": f"{b}.weight" for a, b in pairs}
    return rows | ({f"{a}.bias": f"{b}.bias" for a, b in pairs} if bias else {})


def attention() -> Pair:
    model = linen.MultiHeadDotProductAttention(num_heads=2, qkv_features=8)
    x = np.random.default_rng(0).standard_normal((2, 5, 8)).astype(np.float32)
    params = model.init(jax.random.key(0), x)
    joined = chain(reshape(8, 8), transpose(1, 0), concat(0))
    p = "params."
    names: dict = {
        tuple(f"{p}{n}.kernel" for n in ("query", "key", "value")): ("in_proj_weight", joined),
        tuple(f"{p}{n}.bias" for n in ("query", "key", "value")): ("in_proj_bias", chain(reshape(8), concat(0))),
        f"{p}out.kernel": ("out_proj.weight", chain(reshape(8, 8), transpose(1, 0))),
        f"{p}out.bias": "out_proj.bias",
    }
    module = nn.MultiheadAttention(8, 2, batch_first=True)
    return Pair(params, module, names, (), (), (x,), model.apply, lambda m, x: m(x, x, x, need_weights=False)[0])


class Recurrent(nn.Module):
    def __init__(self, cell: type):
        super().__init__()
        self.rnn = cell(3, 5, batch_first=True)
        self.head = nn.Linear(5, 2)

    def forward(self, x):
        return self.head(self.rnn(x)[0])


class RecurrentLinen(linen.Module):
    cell: Any

    @linen.compact
    def __call__(self, x):
        return linen.Dense(2, name="head")(linen.RNN(self.cell(5, name="rnn"))(x))


def lstm() -> Pair:
    model = RecurrentLinen(linen.OptimizedLSTMCell)
    x = np.random.default_rng(0).standard_normal((2, 4, 3)).astype(np.float32)
    params = model.init(jax.random.key(0), x)
    join = chain(transpose(1, 0), concat(0))
    names: dict = {
        tuple(f"params.rnn.i{g}.kernel" for g in "ifgo"): ("rnn.weight_ih_l0", join),
        tuple(f"params.rnn.h{g}.kernel" for g in "ifgo"): ("rnn.weight_hh_l0", join),
        tuple(f"params.rnn.h{g}.bias" for g in "ifgo"): ("rnn.bias_hh_l0", concat(0)),
    }
    names |= linear_rows(("params.head", "head"))
    return Pair(params, Recurrent(nn.LSTM), names, (), ("rnn.bias_ih_l0",), (x,), model.apply)


def gru() -> Pair:
    model = RecurrentLinen(linen.GRUCell)
    x = np.random.default_rng(0).standard_normal((2, 4, 3)).astype(np.float32)
    params = model.init(jax.random.key(0), x)
    join = chain(transpose(1, 0), concat(0))
    names: dict = {
        tuple(f"params.rnn.i{g}.kernel" for g in "rzn"): ("rnn.weight_ih_l0", join),
        tuple(f"params.rnn.h{g}.kernel" for g in "rzn"): ("rnn.weight_hh_l0", join),
        tuple(f"params.rnn.i{g}.bias" for g in "rzn"): ("rnn.bias_ih_l0", concat(0)),
    }
    names |= linear_rows(("params.head", "head"))
    return Pair(params, Recurrent(nn.GRU), names, ("params.rnn.hn.bias",), ("rnn.bias_hh_l0",))


class LinenResNetBlock(linen.Module):
    filters: int
    strides: int = 1

    @linen.compact
    def __call__(self, x):
        conv = partial(linen.Conv, use_bias=False)
        bn = partial(linen.BatchNorm, use_running_average=True, epsilon=1e-5)
        y = bn()(conv(self.filters, (3, 3), self.strides, padding=1)(x))
        y = bn()(conv(self.filters, (3, 3), padding=1)(linen.relu(y)))
        if x.shape != y.shape:
            x = bn(name="norm_proj")(conv(self.filters, (1, 1), self.strides, name="conv_proj")(x))
        return linen.relu(x + y)


class LinenResNet(linen.Module):
    @linen.compact
    def __call__(self, x):
        x = linen.Conv(4, (3, 3), padding=1, use_bias=False, name="conv_init")(x)
        x = linen.relu(linen.BatchNorm(use_running_average=True, epsilon=1e-5, name="bn_init")(x))
        for i, filters in enumerate((4, 4, 8, 8)):
            x = LinenResNetBlock(filters, 2 if i == 2 else 1)(x)
        return linen.Dense(5)(x.mean((1, 2)))


class BasicBlock(nn.Module):
    def __init__(self, inner: int, outer: int, stride: int = 1):
        super().__init__()
        self.conv1 = nn.Conv2d(inner, outer, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outer)
        self.conv2 = nn.Conv2d(outer, outer, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outer)
        self.downsample = None
        if inner != outer:
            self.downsample = nn.Sequential(nn.Conv2d(inner, outer, 1, stride, bias=False), nn.BatchNorm2d(outer))

    def forward(self, x):
        y = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))
        return ((x if self.downsample is None else self.downsample(x)) + y).relu()


class ResNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(4)
        self.layer1 = nn.Sequential(BasicBlock(4, 4), BasicBlock(4, 4))
        self.layer2 = nn.Sequential(BasicBlock(4, 8, 2), BasicBlock(8, 8))
        self.fc = nn.Linear(8, 5)

    def forward(self, x):
        x = self.layer2(self.layer1(self.bn1(self.conv1(x.permute(0, 3, 1, 2))).relu()))
        return self.fc(x.mean((2, 3)))


def bn_rows(jax: str, torch: str) -> dict:
    return {
        f"params.{jax}.scale": f"{torch}.weight",
        f"params.{jax}.bias": f"{torch}.bias",
        f"batch_stats.{jax}.mean": f"{torch}.running_mean",
        f"batch_stats.{jax}.var": f"{torch}.running_var",
    }


def resnet() -> Pair:
    model = LinenResNet()
    x = np.random.default_rng(0).standard_normal((2, 6, 6, 3)).astype(np.float32)
    params = model.init(jax.random.key(0), x)
    names: dict = {"params.conv_init.kernel": ("conv1.weight", IMAGE)} | bn_rows("bn_init", "bn1")
    for i, block in enumerate(("layer1.0", "layer1.1", "layer2.0", "layer2.1")):
        for n in (0, 1):
            names[f"params.LinenResNetBlock_{i}.Conv_{n}.kernel"] = (f"{block}.conv{n + 1}.weight", IMAGE)
            names |= bn_rows(f"LinenResNetBlock_{i}.BatchNorm_{n}", f"{block}.bn{n + 1}")
    names["params.LinenResNetBlock_2.conv_proj.kernel"] = ("layer2.0.downsample.0.weight", IMAGE)
    names |= bn_rows("LinenResNetBlock_2.norm_proj", "layer2.0.downsample.1")
    names |= linear_rows(("params.Dense_0", "fc"))
    return Pair(params, ResNet(), names, (), (), (x,), model.apply)


class NnxBlock(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.norm1 = nnx.LayerNorm(8, epsilon=1e-5, rngs=rngs)
        self.attn = nnx.MultiHeadAttention(2, 8, decode=False, rngs=rngs)
        self.norm2 = nnx.LayerNorm(8, epsilon=1e-5, rngs=rngs)
        self.up = nnx.Linear(8, 8, rngs=rngs)
        self.down = nnx.Linear(8, 8, rngs=rngs)

    def __call__(self, x):
        x = x + self.attn(self.norm1(x))
        return x + self.down(nnx.relu(self.up(self.norm2(x))))


class NnxTransformer(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.blocks = nnx.List([NnxBlock(rngs) for _ in range(2)])
        self.norm = nnx.LayerNorm(8, epsilon=1e-5, rngs=rngs)

    def __call__(self, x):
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


def nnx_transformer() -> Pair:
    """Beside torch's own encoder; every matrix is square."""
    graph, state = nnx.split(NnxTransformer(nnx.Rngs(0)))
    layer = nn.TransformerEncoderLayer(8, 2, 8, 0.0, batch_first=True, norm_first=True)
    module = nn.TransformerEncoder(layer, 2, nn.LayerNorm(8), enable_nested_tensor=False)
    x = np.random.default_rng(0).standard_normal((2, 5, 8)).astype(np.float32)
    square = chain(reshape(8, 8), transpose(1, 0))
    a, b = "blocks.{i}.", "layers.{i}."
    qkv = ("query", "key", "value")
    names: dict = {
        tuple(f"{a}attn.{n}.kernel" for n in qkv): (f"{b}self_attn.in_proj_weight", chain(square, concat(0))),
        tuple(f"{a}attn.{n}.bias" for n in qkv): (f"{b}self_attn.in_proj_bias", chain(reshape(8), concat(0))),
        f"{a}attn.out.kernel": (f"{b}self_attn.out_proj.weight", square),
        f"{a}attn.out.bias": f"{b}self_attn.out_proj.bias",
    }
    names |= linear_rows((f"{a}up", f"{b}linear1"), (f"{a}down", f"{b}linear2"))
    names |= norm_rows((f"{a}norm1", f"{b}norm1"), (f"{a}norm2", f"{b}norm2"), ("norm", "norm"))
    return Pair(state, module, names, (), (), (x,), lambda state, x: nnx.merge(graph, state)(x))


DECODER = ModelConfig(vocab_size=37, dim=16, n_layers=3, n_heads=4, n_kv_heads=2, ffn_dim=24, max_seq_len=16)
TOKENS = np.random.default_rng(0).integers(0, 37, (2, 7))


def decoder(torch: bool = True) -> Pair:
    graph, state = nnx.split(jaxlm.model.Decoder(DECODER, jnp.dtype("float32")))
    if torch:
        module, at = torchlm.model.Decoder(DECODER), ""
    else:
        options = transformers.LlamaConfig(
            vocab_size=37, hidden_size=16, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
            intermediate_size=24, max_position_embeddings=16, attention_bias=False, rms_norm_eps=DECODER.norm_eps,
            rope_theta=DECODER.rope_theta, tie_word_embeddings=DECODER.tie_embeddings,
        )  # fmt: skip
        module, at = transformers.LlamaForCausalLM(options), "model."
    b = f"{at}layers.{{i}}."
    matrices = [f"self_attn.{n}_proj" for n in "qkvo"] + [f"mlp.{n}_proj" for n in ("gate", "up", "down")]
    names: dict = {f"layers.{{i}}.{m}.kernel": (f"{b}{m}.weight", T) for m in matrices}
    names |= {f"layers.{{i}}.{n}.weight": f"{b}{n}.weight" for n in ("input_layernorm", "post_attention_layernorm")}
    names |= {"embed_tokens.weight": f"{at}embed_tokens.weight", "norm.weight": f"{at}norm.weight"}
    if not DECODER.tie_embeddings:
        names["lm_head.kernel"] = ("lm_head.weight", T)

    def run(state, tokens):
        return nnx.merge(graph, state)(tokens)

    return Pair(state, module, names, (), (), (TOKENS,), run, None if torch else lambda m, x: m(x).logits)


def gpt2() -> Pair:
    config = transformers.GPT2Config(
        vocab_size=31, n_positions=12, n_embd=8, n_layer=3, n_head=2, bos_token_id=0, eos_token_id=1
    )
    shapes = {"transformer.wte.embedding": (31, 8), "transformer.wpe.embedding": (12, 8)} | norm("transformer.ln_f", 8)
    for i in range(3):
        h = f"transformer.h.{i}."
        shapes |= norm(f"{h}ln_1", 8) | norm(f"{h}ln_2", 8)
        for name, inner, outer in (
            ("attn.c_attn", 8, 24),
            ("attn.c_proj", 8, 8),
            ("mlp.c_fc", 8, 32),
            ("mlp.c_proj", 32, 8),
        ):
            shapes |= {f"{h}{name}.kernel": (outer, inner), f"{h}{name}.bias": (outer,)}
    h = "transformer.h.{i}."
    names = linear_rows(*((f"{h}{n}", f"{h}{n}") for n in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")))
    names |= norm_rows(*((f"{h}{n}", f"{h}{n}") for n in ("ln_1", "ln_2")), ("transformer.ln_f", "transformer.ln_f"))
    names |= {f"transformer.{n}.embedding": f"transformer.{n}.weight" for n in ("wte", "wpe")}
    return Pair(arrays(shapes), transformers.GPT2LMHeadModel(config), names)


def bert() -> Pair:
    config = transformers.BertConfig(
        vocab_size=31, hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16,
        max_position_embeddings=12,
    )  # fmt: skip
    e = "embeddings."
    shapes = {f"{e}word_embeddings.embedding": (31, 8), f"{e}position_embeddings.embedding": (12, 8)}
    shapes |= {f"{e}token_type_embeddings.embedding": (2, 8)} | norm(f"{e}LayerNorm", 8) | dense("pooler.dense", 8, 8)
    squares = [f"attention.self.{n}" for n in ("query", "key", "value")] + ["attention.output.dense"]
    for i in range(2):
        b = f"encoder.layer.{i}."
        for name in squares:
            shapes |= dense(b + name, 8, 8)
        shapes |= dense(f"{b}intermediate.dense", 8, 16) | dense(f"{b}output.dense", 16, 8)
        shapes |= norm(f"{b}attention.output.LayerNorm", 8) | norm(f"{b}output.LayerNorm", 8)
    b = "encoder.layer.{i}."
    same = [b + n for n in (*squares, "intermediate.dense", "output.dense")] + ["pooler.dense"]
    names = linear_rows(*((n, n) for n in same))
    norms = [f"{b}attention.output.LayerNorm", f"{b}output.LayerNorm", f"{e}LayerNorm"]
    names |= norm_rows(*((n, n) for n in norms))
    names |= {f"{e}{n}_embeddings.embedding": f"{e}{n}_embeddings.weight" for n in ("word", "position", "token_type")}
    params = {f"bert.{name}": value for name, value in arrays(shapes).items()}
    return Pair(params, transformers.BertModel(config), {f"bert.{a}": b for a, b in names.items()})


def vit() -> Pair:
    """vision_transformer's names, with numbers by order of call."""
    config = transformers.ViTConfig(
        hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16, image_size=8, patch_size=4
    )
    shapes = {"cls": (1, 1, 8), "embedding.kernel": (4, 4, 3, 8), "embedding.bias": (8,)}
    shapes |= (
        {"Transformer.posembed_input.pos_embedding": (1, 5, 8)}
        | norm("Transformer.encoder_norm", 8)
        | dense("head", 8, 2)
    )
    for i in range(2):
        b = f"Transformer.encoderblock_{i}."
        a = f"{b}MultiHeadDotProductAttention_1."
        shapes |= norm(f"{b}LayerNorm_0", 8) | norm(f"{b}LayerNorm_2", 8)
        for name in ("query", "key", "value"):
            shapes |= dense(a + name, 8, (2, 4))
        shapes |= {f"{a}out.kernel": (2, 4, 8), f"{a}out.bias": (8,)}
        shapes |= dense(f"{b}MlpBlock_3.Dense_0", 8, 16) | dense(f"{b}MlpBlock_3.Dense_1", 16, 8)
    module = transformers.ViTForImageClassification(config)
    known = {name for name, _ in module.named_parameters()}
    b = "Transformer.encoderblock_{i}."
    new = "vit.layers.0.attention.q_proj.weight" in known
    t = "vit.layers.{i}." if new else "vit.encoder.layer.{i}."
    a = f"{b}MultiHeadDotProductAttention_1."
    square = chain(reshape(8, 8), transpose(1, 0))
    attention = f"{t}attention." if new else f"{t}attention.attention."
    out = f"{t}attention.o_proj" if new else f"{t}attention.output.dense"
    names: dict = {
        "cls": "vit.embeddings.cls_token",
        "Transformer.posembed_input.pos_embedding": "vit.embeddings.position_embeddings",
        "embedding.kernel": ("vit.embeddings.patch_embeddings.projection.weight", IMAGE),
        "embedding.bias": "vit.embeddings.patch_embeddings.projection.bias",
        f"{a}out.kernel": (f"{out}.weight", square),
        f"{a}out.bias": f"{out}.bias",
    }
    for name in ("query", "key", "value"):
        other = f"{name[0]}_proj" if new else name
        names |= {f"{a}{name}.kernel": (f"{attention}{other}.weight", square)}
        names |= {f"{a}{name}.bias": (f"{attention}{other}.bias", reshape(8))}
    up, down = (f"{t}mlp.fc1", f"{t}mlp.fc2") if new else (f"{t}intermediate.dense", f"{t}output.dense")
    names |= linear_rows((f"{b}MlpBlock_3.Dense_0", up), (f"{b}MlpBlock_3.Dense_1", down), ("head", "classifier"))
    names |= norm_rows((f"{b}LayerNorm_0", f"{t}layernorm_before"), (f"{b}LayerNorm_2", f"{t}layernorm_after"))
    names |= norm_rows(("Transformer.encoder_norm", "vit.layernorm"))
    return Pair(arrays(shapes), module, names)


class ScannedBlock(linen.Module):
    @linen.compact
    def __call__(self, x, _):
        y = linen.MultiHeadDotProductAttention(2, name="attention")(linen.LayerNorm(epsilon=1e-5, name="ln1")(x))
        x = x + y
        y = linen.Dense(16, name="wi")(linen.LayerNorm(epsilon=1e-5, name="ln2")(x))
        return x + linen.Dense(8, name="wo")(linen.relu(y)), None


class Scanned(linen.Module):
    @linen.compact
    def __call__(self, x):
        stack = linen.scan(ScannedBlock, variable_axes={"params": 0}, split_rngs={"params": True}, length=3)
        x, _ = stack(name="layers")(x, None)
        return linen.LayerNorm(epsilon=1e-5, name="final_norm")(x)


class TorchBlock(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm1 = nn.LayerNorm(8)
        self.attn = nn.MultiheadAttention(8, 2, batch_first=True)
        self.norm2 = nn.LayerNorm(8)
        self.fc1 = nn.Linear(8, 16)
        self.fc2 = nn.Linear(16, 8)

    def forward(self, x):
        y = self.norm1(x)
        x = x + self.attn(y, y, y, need_weights=False)[0]
        return x + self.fc2(self.fc1(self.norm2(x)).relu())


class TorchStack(nn.Module):
    def __init__(self):
        super().__init__()
        self.h = nn.ModuleList(TorchBlock() for _ in range(3))
        self.norm = nn.LayerNorm(8)

    def forward(self, x):
        for block in self.h:
            x = block(x)
        return self.norm(x)


def scanned() -> Pair:
    model = Scanned()
    x = np.random.default_rng(0).standard_normal((2, 5, 8)).astype(np.float32)
    params = model.init(jax.random.key(0), x)
    a, b, qkv = "params.layers.", "h.{i}.", ("query", "key", "value")
    joined = chain(reshape(3, 8, 8), transpose(0, 2, 1), concat(1), unstack())
    names: dict = {
        tuple(f"{a}attention.{n}.kernel" for n in qkv): (f"{b}attn.in_proj_weight", joined),
        tuple(f"{a}attention.{n}.bias" for n in qkv): (
            f"{b}attn.in_proj_bias",
            chain(reshape(3, 8), concat(1), unstack()),
        ),
        f"{a}attention.out.kernel": (f"{b}attn.out_proj.weight", chain(unstack(), reshape(8, 8), transpose())),
        f"{a}attention.out.bias": (f"{b}attn.out_proj.bias", unstack()),
    }
    for one, other in (("wi", "fc1"), ("wo", "fc2")):
        names[f"{a}{one}.kernel"] = (f"{b}{other}.weight", chain(unstack(), transpose()))
        names[f"{a}{one}.bias"] = (f"{b}{other}.bias", unstack())
    for n in "12":
        names[f"{a}ln{n}.scale"] = (f"{b}norm{n}.weight", unstack())
        names[f"{a}ln{n}.bias"] = (f"{b}norm{n}.bias", unstack())
    names |= norm_rows(("params.final_norm", "norm"))
    return Pair(params, TorchStack(), names, (), (), (x,), model.apply)


def convnext() -> Pair:
    """Flax ConvNeXt with names as flax ports of it have them."""
    dims, depths = (4, 8), (2, 3)
    config = transformers.ConvNextConfig(
        patch_size=2, num_stages=2, hidden_sizes=list(dims), depths=list(depths), num_labels=3
    )
    module = transformers.ConvNextForImageClassification(config)
    shapes = {"stem.conv.kernel": (2, 2, 3, 4), "stem.conv.bias": (4,)} | norm("stem.norm", 4)
    shapes |= {"downsample_1.conv.kernel": (2, 2, 4, 8), "downsample_1.conv.bias": (8,)} | norm("downsample_1.norm", 4)
    c = "convnext."
    names: dict = {
        "stem.conv.kernel": (f"{c}embeddings.patch_embeddings.weight", IMAGE),
        "stem.conv.bias": f"{c}embeddings.patch_embeddings.bias",
        "downsample_1.conv.kernel": (f"{c}encoder.stages.1.downsampling_layer.1.weight", IMAGE),
        "downsample_1.conv.bias": f"{c}encoder.stages.1.downsampling_layer.1.bias",
    }
    names |= norm_rows(
        ("stem.norm", f"{c}embeddings.layernorm"), ("downsample_1.norm", f"{c}encoder.stages.1.downsampling_layer.0")
    )
    for s, (dim, depth) in enumerate(zip(dims, depths)):
        for i in range(depth):
            b, t = f"stages_{s}.blocks_{i}.", f"{c}encoder.stages.{s}.layers.{i}."
            shapes |= {f"{b}dwconv.kernel": (7, 7, 1, dim), f"{b}dwconv.bias": (dim,), f"{b}gamma": (dim,)}
            shapes |= norm(f"{b}norm", dim) | dense(f"{b}pwconv1", dim, 4 * dim) | dense(f"{b}pwconv2", 4 * dim, dim)
            names |= {f"{b}dwconv.kernel": (f"{t}dwconv.weight", IMAGE), f"{b}dwconv.bias": f"{t}dwconv.bias"}
            names |= {f"{b}gamma": f"{t}layer_scale_parameter"} | norm_rows((f"{b}norm", f"{t}layernorm"))
            names |= linear_rows((f"{b}pwconv1", f"{t}pwconv1"), (f"{b}pwconv2", f"{t}pwconv2"))
    shapes |= norm("norm", 8) | dense("head", 8, 3)
    names |= norm_rows(("norm", f"{c}layernorm")) | linear_rows(("head", "classifier"))
    return Pair(arrays(shapes), module, names)


def t5() -> Pair:
    """T5X's names."""
    config = transformers.T5Config(
        vocab_size=31, d_model=8, d_kv=4, d_ff=16, num_layers=2, num_heads=3, feed_forward_proj="gated-gelu",
        relative_attention_num_buckets=6,
    )  # fmt: skip
    module = transformers.T5ForConditionalGeneration(config)
    shapes = {"token_embedder.embedding": (31, 8)}
    names: dict = {"token_embedder.embedding": "shared.weight"}
    for side in ("encoder", "decoder"):
        shapes |= norm(f"{side}.{side}_norm", 8, False) | {f"{side}.relpos_bias.rel_embedding": (3, 6)}
        names |= norm_rows((f"{side}.{side}_norm", f"{side}.final_layer_norm"), bias=False)
        bias = f"{side}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
        names |= {f"{side}.relpos_bias.rel_embedding": (bias, T)}
        kinds = [("attention", "SelfAttention", "pre_attention_layer_norm")]
        if side == "decoder":
            kinds = [
                ("self_attention", "SelfAttention", "pre_self_attention_layer_norm"),
                ("encoder_decoder_attention", "EncDecAttention", "pre_cross_attention_layer_norm"),
            ]
        for i in range(2):
            b, t = f"{side}.layers_{i}.", f"{side}.block.{i}.layer."
            for n, (one, other, before) in enumerate(kinds):
                for name in ("query", "key", "value", "out"):
                    ends = (12, 8) if name == "out" else (8, 12)
                    shapes |= dense(f"{b}{one}.{name}", *ends, bias=False)
                    names |= linear_rows((f"{b}{one}.{name}", f"{t}{n}.{other}.{name[0]}"), bias=False)
                shapes |= norm(b + before, 8, False)
                names |= norm_rows((b + before, f"{t}{n}.layer_norm"), bias=False)
            last = len(kinds)
            for name, ends in (("wi_0", (8, 16)), ("wi_1", (8, 16)), ("wo", (16, 8))):
                shapes |= dense(f"{b}mlp.{name}", *ends, bias=False)
                names |= linear_rows((f"{b}mlp.{name}", f"{t}{last}.DenseReluDense.{name}"), bias=False)
            shapes |= norm(f"{b}pre_mlp_layer_norm", 8, False)
            names |= norm_rows((f"{b}pre_mlp_layer_norm", f"{t}{last}.layer_norm"), bias=False)
    return Pair(arrays(shapes), module, names)


def whisper() -> Pair:
    config = transformers.WhisperConfig(
        vocab_size=31, num_mel_bins=6, encoder_layers=2, encoder_attention_heads=2, decoder_layers=2,
        decoder_attention_heads=2, encoder_ffn_dim=16, decoder_ffn_dim=16, d_model=8, max_source_positions=10,
        max_target_positions=9, pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1,
    )  # fmt: skip
    module = transformers.WhisperModel(config)
    shapes = {"encoder.embed_positions.embedding": (10, 8), "decoder.embed_positions.embedding": (9, 8)}
    shapes |= {"decoder.embed_tokens.embedding": (31, 8)}
    names: dict = {name: name.replace("embedding", "weight") for name in shapes}
    for n, inner in ((1, 6), (2, 8)):
        shapes |= {f"encoder.conv{n}.kernel": (3, inner, 8), f"encoder.conv{n}.bias": (8,)}
        names |= {f"encoder.conv{n}.kernel": (f"encoder.conv{n}.weight", (2, 1, 0))}
        names |= {f"encoder.conv{n}.bias": f"encoder.conv{n}.bias"}
    for side in ("encoder", "decoder"):
        shapes |= norm(f"{side}.layer_norm", 8)
        names |= norm_rows((f"{side}.layer_norm",) * 2)
        attentions = ["self_attn"] + ["encoder_attn"] * (side == "decoder")
        for i in range(2):
            b = f"{side}.layers.{i}."
            for a in attentions:
                shapes |= norm(f"{b}{a}_layer_norm", 8)
                names |= norm_rows((f"{b}{a}_layer_norm",) * 2)
                for n in "qkv":
                    shapes |= dense(f"{b}{a}.{n}_proj", 8, 8, n != "k")
                    names |= linear_rows((f"{b}{a}.{n}_proj",) * 2, bias=n != "k")
                shapes |= dense(f"{b}{a}.out_proj", 8, 8)
                names |= linear_rows((f"{b}{a}.out_proj",) * 2)
            shapes |= norm(f"{b}final_layer_norm", 8) | dense(f"{b}fc1", 8, 16) | dense(f"{b}fc2", 16, 8)
            names |= norm_rows((f"{b}final_layer_norm",) * 2) | linear_rows((f"{b}fc1",) * 2, (f"{b}fc2",) * 2)
    params = {f"model.{name}": value for name, value in arrays(shapes).items()}
    return Pair(params, module, {f"model.{a}": b for a, b in names.items()})


def haiku() -> Pair:
    sizes = (6, 8, 8, 8, 3)
    params, names = {}, {}
    for i, (inner, outer) in enumerate(pairwise(sizes)):
        params[f"mlp/~/linear_{i}"] = {
            "w": np.random.default_rng(i).standard_normal((inner, outer)),
            "b": np.zeros(outer),
        }
        names |= {f"mlp/~/linear_{i}.w": (f"{2 * i}.weight", T), f"mlp/~/linear_{i}.b": f"{2 * i}.bias"}
    layers = [layer for a, b in pairwise(sizes) for layer in (nn.Linear(a, b), nn.ReLU())][:-1]
    x = np.random.default_rng(9).standard_normal((4, 6))

    def run(params, x):
        for i in range(4):
            x = x @ params[f"mlp/~/linear_{i}"]["w"] + params[f"mlp/~/linear_{i}"]["b"]
            x = jnp.maximum(x, 0) if i < 3 else x
        return x

    return Pair(params, nn.Sequential(*layers), names, (), (), (x,), run)


def equinox() -> Pair:
    """Equinox keeps output × input, as torch does."""
    sizes = (6, 8, 8, 8, 3)
    layers = [
        {"weight": np.random.default_rng(i).standard_normal((b, a)), "bias": np.zeros(b)}
        for i, (a, b) in enumerate(pairwise(sizes))
    ]
    names = {f"layers.{i}.{n}": f"{2 * i}.{n}" for i in range(4) for n in ("weight", "bias")}
    modules = [layer for a, b in pairwise(sizes) for layer in (nn.Linear(a, b), nn.Tanh())][:-1]
    x = np.random.default_rng(9).standard_normal((4, 6))

    def run(params, x):
        for i, layer in enumerate(params["layers"]):
            x = x @ layer["weight"].T + layer["bias"]
            x = jnp.tanh(x) if i < 3 else x
        return x

    return Pair({"layers": layers}, nn.Sequential(*modules), names, (), (), (x,), run)


def gemma() -> Pair:
    """DeepMind's Gemma: einsums, keys and values in one, gate and up in one, the head tied."""
    config = transformers.GemmaConfig(
        vocab_size=31, hidden_size=12, intermediate_size=16, num_hidden_layers=3, num_attention_heads=2,
        num_key_value_heads=1, head_dim=4, pad_token_id=0,
    )  # fmt: skip
    module = transformers.GemmaForCausalLM(config)
    shapes = {"transformer.embedder.input_embedding": (31, 12)} | norm("transformer.final_norm", 12, False)
    for i in range(3):
        b = f"transformer.layer_{i}."
        shapes |= {f"{b}attn.q_einsum.w": (2, 12, 4), f"{b}attn.kv_einsum.w": (2, 1, 12, 4)}
        shapes |= {
            f"{b}attn.attn_vec_einsum.w": (2, 4, 12),
            f"{b}mlp.gating_einsum": (2, 12, 16),
            f"{b}mlp.linear": (16, 12),
        }
        shapes |= norm(f"{b}pre_attention_norm", 12, False) | norm(f"{b}pre_ffw_norm", 12, False)
    b, t = "transformer.layer_{i}.", "model.layers.{i}."
    names: dict = {
        "transformer.embedder.input_embedding": "model.embed_tokens.weight",
        f"{b}attn.q_einsum.w": (f"{t}self_attn.q_proj.weight", chain(transpose(0, 2, 1), reshape(8, 12))),
        f"{b}attn.kv_einsum.w": (
            (f"{t}self_attn.k_proj.weight", f"{t}self_attn.v_proj.weight"),
            chain(split(2), reshape(12, 4), transpose()),
        ),
        f"{b}attn.attn_vec_einsum.w": (f"{t}self_attn.o_proj.weight", chain(reshape(8, 12), transpose())),
        f"{b}mlp.gating_einsum": (
            (f"{t}mlp.gate_proj.weight", f"{t}mlp.up_proj.weight"),
            chain(split(2), reshape(12, 16), transpose()),
        ),
        f"{b}mlp.linear": (f"{t}mlp.down_proj.weight", T),
    }
    names |= norm_rows(
        (f"{b}pre_attention_norm", f"{t}input_layernorm"), (f"{b}pre_ffw_norm", f"{t}post_attention_layernorm"),
        ("transformer.final_norm", "model.norm"), bias=False,
    )  # fmt: skip
    return Pair(arrays(shapes), module, names)


PAIRS = {
    "linen attention, nn.MultiheadAttention": attention,
    "linen LSTM, nn.LSTM": lstm,
    "linen GRU, nn.GRU": gru,
    "linen ResNet, torchvision's names": resnet,
    "NNX transformer, nn.TransformerEncoder": nnx_transformer,
    "jaxlm, torchlm": decoder,
    "jaxlm, transformers Llama": partial(decoder, torch=False),
    "Flax GPT-2, transformers": gpt2,
    "Flax BERT, transformers": bert,
    "vision_transformer, transformers ViT": vit,
    "scanned linen transformer, ModuleList": scanned,
    "Flax ConvNeXt, transformers": convnext,
    "T5X, transformers T5": t5,
    "Flax Whisper, transformers": whisper,
    "Haiku MLP, nn.Sequential": haiku,
    "Equinox MLP, nn.Sequential": equinox,
    "Gemma, transformers": gemma,
}


def maxtext() -> Pair:
    """MaxText's names; layers are stacked along axis 1."""
    config = transformers.MistralConfig(
        vocab_size=31, hidden_size=16, intermediate_size=24, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, head_dim=4,
    )  # fmt: skip
    module = transformers.MistralForCausalLM(config)
    a, t = "params.decoder.layers.", "model.layers.{i}."
    shapes = {"params.token_embedder.embedding": (31, 16), "params.decoder.logits_dense.kernel": (16, 31)}
    shapes |= {"params.decoder.decoder_norm.scale": (16,)}
    names: dict = {
        "params.token_embedder.embedding": "model.embed_tokens.weight",
        "params.decoder.logits_dense.kernel": ("lm_head.weight", T),
        "params.decoder.decoder_norm.scale": "model.norm.weight",
    }
    attention = (("query", "q", 4), ("key", "k", 2), ("value", "v", 2))
    for one, other, heads in attention:
        shapes[f"{a}self_attention.{one}.kernel"] = (16, 3, heads, 4)
        change = chain(unstack(1), reshape(16, heads * 4), transpose())
        names[f"{a}self_attention.{one}.kernel"] = (f"{t}self_attn.{other}_proj.weight", change)
    shapes[f"{a}self_attention.out.kernel"] = (4, 3, 4, 16)
    change = chain(unstack(1), reshape(16, 16), transpose())
    names[f"{a}self_attention.out.kernel"] = (f"{t}self_attn.o_proj.weight", change)
    for one, other, ends in (("wi_0", "gate", (16, 24)), ("wi_1", "up", (16, 24)), ("wo", "down", (24, 16))):
        shapes[f"{a}mlp.{one}.kernel"] = (ends[0], 3, ends[1])
        names[f"{a}mlp.{one}.kernel"] = (f"{t}mlp.{other}_proj.weight", chain(unstack(1), transpose()))
    for one, other in (("pre", "input"), ("post", "post_attention")):
        shapes[f"{a}{one}_self_attention_layer_norm.scale"] = (16, 3)
        names[f"{a}{one}_self_attention_layer_norm.scale"] = (f"{t}{other}_layernorm.weight", unstack(1))
    return Pair(arrays(shapes), module, names)


class TorchGpt(nn.Module):
    def __init__(self):
        super().__init__()
        self.token_embedding = nn.Embedding(31, 8)
        self.position_embedding = nn.Embedding(12, 8)
        self.blocks = nn.ModuleList(TorchBlock() for _ in range(2))
        self.ln_final = nn.LayerNorm(8)
        self.output = nn.Linear(8, 31)


def haiku_gpt() -> Pair:
    """Haiku's example of a transformer."""
    params: dict = {"embed.embeddings": (31, 8), "pos_embs": (12, 8)}
    params |= {"transformer/ln_f.scale": (8,), "transformer/ln_f.offset": (8,), "linear.w": (8, 31), "linear.b": (31,)}
    names: dict = {
        "embed.embeddings": "token_embedding.weight",
        "pos_embs": "position_embedding.weight",
        "transformer/ln_f.scale": "ln_final.weight",
        "transformer/ln_f.offset": "ln_final.bias",
        "linear.w": ("output.weight", T),
        "linear.b": "output.bias",
    }
    for i in range(2):
        h, t = f"transformer/h{i}_", f"blocks.{i}."
        for n in ("query", "key", "value", "linear"):
            params |= {f"{h}attn/{n}.w": (8, 8), f"{h}attn/{n}.b": (8,)}
        qkv = ("query", "key", "value")
        names |= {
            tuple(f"{h}attn/{n}.w" for n in qkv): (f"{t}attn.in_proj_weight", chain(transpose(), concat())),
            tuple(f"{h}attn/{n}.b" for n in qkv): (f"{t}attn.in_proj_bias", concat()),
            f"{h}attn/linear.w": (f"{t}attn.out_proj.weight", T),
            f"{h}attn/linear.b": f"{t}attn.out_proj.bias",
        }
        for n, (one, other, ends) in enumerate((("linear", "fc1", (8, 16)), ("linear_1", "fc2", (16, 8))), 1):
            params |= {f"{h}mlp/{one}.w": ends, f"{h}mlp/{one}.b": ends[1:]}
            names |= {f"{h}mlp/{one}.w": (f"{t}{other}.weight", T), f"{h}mlp/{one}.b": f"{t}{other}.bias"}
            params |= {f"{h}ln_{n}.scale": (8,), f"{h}ln_{n}.offset": (8,)}
            names |= {f"{h}ln_{n}.scale": f"{t}norm{n}.weight", f"{h}ln_{n}.offset": f"{t}norm{n}.bias"}
    return Pair(arrays(params), TorchGpt(), names)


class MixerBlock(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm1 = nn.LayerNorm(8)
        self.mlp_tokens = nn.ModuleDict({"fc1": nn.Linear(4, 6), "fc2": nn.Linear(6, 4)})
        self.norm2 = nn.LayerNorm(8)
        self.mlp_channels = nn.ModuleDict({"fc1": nn.Linear(8, 16), "fc2": nn.Linear(16, 8)})


class Mixer(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.ModuleDict({"proj": nn.Conv2d(3, 8, 4, 4)})
        self.blocks = nn.Sequential(MixerBlock(), MixerBlock(), MixerBlock())
        self.norm = nn.LayerNorm(8)
        self.head = nn.Linear(8, 5)


def mixer() -> Pair:
    """vision_transformer's MLP-Mixer and timm's."""
    shapes = {"stem.kernel": (4, 4, 3, 8), "stem.bias": (8,)} | norm("pre_head_layer_norm", 8) | dense("head", 8, 5)
    names: dict = {"stem.kernel": ("stem.proj.weight", IMAGE), "stem.bias": "stem.proj.bias"}
    names |= norm_rows(("pre_head_layer_norm", "norm")) | linear_rows(("head", "head"))
    for i in range(3):
        b, t = f"MixerBlock_{i}.", f"blocks.{i}."
        shapes |= norm(f"{b}LayerNorm_0", 8) | norm(f"{b}LayerNorm_1", 8)
        names |= norm_rows((f"{b}LayerNorm_0", f"{t}norm1"), (f"{b}LayerNorm_1", f"{t}norm2"))
        for one, other, inner, outer in (("token", "tokens", 4, 6), ("channel", "channels", 8, 16)):
            shapes |= dense(f"{b}{one}_mixing.Dense_0", inner, outer) | dense(f"{b}{one}_mixing.Dense_1", outer, inner)
            names |= linear_rows(
                (f"{b}{one}_mixing.Dense_0", f"{t}mlp_{other}.fc1"), (f"{b}{one}_mixing.Dense_1", f"{t}mlp_{other}.fc2")
            )
    return Pair(arrays(shapes), Mixer(), names)


def clip() -> Pair:
    """big_vision's two towers of SigLIP or CLIP, and transformers' CLIP vision tower: the image side alone."""
    config = transformers.CLIPVisionConfig(
        hidden_size=8, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=8, patch_size=4
    )
    module = transformers.CLIPVisionModel(config)
    known = [name for name, _ in module.named_parameters()]
    v = "vision_model." if known[0].startswith("vision_model") else ""
    shapes = {
        "vision_model.embeddings.class_embedding": (8,),
        "vision_model.embeddings.patch_embedding.kernel": (4, 4, 3, 8),
    }
    shapes |= {"vision_model.embeddings.position_embedding.embedding": (5, 8)}
    e = "vision_model.embeddings."
    names: dict = {
        f"{e}class_embedding": f"{v}embeddings.class_embedding",
        f"{e}patch_embedding.kernel": (f"{v}embeddings.patch_embedding.weight", IMAGE),
        f"{e}position_embedding.embedding": f"{v}embeddings.position_embedding.weight",
    }
    for one in ("pre_layrnorm", "post_layernorm"):
        shapes |= norm(f"vision_model.{one}", 8)
        names |= norm_rows((f"vision_model.{one}", f"{v}{one}"))
    for i in range(2):
        b, t = f"vision_model.encoder.layers.{i}.", f"{v}encoder.layers.{i}."
        for n in ("q_proj", "k_proj", "v_proj", "out_proj"):
            shapes |= dense(f"{b}self_attn.{n}", 8, 8)
            names |= linear_rows((f"{b}self_attn.{n}", f"{t}self_attn.{n}"))
        for n, ends in (("fc1", (8, 16)), ("fc2", (16, 8))):
            shapes |= dense(f"{b}mlp.{n}", *ends)
            names |= linear_rows((f"{b}mlp.{n}", f"{t}mlp.{n}"))
        for n in ("layer_norm1", "layer_norm2"):
            shapes |= norm(b + n, 8)
            names |= norm_rows((b + n, t + n))
    return Pair(arrays(shapes), module, names)


def lm1b() -> Pair:
    """Flax's example of a language model, and OPT, which has learned positions."""
    config = transformers.OPTConfig(
        vocab_size=31, hidden_size=8, num_hidden_layers=2, ffn_dim=16, num_attention_heads=2, word_embed_proj_dim=8,
        max_position_embeddings=12, pad_token_id=0, bos_token_id=1, eos_token_id=2, tie_word_embeddings=False,
    )  # fmt: skip
    module = transformers.OPTForCausalLM(config)
    shapes = {"decoder.Embed_0.embedding": (31, 8), "decoder.logitdense.kernel": (8, 31)}
    shapes |= norm("decoder.encoderdecoder_norm", 8)
    t = "model.decoder."
    names: dict = {
        "decoder.Embed_0.embedding": f"{t}embed_tokens.weight",
        "decoder.logitdense.kernel": ("lm_head.weight", T),
    } | norm_rows(("decoder.encoderdecoder_norm", f"{t}final_layer_norm"))
    for i in range(2):
        b, u = f"decoder.encoderdecoderblock_{i}.", f"{t}layers.{i}."
        a = f"{b}MultiHeadDotProductAttention_0."
        for one in ("query", "key", "value"):
            shapes |= dense(a + one, 8, (2, 4))
            names[f"{a}{one}.kernel"] = (f"{u}self_attn.{one[0]}_proj.weight", chain(reshape(8, 8), transpose()))
            names[f"{a}{one}.bias"] = (f"{u}self_attn.{one[0]}_proj.bias", reshape(8))
        shapes |= {f"{a}out.kernel": (2, 4, 8), f"{a}out.bias": (8,)}
        names[f"{a}out.kernel"] = (f"{u}self_attn.out_proj.weight", chain(reshape(8, 8), transpose()))
        names[f"{a}out.bias"] = f"{u}self_attn.out_proj.bias"
        shapes |= dense(f"{b}MlpBlock_0.Dense_0", 8, 16) | dense(f"{b}MlpBlock_0.Dense_1", 16, 8)
        names |= linear_rows((f"{b}MlpBlock_0.Dense_0", f"{u}fc1"), (f"{b}MlpBlock_0.Dense_1", f"{u}fc2"))
        shapes |= norm(f"{b}LayerNorm_0", 8) | norm(f"{b}LayerNorm_1", 8)
        names |= norm_rows((f"{b}LayerNorm_0", f"{u}self_attn_layer_norm"), (f"{b}LayerNorm_1", f"{u}final_layer_norm"))
    return Pair(arrays(shapes), module, names, (), (f"{t}embed_positions.weight",))


PAIRS["Haiku GPT, nn.MultiheadAttention"] = haiku_gpt
HELD_OUT = {
    "MaxText, transformers Mistral": maxtext,
    "MLP-Mixer, timm's names": mixer,
    "Flax CLIP vision, transformers": clip,
    "Flax lm1b, transformers OPT": lm1b,
}
"""Pairs that no synonym or weight was chosen by."""
RUNNABLE = (
    "linen attention, nn.MultiheadAttention",
    "linen LSTM, nn.LSTM",
    "linen ResNet, torchvision's names",
    "NNX transformer, nn.TransformerEncoder",
    "jaxlm, torchlm",
    "jaxlm, transformers Llama",
    "scanned linen transformer, ModuleList",
    "Haiku MLP, nn.Sequential",
    "Equinox MLP, nn.Sequential",
)
"""Pairs whose JAX side is a function too."""
