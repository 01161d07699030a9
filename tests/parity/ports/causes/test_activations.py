"""Faults in activations are named, whether torch's functions compute them or a formula does."""

import math

import jax
import jax.numpy as jnp
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.parity.ports.causes.pairs import normal, suggested

D = 6
X = normal(5, D)
PARAMS = {"one": normal(D, 7), "two": normal(7, 3)}
NAMES = {"one": ("one.weight", (1, 0)), "two": ("two.weight", (1, 0))}


class Network(nn.Module):
    def __init__(self, act):
        super().__init__()
        self.one, self.two, self.act = nn.Linear(D, 7, bias=False), nn.Linear(7, 3, bias=False), act

    def forward(self, x):
        return self.two(self.act(self.one(x)))


class Formula(nn.Module):
    def __init__(self, formula):
        super().__init__()
        self.formula = formula

    def forward(self, x):
        return self.formula(x)


def network(act):
    return lambda params, x: act(x @ params["one"]) @ params["two"]


def quick_gelu(x):
    return x * jax.nn.sigmoid(1.702 * x)


def exact(x):
    return jax.nn.gelu(x, approximate=False)


def by_tanh(x):
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * torch.pow(x, 3.0))))


CASES = [
    (jax.nn.gelu, nn.GELU(), "GELU -> tanh GELU"),
    (exact, nn.GELU(approximate="tanh"), "tanh GELU -> GELU"),
    (jax.nn.silu, nn.GELU(), "GELU -> SiLU"),
    (exact, nn.SiLU(), "SiLU -> GELU"),
    (exact, nn.ReLU(), "ReLU -> GELU"),
    (jax.nn.relu, nn.GELU(), "GELU -> ReLU"),
    (quick_gelu, nn.GELU(), "GELU -> quick GELU"),
    (lambda x: jax.nn.leaky_relu(x, 0.01), nn.LeakyReLU(0.2), "slope 0.2 -> 0.01"),
    (lambda x: jax.nn.leaky_relu(x, 0.2), nn.ReLU(), "ReLU -> leaky ReLU of slope 0.2"),
    (exact, Formula(by_tanh), "tanh GELU -> GELU"),
    (jax.nn.gelu, Formula(lambda x: x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))), "GELU -> tanh GELU"),
    (exact, Formula(lambda x: x * torch.sigmoid(1.702 * x)), "quick GELU -> GELU"),
    (jax.nn.gelu, Formula(lambda x: x * x.sigmoid()), "SiLU -> tanh GELU"),
    (jax.nn.gelu, Formula(F.silu), "SiLU -> tanh GELU"),
]


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize(("ours", "theirs", "said"), CASES, ids=[said for *_, said in CASES])
def test_an_activation_is_named(ours, theirs, said: str, whole: bool):
    found = suggested(network(ours), PARAMS, Network(theirs), NAMES, X, whole=whole)
    assert len(found) == 1, found
    assert found[0].startswith(f"likely: {said} in act (agrees "), found


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (jax.nn.softplus, nn.ReLU()),
        (jax.nn.elu, nn.GELU()),
        (jnp.tanh, nn.SiLU()),
        (lambda x: x * jnp.tanh(jax.nn.softplus(x)), nn.SiLU()),
        (lambda x: x * jax.nn.sigmoid(1.6 * x), nn.GELU()),
        (lambda x: jax.nn.leaky_relu(x, 0.17), nn.LeakyReLU(0.2)),
        (jax.nn.hard_swish, nn.SiLU()),
    ],
    ids=["softplus", "elu", "tanh", "mish", "sigmoid of 1.6 x", "slope 0.17", "hard swish"],
)
@pytest.mark.parametrize("whole", [False, True])
def test_an_activation_that_is_not_usual_is_not_named(ours, theirs, whole: bool):
    assert suggested(network(ours), PARAMS, Network(theirs), NAMES, X, whole=whole) == []
