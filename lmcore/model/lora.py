"""Which parameters a run trains: with `model.lora` those of the adapters, else all."""

from collections.abc import Mapping

import numpy as np

from lmcore.config import ADAPTED, ModelConfig

__all__ = ["adapter_layers", "adapter_size", "is_adapter", "is_trained", "merged_kernels"]

ADAPTERS = ("lora_A", "lora_B")
"""The two matrices of an adapter, by the names that peft has for them."""


def is_adapter(name: str) -> bool:
    """Return whether a parameter, given its dotted name, is an adapter's."""
    return name.split(".")[-2] in ADAPTERS


def is_trained(model: ModelConfig, name: str) -> bool:
    """Return whether a parameter, given its dotted name, is trained."""
    return model.lora is None or is_adapter(name)


def adapter_layers(model: ModelConfig) -> list[str]:
    """Return the dotted names of all linear layers that have an adapter, such as `layers.0.self_attn.q_proj`."""
    targets = [] if model.lora is None else model.lora.targets
    ordered = [f"{module}.{name}" for name, module in ADAPTED.items() if name in targets]
    return [f"layers.{layer}.{name}" for layer in range(model.n_layers) for name in ordered]


def adapter_size(model: ModelConfig) -> int:
    """Return the number of elements of all adapters."""
    if model.lora is None:
        return 0
    sides = sum(sum(model.linear_shapes[name]) for name in model.lora.targets)
    return model.n_layers * model.lora.rank * sides


def merged_kernels(kernels: Mapping[str, np.ndarray], model: ModelConfig) -> dict[str, np.ndarray]:
    """Return the kernels of the same model without adapters, W + α/r · A B, with the same rounding for both twins.

    Args:
        kernels: by dotted name, input × output each, those of the adapters included.
        model: with its `lora`; without, the kernels are returned as they are.
    """
    merged = {name: kernel for name, kernel in kernels.items() if not is_adapter(name)}
    for layer in adapter_layers(model):
        # In one layout, since a matmul may sum in another order where a matrix is transposed
        a, b = (np.ascontiguousarray(kernels[f"{layer}.{name}.kernel"]) for name in ADAPTERS)
        assert model.lora is not None
        merged[f"{layer}.kernel"] = merged[f"{layer}.kernel"] + model.lora.scale * (a @ b)
    return merged
