"""Global-norm clip, then an optimizer with decay on matrices only; the learning rate is an argument of each update."""

import math
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, assert_never

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from lmcore.config import OptimConfig
from lmcore.optim.epsilon import norm_epsilon
from lmcore.optim.table import OPTIMIZERS, kinds_of, takes_muon
from torchlm.sharded_optim import ShardedAdafactor, ShardedMuon
from torchlm.sharding import Sharding

__all__ = ["apply_updates", "clip_by_global_norm", "decay_mask", "make_optimizer", "muon_mask"]


def clip_by_global_norm(
    parameters: Iterable[nn.Parameter], max_norm: float, sharding: Sharding | None = None
) -> Float[Tensor, ""]:
    """Scale gradients by min(1, max_norm / (‖g‖ + 1e-6)); 0 does not clip. Return ‖g‖ before the clip.

    Summed by `torch.sum`, since torch's norms add float32 squares one after the other on a CPU: 1e-5 too small for a
    million of them, and the more the larger the model.

    Args:
        parameters: with their gradients.
        max_norm: largest norm.
        sharding: of the parameters, where each process has a part of them.
    """
    parameters = list(parameters)
    if sharding is None:
        norm = torch.stack([torch.sum(p.grad * p.grad) for p in parameters if p.grad is not None]).sum().sqrt()
    else:
        norm = sharding.norm([p for p in parameters if p.grad is not None])
    nn.utils.clip_grads_with_norm_(parameters, max_norm or math.inf, norm)
    return norm


def decay_mask(parameters: dict[str, nn.Parameter]) -> dict[str, bool]:
    """Return True for each parameter with weight decay: the matrices; norm weights are vectors."""
    return {name: p.ndim > 1 for name, p in parameters.items()}


def muon_mask(parameters: dict[str, nn.Parameter]) -> dict[str, bool]:
    """Return True for each parameter that Muon trains: the matrices of the blocks."""
    return {name: takes_muon(name, p.ndim) for name, p in parameters.items()}


def make_optimizer(
    config: OptimConfig, parameters: dict[str, nn.Parameter], sharding: Sharding | None = None
) -> torch.optim.Optimizer:
    """Return the optimizer that the config names, its state zero; `apply_updates` sets its learning rate.

    Sources: AdamW, Loshchilov & Hutter 2019, arXiv:1711.05101; Adafactor, Shazeer & Stern 2018, arXiv:1804.04235;
    Muon, Jordan et al. 2024, scaled as in Liu et al. 2025, arXiv:2502.16982; Lion, Chen et al. 2023, arXiv:2302.06675.

    Args:
        config: of the optimizer.
        parameters: dotted name -> parameter, or this process's part of it.
        sharding: of the parameters, where each process has a part of them.
    """
    groups, betas = _groups(config, parameters), (config.beta1, config.beta2)
    eps = norm_epsilon(np.dtype(str(next(iter(parameters.values())).dtype).removeprefix("torch.")))
    optimizer: torch.optim.Optimizer
    adafactor: Callable[..., torch.optim.Optimizer]
    muon: Callable[..., torch.optim.Optimizer]
    # A fused update reads and writes each value once, and on CUDA skips what a gradient scaler rejects without waiting.
    match config.name:
        case "adamw":
            optimizer = torch.optim.AdamW(groups, betas=betas, eps=config.eps, fused=True)
        case "adafactor":
            adafactor = partial(ShardedAdafactor, sharding=sharding) if sharding else torch.optim.Adafactor
            optimizer = adafactor(groups, eps=(eps, 1e-3))
        case "muon":
            by_muon = muon_mask(parameters)
            matrices, rest = ({n: p for n, p in parameters.items() if by_muon[n] is wanted} for wanted in (True, False))
            muon = partial(ShardedMuon, sharding=sharding, whole=_Muon) if sharding else _Muon
            optimizer = _Together(
                muon(_groups(config, matrices), momentum=config.momentum, eps=eps, adjust_lr_fn="match_rms_adamw"),
                torch.optim.AdamW(_groups(config, rest), betas=betas, eps=config.eps, fused=True),
            )
        case "lion":
            optimizer = _Lion(groups, betas)
        case "sgd":
            optimizer = torch.optim.SGD(groups, momentum=config.momentum, fused=True)
        case _:
            assert_never(config.name)
    for name, p in parameters.items():
        optimizer.state[p].update(_first_state(config.name, name, p))
    return optimizer


