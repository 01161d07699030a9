"""The comparison helper, and `parity.compare`, which holds anyone's torch module against a JAX function."""

import contextlib
import math
import re
import runpy
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import torch
from torch import nn

from lmcore.errors import UserError
from parity import compare, tap
from parity.check.result import distributions, identical, judge
from parity.difference import TOLERANCES, compare_all, difference, tolerance, worst

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "port_check.py"


def test_a_difference_is_relative_to_the_largest_value_and_names_its_place():
    found = difference("x", np.array([[1.0, -8.0], [2.0, 4.0]]), np.array([[1.0, -8.0], [2.5, 4.0]]))
    assert (found.max_abs, found.max_rel, found.where) == (0.5, 0.5 / 8, (1, 0))
    assert (found.left, found.right, found.place) == (2.0, 2.5, "x[1, 0]")
    assert found.within(0.0625)
    assert not found.within(0.0624)


def test_equal_arrays_do_not_differ_and_zero_against_zero_is_no_division():
    assert difference("x", np.zeros(3), np.zeros(3)).max_rel == 0
    assert difference("x", np.empty((0, 2)), np.empty((0, 2))).max_rel == 0
    assert difference("x", 1e-300, 0.0).max_rel == 1


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_infinitely_far_apart(bad: float):
    found = difference("x", np.array([1.0, bad]), np.array([1.0, bad]))
    assert found.max_rel == math.inf
    assert not found.within(1e300)
    assert found.where == (1,)


def test_other_shapes_and_missing_names_are_infinitely_far_apart():
    assert not difference("x", np.ones((2, 1)), np.ones((1, 2))).within(1e300)
    found = compare_all({"a": 1.0, "b": 1.0}, {"b": 1.0, "c": 1.0})
    assert {d.name: d.max_rel for d in found} == {"b": 0.0, "a": math.inf, "c": math.inf}
    assert worst(found).name in ("a", "c")


def test_every_float_type_of_every_framework_is_compared():
    value = [1.0, 1.5, -2.25]
    arrays = [np.array(value), jnp.array(value), torch.tensor(value, requires_grad=True)]
    arrays += [np.array(value, ml_dtypes.bfloat16), jnp.array(value, jnp.bfloat16), torch.tensor(value).bfloat16()]
    assert {difference("x", a, b).max_abs for a in arrays for b in arrays} == {0.0}
    assert {difference("x", a, np.array([1.0, 1.5, -2.0])).max_abs for a in arrays} == {0.25}


def test_both_parts_of_complex_values_are_compared():
    value = np.array([1 + 2j, 3 - 4j])
    sides = [value, jnp.array(value), torch.tensor(value), torch.tensor(value).conj().conj()]
    assert {difference("x", a, b).max_abs for a in sides for b in sides} == {0.0}
    assert difference("x", value, torch.tensor(value).conj()).max_abs == 8
    assert difference("x", value.real, value).max_rel == math.inf


def test_the_tolerances_are_those_of_the_contract():
    assert TOLERANCES == {
        "logits": {"float64": 1e-12, "float32": 1e-5},
        "gradients": {"float64": 1e-11, "float32": 1e-4},
        "update": {"float64": 1e-12, "float32": 1e-5, "bfloat16": 1e-5},
    }
    assert tolerance("logits", "bfloat16") is None


def test_the_first_divergent_value_is_named_not_the_worst():
    left, right = {"a": 1.0, "b": 1.0, "c": 1.0}, {"a": 1.0, "b": 1.0 + 1e-6, "c": 2.0}
    line = judge(3, "x", "float64", compare_all(left, right), "logits")
    assert (line.verdict, line.first, line.where, line.max_abs) == ("FAIL", "b", "b[]", 1.0)
    assert judge(3, "x", "float64", compare_all(left, left), "logits").verdict == "pass"
    assert judge(3, "x", "bfloat16", compare_all(left, right), "logits").verdict == "reported"


def test_identical_means_every_bit():
    zero = np.zeros(2)
    assert identical("x", zero, zero.copy()).max_abs == 0
    assert identical("x", zero, -zero).max_abs == math.inf
    assert identical("x", zero, zero.astype(np.float32)).max_abs == math.inf
    assert identical("x", np.full(2, math.nan), np.full(2, math.nan)).max_abs == 0


