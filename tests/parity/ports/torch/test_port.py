"""torch's side: the user's module stays as it is, its copy has the weights asked for, compiled and functional too."""

import numpy as np
import pytest
import torch
from torch import nn

from lmcore.errors import UserError
from parity.ports.side import Request
from parity.ports.torch.port import TorchPort, as_module

X = np.array([[1.0, 2.0]])
WEIGHTS = {"weight": np.array([[3.0, 4.0]]), "bias": np.array([0.5])}


def port(module: nn.Module, **options) -> TorchPort:
    return TorchPort(module, None, Request(**({"args": (X,), "loss": lambda y: y.sum()} | options)))


def test_a_copy_is_run_with_the_given_weights():
    module = nn.Linear(2, 1).train()
    module.bias.requires_grad_(False)
    before = module.weight.clone()
    one = port(module)
    assert one.output_names() == ["output"]
    side = one.run(WEIGHTS)
    assert side.loss == 11.5
    np.testing.assert_array_equal(side.grads["weight"], X)
    np.testing.assert_array_equal(side.grads["bias"], [1.0])
    np.testing.assert_array_equal(side.input_grads["input[0]"], [[3.0, 4.0]])
    assert torch.equal(module.weight, before)
    assert (module.training, one.module.training, module.bias.requires_grad) == (True, False, False)
    assert one.module.weight.dtype == torch.float64


def test_outputs_of_submodules_and_statistics_after_the_call_are_recorded():
    one = port(nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)), args=(np.eye(2),), train=True)
    side = one.run({})
    assert list(side.activations) == ["0", "1"]
    assert side.modules["1"] == ("1.weight", "1.bias", "1.running_mean", "1.running_var", "1.num_batches_tracked")
    assert np.abs(side.state["1.running_mean"]).min() > 0
    again = one.run({}).state["1.running_mean"]
    assert again.tolist() == side.state["1.running_mean"].tolist(), "each run has the same statistics at first"


def test_a_compiled_module_has_the_names_of_the_plain_one():
    one = port(torch.compile(nn.Linear(2, 1), backend="eager"))
    assert set(one.weights) == {"weight", "bias"}
    assert one.run(WEIGHTS).loss == 11.5
    assert one.is_compiled
    assert not one.eager().is_compiled
    assert one.eager().run(WEIGHTS).activations == {}
    assert (
        TorchPort(nn.Sequential(torch.compile(nn.Linear(2, 1), backend="eager")), None, Request(args=(X,)))
        .eager()
        .is_compiled
    )


def test_a_function_of_a_dict_of_tensors_is_a_module():
    tensors = {"a.w": torch.ones(2), "b": torch.zeros(1), "n": torch.tensor(3)}
    module = as_module(lambda t, x: (t["a.w"] * x).sum() + t["b"] + t["n"], tensors)
    one = port(module)
    assert (set(one.weights), set(one.trained)) == ({"a.w", "b", "n"}, {"a.w", "b"})
    assert one.run({"b": np.array([0.5])}).loss == 6.5


def test_a_scheduler_steps_after_the_optimizer():
    def make(parameters: list) -> tuple:
        optimizer = torch.optim.SGD(parameters, lr=1.0)
        return optimizer, torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.0)

    curve = port(nn.Linear(2, 1), optimizer=make, batches=[(X,)] * 3).curve(WEIGHTS)
    assert curve.tolist() == [11.5, 5.5, 5.5]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"optimizer": "adam"}, "optimizers: found 'adam' for torch, expected a function from parameters to"),
        ({"optimizer": lambda p: p}, "expected a torch.optim.Optimizer"),
        ({"device": "quantum"}, "device: found no quantum for torch, expected cpu, or cuda or mps where there is one"),
    ],
)
def test_mistakes_are_one_line(options: dict, said: str):
    with pytest.raises(UserError) as caught:
        port(nn.Linear(2, 1), **options).updates(WEIGHTS, WEIGHTS, (1.0,))
    assert said in str(caught.value)