def apply_updates(optimizer: torch.optim.Optimizer, lr: float, scaler: torch.amp.GradScaler | None = None) -> None:
    """Update the parameters in place at this learning rate.

    Args:
        optimizer: from `make_optimizer`, its gradients clipped.
        lr: learning rate of this update.
        scaler: for float16; skips the update where a gradient is not finite.
    """
    for group in optimizer.param_groups:
        group["lr"] = lr
    if scaler is None:
        optimizer.step()
    else:
        scaler.step(optimizer)
        scaler.update()


def _groups(config: OptimConfig, parameters: dict[str, nn.Parameter]) -> list[dict[str, Any]]:
    """Return the parameter groups with and without weight decay; an empty group is left out."""
    decays = decay_mask(parameters)
    groups = [
        {"params": [p for name, p in parameters.items() if decays[name] is decayed], "weight_decay": decay}
        for decayed, decay in ((True, config.weight_decay), (False, 0.0))
    ]
    return [group for group in groups if group["params"]]


def _first_state(optimizer: str, name: str, p: nn.Parameter) -> dict[str, Tensor]:
    """Return an optimizer's state for a parameter before the first update, under torch's names."""
    factored = optimizer == "adafactor"
    names = {
        "mean": "exp_avg",
        "square": "variance" if factored else "exp_avg_sq",
        "momentum": "momentum_buffer",
        "rows": "row_var",
        "columns": "col_var",
    }
    like = {"rows": p[:, :1], "columns": p[:1]} if p.ndim == 2 else {}
    kinds = kinds_of(optimizer, name, p.ndim)
    counts = OPTIMIZERS[optimizer].counts and kinds != ("momentum",)  # torch's Muon does not, AdamW beside it does
    count = {"step": torch.zeros((), dtype=torch.float32, device=None if factored else p.device)} if counts else {}
    return count | {names[kind]: torch.zeros_like(like.get(kind, p)) for kind in kinds}


class _Lion(torch.optim.Optimizer):
    """Lion: the sign of an interpolated momentum. torch has none, and ten lines are not worth a dependency."""

    def __init__(self, groups: list[dict[str, Any]], betas: tuple[float, float]):
        super().__init__(groups, {"betas": betas})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Update the parameters once."""
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            for p in group["params"]:
                mean = self.state[p]["exp_avg"]
                direction = mean.mul(beta1).add_(p.grad, alpha=1 - beta1).sign_()
                p.mul_(1 - group["lr"] * group["weight_decay"]).add_(direction, alpha=-group["lr"])
                mean.mul_(beta2).add_(p.grad, alpha=1 - beta2)


class _Muon(torch.optim.Muon):
    """torch's Muon with its Newton–Schulz iteration in the parameters' dtype, as in optax, not in bfloat16."""

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Update the parameters once."""
        with _NotInBfloat16():
            super().step()


class _NotInBfloat16(TorchFunctionMode):
    """Copy a tensor where torch would convert it to bfloat16."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return (Tensor.clone if func is Tensor.bfloat16 else func)(*args, **(kwargs or {}))


class _Together(torch.optim.Optimizer):
    """Several optimizers as one, so that a gradient scaler skips an update in all of them or in none."""

    def __init__(self, *parts: torch.optim.Optimizer):
        self.parts = parts
        super().__init__([group for part in parts for group in part.param_groups], {})
        for part in parts:
            part.state = self.state

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Update the parameters once."""
        for part in self.parts:
            part.step()
