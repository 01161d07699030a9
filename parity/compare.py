"""The middle rungs of the ladder for anyone's port: a torch module against a JAX function, by a mapping of names.

from parity import compare

def test_my_port_is_the_same_model():
    report = compare(jax_fn, torch_module, x, params=params, names=names)
    assert report, str(report)
"""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from lmcore.describe import environment
from lmcore.errors import UserError
from lmcore.lazy import callable_module
from parity.backends import framework_settings
from parity.backends.base import Arrays, moved_by_one_ulp
from parity.check.known import are_beyond
from parity.check.result import judge
from parity.convert.names import numpy_to_torch, torch_to_numpy
from parity.difference import Difference, compare_all, difference
from parity.mapping import Names, Row, resolve
from parity.report.report import Report
from parity.taps import collecting

__all__ = ["compare"]

ZERO = "zero within rounding"
"""Note of a gradient that is zero in exact arithmetic."""
ROUNDINGS = 16
"""How many times larger such a gradient may be than its change when the weights move by one unit in the last place."""


@dataclass(frozen=True)
class Side:
    """The results of one framework."""

    activations: Arrays
    outputs: Arrays
    loss: float
    grads: Arrays
    """Gradients by JAX's names, in JAX's layout."""


def compare(
    jax_fn: Callable[..., Any],
    torch_module: Any,
    *inputs: np.ndarray,
    params: Any,
    names: Names,
    taps: Mapping[str, str] | None = None,
    losses: tuple[Callable[[Any], Any], Callable[[Any], Any]] | None = None,
    dtype: Literal["float64", "float32"] = "float64",
    only_jax: Sequence[str] = (),
    only_torch: Sequence[str] = (),
) -> Report:
    """Run both on the same weights and inputs; compare activations, outputs, loss and every gradient.

    Args:
        jax_fn: `jax_fn(params, *inputs)`, traceable by `jax.jit`; returns any tree of arrays.
        torch_module: `torch_module(*inputs)` returns the same tree. It is copied, and runs in evaluation mode.
        inputs: NumPy arrays of any shape; floats are converted to `dtype`.
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

    Returns:
        A report: true if all is within the tolerances of `dtype`; else `report.first_failure.where` is the place.

    Raises:
        UserError: the names do not fit the parameters, or the taps the modules; the message names each.
    """
    with framework_settings():
        import jax

        jax.config.update("jax_enable_x64", dtype == "float64")
        jax.config.update("jax_default_matmul_precision", "highest")
        flat = {
            jax.tree_util.keystr(path, simple=True, separator="."): np.asarray(leaf)
            for path, leaf in jax.tree_util.tree_leaves_with_path(params)
        }
        typed = [_typed(x, dtype) for x in inputs]
        in_jax = _run_jax(jax_fn, params, typed, losses, dtype)
        rows = _rows(flat, torch_module, names, only_jax, only_torch)
        in_torch = _run_torch(torch_module, flat, rows, typed, taps or {}, losses, dtype)
        ours = _grouped(in_jax.grads, rows, in_torch.grads)
        gradients = compare_all(ours, in_torch.grads)
        if are_beyond("gradients", dtype, gradients):
            moved = _run_jax(jax_fn, _moved(params, dtype), typed, losses, dtype)
            rounding = compare_all(ours, _grouped(moved.grads, rows, in_torch.grads))
            gradients = _without_zeros(gradients, {d.name: d.max_abs for d in rounding}, ours, in_torch.grads)
        zeros = [d.name for d in gradients if d.note == ZERO]
    results = []
    if in_jax.activations or in_torch.activations:
        differences = compare_all(in_jax.activations, in_torch.activations)
        results.append(judge(3, f"{len(differences)} activations", dtype, differences, "logits"))
    results.append(judge(4, "outputs", dtype, compare_all(in_jax.outputs, in_torch.outputs), "logits"))
    results.append(judge(5, "loss", dtype, [difference("loss", in_jax.loss, in_torch.loss)], "logits"))
    if gradients:
        note = f"{ZERO}: {', '.join(zeros)}" if zeros else ""
        results.append(judge(5, f"gradients of {len(gradients)} parameters", dtype, gradients, "gradients", note))
    subject = f"{getattr(jax_fn, '__name__', 'JAX function')} in JAX against {type(torch_module).__name__} in torch"
    return Report(subject=subject, results=tuple(results), facts=environment())


