"""Run a JAX function: activations, outputs, loss and gradients."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lmcore.errors import UserError
from parity.backends.base import moved_by_one_ulp
from parity.ports.side import Call, Side, projected
from parity.ports.trees import Leaves, named_leaves, rebuilt
from parity.taps import collecting

__all__ = ["arrays", "flat_params", "loss_of", "moved", "output_names", "path_name", "run_jax", "typed", "typed_params"]


def typed(array: Any, dtype: str) -> np.ndarray:
    """Convert real values to `dtype` and complex ones to its complex dtype; return others as they are."""
    array = np.asarray(array)
    if np.iscomplexobj(array):
        return array.astype(np.result_type(dtype, np.complex64))
    return array.astype(dtype) if jnp.issubdtype(array.dtype, jnp.floating) else array  # bfloat16 too


def flat_params(params: Any) -> dict[str, np.ndarray]:
    """Return the parameters by dotted paths, as in `blocks.0.w`; of an NNX state without the last `.value`."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return {path_name(path): np.asarray(leaf) for path, leaf in leaves}


def path_name(path: Any) -> str:
    """Return a leaf's path in a tree, dotted, without the last `.value` of an NNX state."""
    return jax.tree_util.keystr(path, simple=True, separator=".").removesuffix(".value")


def moved(params: Any, dtype: str) -> Any:
    """Return the tree of parameters with every real weight moved to the next representable number of `dtype`."""
    leaves, tree = jax.tree.flatten(params)
    values = {str(i): typed(leaf, dtype) for i, leaf in enumerate(leaves)}
    real = {name: value for name, value in values.items() if value.dtype.kind == "f"}
    return jax.tree.unflatten(tree, [*(values | moved_by_one_ulp(real, 0)).values()])


def output_names(function: Callable[..., Any], params: Any, args: tuple[Any, ...], dtype: str) -> list[str]:
    """Return the names of a function's outputs, without computing them.

    Raises:
        UserError: a tap is where no value can leave.
    """
    return list(_guarded(lambda: named_leaves(jax.eval_shape(function, typed_params(params, dtype), *arrays(args)))))


def run_jax(function: Callable[..., Any], params: Any, call: Call) -> Side:
    """Run the function and its gradients, compiled once."""
    tapped: list[str] = []
    real: dict[str, jax.Array] = {}

    def remember(name: str, array: np.ndarray) -> Any:
        if array.dtype.kind == "f":
            real[name] = jnp.asarray(array)
        return array

    args = rebuilt(call.args, remember)

    def run(params: Any, real: Mapping[str, jax.Array]) -> tuple[Any, tuple[Any, list[Any]]]:
        with collecting() as values:
            outputs = function(params, *rebuilt(args, lambda name, array: real.get(name, jnp.asarray(array))))
        tapped[:] = values
        chosen, loss = loss_of(outputs, call)
        return loss, (chosen, list(values.values()))

    differentiate = jax.jit(jax.value_and_grad(run, argnums=(0, 1), has_aux=True, allow_int=True))
    (loss, (outputs, values)), grads = _guarded(lambda: differentiate(typed_params(params, call.dtype), real))
    by_name = {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(grads[0])}
    return Side(
        activations={name: np.asarray(value) for name, value in zip(tapped, values, strict=True)},
        outputs={name: np.asarray(value) for name, value in outputs.items()},
        loss=float(loss),
        # The gradient of a complex parameter in jax is the conjugate of torch's.
        grads={name: np.conj(g) for name, g in by_name.items() if g.dtype != jax.dtypes.float0},
        input_grads={name: np.asarray(g) for name, g in grads[1].items()},
    )


def loss_of(outputs: Any, call: Call) -> tuple[Leaves, Any]:
    """Return the outputs that are compared, by their common names, and the loss."""
    leaves = named_leaves(outputs)
    chosen = {name: leaves[ours] for name, (ours, _) in call.outputs.items() if ours in leaves}
    return chosen, call.losses[0](outputs) if call.losses else projected(chosen, jnp.asarray)


def typed_params(params: Any, dtype: str) -> Any:
    """Return the parameters as JAX arrays, real ones in `dtype`."""
    return jax.tree.map(lambda leaf: jnp.asarray(typed(leaf, dtype)), params)


def arrays(args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return the arguments with JAX arrays in place of NumPy's."""
    return rebuilt(args, lambda name, array: jnp.asarray(array))


def _guarded(compute: Callable[[], Any]) -> Any:
    """Compute; say in one line where a tap is inside of a transformation."""
    try:
        return compute()
    except jax.errors.UnexpectedTracerError as error:
        raise UserError(
            "tap: a value inside of jax.lax.scan, jax.checkpoint or jax.vmap cannot leave it; tap its result instead"
        ) from error
