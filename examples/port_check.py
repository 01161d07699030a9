"""A port with a mistake in it, and how `parity.compare` finds the layer: `python examples/port_check.py`.

The reference is a small residual network in JAX; the port is a torch module. One of the port's norms keeps torch's
default eps of 1e-5, where the reference has 1e-6: it trains, a little differently, and nothing ever says so. With
`--mended` the port is right. Exit code 0: the same model; 1: they differ.
"""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import torch
from torch import nn

from parity import compare, tap

WIDTH, BLOCKS, EPS = 12, 3, 1e-6


def reference(params: dict, x: jax.Array) -> jax.Array:
    """Three blocks: norm, up, GELU, down, added to the stream."""
    for number, block in enumerate(params["blocks"]):
        centred = x - x.mean(axis=-1, keepdims=True)
        normed = centred / jnp.sqrt((centred**2).mean(axis=-1, keepdims=True) + EPS) * block["scale"] + block["bias"]
        normed = tap(f"norm {number}", normed)
        x = tap(f"block {number}", x + jax.nn.gelu(normed @ block["up"], approximate=False) @ block["down"])
    return x


class Block(nn.Module):
    """One block of the port."""

    def __init__(self, eps: float):
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH, eps=eps)
        self.up = nn.Linear(WIDTH, 4 * WIDTH, bias=False)
        self.down = nn.Linear(4 * WIDTH, WIDTH, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Add the block's part to the stream."""
        return x + self.down(nn.functional.gelu(self.up(self.norm(x))))


class Port(nn.Module):
    """The port."""

    def __init__(self, mended: bool):
        super().__init__()
        self.blocks = nn.ModuleList([Block(EPS), Block(EPS if mended else 1e-5), Block(EPS)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """All blocks in a row."""
        for block in self.blocks:
            x = block(x)
        return x


def main(mended: bool) -> int:
    """Compare, and print what was found."""
    rng = np.random.default_rng(0)
    shapes = {"scale": (WIDTH,), "bias": (WIDTH,), "up": (WIDTH, 4 * WIDTH), "down": (4 * WIDTH, WIDTH)}
    params = {"blocks": [{n: rng.standard_normal(s) for n, s in shapes.items()} for _ in range(BLOCKS)]}
    names: dict[str, str | tuple[str, tuple[int, ...]]] = {}
    taps = {}
    for i in range(BLOCKS):
        names |= {f"blocks.{i}.scale": f"blocks.{i}.norm.weight", f"blocks.{i}.bias": f"blocks.{i}.norm.bias"}
        names |= {f"blocks.{i}.{n}": (f"blocks.{i}.{n}.weight", (1, 0)) for n in ("up", "down")}
        taps |= {f"norm {i}": f"blocks.{i}.norm", f"block {i}": f"blocks.{i}"}
    x = rng.standard_normal((5, WIDTH))
    report = compare(reference, Port(mended), x, params=params, names=names, taps=taps)
    print(report)
    return 0 if report else 1


if __name__ == "__main__":
    sys.exit(main("--mended" in sys.argv[1:]))
