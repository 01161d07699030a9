"""Operations of a model that compute in a narrower type than it was asked for, such as a softmax that casts to float32.

A model with such an operation cannot agree to the precision of the wider type: it is compared in that of the narrower
one, and the report names the operation.
"""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import torch
from jax.extend import source_info_util
from jax.extend.core import jaxprs_in_params
from torch.utils._python_dispatch import TorchDispatchMode

from parity.ports.jax import arrays, typed_params
from parity.ports.torch import tensors
from parity.ports.trees import named_leaves

__all__ = ["narrow_in_jax", "narrow_in_torch"]


def narrow_in_jax(function: Callable[..., Any], params: Any, args: tuple[Any, ...], dtype: str) -> dict[str, str]:
    """Return a JAX function's operations whose results are narrower than `dtype`: description -> type.

    Args:
        function: `function(params, *args)`.
        params: tree of parameters.
        args: trees of NumPy arrays.
        dtype: the type asked for.
    """
    jaxpr = jax.make_jaxpr(function)(typed_params(params, dtype), *arrays(args))
    found: dict[str, str] = {}
    for equation in _equations(jaxpr.jaxpr):
        for result in equation.outvars:
            kind = getattr(result.aval, "dtype", None)
            if kind is not None and _is_narrow(kind, dtype):
                place = source_info_util.summarize(equation.source_info).split("/")[-1]
                found.setdefault(f"JAX: {equation.primitive.name} in {kind}, {place}", str(kind))
    return found


def _is_narrow(kind: Any, dtype: str) -> bool:
    return jnp.issubdtype(kind, jnp.floating) and jnp.finfo(kind).bits < jnp.finfo(dtype).bits


def _equations(jaxpr: Any) -> Iterator[Any]:
    """Yield the equations of a jaxpr and of those inside it."""
    for equation in jaxpr.eqns:
        inner = list(jaxprs_in_params(equation.params))
        if inner:
            for sub in inner:
                yield from _equations(sub)
        else:
            yield equation


def narrow_in_torch(
    module: torch.nn.Module, call_module: Callable[..., Any], args: tuple[Any, ...], dtype: str
) -> dict[str, str]:
    """Return a module's operations whose results are narrower than `dtype`: description -> type.

    Args:
        module: in `dtype`.
        call_module: `call_module(module, *args)` runs it.
        args: trees of NumPy arrays.
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
                if isinstance(kind, torch.dtype) and kind.is_floating_point and torch.finfo(kind).bits < width:
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
            call_module(module, *tensors(args, {}))
    finally:
        for hook in hooks:
            hook.remove()
    return found
