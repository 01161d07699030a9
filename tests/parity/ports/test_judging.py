"""Updates of optax and torch agree, or the first that does not is named; so do curves, within what rounding makes."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from flax import linen
from torch import nn

from lmcore.errors import UserError
from parity import compare, tap
from parity.difference import compare_all
from parity.ports.judging import KNOWN, ZERO, _without_zeros
from parity.transforms import shared

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


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_values_in_16_bits_are_held_against_their_own_rounding(dtype: str):
    optimizers = optax.adamw(1e-2, weight_decay=0.1), lambda p: torch.optim.AdamW(p, lr=1e-2, weight_decay=0.1)
    report = compare(network, module(), X, params=PARAMS, names=NAMES, dtype=dtype, optimizers=optimizers)
    assert report, str(report)
    assert {result.verdict for result in report.results} == {"pass"}
    assert [result.rung for result in report.results[-2:]] == [6, 6]
    off = compare(lambda p, x: network(p, 1.2 * x), module(), X, params=PARAMS, names=NAMES, dtype="bfloat16")
    assert off.first_failure.limit == "4 × rounding"


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_gradient_that_no_weight_changes_is_rounded_too(dtype: str):
    """That of the last bias is a sum over the batch of the loss's own factors."""
    x = RNG.standard_normal((64, 5))
    params = {"w": RNG.standard_normal((5, 7)), "b": RNG.standard_normal(7)}
    port = nn.Linear(5, 7)
    report = compare(
        lambda p, x: x @ p["w"] + p["b"][None],
        port,
        x,
        params=params,
        names={"w": ("weight", (1, 0)), "b": "bias"},
        dtype=dtype,
    )
    assert report, str(report)


def test_an_eps_is_seen_beside_an_operation_in_float32():
    """Its effect, 4e-6, is less than the tolerance of float32 and more than the rounding of what is narrow."""

    def norm(x, eps):
        centred = x - x.mean(-1, keepdims=True)
        return centred / jnp.sqrt((centred**2).mean(-1, keepdims=True) + eps)

    def narrow(params, x, eps=1e-6):
        hidden = jnp.tanh((norm(x, eps) @ params["w"]).astype(jnp.float32)).astype(x.dtype)
        return hidden @ params["out"]

    class Narrow(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.LayerNorm(5, eps=1e-6, elementwise_affine=False)
            self.w, self.out = nn.Linear(5, 7, bias=False), nn.Linear(7, 3, bias=False)

        def forward(self, x):
            return self.out(torch.tanh(self.w(self.norm(x)).float()).to(x.dtype))

    params = {name: PARAMS[name] for name in ("w", "out")}
    names = {name: (f"{name}.weight", (1, 0)) for name in params}
    for port in (Narrow(), Narrow().double()):
        report = compare(narrow, port, X, params=params, names=names)
        assert report, str(report)
    report = compare(lambda p, x: narrow(p, x, 1e-5), Narrow(), X, params=params, names=names)
    assert not report
    assert report.likely[0].startswith("likely: eps 1e-06 -> 1e-05 in norm (agrees to "), report.likely


def test_a_parameter_that_both_sides_leave_alone_is_no_difference():
    def stopped(params: dict, x: jax.Array) -> jax.Array:
        return network(params | {"b": jax.lax.stop_gradient(params["b"])}, x)

    frozen = module()
    frozen[0].bias.requires_grad_(False)
    report = compare(stopped, frozen, X, params=PARAMS, names=NAMES)
    assert report, str(report)
    assert compare(stopped, module(), X, params=PARAMS, names=NAMES).first_failure.first == "b"
    assert compare(network, frozen, X, params=PARAMS, names=NAMES), "asked for on one side alone: compared"


def test_axes_of_one_length_are_told_apart_by_their_values():
    """An activation B H W C in JAX and B C H W in torch, all of length 3: a fault after it must not be named there."""

    class Flax(linen.Module):
        eps: float = 1e-5

        @linen.compact
        def __call__(self, x):
            x = linen.Conv(3, (3, 3), padding=1, use_bias=False, name="conv")(x)
            return linen.GroupNorm(3, epsilon=self.eps, name="norm")(x)

    class Port(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 3, 3, padding=1, bias=False), nn.GroupNorm(3, 3, eps=1e-5)

        def forward(self, x):
            return self.norm(self.conv(x.movedim(-1, 1))).movedim(1, -1)

    x = RNG.standard_normal((3, 3, 3, 3))
    params = Flax().init(jax.random.key(0), x)
    names = {"params.conv.kernel": ("conv.weight", (3, 2, 0, 1))}
    names |= {"params.norm.scale": "norm.weight", "params.norm.bias": "norm.bias"}
    report = compare(Flax(), Port(), x, params=params, names=names)
    assert report, str(report)
    assert [d.name for d in report.results[0].differences] == ["conv", "norm"]
    report = compare(Flax(1e-3), Port(), x, params=params, names=names)
    assert report.first_failure.first == "norm"


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


def scheduled(rate) -> tuple:
    def make(parameters):
        optimizer = torch.optim.Adam(parameters, lr=1e-2)
        return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate(step) / 1e-2)

    return optax.adam(rate), make


