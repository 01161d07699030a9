"""Clip and AdamW against their formulas in NumPy; an optimizer over stacked layers is the one over each."""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.functional import Model
from jaxlm.layers import stack_layers
from jaxlm.optim import apply_updates, clip_by_global_norm, decay_mask, make_optimizer, muon_mask, over_layers
from lmcore.config import Config, ModelConfig, OptimConfig

MODEL = ModelConfig(vocab_size=61, dim=20, n_layers=2, n_heads=5, n_kv_heads=1, head_dim=6, ffn_dim=24, max_seq_len=7)
CONFIG = OptimConfig(beta1=0.9, beta2=0.95, eps=1e-3, weight_decay=0.3)


def test_clip_is_global_and_zero_does_not_clip() -> None:
    grads = {"a": jnp.asarray([3.0, 0.0]), "b": jnp.asarray([[4.0]])}
    clipped, norm = clip_by_global_norm(grads, 1.0)
    assert norm == 5
    np.testing.assert_allclose(clipped["a"], [3 / (5 + 1e-6), 0], rtol=1e-6)
    for untouched in (10.0, 0.0):
        np.testing.assert_array_equal(clip_by_global_norm(grads, untouched)[0]["b"], grads["b"])


def test_decay_mask_takes_matrices() -> None:
    mask = decay_mask(Model(Config(model=MODEL)).initial_params())
    assert {name.rsplit(".", 2)[-2] for name, decays in mask.items() if not decays} == {
        "input_layernorm",
        "post_attention_layernorm",
        "norm",
    }
    assert mask["embed_tokens.weight"]


@pytest.fixture
def _float64() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


def drawn(**shapes: tuple[int, ...]) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {name: rng.normal(size=shape) for name, shape in shapes.items()}


@pytest.mark.usefixtures("_float64")
def test_two_updates_are_adamw_with_decay_on_the_matrix_only() -> None:
    values = drawn(w=(3, 5), norm=(5,))
    grads = {name: np.cos(7 * value) for name, value in values.items()}
    mean, square = ({n: np.zeros_like(v) for n, v in values.items()} for _ in range(2))
    params = {name: jnp.asarray(value) for name, value in values.items()}
    optimizer = make_optimizer(CONFIG)
    state = optimizer.init(params)
    for t, lr in ((1, 0.1), (2, 0.02)):
        given = {name: jnp.asarray(grad) for name, grad in grads.items()}
        directions, state = optimizer.update(given, state, params, lr=lr)
        params = apply_updates(params, directions, jnp.asarray(lr))
        for n, g in grads.items():
            mean[n] = 0.9 * mean[n] + 0.1 * g
            square[n] = 0.95 * square[n] + 0.05 * g**2
            direction = mean[n] / (1 - 0.9**t) / (np.sqrt(square[n] / (1 - 0.95**t)) + 1e-3)
            decay = 0.3 if n == "w" else 0
            values[n] = values[n] - lr * (direction + decay * values[n])
    for n, p in params.items():
        np.testing.assert_allclose(p, values[n], rtol=1e-6)  # optax computes 1 − βᵗ in float32
    assert not np.allclose(params["norm"], values["norm"] * (1 - 0.3 * 0.02), rtol=1e-4)


def test_muon_takes_the_matrices_of_the_blocks() -> None:
    params = drawn(**{"embed_tokens.weight": (4, 3), "layers.0.mlp.up_proj.kernel": (3, 4), "layers.0.bias": (4,)})
    assert [name for name, taken in muon_mask(params).items() if taken] == ["layers.0.mlp.up_proj.kernel"]


@pytest.mark.usefixtures("_float64")
def test_an_optimizer_over_stacked_layers_sees_each_in_its_own_shape() -> None:
    shapes = {f"layers.{i}.{name}": shape for i in range(2) for name, shape in (("w", (3, 5)), ("bias", (5,)))}
    params = {name: jnp.asarray(value) for name, value in drawn(**shapes, head=(2, 3)).items()}
    grads = {name: value * 3 + 1 for name, value in params.items()}
    apart = make_optimizer(OptimConfig(name="lion", weight_decay=0.3))
    expected, _ = apart.update(grads, apart.init(params), params, lr=0.1)
    stacked, stacked_grads = stack_layers(params), stack_layers(grads)
    together = over_layers(apart)
    found, _ = together.update(stacked_grads, together.init(stacked), stacked, lr=0.1)
    for name, value in stack_layers(expected).items():
        np.testing.assert_allclose(found[name], value, rtol=1e-12)
    plain, _ = apart.update(stacked_grads, apart.init(stacked), stacked, lr=0.1)
    assert not np.allclose(plain["layers.*.bias"], found["layers.*.bias"]), "a stack of vectors would decay"
