"""What a benchmark asks of an implementation, and what several of them share."""

from typing import Any, Protocol, runtime_checkable

import numpy as np

from lmcore.config import Config
from lmcore.model.flops import flops_per_token

__all__ = [
    "SHOWN",
    "GeneratingImplementation",
    "Implementation",
    "TrainingImplementation",
    "step_flops",
    "torch_device_bytes",
    "wait_for_torch",
]

SHOWN = 64
"""Logits of each sequence that are compared, to see that all implementations have the same model."""


@runtime_checkable
class Implementation(Protocol):
    """What is timed; its weights are the shared NumPy initialization."""

    device: str
    parameters: int
    peak: float | None
    """The vendor's dense 16-bit peak in FLOP/s, where it is known."""
    step_flops: float
    """FLOPs of one update."""

    def wait(self, value: Any = None) -> None:
        """Return when all that was launched is done."""

    def device_bytes(self) -> int | None:
        """Most memory of the device in use at once; None on a CPU."""


@runtime_checkable
class TrainingImplementation(Implementation, Protocol):
    """An implementation that trains."""

    def step(self, batch: np.ndarray, lr: float) -> Any:
        """Launch one update; returns the loss, which may not be there yet."""


@runtime_checkable
class GeneratingImplementation(Implementation, Protocol):
    """An implementation that generates."""

    def logits(self, prompts: np.ndarray) -> np.ndarray:
        """Of the token after each prompt, the first SHOWN."""

    def generate(self, prompts: np.ndarray) -> tuple[float, float]:
        """Generate `sample.max_tokens` after each prompt; return the seconds of prefill and of decoding.

        A prefill and a few decoded tokens come before, not timed.
        """


def step_flops(config: Config) -> float:
    """FLOPs of one update of the model."""
    train = config.train
    return flops_per_token(config.model, train.seq_len) * train.batch_size * train.seq_len


def wait_for_torch(device: Any) -> None:
    """Return when a torch device has nothing left to do."""
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def torch_device_bytes(device: Any) -> int | None:
    """Most bytes that tensors held at once on a CUDA device."""
    import torch

    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
