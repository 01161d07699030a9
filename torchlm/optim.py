"""Global-norm clip, then AdamW with decay on matrices only; the learning rate is given at each update."""

import math
from collections.abc import Iterable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lmcore.config import OptimConfig

__all__ = ["apply_updates", "clip_by_global_norm", "decay_mask", "make_optimizer"]


def clip_by_global_norm(parameters: Iterable[nn.Parameter], max_norm: float) -> Float[Tensor, ""]:
    """Scale gradients by min(1, max_norm / (‖g‖ + 1e-6)); 0 does not clip. Returns ‖g‖ before the clip.

    Summed by `torch.sum`, since torch's norms add float32 squares one after the other on a CPU: 1e-5 too small for a
    million of them, and the more the larger the model.
    """
    parameters = list(parameters)
    norm = torch.stack([torch.sum(p.grad * p.grad) for p in parameters if p.grad is not None]).sum().sqrt()
    nn.utils.clip_grads_with_norm_(parameters, max_norm or math.inf, norm)
    return norm


def decay_mask(parameters: dict[str, nn.Parameter]) -> dict[str, bool]:
    """True for what weight decay acts on: matrices; norm weights are vectors."""
    return {name: p.ndim > 1 for name, p in parameters.items()}


def make_optimizer(config: OptimConfig, parameters: dict[str, nn.Parameter]) -> torch.optim.AdamW:
    """AdamW with decoupled decay, its state zero (Loshchilov & Hutter 2019, arXiv:1711.05101)."""
    decays = decay_mask(parameters)
    groups = [
        {"params": [p for name, p in parameters.items() if decays[name] is decayed], "weight_decay": decay}
        for decayed, decay in ((True, config.weight_decay), (False, 0.0))
    ]
    # A fused update reads and writes each value once, and on CUDA skips what a gradient scaler rejects without waiting.
    betas = config.beta1, config.beta2
    optimizer = torch.optim.AdamW(groups, lr=config.lr, betas=betas, eps=config.eps, fused=True)
    for p in parameters.values():
        count = torch.zeros((), dtype=torch.float32, device=p.device)
        optimizer.state[p] = {"step": count, "exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}
    return optimizer


def apply_updates(optimizer: torch.optim.Optimizer, lr: float, scaler: torch.amp.GradScaler | None = None) -> None:
    """One update of the parameters at this learning rate; a scaler leaves it out where a gradient is not finite."""
    for group in optimizer.param_groups:
        group["lr"] = lr
    if scaler is None:
        optimizer.step()
    else:
        scaler.step(optimizer)
        scaler.update()
