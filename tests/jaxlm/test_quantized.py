"""Layers with int8 weights against their formula, and what a loop over tokens reads of them."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxlm.functional import Model
from jaxlm.linear import Linear
from jaxlm.quantized import Int8BiasedLinear, Int8Linear, int8_decoder
from lmcore.config import Config, ModelConfig
from lmcore.model.quantize import dequantize, quantize


def layer(kind: type, dtype: str, inputs: int = 6) -> tuple[Int8Linear, np.ndarray]:
    """A layer of random weights, and the weights that its values and scales stand for, input × output."""
    quantized = quantize(np.random.default_rng(0).normal(size=(10, inputs)))
    made = kind(inputs, 10, jnp.dtype(dtype))
    made.kernel, made.scale = nnx.Param(jnp.asarray(quantized.values.T)), nnx.Param(jnp.asarray(quantized.scales))
    return made, dequantize(quantized, np.dtype(np.float64)).T


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16"])
def test_a_layer_is_its_formula(dtype: str):
    with jax.enable_x64(dtype == "float64"):
        rng = np.random.default_rng(1)
        x, bias = rng.normal(size=(2, 3, 6)), rng.normal(size=10)
        (plain, weight), (biased, _) = (layer(kind, dtype) for kind in (Int8Linear, Int8BiasedLinear))
        biased.bias = nnx.Param(jnp.asarray(bias))
        expected, bias = x @ weight, bias[None, None]
        tolerance = {"float64": 1e-13, "float32": 1e-5, "bfloat16": 2**-6}[dtype] * np.abs(expected).max()
        found = plain(jnp.asarray(x))
        assert found.dtype == dtype
        assert np.abs(found - expected).max() <= tolerance
        assert np.abs(biased(jnp.asarray(x)) - expected - bias).max() <= 2 * tolerance
        assert np.abs(found - 1.05 * expected).max() > tolerance


def test_all_linear_layers_and_the_head_are_replaced():
    config = Config(model=ModelConfig(vocab_size=7, dim=4, n_layers=1, n_heads=2, ffn_dim=6, tie_embeddings=False))
    full, int8 = Model(config), Model(config, int8_decoder)
    kernels = {name for name in full.shapes if name.endswith("kernel")}
    assert int8.shapes.keys() == full.shapes.keys() | {name.replace("kernel", "scale") for name in kernels}


@pytest.mark.parametrize("kind", [Int8Linear, Linear])
def test_a_loop_over_tokens_reads_int8_and_not_floats_converted_before(kind: type):
    made, _ = layer(Int8Linear, "float32", inputs=10)
    module = made if kind is Int8Linear else Linear(10, 10, jnp.dtype("float32"))

    graph, _ = nnx.split(module)

    def loop(kernel: jax.Array, x: jax.Array) -> jax.Array:
        leaves = {("kernel",): nnx.Param(kernel), ("scale",): nnx.Param(made.scale[...])}
        names = nnx.to_flat_state(nnx.state(module)).paths
        merged = nnx.merge(graph, nnx.from_flat_state([(n, leaves[n]) for n in names]))
        return jax.lax.scan(lambda x, _: (jnp.tanh(merged(x)), None), x, None, length=3)[0]

    compiled = jax.jit(loop).lower(made.kernel[...], jnp.ones((1, 10))).compile().as_text()
    body = next(line for line in compiled.splitlines() if re.search(r" = \(.*\) while\(", line))
    assert ("s8[10,10]" in body.partition("while(")[0]) is (kind is Int8Linear)
