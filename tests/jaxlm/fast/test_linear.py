"""The matmuls whose gradients are written by hand against `jnp.matmul` with jax's own rule, on every platform."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.fast import linear as module
from jaxlm.fast.linear import accumulated, linear, matmul

SHAPES = [((5, 3), 7), ((2, 3, 8), 1), ((2, 0, 3), 4)]


def gradients(multiply, x, kernel, direction):
    y, transpose = jax.vjp(multiply, x, kernel)
    return y, *transpose(direction)


@pytest.mark.parametrize(("rows", "outputs"), SHAPES)
def test_it_is_the_matmul_and_its_gradients(rows: tuple[int, ...], outputs: int) -> None:
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


@pytest.mark.parametrize("multiply", [matmul, accumulated])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_a_batched_matmul_has_the_gradients_of_its_definition(multiply: Callable, dtype: type) -> None:
    rng = np.random.default_rng(0)
    a, b = (jnp.asarray(rng.standard_normal(shape), dtype) for shape in ((2, 5, 3), (2, 3, 7)))
    result = jnp.float32 if multiply is accumulated else dtype
    direction = jnp.asarray(rng.standard_normal((2, 5, 7)), dtype).astype(result)
    found = gradients(multiply, a, b, direction)
    wide = gradients(jnp.matmul, *(x.astype(jnp.float32) for x in (a, b, direction)))
    assert [x.dtype for x in found] == [result, dtype, dtype]
    for ours, exact in zip(found, wide, strict=True):
        tolerance = 1e-6 if dtype == jnp.float32 else 2**-8
        np.testing.assert_allclose(ours.astype(jnp.float32), exact, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("platform", ["cpu", "cuda", "tpu"])
@pytest.mark.parametrize("multiply", [linear, matmul, accumulated])
def test_all_factors_have_16_bits_on_every_platform(multiply: Callable, platform: str) -> None:
    a, b = jnp.ones((2, 5, 3), jnp.bfloat16), jnp.ones((3, 7) if multiply is linear else (2, 3, 7), jnp.bfloat16)

    def factors(multiply: Callable) -> list[str]:
        step = jax.jit(jax.grad(lambda a, b: multiply(a, b).astype(jnp.float32).sum() ** 2, (0, 1)))
        text = step.trace(a, b).lower(lowering_platforms=(platform,)).as_text()
        lines = [line for line in text.splitlines() if "dot_general" in line]
        return [line.rpartition(": (")[2].partition(") ->")[0] for line in lines]

    found = factors(multiply)
    assert len(found) == 3
    assert all(each.count("xbf16>") == 2 for each in found)
    own = factors(lambda a, b: jnp.matmul(a, b, preferred_element_type=jnp.float32))
    assert not all(each.count("xbf16>") == 2 for each in own)  # jax's own rule


def test_only_a_cpu_has_the_barrier() -> None:
    step = jax.jit(jax.grad(lambda x, kernel: linear(x, kernel).sum(), 1))
    traced = step.trace(jnp.ones((5, 3)), jnp.ones((3, 7)))
    barriers = {
        name: traced.lower(lowering_platforms=(name,)).as_text().count("optimization_barrier")
        for name in ("cpu", "cuda", "tpu")
    }
    assert barriers == {"cpu": 1, "cuda": 0, "tpu": 0}
