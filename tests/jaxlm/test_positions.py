"""Absolute positions against their formulas, where sequences begin at other positions."""

from collections.abc import Iterator
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxlm.positions import POSITIONS, LearnedPositions, NoPositions, SinusoidalPositions, unrotated
from lmcore.config import ModelConfig

SHAPE = ModelConfig(vocab_size=61, dim=6, n_heads=1, max_seq_len=5, position="learned")
PLACES = np.array([[2, 3, 4], [0, 0, 1]])
"""Positions of two sequences, the second of which has padding on its left."""


@pytest.fixture(autouse=True)
def _float64() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


def draws(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)


def test_learned_positions_add_the_row_of_each_position() -> None:
    added, x, weight = LearnedPositions(SHAPE), draws(2, 3, 6), draws(5, 6, seed=1)
    assert added.weight.shape == (5, 6)
    added.weight = nnx.Param(jnp.asarray(weight))
    found = np.asarray(added(jnp.asarray(x), jnp.asarray(PLACES)))
    for row, column in np.ndindex(2, 3):
        np.testing.assert_array_equal(found[row, column], x[row, column] + weight[PLACES[row, column]])


def test_sinusoidal_positions_scale_x_and_add_sines_and_cosines() -> None:
    x = draws(2, 3, 6)
    added = SinusoidalPositions(replace(SHAPE, position="sinusoidal"))
    found = np.asarray(added(jnp.asarray(x), jnp.asarray(PLACES)))
    for row, column in np.ndindex(2, 3):
        angles = float(PLACES[row, column]) / 10000 ** (np.array([0, 2, 4]) / 6)
        waves = np.stack([np.sin(angles), np.cos(angles)], axis=-1).ravel()
        np.testing.assert_allclose(found[row, column], np.sqrt(6) * x[row, column] + waves, rtol=0, atol=1e-14)


def test_sinusoidal_positions_are_not_trained_and_not_saved() -> None:
    added = SinusoidalPositions(replace(SHAPE, position="sinusoidal"))
    assert jax.tree.leaves(nnx.state(added)) == []


def test_without_absolute_positions_x_is_passed_on() -> None:
    x, heads, table = (jnp.asarray(draws(*shape)) for shape in ((2, 3, 6), (2, 3, 1, 6), (1, 3, 0)))
    assert POSITIONS["rope"] is POSITIONS["none"] is NoPositions
    assert NoPositions(replace(SHAPE, position="none"))(x, jnp.asarray(PLACES)) is x
    assert unrotated(heads, table, table) is heads
