"""An operation in a narrower type is named, in either framework, with its place."""

import jax
import jax.numpy as jnp
import numpy as np
import torch
from torch import nn

from parity import compare
from parity.ports.narrow import narrow_in_jax, narrow_in_torch

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


def called(module: nn.Module, *args: torch.Tensor) -> torch.Tensor:
    return module(*args)


def test_operations_are_named_with_their_place_and_type():
    with jax.enable_x64(True):
        found = narrow_in_jax(narrow, {"w": np.eye(5)}, (X,), "float64")
        assert narrow_in_jax(wide, {"w": np.eye(5)}, (X,), "float64") == {}
    assert set(found.values()) == {"float32"}
    assert any(name.startswith("JAX: exp in float32, test_narrow.py:") for name in found)
    module = nn.Sequential(nn.Identity(), Narrow()).double()
    assert set(narrow_in_torch(module, called, (X,), "float64")) >= {"torch: _softmax in float32, 1"}
    assert narrow_in_torch(nn.Linear(5, 5).double(), called, (X,), "float64") == {}
    assert not nn.modules.module._global_forward_pre_hooks


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
