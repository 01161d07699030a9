"""Patterns stand for every layer in order, and all that is missing, unknown, double or misshapen is said at once."""

import numpy as np
import pytest

from lmcore.errors import UserError
from parity.mapping import Names, resolve
from parity.transforms import chain, concat, shared, transpose, unstack

JAX = {"embed": (9, 4), "stack.w": (12, 4, 5), "q": (4, 2), "k": (4, 2)}
JAX |= {f"blocks.{i}.{part}": shape for i in range(12) for part, shape in (("scale", (4,)), ("up", (4, 6)))}
TORCH = {"wte.weight": (9, 4), "qk.weight": (4, 4)}
TORCH |= {f"h.{i}.{part}": shape for i in range(12) for part, shape in (("norm", (4,)), ("up", (6, 4)), ("w", (5, 4)))}
NAMES: Names = {
    "embed": "wte.weight",
    ("q", "k"): ("qk.weight", chain(transpose(), concat())),
    "blocks.{i}.scale": "h.{i}.norm",
    "blocks.{n}.up": ("h.{n}.up", (1, 0)),
    "stack.w": ("h.{i}.w", chain(unstack(), transpose())),
}


def test_rows_are_expanded_by_number_and_convert_there_and_back():
    rows = resolve(NAMES, JAX, TORCH)
    assert len(rows) == 1 + 1 + 12 + 12 + 1
    rng = np.random.default_rng(0)
    jax = {name: rng.standard_normal(shape) for name, shape in JAX.items()}
    torch = {name: value for row in rows for name, value in row.to_torch(jax).items()}
    assert {name: value.shape for name, value in torch.items()} == TORCH
    np.testing.assert_array_equal(torch["h.10.up"], jax["blocks.10.up"].T)
    np.testing.assert_array_equal(torch["h.10.w"], jax["stack.w"][10].T)
    back = {name: value for row in rows for name, value in row.to_jax(torch).items()}
    assert back.keys() == jax.keys()
    for name, value in jax.items():
        np.testing.assert_array_equal(back[name], value)


def test_several_placeholders_are_taken_together_and_parts_of_names_too():
    jax = {f"stage{s}.block{b}.w": (s + 1, b + 1) for s in range(2) for b in range(3)}
    torch = {f"layers.{s}.{b}.weight": (s + 1, b + 1) for s in range(2) for b in range(3)}
    rows = resolve({"stage{s}.block{b}.w": "layers.{s}.{b}.weight"}, jax, torch)
    assert {row.jax[0]: row.torch[0] for row in rows} == dict(zip(jax, torch, strict=True))


def test_what_one_side_alone_has_is_listed_and_buffers_need_not_be():
    jax, torch = JAX | {"head.extra": (3,)}, TORCH | {"bias_ih.0": (2,), "bias_ih.1": (2,)}
    rows = resolve(NAMES, jax, torch, {"mean": (4,)}, only_jax=["head.*"], only_torch=["bias_ih.*"])
    assert len(rows) == 27
    with pytest.raises(UserError, match="embed of JAX is in a row, and listed as JAX's only"):
        resolve(NAMES, JAX, TORCH, only_jax=["embed"])


def test_a_weight_that_torch_shares_is_one_row():
    [row] = resolve({("embed", "head"): ("wte", shared())}, {"embed": (9, 4), "head": (9, 4)}, {"wte": (9, 4)})
    assert (row.jax, row.torch, row.shares) == (("embed", "head"), ("wte",), True)


@pytest.mark.parametrize(
    ("changed", "messages"),
    [
        ({"embed": None}, ["embed of JAX, [9, 4], is in no row", "wte.weight of torch, [9, 4], is in no row"]),
        (
            {"embed": "wte.weights", "blocks.{n}.up": "h.{n}.up"},
            ["embed: no such torch", "blocks.{n}.up: h.0.up is [6"],
        ),
        ({"blocks.{n}.up": "h.{n}.up"}, ["h.0.up is [6, 4] in torch, [4, 6] from JAX: transpose() its axes?"]),
        ({"block.{i}.scale": "h.{i}.norm", "blocks.{i}.scale": None}, ["block.{i}.scale: no such parameters in JAX"]),
        ({"stack.w": ("h.{i}.v", unstack())}, ["stack.w: no such parameters: h.{i}.v"]),
        ({"stack.w": ("h.{i}.norm", unstack(1))}, ["stack.w: unstack(axis=1) makes 4 arrays of 1, expected 12"]),
        (
            {"blocks.3.scale": "h.3.norm"},
            ["blocks.3.scale of JAX is in several rows", "h.3.norm of torch is in several"],
        ),
        ({"embed": ("wte.weight", (1, 2))}, ["embed: found axes (1, 2), expected an order of the 2 of its array"]),
        ({("q", "k"): ("qk.weight", transpose())}, ["(q, k): transpose() makes 2 arrays of 2, expected 1"]),
    ],
)
def test_all_that_does_not_fit_is_in_one_message(changed: dict, messages: list[str]):
    names = {key: value for key, value in ({**NAMES, **changed}).items() if value is not None}
    with pytest.raises(UserError) as caught:
        resolve(names, JAX, TORCH)
    for message in messages:
        assert message in str(caught.value)
    assert str(caught.value).startswith("names: ")
