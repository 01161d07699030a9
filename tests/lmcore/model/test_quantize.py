"""Int8 values and scales: their formula, their error, what is quantized, and what is refused."""

from dataclasses import replace

import numpy as np
import pytest

from lmcore.config import LoraConfig, ModelConfig
from lmcore.errors import UserError
from lmcore.model.quantize import check_format, dequantize, quantize, quantized_layers

FLOAT64 = np.dtype(np.float64)


def test_the_largest_weight_of_a_channel_is_127_and_halves_round_to_even():
    weight = np.array([[127.0, -0.5, 1.5, 2.5], [0.0, -254.0, 3.0, 1.0]], np.float32)
    values, scales = quantize(weight)
    assert scales.tolist() == [1, 2]
    assert values.tolist() == [[127, 0, 2, 2], [0, -127, 2, 0]]
    assert (values.dtype, scales.dtype) == (np.int8, np.float32)


def test_a_weight_is_within_half_a_scale_of_its_own_channel():
    rng = np.random.default_rng(0)
    weight = (rng.normal(size=(9, 50)) * np.logspace(-6, 2, 9)[:, None]).astype(np.float32)
    quantized = quantize(weight)
    error = np.abs(dequantize(quantized, FLOAT64) - weight).max(axis=1)
    np.testing.assert_array_less(error, quantized.scales * 0.50001)
    whole = quantize(weight.reshape(1, -1))
    assert np.abs(dequantize(whole, FLOAT64).reshape(weight.shape) - weight)[0].max() > 100 * error[0]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_layout_and_dtype_of_the_same_weights_change_nothing(dtype: type):
    weight = np.random.default_rng(0).normal(size=(7, 5)).astype(np.float32)
    one, other = quantize(weight), quantize(np.asfortranarray(weight.astype(dtype)))
    assert all(a.tobytes() == b.tobytes() for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("weight", [0.0, 1e-45, 3e-44])
def test_zeros_and_the_smallest_floats_stay_in_range(weight: float):
    values, scales = quantize(np.full((1, 3), weight, np.float32))
    assert np.isfinite(scales).all()
    assert np.abs(values.astype(int)).max() <= 127
    assert np.abs(dequantize((quantize(np.full((1, 3), weight, np.float32))), FLOAT64)).max() <= 2 * weight


@pytest.mark.parametrize("weight", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_shows_in_its_channel(weight: float):
    quantized = quantize(np.array([[1.0, weight], [1.0, 2.0]], np.float32))
    assert not np.isfinite(quantized.scales[0])
    assert np.isfinite(quantized.scales[1])


def test_all_kernels_and_the_output_head_are_quantized_with_adapters_merged():
    lora = LoraConfig(rank=2, alpha=6.0, targets=["q_proj"])
    config = ModelConfig(vocab_size=7, dim=4, n_layers=1, n_heads=2, ffn_dim=6, tie_embeddings=True, lora=lora)
    rng = np.random.default_rng(0)
    layer = "layers.0.self_attn.q_proj"
    params = {
        f"{layer}.kernel": rng.normal(size=(4, 8)),
        f"{layer}.lora_A.kernel": rng.normal(size=(4, 2)),
        f"{layer}.lora_B.kernel": rng.normal(size=(2, 8)),
        "embed_tokens.weight": rng.normal(size=(7, 4)),
        "norm.weight": np.ones(4),
    }
    layers = quantized_layers(params, config)
    assert layers.keys() == {layer, "lm_head"}
    w, a, b = (params[f"{layer}.{name}kernel"] for name in ("", "lora_A.", "lora_B."))
    np.testing.assert_allclose(dequantize(layers[layer], FLOAT64), (w + 3 * a @ b).T, atol=0.1)
    np.testing.assert_allclose(dequantize(layers["lm_head"], FLOAT64), params["embed_tokens.weight"], atol=0.02)
    assert "lm_head" not in quantized_layers(params, replace(config, tie_embeddings=False))


def test_a_split_model_and_float16_are_refused():
    check_format("full", "float16", split=True)
    check_format("int8", "bfloat16", split=False)
    with pytest.raises(UserError, match=r"--weights: found int8 for a model that is split over devices, expected full"):
        check_format("int8", "float32", split=True)
    with pytest.raises(UserError, match=r"found int8 with --precision float16.*expected --precision bfloat16"):
        check_format("int8", "float16", split=False)
