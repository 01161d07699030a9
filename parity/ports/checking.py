"""Checks of what a user hands to a comparison: each mistake is one line that says what was found and expected."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lmcore.errors import UserError, shown
from parity.ports.side import BITS

__all__ = [
    "check_batches",
    "check_callables",
    "check_dtype",
    "check_loss",
    "check_names",
    "check_pair",
    "check_taps",
    "check_torch",
]


def check_dtype(dtype: object) -> None:
    """Raise UserError unless a type is the name of one."""
    if not isinstance(dtype, str) or dtype not in BITS:
        raise UserError(f"dtype: found {shown(dtype)}, expected one of {', '.join(BITS)}")


def check_names(names: object) -> None:
    """Raise UserError unless the mapping of parameters is one, by name."""
    if not isinstance(names, Mapping):
        hint = ", its field names" if hasattr(names, "names") else ""
        raise UserError(f"names: found {shown(names)}, expected a dict from JAX's paths to torch's names{hint}")


def check_taps(taps: object) -> None:
    """Raise UserError unless the taps are a dict of names, or None."""
    good = taps is None or (isinstance(taps, Mapping) and all(isinstance(n, str) for row in taps.items() for n in row))
    if not good:
        raise UserError(f"taps: found {shown(taps)}, expected a dict from names of taps to torch's submodules")


def check_pair(field: str, pair: object, expected: str, callables: Sequence[int] = (0, 1)) -> None:
    """Raise UserError unless a pair, of JAX's and torch's, is None or a tuple of two.

    Args:
        field: its name.
        pair: what was found.
        expected: what the two are.
        callables: which of them must be functions.
    """
    if pair is None:
        return
    good = isinstance(pair, tuple) and len(pair) == 2 and all(callable(pair[i]) for i in callables)
    if not good:
        raise UserError(f"{field}: found {shown(pair)}, expected a pair: {expected}")


def check_callables(**functions: Callable[..., Any] | None) -> None:
    """Raise UserError unless each of these is a function or None."""
    for field, function in functions.items():
        if function is not None and not callable(function):
            raise UserError(f"{field}: found {shown(function)}, expected a function")


def check_batches(batches: object) -> None:
    """Raise UserError unless the batches are tuples of inputs."""
    good = isinstance(batches, Sequence) and all(isinstance(batch, tuple) for batch in batches)
    if not good:
        raise UserError("batches: expected a list of tuples, each of the inputs of one step, such as [(x,), (y,)]")


def check_loss(loss: Any, framework: str, own: bool) -> None:
    """Raise UserError unless a loss is a real scalar.

    Args:
        loss: the value.
        framework: whose it is, for people.
        own: whether the user's function made it; else it is the sum of all outputs.
    """
    shape, dtype = getattr(loss, "shape", None), str(getattr(loss, "dtype", type(loss).__name__))
    if own and (shape is None or tuple(shape) or "float" not in dtype):
        found = f"an array of shape {list(shape)} of {dtype}" if shape is not None else shown(loss)
        raise UserError(f"losses: found {found} in {framework}, expected a real scalar")
    if not own and "float" not in dtype:
        raise UserError(f"outputs: found none of {framework} that is real, so there is no gradient; give losses=")


def check_torch(module: object) -> None:
    """Raise UserError unless torch's side is a module, or a pair of a function and a dict of tensors."""
    import torch

    if isinstance(module, torch.nn.Module):
        return
    pair = isinstance(module, tuple) and len(module) == 2 and callable(module[0]) and isinstance(module[1], Mapping)
    if not pair or not all(map(torch.is_tensor, module[1].values())):  # type: ignore[index]
        raise UserError(
            f"torch_module: found {shown(module)}, expected an nn.Module, or a pair of a function and a dict of tensors"
        )
