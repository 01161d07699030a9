"""`parity.compare`, which holds anyone's torch module against a JAX function."""

import contextlib
import re
import runpy
import sys
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import torch
from torch import nn
from transformers.utils import ModelOutput

from lmcore.errors import UserError
from parity import compare, tap

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "port_check.py"


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
    assert [r.rung for r in report.results] == [3, 4, 5, 5, 5]
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
    assert [r.what for r in report.results[1:]] == ["loss", "gradients of 1 parameters", "gradients of 1 inputs"]
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
    assert [r.what for r in report.results] == ["outputs", "loss", "gradients of 1 inputs"]
    assert not compare(lambda _, x: jnp.tanh(x), nn.Hardtanh(), X, params={}, names={})


def test_trees_of_outputs_are_compared_by_place():
    class Two(Network):
        def forward(self, x):
            return {"y": super().forward(x), "h": (torch.tanh(self.first(x)),)}

    def two(params, x):
        return {"y": network(params, x), "h": (jnp.tanh(x @ params["in"]["w"] + params["in"]["b"]),)}

    report = run(two, Two())
    assert report, str(report)
    failure = run(lambda p, x: two(p, x) | {"h": (x[:, :1] @ p["in"]["b"][None],)}, Two()).first_failure
    assert failure.first == "output['h'][0]"


@pytest.mark.parametrize(
    ("names", "said"),
    [
        ({n: v for n, v in NAMES.items() if n != "out"}, "out of JAX, [7, 3], is in no row; second.weight of torch"),
        (
            NAMES | {"nothing": "second.bias"},
            "names: nothing: no such JAX parameter: nothing; there are in.b, in.w, out",
        ),
        (
            NAMES | {"out": ("third.weight", (1, 0))},
            "out: no such torch parameter: third.weight; there are first.weight",
        ),
        (
            NAMES | {"out": "second.weight"},
            "out: second.weight is [3, 7] in torch, [7, 3] from JAX: transpose() its axes?",
        ),
        (NAMES | {"out": ("second.weight", (0, 2))}, "found axes (0, 2)"),
        (NAMES | {"in.b": "first.bias", "in": "first.bias"}, "in: no such JAX parameter: in; there are"),
    ],
)
def test_names_that_do_not_fit_are_refused(names: dict, said: str):
    with pytest.raises(UserError, match=re.escape(said)):
        run(names=names)


def test_a_tap_without_its_module_is_refused_and_one_that_is_not_listed_is_found_by_its_values():
    with pytest.raises(UserError, match="nowhere"):
        run(taps={"hidden": "nowhere"})
    found = run(taps={})
    assert found, str(found)
    assert [d.name for d in found.results[0].differences] == ["hidden"]

    def other(params: dict, x: jax.Array) -> jax.Array:
        return network(params, x) + 0 * tap("else", x).sum()

    assert "taps without a counterpart: else" in run(other, taps={}).results[1].note


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


def test_a_gradient_that_does_not_reach_the_input_is_found():
    failure = run(lambda p, x: network(p, jax.lax.stop_gradient(x))).first_failure
    assert (failure.what, failure.first) == ("gradients of 1 inputs", "input[0]")


def test_containers_of_either_framework_are_inputs_and_outputs():
    @dataclass
    class Output(ModelOutput):
        logits: torch.Tensor | None = None
        hidden: tuple[torch.Tensor, ...] | None = None
        cache: object = None

    class Wrapped(Network):
        def forward(self, batch: dict, mask: None = None, *, scale: float = 1.0):
            hidden = self.first(batch["x"])
            return Output(logits=super().forward(batch["x"]), hidden=(hidden, scale), cache=object())

    def bare(params: dict, batch: dict, mask: None) -> jax.Array:
        return network(params, batch["x"])

    def named(params: dict, batch: dict, mask: None) -> dict:
        hidden = batch["x"] @ params["in"]["w"] + params["in"]["b"]
        return {"logits": bare(params, batch, mask), "hidden": (hidden, 2.0), "loss": None}

    arguments = {"x": X, "ids": np.arange(3)}, None
    given = {"params": PARAMS, "names": NAMES, "taps": TAPS}
    assert compare(bare, Wrapped(), *arguments, **given), "the first output of several"
    twice = compare(named, Wrapped(), *arguments, **given, call_module=lambda m, b, mask: m(b, mask, scale=2.0))
    assert twice, str(twice)
    assert {d.name for d in twice.results[1].differences} == {
        "output['logits']",
        "output['hidden'][0]",
        "output['hidden'][1]",
    }
    once = compare(named, Wrapped(), *arguments, **given)
    assert once.first_failure.first == "output['hidden'][1]"
    assert compare(named, Wrapped(), *arguments, **given, outputs=["logits"])


