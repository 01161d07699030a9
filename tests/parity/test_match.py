"""`parity.match` proposes the mapping of pairs of models, and never calls a wrong row certain."""

import random
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx
from torch import nn

from lmcore.errors import UserError
from parity import compare, match
from parity.mapping import resolve
from parity.match import match_arrays
from parity.matching.running import torch_arrays
from tests.parity.matching.pairs import HELD_OUT, PAIRS, RUNNABLE, Pair

RIGHT = 0.95
"""Minimum fraction of parameters in the right row."""


@pytest.fixture(autouse=True)
def users_write_jax_as_they_like():
    with jax.numpy_rank_promotion("allow"):
        yield


def flat(params) -> dict[str, np.ndarray]:
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return {
        jax.tree_util.keystr(p, simple=True, separator=".").removesuffix(".value"): np.asarray(a) for p, a in leaves
    }


def effects(pair: Pair, names, only_jax, only_torch) -> dict:
    """JAX path -> the torch parameters of its row, and what they become."""
    ours, (parameters, buffers, _) = flat(pair.params), torch_arrays(pair.module)
    shapes = [{name: array.shape for name, array in side.items()} for side in (ours, parameters, buffers)]
    rng = np.random.default_rng(3)
    values = {name: rng.standard_normal(array.shape) for name, array in ours.items()}
    rows = resolve(names, *shapes, only_jax=only_jax, only_torch=only_torch)
    made = {path: (row.torch, row.to_torch(values)) for row in rows for path in row.jax}
    return {path: (names, *(arrays[n].tobytes() for n in names)) for path, (names, arrays) in made.items()}


def judged(pair: Pair, found) -> tuple[float, set[str]]:
    """Return the fraction of JAX parameters in the right row, and the wrong ones that are called certain."""
    right = effects(pair, pair.names, pair.only_jax, pair.only_torch)
    ours = effects(pair, found.names, found.only_jax, found.only_torch)
    paths = flat(pair.params)
    wrong = {path for path in paths if right.get(path) != ours.get(path)}
    return 1 - len(wrong) / len(paths), wrong & found.certain


@pytest.mark.parametrize("name", [*PAIRS, *HELD_OUT])
def test_names_and_shapes_find_the_mapping(name: str):
    pair = (PAIRS | HELD_OUT)[name]()
    found = match(pair.params, pair.module)
    fraction, wrong = judged(pair, found)
    assert wrong == set()
    assert fraction >= RIGHT, str(found)
    assert found.certain | found.uncertain.keys() >= set(flat(pair.params)) - set(found.only_jax)
    scope: dict = {}
    exec(str(found), scope)
    pasted = effects(pair, scope["names"], scope.get("only_jax", ()), scope.get("only_torch", ()))
    assert pasted == effects(pair, found.names, found.only_jax, found.only_torch)


@pytest.mark.parametrize("name", RUNNABLE)
def test_a_run_of_both_makes_every_row_certain(name: str):
    pair = PAIRS[name]()
    found = match(pair.params, pair.module, *pair.inputs, jax_fn=pair.jax_fn, call_module=pair.call_module)
    assert judged(pair, found) == (1.0, set())
    assert found.uncertain == {}, str(found)


def renamed(names, seed: int) -> dict[str, str]:
    """The names, a third of whose words say nothing, the same ones everywhere."""
    draw, table = random.Random(seed), {}
    for part in sorted({part for name in names for part in name.split(".")[:-1] if not part.isdigit()}):
        table[part] = f"m{len(table)}x" if draw.random() < 1 / 3 else part
    split = {name: name.rpartition(".") for name in names}
    return {
        name: ".".join(table.get(part, part) for part in head.split(".")) + dot + last
        for name, (head, dot, last) in split.items()
    }


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("name", ["Gemma, transformers", "Flax BERT, transformers", "Flax ConvNeXt, transformers"])
def test_a_wrong_row_is_not_certain_where_words_are_missing(name: str, seed: int):
    pair = (PAIRS | HELD_OUT)[name]()
    parameters, buffers, tied = torch_arrays(pair.module)
    new = renamed([*parameters, *buffers, *(n for others in tied.values() for n in others)], seed)
    found = match_arrays(
        flat(pair.params),
        {new[n]: a for n, a in parameters.items()},
        {new[n]: a for n, a in buffers.items()},
        {new[n]: [new[other] for other in others] for n, others in tied.items()},
    )
    right = effects(pair, pair.names, pair.only_jax, pair.only_torch)
    targets = {path: row.torch for row in found.rows for path in row.jax}
    assert found.certain
    assert {p for p in found.certain if targets[p] != tuple(new[n] for n in right[p][0])} == set()


