"""The norm whose gradient is written out against the plain formula that runs where no gradient is asked for."""

import numpy as np
import pytest
import torch

from torchlm.fast.norms import rms_normed
from torchlm.model import RMSNorm

TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-6}


def draws(seed: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(2, 3, 20))).to(dtype)


def formula(x: torch.Tensor, eps: float) -> torch.Tensor:
    return x / torch.sqrt(torch.mean(x**2, dim=-1, keepdim=True) + eps)


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_the_gradient_is_that_of_the_formula(dtype: torch.dtype):
    def gradient(normed, eps: float, dtype: torch.dtype) -> torch.Tensor:
        x = (draws(0, dtype) * 0.1).requires_grad_()
        (normed(x, eps) * draws(1, dtype)).sum().backward()
        return x.grad.double()

    expected = gradient(formula, 1e-2, torch.float64)
    allowed = TOLERANCE[dtype] * expected.abs().max()
    assert (gradient(rms_normed, 1e-2, dtype) - expected).abs().max() <= allowed
    assert (gradient(rms_normed, 1.1e-2, dtype) - expected).abs().max() > 100 * allowed


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_training_and_evaluation_have_the_same_bits(dtype: torch.dtype):
    norm, x = RMSNorm(20, 1e-2).to(dtype), draws(0, dtype)
    trained = norm(x)
    with torch.no_grad():
        assert torch.equal(norm(x), trained)
        assert not torch.equal(RMSNorm(20, 1.1e-2).to(dtype)(x), trained)
    assert trained.grad_fn is not None
