"""Layouts: what is split is what was joined, and lies where transformers has it."""

import numpy as np
import pytest

from lmcore.config import ModelConfig
from parity.convert.families.layout import CONV1D, INTERLEAVED, STACKED, Layout

MODEL = ModelConfig(dim=6, n_heads=3, head_dim=2)


@pytest.mark.parametrize("layout", [STACKED, CONV1D, INTERLEAVED])
@pytest.mark.parametrize("shape", [(6, 5), (6,)])
def test_parts_come_back(layout: Layout, shape: tuple[int, ...]):
    rng = np.random.default_rng(0)
    parts = [rng.standard_normal(shape) for _ in range(3)]
    whole = layout.join(parts, MODEL)
    for part, back in zip(parts, layout.split(whole, [6, 6, 6], MODEL), strict=True):
        np.testing.assert_array_equal(part, back)


def test_heads_are_interleaved_and_conv1d_is_transposed():
    q, k, v = (np.arange(6) + 10 * i for i in range(3))
    assert INTERLEAVED.join([q, k, v], MODEL).tolist()[:8] == [0, 1, 10, 11, 20, 21, 2, 3]
    matrix = np.arange(30).reshape(6, 5)
    np.testing.assert_array_equal(CONV1D.join([matrix], MODEL), matrix.T)
