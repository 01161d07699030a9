"""Run a torch module: activations, outputs, loss, gradients, updates and the training curve."""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from lmcore.errors import UserError, shown
from parity.arrays import Arrays
from parity.ports.checking import check_loss
from parity.ports.dropout import torch_masks
from parity.ports.side import DType, Framework, Request, Side, Updated, projected, projected_size
from parity.ports.trees import Leaves, named_leaves, rebuilt
from parity.taps import collecting, tap_module
from torchlm.math_kernels import choose_math_kernels

__all__ = ["TorchPort", "as_module", "torch_set_up"]

MOMENTS = {
    "mu": ("exp_avg",),
    "nu": ("exp_avg_sq", "square_avg"),
    "trace": ("momentum_buffer",),
    "sum_of_squares": ("sum",),
}
"""Field of an optax state -> keys of a torch optimizer's state, of which each optimizer has one."""
COMPILED = "_orig_mod."
"""What `torch.compile` puts before a module's names."""


def torch_set_up() -> None:
    """Let torch compute in full precision; within `parity.settings.torch_settings`."""
    torch.set_float32_matmul_precision("highest")
    choose_math_kernels()


class TorchPort:
    """A torch module as a side of a comparison: a `parity.ports.side.Port`.

    Args:
        module: stays as it is; a copy runs.
        call: `call(module, *args)` runs it; None for `module(*args)`.
        request: how it is run.
    """

    framework: Framework = "torch"
    optimizer = ""

    def __init__(self, module: torch.nn.Module, call: Callable[..., Any] | None, request: Request):
        self.call, self.request = call or (lambda module, *args: module(*args)), request
        self.module = copy.deepcopy(module).to(_device(request.device)).train(request.train)
        real = getattr(torch, request.dtype)
        for tensor in (*self.module.parameters(), *self.module.buffers()):
            if tensor.is_floating_point() or tensor.is_complex():
                tensor.data = tensor.data.to(real.to_complex() if tensor.is_complex() else real)
        recurrent = [part for part in self.module.modules() if isinstance(part, torch.nn.RNNBase)]
        if request.train and (layered := [part for part in recurrent if part.dropout and part.num_layers > 1]):
            kind = type(layered[0]).__name__
            raise UserError(f"train: {kind} draws masks between its layers that cannot be given; set its dropout to 0")
        self.frozen = tuple(name for name, p in self.parameters().items() if not p.requires_grad)
        for parameter in self.module.parameters():
            parameter.requires_grad_(parameter.is_floating_point() or parameter.is_complex())
        self.weights = {name: _numpy(tensor) for name, tensor in self.tensors().items()}
        self.trained = tuple(name for name, p in self.parameters().items() if p.requires_grad)
        self.parts = {name.removeprefix(COMPILED): part for name, part in self.module.named_modules()}

    @property
    def is_compiled(self) -> bool:
        """Whether the module, or a part of it, is one that `torch.compile` returned."""
        return any(COMPILED in f".{name}." for name, _ in self.module.named_modules())

    def eager(self) -> "TorchPort":
        """Return the same side with the module that was compiled, where all of it was."""
        return self.on(getattr(self.module, COMPILED.strip("."), self.module))

    def on(self, module: torch.nn.Module) -> "TorchPort":
        """Return the same side with another module, a copy of its own, in its place."""
        port = copy.copy(self)
        port.module = module
        port.parts = {name.removeprefix(COMPILED): part for name, part in module.named_modules()}
        return port

    def in_dtype(self, dtype: DType) -> "TorchPort":
        """Return the same module, copied, to run in another type."""
        return TorchPort(self.module, self.call, replace(self.request, dtype=dtype))

    def parameters(self) -> dict[str, torch.nn.Parameter]:
        """Return the parameters by name."""
        return {name.removeprefix(COMPILED): p for name, p in self.module.named_parameters()}

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return parameters and buffers by name."""
        return self.parameters() | {name.removeprefix(COMPILED): b for name, b in self.module.named_buffers()}

    def output_names(self) -> list[str]:
        """Return the names of the module's outputs."""
        self._load({})
        with torch.no_grad():
            return list(named_leaves(self._call(self._tensors(self.request.args, {}))))

    def run(self, weights: Arrays) -> Side:
        """Run the module and its backward pass."""
        self._load(weights)
        inputs: dict[str, torch.Tensor] = {}
        args = self._tensors(self.request.args, inputs)
        with collecting() as collected, self._tapped():
            outputs = self._call(args)
        chosen, loss = self._loss(outputs)
        parameters = self.parameters()
        for parameter in parameters.values():
            parameter.grad = None
        if isinstance(loss, torch.Tensor) and loss.requires_grad:  # false for a module that has no gradient at all
            loss.backward()
        arrays = {name: _numpy(value) for name, value in chosen.items()}
        return Side(
            activations={name: _numpy(value) for name, value in collected.values.items()},
            modules={name: self._under(name) for name in collected.modules},
            outputs=arrays,
            loss_size=0.0 if self.request.loss else projected_size(arrays),
            loss=float(loss.detach() if isinstance(loss, torch.Tensor) else loss),
            grads={name: _gradient(parameters[name]) for name in self.trained},
            input_grads={name: _gradient(tensor) for name, tensor in inputs.items()},
            state={name: _numpy(tensor) for name, tensor in self.tensors().items() if name not in parameters},
        )

    def narrow(self) -> dict[str, str]:
        """Return the operations whose results are narrower than asked for: description -> type."""
        from parity.ports.torch.narrow import narrow_operations

        self._load({})
        args = self._tensors(self.request.args, {})
        return narrow_operations(self.module, lambda: self._call(args), self.request.dtype)

    def updates(self, weights: Arrays, grads: Arrays, factors: Sequence[float]) -> list[Updated]:
        """Return what the optimizer makes of the same gradients, times one factor after the other."""
        self._load(weights)
        parameters = {name: p for name, p in self.parameters().items() if name in grads}
        if not parameters:  # all are shared, and have no counterpart of their own
            return []
        optimizer, scheduler = self._optimizer(list(parameters.values()))
        self.optimizer = type(optimizer).__name__
        found = []
        for factor in factors:
            for name, parameter in parameters.items():
                parameter.grad = self._tensor(factor * grads[name])
            optimizer.step()
            if scheduler is not None:
                scheduler.step()
            moments = {
                field: {name: _numpy(optimizer.state[p][key]) for name, p in parameters.items()}
                for field, keys in MOMENTS.items()
                for key in keys
                if all(torch.is_tensor(optimizer.state[p].get(key)) for p in parameters.values())
            }
            found.append(Updated({name: _numpy(p) for name, p in parameters.items()}, moments))
        return found

    def curve(self, weights: Arrays) -> np.ndarray:
        """Return the loss of each step of training."""
        self._load(weights)
        optimizer, scheduler = self._optimizer([self.parameters()[name] for name in self.trained])
        losses = []
        for args in self.request.batches:
            optimizer.zero_grad()
            _, loss = self._loss(self._call(self._tensors(args, {})))
            loss.backward()
            optimizer.step()
            if scheduler is not None:
                scheduler.step()
            losses.append(float(loss.detach()))
        return np.array(losses)

    def _load(self, weights: Arrays) -> None:
        with torch.no_grad():
            for name, tensor in self.tensors().items():
                tensor.copy_(self._tensor(weights.get(name, self.weights[name])))

    def _call(self, args: tuple[Any, ...]) -> Any:
        with torch_masks(self.request.masks) if self.request.train else nullcontext():
            return self.call(self.module, *args)

    def _loss(self, outputs: Any) -> tuple[Leaves, Any]:
        """Return the outputs that are compared, by their common names, and the loss."""
        leaves = {name: torch.as_tensor(leaf) for name, leaf in named_leaves(outputs).items()}
        chosen = self.request.chosen(leaves)
        loss = self.request.loss(outputs) if self.request.loss else projected(chosen, self._tensor)
        check_loss(loss, "torch", self.request.loss is not None)
        return chosen, loss

    def _tensor(self, array: np.ndarray) -> torch.Tensor:
        tensor = torch.from_numpy(np.array(array)).to(self.request.device)
        return tensor.to(getattr(torch, self.request.dtype)) if tensor.is_floating_point() else tensor

    def _tensors(self, args: tuple[Any, ...], real: dict[str, torch.Tensor]) -> tuple[Any, ...]:
        """Return the arguments as tensors; add those of real values, which get a gradient, to `real`."""

        def convert(name: str, array: np.ndarray) -> torch.Tensor:
            tensor = self._tensor(array)
            if tensor.is_complex():
                return tensor.to(getattr(torch, self.request.dtype).to_complex())
            if tensor.is_floating_point():
                real[name] = tensor.requires_grad_()
            return tensor

        return rebuilt(args, convert)

    def _optimizer(self, parameters: list[torch.nn.Parameter]) -> tuple[torch.optim.Optimizer, Any]:
        """Return the optimizer, and its scheduler, or None."""
        if not callable(self.request.optimizer):
            found = shown(self.request.optimizer)
            raise UserError(f"optimizers: found {found} for torch, expected a function from parameters to an optimizer")
        made = self.request.optimizer(parameters)
        optimizer, scheduler = made if isinstance(made, tuple) and len(made) == 2 else (made, None)
        if not isinstance(optimizer, torch.optim.Optimizer):
            what = "a torch.optim.Optimizer, alone or in a pair with its scheduler"
            raise UserError(f"optimizers: found {shown(optimizer)} for torch, expected {what}")
        plateau = torch.optim.lr_scheduler.ReduceLROnPlateau
        if isinstance(optimizer, torch.optim.LBFGS) or isinstance(scheduler, plateau):
            name = type(scheduler if isinstance(scheduler, plateau) else optimizer).__name__
            raise UserError(f"optimizers: found {name} for torch, expected one whose step needs no loss")
        if scheduler is not None and not callable(getattr(scheduler, "step", None)):
            raise UserError(f"optimizers: found {shown(scheduler)} as torch's scheduler, expected one with a step()")
        return optimizer, scheduler

    def _under(self, name: str) -> tuple[str, ...]:
        """Return the parameters and buffers of a submodule, by the name of its activation."""
        prefix = name.partition(" (")[0] + "."
        return tuple(tensor for tensor in self.weights if tensor.startswith(prefix))

    @contextmanager
    def _tapped(self) -> Iterator[None]:
        """Record the outputs of all submodules, unless they are compiled."""
        with ExitStack() as stack:
            for name, part in self.parts.items():
                if name and not self.is_compiled:  # torch.compile traces hooks, which record nothing then

                    def hook(_: Any, __: Any, output: Any, name: str = name) -> None:
                        tap_module(name, output)

                    stack.callback(part.register_forward_hook(hook).remove)
            yield


