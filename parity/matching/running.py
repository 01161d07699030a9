"""What both models say of a mapping when they run: the only part of `parity.match` that needs the frameworks.

Arrays of one shape get the same values, made so that every layout in question gives the same array too. Outputs then do
not depend on the mapping, and the gradient of each parameter shows which one of the other side it is, and its layout. A
second run with weights of their own proves the whole.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from parity.mapping import Row
from parity.matching.assign import components_of
from parity.matching.layouts import apply, undo, usual_layouts
from parity.matching.leaves import Leaf
from parity.ports.side import DType, Request
from parity.ports.trees import arrays_of, matched
from parity.settings import jax_settings, torch_settings

__all__ = ["Models", "alike_weights", "jax_arrays", "torch_arrays", "verified"]

Arrays = dict[str, np.ndarray]
STRICT = (1e-9, 1e-7, 1e-12)
"""Under what differences of outputs and gradients, relative to the largest value, two models are the same in float64,
and the magnitude of a gradient, relative to the largest of all, under which it says nothing."""
NARROW = (1e-5, 1e-3, 1e-6)
"""The same of models that compute in float32 inside, as transformers' RMSNorm; a wrong mapping is far beyond."""
ROUNDING = STRICT[2]


def jax_arrays(params: Any) -> list[tuple[str, Any]]:
    """Return the paths and leaves of a tree of parameters that is no dict of arrays, or of a module that holds them."""
    from parity.ports.jax.models import adapt, flat, holds_parameters

    return list((adapt(params, None, None, False).arrays if holds_parameters(params) else flat(params)).items())


def torch_arrays(module: Any) -> tuple[Arrays, Arrays, dict[str, list[str]]]:
    """Return the parameters, buffers and other names of tied parameters of a module."""
    from parity.convert.names import torch_to_numpy

    parameters = dict(module.named_parameters())
    names = {id(value): name for name, value in parameters.items()}
    tied: dict[str, list[str]] = {}
    for name, value in module.named_parameters(remove_duplicate=False):
        if names[id(value)] != name:
            tied.setdefault(names[id(value)], []).append(name)
    sides = (parameters, dict(module.named_buffers()))
    arrays = [{name: torch_to_numpy(value.detach().cpu()) for name, value in side.items()} for side in sides]
    return arrays[0], arrays[1], tied


@dataclass(frozen=True)
class Run:
    """What a model computed: outputs by place, and gradients by its own names."""

    outputs: Arrays
    grads: Arrays


@dataclass(frozen=True)
class Models:
    """Both models and their inputs."""

    jax_fn: Any
    """As the JAX model of `parity.compare`."""
    params: Any
    module: Any
    inputs: tuple[Any, ...]
    call_module: Callable[..., Any]

    def run(self, ours: Arrays, theirs: Arrays) -> tuple[Run, Run]:
        """Return what both compute from these weights, each by its own names: in float64, or where JAX insists on
        float32, as the carry of Flax's cells does, in that."""
        try:
            return self._run(ours, theirs, "float64")
        except TypeError as error:
            if "float32" not in str(error):
                raise
            return self._run(ours, theirs, "float32")

    def _run(self, ours: Arrays, theirs: Arrays, dtype: DType) -> tuple[Run, Run]:
        from parity.ports.jax.models import adapt
        from parity.ports.jax.port import JaxPort, jax_set_up
        from parity.ports.torch.port import TorchPort, torch_set_up

        request = Request(args=arrays_of(self.inputs), dtype=dtype)
        with jax_settings(), torch_settings(), jax_set_up(request):
            torch_set_up()
            one = JaxPort(adapt(self.jax_fn, self.params, None, False), request)
            other = TorchPort(self.module, self.call_module, request)
            chosen = matched(one.output_names(), other.output_names(), None)
            one.request = replace(request, outputs={name: own for name, (own, _) in chosen.items()})
            other.request = replace(request, outputs={name: own for name, (_, own) in chosen.items()})
            left, right = one.run(ours), other.run(theirs)
            return Run(left.outputs, left.grads), Run(right.outputs, right.grads)


