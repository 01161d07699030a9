"""Run a torch module: activations, outputs, loss and gradients."""

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch

from lmcore.errors import UserError
from parity.backends.base import Arrays
from parity.convert.names import numpy_to_torch, torch_to_numpy
from parity.mapping import Row
from parity.ports.side import Call, Side, projected
from parity.ports.trees import named_leaves, rebuilt
from parity.taps import collecting, numbered

__all__ = ["loss_of", "output_names", "prepared", "run_torch", "tensors"]


def prepared(module: torch.nn.Module, rows: list[Row], weights: Arrays, dtype: str) -> torch.nn.Module:
    """Return a copy of the module on the CPU, in evaluation mode, in `dtype`, with JAX's weights.

    Args:
        module: the module, which stays as it is.
        rows: the mapping of names.
        weights: JAX's parameters in `dtype`, by path.
        dtype: of real values, and of the parts of complex ones.
    """
    module = copy.deepcopy(module).cpu().eval()
    with torch.no_grad():
        for tensor in (*module.parameters(), *module.buffers()):
            if tensor.is_floating_point() or tensor.is_complex():
                real = getattr(torch, dtype)
                tensor.data = tensor.data.to(real.to_complex() if tensor.is_complex() else real)
        tensors = dict(module.named_parameters()) | dict(module.named_buffers())
        for row in rows:
            for name, value in row.to_torch(weights).items():
                tensors[name].copy_(numpy_to_torch(np.ascontiguousarray(value)))
    for parameter in module.parameters():
        parameter.requires_grad_(parameter.is_floating_point() or parameter.is_complex())
    return module


def output_names(module: torch.nn.Module, call_module: Callable[..., Any], args: tuple[Any, ...]) -> list[str]:
    """Return the names of a module's outputs."""
    with torch.no_grad():
        return list(named_leaves(call_module(copy.deepcopy(module), *tensors(args, {}))))


def run_torch(
    module: torch.nn.Module, call_module: Callable[..., Any], rows: list[Row], call: Call, taps: Mapping[str, str]
) -> Side:
    """Run the module and its backward pass.

    Args:
        module: from `prepared`.
        call_module: `call_module(module, *args)` runs it.
        rows: the mapping of names.
        call: arguments, loss and outputs.
        taps: name of a tap -> submodule.
    """
    inputs: dict[str, torch.Tensor] = {}
    args = tensors(call.args, inputs)
    with collecting() as tapped, _hooked(module, taps) as hooked:
        outputs = call_module(module, *args)
    chosen, loss = loss_of(outputs, call)
    if isinstance(loss, torch.Tensor) and loss.requires_grad:  # false for a module that has no gradient at all
        loss.backward()
    parameters = dict(module.named_parameters())
    grads = {n: torch_to_numpy(torch.zeros_like(p) if p.grad is None else p.grad) for n, p in parameters.items()}
    by_path: Arrays = {}
    for row in rows:
        if set(row.torch) <= parameters.keys():
            back = row.to_jax(grads)
            by_path |= {" + ".join(row.jax): back[row.jax[0]]} if row.shares else back
    return Side(
        activations={name: torch_to_numpy(value) for name, value in (tapped | hooked).items()},
        outputs={name: torch_to_numpy(value) for name, value in chosen.items()},
        loss=float(loss.detach() if isinstance(loss, torch.Tensor) else loss),
        grads=by_path,
        input_grads={
            name: torch_to_numpy(torch.zeros_like(x) if x.grad is None else x.grad) for name, x in inputs.items()
        },
    )


def loss_of(outputs: Any, call: Call) -> tuple[dict[str, torch.Tensor], Any]:
    """Return the outputs that are compared, by their common names, and the loss."""
    leaves, real = named_leaves(outputs), getattr(torch, call.dtype)
    chosen = {name: torch.as_tensor(leaves[theirs]) for name, (_, theirs) in call.outputs.items() if theirs in leaves}
    return chosen, call.losses[1](outputs) if call.losses else projected(chosen, lambda a: numpy_to_torch(a).to(real))


def tensors(args: tuple[Any, ...], real: dict[str, torch.Tensor]) -> tuple[Any, ...]:
    """Return the arguments as tensors; add those of real values, which get a gradient, to `real`."""

    def convert(name: str, array: np.ndarray) -> torch.Tensor:
        tensor = numpy_to_torch(array)
        if tensor.is_floating_point():
            real[name] = tensor.requires_grad_()
        return tensor

    return rebuilt(args, convert)


@contextmanager
def _hooked(module: torch.nn.Module, taps: Mapping[str, str]) -> Iterator[dict[str, Any]]:
    """Record the outputs of the named submodules, under the names of the taps; of several outputs, the first.

    Raises:
        UserError: a submodule does not exist.
    """
    recorded: dict[str, Any] = {}
    submodules = dict(module.named_modules())
    missing = [name for name in taps.values() if name not in submodules]
    if missing:
        raise UserError(f"taps: {', '.join(missing)}: no such submodule in torch; there are {', '.join(submodules)}")
    with ExitStack() as stack:
        for tap, name in taps.items():

            def hook(_: Any, __: Any, output: Any, tap: str = tap) -> None:
                recorded[numbered(tap, recorded)] = next(iter(named_leaves(output).values()))

            stack.callback(submodules[name].register_forward_hook(hook).remove)
        yield recorded
