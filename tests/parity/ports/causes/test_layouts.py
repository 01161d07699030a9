"""Faults in the mapping of names are named: transposed squares, orders of parts and gates, rotary pairs, swaps."""

import flax.linen as linen
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from parity.transforms import chain, concat, reorder, reshape, transpose
from tests.parity.ports.causes.pairs import normal, suggested

D, N, H, T = 12, 2, 6, 5


class Layers(nn.Module):
    def __init__(self, count, act=torch.tanh):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(D, D, bias=False) for _ in range(count))
        self.act = act

    def forward(self, x):
        for layer in self.layers:
            x = self.act(layer(x))
        return x


def layers(params, x):
    for kernel in params["kernels"]:
        x = jnp.tanh(x @ kernel)
    return x


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("wrong", [{0, 1, 2}, {0}, {2}])
def test_square_kernels_that_are_transposed_are_named(wrong: set, whole: bool):
    names = {f"kernels.{i}": f"layers.{i}.weight" if i in wrong else (f"layers.{i}.weight", (1, 0)) for i in range(3)}
    [said] = suggested(
        layers, {"kernels": [normal(D, D) for _ in range(3)]}, Layers(3), names, normal(4, D), whole=whole
    )
    where = "layers.*.weight" if len(wrong) == 3 else f"layers.{min(wrong)}.weight"
    assert said.startswith(f"likely: transpose of {where} ("), said


def test_two_of_several_squares_are_found_in_the_order_of_activations():
    names = {f"kernels.{i}": f"layers.{i}.weight" if i in (0, 2) else (f"layers.{i}.weight", (1, 0)) for i in range(4)}
    params = {"kernels": [normal(D, D) for _ in range(4)]}
    [said] = suggested(layers, params, Layers(4), names, normal(4, D), whole=True)
    assert said.startswith("likely: transpose of layers."), said
    assert "transpose of layers.0.weight" in said, said
    assert "transpose of layers.2.weight" in said, said


def test_the_sides_of_a_square_filter_are_named():
    def run(params, x):
        dims = ("NCHW", "HWIO", "NCHW")
        return jax.lax.conv_general_dilated(x, params["kernel"], (1, 1), "SAME", dimension_numbers=dims)

    conv = nn.Conv2d(2, 4, 3, padding=1, bias=False)
    [said] = suggested(
        run, {"kernel": normal(3, 3, 2, 4)}, conv, {"kernel": ("weight", (3, 2, 1, 0))}, normal(2, 2, 5, 5)
    )
    assert said.startswith("likely: last two axes swapped of weight ("), said


def linen_attention(order):
    """Flax's attention beside torch's, whose fused matrix gets the three kernels in an order."""
    model = linen.MultiHeadDotProductAttention(num_heads=N, dtype=jnp.float64, param_dtype=jnp.float64)
    params = {n: {"kernel": normal(D, N, H), "bias": normal(N, H)} for n in ("query", "key", "value")}
    params["out"] = {"kernel": normal(N, H, D), "bias": normal(D)}
    transform = chain(reshape(D, D), transpose(), reorder(*order), concat())
    names = {
        tuple(f"{n}.kernel" for n in ("query", "key", "value")): ("in_proj_weight", transform),
        tuple(f"{n}.bias" for n in ("query", "key", "value")): (
            "in_proj_bias",
            chain(reshape(D), reorder(*order), concat()),
        ),
        "out.kernel": ("out_proj.weight", chain(reshape(D, D), transpose())),
        "out.bias": "out_proj.bias",
    }
    module = nn.MultiheadAttention(D, N, batch_first=True)
    return suggested(
        lambda params, x: model.apply({"params": params}, x),
        params,
        module,
        names,
        normal(2, T, D),
        call_module=lambda module, x: module(x, x, x, need_weights=False)[0],
    )


@pytest.mark.parametrize("order", [(1, 0, 2), (0, 2, 1), (2, 0, 1), (1, 2, 0), (2, 1, 0)])
def test_the_order_of_queries_keys_and_values_is_named(order: tuple):
    [said] = linen_attention(order)
    back = np.argsort(order)
    assert said.startswith(
        f"likely: order q, k, v -> {', '.join('qkv'[i] for i in back)} of in_proj_weight, in_proj_b"
    ), said


