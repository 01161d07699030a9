"""The operations of a torch module: recorded in one run, and changed in another, without editing the module.

An operation is a call of a torch function, known by the submodule that calls it, its name, and its number among the
calls of that name in one call of the submodule. What calls it does not matter: a module of `torch.nn`, a function of
`torch.nn.functional`, a method or an operator.
"""

import types
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

__all__ = ["Key", "Operation", "Recording", "Replace", "bound", "changed", "recorded", "setting"]

Key = tuple[str, str, int]
"""Submodule, name of the operation, and number of the call."""
Replace = Callable[..., Any]
"""`replace(call, *args, **kwargs)` computes in place of an operation, which is `call(*args, **kwargs)`."""

OUTSIDE = "(outside of the module)"
"""Where the operations of a loss are, which no module calls."""
COMPOSED = {F.multi_head_attention_forward}
"""Functions of several operations that torch shows as one."""
SAME_VALUES = {"to", "unsqueeze", "squeeze", "view", "reshape", "contiguous", "float", "double", "clone", "expand"}
"""Operations that are looked through for where a value comes from."""
OTHER_NAMES = {"radd": "add", "rmul": "mul", "true_divide": "div", "truediv": "div", "divide": "div", "multiply": "mul"}
PARAMETERS = {
    "add": "input other alpha",
    "mul": "input other",
    "div": "input other",
    "layer_norm": "input normalized_shape weight bias eps",
    "rms_norm": "input normalized_shape weight eps",
    "group_norm": "input num_groups weight bias eps",
    "instance_norm": "input running_mean running_var weight bias use_input_stats momentum eps",
    "batch_norm": "input running_mean running_var weight bias training momentum eps",
    "mean": "input dim keepdim",
    "sum": "input dim keepdim",
    "var": "input dim correction keepdim",
    "std": "input dim correction keepdim",
    "var_mean": "input dim correction keepdim",
    "std_mean": "input dim correction keepdim",
    "gelu": "input approximate",
    "leaky_relu": "input negative_slope inplace",
    "glu": "input dim",
    "softmax": "input dim",
    "log_softmax": "input dim",
    "scaled_dot_product_attention": "query key value attn_mask dropout_p is_causal scale enable_gqa",
    "masked_fill": "input mask value",
    "where": "condition input other",
    "baddbmm": "input batch1 batch2",
    "tril": "input diagonal",
    "triu": "input diagonal",
    "embedding": "input weight",
    "dropout": "input p training inplace",
    "conv": "input weight bias stride padding dilation groups",
    "conv_transpose": "input weight bias stride padding output_padding groups dilation",
    "max_pool": "input kernel_size stride padding dilation ceil_mode return_indices",
    "avg_pool": "input kernel_size stride padding ceil_mode count_include_pad divisor_override",
    "interpolate": "input size scale_factor mode align_corners recompute_scale_factor antialias",
    "grid_sample": "input grid mode padding_mode align_corners",
    "cross_entropy": "input target weight size_average ignore_index reduce reduction label_smoothing",
    "nll_loss": "input target weight size_average ignore_index reduce reduction",
    "mse_loss": "input target size_average reduce reduction",
    "l1_loss": "input target size_average reduce reduction",
    "smooth_l1_loss": "input target size_average reduce reduction beta",
    "huber_loss": "input target reduction delta",
    "binary_cross_entropy": "input target weight size_average reduce reduction",
    "binary_cross_entropy_with_logits": "input target weight size_average reduce reduction pos_weight",
    "kl_div": "input target size_average reduce reduction log_target",
}
"""Name of an operation -> its parameters in order; those of one to three dimensions stand there without the number."""


@dataclass(frozen=True, eq=False)
class Operation:
    """One call, with what it was given and what it returned."""

    place: str
    name: str
    number: int
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    result: Any

    @property
    def key(self) -> Key:
        """What it is known by in another run."""
        return self.place, self.name, self.number

    @property
    def given(self) -> dict[str, Any]:
        """Its arguments by parameter, those with a default only where they were passed."""
        return bound(self.name, self.args, self.kwargs)


@dataclass(frozen=True)
class Recording:
    """The operations of one run, in order, each key once."""

    operations: Sequence[Operation]
    sources: Mapping[int, Operation] = field(repr=False)

    def named(self, *names: str) -> list[Operation]:
        """Return the operations of these names."""
        return [op for op in self.operations if op.name in names]

    def source(self, value: Any) -> Operation | None:
        """Return the operation that computed a value, but for those that only move it; None for inputs."""
        found = self.sources.get(id(value))
        while found is not None and found.name in SAME_VALUES:
            found = self.sources.get(id(found.args[0]))
        return found


