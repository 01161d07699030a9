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
from flax import linen, nnx
from torch import nn
from transformers.utils import ModelOutput

from lmcore.errors import UserError
from parity import compare, tap
from parity.transforms import chain, concat, reshape, shared, transpose, unstack

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


def test_separate_kernels_of_attention_are_torchs_fused_one():
    length, dim, heads, width = 5, 12, 3, 4
    x = RNG.standard_normal((2, length, dim))
    attention = linen.MultiHeadDotProductAttention(num_heads=heads)
    params = jax.tree.map(np.asarray, attention.init(jax.random.key(1), x, x)["params"])
    for part in ("query", "key", "value", "out"):
        params[part]["bias"] = RNG.standard_normal(params[part]["bias"].shape)

    class SelfAttention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mha = nn.MultiheadAttention(dim, heads, batch_first=True)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.mha(x, x, x, need_weights=False)[0]

    parts = ("query", "key", "value")
    fused = chain(reshape(dim, heads * width), transpose(), concat())
    names = {
        tuple(f"{part}.kernel" for part in parts): ("mha.in_proj_weight", fused),
        tuple(f"{part}.bias" for part in parts): ("mha.in_proj_bias", chain(reshape(-1), concat())),
        "out.kernel": ("mha.out_proj.weight", chain(reshape(heads * width, dim), transpose())),
        "out.bias": "mha.out_proj.bias",
    }

    def jax_fn(params: dict, x: jax.Array) -> jax.Array:
        return attention.apply({"params": params}, x, x)

    report = compare(jax_fn, SelfAttention(), x, params=params, names=names)
    assert report, str(report)
    assert report.results[-2].note == "zero within rounding: key.bias", "it moves all scores of a query alike"
    swapped = tuple(f"{part}.kernel" for part in ("key", "query", "value"))
    names[swapped] = names.pop(tuple(f"{part}.kernel" for part in parts))
    assert compare(jax_fn, SelfAttention(), x, params=params, names=names).first_failure.rung == 4


def test_the_kernels_of_an_lstm_are_torchs_two():
    size, hidden = 5, 4
    x = RNG.standard_normal((3, 7, size))
    graph, weights, rest = nnx.split(nnx.LSTMCell(size, hidden, rngs=nnx.Rngs(0)), nnx.Param, ...)
    params = jax.tree.map(np.asarray, nnx.to_pure_dict(weights))

    def jax_fn(params: dict, x: jax.Array) -> jax.Array:
        state = jax.tree.map(lambda leaf: leaf, weights)
        nnx.replace_by_pure_dict(state, params)
        step = nnx.merge(graph, state, rest)
        carry = (jnp.zeros((len(x), hidden), x.dtype),) * 2
        outputs = []
        for t in range(x.shape[1]):
            carry, y = step(carry, x[:, t])
            outputs.append(y)
        return jnp.stack(outputs, axis=1)

    class Lstm(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm = nn.LSTM(size, hidden, batch_first=True)
            nn.init.zeros_(self.lstm.bias_ih_l0)  # flax has one bias for both

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.lstm(x)[0]

    gates = "ifgo"
    names = {
        tuple(f"i{gate}.kernel" for gate in ("i", "f_", "g", "o")): ("lstm.weight_ih_l0", chain(transpose(), concat())),
        tuple(f"h{gate}.kernel" for gate in gates): ("lstm.weight_hh_l0", chain(transpose(), concat())),
        tuple(f"h{gate}.bias" for gate in gates): ("lstm.bias_hh_l0", concat()),
    }
    report = compare(jax_fn, Lstm(), x, params=params, names=names, only_torch=["lstm.bias_ih_l0"])
    assert report, str(report)


def test_layers_stacked_for_scan_are_a_list_of_modules_and_a_tied_head_sums_its_gradients():
    layers, dim, vocabulary = 3, 6, 11
    ids = RNG.integers(vocabulary, size=(2, 5))
    table = RNG.standard_normal((vocabulary, dim))
    params = {"embed": table, "head": table.copy(), "w": RNG.standard_normal((layers, dim, dim)) / 3}

    def jax_fn(params: dict, ids: jax.Array) -> jax.Array:
        x, _ = jax.lax.scan(lambda x, w: (x + jnp.tanh(x @ w), None), params["embed"][ids], params["w"])
        return x @ params["head"].T

    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(vocabulary, dim)
            self.layers = nn.ModuleList([nn.Linear(dim, dim, bias=False) for _ in range(layers)])

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            x = self.embed(ids)
            for layer in self.layers:
                x = x + torch.tanh(layer(x))
            return x @ self.embed.weight.T

    names = {
        ("embed", "head"): ("embed.weight", shared()),
        "w": ("layers.{i}.weight", chain(unstack(), transpose())),
    }
    report = compare(jax_fn, Tied(), ids, params=params, names=names)
    assert report, str(report)
    assert {d.name for r in report.results for d in r.differences} >= {"embed + head", "w"}
    frozen = compare(
        lambda p, i: jax_fn(p | {"head": jax.lax.stop_gradient(p["head"])}, i), Tied(), ids, params=params, names=names
    )
    assert frozen.first_failure.first == "embed + head"


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


def test_a_layer_that_runs_twice_is_tapped_twice():
    class Twice(Network):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.second(self.act(0.5 * self.act(self.first(x)))) + self.shift

    def twice(params: dict, x: jax.Array, inner: float = 0.5) -> jax.Array:
        hidden = tap("hidden", jnp.tanh(x @ params["in"]["w"] + params["in"]["b"]))
        return tap("hidden", jnp.tanh(inner * hidden)) @ params["out"] + params["shift"]

    assert run(twice, Twice())
    assert run(lambda p, x: twice(p, x, 0.4), Twice()).first_failure.first == "hidden (2)"
    assert run(module=Twice()).first_failure.where == "hidden (2) is missing on the first"


def test_a_tap_inside_of_a_scan_is_one_line():
    def scanned(params: dict, x: jax.Array) -> jax.Array:
        return jax.lax.scan(lambda y, _: (tap("inner", jnp.tanh(y)), None), x, None, length=2)[0]

    with pytest.raises(UserError, match=r"^tap: a value inside of jax.lax.scan, .* tap its result instead$"):
        compare(scanned, nn.Tanh(), X, params={}, names={})


def test_buffers_that_nobody_names_are_said():
    names = {name: value for name, value in NAMES.items() if name != "shift"}
    report = run(names=names, only_jax=["shift"])
    assert "torch buffers that no row names keep their values: shift" in report.results[1].note
    assert report.first_failure.rung == 4
