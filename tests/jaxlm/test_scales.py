"""Factors and soft caps, and what stands for none."""

import jax.numpy as jnp
import numpy as np

from jaxlm.scales import softcapped, times, unchanged


def test_no_factor_and_no_cap_return_the_input() -> None:
    x = jnp.arange(3.0)
    assert times(1.0) is softcapped(0.0) is unchanged
    assert unchanged(x) is x


def test_a_factor_multiplies_and_a_cap_bends() -> None:
    x = np.array([-100.0, -0.1, 0.0, 2.0])
    np.testing.assert_allclose(times(3.0)(jnp.asarray(x)), 3 * x, rtol=1e-6)
    capped = np.asarray(softcapped(5.0)(jnp.asarray(x)))
    np.testing.assert_allclose(capped, 5 * np.tanh(x / 5), rtol=1e-6)
    assert capped[0] == -5
    assert times(3.0)(jnp.ones(2, jnp.bfloat16)).dtype == jnp.bfloat16