def bound(name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of an operation by parameter; those of unknown operations by number."""
    base = name[:-2] if name[-2:] in ("1d", "2d", "3d") else name
    parameters = PARAMETERS.get(base, "").split() or [str(i) for i in range(len(args))]
    found = dict(zip(parameters, args)) | dict(kwargs)
    if isinstance(found.get("dim"), bool):  # var(unbiased), the one function whose second argument has two meanings
        found["unbiased"] = found.pop("dim")
    if isinstance(found.get("correction"), bool):
        found["unbiased"] = found.pop("correction")
    return found


def setting(name: str, **changes: Any) -> Replace:
    """Return a replacement that calls the operation with other arguments.

    Args:
        name: of the operation.
        changes: values by parameter, or functions from all arguments by parameter to a value.
    """

    def replace(call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        given = bound(name, args, kwargs)
        given |= {key: value(given) if callable(value) else value for key, value in changes.items()}
        first = next(iter(given))
        return call(given.pop(first), **given)  # a method takes its first argument by position only

    return replace


class _Watching(TorchFunctionMode):
    """Gives each call its key; replaces those that are changed, and records all where that is asked for."""

    def __init__(self, module: torch.nn.Module, changes: Mapping[Key, Sequence[Replace]], record: bool) -> None:
        super().__init__()
        self.roots = [module]  # kept, so that their ids stay theirs
        self.names = {id(part): name for name, part in module.named_modules()}
        self.changes = changes
        self.record = record
        self.inside: list[tuple[str, Counter[str]]] = [(OUTSIDE, Counter())]
        self.operations: dict[Key, Operation] = {}
        self.sources: dict[int, Operation] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in COMPOSED:
            with self:
                return _opened(func)(*args, **kwargs)
        name = getattr(func, "__name__", "").strip("_")
        if name in ("get", "set", ""):  # attributes such as shape
            return func(*args, **kwargs)
        name = OTHER_NAMES.get(name, name)
        place, counts = self.inside[-1]
        key = (place, name, counts[name])
        counts[name] += 1
        call = func
        for replace in self.changes.get(key, ()):
            call = partial(replace, call)
        result = call(*args, **kwargs)
        if self.record:
            operation = Operation(*key, args, kwargs, result)
            self.operations.setdefault(key, operation)
            for value in result if isinstance(result, tuple | list) else (result,):
                if isinstance(value, torch.Tensor):
                    self.sources.setdefault(id(value), operation)  # the operation keeps it, and so its id
        return result

    def enter(self, part: torch.nn.Module, _: Any) -> None:
        if len(self.inside) == 1 and id(part) not in self.names:  # what runs is a copy
            self.roots.append(part)
            self.names |= {id(inner): name for name, inner in part.named_modules()}
        self.inside.append((self.names.get(id(part), self.inside[-1][0]), Counter()))

    def leave(self, part: torch.nn.Module, _: Any, __: Any) -> None:
        if len(self.inside) > 1:
            self.inside.pop()
        if len(self.inside) == 1:
            self.inside[0][1].clear()  # the loss counts from where the module has returned


def _opened(function: Any) -> Callable[..., Any]:
    """Return a copy of a torch function whose inner operations are seen."""
    inner = types.FunctionType(
        function.__code__,
        function.__globals__ | {"has_torch_function": lambda tensors: False},
        function.__name__,
        function.__defaults__,
    )
    inner.__kwdefaults__ = function.__kwdefaults__
    return inner


@contextmanager
def _watched(mode: _Watching) -> Iterator[_Watching]:
    hooks = [
        torch.nn.modules.module.register_module_forward_pre_hook(mode.enter),
        torch.nn.modules.module.register_module_forward_hook(mode.leave, always_call=True),
    ]
    try:
        with mode:
            yield mode
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def changed(module: torch.nn.Module, changes: Sequence[tuple[Sequence[Key], Replace]]) -> Iterator[None]:
    """Replace operations of a module while the context is open.

    Args:
        module: whose submodules the keys name.
        changes: operations, and what computes in place of each; later ones see what earlier ones compute.
    """
    by_key: dict[Key, list[Replace]] = {}
    for keys, replace in changes:
        for key in keys:
            by_key.setdefault(key, []).append(replace)
    with _watched(_Watching(module, by_key, record=False)):
        yield


def recorded(module: torch.nn.Module, run: Callable[[], Any]) -> Recording:
    """Run, and return the operations of the module and of what else was computed.

    Args:
        module: whose submodules the places name.
        run: runs it.
    """
    with _watched(_Watching(module, {}, record=True)) as mode:
        run()
    return Recording([*mode.operations.values()], mode.sources)
