"""Propose which torch parameter each JAX parameter is, for the `names` of `parity.compare`.

    print(match(params, module))                           # by words, shapes, order, and values where they are the same
    print(match(params, module, x, jax_fn=jax_fn))         # what outputs and gradients say decides the rest

The proposal says what is certain. What may be otherwise, such as the transpose of a square kernel or two norms of the
same size without words that tell them apart, is in `uncertain`, each with the alternatives.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lmcore.errors import UserError
from lmcore.lazy import callable_module
from parity.mapping import Names, resolve
from parity.matching.proposing import Leaves, Proposed, leaves, propose
from parity.matching.rows import Proposal, code, folded
from parity.matching.running import ROUNDING, Models, alike_weights, jax_arrays, torch_arrays, verified
from parity.matching.scores import pair
from parity.matching.values import Equal, differing, equal_leaves
from parity.matching.words import components, read

__all__ = ["Match", "match", "match_arrays"]

Arrays = dict[str, np.ndarray]
GRADIENTS = 1e-4
"""Maximum difference of the gradients of one parameter in both models, relative to the largest value."""


@dataclass(frozen=True)
class Match:
    """A proposed mapping; `str` of it is Python code to paste."""

    names: Names
    """For `parity.compare`."""
    only_jax: list[str]
    """JAX parameters without a counterpart."""
    only_torch: list[str]
    """Torch parameters without a counterpart."""
    certain: set[str]
    """Paths of JAX parameters whose row is certain."""
    uncertain: dict[str, str]
    """Path of a JAX parameter -> why its row, or its lack of one, is uncertain, with the alternatives."""
    rows: tuple[Proposal, ...] = field(repr=False)
    """One for each row of `names`."""
    known: tuple[tuple[str, ...], tuple[str, ...]] = field(repr=False)
    """All names of JAX and of torch, buffers too."""

    def __str__(self) -> str:
        lines = [code(folded(self.rows, *self.known))]
        for label, names in (("only_jax", self.only_jax), ("only_torch", self.only_torch)):
            if names:
                lines.append(f"{label} = [{', '.join(repr(name).replace(chr(39), chr(34)) for name in names)}]")
        lines += [f"# {name}: {self.uncertain[name]}" for name in self.only_jax if name in self.uncertain]
        doubtful = sum(bool(row.reason) for row in self.rows)
        if doubtful:
            lines.append(
                f"# {doubtful} of {len(self.rows)} rows are uncertain; match(params, module, *inputs, jax_fn=jax_fn) "
                "runs both models to decide"
            )
        else:
            lines.append(f"# all {len(self.rows)} rows are certain")
        return "\n".join(lines)


def match(
    params: Any,
    module: Any,
    *inputs: Any,
    jax_fn: Any = None,
    call_module: Callable[..., Any] | None = None,
) -> Match:
    """Propose the mapping from JAX parameters to those of a torch module.

    Args:
        params: tree of JAX or NumPy arrays of any shape, such as linen variables or an NNX state; path -> array; or an
            NNX or Equinox module, which holds its parameters.
        module: the `nn.Module`; it is not changed.
        inputs: NumPy arrays, as for `parity.compare`; without them and `jax_fn`, nothing runs.
        jax_fn: the JAX model, as that of `parity.compare`; both models then run twice, to decide what names and shapes
            do not. None where `params` is a module.
        call_module: `call_module(module, *inputs)` runs the module; None for `module(*inputs)`.

    Raises:
        UserError: there are no parameters, a leaf is no array, paths occur twice, or nothing fits.
    """
    ours = _flat(params)
    parameters, buffers, tied = torch_arrays(module)
    if not inputs or (jax_fn is None and not _holds(params)):
        return match_arrays(ours, parameters, buffers, tied)
    model, given = (params, None) if jax_fn is None else (jax_fn, params)
    models = Models(model, given, module, inputs, call_module or (lambda module, *args: module(*args)))
    return _ran(ours, parameters, buffers, tied, models)


def match_arrays(
    jax: Mapping[str, Any],
    torch: Mapping[str, Any],
    buffers: Mapping[str, Any] | None = None,
    tied: Mapping[str, Sequence[str]] | None = None,
) -> Match:
    """Propose the mapping between parameters by name, without either framework.

    Args:
        jax: path of each parameter -> its array, or its shape alone.
        torch: name of each parameter -> its array or shape.
        buffers: the same of torch's buffers, which need no counterpart.
        tied: name of a torch parameter -> its other names.

    Raises:
        UserError: as in `match`.
    """
    ours, theirs, more = (_as_arrays(side or {}) for side in (jax, torch, buffers))
    return _result(_proposed(ours, theirs, more, tied or {})[2], ours, theirs, more)


def _proposed(
    jax: Arrays, torch: Arrays, buffers: Arrays, tied: Mapping[str, Sequence[str]]
) -> tuple[Leaves, Equal, Proposed]:
    """Return the leaves, which have equal values, and the rows by words, shapes and values."""
    found = leaves(jax, torch, buffers, tied)
    equal = equal_leaves(found.jax, found.torch, jax, {**torch, **buffers})
    return found, equal, propose(found, equal)


def _ran(jax: Arrays, torch: Arrays, buffers: Arrays, tied: Mapping[str, Sequence[str]], models: Models) -> Match:
    """Return the mapping by what both models compute."""
    found, equal, proposed = _proposed(jax, torch, buffers, tied)
    theirs = {**torch, **buffers}
    possible = pair(found.jax, found.torch).possible
    # A bias that one side alone has, as torch's LSTM, must be zero for both to be the same.
    lone = {
        name for name in (*proposed.only_jax, *proposed.only_torch) if "bias" in read(components(name), False).roles
    }
    no_bias = [{name: np.zeros(a.shape) for name, a in side.items() if name in lone} for side in (jax, theirs)]
    one, other = models.run(
        *({**w, **z} for w, z in zip(alike_weights(found.jax, found.torch, possible, jax, theirs), no_bias))
    )
    largest = max((float(np.abs(g).max(initial=0)) for g in one.grads.values()), default=0.0)
    same = equal_leaves(found.jax, found.torch, one.grads, other.grads, ROUNDING * largest, GRADIENTS)
    apart = differing(found.jax, found.torch, one.grads, other.grads, ROUNDING * largest)
    proposed = propose(found, equal, same, apart=apart)
    rows = resolve(
        {row.key: row.value for row in proposed.rows},  # type: ignore[misc]
        *({name: array.shape for name, array in side.items()} for side in (jax, torch, buffers)),
        only_jax=proposed.only_jax,
        only_torch=proposed.only_torch,
    )
    agree, proven = verified(models, rows, jax, {**theirs, **no_bias[1]}, no_bias[0])
    return _result(propose(found, equal, same, proven) if agree else proposed, jax, torch, buffers)


def _holds(params: Any) -> bool:
    """Return whether the parameters are a module that can run."""
    if isinstance(params, dict | list | tuple):
        return False
    from parity.ports.jax.models import holds_parameters

    return holds_parameters(params)


def _result(proposed: Proposed, jax: Arrays, torch: Arrays, buffers: Arrays) -> Match:
    """Return the rows as a mapping.

    Raises:
        UserError: there are none.
    """
    if not proposed.rows:
        raise UserError(
            f"match: found nothing in common: {len(jax)} JAX parameters ({_some(jax)}) and {len(torch)} of torch "
            f"({_some(torch)}); expected two of the same model"
        )
    reasons = {path: row.reason for row in proposed.rows for path in row.jax}
    return Match(
        names={row.key: row.value for row in proposed.rows},  # type: ignore[misc]
        only_jax=proposed.only_jax,
        only_torch=proposed.only_torch,
        certain={path for path, reason in reasons.items() if not reason},
        uncertain={path: reason for path, reason in {**reasons, **proposed.problems}.items() if reason},
        rows=tuple(proposed.rows),
        known=(tuple(jax), (*torch, *buffers)),
    )


def _some(arrays: Arrays) -> str:
    return ", ".join(f"{name} {list(array.shape)}" for name, array in list(arrays.items())[:2])


def _flat(params: Any) -> Arrays:
    """Return the arrays of a tree by dotted paths.

    Raises:
        UserError: there are none, a leaf is no array, or a path occurs twice.
    """
    leaves = list(_plain(params, "")) if isinstance(params, dict | list | tuple) else []
    if not leaves or any(leaf is None for _, leaf in leaves):
        leaves = jax_arrays(params)
    counts = Counter(name for name, _ in leaves)
    if double := [name for name, count in counts.items() if count > 1]:
        raise UserError(f"params: found {', '.join(double)} twice, expected each path once")
    arrays = {}
    for name, leaf in leaves:
        if not (hasattr(leaf, "dtype") and hasattr(leaf, "shape")):
            raise UserError(f"params: found {type(leaf).__name__} at {name!r}, expected an array")
        if not str(leaf.dtype).startswith("key<"):  # random keys of an NNX state
            arrays[name] = np.asarray(leaf)
    if not arrays:
        raise UserError("params: found no arrays, expected a tree of JAX or NumPy arrays")
    return arrays


def _plain(tree: Any, name: str) -> Any:
    """Yield the leaves of dicts, lists and tuples; None in place of what only JAX can take apart."""
    if type(tree) is dict:
        for key, child in tree.items():
            yield from _plain(child, f"{name}.{key}" if name else str(key))
    elif type(tree) in (list, tuple):
        for index, child in enumerate(tree):
            yield from _plain(child, f"{name}.{index}" if name else str(index))
    elif isinstance(tree, np.ndarray | str | int | float):
        yield name, tree
    else:
        yield name, None


def _as_arrays(side: Mapping[str, Any]) -> Arrays:
    """Return the arrays; in place of a shape, one without memory."""
    found = {}
    for name, value in side.items():
        if hasattr(value, "dtype") and hasattr(value, "shape"):
            found[name] = np.asarray(value)
        elif isinstance(value, tuple | list) and all(isinstance(size, int) for size in value):
            found[name] = np.broadcast_to(np.float32(0), tuple(value))
        else:
            raise UserError(f"params: found {type(value).__name__} at {name!r}, expected an array or a shape")
    return found


callable_module(__name__, "parity.match:match")
