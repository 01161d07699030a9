"""Faults of adapters: their forward pass, what is trained, and how they are merged."""

from dataclasses import replace
from typing import Any


def unscaled(init: Any) -> Any:
    """The adapters' output is not multiplied by α/r."""

    def faulty(self: Any, *args: Any) -> None:
        init(self, *args)
        self.scale = 1.0

    return faulty


def swapped(forward: Any) -> Any:
    """A and B change places in each layer that has as many outputs as inputs: x B A in place of x Aᵀ Bᵀ."""

    def faulty(self: Any, x: Any) -> Any:
        a, b, y = self.lora_A.weight, self.lora_B.weight, forward(self, x)
        return y + self.scale * (x @ b @ a - x @ a.T @ b.T) if a.shape[1] == b.shape[0] else y

    return faulty


def all_trained(is_trained: Any) -> Any:
    """The weights that the adapters adapt are trained too."""
    return lambda model, name: True


def merged_unscaled(merge: Any) -> Any:
    """Adapters are merged without α/r."""

    def faulty(params: Any, config: Any) -> Any:
        lora = config.lora and replace(config.lora, alpha=float(config.lora.rank))
        return merge(params, replace(config, lora=lora))

    return faulty
