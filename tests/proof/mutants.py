"""Planted faults, each the only difference of a pair, with the place and the cause that must be named."""

from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
from torch import nn

from tests.proof.pairs import adamw, cosine, squared

__all__ = ["MUTANTS", "Mutant"]


@dataclass(frozen=True)
class Mutant:
    """One fault."""

    fault: str
    """For people; of a usual cause with the framework that has it."""
    pair: str
    options: dict[str, Any] = field(hash=False)
    place: str
    """What `report.first_failure.first` must contain."""
    cause: str
    """What the first sentence of `report.likely` must contain; empty where nothing usual explains the fault."""


def uncorrected() -> optax.GradientTransformation:
    """Return Adam without bias correction, which optax has as parts."""

    def init(params: Any) -> optax.ScaleByAdamState:
        zeros = jax.tree.map(jnp.zeros_like, params)
        return optax.ScaleByAdamState(jnp.zeros((), int), zeros, zeros)

    def update(grads: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        mu = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, state.mu, grads)
        nu = jax.tree.map(lambda v, g: 0.999 * v + 0.001 * g * g, state.nu, grads)
        step = jax.tree.map(lambda m, v: -0.01 * m / (v**0.5 + 1e-8), mu, nu)
        return step, optax.ScaleByAdamState(state.count + 1, mu, nu)

    return optax.GradientTransformation(init, update)


def sgd(**options: Any) -> Any:
    return partial(torch.optim.SGD, lr=1e-2, **options)


def adam(**options: Any) -> Any:
    return partial(torch.optim.Adam, lr=1e-2, **options)


def warmed(parameters: list[nn.Parameter]) -> tuple[torch.optim.Optimizer, Any]:
    """Return AdamW whose learning rate is halved after 20 steps."""
    optimizer = adamw(parameters)
    return optimizer, torch.optim.lr_scheduler.StepLR(optimizer, 20, 0.5)


def weighted(y: Any) -> tuple[Any, Any]:
    """Return the squares of four sequences, B T, and which of them count."""
    mask = np.array([[1.0, 1, 1, 1], [1, 1, 0, 0], [1, 0, 0, 0], [1, 1, 1, 0]])
    mask = jnp.asarray(mask, y.dtype) if isinstance(y, jax.Array) else torch.from_numpy(mask).to(y.dtype)
    return ((y - 1) ** 2).sum(-1).reshape(4, 4) * mask, mask


def over_all(y: Any) -> Any:
    """Return the mean over all that counts."""
    lost, mask = weighted(y)
    return lost.sum() / mask.sum()


def over_each(y: Any) -> Any:
    """Return the mean of the means of the sequences."""
    lost, mask = weighted(y)
    return (lost.sum(-1) / mask.sum(-1)).mean()


