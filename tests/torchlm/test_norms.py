"""The alternatives to RMSNorm against their formulas."""

import numpy as np
import torch

from torchlm.norms import LayerNorm, NoNorm, ZeroCenteredRMSNorm


def draws(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)


def layer_norm(weight: np.ndarray, bias: np.ndarray, eps: float, dtype: torch.dtype) -> LayerNorm:
    norm = LayerNorm(len(weight), eps).to(dtype)
    norm.weight.data, norm.bias.data = torch.from_numpy(weight).to(dtype), torch.from_numpy(bias).to(dtype)
    return norm


def test_layernorm_is_its_formula_with_eps_inside_the_root():
    x, weight, bias = draws(2, 3, 20) * 0.1 + 1, draws(20, seed=1), draws(20, seed=2)
    centred = x - x.mean(-1, keepdims=True)
    variance = (centred**2).mean(-1, keepdims=True)
    found = layer_norm(weight, bias, 1e-2, torch.float64)(torch.from_numpy(x)).detach().numpy()
    np.testing.assert_allclose(found, centred / np.sqrt(variance + 1e-2) * weight + bias, rtol=0, atol=1e-12)
    assert np.abs(found - (centred / (np.sqrt(variance) + 1e-2) * weight + bias)).max() > 1e-2


def test_layernorm_computes_in_float32_and_rounds_to_the_dtype_of_x():
    weight, bias = draws(20, seed=1), draws(20, seed=2)
    x = torch.from_numpy(draws(2, 3, 20) + 30).to(torch.bfloat16)
    norm = layer_norm(weight, bias, 1e-5, torch.float32)
    assert norm(x).dtype == torch.bfloat16
    assert torch.equal(norm(x), norm(x.float()).to(torch.bfloat16))
    rounded = layer_norm(weight, bias, 1e-5, torch.bfloat16)(x)
    assert not torch.equal(norm(x), rounded), "sums in bfloat16 are others"


def test_without_a_norm_x_is_passed_on_and_nothing_is_trained():
    x, none = torch.from_numpy(draws(2, 3)), NoNorm(3, 1e-5)
    assert none(x) is x
    assert list(none.parameters()) == []


def test_a_zero_centered_norm_multiplies_by_one_more_than_its_weight():
    x, weight = draws(2, 3, 20), draws(20, seed=1)
    norm = ZeroCenteredRMSNorm(20, 1e-2).double()
    expected = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-2)
    np.testing.assert_allclose(norm(torch.from_numpy(x)).detach(), expected, rtol=0, atol=1e-12)
    norm.weight.data = torch.from_numpy(weight)
    np.testing.assert_allclose(norm(torch.from_numpy(x)).detach(), expected * (1 + weight), rtol=0, atol=1e-12)
