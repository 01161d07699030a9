"""JAX's side: outputs by name without computing, gradients of parameters and real inputs, values out of loops."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lmcore.errors import UserError
from parity import tap
from parity.ports.jax.models import adapt
from parity.ports.jax.port import JaxPort, jax_set_up
from parity.ports.side import Request
from parity.settings import jax_settings

X = np.array([1.0, 2.0], np.float32)


def port(function, params, **options) -> JaxPort:
    request = Request(**({"args": (X, np.arange(2)), "dtype": "float32"} | options))
    return JaxPort(adapt(function, params, None, request.train), request)


def test_outputs_are_named_without_being_computed():
    names = port(lambda params, x, ids: {"y": x * params["w"], "n": ids}, {"w": X}).output_names()
    assert sorted(names) == ["output['n']", "output['y']"]


def test_gradients_are_of_parameters_and_real_inputs():
    one = port(lambda params, x, ids: (x * params["w"]).sum() + ids.sum(), {"w": X, "count": np.arange(3)})
    side = one.run({})
    assert side.loss == 6.0
    assert one.trained == ("w",)
    np.testing.assert_array_equal(side.grads["w"], X)
    np.testing.assert_array_equal(side.input_grads["input[0]"], X)
    assert list(side.input_grads) == ["input[0]"]
    assert one.run({"w": 2 * X}).loss == 11.0


def looped(params: dict, x: jax.Array) -> jax.Array:
    def layer(x: jax.Array, w: jax.Array) -> tuple[jax.Array, None]:
        return tap("layer", x * w), None

    return jax.lax.scan(layer, x, params["w"])[0]


def test_values_leave_scan_checkpoint_and_vmap_in_the_order_of_computation():
    w, x = np.array([2.0, 3.0, 5.0], np.float32), np.arange(4, dtype=np.float32)
    found = port(looped, {"w": w}, args=(x,)).run({}).activations
    assert list(found) == ["layer", "layer (2)", "layer (3)"]
    np.testing.assert_array_equal(found["layer (2)"], 6 * x)
    for change in (jax.checkpoint, lambda f: lambda p, x: jax.vmap(f, (None, 0))(p, x)):
        found = port(change(looped), {"w": w}, args=(x,)).run({}).activations
        np.testing.assert_array_equal(found["layer (3)"], 30 * x)
    assert port(looped, {"w": w}, args=(x,)).run({}).grads["w"].shape == (3,)


def test_a_type_of_16_bits_is_computed_in_and_held_exactly():
    side = port(lambda p, x, ids: x * p["w"], {"w": np.array([1 + 2.0**-10, 3.0])}, dtype="bfloat16").run({})
    assert side.outputs["output"].dtype == np.float32
    np.testing.assert_array_equal(side.outputs["output"], [1.0, 6.0])


def test_an_optimizer_takes_the_tree_of_the_users_parameters():
    def labels(params: dict) -> dict:
        assert set(params) == {"norm", "w"}
        return {"norm": "none", "w": "decay"}

    rules = {"none": optax.sgd(0.1), "decay": optax.chain(optax.add_decayed_weights(0.5), optax.sgd(0.1))}
    params = {"norm": {"scale": X}, "w": X}
    one = port(
        lambda p, x, ids: (x * p["w"] * p["norm"]["scale"]).sum(),
        params,
        optimizer=optax.multi_transform(rules, labels),
    )
    [update] = one.updates({}, {"w": 0 * X, "norm.scale": 0 * X}, (1.0,))
    np.testing.assert_array_equal(update.params["norm.scale"], X)
    np.testing.assert_allclose(update.params["w"], 0.95 * X, rtol=1e-6)


def test_mistakes_are_one_line():
    with pytest.raises(UserError, match="expected an optax transformation"):
        port(lambda p, x, ids: x * p["w"], {"w": X}, optimizer="adam").updates({}, {}, (1.0,))
    with jax_settings(), pytest.raises(UserError, match="found no quantum for JAX, expected one of cpu"):
        jax_set_up(Request(args=(), device="quantum")).__enter__()
    assert jnp.asarray(1.0).dtype == jnp.float32
