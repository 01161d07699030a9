"""Faults in norms are named: eps, unbiased variance, axes, and BatchNorm's statistics."""

import flax.linen as linen
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch import nn

from tests.parity.ports.causes.pairs import normal, suggested

D = 6
X = 0.1 * normal(3, 5, D)
KERNELS = {"one": normal(D, D), "two": normal(D, D)}
SCALES = {"norm1": {"scale": 1 + 0.1 * normal(D)}, "norm2": {"scale": 1 + 0.1 * normal(D)}}


def normalized(x, scale, eps, *, mean=True, ddof=0, axis=-1):
    x = x - x.mean(axis, keepdims=True) if mean else x
    variance = (x**2).sum(axis, keepdims=True) / (x.shape[axis] - ddof)
    return x / jnp.sqrt(variance + eps) * scale


def network(eps=1e-6, second=None, **options):
    def run(params, x):
        h = jnp.tanh(normalized(x, params["norm1"]["scale"], eps, **options) @ params["one"])
        return normalized(h, params["norm2"]["scale"], eps if second is None else second, **options) @ params["two"]

    return run


NAMES = {
    "norm1.scale": "norm1.weight",
    "norm2.scale": "norm2.weight",
    "one": ("one.weight", (1, 0)),
    "two": ("two.weight", (1, 0)),
}
PARAMS = KERNELS | SCALES


class Network(nn.Module):
    def __init__(self, norm, other=None):
        super().__init__()
        self.norm1, self.norm2 = norm(), (other or norm)()
        self.one, self.two = nn.Linear(D, D, bias=False), nn.Linear(D, D, bias=False)

    def forward(self, x):
        return self.two(self.norm2(torch.tanh(self.one(self.norm1(x)))))


def layer_norm(eps):
    return lambda: nn.LayerNorm(D, eps=eps, bias=False)


class WrittenNorm(nn.Module):
    """A norm as people write it by hand, in one of several ways."""

    def __init__(self, way, eps=1e-5):
        super().__init__()
        self.weight, self.way, self.eps = nn.Parameter(torch.ones(D)), way, eps

    def forward(self, x):
        if self.way == "rms":
            return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps) * self.weight
        if self.way == "no eps":
            return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True)) * self.weight
        x = x - x.mean(1 if self.way == "axis" else -1, keepdim=True)
        if self.way == "beside":
            return x / (x.std(-1, keepdim=True, unbiased=False) + self.eps) * self.weight
        if self.way == "axis":
            return x / torch.sqrt(x.var(1, keepdim=True, correction=0) + self.eps) * self.weight
        return x / torch.sqrt(x.var(-1, keepdim=True) + self.eps) * self.weight


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize(("ours", "theirs"), [(1e-6, 1e-5), (1e-5, 1e-6), (1e-5, 1e-3), (1e-12, 1e-5), (0.0, 1e-8)])
def test_the_eps_of_all_norms_is_named(ours: float, theirs: float, whole: bool):
    [said] = suggested(network(ours), PARAMS, Network(layer_norm(theirs)), NAMES, X, whole=whole)
    assert said.startswith(f"likely: eps {theirs:g} -> {ours:g} in norm1 and norm2 (agrees "), said


@pytest.mark.parametrize("place", [1, 2])
def test_the_eps_of_one_norm_is_named_with_its_place(place: int):
    eps = {place: 1e-5}
    module = Network(layer_norm(eps.get(1, 1e-6)), layer_norm(eps.get(2, 1e-6)))
    [said] = suggested(network(1e-6), PARAMS, module, NAMES, X)
    assert said.startswith(f"likely: eps 1e-05 -> 1e-06 in norm{place} ("), said


def test_two_different_faults_are_named_together():
    module = Network(layer_norm(1e-5), layer_norm(1e-3))
    [said] = suggested(network(1e-6), PARAMS, module, NAMES, X)
    assert "eps 1e-05 -> 1e-06 in norm1" in said, said
    assert "eps 0.001 -> 1e-06 in norm2" in said, said
    assert "when all are changed" in said, said


