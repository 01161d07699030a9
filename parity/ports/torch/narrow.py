"""Operations of a torch module that compute in a narrower type than it was asked for, as `parity.ports.jax.narrow`."""

from collections.abc import Callable
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
    names = {id(part): name for name, part in module.named_modules()}
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

    def enter(part: torch.nn.Module, _: Any) -> None:
        inside.append(names.get(id(part), ""))

    def leave(part: torch.nn.Module, _: Any, __: Any) -> None:
        inside.pop()

    hooks = [torch.nn.modules.module.register_module_forward_pre_hook(enter)]
    hooks.append(torch.nn.modules.module.register_module_forward_hook(leave, always_call=True))
    try:
        with torch.no_grad(), Watching():
            run()
    finally:
        for hook in hooks:
            hook.remove()
    return found


def _is_whole(values: torch.Tensor) -> bool:
    """Return whether all values are whole numbers, or stand for infinity, as in masks: any type holds them exactly."""
    return bool(((values == values.round()) | (values.abs() > LARGE)).all())
