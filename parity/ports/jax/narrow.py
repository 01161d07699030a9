"""Operations of a JAX function that compute in a narrower type than it was asked for, such as a softmax in float32.

A model with such an operation cannot agree to the precision of the wider type: it is compared in that of the narrower
one, and the report names the operation.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import source_info_util
from jax.extend.core import jaxprs_in_params

__all__ = ["narrow_operations"]

WHOLE = frozenset(
    (
        *(
            "add",
            "broadcast_in_dim",
            "concatenate",
            "convert_element_type",
            "copy",
            "dynamic_slice",
            "eq",
            "expand_dims",
        ),
        *(
            "gather",
            "iota",
            "max",
            "min",
            "mul",
            "neg",
            "pad",
            "reduce_max",
            "reduce_min",
            "reshape",
            "rev",
            "select_n",
        ),
        *("sign", "slice", "squeeze", "stop_gradient", "sub", "transpose"),
    )
)
"""Operations that make whole numbers of whole numbers."""
LOOPS = ("scan", "while", "cond")
LARGE = 1e30
"""A larger number stands for infinity, as in a mask that is added to scores."""


def narrow_operations(function: Callable[..., Any], arrays: Any, dtype: str) -> dict[str, str]:
    """Return a function's operations whose results are narrower than `dtype`: description -> type.

    Args:
        function: of a tree of arrays.
        arrays: that tree, in `dtype`.
        dtype: the type asked for.
    """
    closed = jax.make_jaxpr(function)(arrays)
    found: dict[str, str] = {}
    exact = [_is_whole(value) for value in closed.consts]
    _search(closed.jaxpr, exact, [False] * len(closed.jaxpr.invars), dtype, found)
    return found


def _search(jaxpr: Any, consts: list[bool], inputs: list[bool], dtype: str, found: dict[str, str]) -> list[bool]:
    """Add the narrow operations of a jaxpr, and of those inside it, to `found`; return which results are exact.

    A value is exact in any type where it is a whole number that came of whole numbers, such as a mask: what holds it
    does not matter.

    Args:
        jaxpr: of the function.
        consts: whether each constant is exact.
        inputs: whether each argument is.
        dtype: the type asked for.
        found: description of an operation -> type.
    """
    exact = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *inputs], strict=True))

    def is_exact(atom: Any) -> bool:
        if not jnp.issubdtype(getattr(atom.aval, "dtype", np.dtype(bool)), jnp.floating):
            return True
        return _is_whole(atom.val) if hasattr(atom, "val") else exact.get(atom, False)

    for equation in jaxpr.eqns:
        given = [is_exact(atom) for atom in equation.invars]
        inner = list(jaxprs_in_params(equation.params))
        results = [equation.primitive.name in WHOLE and all(given)] * len(equation.outvars)
        for sub in inner:
            same = len(sub.invars) == len(given) and len(sub.outvars) == len(results)  # not those of a loop
            answers = _search(
                sub, [False] * len(sub.constvars), given if same else [False] * len(sub.invars), dtype, found
            )
            results = answers if same and len(inner) == 1 and equation.primitive.name not in LOOPS else results
        for variable, whole in zip(equation.outvars, results, strict=True):
            exact[variable] = whole
            kind = getattr(variable.aval, "dtype", None)
            if kind is not None and not inner and not whole and _is_narrow(kind, dtype):
                place = source_info_util.summarize(equation.source_info).split("/")[-1]
                found.setdefault(f"JAX: {equation.primitive.name} in {kind}, {place}", str(kind))
    return [is_exact(atom) for atom in jaxpr.outvars]


def _is_whole(value: Any) -> bool:
    """Return whether all values are whole numbers, or so large that they stand for infinity."""
    if not jnp.issubdtype(jnp.result_type(value), jnp.floating):  # random keys too, which are no NumPy arrays
        return True
    array = np.asarray(value).astype(np.float64)
    return bool(np.all((array == np.round(array)) | (np.abs(array) > LARGE)))


def _is_narrow(kind: Any, dtype: str) -> bool:
    return jnp.issubdtype(kind, jnp.floating) and jnp.finfo(kind).bits < jnp.finfo(dtype).bits
