"""Layouts that differ between the frameworks: fused attention, gates of an LSTM, layers under scan, a tied head."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import linen, nnx
from torch import nn

from parity import compare
from parity.transforms import chain, concat, reshape, shared, transpose, unstack

RNG = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def users_write_jax_as_they_like():
    with jax.numpy_rank_promotion("allow"):
        yield


def test_separate_kernels_of_attention_are_torchs_fused_one():
    length, dim, heads, width = 5, 12, 3, 4
    x = RNG.standard_normal((2, length, dim))
    attention = linen.MultiHeadDotProductAttention(num_heads=heads)
    params = jax.tree.map(np.asarray, attention.init(jax.random.key(1), x, x)["params"])
    for part in ("query", "key", "value", "out"):
        params[part]["bias"] = RNG.standard_normal(params[part]["bias"].shape)

    class SelfAttention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mha = nn.MultiheadAttention(dim, heads, batch_first=True)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.mha(x, x, x, need_weights=False)[0]

    parts = ("query", "key", "value")
    fused = chain(reshape(dim, heads * width), transpose(), concat())
    names = {
        tuple(f"{part}.kernel" for part in parts): ("mha.in_proj_weight", fused),
        tuple(f"{part}.bias" for part in parts): ("mha.in_proj_bias", chain(reshape(-1), concat())),
        "out.kernel": ("mha.out_proj.weight", chain(reshape(heads * width, dim), transpose())),
        "out.bias": "mha.out_proj.bias",
    }

    def jax_fn(params: dict, x: jax.Array) -> jax.Array:
        return attention.apply({"params": params}, x, x)

    report = compare(jax_fn, SelfAttention(), x, params=params, names=names)
    assert report, str(report)
    assert report.results[-2].note == "zero within rounding: key.bias", "it moves all scores of a query alike"
    swapped = tuple(f"{part}.kernel" for part in ("key", "query", "value"))
    names[swapped] = names.pop(tuple(f"{part}.kernel" for part in parts))
    assert compare(jax_fn, SelfAttention(), x, params=params, names=names).first_failure.rung == 4


def test_the_kernels_of_an_lstm_are_torchs_two():
    size, hidden = 5, 4
    x = RNG.standard_normal((3, 7, size))
    graph, weights, rest = nnx.split(nnx.LSTMCell(size, hidden, rngs=nnx.Rngs(0)), nnx.Param, ...)
    params = jax.tree.map(np.asarray, nnx.to_pure_dict(weights))

    def jax_fn(params: dict, x: jax.Array) -> jax.Array:
        state = jax.tree.map(lambda leaf: leaf, weights)
        nnx.replace_by_pure_dict(state, params)
        step = nnx.merge(graph, state, rest)
        carry = (jnp.zeros((len(x), hidden), x.dtype),) * 2
        outputs = []
        for t in range(x.shape[1]):
            carry, y = step(carry, x[:, t])
            outputs.append(y)
        return jnp.stack(outputs, axis=1)

    class Lstm(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm = nn.LSTM(size, hidden, batch_first=True)
            nn.init.zeros_(self.lstm.bias_ih_l0)  # flax has one bias for both

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.lstm(x)[0]

    gates = "ifgo"
    names = {
        tuple(f"i{gate}.kernel" for gate in ("i", "f_", "g", "o")): ("lstm.weight_ih_l0", chain(transpose(), concat())),
        tuple(f"h{gate}.kernel" for gate in gates): ("lstm.weight_hh_l0", chain(transpose(), concat())),
        tuple(f"h{gate}.bias" for gate in gates): ("lstm.bias_hh_l0", concat()),
    }
    report = compare(jax_fn, Lstm(), x, params=params, names=names, only_torch=["lstm.bias_ih_l0"])
    assert report, str(report)


def test_layers_stacked_for_scan_are_a_list_of_modules_and_a_tied_head_sums_its_gradients():
    layers, dim, vocabulary = 3, 6, 11
    ids = RNG.integers(vocabulary, size=(2, 5))
    table = RNG.standard_normal((vocabulary, dim))
    params = {"embed": table, "head": table.copy(), "w": RNG.standard_normal((layers, dim, dim)) / 3}

    def jax_fn(params: dict, ids: jax.Array) -> jax.Array:
        x, _ = jax.lax.scan(lambda x, w: (x + jnp.tanh(x @ w), None), params["embed"][ids], params["w"])
        return x @ params["head"].T

    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(vocabulary, dim)
            self.layers = nn.ModuleList([nn.Linear(dim, dim, bias=False) for _ in range(layers)])

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            x = self.embed(ids)
            for layer in self.layers:
                x = x + torch.tanh(layer(x))
            return x @ self.embed.weight.T

    names = {
        ("embed", "head"): ("embed.weight", shared()),
        "w": ("layers.{i}.weight", chain(unstack(), transpose())),
    }
    report = compare(jax_fn, Tied(), ids, params=params, names=names)
    assert report, str(report)
    assert {d.name for r in report.results for d in r.differences} >= {"embed + head", "w"}
    frozen = compare(
        lambda p, i: jax_fn(p | {"head": jax.lax.stop_gradient(p["head"])}, i), Tied(), ids, params=params, names=names
    )
    assert frozen.first_failure.first == "embed + head"