def test_torchs_rms_norm_without_an_eps_has_one():
    module = Network(lambda: nn.RMSNorm(D))
    [said] = suggested(network(1e-6, mean=False), PARAMS, module, NAMES, X)
    assert "-> 1e-06 in norm1 and norm2" in said, said


@pytest.mark.parametrize(
    ("way", "options", "said"),
    [
        ("rms", {"mean": False}, "eps 1e-05 -> 1e-06 in norm1 and norm2"),
        ("no eps", {"mean": False}, "eps none -> 1e-06 in norm1 and norm2"),
        ("var", {"eps": 1e-5}, "correction 1 -> 0 of var in norm1 and norm2"),
        ("beside", {"eps": 1e-5}, "eps beside the root -> inside in norm1 and norm2"),
        ("axis", {"eps": 1e-5}, "normalized over axis -2 -> -1 in norm1 and norm2"),
    ],
)
def test_norms_that_are_written_by_hand_are_named(way: str, options: dict, said: str):
    found = suggested(network(**options), PARAMS, Network(lambda: WrittenNorm(way)), NAMES, X)
    assert len(found) == 1, found
    assert said in found[0], found


def test_a_norm_over_another_axis_is_named():
    x = 0.1 * normal(3, D, D)
    [said] = suggested(network(1e-5, axis=1), PARAMS, Network(layer_norm(1e-5)), NAMES, x)
    assert "normalized over axis -1 -> -2 in norm1 and norm2" in said, said


BATCH_NAMES = {"params.scale": "1.weight", "params.bias": "1.bias", "mean": "1.running_mean", "var": "1.running_var"}


def batch_norm(momentum: float, training: bool = True):
    norm = linen.BatchNorm(momentum=momentum, epsilon=1e-5, use_running_average=not training, dtype=jnp.float64)

    def run(params, x):
        y, new = norm.apply(
            {"params": params["params"], "batch_stats": {"mean": params["mean"], "var": params["var"]}},
            jnp.moveaxis(jnp.sin(x), 1, -1),
            mutable=["batch_stats"],
        )
        return {"y": jnp.moveaxis(y, -1, 1), **new["batch_stats"]}

    return run


class Sine(nn.Module):
    def forward(self, x):
        return torch.sin(x)


def batched(torch_momentum: float, jax_momentum: float, training: bool = True) -> list[str]:
    params = {"params": {"scale": 1 + 0.1 * normal(D), "bias": normal(D)}, "mean": normal(D), "var": np.exp(normal(D))}
    module = nn.Sequential(Sine(), nn.BatchNorm1d(D, momentum=torch_momentum))

    def call(module, x):
        y = module(x)
        return {"y": y, "mean": module[1].running_mean.clone(), "var": module[1].running_var.clone()}

    return suggested(
        batch_norm(jax_momentum),
        params,
        module,
        BATCH_NAMES,
        normal(3, D, 4),
        losses=(lambda out: (out["y"] ** 3).sum(), lambda out: (out["y"] ** 3).sum()),
        call_module=call,
        train=training,
    )


def test_the_running_variance_is_biased_in_flax():
    [said] = batched(0.1, 0.9)
    assert "running variance unbiased -> biased in 1 (" in said, said


def test_the_momentum_of_batch_norm_is_one_minus_flaxs():
    [said] = batched(0.9, 0.9)
    assert "BatchNorm momentum 0.9 -> 0.1 in 1" in said, said
    assert "running variance unbiased -> biased" in said, said


def test_statistics_of_the_batch_in_place_of_running_ones_are_named():
    [said] = batched(0.1, 0.9, training=False)
    assert "BatchNorm statistics running -> batch in 1" in said, said


def test_another_norm_altogether_is_not_named():
    def run(params, x):
        h = jnp.tanh(normalized(x, params["norm1"]["scale"], 1e-6, mean=False) @ params["one"])
        return jax.nn.standardize(h) * params["norm2"]["scale"] @ params["two"]

    assert suggested(run, PARAMS, Network(layer_norm(1e-6)), NAMES, X) == []