ALL, FIRST = "all 5 places", "blocks.0.norm1"
MUTANTS = [
    Mutant("torch: no causal mask", "attention", {"diagonal": (0, None)}, "output", "no mask -> causal in"),
    Mutant("JAX: no causal mask", "attention", {"diagonal": (None, 0)}, "output", "mask -> none in"),
    Mutant(
        "torch: mask off by one", "attention", {"diagonal": (0, 1)}, "output", "diagonal of the mask moved by -1 in"
    ),
    Mutant("JAX: mask off by one", "attention", {"diagonal": (1, 0)}, "output", "diagonal of the mask moved by +1 in"),
    Mutant(
        "torch: parts of the fused matrix in another order",
        "attention",
        {"fused": "key query value"},
        "output",
        "order q, k, v -> k, q, v of in_proj_weight",
    ),
    Mutant("torch: square kernel transposed", "attention", {"out": (0, 1)}, "output", "out_proj.weight"),
    Mutant("torch: gate order", "lstm", {"gates": ("ifgo", "ifog")}, "head", "gate order"),
    Mutant("JAX: gate order", "lstm", {"gates": ("figo", "ifgo")}, "head", "gate order"),
    Mutant("JAX: sequence reversed", "lstm", {"reverse": True}, "head", ""),
    Mutant("torch: eps", "resnet", {"eps": (1e-5, 1e-3)}, "norm0", "eps 0.001 -> 1e-05 in"),
    Mutant("JAX: eps", "resnet", {"eps": (1e-3, 1e-5)}, "norm0", "eps 1e-05 -> 0.001 in"),
    Mutant(
        "torch: momentum of BatchNorm",
        "resnet",
        {"momentum": (0.9, 0.9), "norm": nn.BatchNorm2d},
        "norm0.mean",
        "momentum 0.9 -> 0.1",
    ),
    Mutant(
        "JAX: momentum of BatchNorm",
        "resnet",
        {"momentum": (0.1, 0.1), "norm": nn.BatchNorm2d},
        "norm0.mean",
        "momentum 0.1 -> 0.9",
    ),
    Mutant("torch: variance by n - 1", "resnet", {"norm": nn.BatchNorm2d}, "norm0.var", "variance"),
    Mutant("JAX: padding SAME", "resnet", {"padding": "SAME"}, "conv0", "padding"),
    Mutant("torch: channels first when flattened", "resnet", {"flatten": "CHW"}, "head", "channels"),
    Mutant("torch: eps of all norms", "transformer", {"eps": (1e-6, 1e-5)}, FIRST, f"eps 1e-05 -> 1e-06 in {ALL}"),
    Mutant("JAX: eps of all norms", "transformer", {"eps": (1e-5, 1e-6)}, FIRST, f"eps 1e-06 -> 1e-05 in {ALL}"),
    Mutant(
        "torch: eps of one norm",
        "transformer",
        {"eps": (1e-6, 1e-4), "only": "blocks.1.norm2"},
        "blocks.1.norm2",
        "eps 0.0001 -> 1e-06 in blocks.1.norm2",
    ),
    Mutant("torch: exact GELU", "transformer", {"gelu": ("tanh", "none")}, "blocks.0.down", "GELU -> tanh GELU in"),
    Mutant("JAX: exact GELU", "transformer", {"gelu": ("none", "tanh")}, "blocks.0.down", "tanh GELU -> GELU in"),
    Mutant(
        "torch: scale of attention", "transformer", {"scale": lambda width: width**-0.5}, "blocks.0", "attention scale"
    ),
    Mutant("torch: residual left out", "transformer", {"residual": False}, "norm", ""),
    Mutant("JAX: gradient stopped", "transformer", {"stopped": True}, "blocks.0", ""),
    Mutant(
        "torch: square kernel of one layer transposed",
        "transformer",
        {"up": (0, 1)},
        "blocks.1",
        "transpose of blocks.1.up.weight",
    ),
    Mutant("torch: layers in another order", "transformer", {"order": (1, 0)}, "blocks.0", ""),
    Mutant("JAX: eps of RMS norms", "decoder", {"eps": 1e-6}, "output", "eps 1e-05 -> 1e-06 in"),
    Mutant("JAX: rotary embedding of pairs", "decoder", {"rotary": "pairs"}, "output", "pairs"),
    Mutant("JAX: theta of rotary embeddings", "decoder", {"theta": 1e6}, "output", ""),
    Mutant("JAX: heads tiled for repeated", "decoder", {"groups": "tiled"}, "output", ""),
    Mutant("JAX: GELU in place of SiLU", "decoder", {"act": jax.nn.gelu}, "output", "GELU in"),
    Mutant(
        "JAX: embeddings times the root of the width", "decoder", {"scale": 4.0}, "output", "embedding times sqrt(16)"
    ),
    Mutant("JAX: mask off by one", "decoder", {"diagonal": 1}, "output", "moved by +1"),
    Mutant("torch: gate and up swapped", "decoder", {"gate": "up"}, "output", "swap of "),
    Mutant("torch: mean of means", "mlp", {"losses": (over_all, over_each)}, "loss", "mean of means -> mean over all"),
    Mutant("JAX: mean of means", "mlp", {"losses": (over_each, over_all)}, "loss", "mean over all -> "),
    Mutant("JAX: loss times a half", "mlp", {"losses": (lambda y: squared(y) / 2, squared)}, "loss", "loss times 0.5"),
    Mutant(
        "torch: default weight decay",
        "mlp",
        {"optimizers": (optax.adamw(1e-2), partial(adamw, weight_decay=1e-2))},
        "layers.0.weight (update 1)",
        "weight_decay 0.01 -> 0.0001",
    ),
    Mutant(
        "torch: decay coupled",
        "mlp",
        {"optimizers": (optax.adamw(1e-2, weight_decay=0.1), adam(weight_decay=0.1))},
        "(update 1)",
        "weight decay coupled -> decoupled",
    ),
    Mutant(
        "JAX: decay coupled",
        "mlp",
        {
            "optimizers": (
                optax.chain(optax.add_decayed_weights(0.1), optax.adam(1e-2)),
                partial(adamw, weight_decay=0.1),
            )
        },
        "(update 1)",
        "weight decay decoupled -> coupled",
    ),
    Mutant(
        "JAX: no bias correction",
        "mlp",
        {"optimizers": (uncorrected(), adam())},
        "(update 1)",
        "bias correction -> none",
    ),
    Mutant(
        "torch: second beta",
        "mlp",
        {"optimizers": (optax.adam(1e-2), adam(betas=(0.9, 0.95)))},
        "(update",
        "beta2 0.95 -> 0.999",
    ),
    Mutant(
        "JAX: eps of Adam",
        "mlp",
        {"optimizers": (optax.adam(1e-2, eps=1e-6), adam())},
        "(update 1)",
        "eps 1e-08 -> 1e-06",
    ),
    Mutant(
        "JAX: momentum of Nesterov",
        "mlp",
        {"optimizers": (optax.sgd(1e-2, 0.9, nesterov=True), sgd(momentum=0.9))},
        "(update 1)",
        "nesterov False -> True",
    ),
    Mutant(
        "JAX: gradients clipped",
        "mlp",
        {"optimizers": (optax.chain(optax.clip_by_global_norm(0.1), optax.sgd(1e-2)), sgd())},
        "(update",
        "clipped to a global norm of 0.1",
    ),
    Mutant(
        "torch: schedule one step early",
        "mlp",
        {"optimizers": (optax.adamw(optax.cosine_decay_schedule(1e-2, 50)), partial(cosine, horizon=50, early=1))},
        "(update 1)",
        "schedule -> one step later",
    ),
    Mutant(
        "torch: learning rate halved after 20 steps",
        "mlp",
        {"optimizers": (optax.adamw(1e-2), warmed)},
        "loss at step 22",
        "schedule -> constant",
    ),
    Mutant("torch: corners aligned", "upsampling", {"align": True}, "output", "align_corners"),
    Mutant("torch: eps of GroupNorm", "upsampling", {"eps": (1e-5, 1e-6)}, "norm", "eps 1e-06 -> 1e-05 in norm"),
    Mutant("torch: kernel not flipped", "upsampling", {"flipped": False}, "up", "flipped"),
    Mutant("torch: padding and output_padding", "upsampling", {"padding": (0, 1)}, "output", ""),
]