def test_distributions_pass_within_the_divergence_and_fail_beyond_it():
    logits = np.random.default_rng(0).standard_normal((50, 30)) * 4
    for noise, verdict in ((0.01, "pass"), (0.3, "FAIL")):
        moved = logits + noise * np.random.default_rng(1).standard_normal(logits.shape)
        line = distributions(4, "x", "bfloat16", logits, moved, [difference("logits", logits, moved)])
        assert line.verdict == verdict, line.note
    shifted = logits + 100  # the same distribution
    assert distributions(4, "x", "bfloat16", logits, shifted, [difference("x", logits, shifted)]).verdict == "pass"


# Ports.


@pytest.fixture(autouse=True)
def users_write_jax_as_they_like():
    with jax.numpy_rank_promotion("allow"):
        yield


def network(params: dict, x: jax.Array, scale: float = 1.0) -> jax.Array:
    hidden = tap("hidden", jnp.tanh(x @ params["in"]["w"] + params["in"]["b"]))
    return scale * (hidden @ params["out"]) + params["shift"]


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(5, 7)
        self.act = nn.Tanh()
        self.second = nn.Linear(7, 3, bias=False)
        self.register_buffer("shift", torch.zeros(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.act(self.first(x))) + self.shift


NAMES: dict = {
    "in.w": ("first.weight", (1, 0)),
    "in.b": "first.bias",
    "out": ("second.weight", (1, 0)),
    "shift": "shift",
}
TAPS = {"hidden": "act"}
RNG = np.random.default_rng(0)
X = RNG.standard_normal((4, 5))
PARAMS = {
    "in": {"w": RNG.standard_normal((5, 7)), "b": RNG.standard_normal(7)},
    "out": RNG.standard_normal((7, 3)),
    "shift": RNG.standard_normal(3),
}


def run(function=network, module=None, names=NAMES, **options):
    return compare(function, module or Network(), X, params=PARAMS, names=names, **({"taps": TAPS} | options))


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_a_true_port_passes(dtype: str):
    report = run(dtype=dtype)
    assert report, str(report)
    assert [r.rung for r in report.results] == [3, 4, 5, 5]
    assert max(r.max_rel for r in report.results) > 0 or dtype == "float64"


def test_each_fault_of_a_port_shows_where_it_is():
    assert run(lambda p, x: network(p, x, scale=1 + 1e-9)).first_failure.rung == 4

    def gradient_lost(params, x):
        return network(params | {"out": jax.lax.stop_gradient(params["out"])}, x)

    failure = run(gradient_lost).first_failure
    assert (failure.rung, failure.first) == (5, "out")
    wrong = Network()
    wrong.act = nn.Hardtanh()
    failure = run(module=wrong).first_failure
    assert (failure.rung, failure.first) == (3, "hidden")


def test_a_loss_of_ones_own_is_compared():
    same = run(losses=(lambda y: (y**2).mean(), lambda y: (y**2).mean()))
    assert same, str(same)
    other = run(losses=(lambda y: (y**2).mean(), lambda y: (y**2).sum()))
    assert other.first_failure.what == "loss"


class Rotation(nn.Module):
    """Turns pairs by angles that it holds as a complex buffer, and scales by a parameter that is not trained."""

    def __init__(self, sign: float = 1.0):
        super().__init__()
        self.register_buffer("turn", torch.polar(torch.ones(3), sign * torch.arange(3.0)))
        self.scale = nn.Parameter(torch.zeros(3), requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.turn * self.scale


def test_complex_values_and_frozen_parameters_are_compared_like_others():
    x = RNG.standard_normal((4, 3)).astype(ml_dtypes.bfloat16)
    params = {"scale": jnp.arange(1.0, 4.0, dtype=jnp.bfloat16)}

    def rotate(params: dict, x: jax.Array) -> jax.Array:
        return x * jnp.exp(1j * jnp.arange(3.0)) * params["scale"]

    report = compare(rotate, Rotation(), x, params=params, names={"scale": "scale"}, dtype="float32")
    assert report, str(report)
    assert report.results[-1].what == "gradients of 1 parameters"
    report = compare(rotate, Rotation(-1.0), x, params=params, names={"scale": "scale"}, dtype="float32")
    assert report.first_failure.rung == 4


def test_a_complex_parameter_has_the_same_gradient_in_both():
    class Turning(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.turn = nn.Parameter(torch.zeros(5, dtype=torch.complex64))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return (x * self.turn) ** 2

    params = {"turn": RNG.standard_normal(5) + 1j * RNG.standard_normal(5)}
    report = compare(lambda p, x: (x * p["turn"]) ** 2, Turning(), X, params=params, names={"turn": "turn"})
    assert report, str(report)

    def lost(p, x):
        return (x * (p["turn"].real + 1j * jax.lax.stop_gradient(p["turn"].imag))) ** 2

    failure = compare(lost, Turning(), X, params=params, names={"turn": "turn"}).first_failure
    assert (failure.rung, failure.first) == (5, "turn")


def test_a_module_that_holds_nothing_to_train_is_compared_without_gradients():
    report = compare(lambda _, x: jnp.tanh(x), nn.Tanh(), X, params={}, names={})
    assert report, str(report)
    assert [r.rung for r in report.results] == [4, 5]
    assert not compare(lambda _, x: jnp.tanh(x), nn.Hardtanh(), X, params={}, names={})


def test_trees_of_outputs_are_compared_by_place():
    class Two(Network):
        def forward(self, x):
            return {"y": super().forward(x), "h": (self.act(self.first(x)),)}

    def two(params, x):
        return {"y": network(params, x), "h": (jnp.tanh(x @ params["in"]["w"] + params["in"]["b"]),)}

    report = run(two, Two())
    assert report, str(report)
    failure = run(lambda p, x: two(p, x) | {"h": (x[:, :1] @ p["in"]["b"][None],)}, Two()).first_failure
    assert failure.first == "output['h'][0]"


@pytest.mark.parametrize(
    ("names", "said"),
    [
        ({n: v for n, v in NAMES.items() if n != "out"}, "out [7, 3] is in no row"),
        (NAMES | {"nothing": "second.bias"}, "names: nothing: not among the JAX params; there are in.b, in.w, out"),
        (NAMES | {"out": ("third.weight", (1, 0))}, "third.weight: not in the torch module; there are first.weight"),
        (NAMES | {"out": "second.weight"}, "set its axes"),
        (NAMES | {"out": ("second.weight", (0, 2))}, "found axes (0, 2)"),
        (NAMES | {"in.b": "shift"}, "filled twice"),
    ],
)
def test_names_that_do_not_fit_are_refused(names: dict, said: str):
    with pytest.raises(UserError, match=said.replace("[", r"\[").replace("(", r"\(").replace(")", r"\)")):
        run(names=names)


def test_a_tap_without_its_module_is_refused_and_one_without_its_twin_fails():
    with pytest.raises(UserError, match="nowhere"):
        run(taps={"hidden": "nowhere"})
    failure = run(taps={}).first_failure
    assert (failure.rung, failure.first) == (3, "hidden")


def test_the_users_module_and_settings_are_left_alone():
    module = Network()
    module.train()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    run(module=module)
    assert module.training
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert jnp.asarray(1.0).dtype == jnp.float32


@pytest.mark.parametrize(("arguments", "code"), [([], 1), (["--mended"], 0)])
def test_the_example_names_the_layer(arguments: list[str], code: int, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", [str(EXAMPLE), *arguments])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(EXAMPLE), run_name="__main__")
    assert ended.value.code == code
    said = capsys.readouterr().out
    assert ("differ first in norm 1" in said) == (code == 1)


@pytest.mark.parametrize("page", ["README.md", "docs/porting.md"])
def test_the_three_lines_of_the_documents_are_enough(page: str):
    text = (ROOT / page).read_text(encoding="utf-8")
    block = next(b for b in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "def test_" in b)
    names = {"x": X, "params": PARAMS, "names": NAMES, "torch_module": Network()}

    def jax_fn(params, x):
        return jnp.tanh(x @ params["in"]["w"] + params["in"]["b"]) @ params["out"] + params["shift"]

    for function, passes in ((jax_fn, True), (lambda params, x: jax_fn(params, 2 * x), False)):
        space = names | {"jax_fn": function}
        exec(block, space)
        [test] = [value for name, value in space.items() if name.startswith("test_")]
        with contextlib.nullcontext() if passes else pytest.raises(AssertionError, match="FAIL"):
            test()
