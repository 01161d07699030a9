"""A model of any library is one function of its arrays by name; its submodules are tapped, its statistics returned."""

import equinox
import haiku
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx

from lmcore.errors import UserError
from parity.ports.jax.models import adapt, flat
from parity.taps import collecting

X = np.random.default_rng(0).standard_normal((4, 5)).astype(np.float32)


@pytest.fixture(autouse=True)
def users_write_jax_as_they_like():
    with jax.numpy_rank_promotion("allow"):
        yield


class Linen(linen.Module):
    """A dense layer, a norm over the batch, dropout, a dense layer."""

    @linen.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        x = linen.BatchNorm(use_running_average=not train, momentum=0.9)(linen.Dense(7, name="up")(x))
        return linen.Dense(3, name="down")(linen.Dropout(0.5, deterministic=not train)(x))


class Nnx(nnx.Module):
    """The same."""

    def __init__(self, rngs: nnx.Rngs):
        self.up, self.norm = nnx.Linear(5, 7, rngs=rngs), nnx.BatchNorm(7, momentum=0.9, rngs=rngs)
        self.drop, self.down = nnx.Dropout(0.5, rngs=rngs), nnx.Linear(7, 3, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.down(self.drop(self.norm(self.up(x))))


def run(model, x=X):
    with collecting() as collected:
        outputs, state = model.call(model.arrays, (x,))
    return np.asarray(outputs), state, collected


def test_linen_takes_variables_or_the_parameters_alone():
    variables = jax.tree.map(np.asarray, Linen().init(jax.random.key(0), X))
    model = adapt(Linen(), variables, None, False)
    assert set(model.arrays) - set(model.trained) == {"batch_stats.BatchNorm_0.mean", "batch_stats.BatchNorm_0.var"}
    outputs, state, collected = run(model)
    np.testing.assert_array_equal(outputs, Linen().apply(variables, X))
    assert (list(collected.values), state) == (["up", "BatchNorm_0", "Dropout_0", "down"], {})
    assert set(flat(model.tree(dict.fromkeys(model.trained, 0)))) == {n.removeprefix("params.") for n in model.trained}
    trained = adapt(Linen(), variables, lambda m, x: m(x, train=True), True)
    _, state, _ = run(trained)
    assert state.keys() == {"batch_stats.BatchNorm_0.mean", "batch_stats.BatchNorm_0.var"}
    alone = adapt(linen.Dense(2), linen.Dense(2).init(jax.random.key(0), X)["params"], None, False)
    assert alone.trained == ("bias", "kernel")
    assert run(alone)[0].shape == (4, 2)


def test_nnx_holds_its_parameters_and_stays_as_it_is():
    module = Nnx(nnx.Rngs(0))
    before = flat(nnx.state(module))
    model = adapt(module, None, None, True)
    assert {"up.kernel", "norm.scale", "down.bias"} < set(model.trained)
    assert {"norm.mean", "norm.var"} <= set(model.arrays) - set(model.trained)
    _, state, collected = run(model)
    assert list(collected.values) == ["up", "norm", "drop", "down"]
    assert not np.array_equal(state["norm.mean"], model.arrays["norm.mean"])
    np.testing.assert_array_equal(run(adapt(module, None, None, False))[0], run(adapt(module, None, None, False))[0])
    assert all(np.array_equal(value, before[name]) for name, value in flat(nnx.state(module)).items())
    assert "__call__" in vars(Nnx)
    assert nnx.Linear.__call__.__qualname__ == "Linear.__call__"


def test_equinox_is_called_as_its_user_says():
    class Mlp(equinox.Module):
        layers: list
        drop: equinox.nn.Dropout

        def __init__(self, key: jax.Array):
            one, two = jax.random.split(key)
            self.layers = [equinox.nn.Linear(5, 7, key=one), equinox.nn.Linear(7, 3, key=two)]
            self.drop = equinox.nn.Dropout(0.5)

        def __call__(self, x: jax.Array) -> jax.Array:
            return self.layers[1](self.drop(jax.nn.relu(self.layers[0](x))))

    module = Mlp(jax.random.key(0))
    model = adapt(module, None, lambda module, x: jnp.stack([module(row) for row in x]), False)
    assert set(model.arrays) == {f"layers.{i}.{part}" for i in (0, 1) for part in ("weight", "bias")}
    outputs, _, collected = run(model)
    np.testing.assert_allclose(outputs, jax.vmap(equinox.nn.inference_mode(module))(X), rtol=1e-5)
    assert list(collected.values)[:3] == ["layers.0", "drop", "layers.1"]


def test_haiku_has_flat_names_and_may_have_state():
    def network(x: jax.Array) -> jax.Array:
        return haiku.BatchNorm(True, True, 0.9)(haiku.nets.MLP([7, 3])(x), is_training=True)

    transformed = haiku.transform_with_state(network)
    params, state = transformed.init(jax.random.key(0), X)
    model = adapt(transformed, (params, state), None, True)
    assert {"mlp/~/linear_0.w", "batch_norm.scale"} < set(model.trained)
    outputs, after, collected = run(model)
    assert outputs.shape == (4, 3)
    assert "batch_norm/~/mean_ema.average" in after
    assert next(iter(collected.values)) == "mlp/~/linear_0"
    plain = haiku.without_apply_rng(haiku.transform(lambda x: haiku.Linear(2)(x)))
    assert plain is not None
    with pytest.raises(UserError, match=r"expected the pair \(params, state\)"):
        adapt(transformed, params, None, True)


def test_paths_are_dotted_and_those_of_an_nnx_state_have_no_value_at_their_end():
    assert list(flat({"blocks": [{"w": X}], "b": X})) == ["b", "blocks.0.w"]
    state = nnx.state(nnx.Linear(2, 3, rngs=nnx.Rngs(0)), nnx.Param)
    assert sorted(flat(state)) == ["bias", "kernel"]
    assert flat({"key": jax.random.key(0), "w": X}).keys() == {"w"}


@pytest.mark.parametrize(
    ("model", "params", "said"),
    [
        (Linen(), None, "params: expected the tree of JAX parameters"),
        (Nnx(nnx.Rngs(0)), {"w": X}, "params: found parameters beside a module of nnx, which holds its own; leave"),
        ("model.py", {"w": X}, "jax_model: found 'model.py', expected a function of params and inputs, or a module"),
        (jnp.tanh, {"a": {"b": X}, "a.b": X}, "params: two arrays are called a.b"),
        (jnp.tanh, {"a": "text"}, "params: a is 'text', expected an array"),
    ],
)
def test_mistakes_are_one_line(model, params, said: str):
    with pytest.raises(UserError) as caught:
        adapt(model, params, None, False)
    assert str(caught.value).startswith(said)
