"""The process-wide settings of a framework, put back after a comparison, which changes number types and precision."""

from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["LABELS", "jax_settings", "torch_settings"]

LABELS = {"jax": "JAX", "torch": "torch"}
"""Framework -> its name in lines and charts; of any other, its own."""


@contextmanager
def jax_settings() -> Iterator[None]:
    """Restore JAX's number types, matmul precision, compilation cache and platforms at the end."""
    import jax

    names = ("jax_enable_x64", "jax_default_matmul_precision", "jax_compilation_cache_dir", "jax_platforms")
    before = {name: getattr(jax.config, name) for name in names}
    try:
        yield
    finally:
        for name, value in before.items():
            jax.config.update(name, value)


@contextmanager
def torch_settings() -> Iterator[None]:
    """Restore torch's matmul precision and choice of deterministic algorithms at the end."""
    import torch

    precision, deterministic = torch.get_float32_matmul_precision(), torch.are_deterministic_algorithms_enabled()
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(precision)
        torch.use_deterministic_algorithms(deterministic)
