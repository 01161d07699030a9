"""float32 sums that must be as exact as float32 can be: a bias in them drives a whole training run off its course."""

import numpy as np
import torch

from torchlm.fast.loss import HeadLoss
from torchlm.optim import clip_by_global_norm


def test_the_norm_of_a_large_gradient_is_exact() -> None:
    p = torch.nn.Parameter(torch.zeros(1200, 1000))
    p.grad = 1e-4 * torch.from_numpy(np.random.default_rng(0).standard_normal((1200, 1000), np.float32))
    exact = float(p.grad.double().norm())
    assert abs(float(torch.linalg.vector_norm(p.grad)) / exact - 1) > 1e-6, "torch's own will do again"
    assert abs(float(clip_by_global_norm([p], 0.0)) / exact - 1) < 2e-7


def test_the_loss_of_a_model_that_is_sure_is_exact() -> None:
    rng = np.random.default_rng(0)
    weight, targets = 4 * rng.standard_normal((2048, 2048)), torch.from_numpy(rng.integers(2048, size=512))
    weight[targets, np.arange(512)] += 20
    found = {}
    for dtype in (torch.float64, torch.float32):
        head = torch.from_numpy(weight.astype(np.float32)).to(dtype).requires_grad_()
        loss = HeadLoss.apply(torch.eye(2048, dtype=dtype)[:512], head, targets, targets >= 0, 256, dtype)
        loss.backward()
        found[dtype] = loss.item(), head.grad.double()
    (exact, exact_grad), (rounded, rounded_grad) = found.values()
    assert exact / 512 < 0.4
    assert abs(rounded / exact - 1) < 2.5e-7
    assert (rounded_grad - exact_grad).norm() / exact_grad.norm() < 5e-7
