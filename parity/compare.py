"""The middle rungs of the ladder for anyone's port: a torch module against a JAX function, by a mapping of names.

from parity import compare

def test_my_port_is_the_same_model():
    report = compare(jax_fn, torch_module, x, params=params, names=names)
    assert report, str(report)
"""

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from lmcore.describe import environment
from lmcore.errors import UserError
from lmcore.lazy import callable_module
from parity.backends import framework_settings
from parity.backends.base import Arrays
from parity.check.result import judge
from parity.convert.names import Row, Transform, convert_rows, numpy_to_torch, torch_to_numpy
from parity.difference import compare_all, difference
from parity.report.report import Report
from parity.taps import collecting

__all__ = ["compare"]

Names = Mapping[str, str | tuple[str, tuple[int, ...]]]
"""Path in the JAX parameters -> name in the torch module, with the order of axes that makes torch's layout of JAX's."""


@dataclass(frozen=True)
class Side:
    """What one framework computed."""

    activations: Arrays
    outputs: Arrays
    loss: float
    grads: Arrays
    """By JAX's names, in JAX's layout."""


def compare(
    jax_fn: Callable[..., Any],
    torch_module: Any,
    *inputs: np.ndarray,
    params: Any,
    names: Names,
    taps: Mapping[str, str] | None = None,
    losses: tuple[Callable[[Any], Any], Callable[[Any], Any]] | None = None,
    dtype: Literal["float64", "float32"] = "float64",
) -> Report:
    """Give both the same weights and inputs; compare activations, outputs, loss and every gradient.

    Args:
        jax_fn: `jax_fn(params, *inputs)`, traceable by `jax.jit`; any tree of arrays comes out.
        torch_module: `torch_module(*inputs)` gives the same tree. It is copied, and runs in evaluation mode.
        inputs: NumPy arrays; floats are given in `dtype`.
        params: tree of JAX parameters; its paths are dotted, as in `blocks.0.w`. Torch receives their values.
        names: path in `params` -> name of the torch parameter or buffer, or (name, axes) where torch stores
            `numpy.transpose(value, axes)`. All of `params` and all torch parameters must be named. What is a buffer in
            torch has no gradient there, and none is compared.
        taps: name given to `parity.tap` in the JAX function -> torch submodule whose output it is. What both sides
            tap under one name is compared without being listed here.
        losses: from JAX's outputs and from torch's to a number. Without it the loss is the output itself if that is
            one number, else the outputs' sum with fixed random weights, which no output escapes.
        dtype: type of all floats; float64 tells mistakes from rounding.

    Returns:
        A report: true if all is within the tolerances of `dtype`; `report.first_failure.where` is where to look.

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
        one = _run_jax(jax_fn, params, typed, losses, dtype)
        other = _run_torch(torch_module, flat, _rows(flat, names), typed, taps or {}, losses, dtype)
    results = []
    if one.activations or other.activations:
        found = compare_all(one.activations, other.activations)
        results.append(judge(3, f"{len(found)} activations", dtype, found, "logits"))
    results.append(judge(4, "outputs", dtype, compare_all(one.outputs, other.outputs), "logits"))
    results.append(judge(5, "loss", dtype, [difference("loss", one.loss, other.loss)], "logits"))
    buffers = flat.keys() - other.grads.keys()  # named by `names`, but not trained in torch
    found = compare_all({name: g for name, g in one.grads.items() if name not in buffers}, other.grads)
    if found:
        results.append(judge(5, f"gradients of {len(found)} parameters", dtype, found, "gradients"))
    subject = f"{getattr(jax_fn, '__name__', 'JAX function')} in JAX against {type(torch_module).__name__} in torch"
    return Report(subject=subject, results=tuple(results), facts=environment())


def _rows(flat: Arrays, names: Names) -> list[Row]:
    """The mapping as rows of a table of names."""
    if invented := [path for path in names if path not in flat]:
        raise UserError(f"names: {', '.join(invented)}: not among the JAX params; there are {', '.join(flat)}")
    rows = []
    for path, named in names.items():
        name, axes = named if isinstance(named, tuple) else (named, None)
        shape = flat[path].shape
        if axes is not None and sorted(axes) != list(range(len(shape))):
            raise UserError(f"names: {path}: found axes {axes}, expected an order of the {len(shape)} of its array")
        rows.append(Row(path, name, name, shape, _transform(axes)))
    return rows


def _transform(axes: tuple[int, ...] | None) -> Transform:
    if axes is None:
        return Transform("identity", lambda array: array, lambda array: array)
    back = tuple(int(i) for i in np.argsort(axes))
    return Transform(f"axes {axes}", lambda a: np.transpose(a, axes), lambda a: np.transpose(a, back))


def _typed(array: Any, dtype: str) -> np.ndarray:
    """Real values in `dtype`, complex ones in two of it, others as they are."""
    import jax.numpy as jnp

    array = np.asarray(array)
    if np.iscomplexobj(array):
        return array.astype(np.result_type(dtype, np.complex64))
    return array.astype(dtype) if jnp.issubdtype(array.dtype, jnp.floating) else array  # bfloat16 too


def _typed_copy(module: Any, dtype: str) -> Any:
    """The module on the CPU, to be evaluated, with all its values in `dtype` and all its parameters trained."""
    import torch

    module = copy.deepcopy(module).cpu().eval()
    with torch.no_grad():
        for tensor in (*module.parameters(), *module.buffers()):
            if tensor.is_floating_point() or tensor.is_complex():
                wanted = getattr(torch, dtype)
                tensor.data = tensor.data.to(wanted.to_complex() if tensor.is_complex() else wanted)
    for parameter in module.parameters():
        parameter.requires_grad_(parameter.is_floating_point() or parameter.is_complex())
    return module


def _run_jax(jax_fn: Any, params: Any, inputs: list[np.ndarray], losses: Any, dtype: str) -> Side:
    import jax
    import jax.numpy as jnp

    tapped: list[str] = []

    def run(params: Any) -> tuple[Any, tuple[Any, list[Any]]]:
        with collecting() as seen:
            outputs = jax_fn(params, *map(jnp.asarray, inputs))
        tapped[:] = seen
        leaves = _leaves(outputs)
        loss = losses[0](outputs) if losses else _projected(leaves, jnp.asarray)
        return loss, (leaves, list(seen.values()))

    typed = jax.tree.map(lambda leaf: jnp.asarray(_typed(leaf, dtype)), params)
    (loss, (outputs, seen)), grads = jax.jit(jax.value_and_grad(run, has_aux=True, allow_int=True))(typed)
    paths = jax.tree_util.tree_leaves_with_path(grads)
    by_name = {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in paths}
    return Side(
        {name: np.asarray(value) for name, value in zip(tapped, seen, strict=True)},
        {name: np.asarray(value) for name, value in outputs.items()},
        float(loss),
        # Of a complex parameter, jax gives the conjugate of what torch does.
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
    weights = convert_rows({n: _typed(v, dtype) for n, v in flat.items()}, rows, "jax", "torch")
    _check_names(weights, state, buffers)
    with torch.no_grad():
        for name, value in weights.items():
            (state | buffers)[name].copy_(numpy_to_torch(value))
    with collecting() as tapped, _hooked(module, taps) as seen:
        outputs = module(*map(numpy_to_torch, inputs))
    leaves = _leaves(outputs)
    loss = losses[1](outputs) if losses else _projected(leaves, lambda a: numpy_to_torch(a).to(getattr(torch, dtype)))
    if loss.requires_grad:  # not where nothing is trained
        loss.backward()
    trained = [row for row in rows if row.torch in state]
    grads = {n: torch_to_numpy(torch.zeros_like(p) if p.grad is None else p.grad) for n, p in state.items()}
    return Side(
        {name: torch_to_numpy(value) for name, value in (tapped | seen).items()},
        {name: torch_to_numpy(value) for name, value in leaves.items()},
        float(loss.detach()),
        convert_rows(grads, trained, "torch", "jax"),
    )


def _check_names(weights: Arrays, parameters: Mapping[str, Any], buffers: Mapping[str, Any]) -> None:
    known = {name: tuple(value.shape) for name, value in [*parameters.items(), *buffers.items()]}
    problems = [f"{name} of the torch module has no path in names" for name in parameters if name not in weights]
    invented = [name for name in weights if name not in known]
    if invented:
        problems.append(f"{', '.join(invented)}: not in the torch module; there are {', '.join(known)}")
    for name, value in weights.items():
        if name in invented:
            continue
        if value.shape != known[name]:
            problems.append(f"{name} is {list(known[name])} in torch, {list(value.shape)} from JAX: set its axes?")
    if problems:
        raise UserError(f"names do not fit the torch module: {'; '.join(problems)}")


@contextmanager
def _hooked(module: Any, taps: Mapping[str, str]) -> Iterator[Arrays]:
    """Keep the outputs of the named submodules, under the names of the taps."""
    found: dict[str, Any] = {}
    submodules = dict(module.named_modules())
    missing = [name for name in taps.values() if name not in submodules]
    if missing:
        raise UserError(f"taps: {', '.join(missing)}: no such submodule in torch; there are {', '.join(submodules)}")
    with ExitStack() as stack:
        for tap, name in taps.items():

            def hook(_: Any, __: Any, output: Any, tap: str = tap) -> None:
                found[tap] = output[0] if isinstance(output, tuple) else output

            stack.callback(submodules[name].register_forward_hook(hook).remove)
        yield found


def _leaves(outputs: Any) -> dict[str, Any]:
    import jax

    return {"output" + jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(outputs)}


def _projected(leaves: dict[str, Any], convert: Callable[[np.ndarray], Any]) -> Any:
    """A number that every value of the outputs moves."""
    if len(leaves) == 1 and next(iter(leaves.values())).ndim == 0 and len(_real_parts(*leaves.values())) == 1:
        return next(iter(leaves.values()))
    rng = np.random.default_rng(0)
    parts = [part for leaf in leaves.values() for part in _real_parts(leaf)]
    return sum((part * convert(rng.standard_normal(tuple(part.shape)))).sum() for part in parts)


def _real_parts(leaf: Any) -> tuple[Any, ...]:
    return (leaf.real, leaf.imag) if "complex" in str(leaf.dtype) else (leaf,)


callable_module(__name__, "parity.compare:compare")
