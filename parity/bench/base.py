"""What a benchmark asks of an implementation, and what several of them share."""

from typing import Any, Protocol, runtime_checkable

import numpy as np

from lmcore.config import Config
from lmcore.model.flops import flops_per_token

__all__ = ["SHOWN", "Side", "Writer", "step_flops", "torch_device_bytes", "wait_for_torch"]

SHOWN = 64
"""Logits of each row that are compared, to see that all sides have the same model."""


class Side(Protocol):
    """One contestant, its weights the contract's initial ones."""

    device: str
    parameters: int
    peak: float | None
    """The maker's dense 16-bit peak in FLOP/s, where it is known."""
    step_flops: float
    """FLOPs of one update."""

    def step(self, batch: np.ndarray, lr: float) -> Any:
        """Launch one update; returns the loss, which may not be there yet."""

    def wait(self, value: Any = None) -> None:
        """Return when all that was launched is done."""

    def device_bytes(self) -> int | None:
        """Most memory of the device in use at once; None on a CPU."""


@runtime_checkable
class Writer(Side, Protocol):
    """A side that also writes text."""

    def logits(self, prompts: np.ndarray) -> np.ndarray:
        """Of the token after each prompt, the first SHOWN."""

    def write(self, prompts: np.ndarray) -> tuple[float, float]:
        """Write `sample.max_tokens` after each prompt: seconds to read the prompts, seconds to write.

        The prompts are read, and a few tokens written, once before.
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
