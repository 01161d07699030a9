"""A residual block with BatchNorm in training mode: linen and torch, with the statistics after the call.

Flax's momentum is what is kept of the old statistics, torch's is what is taken of the new ones; and torch divides the
variance that it keeps by n − 1, Flax by n. That is a difference between the libraries which no port can remove: the
comparison finds it in the statistics, and in nothing else.
"""

import jax
import numpy as np
import torch
import torch.nn.functional as F
from flax import linen
from torch import nn

from parity import compare
from parity.transforms import transpose

CHANNELS = 4


class FlaxBlock(linen.Module):
    """Two convolutions, each with a norm, and the input added."""

    @linen.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Return the block's output, B H W C."""
        y = x
        for number in (0, 1):
            y = linen.Conv(CHANNELS, (3, 3), padding=1, use_bias=False, name=f"conv{number}")(y)
            y = linen.BatchNorm(use_running_average=not train, momentum=0.9, epsilon=1e-5, name=f"norm{number}")(y)
            y = linen.relu(y) if number == 0 else y
        return linen.relu(x + y)


class TorchBlock(nn.Module):
    """The same, B C H W inside."""

    def __init__(self) -> None:
        super().__init__()
        self.conv0, self.conv1 = (nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1, bias=False) for _ in range(2))
        self.norm0, self.norm1 = (nn.BatchNorm2d(CHANNELS, momentum=0.1) for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the block's output, B H W C."""
        y = x = x.movedim(-1, 1)
        y = F.relu(self.norm0(self.conv0(y)))
        return F.relu(x + self.norm1(self.conv1(y))).movedim(1, -1)


def main() -> int:
    """Compare the two; return 0 where nothing differs but the variance that is kept."""
    x = np.random.default_rng(0).standard_normal((2, 6, 6, CHANNELS))
    variables = FlaxBlock().init(jax.random.key(0), x, train=False)
    names = {
        "params.conv{i}.kernel": ("conv{i}.weight", transpose(3, 2, 0, 1)),
        "params.norm{i}.scale": "norm{i}.weight",
        "params.norm{i}.bias": "norm{i}.bias",
        "batch_stats.norm{i}.mean": "norm{i}.running_mean",
        "batch_stats.norm{i}.var": "norm{i}.running_var",
    }
    call_jax = lambda model, x: model(x, train=True)  # noqa: E731
    report = compare(FlaxBlock(), TorchBlock(), x, params=variables, names=names, call_jax=call_jax, train=True)
    print(report)
    failed = [result for result in report.results if not result.ok]
    differing = {d.name for result in failed for d in result.differences if not d.within(1e-12)}
    return 0 if differing == {"batch_stats.norm0.var", "batch_stats.norm1.var"} else 1


if __name__ == "__main__":
    raise SystemExit(main())
