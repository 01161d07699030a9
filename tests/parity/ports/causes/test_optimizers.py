"""Faults of an optimizer are named: its options, the form of its decay, and what torch's classes do otherwise."""

from collections.abc import Callable
from dataclasses import replace

import jax
import numpy as np
import optax
import pytest
import torch
from torch import nn

from parity.compare import rows_of
from parity.difference import difference
from parity.ports.causes import likely_optimizer
from parity.ports.jax.models import adapt
from parity.ports.jax.port import JaxPort, jax_set_up
from parity.ports.recording import FACTORS
from parity.ports.side import Request
from parity.ports.torch.port import TorchPort
from parity.ports.translation import Translation
from parity.settings import jax_settings
from tests.parity.ports.causes.pairs import normal

PARAMS = {"w": normal(4, 3), "b": normal(3)}
GRADS = {"w": normal(4, 3), "b": normal(3)}
NAMES: dict = {"w": ("weight", (1, 0)), "b": "bias"}
ADAM, ADAMW, SGD = torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD
RMSPROP, ADAGRAD = torch.optim.RMSprop, torch.optim.Adagrad


def suggested(transformation: Callable, make: Callable, scale: float = 1.0) -> list[str]:
    request = Request(args=(), optimizer=transformation)
    with jax_settings(), jax.numpy_rank_promotion("allow"), jax_set_up(request):
        request = replace(request, optimizer=transformation())
        port = TorchPort(nn.Linear(4, 3), None, Request(args=(), optimizer=make))
        rows = rows_of(NAMES, PARAMS, port.weights, port.trained)
        to_torch, to_jax = Translation(rows, "torch"), Translation(rows, "jax")
        grads = {name: scale * grad for name, grad in GRADS.items()}
        ours = JaxPort(adapt(lambda params: 0.0, PARAMS, None, False), request).updates({}, grads, FACTORS)

        def run(make: Callable) -> list[float]:
            port.request = replace(port.request, optimizer=make)
            found = []
            for one, other in zip(
                ours, port.updates(to_torch.weights(PARAMS), to_torch.values(grads), FACTORS), strict=True
            ):
                pairs = [(one.params, other.params)]
                pairs += [(one.moments[kind], other.moments.get(kind, {})) for kind in one.moments]
                for left, right in ((left, to_jax.values(right)) for left, right in pairs):
                    found += [difference(name, left[name], right[name]).max_rel for name in left if name in right]
            return found

        if max(run(make)) <= 1e-11:
            raise AssertionError("they agree: there is nothing to suggest")
        return likely_optimizer(make, run)


def with_lr(kind: type, lr: float = 0.1, **options) -> Callable:
    return lambda params: kind(params, lr=lr, **options)


def matrices(params):
    return {"w": True, "b": False}


