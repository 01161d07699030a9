"""Operations of a torch module that compute in a narrower type than it was asked for, as `parity.ports.jax.narrow`."""

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from parity.ports.trees import named_leaves

__all__ = ["narrow_operations"]

LARGE = 1e30
"""A larger number stands for infinity, as in a mask that is added to scores."""


def narrow_operations(module: torch.nn.Module, run: Callable[[], Any], dtype: str) -> dict[str, str]:
    """Return a module's operations whose results are narrower than `dtype`: description -> type.

    Args:
        module: in `dtype`.
        run: runs it.
        dtype: the type asked for.
    """
    width = torch.finfo(getattr(torch, dtype)).bits
    inside: list[str] = []
    found: dict[str, str] = {}

    class Watching(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            results = func(*args, **(kwargs or {}))
            for result in named_leaves(results).values():
                kind = getattr(result, "dtype", None)
                narrow = isinstance(kind, torch.dtype) and kind.is_floating_point and torch.finfo(kind).bits < width
                if narrow and not _is_whole(result):
                    where, word = inside[-1] if inside else "", str(kind).removeprefix("torch.")
                    found.setdefault(f"torch: {func.overloadpacket.__name__} in {word}, {where or 'the module'}", word)
            return results

    def enter(name: str) -> Callable[..., None]:
        return lambda *_: inside.append(name)

    def leave(*_: Any) -> None:
        inside.pop()

    with ExitStack() as stack:
        for name, part in module.named_modules():
            stack.callback(part.register_forward_pre_hook(enter(name)).remove)
            stack.callback(part.register_forward_hook(leave, always_call=True).remove)
        with torch.no_grad(), Watching():
            run()
    return found


def _is_whole(values: torch.Tensor) -> bool:
    """Return whether all values are whole numbers, or stand for infinity, as in masks: any type holds them exactly."""
    return bool(((values == values.round()) | (values.abs() > LARGE)).all())
