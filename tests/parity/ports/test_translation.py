"""Arrays by the other side's names: shared and copied ones, activations by parameters, axes in another order."""

from dataclasses import replace

import numpy as np

from parity.mapping import resolve
from parity.ports.recording import Recording
from parity.ports.translation import Translation
from parity.transforms import chain, copies, shared, transpose, unstack

RNG = np.random.default_rng(0)
EMPTY = Recording(
    activations={}, modules={}, outputs={}, loss=0.0, grads={}, input_grads={}, state={}, framework="jax", subject="",
    dtype="float64", facts={}, args=(), weights={}, trained=(),
)  # fmt: skip
JAX = {"a": (3, 2), "b": (3, 2), "c": (4,), "w": (2, 5, 3)}
TORCH = {"tied": (2, 3), "c1": (4,), "c2": (4,), "h.0.w": (3, 5), "h.1.w": (3, 5)}
ROWS = resolve(
    {
        ("a", "b"): ("tied", chain(shared(), transpose())),
        "c": (("c1", "c2"), copies(2)),
        "w": ("h.{i}.w", chain(unstack(), transpose())),
    },
    JAX,
    TORCH,
)


def test_weights_and_gradients_go_both_ways():
    value = RNG.standard_normal((3, 2))
    jax = {"a": value, "b": value, "c": RNG.standard_normal(4), "w": RNG.standard_normal((2, 5, 3))}
    to_torch, to_jax = Translation(ROWS, "torch"), Translation(ROWS, "jax")
    torch = to_torch.weights(jax)
    assert {name: array.shape for name, array in torch.items()} == TORCH
    back = to_jax.weights(torch)
    assert all(np.array_equal(back[name], jax[name]) for name in JAX)
    assert set(to_torch.values(jax)) == {"h.0.w", "h.1.w"}
    grads = to_jax.gradients(torch)
    assert set(grads) == {"a + b", "c", "w"}
    np.testing.assert_array_equal(grads["c"], 2 * jax["c"])
    forth = to_torch.gradients(jax)
    assert set(forth) == {"tied", "c1 + c2", "h.0.w", "h.1.w"}
    np.testing.assert_array_equal(forth["tied"], 2 * value.T)
    assert to_jax.weights({"c1": jax["c"]}) == {}, "a row whose arrays are not all there"


def test_submodules_are_matched_by_their_parameters_and_a_loop_with_a_list_of_layers():
    layers, other = [RNG.standard_normal((4, 3, 2)) for _ in range(2)], RNG.standard_normal((4, 3))
    like = replace(
        EMPTY, activations={"stack": layers[0], "stack (2)": layers[1]}, modules={"stack": ("w",), "stack (2)": ("w",)}
    )
    theirs = {"h.1": layers[1].transpose(0, 2, 1), "h.0": layers[0].reshape(4, 6), "else": other}
    under = {"h.1": ("h.1.w",), "h.0": ("h.0.w",), "else": ("tied",)}
    found = Translation(ROWS, "jax").recording(replace(EMPTY, activations=theirs, modules=under), like, {})
    assert list(found.activations) == ["stack", "stack (2)"]
    np.testing.assert_array_equal(found.activations["stack"], layers[0])
    np.testing.assert_array_equal(found.activations["stack (2)"], layers[1])
    assert found.modules == {"stack": (), "stack (2)": ()}


def test_a_tap_that_is_not_listed_is_the_nearest_value_or_none():
    value = RNG.standard_normal((4, 3))
    like = replace(EMPTY, activations={"near": value, "far": value + 1})
    theirs = {"0": value + 1e-9, "1": value + 0.5, "2": RNG.standard_normal(7)}
    found = Translation((), "jax").recording(
        replace(EMPTY, activations=theirs, modules=dict.fromkeys(theirs, ())), like, {}
    )
    assert list(found.activations) == ["near"]
    np.testing.assert_array_equal(found.activations["near"], theirs["0"])
    assert found.notes == ("taps without a counterpart: far",)
    listed = Translation((), "jax").recording(
        replace(EMPTY, activations=theirs, modules={}), like, {"far": "1", "near": "2"}
    )
    assert listed.activations["near"].shape == (7,), "a difference of shapes is a difference"


def test_the_rounding_of_parameters_whose_names_have_slashes_is_kept():
    """Haiku's have: `mlp/~/linear_0.w`."""
    shapes = ({"mlp/~/linear_0.w": (2, 3)}, {"weight": (3, 2)})
    rows = resolve({"mlp/~/linear_0.w": ("weight", (1, 0))}, *shapes)
    sections = ("grads", "updates/0/params", "updates/1/mu")
    noise = {f"{section}/mlp/~/linear_0.w": 1e-7 for section in sections}
    own = {"loss": 1e-6, "outputs/output['a/b']": 1e-5, "input_grads/input[0]": 1e-4}
    found = Translation(rows, "torch")._noise(noise | own)
    assert found == {f"{section}/weight": 1e-7 for section in sections} | own
