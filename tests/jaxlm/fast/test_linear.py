"""The matmul whose gradients are written by hand against `jnp.matmul` with jax's own rule."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.fast import linear as module
from jaxlm.fast.linear import linear

SHAPES = [((5, 3), 7), ((2, 3, 8), 1), ((2, 0, 3), 4)]


def gradients(multiply, x, kernel, direction):
    y, transpose = jax.vjp(multiply, x, kernel)
    return y, *transpose(direction)


@pytest.mark.parametrize(("rows", "outputs"), SHAPES)
def test_it_is_the_matmul_and_its_gradients(
    rows: tuple[int, ...], outputs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    x, kernel, direction = (
        jnp.asarray(rng.standard_normal(shape), jnp.float32)
        for shape in (rows, (rows[-1], outputs), (*rows[:-1], outputs))
    )
    found = gradients(linear, x, kernel, direction)
    for ours, own in zip(found, gradients(jnp.matmul, x, kernel, direction), strict=True):
        np.testing.assert_allclose(ours, own, rtol=1e-5, atol=1e-6)
    assert [g.shape for g in found[1:]] == [x.shape, kernel.shape]
    if x.size:
        assert np.abs(gradients(linear, x, kernel, -direction)[2] - found[2]).max() > 1e-2
    monkeypatch.setattr(module, "on_cpu", lambda: False)
    for ours, own in zip(gradients(linear, x, kernel, direction), gradients(jnp.matmul, x, kernel, direction)):
        np.testing.assert_array_equal(ours, own)


@pytest.mark.parametrize("instructions", [True, False])
@pytest.mark.parametrize(("rows", "outputs"), SHAPES)
def test_bfloat16_factors_are_summed_in_float32_and_rounded_once(
    rows: tuple[int, ...], outputs: int, instructions: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "bfloat16_products", lambda: instructions)
    rng = np.random.default_rng(0)
    narrow = [
        jnp.asarray(rng.standard_normal(shape), jnp.bfloat16)
        for shape in (rows, (rows[-1], outputs), (*rows[:-1], outputs))
    ]
    wide = gradients(jnp.matmul, *(a.astype(jnp.float32) for a in narrow))
    for ours, exact in zip(gradients(linear, *narrow), wide, strict=True):
        assert ours.dtype == jnp.bfloat16
        np.testing.assert_allclose(ours.astype(jnp.float32), exact, rtol=2**-8, atol=1e-6)