def test_gradients_find_the_mapping_where_names_say_nothing():
    pair = PAIRS["Haiku MLP, nn.Sequential"]()
    params = {f"x{(5 * i) % 8}": leaf for i, leaf in enumerate(flat(pair.params).values())}
    order = list(flat(pair.params))

    def run(params, x):
        ours = {order[i]: params[f"x{(5 * i) % 8}"] for i in range(8)}
        tree = {name: {n: ours[f"{name}.{n}"] for n in "wb"} for name in pair.params}
        return pair.jax_fn(tree, x)

    found = match(params, pair.module, *pair.inputs, jax_fn=run)
    assert found.uncertain == {}, str(found)
    report = compare(run, pair.module, *pair.inputs, params=params, names=found.names)
    assert report, str(report)


def test_models_that_differ_are_not_proven():
    pair = PAIRS["NNX transformer, nn.TransformerEncoder"]()
    for module in pair.module.modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = 1e-3
    found = match(pair.params, pair.module, *pair.inputs, jax_fn=pair.jax_fn)
    fraction, wrong = judged(pair, found)
    assert (fraction, wrong) == (1.0, set())
    assert found.uncertain


def test_a_proposal_can_be_compared_as_it_is():
    pair = PAIRS["linen ResNet, torchvision's names"]()
    found = match(pair.params, pair.module, *pair.inputs, jax_fn=pair.jax_fn)
    report = compare(pair.jax_fn, pair.module, *pair.inputs, params=pair.params, names=found.names)
    assert report, str(report)


def test_equal_values_decide():
    pair = PAIRS["Flax BERT, transformers"]()
    ours, (parameters, buffers, _) = flat(pair.params), torch_arrays(pair.module)
    shapes = [{name: array.shape for name, array in side.items()} for side in (ours, parameters, buffers)]
    held = {n: a for row in resolve(pair.names, *shapes) for n, a in row.to_torch(ours).items()}
    found = match_arrays(ours, held, buffers)
    assert judged(pair, found) == (1.0, set())
    assert found.uncertain == {}


def test_the_code_says_what_is_uncertain():
    module = nn.ModuleDict({"q": nn.Linear(4, 4, bias=False), "extra": nn.Linear(3, 2, bias=False)})
    text = str(match({"q": {"kernel": np.ones((4, 4))}, "lost": np.ones((7, 5))}, module))
    assert '    "q.kernel": ("q.weight", (1, 0)),  # uncertain: its shape leaves a choice' in text
    assert 'only_jax = ["lost"]\nonly_torch = ["extra.weight"]' in text
    assert text.endswith(
        "# 1 of 1 rows are uncertain; match(params, module, *inputs, jax_fn=jax_fn) runs both models to decide"
    )


def test_an_nnx_state_with_random_keys_has_the_paths_of_its_arrays():
    class Dropped(nnx.Module):
        def __init__(self, rngs):
            self.fc = nnx.Linear(3, 4, rngs=rngs)
            self.dropout = nnx.Dropout(0.1, rngs=rngs)

    found = match(nnx.state(Dropped(nnx.Rngs(0))), nn.Sequential(nn.Linear(3, 4)))
    assert found.names["fc.kernel"] == ("0.weight", (1, 0))


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({}, r"^params: found no arrays, expected a tree of JAX or NumPy arrays$"),
        ({"a": {"w": "text"}}, r"^params: found str at 'a.w', expected an array$"),
        ({"a": {"w": np.ones(2)}, "a.w": np.ones(2)}, r"^params: found a.w twice, expected each path once$"),
        ({"w": np.ones((5, 7))}, r"^match: found nothing in common: 1 JAX parameters \(w \[5, 7\]\) and 2 of torch"),
    ],
)
def test_a_mistake_is_one_line(params: dict, message: str):
    with pytest.raises(UserError, match=message) as caught:
        match(params, nn.Linear(3, 2))
    assert "\n" not in str(caught.value)


def test_recordings_are_matched_without_either_framework():
    program = """
import sys
from parity.match import match_arrays
found = match_arrays({"fc.kernel": (3, 2), "fc.bias": (2,)}, {"0.weight": (2, 3), "0.bias": (2,)})
assert found.names == {"fc.kernel": ("0.weight", (1, 0)), "fc.bias": "0.bias"}, found
assert not {"jax", "torch"} & set(sys.modules)
"""
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
