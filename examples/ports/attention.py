"""Flax's multi-head attention, with a kernel for each of query, key and value, and torch's, with one for all three."""

import jax
import numpy as np
import torch
from flax import linen
from torch import nn

from parity import compare
from parity.transforms import chain, concat, reshape, transpose

WIDTH, HEADS = 12, 3
PARTS = ("query", "key", "value")


class SelfAttention(nn.Module):
    """Attention of a sequence to itself."""

    def __init__(self) -> None:
        super().__init__()
        self.mha = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the outputs alone, without the weights."""
        return self.mha(x, x, x, need_weights=False)[0]


def main() -> int:
    """Compare the two; return the exit code."""
    x = np.random.default_rng(0).standard_normal((2, 5, WIDTH))
    attention = linen.MultiHeadDotProductAttention(num_heads=HEADS, bias_init=linen.initializers.normal(1.0))
    params = attention.init(jax.random.key(1), x, x)["params"]
    fused = chain(reshape(WIDTH, -1), transpose(), concat())  # D × N × H, and one 3D × D in torch
    names = {
        tuple(f"{part}.kernel" for part in PARTS): ("mha.in_proj_weight", fused),
        tuple(f"{part}.bias" for part in PARTS): ("mha.in_proj_bias", chain(reshape(-1), concat())),
        "out.kernel": ("mha.out_proj.weight", chain(reshape(-1, WIDTH), transpose())),
        "out.bias": "mha.out_proj.bias",
    }
    call_jax = lambda model, x: model(x, x)  # noqa: E731
    report = compare(attention, SelfAttention(), x, params=params, names=names, call_jax=call_jax)
    print(report)
    return 0 if report else 1


if __name__ == "__main__":
    raise SystemExit(main())