def test_compiled_modules_and_functions_of_tensors_are_compared_like_modules():
    def functional(tensors: dict, x: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(Network(), tensors, (x,))

    functions = functional, {name: tensor.detach() for name, tensor in Network().named_parameters()}
    for module in (torch.compile(Network(), backend="eager"), functions):
        names, only = dict(NAMES), ()
        if isinstance(module, tuple):  # its buffer is no tensor of the dict: it stays zero
            names, only = {name: value for name, value in NAMES.items() if name != "shift"}, ("shift",)
        given = {"params": PARAMS | {"shift": np.zeros(3)}, "names": names, "only_jax": only}
        report = compare(network, module, X, **given)
        assert report, str(report)
        assert not compare(lambda p, x: network(p, x, scale=1.001), module, X, **given)


def test_a_layer_that_runs_twice_is_tapped_twice():
    class Twice(Network):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.second(self.act(0.5 * self.act(self.first(x)))) + self.shift

    def twice(params: dict, x: jax.Array, inner: float = 0.5) -> jax.Array:
        hidden = tap("hidden", jnp.tanh(x @ params["in"]["w"] + params["in"]["b"]))
        return tap("hidden", jnp.tanh(inner * hidden)) @ params["out"] + params["shift"]

    assert run(twice, Twice())
    assert run(lambda p, x: twice(p, x, 0.4), Twice()).first_failure.first == "hidden (2)"
    assert "taps without a counterpart: hidden (2)" in run(module=Twice()).results[1].note


def test_a_tap_inside_of_a_scan_is_compared_at_every_turn():
    def scanned(params: dict, x: jax.Array, factor: float = 1.0) -> jax.Array:
        def turn(y: jax.Array, i: jax.Array) -> tuple[jax.Array, None]:
            return tap("inner", jnp.tanh(jnp.where(i == 1, factor, 1.0) * y)), None

        return jax.lax.scan(turn, x, jnp.arange(2))[0]

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.act = nn.Tanh()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.act(self.act(x))

    given = {"params": {}, "names": {}, "taps": {"inner": "act"}}
    report = compare(scanned, Twice(), X, **given)
    assert report, str(report)
    assert [d.name for d in report.results[0].differences] == ["inner", "inner (2)"]
    assert compare(lambda p, x: scanned(p, x, 1.1), Twice(), X, **given).first_failure.first == "inner (2)"


def test_buffers_that_nobody_names_are_said():
    names = {name: value for name, value in NAMES.items() if name != "shift"}
    report = run(names=names, only_jax=["shift"])
    assert "torch buffers that no row names keep their values: shift" in report.results[1].note
    assert report.first_failure.rung == 4


def test_a_model_that_does_not_run_in_float64_is_compared_in_float32():
    class Summed(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.sum(0)

    def summed(params: dict, x: jax.Array, factor: float = 1.0) -> jax.Array:
        start = jnp.zeros(x.shape[1:], jnp.float32)
        return jax.lax.scan(lambda total, row: (total + factor * row, None), start, x)[0]

    report = compare(summed, Summed(), X, params={}, names={})
    assert report, str(report)
    assert {result.dtype for result in report.results} == {"float32"}
    assert report.results[0].note.startswith("compared in float32, since the model does not run in float64: scan body")
    assert not compare(lambda p, x: summed(p, x, 1.001), Summed(), X, params={}, names={})
