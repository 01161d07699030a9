"""openpi#810, lerobot#2598: the language model of π0 in Flax, and transformers' Gemma, which its ports are made of."""

import sys

import jax
import numpy as np
import optax
import torch
from flax import linen
from openpi.models import gemma
from transformers import GemmaConfig, GemmaModel

from parity import compare, match

c, rng = gemma.get_config("dummy"), np.random.default_rng(0)
sizes = {"hidden_size": c.width, "intermediate_size": c.mlp_dim, "num_hidden_layers": c.depth, "head_dim": c.head_dim}
heads = {"num_attention_heads": c.num_heads, "num_key_value_heads": c.num_kv_heads, "vocab_size": 8}
port = GemmaModel(GemmaConfig(**sizes, **heads, attn_implementation="eager"))

batches = [(rng.standard_normal((2, 6, c.width), np.float32),) for _ in range(50)]
positions, seen = (
    np.tile(np.arange(6, dtype=np.int32), (2, 1)),
    np.ones((2, 6, 6), bool),
)  # a prefix: every position sees all
model = gemma.Module(configs=(c,), embed_dtype="float32")
params = linen.Module.init(model, jax.random.key(0), [batches[0][0]], positions, seen)["params"]
params = jax.tree.map(lambda w: rng.standard_normal(w.shape, np.float32) / w.shape[-1] ** 0.5, params)


def jax_fn(params, x):
    return model.apply({"params": params}, [x], positions, seen)[0][0]


def call(module, x):
    return module(inputs_embeds=x, attention_mask=torch.zeros(2, 1, 6, 6)).last_hidden_state


found = match(params, port, *batches[0], jax_fn=jax_fn, call_module=call)
decay = float(sys.argv[1])  # openpi has 1e-10, lerobot 0.01
adamw = optax.adamw(1e-3, b2=0.95, weight_decay=1e-10)
optimizers = adamw, lambda parameters: torch.optim.AdamW(parameters, 1e-3, (0.9, 0.95), weight_decay=decay)
given = {"params": params, "names": found.names, "only_torch": found.only_torch, "call_module": call}
print(compare(jax_fn, port, *batches[0], **given, optimizers=optimizers, batches=batches, dtype="float32"))
