"""The torch backend: the engine's own weights, batches, gradients and moments, under canonical names."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch

import torchlm.engine
import torchlm.model
from lmcore.config import Config, SampleConfig
from parity.backends import framework_settings
from parity.backends.base import Twin
from parity.backends.torch import TorchTwin
from parity.check.selftest.mutants import odd_config
from parity.convert.moments import Moments


@pytest.fixture(autouse=True)
def settings_restored() -> Iterator[None]:
    with framework_settings():
        yield


def config(**optim: object) -> Config:
    odd = odd_config()
    return replace(odd, model=replace(odd.model, n_layers=1), optim=replace(odd.optim, **optim))


def rows(count: int, length: int) -> np.ndarray:
    return np.random.default_rng(0).integers(61, size=(count, length), dtype=np.int32)


def test_weights_are_loaded_in_canonical_layout():
    twin = TorchTwin(config())
    assert isinstance(twin, Twin)
    start = twin.initial()
    doubled = {name: 2 * value for name, value in start.items()}
    twin.load(doubled)
    assert all(np.array_equal(value, doubled[name]) for name, value in twin.params().items())
    name = "layers.0.mlp.up_proj"
    held = twin.engine.state.params[f"{name}.weight"].numpy()
    np.testing.assert_array_equal(held.T, doubled[f"{name}.kernel"])


def test_the_train_step_receives_micro_batches_and_is_left_as_it_was():
    twin, batch = TorchTwin(config()), rows(4, 8)
    before = twin.initial()
    assert twin.received(batch).tolist() == batch.reshape(2, 2, 8).tolist()
    assert torchlm.engine.train_step.__module__ == "torchlm.engine"
    assert all(np.array_equal(value, before[name]) for name, value in twin.params().items())


def test_a_step_tells_its_own_gradients_before_the_clip_and_updates_with_those_given():
    """Adam's first update is lr times the sign of the gradient, but for eps; and decay of matrices."""
    twin = TorchTwin(config(eps=1e-12, clip=0.0, weight_decay=0.0))
    start = twin.initial()
    given = {name: np.where(np.arange(value.size).reshape(value.shape) % 2, 1.0, -1.0) for name, value in start.items()}
    own = twin.step(rows(4, 8), 0.01)
    assert own.grad_norm == pytest.approx(np.sqrt(sum((grad**2).sum() for grad in own.grads.values())))
    twin.load(start)
    step = twin.step(rows(4, 8), 0.01, given)
    assert all(np.array_equal(step.grads[name], own.grads[name]) for name in start), "what the engine made is told"
    for name, value in step.params.items():
        np.testing.assert_allclose(value, start[name] - 0.01 * given[name], rtol=0, atol=1e-12)
        np.testing.assert_allclose(step.moments["mean"][name], (1 - 0.9) * given[name], rtol=1e-12)


@pytest.mark.parametrize("name", ["adamw", "adafactor", "muon", "lion", "sgd"])
def test_a_loaded_state_goes_on_to_the_bit(name: str):
    twin = TorchTwin(config(name=name))
    start = twin.initial()
    first = twin.step(rows(4, 8), 0.01)
    second = twin.step(rows(4, 9), 0.01)
    twin.load(first.params, Moments(1, first.moments), 1)
    again = twin.step(rows(4, 9), 0.01)
    assert all(np.array_equal(value, again.params[n]) for n, value in second.params.items())
    twin.load(first.params)
    lost = twin.step(rows(4, 9), 0.01)
    assert any(not np.array_equal(value, lost.params[n]) for n, value in second.params.items())
    assert twin.engine.state.step == 1
    assert start.keys() == lost.params.keys()


def test_listening_names_what_is_computed_and_is_over_afterwards():
    twin = TorchTwin(config())
    head = twin.initial()["embed_tokens.weight"]
    heard = twin.activations(rows(2, 5))
    assert [next(iter(heard)), list(heard)[-1]] == ["embedding", "final norm"]
    np.testing.assert_array_equal(heard["embedding"], head[rows(2, 5)])
    np.testing.assert_allclose(heard["final norm"] @ head.T, twin.logits(rows(2, 5)), rtol=1e-12, atol=1e-14)
    assert torchlm.model.causal_attention.__module__ == "torchlm.fast.attention"
    assert not any(module._forward_hooks for module in twin.engine.state.model.modules())


def test_a_decoded_token_has_the_logits_of_the_full_forward_pass():
    twin, tokens = TorchTwin(config()), rows(1, 6)
    twin.initial()
    decoded = twin.decode(tokens, np.zeros(1, np.int32), 3, 8)
    np.testing.assert_allclose(decoded, twin.logits(tokens)[:, 2:], rtol=1e-11, atol=1e-13)


def test_losses_and_corrections_are_those_of_the_definition():
    twin = TorchTwin(config())
    logits, targets = np.log(np.array([[[0.5, 0.3, 0.2], [0.5, 0.3, 0.2]]])), np.array([[1, -1]])
    np.testing.assert_allclose(twin.token_losses(logits, targets), [[-np.log(0.3), 0]])
    assert twin.bias_correction(0.9, 3, np.dtype("f4")) == 1 - 0.9**3
    assert twin.choose(logits[0], np.array([0.49, 0.51]), SampleConfig(temperature=1.0)).tolist() == [0, 1]
    twin.initial()
    tokens, masked = rows(2, 5), rows(2, 5).copy()
    masked[1] = -1
    total, count = twin.evaluate(tokens, masked)
    shifted = torch.log_softmax(torch.from_numpy(twin.logits(tokens[:1])), -1)[0].numpy()
    assert (total, count) == (pytest.approx(-shifted[range(5), masked[0]].sum()), 5)
