"""Weights that no mapping changes, and the proof by a run."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from torch import nn

from parity.mapping import resolve
from parity.matching.layouts import apply, usual_layouts
from parity.matching.leaves import leaves_of
from parity.matching.running import Models, alike_weights, torch_arrays, verified

RNG = np.random.default_rng(0)
PARAMS = {
    "a": {"w": RNG.standard_normal((4, 4)), "b": np.ones(4)},
    "c": {"w": RNG.standard_normal((4, 4)), "b": np.ones(4)},
}
FLAT = {f"{m}.{n}": value for m, inner in PARAMS.items() for n, value in inner.items()}
X = RNG.standard_normal((3, 4))
NAMES: dict = {"a.w": ("0.weight", (1, 0)), "a.b": "0.bias", "c.w": ("2.weight", (1, 0)), "c.b": "2.bias"}


@pytest.fixture(autouse=True)
def users_write_jax_as_they_like():
    with jax.numpy_rank_promotion("allow"):
        yield


def function(params, x):
    return jnp.tanh(x @ params["a"]["w"] + params["a"]["b"]) @ params["c"]["w"] + params["c"]["b"]


def models() -> Models:
    module = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4))
    return Models(function, PARAMS, module, (X,), lambda module, x: module(x))


def check(names: dict) -> tuple[bool, set[str]]:
    both = models()
    theirs, _, _ = torch_arrays(both.module)
    shapes = [{name: array.shape for name, array in side.items()} for side in (FLAT, theirs)]
    return verified(both, resolve(names, *shapes), FLAT, theirs, {})


def test_the_right_mapping_is_proven_and_a_wrong_one_is_not():
    assert check(NAMES) == (True, set(FLAT))
    assert not check(NAMES | {"a.w": "0.weight"})[0]
    assert not check(NAMES | {"a.b": "2.bias", "c.b": "0.bias"})[0]


def test_alike_weights_give_the_same_outputs_under_every_mapping():
    both = models()
    theirs, _, _ = torch_arrays(both.module)
    sides = [leaves_of({n: a.shape for n, a in side.items()}, {}, {}) for side in (FLAT, theirs)]
    possible = np.array([[bool(usual_layouts(a.shape, b.shape)) for b in sides[1]] for a in sides[0]])
    one, other = alike_weights(*sides, possible, FLAT, theirs)
    np.testing.assert_array_equal(one["a.w"], one["c.w"].T)
    for layout in usual_layouts((4, 4), (4, 4)):
        np.testing.assert_array_equal(apply(layout, one["a.w"]), other["2.weight"])
    ours, theirs_run = both.run(one, other)
    np.testing.assert_allclose(ours.outputs["output"], theirs_run.outputs["output"], rtol=1e-12)
    assert np.abs(ours.grads["a.w"] - ours.grads["a.w"].T).max() > 1e-3


def test_tied_parameters_have_their_other_names():
    module = nn.ModuleDict({"embed": nn.Embedding(5, 3), "head": nn.Linear(3, 5, bias=False)})
    module["head"].weight = module["embed"].weight
    parameters, buffers, tied = torch_arrays(module)
    assert (list(parameters), buffers, tied) == (["embed.weight"], {}, {"embed.weight": ["head.weight"]})
