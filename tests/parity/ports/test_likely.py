"""The causes that `compare` names: of values, of updates, and none where nothing usual explains the difference."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
from torch import nn

from parity import compare

RNG = np.random.default_rng(0)
X = RNG.standard_normal((6, 5))
PARAMS = {"w": RNG.standard_normal((5, 7)), "b": RNG.standard_normal(7), "out": RNG.standard_normal((7, 3))}
NAMES: dict = {"w": ("0.weight", (1, 0)), "b": "0.bias", "out": ("2.weight", (1, 0))}


def network(params: dict, x: jax.Array) -> jax.Array:
    return jax.nn.gelu(x @ params["w"] + params["b"][None]) @ params["out"]


def likely(act: nn.Module, function=network, decay: float = 1e-4, **options) -> tuple[str, ...]:
    module = nn.Sequential(nn.Linear(5, 7), act, nn.Linear(7, 3, bias=False))
    optimizers = (optax.adamw(1e-2), lambda p: torch.optim.AdamW(p, lr=1e-2, weight_decay=decay))
    report = compare(function, module, X, params=PARAMS, names=NAMES, optimizers=optimizers, **options)
    assert all(f"{sentence[1:]}." in str(report) for sentence in report.likely)
    return report.likely


def test_a_usual_cause_is_named_and_nothing_else():
    [said] = likely(nn.GELU())
    assert said.startswith("likely: GELU -> tanh GELU in 1 (agrees to ")
    assert likely(nn.GELU("tanh")) == ()
    assert likely(nn.GELU(), search_seconds=0) == ()
    assert likely(nn.GELU("tanh"), lambda p, x: jnp.sin(network(p, x))) == ()


def test_a_cause_of_updates_is_named():
    [said] = likely(nn.GELU("tanh"), decay=1e-2)
    assert said.startswith("likely: weight_decay 0.01 -> 0.0001 (agrees to ")


def test_a_cause_of_a_curve_is_named():
    batches = [(RNG.standard_normal((6, 5)),) for _ in range(12)]

    def halved(parameters):
        optimizer = torch.optim.Adam(parameters, lr=1e-2)
        return optimizer, torch.optim.lr_scheduler.StepLR(optimizer, 6, 0.5)

    module = nn.Sequential(nn.Linear(5, 7), nn.GELU("tanh"), nn.Linear(7, 3, bias=False))
    options = {"params": PARAMS, "names": NAMES, "batches": batches}
    report = compare(network, module, X, optimizers=(optax.adam(1e-2), halved), **options)
    assert report.first_failure.first == "loss at step 8", "the seventh update is the first of the halved rate"
    [said] = report.likely
    assert said.startswith("likely: schedule -> constant learning rate (agrees to ")
    late = optax.adam(optax.piecewise_constant_schedule(1e-2, {7: 0.5}))
    report = compare(network, module, X, optimizers=(late, halved), **options)
    assert report.first_failure.first == "loss at step 8"
    assert report.likely[0].startswith("likely: schedule -> one step later")
    assert compare(network, module, X, optimizers=(optax.adam(1e-2), lambda p: torch.optim.Adam(p, 1e-2)), **options)