CASES = [
    ("eps", lambda: optax.adam(0.1, eps=1e-6), with_lr(ADAM), "eps 1e-08 -> 1e-06"),
    (
        "eps_root",
        lambda: optax.adam(0.1, eps=0.0, eps_root=1e-6),
        with_lr(ADAM),
        "eps 1e-08 beside the root -> 1e-06 in",
    ),
    ("second beta", lambda: optax.adam(0.1, b2=0.95), with_lr(ADAM), "beta2 0.999 -> 0.95"),
    (
        "both betas",
        lambda: optax.adam(0.1),
        with_lr(ADAM, betas=(0.5, 0.99)),
        "beta1 0.5 -> 0.9, and beta2 0.99 -> 0.999",
    ),
    (
        "decoupled",
        lambda: optax.adamw(0.1, weight_decay=0.1),
        with_lr(ADAM, weight_decay=0.1),
        "weight decay coupled -> d",
    ),
    (
        "coupled",
        lambda: optax.chain(optax.add_decayed_weights(0.1), optax.adam(0.1)),
        with_lr(ADAMW, weight_decay=0.1),
        "weight decay decoupled -> coupled",
    ),
    ("default decay", lambda: optax.adamw(0.1), with_lr(ADAMW), "weight_decay 0.01 -> 0.0001"),
    ("no decay", lambda: optax.adam(0.1), with_lr(ADAMW), "weight_decay 0.01 -> 0"),
    (
        "decay without lr",
        lambda: optax.chain(optax.scale_by_adam(), optax.scale(-0.1), optax.add_decayed_weights(-0.03)),
        with_lr(ADAMW, weight_decay=0.03),
        "weight_decay 0.03 -> divided by the learning rate",
    ),
    (
        "decay of matrices",
        lambda: optax.adamw(0.1, weight_decay=0.1, mask=matrices),
        with_lr(ADAMW, weight_decay=0.1),
        "weight decay of all -> of matrices only",
    ),
    (
        "sgd's decay",
        lambda: optax.chain(optax.trace(0.9), optax.add_decayed_weights(0.1), optax.scale(-0.1)),
        with_lr(SGD, momentum=0.9, weight_decay=0.1),
        "weight decay coupled -> decoupled",
    ),
    ("nesterov", lambda: optax.sgd(0.1, 0.9, nesterov=True), with_lr(SGD, momentum=0.9), "nesterov False -> True"),
    ("not nesterov", lambda: optax.sgd(0.1, 0.9), with_lr(SGD, momentum=0.9, nesterov=True), "nesterov True -> False"),
    ("dampening", lambda: optax.sgd(0.1, 0.9), with_lr(SGD, momentum=0.9, dampening=0.9), "dampening 0.9 -> 0"),
    ("momentum", lambda: optax.sgd(0.1, 0.9), with_lr(SGD), "momentum 0 -> 0.9"),
    ("learning rate", lambda: optax.sgd(0.01), with_lr(SGD), "learning rate times 0.1"),
    ("sign", lambda: optax.sgd(-0.1), with_lr(SGD), "sign of the gradients -> the other"),
    ("maximize", lambda: optax.adam(0.1), with_lr(ADAM, maximize=True), "sign of the gradients -> the other"),
    ("alpha", lambda: optax.rmsprop(0.1, 0.9, eps_in_sqrt=False), with_lr(RMSPROP), "alpha 0.99 -> 0.9"),
    ("rmsprop's eps", lambda: optax.rmsprop(0.1, 0.99), with_lr(RMSPROP), "eps beside the root -> inside"),
    (
        "initial",
        lambda: optax.adagrad(0.1, 0.1, 1e-10),
        with_lr(ADAGRAD, eps=0.0),
        "initial_accumulator_value 0 -> 0.1",
    ),
    (
        "clip",
        lambda: optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(0.1)),
        with_lr(SGD),
        "gradients -> clipped to a",
    ),
    (
        "clip values",
        lambda: optax.chain(optax.clip(0.5), optax.sgd(0.1)),
        with_lr(SGD),
        "gradients -> each value clipped",
    ),
    ("amsgrad", lambda: optax.amsgrad(0.1), with_lr(ADAM), "amsgrad -> the maximum of corrected moments"),
    (
        "not amsgrad",
        lambda: optax.adam(0.1, b2=0.5),
        with_lr(ADAM, betas=(0.9, 0.5), amsgrad=True),
        "amsgrad True -> False",
    ),
]