def _device(name: str) -> torch.device:
    """Return the device of that name.

    Raises:
        UserError: there is none.
    """
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UserError(
            f"device: found no {name} for torch, expected cpu, or cuda or mps where there is one"
        ) from error
    return device


def as_module(function: Callable[..., Any], tensors: Mapping[str, torch.Tensor]) -> torch.nn.Module:
    """Return a module that calls `function(tensors, *inputs)`, with these tensors as its parameters.

    Args:
        function: takes its parameters as a dict, as of `torch.func.functional_call`.
        tensors: name, dotted or not -> tensor; integers become buffers.
    """

    class Functional(torch.nn.Module):
        def forward(self, *args: Any) -> Any:
            return function(dict(self.named_parameters()) | dict(self.named_buffers()), *args)

    root = Functional()
    for name, tensor in tensors.items():
        *path, last = name.split(".")
        parent: torch.nn.Module = root
        for part in path:
            if part not in dict(parent.named_children()):
                parent.add_module(part, torch.nn.Module())
            parent = parent.get_submodule(part)
        if tensor.is_floating_point() or tensor.is_complex():
            parent.register_parameter(last, torch.nn.Parameter(tensor.detach().clone()))
        else:
            parent.register_buffer(last, tensor.detach().clone())
    return root


def _gradient(tensor: torch.Tensor) -> np.ndarray:
    return _numpy(torch.zeros_like(tensor) if tensor.grad is None else tensor.grad)


def _numpy(tensor: torch.Tensor) -> np.ndarray:
    """Copy a tensor to NumPy; real types of 16 bits become float32, which holds their values exactly."""
    host = tensor.detach().cpu().resolve_conj().resolve_neg()
    return (host.float() if host.dtype in (torch.bfloat16, torch.float16) else host).contiguous().numpy().copy()
