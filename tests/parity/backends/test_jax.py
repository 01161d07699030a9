"""The JAX backend: the engine's own weights and batches, optax's corrections; nothing here is compiled but them."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxlm.model
from lmcore.config import Config, SampleConfig
from parity.backends import framework_settings
from parity.backends.base import Twin
from parity.backends.jax import JaxTwin, listening
from parity.backends.torch import TorchTwin
from parity.check.selftest.mutants import odd_config
from parity.convert.moments import Moments, read_optax


@pytest.fixture(autouse=True)
def settings_restored() -> Iterator[None]:
    with framework_settings():
        yield


def config(**model: Any) -> Config:
    odd = odd_config()
    return replace(odd, model=replace(odd.model, n_layers=1, **model))


def rows(count: int, length: int) -> np.ndarray:
    return np.random.default_rng(0).integers(61, size=(count, length), dtype=np.int32)


@pytest.mark.parametrize("scan_layers", [False, True])
def test_weights_and_moments_are_loaded_and_read_back(scan_layers: bool):
    twin = JaxTwin(config(scan_layers=scan_layers))
    assert isinstance(twin, Twin)
    start = twin.initial()
    moments = {kind: {n: value + k for n, value in start.items()} for k, kind in enumerate(("mean", "square"), 1)}
    twin.load({name: 2 * value for name, value in start.items()}, Moments(5, moments), 6)
    assert all(np.array_equal(value, 2 * start[name]) for name, value in twin.params().items())
    state = twin.engine.state
    read = read_optax(state.opt_state, twin.config)
    assert (int(state.step), read.count) == (6, 5)
    assert all(np.array_equal(read.arrays[kind][n], moments[kind][n]) for kind in moments for n in start)
    twin.load(start)
    assert (int(twin.engine.state.step), read_optax(twin.engine.state.opt_state, twin.config).count) == (0, 0)


def test_the_train_step_receives_micro_batches():
    twin, batch = JaxTwin(config()), rows(4, 8)
    twin.initial()
    assert twin.received(batch).tolist() == batch.reshape(2, 2, 8).tolist()


@pytest.mark.parametrize("variant", [{}, {"position": "learned", "norm_placement": "sandwich", "mlp": "gelu"}])
def test_listening_names_what_torchlm_names_and_is_over_afterwards(variant: dict[str, Any]):
    twin, other = JaxTwin(config(**variant)), TorchTwin(config(**variant))
    twin.initial(), other.initial()
    decoder = twin.engine.model(twin.engine.state.params)
    with listening(decoder) as taps:
        jax.eval_shape(decoder.hidden, jnp.asarray(rows(2, 5)))
    heard = other.activations(rows(2, 5))
    assert {name: value.shape for name, value in taps.recorded.items()} == {n: a.shape for n, a in heard.items()}
    assert list(taps.recorded) == list(heard)
    count = len(taps.recorded)
    jax.eval_shape(decoder.hidden, jnp.asarray(rows(2, 6)))
    assert len(taps.recorded) == count
    assert taps.recorded["embedding"].shape[1] == 5
    assert jaxlm.model.causal_attention.__module__ == "jaxlm.fast.attention"


def test_optax_rounds_the_correction_to_its_float_type():
    twin = JaxTwin(config())
    exact = 1 - 0.999**3
    assert twin.bias_correction(0.999, 3, np.dtype("f8")) == pytest.approx(exact, rel=1e-12)
    jax.config.update("jax_enable_x64", False)
    rounded = twin.bias_correction(0.999, 3, np.dtype("f4"))
    assert 1e-7 < abs(rounded / exact - 1) < 1e-4


def test_losses_and_choices_are_those_of_the_definition():
    twin = JaxTwin(config())
    logits, targets = np.log(np.array([[[0.5, 0.3, 0.2], [0.5, 0.3, 0.2]]])), np.array([[1, -1]])
    np.testing.assert_allclose(twin.token_losses(logits, targets), [[-np.log(0.3), 0]])
    uniforms = np.array([0.49, 0.51])
    assert twin.choose(logits[0], uniforms, SampleConfig(temperature=1.0)).tolist() == [0, 1]
    assert twin.choose(logits[0], uniforms, SampleConfig(temperature=0.0)).tolist() == [0, 0], (
        "other options, another program"
    )
