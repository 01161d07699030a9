"""The summed loss, whole and in chunks, with targets that do not count."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm import loss as loss_module
from jaxlm.functional import Model
from jaxlm.loss import IGNORED, chunk_count, cross_entropy, loss_sum
from lmcore.config import Config, ModelConfig

MODEL = ModelConfig(vocab_size=61, dim=20, n_layers=1, n_heads=5, n_kv_heads=1, head_dim=6, ffn_dim=24, max_seq_len=7)


def batch(step: int, rows: int = 8) -> np.ndarray:
    return np.random.default_rng(step).integers(0, MODEL.vocab_size, (rows, 8), dtype=np.int32)


def test_cross_entropy_is_its_formula_and_ignored_targets_cost_nothing() -> None:
    logits = jnp.asarray(np.random.default_rng(0).normal(0, 3, (2, 3, 5)), jnp.float32)
    targets = jnp.asarray([[0, 4, IGNORED], [2, IGNORED, 1]])
    probabilities = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    losses = cross_entropy(logits, targets)
    for row, column in np.ndindex(2, 3):
        target = int(targets[row, column])
        expected = 0 if target == IGNORED else -np.log(probabilities[row, column, target])
        np.testing.assert_allclose(losses[row, column], expected, rtol=1e-6)


@pytest.mark.parametrize("chunk", [1, 61 * 8 * 2, 61 * 8 * 4])
def test_chunks_of_the_loss_change_nothing_but_rounding(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = jnp.asarray(batch(0))
    model = Model(Config(model=MODEL))
    weights = model.initial_params()

    def value(params: dict[str, jax.Array]) -> jax.Array:
        return loss_sum(model(params), tokens[:, :-1], tokens[:, 1:])

    whole, whole_grads = jax.jit(jax.value_and_grad(value))(weights)
    monkeypatch.setattr(loss_module, "CHUNK_LOGITS", chunk)
    assert "scan" in str(jax.make_jaxpr(value)(weights))
    parts, part_grads = jax.jit(jax.value_and_grad(value))(weights)
    np.testing.assert_allclose(parts, whole, rtol=1e-6)
    for name, grad in whole_grads.items():
        np.testing.assert_allclose(part_grads[name], grad, rtol=1e-4, atol=1e-5)


def test_the_loss_is_the_sum_over_the_logits_of_the_whole_pass() -> None:
    tokens = jnp.asarray(batch(0))
    model = Model(Config(model=MODEL))
    decoder = model(model.initial_params())
    targets = tokens[:, 1:].at[0, :3].set(IGNORED)
    found = loss_sum(decoder, tokens[:, :-1], targets)
    np.testing.assert_allclose(found, cross_entropy(decoder(tokens[:, :-1]), targets).sum(), rtol=1e-6)
    np.testing.assert_allclose(found, (8 * 7 - 3) * np.log(61), rtol=0.02)  # fresh weights guess


def test_chunks_are_as_few_as_the_devices_allow_and_equal() -> None:
    assert chunk_count(8, 4096, 128256, 1) == 128  # of 126, which do not divide 4096
    assert chunk_count(8, 4096, 128256, 8) == 16
    assert chunk_count(8, 7, 2**25, 8) == 7
    assert chunk_count(1, 256, 2048, 1) == 1