class ChunkedAttention(nn.Module):
    def __init__(self, by_head):
        super().__init__()
        self.qkv, self.out, self.by_head = nn.Linear(D, 3 * D, bias=False), nn.Linear(D, D, bias=False), by_head

    def forward(self, x):
        fused = self.qkv(x)
        if self.by_head:
            q, k, v = fused.reshape(*x.shape[:2], N, 3, H).permute(3, 0, 2, 1, 4).unbind(0)
        else:
            q, k, v = (part.reshape(*x.shape[:2], N, H).transpose(1, 2) for part in fused.chunk(3, -1))
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(x.shape))


def chunked(params, x, order=(0, 1, 2)):
    parts = jnp.split(x @ params["qkv"], 3, -1)
    q, k, v = (parts[i].reshape(*x.shape[:2], N, H).swapaxes(1, 2) for i in order)
    mixed = jax.nn.softmax(q @ k.swapaxes(-1, -2) * H**-0.5) @ v
    return mixed.swapaxes(1, 2).reshape(x.shape) @ params["out"]


CHUNKED = {"qkv": ("qkv.weight", (1, 0)), "out": ("out.weight", (1, 0))}
CHUNKED_PARAMS = {"qkv": normal(D, 3 * D), "out": normal(D, D)}


def test_the_order_of_parts_that_are_cut_is_named():
    def run(params, x):
        return chunked(params, x, (2, 0, 1))

    found = suggested(run, CHUNKED_PARAMS, ChunkedAttention(False), CHUNKED, normal(2, T, D))
    assert any(f"parts (0, 1, 2) -> {(2, 0, 1)} of chunk" in said for said in found), found


def test_heads_that_are_cut_before_the_three_are_named():
    [said] = suggested(chunked, CHUNKED_PARAMS, ChunkedAttention(True), CHUNKED, normal(2, T, D))
    assert said.startswith("likely: q, k, v one after the other -> head by head of qkv.weight ("), said


GATES = {"i": 0, "f": 1, "g": 2, "o": 3}


def lstm(order):
    model = linen.RNN(linen.OptimizedLSTMCell(D, dtype=jnp.float64, param_dtype=jnp.float64))
    params = {f"{a}{g}": normal(D, D) for a in "ih" for g in GATES} | {f"b{g}": normal(D) for g in GATES}

    def run(params, x):
        cell = {f"i{g}": {"kernel": params[f"i{g}"]} for g in GATES}
        cell |= {f"h{g}": {"kernel": params[f"h{g}"], "bias": params[f"b{g}"]} for g in GATES}
        return model.apply({"params": {"cell": cell}}, x)

    names = {
        tuple(f"i{g}" for g in order): ("weight_ih_l0", chain(transpose(), concat())),
        tuple(f"h{g}" for g in order): ("weight_hh_l0", chain(transpose(), concat())),
        tuple(f"b{g}" for g in order): ("bias_hh_l0", concat()),
        "zero": "bias_ih_l0",
    }
    params["zero"] = np.zeros(4 * D)
    return suggested(
        lambda params, x: run(params, x) + 0 * params["zero"].sum(),
        params,
        nn.LSTM(D, D, batch_first=True),
        names,
        normal(2, T, D),
        call_module=lambda module, x: module(x)[0],
    )


class Gated(nn.Module):
    def __init__(self, way):
        super().__init__()
        self.way = way
        if way == "apart":
            self.gate_proj, self.up_proj = nn.Linear(D, 6, bias=False), nn.Linear(D, 6, bias=False)
        else:
            self.both = nn.Linear(D, 12, bias=False)
        self.down = nn.Linear(6, D, bias=False)

    def forward(self, x):
        if self.way == "glu":
            return self.down(F.glu(self.both(x)))
        gate, up = (self.gate_proj(x), self.up_proj(x)) if self.way == "apart" else self.both(x).chunk(2, -1)
        return self.down(F.silu(gate) * up)


def gated(act):
    def run(params, x):
        up, gate = jnp.split(x @ params["both"], 2, -1)
        return act(gate) * up @ params["down"]

    return run


