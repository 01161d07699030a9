"""An Equinox MLP with optax against a torch one with torch.optim: from outputs to the curve of 50 training steps."""

import equinox
import jax
import numpy as np
import optax
import torch
from torch import nn

from parity import compare


def main() -> int:
    """Compare the two; return the exit code."""
    rng = np.random.default_rng(0)
    mlp = equinox.nn.MLP(8, 3, width_size=16, depth=2, activation=jax.nn.gelu, key=jax.random.key(0))
    port = nn.Sequential(
        *(nn.Linear(8, 16), nn.GELU(approximate="tanh"), nn.Linear(16, 16), nn.GELU(approximate="tanh")),
        nn.Linear(16, 3),
    )
    names = {f"layers.{i}.{part}": f"{2 * i}.{part}" for i in range(3) for part in ("weight", "bias")}
    schedule = optax.cosine_decay_schedule(1e-2, 50)

    def optimizer(parameters: list) -> tuple:
        adam = torch.optim.AdamW(parameters, lr=1e-2, weight_decay=0.1)
        return adam, torch.optim.lr_scheduler.CosineAnnealingLR(adam, 50)

    report = compare(
        mlp,
        port,
        rng.standard_normal((32, 8)),
        names=names,
        call_jax=lambda model, x: jax.vmap(model)(x),
        losses=(lambda y: ((y - 1) ** 2).mean(), lambda y: ((y - 1) ** 2).mean()),
        optimizers=(optax.adamw(schedule, weight_decay=0.1), optimizer),
        batches=[(rng.standard_normal((32, 8)),) for _ in range(50)],
    )
    print(report)
    return 0 if report else 1


if __name__ == "__main__":
    raise SystemExit(main())
