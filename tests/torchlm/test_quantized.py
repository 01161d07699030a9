"""Layers with int8 weights against their formula, by each of torch's ways to compute it."""

import numpy as np
import pytest
import torch

from lmcore.model.quantize import dequantize, quantize
from torchlm.fast import linear as module
from torchlm.fast.linear import MAX_INT8_ROWS, int8_linear, keeps_int8
from torchlm.quantized import Int8BiasedLinear, Int8Linear

CPU = torch.device("cpu")


@pytest.mark.parametrize("inputs", [32, 36])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1, 1), (2, 2), (1, 9), (7, 1)])
@pytest.mark.parametrize("instructions", [True, False])
def test_a_layer_is_its_formula(
    inputs: int, dtype: torch.dtype, shape: tuple[int, int], instructions: bool, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(module, "CPU_BFLOAT16", instructions)
    rng = np.random.default_rng(0)
    quantized, bias = quantize(rng.normal(size=(10, inputs))), torch.from_numpy(rng.normal(size=10))
    x = torch.from_numpy(rng.normal(size=(*shape, inputs))).to(dtype)
    expected = x.double() @ torch.from_numpy(dequantize(quantized, np.dtype(np.float64))).T
    tolerance = {torch.float64: 1e-13, torch.float32: 1e-5, torch.bfloat16: 2**-6}[dtype] * expected.abs().max()
    with torch.inference_mode():
        plain = Int8Linear(quantized, dtype, CPU)(x)
        biased = Int8BiasedLinear(quantized, dtype, CPU, bias.to(dtype))(x)
    assert plain.dtype == biased.dtype == dtype
    assert (plain.double() - expected).abs().max() <= tolerance
    assert (biased.double() - expected - bias).abs().max() <= 2 * tolerance
    assert (plain.double() - expected * 1.05).abs().max() > tolerance


@pytest.mark.skipif(not keeps_int8(32, CPU, torch.bfloat16), reason="no bfloat16 matmuls on this processor")
def test_the_operator_for_int8_and_the_plain_matmul_agree_and_inputs_it_would_read_past_are_not_its():
    rng = np.random.default_rng(0)
    values, scales = (torch.from_numpy(array) for array in quantize(rng.normal(size=(61, 48))))
    x = torch.from_numpy(rng.normal(size=(MAX_INT8_ROWS, 48))).bfloat16()
    packed, plain = int8_linear(x, values, scales), int8_linear(x, values.bfloat16(), scales)
    assert (packed.float() - plain.float()).abs().max() <= 2**-7 * plain.abs().max()
    assert not torch.equal(packed, int8_linear(x, values.flip(0), scales))
    assert not keeps_int8(36, CPU, torch.bfloat16)
    assert not keeps_int8(48, CPU, torch.float32)
