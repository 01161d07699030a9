"""Linear layers are their formula, in their own dtype, forward and backward."""

import numpy as np
import pytest
import torch

from torchlm.linear import LINEARS, BiasedLinear, Linear


def test_matmuls_and_their_gradients_are_in_the_layers_dtype():
    layer, x = Linear(4, 6), torch.ones(2, 4, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
    assert y.dtype == torch.bfloat16
    (grad,) = torch.autograd.grad(y, x, y)
    assert grad.dtype == x.dtype


@pytest.mark.parametrize("bias", [False, True])
def test_a_layer_is_its_formula_with_and_without_a_bias(bias: bool):
    rng = np.random.default_rng(0)
    x, weight, offset = rng.normal(size=(2, 3, 4)), rng.normal(size=(4, 5)), rng.normal(size=5)
    layer = LINEARS[bias](4, 5).double()
    assert type(layer) is (BiasedLinear if bias else Linear)
    layer.weight.data = torch.from_numpy(weight.T)
    if bias:
        layer.bias.data = torch.from_numpy(offset)
    found = layer(torch.from_numpy(x)).detach().numpy()
    np.testing.assert_allclose(found, x @ weight + (offset if bias else 0), rtol=0, atol=1e-13)
    assert np.abs(found - x @ weight).max() > 1e-2 or not bias


def test_a_bias_is_added_in_the_matmuls_dtype():
    layer = BiasedLinear(1, 2)
    layer.weight.data, layer.bias.data = torch.ones(2, 1), torch.tensor([0.0, 1 / 3])
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(torch.full((2, 1), 256.0))
    assert y.dtype == torch.bfloat16
    assert y.tolist() == [[256.0, 256.0]] * 2, "bfloat16 has no number between 256 and 258"
