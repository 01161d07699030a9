"""What decodes fast on a CPU against the plain model and the plain sort."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.decoding import Generator, cutoff_by_sorting
from jaxlm.fast.decoding import TRANSPOSED, cutoff_by_bits, for_decoding, int8_for_decoding
from jaxlm.functional import Model
from jaxlm.sharding import make_mesh, replicated
from lmcore.config import Config, ModelConfig, SampleConfig, TrainConfig
from lmcore.model.quantize import dequantize, quantized_layers
from tests.jaxlm.compiled import Compiled

DTYPES = [jnp.float64, jnp.float32]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("limit", [1, 3, 40, 100])
def test_bits_and_a_sort_keep_the_same_tokens_by_rank(dtype: type, limit: int) -> None:
    with jax.enable_x64(True):
        distances = jnp.asarray(np.random.default_rng(limit).integers(0, 30, (5, 70)) / 7, dtype)  # with equals
        ones = jnp.ones_like(distances)
        found, expected = (cut(distances, ones, limit) for cut in (cutoff_by_bits, cutoff_by_sorting))
        np.testing.assert_array_equal(distances <= found, distances <= expected)
        nth = np.sort(distances, axis=-1)[:, [min(limit, 70) - 1]]
        np.testing.assert_array_equal(distances <= found, distances <= nth)
        if limit < 40:
            assert (np.asarray(distances <= cutoff_by_bits(distances, ones, limit + 4)) != (distances <= found)).any()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("limit", [0.1, 0.5, 0.95])
def test_bits_and_a_sort_keep_the_same_tokens_by_probability(dtype: type, limit: float) -> None:
    with jax.enable_x64(True):
        logits = jnp.asarray(np.random.default_rng(7).normal(0, 3, (50, 70)), dtype)
        distances = jnp.max(logits, axis=-1, keepdims=True) - logits
        weights = jax.nn.softmax(logits, axis=-1)
        found, expected = (cut(distances, weights, limit) for cut in (cutoff_by_bits, cutoff_by_sorting))
        np.testing.assert_array_equal(distances <= found, distances <= expected)
        other = cutoff_by_bits(distances, weights, limit + 0.04)
        assert (np.asarray(distances <= other) != (distances <= found)).any()


@pytest.mark.parametrize("precision", ["float64", "float32"])
@pytest.mark.parametrize("transposed", [True, False])
@pytest.mark.parametrize("tied", [True, False])
def test_weights_laid_out_for_decoding_are_the_same_model(precision: str, transposed: bool, tied: bool) -> None:
    shape = ModelConfig(vocab_size=31, dim=24, n_layers=2, n_heads=4, n_kv_heads=2, ffn_dim=40, tie_embeddings=tied)
    with jax.enable_x64(precision == "float64"):
        config = Config(model=shape, train=TrainConfig(precision=precision, device="cpu"))
        model, rng = Model(config), np.random.default_rng(0)
        params = {n: jnp.asarray(p + rng.normal(0, 0.3, p.shape), p.dtype) for n, p in model.initial_params().items()}
        tokens, pads = jnp.asarray(rng.integers(0, 31, (2, 6), np.int32)), jnp.asarray([0, 2], jnp.int32)
        plain = Compiled(model(params))
        expected, _ = plain.decode(tokens, plain.empty_cache(pads, 8))
        weights = for_decoding(params, jnp.dtype(precision), transposed)
        assert any(name.endswith(TRANSPOSED) for name in weights) is transposed
        generator = Generator(model, SampleConfig(), make_mesh(config))

        @jax.jit
        def logits(weights: dict[str, jax.Array]) -> jax.Array:
            fast = generator.decoder(weights)
            return fast.decode(tokens, fast.empty_cache(pads, 8))[0]

        allowed = {"float64": 1e-12, "float32": 1e-5}[precision] * np.abs(expected).max()
        assert np.abs(logits(weights) - expected).max() <= allowed
        name = next(name for name in weights if "k_proj" in name)
        assert np.abs(logits(weights | {name: -weights[name]}) - expected).max() > allowed


@pytest.mark.parametrize("precision", ["float64", "float32"])
@pytest.mark.parametrize("transposed", [True, False])
@pytest.mark.parametrize("tied", [True, False])
def test_int8_weights_are_the_model_of_what_they_stand_for(precision: str, transposed: bool, tied: bool) -> None:
    shape = ModelConfig(vocab_size=31, dim=24, n_layers=2, n_heads=4, n_kv_heads=2, ffn_dim=40, tie_embeddings=tied)
    with jax.enable_x64(precision == "float64"):
        config = Config(model=shape, train=TrainConfig(precision=precision, device="cpu"))
        model, rng, mesh = Model(config), np.random.default_rng(0), make_mesh(config)
        params = {n: jnp.asarray(p + rng.normal(0, 0.3, p.shape), p.dtype) for n, p in model.initial_params().items()}
        layers = quantized_layers({name: np.asarray(p) for name, p in params.items()}, shape)
        stood_for = {f"{n}.kernel": jnp.asarray(dequantize(q, np.dtype(precision)).T) for n, q in layers.items()}
        generators = [Generator(model, SampleConfig(), mesh, weights) for weights in ("full", "int8")]
        tokens, pads = jnp.asarray(rng.integers(0, 31, (2, 6), np.int32)), jnp.asarray([0, 2], jnp.int32)

        @partial(jax.jit, static_argnums=0)
        def logits(generator: Generator, weights: dict[str, jax.Array]) -> jax.Array:
            decoder = generator.decoder(weights)
            return decoder.decode(tokens, decoder.empty_cache(pads, 8))[0]

        dtype = jnp.dtype(precision)
        weights = int8_for_decoding(params, shape, dtype, replicated(mesh), transposed)
        found, expected, full = (
            logits(generators[1], weights),
            logits(generators[0], params | stood_for),
            logits(generators[0], for_decoding(params, dtype, transposed)),
        )
        allowed = {"float64": 1e-12, "float32": 1e-5}[precision] * np.abs(expected).max()
        assert np.abs(found - expected).max() <= allowed
        assert np.abs(full - expected).max() > 10 * allowed
        end = TRANSPOSED if transposed else ""
        held = jnp.int8 if transposed else dtype  # XLA would convert the values for every token of several sequences
        assert all(weights[f"{name}.kernel{end}"].dtype == held for name in layers)
        assert weights["embed_tokens.weight"] is params["embed_tokens.weight"]