def _rows(flat: Arrays, module: Any, names: Names, only_jax: Sequence[str], only_torch: Sequence[str]) -> list[Row]:
    """Return the mapping, fitted to both sides."""
    shapes = {path: array.shape for path, array in flat.items()}
    sides = ({n: tuple(t.shape) for n, t in tensors} for tensors in (module.named_parameters(), module.named_buffers()))
    return resolve(names, shapes, *sides, only_jax=only_jax, only_torch=only_torch)


def _grouped(grads: Arrays, rows: list[Row], wanted: Arrays) -> Arrays:
    """Return JAX's gradients of the parameters that have one in torch; of a weight that torch shares, their sum."""
    grouped = {}
    for row in rows:
        name = " + ".join(row.jax) if row.shares else ""
        if name in wanted:
            grouped[name] = np.sum([grads[part] for part in row.jax], axis=0)
        grouped |= {path: grads[path] for path in row.jax if path in wanted and path in grads}
    return grouped


def _moved(params: Any, dtype: str) -> Any:
    """Return the tree of parameters with every real weight moved to the next representable number of `dtype`."""
    import jax

    leaves, tree = jax.tree.flatten(params)
    arrays = {str(i): _typed(leaf, dtype) for i, leaf in enumerate(leaves)}
    real = {name: array for name, array in arrays.items() if array.dtype.kind == "f"}
    return jax.tree.unflatten(tree, [*(arrays | moved_by_one_ulp(real, 0)).values()])


def _without_zeros(
    differences: list[Difference], rounding: Mapping[str, float], ours: Arrays, theirs: Arrays
) -> list[Difference]:
    """Return the differences, without those of gradients that are zero in exact arithmetic.

    Such a gradient, of a key's bias before a softmax or of a bias before a norm over the batch, is nothing but rounding
    in either framework: it is no larger than what it changes by when the weights move by one unit in the last place.

    Args:
        differences: of all gradients.
        rounding: by how much each of JAX's gradients changes then.
        ours: JAX's gradients.
        theirs: torch's, by the same names.
    """

    def is_zero(name: str) -> bool:
        largest = max(float(np.abs(grads[name]).max(initial=0)) for grads in (ours, theirs))
        return largest <= ROUNDINGS * rounding[name]

    return [
        replace(d, max_rel=0.0, note=ZERO) if d.max_abs > 0 and d.name in rounding and is_zero(d.name) else d
        for d in differences
    ]


def _typed(array: Any, dtype: str) -> np.ndarray:
    """Convert real values to `dtype` and complex ones to its complex dtype; return others as they are."""
    import jax.numpy as jnp

    array = np.asarray(array)
    if np.iscomplexobj(array):
        return array.astype(np.result_type(dtype, np.complex64))
    return array.astype(dtype) if jnp.issubdtype(array.dtype, jnp.floating) else array  # bfloat16 too


def _typed_copy(module: Any, dtype: str) -> Any:
    """Copy the module to the CPU, in evaluation mode, in `dtype`, and with gradients for all its parameters."""
    import torch

    module = copy.deepcopy(module).cpu().eval()
    with torch.no_grad():
        for tensor in (*module.parameters(), *module.buffers()):
            if tensor.is_floating_point() or tensor.is_complex():
                real = getattr(torch, dtype)
                tensor.data = tensor.data.to(real.to_complex() if tensor.is_complex() else real)
    for parameter in module.parameters():
        parameter.requires_grad_(parameter.is_floating_point() or parameter.is_complex())
    return module


