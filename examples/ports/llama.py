"""`transformers`' Llama against two JAX ones: jaxlm's decoder, and a function whose layers run in `jax.lax.scan`.

In float64 too, transformers computes its norms, softmax and rotary angles in float32: the comparison names these
operations, and holds the rest to the tolerances of float32.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from transformers import LlamaConfig, LlamaForCausalLM

from jaxlm import Decoder
from lmcore.config import ModelConfig
from parity import compare
from parity.transforms import chain, transpose, unstack

VOCAB, WIDTH, HEADS, LAYERS, INNER, LENGTH, EPS = 64, 16, 2, 3, 40, 10, 1e-5
HF = "model.layers.{i}."
NORMS = {"input_layernorm": "input_layernorm", "post_attention_layernorm": "post_attention_layernorm"}
LINEARS = [f"self_attn.{part}_proj" for part in "qkvo"] + [f"mlp.{part}_proj" for part in ("gate", "up", "down")]


def scanned(params: dict, tokens: jax.Array) -> jax.Array:
    """Return the logits B T V of token ids B T; the layers' weights are stacked along a first axis."""
    angles = jnp.arange(LENGTH)[:, None] * 10000.0 ** (-jnp.arange(0, WIDTH // HEADS, 2) / (WIDTH // HEADS))
    cos, sin = (jnp.tile(function(angles), 2)[:, None] for function in (jnp.cos, jnp.sin))
    mask = jnp.tril(jnp.ones((LENGTH, LENGTH), bool))

    def norm(x: jax.Array, scale: jax.Array) -> jax.Array:
        return x * jax.lax.rsqrt((x**2).mean(axis=-1, keepdims=True) + EPS) * scale

    def rotated(x: jax.Array) -> jax.Array:
        left, right = jnp.split(x, 2, axis=-1)
        return x * cos + jnp.concatenate([-right, left], axis=-1) * sin

    def layer(x: jax.Array, w: dict) -> tuple[jax.Array, None]:
        y = norm(x, w["input_layernorm"])
        q, k, v = ((y @ w[f"self_attn.{part}_proj"]).reshape(*y.shape[:-1], HEADS, -1) for part in "qkv")
        scores = jnp.einsum("btnh,bsnh->bnts", rotated(q), rotated(k)) / np.sqrt(WIDTH // HEADS)
        weights = jax.nn.softmax(jnp.where(mask, scores, -jnp.inf))
        x = x + jnp.einsum("bnts,bsnh->btnh", weights, v).reshape(x.shape) @ w["self_attn.o_proj"]
        y = norm(x, w["post_attention_layernorm"])
        return x + (jax.nn.silu(y @ w["mlp.gate_proj"]) * (y @ w["mlp.up_proj"])) @ w["mlp.down_proj"], None

    x, _ = jax.lax.scan(layer, params["embed"][tokens], params["layers"])
    return norm(x, params["norm"]) @ params["head"]


def main() -> int:
    """Compare both; return the exit code."""
    sizes = {"hidden_size": WIDTH, "intermediate_size": INNER, "num_attention_heads": HEADS, "rms_norm_eps": EPS}
    llama = LlamaForCausalLM(LlamaConfig(vocab_size=VOCAB, num_hidden_layers=LAYERS, **sizes))
    rng = np.random.default_rng(0)
    tokens = rng.integers(VOCAB, size=(2, LENGTH))

    config = ModelConfig(
        vocab_size=VOCAB, dim=WIDTH, n_layers=LAYERS, n_heads=HEADS, ffn_dim=INNER, norm_eps=EPS, tie_embeddings=False
    )
    decoder = Decoder(config, jnp.float64)
    random = jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape) / 4, nnx.state(decoder, nnx.Param))
    nnx.update(decoder, random)
    names = {"embed_tokens.weight": "model.embed_tokens.weight", "norm.weight": "model.norm.weight"}
    names |= {f"layers.{{i}}.{norm}.weight": f"{HF}{norm}.weight" for norm in NORMS}
    names |= {f"layers.{{i}}.{linear}.kernel": (f"{HF}{linear}.weight", transpose()) for linear in LINEARS}
    names["lm_head.kernel"] = ("lm_head.weight", transpose())
    report = compare(decoder, llama, tokens, names=names, outputs=["logits"])
    print(report)

    shapes = dict.fromkeys(NORMS, (WIDTH,)) | dict.fromkeys(LINEARS, (WIDTH, WIDTH))
    shapes |= {"mlp.gate_proj": (WIDTH, INNER), "mlp.up_proj": (WIDTH, INNER), "mlp.down_proj": (INNER, WIDTH)}
    params = {
        "embed": rng.standard_normal((VOCAB, WIDTH)),
        "layers": {name: rng.standard_normal((LAYERS, *shape)) / 4 for name, shape in shapes.items()},
        "norm": rng.standard_normal(WIDTH),
        "head": rng.standard_normal((WIDTH, VOCAB)),
    }
    names = {"embed": "model.embed_tokens.weight", "norm": "model.norm.weight", "head": ("lm_head.weight", transpose())}
    names |= {f"layers.{norm}": (f"{HF}{norm}.weight", unstack()) for norm in NORMS}
    names |= {f"layers.{linear}": (f"{HF}{linear}.weight", chain(unstack(), transpose())) for linear in LINEARS}
    scan = compare(scanned, llama, tokens, params=params, names=names, outputs=["logits"])
    print(scan)
    return 0 if report and scan else 1


if __name__ == "__main__":
    raise SystemExit(main())
