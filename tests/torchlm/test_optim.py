"""Clip and AdamW against their formulas in NumPy; what a gradient scaler rejects changes nothing."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from lmcore.config import OptimConfig
from torchlm.optim import apply_updates, clip_by_global_norm, decay_mask, make_optimizer, muon_mask

CONFIG = OptimConfig(beta1=0.9, beta2=0.95, eps=1e-3, weight_decay=0.3)


def parameters() -> dict[str, nn.Parameter]:
    rng = np.random.default_rng(0)
    shapes = {"w": (3, 5), "norm": (5,)}
    params = {name: nn.Parameter(torch.from_numpy(rng.normal(size=shape))) for name, shape in shapes.items()}
    for p in params.values():
        p.grad = torch.from_numpy(rng.normal(size=tuple(p.shape)))
    return params


@pytest.mark.parametrize("max_norm", [0, 0.5, 100])
def test_clip_is_global_and_zero_does_not_clip(max_norm: float):
    params = parameters()
    before = {name: p.grad.clone() for name, p in params.items()}
    norm = float(np.sqrt(sum(float((g**2).sum()) for g in before.values())))
    assert float(clip_by_global_norm(params.values(), max_norm)) == pytest.approx(norm, rel=1e-12)
    scale = min(1, max_norm / (norm + 1e-6)) if max_norm else 1
    for name, p in params.items():
        torch.testing.assert_close(p.grad, before[name] * scale, rtol=1e-12, atol=0)
    assert (scale == 1) == torch.equal(params["w"].grad, before["w"])


def test_two_updates_are_adamw_with_decay_on_the_matrix_only():
    params = parameters()
    values, grads = ({n: x.detach().numpy().copy() for n, x in part.items()} for part in (params, _grads(params)))
    optimizer = make_optimizer(CONFIG, params)
    mean, square = ({n: np.zeros_like(v) for n, v in values.items()} for _ in range(2))
    for t, lr in ((1, 0.1), (2, 0.02)):
        apply_updates(optimizer, lr)
        for n, g in grads.items():
            mean[n] = 0.9 * mean[n] + 0.1 * g
            square[n] = 0.95 * square[n] + 0.05 * g**2
            direction = mean[n] / (1 - 0.9**t) / (np.sqrt(square[n] / (1 - 0.95**t)) + 1e-3)
            decay = 0.3 if n == "w" else 0
            values[n] = values[n] - lr * (direction + decay * values[n])
    for n, p in params.items():
        np.testing.assert_allclose(p.detach().numpy(), values[n], rtol=1e-12)
        np.testing.assert_allclose(optimizer.state[p]["exp_avg_sq"].numpy(), square[n], rtol=1e-12)
    assert not np.allclose(params["norm"].detach().numpy(), values["norm"] * (1 - 0.3 * 0.02), rtol=1e-4)


def _grads(params: dict[str, nn.Parameter]) -> dict[str, torch.Tensor]:
    return {n: p.grad for n, p in params.items()}


def test_decay_mask_takes_matrices():
    assert decay_mask(parameters()) == {"w": True, "norm": False}


def test_muon_takes_the_matrices_of_the_blocks():
    shapes = {"embed_tokens.weight": (4, 3), "layers.0.mlp.up_proj.weight": (3, 4), "layers.0.bias": (4,)}
    params = {name: nn.Parameter(torch.zeros(shape)) for name, shape in shapes.items()}
    assert [name for name, taken in muon_mask(params).items() if taken] == ["layers.0.mlp.up_proj.weight"]


@pytest.mark.parametrize("name", ["adamw", "adafactor", "muon", "lion", "sgd"])
def test_a_scaler_leaves_out_an_update_with_infinite_gradients_and_lowers_its_scale(name: str):
    """All of the update, also where the infinite gradient is that of another parameter, or of Muon's other half."""
    params = {"w": nn.Parameter(torch.ones(2, 2)), "layers.0.w": nn.Parameter(torch.ones(2, 2))}
    optimizer = make_optimizer(replace(CONFIG, name=name), params)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0, growth_interval=2)

    def update(factor: float) -> float:
        optimizer.zero_grad()
        scaler.scale((params["w"] * factor + params["layers.0.w"]).sum()).backward()
        scaler.unscale_(optimizer)
        clip_by_global_norm(params.values(), 1.0)
        apply_updates(optimizer, 0.1, scaler)
        return scaler.get_scale()

    assert update(torch.inf) == 4.0
    for p in params.values():
        assert torch.equal(p, torch.ones(2, 2))
        assert not any(kept.any() for kept in optimizer.state[p].values())
    assert update(1.0) == 4.0
    assert update(1.0) == 8.0
    for p in params.values():
        assert not torch.equal(p, torch.ones(2, 2))
        assert all(kept.any() for kept in optimizer.state[p].values())
        assert float(optimizer.state[p].get("step", 2)) == 2
