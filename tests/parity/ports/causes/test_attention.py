"""Faults in attention are named: scale, masks, the axis of softmax; and the scale of embeddings, and dropout."""

import jax
import jax.numpy as jnp
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.parity.ports.causes.pairs import normal, suggested

T, D, N, H = 5, 8, 2, 4
X = normal(2, T, D)
PARAMS = {name: normal(D, D) for name in ("q", "k", "v", "out")}
NAMES = {name: (f"{name}.weight", (1, 0)) for name in PARAMS}


def split(x, lib):
    return lib.swapaxes(x.reshape(*x.shape[:-1], N, H), 1, 2)


def attention(scale=H**-0.5, diagonal=0, axis=-1):
    """Attention in JAX; `diagonal` is the last position that is seen, relative to its own, None for all."""

    def run(params, x):
        q, k, v = (split(x @ params[name], jnp) for name in ("q", "k", "v"))
        scores = scale * q @ jnp.swapaxes(k, -1, -2)
        if diagonal is not None:
            seen = jnp.tril(jnp.ones((T, T), bool), diagonal)
            scores = jnp.where(seen, scores, jnp.finfo(scores.dtype).min)
        mixed = jnp.swapaxes(jax.nn.softmax(scores, axis) @ v, 1, 2)
        return mixed.reshape(x.shape) @ params["out"]

    return run


class Attention(nn.Module):
    def __init__(self, way, **options):
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(D, D, bias=False) for _ in range(4))
        self.way, self.options = way, options

    def forward(self, x):
        q, k, v = (split(part(x), torch) for part in (self.q, self.k, self.v))
        return self.out(self.way(q, k, v, **self.options).transpose(1, 2).reshape(x.shape))


def by_hand(q, k, v, scale=H**-0.5, mask=lambda scores: scores, axis=-1):
    return torch.softmax(mask(scale * (q @ k.transpose(-1, -2))), axis) @ v


def by_einsum(q, k, v, mask):
    scores = torch.einsum("bnqh,bnkh->bnqk", q, k)
    return torch.einsum("bnqk,bnkh->bnqh", F.softmax(mask(scores), dim=-1), v)


def above(diagonal):
    return torch.ones(T, T, dtype=torch.bool).triu(diagonal)


def filled(diagonal):
    return lambda scores: scores.masked_fill(above(diagonal), float("-inf"))


def chosen(diagonal):
    return lambda scores: torch.where(~above(diagonal), scores, torch.tensor(-1e9, dtype=scores.dtype))


def added(diagonal):
    mask = torch.zeros(T, T, dtype=torch.float64).masked_fill(above(diagonal), float("-inf"))
    return lambda scores: scores + mask


SDPA = F.scaled_dot_product_attention
CASES = [
    ("scale of torch's", attention(1.0), SDPA, {"is_causal": True}, "attention scale 1/sqrt(4) -> 1 in"),
    ("given scale", attention(), SDPA, {"is_causal": True, "scale": 1 / H}, "attention scale 1/4 -> 1/sqrt(4) in"),
    ("scale of the width", attention(D**-0.5), SDPA, {"is_causal": True}, "attention scale 1/sqrt(4) -> 1/sqrt(8) in"),
    ("scale by hand", attention(1.0), by_hand, {"mask": filled(1)}, "attention scores times sqrt(4) in"),
    ("scale of einsum", attention(), by_einsum, {"mask": filled(1)}, "attention scores times 1/sqrt(4) in"),
    ("no causal mask", attention(), SDPA, {}, "no mask -> causal in"),
    ("no mask by hand", attention(), by_hand, {}, "no mask -> causal in"),
    ("a causal mask", attention(diagonal=None), SDPA, {"is_causal": True}, "causal mask -> none in"),
    ("a filled mask", attention(diagonal=None), by_hand, {"mask": filled(1)}, "mask -> none in"),
    ("a chosen mask", attention(diagonal=None), by_hand, {"mask": chosen(1)}, "mask -> none in"),
    ("an added mask", attention(diagonal=None), by_hand, {"mask": added(1)}, "mask -> none in"),
    ("a given mask", attention(diagonal=None), SDPA, {"attn_mask": ~above(1)}, "mask -> none in"),
    ("an inverted mask", attention(), SDPA, {"attn_mask": above(1)}, "mask inverted in"),
    (
        "causal, one more",
        attention(diagonal=1),
        SDPA,
        {"is_causal": True},
        "diagonal of the causal mask moved by +1 in",
    ),
    ("causal, one less", attention(diagonal=-1), SDPA, {"is_causal": True}, "diagonal of the causal mask moved by -1"),
    ("filled, one less", attention(), by_hand, {"mask": filled(2)}, "diagonal of the mask moved by -1 in"),
    (
        "chosen, one more",
        attention(1, 1),
        by_hand,
        {"mask": chosen(1), "scale": 1.0},
        "diagonal of the mask moved by +1",
    ),
    ("added, one less", attention(), by_hand, {"mask": added(2)}, "diagonal of the mask moved by -1 in"),
    ("given, one less", attention(), SDPA, {"attn_mask": ~above(2)}, "diagonal of the mask moved by -1 in"),
    ("softmax's axis", attention(diagonal=None), by_hand, {"axis": -2}, "axis -2 -> -1 of softmax in"),
    ("dropout", attention(), SDPA, {"is_causal": True, "dropout_p": 0.5}, "dropout -> none in"),
]


