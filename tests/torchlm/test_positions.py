"""Absolute positions against their formulas, where sequences begin at other positions."""

from dataclasses import replace

import numpy as np
import torch

from lmcore.config import ModelConfig
from torchlm.positions import POSITIONS, LearnedPositions, NoPositions, SinusoidalPositions, unrotated

SHAPE = ModelConfig(vocab_size=61, dim=6, n_heads=1, max_seq_len=5, position="learned")
PLACES = torch.tensor([[2, 3, 4], [0, 0, 1]])
"""Positions of two sequences, the second of which has padding on its left."""


def draws(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape))


def test_learned_positions_add_the_row_of_each_position():
    added, x = LearnedPositions(SHAPE).double(), draws(2, 3, 6)
    assert added.weight.shape == (5, 6)
    added.weight.data = draws(5, 6, seed=1)
    found = added(x, PLACES)
    for row, column in np.ndindex(2, 3):
        expected = x[row, column] + added.weight[int(PLACES[row, column])]
        np.testing.assert_array_equal(found[row, column].detach(), expected.detach())


def test_sinusoidal_positions_scale_x_and_add_sines_and_cosines():
    x = draws(2, 3, 6)
    found = SinusoidalPositions(replace(SHAPE, position="sinusoidal")).double()(x, PLACES).numpy()
    for row, column in np.ndindex(2, 3):
        angles = float(PLACES[row, column]) / 10000 ** (np.array([0, 2, 4]) / 6)
        waves = np.stack([np.sin(angles), np.cos(angles)], axis=-1).ravel()
        np.testing.assert_allclose(found[row, column], np.sqrt(6) * x[row, column].numpy() + waves, rtol=0, atol=1e-14)


def test_sinusoidal_positions_are_not_trained_and_not_saved():
    added = SinusoidalPositions(replace(SHAPE, position="sinusoidal"))
    assert list(added.parameters()) == []
    assert added.state_dict() == {}


def test_without_absolute_positions_x_is_passed_on():
    x, heads, table = draws(2, 3, 6), draws(2, 3, 1, 6), draws(1, 3, 0)
    assert POSITIONS["rope"] is POSITIONS["none"] is NoPositions
    assert NoPositions(replace(SHAPE, position="none"))(x, PLACES) is x
    assert unrotated(heads, table, table) is heads
