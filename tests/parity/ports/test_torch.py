"""torch's side: the user's module stays as it is, its copy has JAX's weights, and its gradients have JAX's names."""

import numpy as np
import torch
from torch import nn

from parity.mapping import resolve
from parity.ports.side import Call
from parity.ports.torch import output_names, prepared, run_torch

X = np.array([[1.0, 2.0]])
WEIGHTS = {"w": np.array([[3.0], [4.0]]), "b": np.array([0.5])}
NAMES: dict = {"w": ("weight", (1, 0)), "b": "bias"}
ROWS = resolve(NAMES, {"w": (2, 1), "b": (1,)}, {"weight": (1, 2), "bias": (1,)})


def test_a_copy_is_run_with_the_given_weights():
    module = nn.Linear(2, 1).train()
    module.bias.requires_grad_(False)
    before = module.weight.clone()
    copy = prepared(module, ROWS, WEIGHTS, "float64")
    assert torch.equal(module.weight, before)
    assert module.training
    assert not module.bias.requires_grad
    assert copy.weight.dtype == torch.float64
    call = Call(args=(X,), dtype="float64", losses=(lambda y: y, lambda y: y.sum()), outputs={"output": ("", "output")})
    assert output_names(copy, nn.Module.__call__, call.args) == ["output"]
    side = run_torch(copy, nn.Module.__call__, ROWS, call, {})
    assert side.loss == 11.5
    np.testing.assert_array_equal(side.grads["w"], X.T)
    np.testing.assert_array_equal(side.grads["b"], [1.0])
    np.testing.assert_array_equal(side.input_grads["input[0]"], [[3.0, 4.0]])
