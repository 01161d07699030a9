"""An operation in a narrower type is named with its place, and the model is compared in that type."""

import jax
import jax.numpy as jnp
import numpy as np
import torch
from torch import nn

from parity import compare
from parity.ports.jax.narrow import narrow_operations

X = np.random.default_rng(0).standard_normal((3, 5))


class Narrow(nn.Module):
    """A softmax in float32, inside of a submodule."""

    def __init__(self, kind: torch.dtype = torch.float32):
        super().__init__()
        self.kind = kind
        self.scale = nn.Linear(5, 5, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.softmax(self.scale(x).to(self.kind), dim=-1).to(x.dtype)


def narrow(params: dict, x: jax.Array, kind: type = jnp.float32) -> jax.Array:
    return jax.jit(lambda y: jax.nn.softmax(y.astype(kind)))(x @ params["w"]).astype(x.dtype)


def wide(params: dict, x: jax.Array) -> jax.Array:
    return jax.nn.softmax(x @ params["w"])


def test_operations_are_named_with_their_place_and_type():
    with jax.enable_x64(True):
        arrays = {"w": jnp.eye(5)}
        found = narrow_operations(lambda params: narrow(params, jnp.asarray(X)), arrays, "float64")
        assert narrow_operations(lambda params: wide(params, jnp.asarray(X)), arrays, "float64") == {}
    assert set(found.values()) == {"float32"}
    assert any(name.startswith("JAX: exp in float32, test_narrow.py:") for name in found)


def test_masks_are_exact_in_any_type_and_positions_are_not_once_they_are_scaled():
    def masked(params, ids):
        keep = (ids > 1).astype(jnp.float32)
        bias = (1 - keep) * jnp.finfo(jnp.float32).min
        return jnp.where(jnp.asarray(jax.jit(lambda m: m * keep)(keep), bool), params["w"], bias.astype(jnp.float64))

    def rotary(params, ids):
        return params["w"] * jnp.cos(ids.astype(jnp.float32) / 10000.0).astype(jnp.float64)

    with jax.enable_x64(True):
        arrays = {"w": jnp.ones(5)}
        assert narrow_operations(lambda params: masked(params, jnp.arange(5)), arrays, "float64") == {}
        found = narrow_operations(lambda params: rotary(params, jnp.arange(5)), arrays, "float64")
    assert {name.split()[1] for name in found} == {"div", "cos"}


def test_a_model_with_such_an_operation_is_compared_in_that_type():
    given = {"params": {"w": np.eye(5)}, "names": {"w": ("scale.weight", (1, 0))}}
    same = compare(narrow, Narrow(), X, **given)
    assert same, str(same)
    mixed = compare(wide, Narrow(), X, **given)
    assert mixed, str(mixed)
    assert mixed.results[0].note.startswith("compared as float32, since torch: _to_copy in float32, the module; torch:")
    assert not compare(lambda p, x: wide(p, 1.001 * x), Narrow(), X, **given)


def test_a_model_without_one_is_not_excused():
    class Wide(Narrow):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.softmax(self.scale(x), dim=-1)

    given = {"params": {"w": np.eye(5)}, "names": {"w": ("scale.weight", (1, 0))}}
    assert compare(wide, Wide(), X, **given)
    off = compare(lambda p, x: wide(p, (1 + 1e-8) * x), Wide(), X, **given)
    assert off.first_failure.rung == 4
    assert "compared as" not in off.results[0].note