@pytest.mark.parametrize(
    ("ours", "rate"),
    [
        (optax.linear_schedule(1e-2, 0, 20), lambda step: 1e-2 * (1 - step / 20)),
        (optax.exponential_decay(1e-2, 7, 0.5), lambda step: 1e-2 * 0.5 ** (step / 7)),
        (lambda step: 1e-2 * (1 - step / 20), lambda step: 1e-2 * (1 - step / 20)),
    ],
    ids=["linear", "exponential", "own"],
)
def test_a_schedule_that_divides_the_count_of_steps_is_as_exact_as_what_is_compared(ours, rate):
    optimizers = optax.adam(ours), scheduled(rate)[1]
    report = trained(*optimizers, batches=BATCHES)
    assert report, str(report)


def test_a_python_number_among_the_inputs_has_no_gradient():
    class Scaled(nn.Linear):
        def forward(self, x, scale):
            return super().forward(x) * scale

    params = {"w": PARAMS["w"], "b": PARAMS["b"]}
    names = {"w": ("weight", (1, 0)), "b": "bias"}
    report = compare(lambda p, x, s: (x @ p["w"] + p["b"][None]) * s, Scaled(5, 7), X, 2.0, params=params, names=names)
    assert report, str(report)


def test_a_torch_module_that_makes_float32_inside_is_compared_in_float32():
    class Cell(nn.Module):
        def __init__(self):
            super().__init__()
            self.cell = nn.RNNCell(5, 7, bias=False)

        def forward(self, x):
            return self.cell(x, torch.zeros(len(x), 7))

    params = {"w": PARAMS["w"], "u": RNG.standard_normal((7, 7))}
    names = {"w": ("cell.weight_ih", (1, 0)), "u": ("cell.weight_hh", (1, 0))}
    function = lambda p, x: jnp.tanh(x @ p["w"] + jnp.zeros((6, 7)) @ p["u"])  # noqa: E731
    report = compare(function, Cell(), X, params=params, names=names)
    assert report, str(report)
    assert {result.dtype for result in report.results} == {"float32"}
    assert "compared in float32, since the model does not run in float64" in report.results[0].note


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16"])
def test_operations_in_16_bits_inside_are_held_against_their_rounding(dtype: str):
    def narrow(p, x):
        kind = jnp.bfloat16
        return (jnp.tanh(x.astype(kind) @ p["w"].astype(kind)) @ p["out"].astype(kind)).astype(x.dtype)

    class Narrow(nn.Module):
        def __init__(self):
            super().__init__()
            self.w, self.out = nn.Linear(5, 7, bias=False), nn.Linear(7, 3, bias=False)

        def forward(self, x):
            w, out = (part.weight.bfloat16().T for part in (self.w, self.out))
            return (torch.tanh(x.bfloat16() @ w) @ out).to(x.dtype)

    params = {name: PARAMS[name] for name in ("w", "out")}
    names = {name: (f"{name}.weight", (1, 0)) for name in params}
    for seed in range(3):
        x = np.random.default_rng(seed).standard_normal((6, 5))
        report = compare(narrow, Narrow(), x, params=params, names=names, dtype=dtype)
        assert report, str(report)
        assert all(d.note != ZERO for result in report.results for d in result.differences)


