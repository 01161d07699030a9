"""A port with each of five usual bugs, one at a time: each is found, and its cause named.

`python examples/ports/bugs.py FOLDER` also writes the page of each report there.
"""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
import torch.nn.functional as F
from torch import nn

from parity import compare
from parity.transforms import transpose

WIDTH, LENGTH, EPS = 8, 5, 1e-6
RNG = np.random.default_rng(0)
PARAMS = {name: RNG.standard_normal((WIDTH, WIDTH)) / 2 for name in ("q", "k", "v", "up", "down")}
PARAMS |= {"scale": RNG.standard_normal(WIDTH), "bias": RNG.standard_normal(WIDTH)}


def reference(params: dict, x: jax.Array) -> jax.Array:
    """Return the output B T D of one block: norm, causal attention, norm again, MLP."""

    def norm(x: jax.Array) -> jax.Array:
        centred = x - x.mean(axis=-1, keepdims=True)
        return centred / jnp.sqrt((centred**2).mean(axis=-1, keepdims=True) + EPS) * params["scale"] + params["bias"]

    y = norm(x)
    scores = (y @ params["q"]) @ jnp.swapaxes(y @ params["k"], -1, -2) / jnp.sqrt(WIDTH)
    scores = jnp.where(jnp.tril(jnp.ones((LENGTH, LENGTH), bool)), scores, -jnp.inf)
    x = x + jax.nn.softmax(scores) @ (y @ params["v"])
    return x + jax.nn.gelu(norm(x) @ params["up"]) @ params["down"]


class Port(nn.Module):
    """The port, right unless it is told otherwise."""

    def __init__(self, eps: float = EPS, gelu: str = "tanh", causal: bool = True):
        super().__init__()
        self.q, self.k, self.v, self.up, self.down = (nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(5))
        self.norm, self.act, self.causal = nn.LayerNorm(WIDTH, eps=eps), nn.GELU(gelu), causal

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the output B T D."""
        y = self.norm(x)
        x = x + F.scaled_dot_product_attention(self.q(y), self.k(y), self.v(y), is_causal=self.causal)
        return x + self.down(self.act(self.up(self.norm(x))))


def adamw(decay: float) -> tuple:
    """Return both optimizers, torch's with a weight decay."""
    return optax.adamw(1e-2), lambda parameters: torch.optim.AdamW(parameters, lr=1e-2, weight_decay=decay)


def main() -> int:
    """Compare the port, right and with each bug; return 0 where all is as it should be."""
    names = {name: (f"{name}.weight", transpose()) for name in ("q", "k", "v", "up", "down")}
    names |= {"scale": "norm.weight", "bias": "norm.bias"}
    cases = {
        "": (Port(), names, 1e-4),
        "eps": (Port(eps=1e-5), names, 1e-4),
        "tanh GELU": (Port(gelu="none"), names, 1e-4),
        "causal": (Port(causal=False), names, 1e-4),
        "transpose": (Port(), names | {"up": "up.weight"}, 1e-4),
        "weight_decay": (Port(), names, 1e-2),
    }
    wrong = 0
    x = RNG.standard_normal((2, LENGTH, WIDTH))
    for word, (port, mapping, decay) in cases.items():
        report = compare(reference, port, x, params=PARAMS, names=mapping, optimizers=adamw(decay))
        print(report, end="\n\n")
        for folder in sys.argv[1:] if word else ():
            report.save_page(Path(folder, f"{word.replace(' ', '-')}.html"))
        wrong += bool(report) != (not word) or not all(word in sentence for sentence in report.likely[:1] or ("",))
    return min(wrong, 1)


if __name__ == "__main__":
    raise SystemExit(main())
