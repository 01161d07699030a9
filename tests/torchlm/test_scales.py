"""Factors and soft caps, and what stands for none."""

import numpy as np
import torch

from torchlm.scales import softcapped, times, unchanged


def test_no_factor_and_no_cap_return_the_input():
    x = torch.arange(3.0)
    assert times(1.0) is softcapped(0.0) is unchanged
    assert unchanged(x) is x


def test_a_factor_multiplies_and_a_cap_bends():
    x = np.array([-100.0, -0.1, 0.0, 2.0])
    np.testing.assert_allclose(times(3.0)(torch.from_numpy(x)), 3 * x, rtol=1e-15)
    capped = softcapped(5.0)(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(capped, 5 * np.tanh(x / 5), rtol=1e-15)
    assert capped[0] == -5
    assert times(3.0)(torch.ones(2, dtype=torch.bfloat16)).dtype == torch.bfloat16
