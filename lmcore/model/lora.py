"""Which parameters a run trains: with `model.lora` those of the adapters, else all."""

from lmcore.config import ADAPTED, ModelConfig

__all__ = ["adapter_layers", "adapter_size", "is_adapter", "is_trained"]

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