def test_rounding_as_large_as_the_values_is_no_agreement():
    layers = [RNG.standard_normal((8, 8)) * 1.2 for _ in range(10)]
    params = {f"w{i}": layer for i, layer in enumerate(layers)}

    def chaotic(p, x):
        for i in range(10):
            x = jnp.tanh(x @ p[f"w{i}"])
        return x

    class Chaotic(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(8, 8, bias=False) for _ in range(10))

        def forward(self, x):
            for i, layer in enumerate(self.layers):
                x = torch.relu(layer(x)) if i == 9 else torch.tanh(layer(x))
            return x

    names = {f"w{i}": (f"layers.{i}.weight", (1, 0)) for i in range(10)}
    report = compare(chaotic, Chaotic(), RNG.standard_normal((4, 8)), params=params, names=names, dtype="bfloat16")
    outputs = report.results[0]
    assert outputs.verdict != "pass", str(report)
    assert outputs.verdict == "FAIL" or "rounding is as large as the values, and tells nothing" in outputs.note


def test_tied_weights_are_named_where_no_update_compares_them():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.e, self.l = nn.Embedding(11, 8), nn.Linear(8, 8, bias=False)

        def forward(self, tokens):
            return torch.tanh(self.l(self.e(tokens))) @ self.e.weight.T

    table, inner = RNG.standard_normal((11, 8)), RNG.standard_normal((8, 8))
    names = {("e", "h"): ("e.weight", shared()), "l": ("l.weight", (1, 0))}
    function = lambda p, i: jnp.tanh(p["e"][i] @ p["l"]) @ p["h"].T  # noqa: E731
    tokens = np.array([[1, 2, 3]])
    optimizers = optax.adam(1e-2), lambda p: torch.optim.Adam(p, 1e-2)
    params = {"e": table, "h": table, "l": inner}
    report = compare(function, Tied(), tokens, params=params, names=names, optimizers=optimizers)
    assert report, str(report)
    assert all("not compared: e, h" in result.note for result in report.results if result.rung == 6)
    with pytest.raises(UserError, match=r"names: e and h: found different values"):
        compare(function, Tied(), tokens, params=params | {"h": table + 1}, names=names)


def test_axes_of_one_length_are_told_apart_in_16_bits():
    params = {f"w{i}": RNG.standard_normal((3, 3, 8, 8)) * 0.5 for i in range(4)}

    def convs(p, x):
        for i in range(4):
            numbers = ("NHWC", "HWIO", "NHWC")
            x = jax.lax.conv_general_dilated(x, p[f"w{i}"], (1, 1), "SAME", dimension_numbers=numbers)
            x = tap(f"c{i}", x)
            x = jnp.sin(x) * jax.nn.sigmoid(x)
        return x

    class Convs(nn.Module):
        def __init__(self):
            super().__init__()
            self.c = nn.ModuleList(nn.Conv2d(8, 8, 3, padding=1, bias=False) for _ in range(4))

        def forward(self, x):
            x = x.movedim(-1, 1)
            for conv in self.c:
                x = conv(x)
                x = torch.sin(x) * torch.sigmoid(x)
            return x.movedim(1, -1)

    names = {f"w{i}": (f"c.{i}.weight", (3, 2, 0, 1)) for i in range(4)}
    taps = {f"c{i}": f"c.{i}" for i in range(4)}
    x = RNG.standard_normal((8, 8, 8, 8))
    report = compare(convs, Convs(), x, params=params, names=names, taps=taps, dtype="bfloat16")
    assert report, str(report)
    assert max(d.max_rel for d in report.results[0].differences) < 0.1
