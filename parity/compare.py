"""The middle rungs of the ladder for anyone's port: a torch module against a JAX function, by a mapping of names.

from parity import compare

def test_my_port_is_the_same_model():
    report = compare(jax_fn, torch_module, x, params=params, names=names)
    assert report, str(report)
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from lmcore.describe import environment
from lmcore.lazy import callable_module
from parity.backends import framework_settings
from parity.backends.base import Arrays
from parity.check.known import are_beyond
from parity.check.result import Result, judge
from parity.difference import TOLERANCES, Difference, compare_all, difference, tolerance
from parity.mapping import Names, Row, resolve
from parity.report.report import Report

if TYPE_CHECKING:
    from parity.ports.side import Call, Side
    from parity.ports.training import Optimizers

__all__ = ["compare"]

ZERO = "zero within rounding"
"""Note of a gradient that is zero in exact arithmetic."""
ROUNDINGS = 16
"""How many times larger such a gradient may be than its change when the weights move by one unit in the last place."""
DRAWS = 3
"""Number of runs of each side that measure its own drift."""
MAX_NAMED = 3
"""Number of operations in a narrower type that are named."""


def compare(
    jax_fn: Callable[..., Any],
    torch_module: Any,
    *inputs: Any,
    params: Any,
    names: Names,
    taps: Mapping[str, str] | None = None,
    losses: tuple[Callable[[Any], Any], Callable[[Any], Any]] | None = None,
    dtype: Literal["float64", "float32"] = "float64",
    only_jax: Sequence[str] = (),
    only_torch: Sequence[str] = (),
    outputs: Sequence[str] | None = None,
    call_module: Callable[..., Any] | None = None,
    optimizers: "Optimizers | None" = None,
    batches: Sequence[tuple[Any, ...]] = (),
) -> Report:
    """Run both on the same weights and inputs; compare activations, outputs, loss and every gradient.

    Args:
        jax_fn: `jax_fn(params, *inputs)`, traceable by `jax.jit`; returns any tree of arrays.
        torch_module: `torch_module(*inputs)` returns the same tree. It is copied, and runs in evaluation mode.
        inputs: NumPy arrays of any shape, or dicts, tuples and lists of them, or None; floats are converted to `dtype`.
        params: tree of JAX parameters; its paths are dotted, as in `blocks.0.w`. Torch receives their values.
        names: path in `params` -> name of the torch parameter or buffer, alone, or with axes where torch stores
            `numpy.transpose(value, axes)`, or with one of `parity.transforms`; `parity.mapping` says more. All of
            `params` and all torch parameters must be named. A torch buffer has no gradient, so none is compared.
        taps: name passed to `parity.tap` in the JAX function -> torch submodule with the same output. Values that both
            sides tap under one name are compared without being listed here.
        losses: two functions, from JAX's outputs and from torch's to a scalar. Without them the loss is the output
            itself if that is a scalar, else a sum of all outputs with fixed random weights.
        dtype: of all floats; float64 separates mistakes from rounding.
        only_jax: paths in `params`, or patterns with `*`, that have no counterpart in torch.
        only_torch: torch parameters, or patterns with `*`, that have no counterpart in JAX and keep their values.
        outputs: keys of the outputs to compare, such as `logits`; None compares all. A bare output is compared with the
            first of several.
        call_module: `call_module(torch_module, *inputs)` runs the module; None for `torch_module(*inputs)`.
        optimizers: an optax transformation, and a function from torch's parameters to a torch optimizer: the updates of
            both are compared on the same gradients, parameters and moments.
        batches: inputs of each step of training by these optimizers, whose curves are compared; none trains nothing.

    Returns:
        A report: true if all is within the tolerances of `dtype`; else `report.first_failure.where` is the place.

    Raises:
        UserError: the names do not fit the parameters, or the taps the modules; the message names each.
    """
    with framework_settings():
        import jax

        jax.config.update("jax_enable_x64", dtype == "float64")
        jax.config.update("jax_default_matmul_precision", "highest")
        from parity.ports import jax as in_jax
        from parity.ports import torch as in_torch
        from parity.ports.side import Call
        from parity.ports.trees import matched, rebuilt
        from torchlm.device import choose_math_kernels

        choose_math_kernels()
        call_module = call_module or _called
        flat = in_jax.flat_params(params)
        rows = _rows(flat, torch_module, names, only_jax, only_torch)
        args = tuple(rebuilt(x, lambda name, array: in_jax.typed(array, dtype)) for x in inputs)
        weights = {name: in_jax.typed(value, dtype) for name, value in flat.items()}
        module = in_torch.prepared(torch_module, rows, weights, dtype)
        ours, theirs = (
            in_jax.output_names(jax_fn, params, args, dtype),
            in_torch.output_names(module, call_module, args),
        )
        call = Call(args=args, dtype=dtype, losses=losses, outputs=matched(ours, theirs, outputs))
        one, other = (
            in_jax.run_jax(jax_fn, params, call),
            in_torch.run_torch(module, call_module, rows, call, taps or {}),
        )
        rounding: Arrays = {}
        if are_beyond("gradients", dtype, _gradients(one, other, rows)):
            rounding = in_jax.run_jax(jax_fn, in_jax.moved(params, dtype), call).grads
        results = _judged(one, other, rows, dtype, rounding)
        if dtype == "float64" and not all(result.ok for result in results):
            from parity.ports.narrow import narrow_in_jax, narrow_in_torch

            narrow = narrow_in_jax(jax_fn, params, args, dtype) | narrow_in_torch(module, call_module, args, dtype)
            if narrow:
                results = _judged(one, other, rows, dtype, rounding, narrow)
        if optimizers is not None:
            results += _trained(jax_fn, torch_module, call_module, params, rows, call, one.grads, optimizers, batches)
    kept = [name for name, _ in torch_module.named_buffers() if not any(name in row.torch for row in rows)]
    if kept:
        note = f"torch buffers that no row names keep their values: {', '.join(kept)}"
        results = [_noted(r, note) if r.rung == 4 else r for r in results]
    subject = f"{getattr(jax_fn, '__name__', 'JAX function')} in JAX against {type(torch_module).__name__} in torch"
    return Report(subject=subject, results=tuple(results), facts=environment())


def _called(module: Any, *args: Any) -> Any:
    return module(*args)


def _rows(flat: Arrays, module: Any, names: Names, only_jax: Sequence[str], only_torch: Sequence[str]) -> list[Row]:
    """Return the mapping, fitted to both sides."""
    shapes = {path: array.shape for path, array in flat.items()}
    sides = ({n: tuple(t.shape) for n, t in tensors} for tensors in (module.named_parameters(), module.named_buffers()))
    return resolve(names, shapes, *sides, only_jax=only_jax, only_torch=only_torch)


def _judged(
    one: "Side", other: "Side", rows: list[Row], dtype: str, rounding: Arrays, narrow: Mapping[str, str] | None = None
) -> list[Result]:
    """Return a line for each kind of values.

    Args:
        one: what JAX computed.
        other: what torch computed.
        rows: the mapping of names.
        dtype: of all floats.
        rounding: JAX's gradients from weights moved by one unit in the last place; empty where none is needed.
        narrow: operation that computes in a narrower type -> that type, which then gives the tolerances.
    """
    kind = min(narrow.values(), key=_bits) if narrow else dtype
    limits = {name: tolerance(name, kind) for name in TOLERANCES}
    results = []
    if one.activations or other.activations:
        activations = compare_all(one.activations, other.activations)
        results.append(judge(3, f"{len(activations)} activations", dtype, activations, limits["logits"]))
    results.append(judge(4, "outputs", dtype, compare_all(one.outputs, other.outputs), limits["logits"]))
    results.append(judge(5, "loss", dtype, [difference("loss", one.loss, other.loss)], limits["logits"]))
    if gradients := _gradients(one, other, rows):
        note = ""
        if rounding:
            gradients = _without_zeros(gradients, one.grads, other.grads, _grouped(rounding, rows, other.grads), rows)
            zeros = [d.name for d in gradients if d.note == ZERO]
            note = f"{ZERO}: {', '.join(zeros)}" if zeros else ""
        results.append(
            judge(5, f"gradients of {len(gradients)} parameters", dtype, gradients, limits["gradients"], note)
        )
    if one.input_grads:
        inputs = compare_all(one.input_grads, other.input_grads)
        results.append(judge(5, f"gradients of {len(inputs)} inputs", dtype, inputs, limits["gradients"]))
    if narrow:
        more = f" and {len(narrow) - MAX_NAMED} more" if len(narrow) > MAX_NAMED else ""
        results[0] = _noted(results[0], f"compared as {kind}, since {'; '.join([*narrow][:MAX_NAMED])}{more}")
    return results


def _bits(kind: str) -> int:
    return {"float64": 64, "float32": 32}.get(kind, 16)


def _noted(result: Result, note: str) -> Result:
    return replace(result, note="; ".join(filter(None, [result.note, note])))


def _trained(
    jax_fn: Callable[..., Any],
    torch_module: Any,
    call_module: Callable[..., Any],
    params: Any,
    rows: list[Row],
    call: "Call",
    grads: Arrays,
    optimizers: "Optimizers",
    batches: Sequence[tuple[Any, ...]],
) -> list[Result]:
    """Return the lines of updates and of training, with arguments as in `compare`."""
    from parity.check.rungs.freerun import judge_curves
    from parity.ports import jax as in_jax
    from parity.ports import torch as in_torch
    from parity.ports.training import KNOWN, UPDATES, curves, updates
    from parity.ports.trees import rebuilt

    dtype = call.dtype
    flat = {name: in_jax.typed(value, dtype) for name, value in in_jax.flat_params(params).items()}

    def prepare(weights: Arrays) -> Any:
        return in_torch.prepared(torch_module, rows, weights, dtype)

    one, other = updates(params, grads, prepare(flat), rows, optimizers, dtype)
    results = []
    for what, ours, theirs in (("parameters", one.params, other.params), ("moments", one.moments, other.moments)):
        common = [name for name in ours if name in theirs]
        if common:
            differences = [difference(name, ours[name], theirs[name]) for name in common]
            line = judge(6, f"{what}, {UPDATES} updates", dtype, differences, "update")
            kind = type(optimizers[1](list(prepare(flat).parameters()))).__name__
            results.append(line if line.ok or kind not in KNOWN else _noted(line, f"a usual cause: {KNOWN[kind]}"))
    if batches:
        args = [tuple(rebuilt(x, lambda name, array: in_jax.typed(array, dtype)) for x in batch) for batch in batches]
        calls = [replace(call, args=each) for each in args]
        losses, own = curves((jax_fn, call_module), params, prepare, optimizers, calls, DRAWS)
        results.append(judge_curves("training", losses, own, dtype))
    return results


def _gradients(one: "Side", other: "Side", rows: list[Row]) -> list[Difference]:
    return compare_all(_grouped(one.grads, rows, other.grads), other.grads)


def _grouped(grads: Arrays, rows: list[Row], wanted: Arrays) -> Arrays:
    """Return JAX's gradients of the parameters that have one in torch; of a weight that torch shares, their sum."""
    grouped = {}
    for row in rows:
        name = " + ".join(row.jax) if row.shares else ""
        if name in wanted:
            grouped[name] = np.sum([grads[part] for part in row.jax], axis=0)
        grouped |= {path: grads[path] for path in row.jax if path in wanted and path in grads}
    return grouped


def _without_zeros(
    differences: list[Difference], ours: Arrays, theirs: Arrays, moved: Arrays, rows: list[Row]
) -> list[Difference]:
    """Return the differences, without those of gradients that are zero in exact arithmetic.

    Such a gradient, of a key's bias before a softmax or of a bias before a norm over the batch, is nothing but rounding
    in either framework: it is no larger than what it changes by when the weights move by one unit in the last place.

    Args:
        differences: of all gradients.
        ours: JAX's gradients.
        theirs: torch's.
        moved: JAX's from moved weights, by torch's names.
        rows: the mapping of names.
    """
    ours = _grouped(ours, rows, theirs)

    def is_zero(name: str) -> bool:
        largest = max(float(np.abs(grads[name]).max(initial=0)) for grads in (ours, theirs))
        return largest <= ROUNDINGS * float(np.abs(ours[name] - moved[name]).max(initial=0))

    return [
        replace(d, max_rel=0.0, note=ZERO) if d.max_abs > 0 and d.where is not None and is_zero(d.name) else d
        for d in differences
    ]


callable_module(__name__, "parity.compare:compare")
