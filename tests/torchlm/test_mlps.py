"""Feed-forward layers and their activations against plain formulas, at odd sizes."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from lmcore.config import ModelConfig
from torchlm.mlps import ACTIVATIONS, MLP, GatedMLP, make_mlp

SHAPE = ModelConfig(vocab_size=61, dim=20, n_layers=2, n_heads=5, n_kv_heads=1, head_dim=6, ffn_dim=24, max_seq_len=11)


def draws(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape))


def close(found: torch.Tensor, expected: torch.Tensor | np.ndarray, tolerance: float = 1e-12) -> bool:
    expected = torch.as_tensor(expected)
    return bool((found - expected).abs().max() <= tolerance * expected.abs().max())


def test_swiglu_gates_by_silu_of_the_gate():
    layer = GatedMLP(SHAPE).double()
    x = draws(2, 3, 20)
    gate, up = (x @ w.weight.T for w in (layer.gate_proj, layer.up_proj))
    assert close(layer(x), (gate / (1 + torch.exp(-gate)) * up) @ layer.down_proj.weight.T)
    assert not close(layer(x), (up / (1 + torch.exp(-up)) * gate) @ layer.down_proj.weight.T, 1e-3)


def test_geglu_and_relu_are_their_formulas():
    x = draws(2, 3, 20)
    for mlp, kind, act in (("geglu", GatedMLP, torch.nn.functional.gelu), ("relu", MLP, lambda y: y.clamp_min(0))):
        layer = make_mlp(replace(SHAPE, mlp=mlp, bias=True)).double()
        assert type(layer) is kind
        up, down = layer.up_proj, layer.down_proj
        inner = act(getattr(layer, "gate_proj", up)(x)) * (up(x) if kind is GatedMLP else 1)
        assert close(layer(x), inner @ down.weight.T + down.bias)
        assert not close(layer(x), inner @ down.weight.T, 1e-3)


@pytest.mark.parametrize(
    ("mlp", "at_one", "at_minus_two"),
    [
        ("swiglu", 0.7310585786300049, -0.2384058440442351),
        ("geglu", 0.8413447460685429, -0.0455002638963584),  # by the tanh formula 0.84119 and -0.04540
        ("gelu", 0.8413447460685429, -0.0455002638963584),
        ("relu", 1.0, 0.0),
    ],
)
def test_activations_have_their_known_values(mlp: str, at_one: float, at_minus_two: float):
    found = ACTIVATIONS[mlp](torch.tensor([1.0, 0.0, -2.0], dtype=torch.float64))
    np.testing.assert_allclose(found.numpy(), [at_one, 0, at_minus_two], rtol=1e-14)
