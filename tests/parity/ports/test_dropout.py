"""Dropout drops the same values on both sides, in layers and in attention; given masks are taken."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from flax import linen
from torch import nn

from lmcore.errors import UserError
from parity import compare
from parity.ports.dropout import drawn, jax_masks, kept, torch_masks
from parity.ports.side import Request
from parity.ports.torch.port import TorchPort

X = np.random.default_rng(0).standard_normal((3, 4, 8))


class Linen(linen.Module):
    """Two layers, each with dropout after it."""

    @linen.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = linen.Dropout(0.4, deterministic=False)(linen.Dense(8, name="a")(x))
        return linen.Dropout(0.2, deterministic=False)(linen.Dense(8, name="b")(x))


def test_the_same_values_are_dropped_in_both():
    params = jax.tree.map(np.asarray, Linen().init({"params": jax.random.key(0), "dropout": jax.random.key(1)}, X))[
        "params"
    ]
    names = {"{l}.kernel": ("{l}.weight", (1, 0)), "{l}.bias": "{l}.bias"}

    class Torch(nn.Module):
        def __init__(self, rate: float = 0.4) -> None:
            super().__init__()
            self.a, self.b, self.drop = nn.Linear(8, 8), nn.Linear(8, 8), nn.Dropout(rate)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return F.dropout(self.b(self.drop(self.a(x))), 0.2, self.training)

    with jax.numpy_rank_promotion("allow"):
        report = compare(Linen(), Torch(), X, params=params, names=names, train=True)
        assert report, str(report)
        assert not compare(Linen(), Torch(0.5), X, params=params, names=names, train=True)
        assert not compare(Linen(), Torch(), X, params=params, names=names), "linen's own flag says so, torch's not"
        assert compare(Linen(), Torch(), X, params=params, names=names, train=True, masks=kept)


@pytest.mark.parametrize("causal", [False, True])
def test_dropout_within_attention_is_that_of_the_plain_formula(causal: bool):
    q, k, v = (torch.randn(2, 3, 5, 4, dtype=torch.float64) for _ in range(3))
    with torch_masks(kept):
        found = F.scaled_dot_product_attention(q, k, v, dropout_p=0.5, is_causal=causal)
        plain = F.scaled_dot_product_attention(q, k, v, is_causal=causal)
    torch.testing.assert_close(found, 2 * plain)


def test_masks_are_numbered_in_the_order_of_calls():
    seen: list = []

    def masks(number: int, shape: tuple[int, ...], keep: float) -> np.ndarray:
        seen.append((number, shape, round(keep, 6)))
        return np.ones(shape, bool)

    with torch_masks(masks):
        F.dropout(torch.ones(2, 3), 0.25)
        nn.Dropout(0.5)(torch.ones(4))
        F.dropout(torch.ones(4), 0.5, training=False)
    with jax_masks(masks):
        jax.random.bernoulli(jax.random.key(0), 0.75, (2, 3))
    assert seen == [(0, (2, 3), 0.75), (1, (4,), 0.5), (0, (2, 3), 0.75)]
    assert jnp.mean(jax.random.bernoulli(jax.random.key(0), 0.5, (1000,))) < 0.7, "put back"


@pytest.mark.parametrize(("layer", "shape"), [(nn.Dropout1d, (3, 4, 5)), (nn.Dropout2d, (3, 4, 5, 2))])
def test_masks_of_whole_channels_are_given_too(layer: type, shape: tuple):
    seen = []

    def masks(number: int, shape: tuple, keep: float) -> np.ndarray:
        seen.append(shape)
        return drawn(number, shape, keep)

    x = torch.ones(shape)
    with torch_masks(masks):
        found = layer(0.5)(x)
    assert seen == [(3, 4, *(1 for _ in shape[2:]))]
    assert torch.equal(found, x * 2 * torch.from_numpy(drawn(0, seen[0], 0.5)))


def test_masks_that_cannot_be_given_are_said():
    with torch_masks(kept), pytest.raises(UserError, match="train: alpha_dropout draws masks that cannot be given"):
        nn.AlphaDropout(0.5)(torch.ones(3))
    assert torch.equal(nn.AlphaDropout(0.5).eval()(torch.ones(3)), torch.ones(3))
    request = Request(args=(), train=True)
    with pytest.raises(UserError, match="train: GRU draws masks between its layers"):
        TorchPort(nn.GRU(2, 2, num_layers=2, dropout=0.5), None, request)
    TorchPort(nn.GRU(2, 2, num_layers=1), None, request)