@pytest.mark.parametrize(
    ("way", "act", "said"),
    [
        ("chunk", jax.nn.silu, "parts (0, 1) -> (1, 0) of chunk in the module itself"),
        ("glu", lambda gate: gate, "halves of glu -> swapped in the module itself"),
    ],
)
def test_halves_of_a_gate_that_are_swapped_are_named(way: str, act, said: str):
    def run(params, x):
        if way == "glu":
            gate, up = jnp.split(x @ params["both"], 2, -1)
            return jax.nn.sigmoid(gate) * up @ params["down"]
        return gated(act)(params, x)

    names = {"both": ("both.weight", (1, 0)), "down": ("down.weight", (1, 0))}
    [found] = suggested(run, {"both": normal(D, 12), "down": normal(6, D)}, Gated(way), names, normal(4, D))
    assert found.startswith(f"likely: {said} ("), found


def test_gate_and_up_that_are_swapped_by_name_are_named():
    def run(params, x):
        return jax.nn.silu(x @ params["gate"]) * (x @ params["up"]) @ params["down"]

    names = {name: (f"{torch}.weight", (1, 0)) for name, torch in (("gate", "up_proj"), ("up", "gate_proj"))}
    names["down"] = ("down.weight", (1, 0))
    params = {"gate": normal(D, 6), "up": normal(D, 6), "down": normal(6, D)}
    [found] = suggested(run, params, Gated("apart"), names, normal(4, D))
    assert found.startswith("likely: swap of gate_proj.weight and up_proj.weight ("), found


def rotated(x, interleaved, lib):
    """Rotate pairs of x (..., T, H) by angles that grow with the position."""
    angles = np.arange(T)[:, None] * 0.5 ** np.arange(H // 2)
    cos, sin = (lib.asarray(f(angles)) for f in (np.cos, np.sin))
    one, other = (x[..., ::2], x[..., 1::2]) if interleaved else (x[..., : H // 2], x[..., H // 2 :])
    pairs = one * cos - other * sin, other * cos + one * sin
    return lib.stack(pairs, -1).reshape(x.shape) if interleaved else lib.concatenate(pairs, -1)


class Rotary(nn.Module):
    def __init__(self, interleaved):
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (nn.Linear(D, D, bias=False) for _ in range(4))
        self.interleaved = interleaved

    def forward(self, x):
        q, k, v = (p(x).reshape(*x.shape[:2], N, H).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj))
        q, k = (rotated(part, self.interleaved, torch) for part in (q, k))
        return self.o_proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(x.shape))


@pytest.mark.parametrize("interleaved", [False, True])
def test_rotary_pairs_are_named(interleaved: bool):
    def run(params, x):
        q, k, v = ((x @ params[n]).reshape(*x.shape[:2], N, H).swapaxes(1, 2) for n in "qkv")
        q, k = (rotated(part, interleaved, jnp) for part in (q, k))
        mixed = jax.nn.softmax(q @ k.swapaxes(-1, -2) * H**-0.5) @ v
        return mixed.swapaxes(1, 2).reshape(x.shape) @ params["o"]

    names = {n: (f"{n}_proj.weight", (1, 0)) for n in "qkvo"}
    [said] = suggested(run, {n: normal(D, D) for n in "qkvo"}, Rotary(not interleaved), names, normal(2, T, D))
    assert said.startswith("likely: rotary halves <-> interleaved pairs of q_proj.weight, k_proj.weight ("), said


@pytest.mark.parametrize("order", ["figo", "ifog", "ogfi"])
def test_the_order_of_an_lstms_gates_is_named(order: str):
    [said] = lstm(order)
    back = ", ".join("ifgo"[order.index(g)] for g in "ifgo")
    assert said.startswith(f"likely: gate order (i, f, g, o) -> ({back}) of weight_ih_l0"), said


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("act", [lambda x: torch.tanh(x) + x, lambda x: torch.tanh(x).roll(1, -1)])
def test_a_missing_residual_and_a_shift_are_not_named(act, whole: bool):
    names = {f"kernels.{i}": (f"layers.{i}.weight", (1, 0)) for i in range(3)}
    params = {"kernels": [normal(D, D) for _ in range(3)]}
    assert suggested(layers, params, Layers(3, act), names, normal(4, D), whole=whole) == []
