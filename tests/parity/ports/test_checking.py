"""A mistake in what is handed to a comparison is one line, which names what was found and expected."""

import json
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import optax
import pytest
import torch
from torch import nn

from lmcore.errors import UserError
from parity import compare, record
from parity.match import match

RNG = np.random.default_rng(0)
X = RNG.standard_normal((5, 4))
PARAMS = {"w": RNG.standard_normal((4, 3))}
NAMES: dict = {"w": ("weight", (1, 0))}


def function(params: dict, x: Any) -> Any:
    return x @ params["w"]


def module() -> nn.Module:
    return nn.Linear(4, 3, bias=False)


def sgd(parameters: list) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, 1e-2)


def lbfgs(parameters: list) -> torch.optim.Optimizer:
    return torch.optim.LBFGS(parameters)


def plateau(parameters: list) -> tuple:
    optimizer = sgd(parameters)
    return optimizer, torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)


MISTAKES: list[tuple[dict, str]] = [
    ({"dtype": "float63"}, "dtype: found 'float63', expected one of float64, float32, bfloat16, float16"),
    ({"dtype": np.float32}, "dtype: found <class 'numpy.float32'>, expected one of"),
    ({"dtype": None}, "dtype: found None, expected one of"),
    ({"names": match(PARAMS, module())}, ", its field names"),
    ({"names": None}, "names: found None, expected a dict"),
    ({"names": ["w"]}, "names: found ['w'], expected a dict"),
    ({"names": {1: "weight"}}, "names: 1: found 1, expected a name or a tuple of names"),
    ({"losses": lambda y: y.sum()}, "losses: found <function"),
    ({"losses": (lambda y: y.sum(),)}, "expected a pair: functions of JAX's outputs and of torch's"),
    (
        {"losses": (lambda y: y, lambda y: y)},
        "losses: found an array of shape [5, 3] of float64 in JAX, expected a real",
    ),
    ({"losses": (lambda y: y.sum(), lambda y: y)}, "losses: found an array of shape [5, 3] of torch.float64 in torch"),
    ({"optimizers": {"jax": optax.sgd(0.1), "torch": sgd}}, "optimizers: found {'jax'"),
    ({"optimizers": (optax.sgd(0.1), lambda p: (sgd(p), 1, 2))}, "optimizers: found ("),
    (
        {"optimizers": (optax.sgd(0.1), lbfgs)},
        "optimizers: found LBFGS for torch, expected one whose step needs no loss",
    ),
    ({"optimizers": (optax.sgd(0.1), plateau)}, "optimizers: found ReduceLROnPlateau for torch"),
    ({"optimizers": (optax.sgd(0.1), lambda p: (sgd(p), print))}, "as torch's scheduler, expected one with a step()"),
    ({"batches": [X, X]}, "batches: expected a list of tuples"),
    ({"batches": X}, "batches: expected a list of tuples"),
    ({"taps": ["q"]}, "taps: found ['q'], expected a dict"),
    ({"taps": {"a": None}}, "taps: found {'a': None}"),
    ({"masks": 3}, "masks: found 3, expected a function"),
    ({"call_module": 3}, "call_module: found 3, expected a function"),
]


OTHERS = (42, None, nn.Linear, function, {"weight": torch.zeros(3, 4)}, (function, {"w": X}))
"""What is no torch module."""


@pytest.fixture(scope="module")
def messages() -> list[str]:
    """What is said of each mistake by a process in which argument types are not checked, as they are in tests."""
    done = subprocess.run([sys.executable, "-m", "tests.parity.ports.test_checking"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize(("number", "said"), list(enumerate(said for _, said in MISTAKES)))
def test_a_mistake_is_said_in_one_line(number: int, said: str, messages: list[str]):
    assert said in messages[number]


@pytest.mark.parametrize("number", range(len(OTHERS)))
def test_what_is_no_torch_module_is_said(number: int, messages: list[str]):
    expected = "expected an nn.Module, or a pair of a function and a dict of tensors"
    assert messages[len(MISTAKES) + number].startswith("torch_module: found ")
    assert messages[len(MISTAKES) + number].endswith(expected)


def test_a_model_without_real_outputs_is_said():
    with pytest.raises(UserError, match="outputs: found none of JAX that is real"):
        compare(lambda p, x: (x @ p["w"]).argmax(-1), module(), X, params=PARAMS, names=NAMES)


def test_where_a_recording_cannot_be_written_is_said(tmp_path: Path):
    for path in (tmp_path, tmp_path / "missing" / "file"):
        with pytest.raises(UserError, match=r"path: found .*, expected the name of a file in a folder that exists"):
            record(path, function, X, params=PARAMS)


def main() -> None:
    """Print what is said of each mistake, as JSON."""
    said = []
    given: dict[str, Any] = {"params": PARAMS, "names": NAMES}
    calls = [partial(compare, function, module(), X, **given | options) for options, _ in MISTAKES]
    for call in [*calls, *(partial(compare, function, other, X, **given) for other in OTHERS)]:
        try:
            said.append(str(call()))
        except UserError as error:
            said.append(str(error))
    print(json.dumps(said))


if __name__ == "__main__":
    main()