@pytest.mark.parametrize(("ours", "way", "options", "said"), [case[1:] for case in CASES], ids=[c[0] for c in CASES])
def test_a_fault_of_attention_is_named(ours, way, options: dict, said: str):
    found = suggested(ours, PARAMS, Attention(way, **options), NAMES, X)
    assert len(found) == 1, found
    assert found[0].startswith(f"likely: {said}"), found


@pytest.mark.parametrize("weights", [True, False])
def test_a_mask_of_torchs_own_module_is_seen(weights: bool):
    module = nn.MultiheadAttention(D, N, bias=False, batch_first=True)
    names = {"qkv": ("in_proj_weight", (1, 0)), "out": ("out_proj.weight", (1, 0))}
    params = {"qkv": normal(D, 3 * D), "out": PARAMS["out"]}

    def run(params, x):
        q, k, v = jnp.split(params["qkv"], 3, axis=1)
        return attention()({"q": q, "k": k, "v": v, "out": params["out"]}, x)

    def call(module, x):
        return module(x, x, x, attn_mask=above(2), need_weights=weights)[0]

    [said] = suggested(run, params, module, names, X, call_module=call)
    assert "diagonal of the mask moved by -1 in" in said, said


class Embedded(nn.Module):
    def __init__(self, factor, dropout=0.0):
        super().__init__()
        self.tok, self.out = nn.Embedding(7, 16), nn.Linear(16, 3, bias=False)
        self.factor, self.dropout = factor, dropout

    def forward(self, x):
        h = torch.tanh(self.tok((x > 0).long()) * self.factor)
        return self.out(F.dropout(h, self.dropout) if self.dropout else h)


@pytest.mark.parametrize(
    ("ours", "theirs", "dropout", "said"),
    [
        (4.0, 1.0, 0.0, "embedding times sqrt(16) in tok"),
        (1.0, 4.0, 0.0, "embedding times 1/sqrt(16) in tok"),
        (1.0, 1.0, 0.3, "dropout -> none in the module itself"),
    ],
)
def test_the_scale_of_embeddings_and_dropout_are_named(ours: float, theirs: float, dropout: float, said: str):
    def run(params, x):
        return jnp.tanh(params["tok"][(x > 0).astype(int)] * ours) @ params["out"]

    params = {"tok": normal(7, 16), "out": normal(16, 3)}
    names = {"tok": "tok.weight", "out": ("out.weight", (1, 0))}
    [found] = suggested(run, params, Embedded(theirs, dropout), names, normal(2, 5))
    assert found.startswith(f"likely: {said} ("), found


@pytest.mark.parametrize("whole", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("ours", "way", "options"),
    [
        (attention(), lambda q, k, v: SDPA(q, k, v, is_causal=True) + v, {}),
        (attention(), lambda q, k, v: SDPA(q.sin(), k, v, is_causal=True), {}),
        (attention(0.37), SDPA, {"is_causal": True}),
        (attention(), by_hand, {"mask": lambda scores: filled(1)(scores) + 0.1 * torch.arange(T)}),
    ],
    ids=["residual", "sine", "another scale", "a bias by position"],
)
def test_another_attention_is_not_named(ours, way, options: dict, whole: bool):
    assert suggested(ours, PARAMS, Attention(way, **options), NAMES, X, whole=whole) == []
