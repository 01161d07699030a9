"""The keyed generator gives jax's bits, and with it a run with dropout is the same run in both frameworks."""

from collections.abc import Iterator
from dataclasses import replace

import jax
import numpy as np
import pytest
import torch

import jaxlm.dropout
from jaxlm.engine import Engine as JaxEngine
from lmcore.config import Config, ModelConfig, TrainConfig
from parity.backends import framework_settings
from torchlm.dropout import MaskKey, Part, bernoulli, dropout, fold_in, seed_key, split
from torchlm.engine import Engine as TorchEngine

CPU = torch.device("cpu")
SEEDS = (0, 1, 12345, 2**31 - 1)


@pytest.fixture(autouse=True)
def settings_restored() -> Iterator[None]:
    with framework_settings():
        yield


def words(key: jax.Array) -> list[int]:
    return jax.random.key_data(key).tolist()


@pytest.mark.parametrize("seed", SEEDS)
def test_keys_are_those_of_jax(seed: int):
    theirs, ours = jax.random.key(seed), seed_key(seed, CPU)
    assert ours.tolist() == words(theirs)
    for number in (0, 1, 700_000):
        assert fold_in(ours, number).tolist() == words(jax.random.fold_in(theirs, number))
    found = [key.words.tolist() for key in split(MaskKey(ours), 5)]
    assert found == [words(key) for key in jax.random.split(theirs, 5)]
    assert fold_in(ours, 1).tolist() != fold_in(ours, 2).tolist()


@pytest.mark.parametrize("rate", [0.1, 0.5, 1 / 3])
@pytest.mark.parametrize("shape", [(), (7,), (3, 5, 11), (2, 3, 129, 129)])
def test_masks_are_those_of_jax_to_the_bit(shape: tuple[int, ...], rate: float):
    theirs, ours = jax.random.key(3), seed_key(3, CPU)
    expected = np.asarray(jax.random.bernoulli(theirs, np.float32(1 - rate), shape))
    found = bernoulli(ours, 1 - rate, torch.Size(shape)).numpy()
    assert np.array_equal(found, expected)
    if len(shape) > 1:
        assert not np.array_equal(bernoulli(fold_in(ours, 0), 1 - rate, torch.Size(shape)).numpy(), expected)


def test_dropping_is_the_same_in_every_precision():
    x = np.random.default_rng(0).normal(size=(4, 9))
    wide = dropout(torch.from_numpy(x), 0.3, MaskKey(seed_key(5, CPU)))
    with jax.enable_x64(True):
        theirs = jaxlm.dropout.dropout(jax.numpy.asarray(x), 0.3, jax.random.key(5))
    np.testing.assert_allclose(wide.numpy(), theirs, rtol=3e-16, atol=0)  # torch multiplies by the reciprocal
    narrow = jaxlm.dropout.dropout(jax.numpy.asarray(x.astype(np.float32)), 0.3, jax.random.key(5))
    assert np.array_equal(np.asarray(narrow) == 0, wide.numpy() == 0)
    assert dropout(wide, 0.3, None) is wide


def test_processes_draw_their_parts_of_the_masks_of_one():
    x, key = torch.ones(4, 6, 5), MaskKey(seed_key(1, CPU))
    whole = dropout(x, 0.5, key)
    for rows, columns in ((2, 3), (4, 1), (1, 6)):
        parts = []
        for row in range(rows):
            own = [key._replace(rows=Part(row, rows), positions=Part(column, columns)) for column in range(columns)]
            drawn = [dropout(x[: 4 // rows, : 6 // columns], 0.5, k) for k in split_and_back(own)]
            parts.append(torch.cat(drawn, dim=1))
        assert torch.equal(torch.cat(parts), whole)
    weights = torch.ones(2, 4, 3, 3)
    heads = [dropout(weights[:, :2], 0.5, key._replace(positions=Part(1, 2), heads=Part(i, 2))) for i in range(2)]
    assert torch.equal(torch.cat(heads, dim=1), dropout(weights, 0.5, key))
    assert not torch.equal(heads[0], heads[1])


def split_and_back(keys: list[MaskKey]) -> list[MaskKey]:
    """Replace each by the parts of a key that was split from it, with the words of the first."""
    return [split(key, 2)[0]._replace(words=key.words) for key in keys]


def losses(make: type, config: Config) -> list[float]:
    engine = make(config)
    engine.init()
    rng = np.random.default_rng(0)
    batches = rng.integers(config.model.vocab_size, size=(4, 4, 14), dtype=np.int32)
    return [float(engine.train_step(batch, 1e-2)["loss"]) for batch in batches]


def test_runs_with_dropout_are_one_run():
    model = ModelConfig(vocab_size=17, dim=12, n_layers=2, n_heads=3, n_kv_heads=1, head_dim=4, ffn_dim=9, dropout=0.2)
    train = TrainConfig(batch_size=4, grad_accum=2, seq_len=13, precision="float64", dropout_masks="threefry")
    config = Config(model=model, train=replace(train, device="cpu", cpu_devices=1))
    jax_losses, torch_losses = losses(JaxEngine, config), losses(TorchEngine, config)
    np.testing.assert_allclose(torch_losses, jax_losses, rtol=0, atol=1e-10)
    for changed in ({"dropout_masks": "native"}, {"seed": 1}):
        other = losses(TorchEngine, replace(config, train=replace(config.train, **changed)))
        assert np.abs(np.subtract(other, jax_losses)).min() > 1e-6
