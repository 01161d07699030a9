"""An operation in a narrower type is named with the submodule that computes it."""

import torch
from torch import nn

from parity.ports.torch.narrow import narrow_operations


class Narrow(nn.Module):
    """A softmax in float32."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.softmax(x.float(), dim=-1).to(x.dtype)


def test_operations_are_named_with_their_place_and_type():
    x = torch.randn(3, 5, dtype=torch.float64)
    for module, expected in ((nn.Sequential(nn.Identity(), Narrow()), True), (nn.Linear(5, 5).double(), False)):
        found = narrow_operations(module, lambda module=module: module(x), "float64")
        assert ("torch: _softmax in float32, 1" in found) == expected
        assert bool(found) == expected
        assert not module._forward_pre_hooks
        assert not module._forward_hooks


def test_masks_are_exact_in_any_type():
    class Masked(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            bias = (1 - (x > 0).float()) * torch.finfo(torch.float32).min
            return x + bias.double()

    assert narrow_operations(Masked(), lambda: Masked()(torch.randn(3, dtype=torch.float64)), "float64") == {}
