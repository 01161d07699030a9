"""Operations are known by their place, whatever calls them, and can be replaced there alone."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from parity.ports.causes.operations import bound, changed, recorded, setting


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.act = nn.LayerNorm(4), nn.GELU()

    def forward(self, x):
        return torch.relu(self.norm(x)).softmax(-1) + F.relu(self.act(x))


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList([Block(), Block()])

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return x


X = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))


def test_each_call_is_known_by_its_place_its_name_and_its_number():
    module = Network()
    keys = [op.key for op in recorded(module, lambda: module(X).sum()).operations]
    block = [("norm", "layer_norm"), ("", "relu"), ("", "softmax"), ("act", "gelu"), ("", "relu"), ("", "add")]
    expected = [(".".join(filter(None, [f"blocks.{i}", place])), name) for i in (0, 1) for place, name in block]
    assert [key[:2] for key in keys] == [*expected, ("(outside of the module)", "sum")]
    assert [key for key in keys if key[1] == "relu"] == [(f"blocks.{i}", "relu", n) for i in (0, 1) for n in (0, 1)]


def test_a_copy_has_the_places_of_the_module():
    module = Network()
    keys = [op.key for op in recorded(module, lambda: module(X)).operations]
    assert [op.key for op in recorded(module, lambda: copy.deepcopy(module)(X)).operations][-len(keys) :] == keys


def test_operations_inside_of_torchs_attention_are_seen():
    module = nn.MultiheadAttention(4, 2, batch_first=True)
    names = {op.name for op in recorded(module, lambda: module(X[None], X[None], X[None])).operations}
    assert {"softmax", "bmm"} <= names
    with changed(module, [([("", "softmax", 0)], lambda call, x, *args, **kwargs: torch.zeros_like(x))]):
        zero = module(X[None], X[None], X[None])[0]
    assert torch.equal(zero, module.out_proj.bias.expand_as(zero))


def test_one_call_is_replaced_and_others_are_not():
    block = Block()
    replaced = [([("", "relu", 1)], lambda call, x, **options: call(x) + 1)]
    plain = block(X)
    with changed(block, replaced):
        torch.testing.assert_close(block(X), plain + 1)
    torch.testing.assert_close(block(X), plain)


def test_replacements_of_one_call_add_up_and_gradients_go_through_them():
    block, x = Block(), X.clone().requires_grad_()
    double = [([("", "relu", 1)], lambda call, x, **options: 2 * call(x))]
    with changed(block, [*double, *double]):
        block(x).sum().backward()
    other = X.clone().requires_grad_()
    (torch.relu(block.norm(other)).softmax(-1) + 4 * F.relu(block.act(other))).sum().backward()
    torch.testing.assert_close(x.grad, other.grad)


def test_the_source_of_a_value_is_what_computed_it_not_what_moved_it():
    recording = recorded(nn.Identity(), lambda: torch.tanh(X).reshape(4, 3).unsqueeze(0).exp())
    [exp] = recording.named("exp")
    assert recording.source(exp.args[0]).name == "tanh"
    assert recording.source(X) is None


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda: X + 1.0, "add"),
        (lambda: 1.0 + X, "add"),
        (lambda: 2.0 * X, "mul"),
        (lambda: X / 2.0, "div"),
        (lambda: X.clone().add_(1.0), "add"),
        (lambda: X @ X.T, "matmul"),
    ],
)
def test_operators_have_the_names_of_their_functions(call, name: str):
    assert recorded(nn.Identity(), call).operations[-1].name == name


def test_arguments_are_known_by_parameter():
    assert bound("softmax", (X, -1), {}) == {"input": X, "dim": -1}
    assert bound("conv2d", (X, 1, None, 2), {"groups": 3}) == {
        "input": X,
        "weight": 1,
        "bias": None,
        "stride": 2,
        "groups": 3,
    }
    assert bound("var", (X, False), {}) == {"input": X, "unbiased": False}
    assert bound("var", (X, -1, False), {}) == {"input": X, "dim": -1, "unbiased": False}


@pytest.mark.parametrize("call", [torch.softmax, torch.Tensor.softmax, F.softmax])
def test_an_argument_is_set_however_it_is_passed(call):
    replace = setting("softmax", dim=lambda given: given["dim"] - 1)
    assert torch.equal(replace(call, X, -1), X.softmax(0))
    assert torch.equal(replace(call, X, dim=-1), X.softmax(0))
