"""Faults of whole models are named, also several at once, within the bounds; and trials fit what the model does."""

import flax.nnx as nnx
import jax
import jax.numpy as jnp
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from parity.ports.causes import Trial, likely, trials
from tests.parity.ports.causes.pairs import normal, suggested

T, D, N, V, L = 5, 8, 2, 11, 3


def norm(x, scale, eps):
    return x * jax.lax.rsqrt((x**2).mean(-1, keepdims=True) + eps) * scale


def heads(x, lib):
    return lib.swapaxes(x.reshape(*x.shape[:-1], N, D // N), -2, -3)


def model(params, x, eps=1e-6, act=jax.nn.gelu, extra=lambda h: h):
    h = params["tok"][x.astype(int)]
    for block in params["blocks"]:
        y = norm(h, block["norm1"], eps)
        q, k, v = (heads(y @ block[n], jnp) for n in "qkv")
        scores = q @ jnp.swapaxes(k, -1, -2) / (D // N) ** 0.5
        scores = jnp.where(jnp.tril(jnp.ones((T, T), bool)), scores, -jnp.inf)
        h = h + jnp.swapaxes(jax.nn.softmax(scores) @ v, 1, 2).reshape(h.shape) @ block["o"]
        h = extra(h + act(norm(h, block["norm2"], eps) @ block["up"]) @ block["down"])
    return norm(h, params["norm"], eps) @ params["head"]


class Block(nn.Module):
    def __init__(self, eps, act, causal):
        super().__init__()
        self.norm1, self.norm2 = nn.RMSNorm(D, eps), nn.RMSNorm(D, eps)
        self.q, self.k, self.v, self.o = (nn.Linear(D, D, bias=False) for _ in range(4))
        self.up, self.down, self.act, self.causal = nn.Linear(D, 12, False), nn.Linear(12, D, False), act, causal

    def forward(self, h):
        y = self.norm1(h)
        q, k, v = (heads(part(y), torch) for part in (self.q, self.k, self.v))
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        h = h + self.o(mixed.transpose(1, 2).reshape(h.shape))
        return h + self.down(self.act(self.up(self.norm2(h))))


class Model(nn.Module):
    def __init__(self, eps=1e-6, act=nn.GELU, causal=True, last_eps=None):
        super().__init__()
        self.tok, self.head = nn.Embedding(V, D), nn.Linear(D, V, bias=False)
        self.blocks = nn.ModuleList(Block(eps, act(), causal) for _ in range(L))
        self.norm = nn.RMSNorm(D, last_eps or eps)

    def forward(self, x):
        h = self.tok(x.long())
        for block in self.blocks:
            h = block(h)
        return self.head(self.norm(h))


def block_params():
    shapes = {"up": (D, 12), "down": (12, D)} | dict.fromkeys("qkvo", (D, D))
    return {n: 0.3 * normal(*s) for n, s in shapes.items()} | {n: 1 + 0.1 * normal(D) for n in ("norm1", "norm2")}


PARAMS = {
    "tok": 0.1 * normal(V, D),
    "head": normal(D, V),
    "norm": 1 + 0.1 * normal(D),
    "blocks": [block_params() for _ in range(L)],
}
NAMES = {"tok": "tok.weight", "head": ("head.weight", (1, 0)), "norm": "norm.weight"}
NAMES |= {f"blocks.{{i}}.{n}": f"blocks.{{i}}.{n}.weight" for n in ("norm1", "norm2")}
NAMES |= {f"blocks.{{i}}.{n}": (f"blocks.{{i}}.{n}.weight", (1, 0)) for n in ("q", "k", "v", "o", "up", "down")}
X = torch.randint(V, (2, T), generator=torch.Generator().manual_seed(0)).numpy().astype(float)


@pytest.mark.slow
@pytest.mark.parametrize("whole", [False, True])
def test_one_fault_of_a_transformer_is_named(whole: bool):
    [said] = suggested(model, PARAMS, Model(), NAMES, X, whole=whole)
    assert said.startswith("likely: GELU -> tanh GELU in blocks.*.act (agrees "), said
    [said] = suggested(model, PARAMS, Model(act=lambda: nn.GELU("tanh"), causal=False), NAMES, X, whole=whole)
    assert said.startswith("likely: no mask -> causal in blocks.* ("), said
    wrong = NAMES | {"blocks.{i}.q": "blocks.{i}.q.weight"}
    [said] = suggested(model, PARAMS, Model(act=lambda: nn.GELU("tanh")), wrong, X, whole=whole)
    assert said.startswith("likely: transpose of blocks.*.q.weight ("), said


def test_an_eps_in_one_place_of_many_is_named():
    [said] = suggested(model, PARAMS, Model(act=lambda: nn.GELU("tanh"), last_eps=1e-5), NAMES, X)
    assert said.startswith("likely: eps 1e-05 -> 1e-06 in norm ("), said


@pytest.mark.slow
@pytest.mark.parametrize("whole", [False, True])
def test_three_faults_of_a_transformer_are_named_together(whole: bool):
    [said] = suggested(model, PARAMS, Model(eps=1e-5, causal=False), NAMES, X, whole=whole)
    assert "eps 1e-05 -> 1e-06 in all 7 places, from blocks.0.norm1 to norm" in said, said
    assert "GELU -> tanh GELU in blocks.*.act" in said, said
    assert "no mask -> causal in blocks.*" in said, said
    assert "when all are changed" in said, said


@pytest.mark.slow
@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize(
    "extra",
    [lambda h: 1.01 * h, lambda h: h + 0.1 * jnp.sin(h), lambda h: h - h.mean(1, keepdims=True), lambda h: h[::-1]],
)
def test_a_model_that_differs_otherwise_is_not_named(extra, whole: bool):
    def other(params, x):
        return model(params, x, extra=extra)

    assert suggested(other, PARAMS, Model(act=lambda: nn.GELU("tanh")), NAMES, X, whole=whole) == []


@pytest.mark.slow
def test_a_usual_fault_is_named_beside_an_unusual_one_that_is_much_smaller():
    def other(params, x):
        return model(params, x, extra=lambda h: h * (1 + 1e-9))

    [said] = suggested(other, PARAMS, Model(), NAMES, X, whole=True)
    assert said.startswith("likely: GELU -> tanh GELU in blocks.*.act ("), said
    assert said.endswith("when changed; something else still differs)"), said


def test_an_nnx_module_is_beside_torchs():
    graph, state = nnx.split(nnx.Sequential(nnx.Linear(4, 6, rngs=nnx.Rngs(0)), nnx.LayerNorm(6, rngs=nnx.Rngs(0))))
    params = jax.tree.map(jnp.asarray, nnx.to_pure_dict(state))
    module = nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6))

    def run(params, x):
        return nnx.merge(graph, params)(x)

    names = {"layers.0.kernel": ("0.weight", (1, 0)), "layers.0.bias": "0.bias"}
    names |= {"layers.1.scale": "1.weight", "layers.1.bias": "1.bias"}
    [said] = suggested(run, params, module, names, normal(3, 4))
    assert said.startswith("likely: eps 1e-05 -> 1e-06 in 1 ("), said


def test_only_what_a_model_does_is_tried():
    module = nn.Sequential(nn.Linear(3, 4), nn.ReLU())
    found = trials(module, [], lambda module: module(torch.ones(2, 3)))
    assert {trial.kind for trial in found} == {"activation"}
    assert all(isinstance(trial, Trial) for trial in found)
    assert len(found) > 3
    assert trials(nn.Linear(3, 4), [], lambda module: module(torch.ones(2, 3))) == []


def test_the_module_stays_as_it_is_and_a_failure_without_changes_is_no_secret():
    module = nn.Sequential(nn.BatchNorm1d(3), nn.ReLU()).train()
    before = {name: value.clone() for name, value in module.state_dict().items()}

    def run(module, rows):
        return float(module(torch.arange(12.0).reshape(4, 3)).sum().detach()) + 1

    assert likely(module, [], run) == []
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())

    def broken(module, rows):
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        likely(module, [], broken)