@pytest.mark.parametrize(("ours", "theirs", "said"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_a_fault_of_an_optimizer_is_named(ours, theirs, said: str):
    found = suggested(ours, theirs)
    assert len(found) == 1, found
    assert said in found[0], found


def scheduled(kind: type, rates: list[float], **options) -> Callable:
    """torch's optimizer with a learning rate for each step."""

    def make(params):
        optimizer = kind(params, **{"lr": 1.0} | options)
        return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rates[min(step, len(rates) - 1)])

    return make


def in_optax(rates: list[float]) -> Callable:
    return lambda step: jax.numpy.asarray(rates)[jax.numpy.minimum(step, len(rates) - 1)]


RATES = [0.0, 0.1, 0.3, 0.2]
SCHEDULES = [
    ("early", lambda: optax.adam(in_optax(RATES)), scheduled(ADAM, RATES[1:]), "schedule -> one step later from 0"),
    ("late", lambda: optax.adam(in_optax(RATES[1:])), scheduled(ADAM, RATES), "schedule -> one step earlier"),
    ("constant", lambda: optax.sgd(0.3), scheduled(SGD, [1.0, 0.5, 0.1], lr=0.3), "schedule -> constant learning rate"),
    ("beta2", lambda: optax.adam(in_optax(RATES), b2=0.95), scheduled(ADAM, RATES), "beta2 0.999 -> 0.95"),
    ("eps", lambda: optax.rmsprop(in_optax(RATES), 0.99), scheduled(RMSPROP, RATES), "eps beside the root -> inside"),
    ("rate", lambda: optax.sgd(in_optax(RATES)), scheduled(SGD, RATES, lr=10.0), "learning rate times 0.1"),
    (
        "decay",
        lambda: optax.adamw(in_optax(RATES), weight_decay=0.1),
        scheduled(ADAM, RATES, weight_decay=0.1),
        "weight decay coupled -> decoupled",
    ),
]


@pytest.mark.parametrize(("ours", "theirs", "said"), [c[1:] for c in SCHEDULES], ids=[c[0] for c in SCHEDULES])
def test_a_fault_beside_a_schedule_or_of_it_is_named(ours, theirs, said: str):
    found = suggested(ours, theirs)
    assert said in found[0], found


def test_a_scheduler_that_is_not_torchs_own_is_no_obstacle():
    class Halving:
        def __init__(self, optimizer):
            self.optimizer = optimizer

        def step(self):
            for group in self.optimizer.param_groups:
                group["lr"] *= 0.5

    def make(params):
        optimizer = ADAM(params, lr=0.1, eps=1e-6)
        return optimizer, Halving(optimizer)

    [said] = suggested(lambda: optax.adam(lambda step: 0.1 * 0.5**step), make)
    assert "eps 1e-06 -> 1e-08" in said


def uncorrected() -> optax.GradientTransformation:
    """Adam without bias correction, which optax has as parts."""

    def init(params):
        return optax.ScaleByAdamState(
            np.zeros((), int), jax.tree.map(np.zeros_like, params), jax.tree.map(np.zeros_like, params)
        )

    def update(grads, state, params=None):
        mu = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, state.mu, grads)
        nu = jax.tree.map(lambda v, g: 0.999 * v + 0.001 * g * g, state.nu, grads)
        step = jax.tree.map(lambda m, v: -0.1 * m / (v**0.5 + 1e-8), mu, nu)
        return step, optax.ScaleByAdamState(state.count + 1, mu, nu)

    return optax.GradientTransformation(init, update)


def test_bias_correction_that_jax_lacks_is_named():
    [said] = suggested(uncorrected, with_lr(ADAM))
    assert said.startswith("likely: bias correction -> none (agrees "), said


@pytest.mark.parametrize(
    ("ours", "theirs", "parts"),
    [
        (lambda: optax.rmsprop(0.1), with_lr(RMSPROP), ["alpha 0.99 -> 0.9", "inside"]),
        (lambda: optax.adagrad(0.1), with_lr(ADAGRAD), ["initial_accumulator_value 0 -> 0.1", "-> 1e-07 inside"]),
        (
            lambda: optax.adamw(0.01, b2=0.95),
            with_lr(ADAMW),
            ["learning rate times 0.1", "beta2 0.999 -> 0.95", "weight_decay 0.01 -> 0.0001"],
        ),
    ],
)
def test_differences_of_the_libraries_defaults_are_named_together(ours, theirs, parts: list[str]):
    [said] = suggested(ours, theirs)
    assert all(part in said for part in parts), said
    assert "when all are changed" in said, said


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (lambda: optax.lion(0.1), with_lr(ADAM)),
        (lambda: optax.adam(0.137), with_lr(ADAM)),
        (lambda: optax.chain(optax.adaptive_grad_clip(0.01), optax.sgd(0.1)), with_lr(SGD)),
        (lambda: optax.sgd(0.1, 0.83), with_lr(SGD, momentum=0.9)),
        (lambda: optax.adamw(0.1, weight_decay=0.037), with_lr(ADAMW)),
    ],
    ids=["lion", "learning rate", "adaptive clipping", "momentum", "decay"],
)
def test_another_optimizer_is_not_named(ours, theirs):
    assert suggested(ours, theirs) == []
