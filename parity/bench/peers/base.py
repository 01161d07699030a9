"""What the peers share: the weights of the shared initialization, AdamW, and how the peers in PyTorch train."""

from abc import ABC, abstractmethod
from typing import Any

import numpy as np

from lmcore.config import Config, ModelConfig
from lmcore.errors import UserError
from lmcore.model.flops import peak_flops
from lmcore.model.init import initial_weight
from parity.bench.base import SHOWN, step_flops, torch_device_bytes, wait_for_torch

__all__ = ["TorchPeer", "adamw", "check_llama", "initial_weights"]


def initial_weights(config: Config) -> dict[str, np.ndarray]:
    """Return the shared NumPy initialization, under the names and in the layout of Hugging Face's Llama.

    Raises:
        UserError: the model is no Llama.
    """
    from parity.convert.families import LLAMA
    from parity.convert.names import table

    if differences := LLAMA.differences(config.model):
        raise UserError("; ".join(differences))
    return {
        row.hf: row.convert(initial_weight(config.train.seed, row.jax, row.shape, config.model), "jax", "hf")
        for row in table(config.model)
    }


def check_llama(title: str, config: Config) -> None:
    """Check that a model is as plain as these peers' Llamas, whose fields for the rest are not used here.

    Args:
        title: of the peer, in messages.
        config: shape of the model.

    Raises:
        UserError: it is not.
    """
    model: ModelConfig = config.model
    biased = any(model.biased(layer) for layer in ("q_proj", "o_proj", "up_proj"))
    for name, found, expected in (
        ("model.bias", biased, False),
        ("model.rope_scaling", model.rope_scaling, None),
        ("model.head_dim", model.head_dim, model.dim // model.n_heads),
        ("train.remat", config.train.remat, False),
    ):
        if found != expected:
            raise UserError(f"{name}: found {found!r}, expected {expected!r} to be timed beside {title}")


def adamw(config: Config, model: Any, **options: Any) -> Any:
    """AdamW as the twins have it: weight decay on matrices only.

    Args:
        config: rates of the optimizer.
        model: whose parameters are trained.
        options: further ones of `torch.optim.AdamW`.
    """
    import torch

    optim = config.optim
    parameters = list(model.parameters())
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": optim.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    rates: dict[str, Any] = {"lr": optim.lr, "betas": (optim.beta1, optim.beta2), "eps": optim.eps}
    return torch.optim.AdamW(groups, **rates, **options)


class TorchPeer(ABC):
    """A peer in PyTorch: device, dtype, and one update in micro-batches."""

    model: Any
    optimizer: Any

    def __init__(self, config: Config):
        import torch

        from torchlm.device import device_name, set_up_torch

        self.config = config
        self.torch_device = set_up_torch(config.train)
        self.device = device_name(self.torch_device)
        self.peak = peak_flops(self.device)
        self.step_flops = step_flops(config)
        self.dtype = getattr(torch, config.train.precision)

    @property
    def parameters(self) -> int:
        """How many parameters the model has."""
        return sum(p.numel() for p in self.model.parameters())

    @abstractmethod
    def backward(self, inputs: Any, targets: Any, parts: int) -> Any:
        """Return the mean loss of a micro-batch over `parts`, after its gradients have been added."""

    @abstractmethod
    def clip(self) -> None:
        """Clip the gradients to the global norm `optim.clip`."""

    def step(self, batch: np.ndarray, lr: float) -> Any:
        import torch

        tokens = torch.from_numpy(batch).long().to(self.torch_device)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.zero_grad()
        parts = self.config.train.grad_accum
        total = torch.zeros((), device=self.torch_device)
        for part in tokens.chunk(parts):
            total += self.backward(part[:, :-1], part[:, 1:], parts).detach()
        self.clip()
        self.optimizer.step()
        return total

    def wait(self, value: Any = None) -> None:
        wait_for_torch(self.torch_device)

    def prompts(self, prompts: np.ndarray) -> Any:
        """Prompts as token ids on the device."""
        import torch

        return torch.from_numpy(prompts).long().to(self.torch_device)

    @abstractmethod
    def forward(self, tokens: Any) -> Any:
        """Return the logits of all tokens."""

    def logits(self, prompts: np.ndarray) -> np.ndarray:
        import torch

        with torch.inference_mode():
            return self.forward(self.prompts(prompts))[:, -1, :SHOWN].float().cpu().numpy()

    def device_bytes(self) -> int | None:
        return torch_device_bytes(self.torch_device)