def _run_jax(jax_fn: Any, params: Any, inputs: list[np.ndarray], losses: Any, dtype: str) -> Side:
    import jax
    import jax.numpy as jnp

    tapped: list[str] = []

    def run(params: Any) -> tuple[Any, tuple[Any, list[Any]]]:
        with collecting() as values:
            outputs = jax_fn(params, *map(jnp.asarray, inputs))
        tapped[:] = values
        leaves = _leaves(outputs)
        loss = losses[0](outputs) if losses else _projected(leaves, jnp.asarray)
        return loss, (leaves, list(values.values()))

    typed = jax.tree.map(lambda leaf: jnp.asarray(_typed(leaf, dtype)), params)
    (loss, (outputs, values)), grads = jax.jit(jax.value_and_grad(run, has_aux=True, allow_int=True))(typed)
    paths = jax.tree_util.tree_leaves_with_path(grads)
    by_name = {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in paths}
    return Side(
        {name: np.asarray(value) for name, value in zip(tapped, values, strict=True)},
        {name: np.asarray(value) for name, value in outputs.items()},
        float(loss),
        # The gradient of a complex parameter in jax is the conjugate of torch's.
        {name: np.conj(g) for name, g in by_name.items() if g.dtype != jax.dtypes.float0},
    )


def _run_torch(
    module: Any,
    flat: Arrays,
    rows: list[Row],
    inputs: list[np.ndarray],
    taps: Mapping[str, str],
    losses: Any,
    dtype: str,
) -> Side:
    import torch

    from torchlm.device import choose_math_kernels

    choose_math_kernels()
    module = _typed_copy(module, dtype)
    state, buffers = dict(module.named_parameters()), dict(module.named_buffers())
    weights = {name: _typed(value, dtype) for name, value in flat.items()}
    with torch.no_grad():
        for row in rows:
            for name, value in row.to_torch(weights).items():
                (state | buffers)[name].copy_(numpy_to_torch(np.ascontiguousarray(value)))
    with collecting() as tapped, _hooked(module, taps) as hooked:
        outputs = module(*map(numpy_to_torch, inputs))
    leaves = _leaves(outputs)
    loss = losses[1](outputs) if losses else _projected(leaves, lambda a: numpy_to_torch(a).to(getattr(torch, dtype)))
    if loss.requires_grad:  # false for a module without parameters
        loss.backward()
    grads = {n: torch_to_numpy(torch.zeros_like(p) if p.grad is None else p.grad) for n, p in state.items()}
    by_path: Arrays = {}
    for row in rows:
        if set(row.torch) <= state.keys():
            back = row.to_jax(grads)
            by_path |= {" + ".join(row.jax): back[row.jax[0]]} if row.shares else back
    return Side(
        {name: torch_to_numpy(value) for name, value in (tapped | hooked).items()},
        {name: torch_to_numpy(value) for name, value in leaves.items()},
        float(loss.detach()),
        by_path,
    )


@contextmanager
def _hooked(module: Any, taps: Mapping[str, str]) -> Iterator[Arrays]:
    """Record the outputs of the named submodules, under the names of the taps."""
    recorded: dict[str, Any] = {}
    submodules = dict(module.named_modules())
    missing = [name for name in taps.values() if name not in submodules]
    if missing:
        raise UserError(f"taps: {', '.join(missing)}: no such submodule in torch; there are {', '.join(submodules)}")
    with ExitStack() as stack:
        for tap, name in taps.items():

            def hook(_: Any, __: Any, output: Any, tap: str = tap) -> None:
                recorded[tap] = output[0] if isinstance(output, tuple) else output

            stack.callback(submodules[name].register_forward_hook(hook).remove)
        yield recorded


def _leaves(outputs: Any) -> dict[str, Any]:
    import jax

    return {"output" + jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(outputs)}


def _projected(leaves: dict[str, Any], convert: Callable[[np.ndarray], Any]) -> Any:
    """Return a scalar that depends on every value of the outputs."""
    if len(leaves) == 1 and next(iter(leaves.values())).ndim == 0 and len(_real_parts(*leaves.values())) == 1:
        return next(iter(leaves.values()))
    rng = np.random.default_rng(0)
    parts = [part for leaf in leaves.values() for part in _real_parts(leaf)]
    return sum((part * convert(rng.standard_normal(tuple(part.shape)))).sum() for part in parts)


def _real_parts(leaf: Any) -> tuple[Any, ...]:
    return (leaf.real, leaf.imag) if "complex" in str(leaf.dtype) else (leaf,)


callable_module(__name__, "parity.compare:compare")
