"""Outputs and inputs of models as named leaves, whatever containers hold them, without either framework."""

import dataclasses
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from lmcore.errors import UserError

__all__ = ["Leaves", "arrays_of", "matched", "named_leaves", "projection", "rebuilt"]

Leaves = dict[str, Any]
"""Name, such as `output['h'][0]` -> array of NumPy, JAX or torch, in order."""


def named_leaves(tree: Any, name: str = "output") -> Leaves:
    """Return the arrays of a tree by their places in it.

    Containers are mappings (of transformers, the `ModelOutput`), dataclasses, named tuples, tuples and lists. None and
    empty containers have no leaves; Python numbers become arrays; any other object is left out.

    Args:
        tree: what a model returned.
        name: of the root.
    """
    return dict(_leaves(tree, name))


def _leaves(tree: Any, name: str) -> Iterator[tuple[str, Any]]:
    if isinstance(tree, bool | int | float | complex):
        yield name, np.asarray(tree)
    elif hasattr(tree, "dtype") and hasattr(tree, "shape"):
        yield name, tree
    else:
        for key, child in _children(tree):
            yield from _leaves(child, name + key)


def _children(tree: Any) -> list[tuple[str, Any]]:
    """Return the parts of a container, with their places."""
    if isinstance(tree, Mapping):
        return [(f"[{key!r}]", child) for key, child in tree.items()]
    if dataclasses.is_dataclass(tree) and not isinstance(tree, type):
        return [(f".{field.name}", getattr(tree, field.name)) for field in dataclasses.fields(tree)]
    if hasattr(tree, "_fields"):
        return [(f".{field}", child) for field, child in zip(tree._fields, tree, strict=True)]
    if isinstance(tree, tuple | list):
        return [(f"[{index}]", child) for index, child in enumerate(tree)]
    return []


def rebuilt(tree: Any, change: Callable[[str, Any], Any], name: str = "input") -> Any:
    """Return a tree of dicts, tuples and lists with its arrays changed; others of its leaves stay as they are.

    Args:
        tree: arguments of a model.
        change: called with the name and the NumPy array of a leaf.
        name: of the root.
    """
    if isinstance(tree, Mapping):
        return {key: rebuilt(child, change, f"{name}[{key!r}]") for key, child in tree.items()}
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        fields = zip(tree._fields, tree, strict=True)
        return type(tree)(*(rebuilt(child, change, f"{name}.{field}") for field, child in fields))
    if isinstance(tree, tuple | list):
        return type(tree)(rebuilt(child, change, f"{name}[{index}]") for index, child in enumerate(tree))
    return change(name, _numpy(tree)) if hasattr(tree, "dtype") else tree


def _numpy(array: Any) -> np.ndarray:
    """Return any framework's array as NumPy's, which has no bfloat16: float32 holds its values exactly."""
    if hasattr(array, "detach"):
        array = array.detach().cpu()
        return (array.float() if "bfloat16" in str(array.dtype) else array).numpy()
    array = np.asarray(array)
    return array.astype(np.float32) if array.dtype.name == "bfloat16" else array


def arrays_of(args: Sequence[Any]) -> tuple[Any, ...]:
    """Return arguments of a model with NumPy's arrays in place of any framework's."""
    return tuple(rebuilt(each, lambda name, array: array) for each in args)


def matched(jax: Sequence[str], torch: Sequence[str], chosen: Sequence[str] | None) -> dict[str, tuple[str, str]]:
    """Return which outputs are compared: name -> names of the leaf in JAX and in torch.

    One bare output is compared with the first of several: transformers' models return their logits or hidden state
    first.

    Args:
        jax: names of JAX's leaves.
        torch: names of torch's.
        chosen: the ones to compare, as they are named; None for all.

    Raises:
        UserError: a chosen one is not there.
    """
    if chosen is not None:
        names = [name if name.startswith("output") else f"output['{name}']" for name in chosen]
        for label, own in (("JAX", jax), ("torch", torch)):
            bare = len(own) == len(names) == 1
            if missing := [name for name in names if name not in own and not bare]:
                raise UserError(f"outputs: {', '.join(missing)}: no such output of {label}; there are {', '.join(own)}")
        return {name: tuple(name if name in own else own[0] for own in (jax, torch)) for name in names}  # type: ignore[misc]
    if len(jax) == 1 and len(torch) > 1 and jax[0] not in torch:
        return {jax[0]: (jax[0], torch[0])}
    if len(torch) == 1 and len(jax) > 1 and torch[0] not in jax:
        return {jax[0]: (jax[0], torch[0])}
    if len(jax) == len(torch) == 1:
        return {jax[0]: (jax[0], torch[0])}
    return {name: (name, name) for name in [*jax, *(name for name in torch if name not in jax)]}


def projection(name: str, shape: Sequence[int]) -> np.ndarray:
    """Return fixed random weights of a leaf, by which all outputs are summed into one loss; a scalar's is 1."""
    if not shape:
        return np.ones(())
    return np.random.default_rng(zlib.crc32(name.encode())).standard_normal(tuple(shape))
