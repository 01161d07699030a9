"""Updates of optax and torch agree, or the first that does not is named; so do curves, within what rounding makes."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from torch import nn

from parity import compare
from parity.difference import compare_all
from parity.ports.judging import KNOWN, ZERO, _without_zeros

RNG = np.random.default_rng(0)
X = RNG.standard_normal((6, 5))
BATCHES = [(RNG.standard_normal((6, 5)),) for _ in range(16)]
PARAMS = {"w": RNG.standard_normal((5, 7)), "b": RNG.standard_normal(7), "out": RNG.standard_normal((7, 3))}
NAMES: dict = {"w": ("0.weight", (1, 0)), "b": "0.bias", "out": ("2.weight", (1, 0))}
LOSSES = (lambda y: (y**2).mean(), lambda y: (y**2).mean())


def network(params: dict, x: jax.Array) -> jax.Array:
    return jnp.tanh(x @ params["w"] + params["b"][None]) @ params["out"]


def module() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3, bias=False))


def trained(transformation, make, **options):
    return compare(
        network, module(), X, params=PARAMS, names=NAMES, losses=LOSSES, optimizers=(transformation, make), **options
    )


SAME = [
    (optax.adamw(1e-2, weight_decay=0.1), lambda p: torch.optim.AdamW(p, lr=1e-2, weight_decay=0.1), {"mu", "nu"}),
    (optax.adam(1e-2, b2=0.99), lambda p: torch.optim.Adam(p, lr=1e-2, betas=(0.9, 0.99)), {"mu", "nu"}),
    (optax.sgd(1e-2, momentum=0.9), lambda p: torch.optim.SGD(p, lr=1e-2, momentum=0.9), {"trace"}),
    (optax.sgd(1e-2), lambda p: torch.optim.SGD(p, lr=1e-2), set()),
    (
        optax.rmsprop(1e-2, decay=0.99, eps_in_sqrt=False),
        lambda p: torch.optim.RMSprop(p, lr=1e-2),
        {"nu"},
    ),
    (
        optax.adagrad(1e-2, initial_accumulator_value=0.0, eps=0.0),
        lambda p: torch.optim.Adagrad(p, lr=1e-2, eps=0.0),
        {"sum_of_squares"},
    ),
]


@pytest.mark.parametrize(
    ("transformation", "make", "moments"), SAME, ids=["adamw", "adam", "momentum", "sgd", "rmsprop", "adagrad"]
)
def test_equal_optimizers_update_alike_to_every_moment(transformation, make, moments: set[str]):
    report = trained(transformation, make)
    assert report, str(report)
    updates = [result for result in report.results if result.rung == 6]
    assert updates[0].what == "parameters, 3 updates"
    found = {difference.name.split()[0] for result in updates[1:] for difference in result.differences}
    assert found == moments


@pytest.mark.parametrize("name", ["AdamW", "RMSprop", "Adagrad"])
def test_the_defaults_of_the_libraries_differ_and_the_cause_is_named(name: str):
    failure = trained(
        getattr(optax, name.lower())(1e-2), lambda p: getattr(torch.optim, name)(p, lr=1e-2)
    ).first_failure
    assert (failure.rung, failure.first) == (6, "b (update 1)")
    assert f"a usual cause: {KNOWN[name]}" in failure.note


@pytest.mark.parametrize(
    ("make", "first"),
    [
        (lambda p: torch.optim.Adam(p, lr=1e-2, eps=1e-7), {"parameters": "b (update 1)"}),
        (
            lambda p: torch.optim.Adam(p, lr=1e-2, betas=(0.9, 0.9991)),
            {"parameters": "b (update 2)", "moments": "nu of b (update 1)"},  # the first update is g / |g|
        ),
    ],
    ids=["eps", "beta2"],
)
def test_a_constant_that_is_off_shows_in_the_first_update_that_depends_on_it(make, first: dict[str, str]):
    failed = [result for result in trained(optax.adam(1e-2), make).results if not result.ok]
    assert {result.what.partition(",")[0]: result.first for result in failed} == first


def test_curves_of_equal_ports_stay_together_and_a_later_schedule_is_found():
    options = {"batches": BATCHES}
    report = trained(optax.adam(1e-2), lambda p: torch.optim.Adam(p, lr=1e-2), **options)
    assert report, str(report)
    curve = report.results[-1]
    assert (curve.rung, curve.what.split(", loss")[0]) == (7, "training, 16 steps")
    assert set(curve.curves) == {"jax", "torch", "floor", "highest"}
    schedule = optax.piecewise_constant_schedule(1e-2, {8: 0.999})
    late = trained(optax.adam(schedule), lambda p: torch.optim.Adam(p, lr=1e-2), **options)
    assert late.first_failure.rung == 7, "the first updates are the same"


def test_only_a_gradient_of_the_size_of_its_own_rounding_counts_as_zero():
    ours, noise = {"b": np.array([1e-17, -3e-17])}, {"grads/b": 4e-17}
    for values, note in (([4e-17, 2e-17], ZERO), ([1e-14, 0.0], ""), ([0.1, 0.0], "")):
        theirs = {"b": np.array(values)}
        [found] = _without_zeros(compare_all(ours, theirs), ours, theirs, noise)
        assert found.note == note
        assert (found.max_rel == 0) == bool(note)


def test_values_in_16_bits_are_held_against_what_one_ulp_changes():
    report = compare(network, module(), X, params=PARAMS, names=NAMES, dtype="bfloat16")
    assert report, str(report)
    assert {result.verdict for result in report.results} == {"pass"}
    off = compare(lambda p, x: network(p, 1.2 * x), module(), X, params=PARAMS, names=NAMES, dtype="bfloat16")
    assert off.first_failure.limit == "4 × one ulp's change"


def test_a_parameter_that_both_sides_leave_alone_is_no_difference():
    def stopped(params: dict, x: jax.Array) -> jax.Array:
        return network(params | {"b": jax.lax.stop_gradient(params["b"])}, x)

    frozen = module()
    frozen[0].bias.requires_grad_(False)
    report = compare(stopped, frozen, X, params=PARAMS, names=NAMES)
    assert report, str(report)
    assert compare(stopped, module(), X, params=PARAMS, names=NAMES).first_failure.first == "b"
    assert compare(network, frozen, X, params=PARAMS, names=NAMES), "asked for on one side alone: compared"


def test_the_curve_of_a_model_that_computes_in_float32_inside_is_held_against_an_ulp_of_float32():
    class Narrow(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.tanh(x.float()).to(x.dtype)

    def narrow(params: dict, x: jax.Array) -> jax.Array:
        hidden = jnp.tanh((x @ params["w"] + params["b"][None]).astype(jnp.float32)).astype(x.dtype)
        return hidden @ params["out"]

    port = nn.Sequential(nn.Linear(5, 7), Narrow(), nn.Linear(7, 3, bias=False))
    given = {"params": PARAMS, "names": NAMES, "losses": LOSSES, "batches": BATCHES, "search_seconds": 0}
    for rate, same in ((1e-2, True), (1.01e-2, False)):
        optimizers = optax.sgd(1e-2), lambda p, rate=rate: torch.optim.SGD(p, lr=rate)
        report = compare(narrow, port, X, optimizers=optimizers, **given)
        curve = report.results[-1]
        assert curve.rung == 7
        assert curve.ok == same, str(report)