def alike_weights(
    jax: Sequence[Leaf], torch: Sequence[Leaf], possible: np.ndarray, ours: Arrays, theirs: Arrays
) -> tuple[Arrays, Arrays]:
    """Return weights under which every possible mapping gives the same outputs.

    Args:
        jax: leaves of JAX.
        torch: leaves of torch.
        possible: JAX leaves × torch leaves, whether a pair is a possible one.
        ours: JAX's parameters; what no pair has keeps its values.
        theirs: torch's.
    """
    ours, theirs = (
        {n: np.array(a, np.float64) if a.dtype.kind not in "iub" else a for n, a in side.items()}
        for side in (ours, theirs)
    )
    rng = np.random.default_rng(0)
    for rows, columns in components_of(possible):
        sides = ({jax[i].shape for i in rows}, {torch[k].shape for k in columns})
        labels = _labels(*sides)
        vectors = any(sum(size > 1 for size in shape) < 2 for shapes in sides for shape in shapes)
        size = int(np.prod(next(iter(sides[0]))))
        values = rng.uniform(0.5, 1.5, size) if vectors else rng.standard_normal(size) / max(size, 1) ** 0.25
        for leaves, numbers, arrays, side in ((jax, rows, ours, 0), (torch, columns, theirs, 1)):
            for leaf in (leaves[n] for n in numbers):
                if arrays[leaf.source].dtype == np.float64:
                    leaf.of(arrays[leaf.source])[...] = values[labels[side][leaf.shape]]
    return ours, theirs


def _labels(ours: Iterable[tuple], theirs: Iterable[tuple]) -> tuple[dict[tuple, np.ndarray], dict[tuple, np.ndarray]]:
    """Return a number for each place of an array of each shape; equal ones have the same value under some layout."""
    one, other = ({shape: np.arange(int(np.prod(shape))).reshape(shape) for shape in side} for side in (ours, theirs))
    changed = True
    while changed:
        changed = False
        for a, b, layout in [(x, y, layout) for x in one for y in other for layout in usual_layouts(x, y)]:
            smallest = np.minimum(apply(layout, one[a]), other[b])
            back = undo(layout, smallest, a)
            if (smallest != other[b]).any() or (back != one[a]).any():
                one[a], other[b], changed = np.array(back), np.array(smallest), True
    return one, other


def verified(models: Models, rows: Sequence[Row], ours: Arrays, theirs: Arrays, zeros: Arrays) -> tuple[bool, set[str]]:
    """Return whether both models compute the same from random weights, and which JAX parameters that depends on.

    Args:
        models: both.
        rows: the whole mapping.
        ours: JAX's parameters, for their shapes.
        theirs: torch's; those that no row names keep their values.
        zeros: those of JAX that are zero.
    """
    rng = np.random.default_rng(1)
    shared = [set(row.jax) for row in rows if row.shares]
    weights: Arrays = {}
    for name, array in ours.items():
        vector = sum(size > 1 for size in array.shape) < 2 or any(
            sum(size > 1 for size in shape) < 2 for row in rows if name in row.jax for shape in row.bound.shapes
        )
        value = rng.uniform(0.5, 1.5, array.shape) if vector else rng.standard_normal(array.shape) / array.size**0.25
        weights[name] = value if array.dtype.kind not in "iub" else array
    weights |= zeros
    for names in shared:
        first = min(names)
        weights |= dict.fromkeys(names, weights[first])
    mapped = {name: value for row in rows for name, value in row.to_torch(weights).items()}
    one, other = models.run(weights, {**theirs, **mapped})
    if one.outputs.keys() != other.outputs.keys():
        return False, set()
    return next(
        (found for limits in (STRICT, NARROW) if (found := _agree(one, other, rows, limits))[0]), (False, set())
    )


def _agree(one: Run, other: Run, rows: Sequence[Row], limits: tuple[float, float, float]) -> tuple[bool, set[str]]:
    """Return whether outputs and gradients are the same, and the JAX parameters whose gradient is not zero.

    Args:
        one: what JAX computed.
        other: what torch computed.
        rows: the mapping.
        limits: of outputs, of gradients, and of zero.
    """
    outputs, gradients, zero = limits
    same = all(_close(value, other.outputs[name], outputs) for name, value in one.outputs.items())
    floor = zero * max((float(np.abs(g).max(initial=0)) for g in one.grads.values()), default=0.0)
    proven: set[str] = set()
    for row in rows:
        if row.shares:
            grads = {row.jax[0]: np.sum([one.grads[name] for name in row.jax], 0)}
        else:
            grads = {name: one.grads[name] for name in row.jax if name in one.grads}
        if set(row.torch) <= other.grads.keys():
            back = row.to_jax(other.grads)
            same = same and all(_close(grad, back[name], gradients, floor) for name, grad in grads.items())
        if grads and all(np.abs(grad).max(initial=0) > floor for grad in grads.values()):
            proven |= set(row.jax)
    return same, proven


def _close(one: np.ndarray, other: np.ndarray, tolerance: float, floor: float = 0.0) -> bool:
    if one.shape != other.shape:
        return False
    largest = max(float(np.abs(one).max(initial=0)), float(np.abs(other).max(initial=0)))
    return bool(np.abs(one - other).max(initial=0) <= tolerance * largest + floor)
