"""Faults of the optimizer do what their names say: hand-computed clips, decays and rates."""

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

import jaxlm.optim
from parity.check.selftest.faults import optimizer
from torchlm.optim import clip_by_global_norm


def test_each_gradient_is_clipped_by_its_own_norm():
    parameters = [torch.nn.Parameter(torch.zeros(1)) for _ in range(2)]
    for p, grad in zip(parameters, (3.0, 0.5)):
        p.grad = torch.tensor([grad])
    norm = optimizer.per_tensor(clip_by_global_norm)(parameters, 1.0)
    assert float(norm) == pytest.approx(np.hypot(3.0, 0.5))
    assert [float(p.grad) for p in parameters] == pytest.approx([1.0, 0.5], rel=1e-5)


def test_a_clip_without_eps_divides_by_the_norm_alone():
    clip = jaxlm.optim.clip_by_global_norm
    grads = {"w": jnp.array([3e-6, 4e-6])}
    (healthy, _), (faulty, norm) = clip(grads, 1e-6), optimizer.no_clip_eps(clip)(grads, 1e-6)
    assert float(norm) == pytest.approx(5e-6)
    np.testing.assert_allclose(faulty["w"], [0.6e-6, 0.8e-6], rtol=1e-5)
    np.testing.assert_allclose(healthy["w"], [0.5e-6, 2e-6 / 3], rtol=1e-5)  # 1e-6 is added to the norm


def test_decay_is_added_to_the_gradient():
    """Adam's first update is lr, whatever the gradient's size; decoupled decay takes lr times decay from it too."""

    def after_one_update(make: Callable[..., torch.optim.Optimizer]) -> float:
        p = torch.nn.Parameter(torch.ones(1, dtype=torch.float64))
        p.grad = torch.full_like(p, 2.0)
        make([p], lr=0.1, weight_decay=0.5, eps=0.0).step()
        return float(p.detach())

    assert after_one_update(torch.optim.AdamW) == pytest.approx(1 - 0.1 * 0.5 - 0.1)
    assert after_one_update(optimizer.coupled(torch.optim.AdamW)) == pytest.approx(1 - 0.1)


def test_adams_numbers_are_swapped_moved_and_left_uncorrected():
    grads = {"w": jnp.array([2.0])}

    def first(make: object, b1: float = 0.9, b2: float = 0.99, eps: float = 1.0) -> float:
        transform = make(b1, b2, eps)
        return float(transform.update(grads, transform.init(grads))[0]["w"][0])

    assert first(optax.scale_by_adam) == pytest.approx(2 / (2 + 1))
    assert first(optimizer.eps_inside(optax.scale_by_adam)) == pytest.approx(2 / np.sqrt(4 + 1))
    transform = optimizer.betas_swapped(optax.scale_by_adam)(0.9, 0.99, 1.0)
    _, state = transform.update(grads, transform.init(grads))
    assert float(state.mu["w"][0]) == pytest.approx(0.01 * 2), "β2 where β1 was"
    assert optimizer.uncorrected(None)("moment", 0.9, 1) == "moment"
    assert optimizer.decays_all(None)({"norm.weight": 0, "w": 0}) == {"norm.weight": True, "w": True}


def test_rates_come_late_or_are_off_from_the_sixth_update_on():
    rates: list[float] = []
    p = torch.nn.Parameter(torch.ones(1))
    adam = torch.optim.AdamW([p])

    def apply(_: object, lr: float, scaler: object = None) -> None:
        rates.append(lr)
        p.grad = torch.ones(1)
        adam.step()

    p.grad = torch.ones(1)
    adam.step()
    late = optimizer.late_warmup(apply)
    for lr in (0.1, 0.2, 0.3):
        late(adam, lr)
    assert rates == [0.0, 0.1, 0.2]
    faster = optimizer.faster_later(2.0)(apply)
    faster(adam, 0.5)  # after four updates
    faster(adam, 0.5)
    assert rates[3:] == [0.5, 1.0]


def test_gradients_pile_up_where_none_is_zeroed():
    p = torch.nn.Parameter(torch.ones(1))
    made = torch.optim.AdamW([p])
    for _ in range(2):
        optimizer.piles_up(torch.optim.AdamW.zero_grad)(made)
        (3 * p).backward()
    assert float(p.grad) == 6
