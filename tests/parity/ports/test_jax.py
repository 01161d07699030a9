"""JAX's side: parameters by path, outputs by name without computing, gradients of parameters and real inputs."""

import jax.numpy as jnp
import numpy as np
from flax import nnx

from parity.ports.jax import flat_params, moved, output_names, run_jax
from parity.ports.side import Call

X = np.array([1.0, 2.0], np.float32)
CALL = Call(args=(X, np.arange(2)), dtype="float32", losses=None, outputs={"output": ("output", "output")})


def test_paths_are_dotted_and_those_of_an_nnx_state_have_no_value_at_their_end():
    assert list(flat_params({"blocks": [{"w": X}], "b": X})) == ["b", "blocks.0.w"]
    state = nnx.state(nnx.Linear(2, 3, rngs=nnx.Rngs(0)), nnx.Param)
    assert sorted(flat_params(state)) == ["bias", "kernel"]


def test_every_real_weight_is_moved_by_one_ulp():
    tree = {"w": X, "ids": np.arange(3)}
    found = moved(tree, "float32")
    assert np.array_equal(np.abs(found["w"] - X), np.spacing(X)) or np.all(found["w"] != X)
    np.testing.assert_array_equal(found["ids"], tree["ids"])


def test_outputs_are_named_without_being_computed():
    names = output_names(lambda params, x, ids: {"y": x * params["w"], "n": ids}, {"w": X}, CALL.args, "float32")
    assert names == ["output['n']", "output['y']"] or names == ["output['y']", "output['n']"]


def test_gradients_are_of_parameters_and_real_inputs():
    side = run_jax(lambda params, x, ids: (x * params["w"]).sum() + ids.sum(), {"w": X}, CALL)
    assert side.loss == 6.0
    np.testing.assert_array_equal(side.grads["w"], X)
    np.testing.assert_array_equal(side.input_grads["input[0]"], X)
    assert list(side.input_grads) == ["input[0]"]
    assert isinstance(side.outputs["output"], np.ndarray)
    jnp.asarray(side.outputs["output"])
