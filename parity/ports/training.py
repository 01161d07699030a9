"""Updates and training curves of a port: an optax transformation beside a torch optimizer.

Updates start from the same weights and take the same gradients, scaled from one to the next, so that an optimizer is
compared by itself. A curve is free-running: each side computes its own gradients, and their difference is held against
what each side's own curve changes by when its weights move by one unit in the last place, as on rung 7 of the ladder.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch

from parity.backends.base import Arrays, moved_by_one_ulp
from parity.convert.names import numpy_to_torch, torch_to_numpy
from parity.mapping import Row
from parity.ports import jax as in_jax
from parity.ports import torch as in_torch
from parity.ports.jax import path_name, typed_params
from parity.ports.side import Call

__all__ = ["KNOWN", "UPDATES", "Optimizers", "curves", "updates"]

Optimizers = tuple[Any, Callable[[list[torch.nn.Parameter]], torch.optim.Optimizer]]
"""An optax transformation, and a function that makes a torch optimizer of parameters."""
FACTORS = (1.0, -0.5, 2.0)
"""Factor of the gradients in each update that is compared: with equal ones, Adam's corrected moments never change."""
UPDATES = len(FACTORS)
MOMENTS = {
    "mu": ("exp_avg",),
    "nu": ("exp_avg_sq", "square_avg"),
    "trace": ("momentum_buffer",),
    "sum_of_squares": ("sum",),
}
"""Field of an optax state -> keys of a torch optimizer's state, of which each optimizer has one."""
KNOWN = {
    "AdamW": "weight_decay is 1e-4 by default in optax.adamw, 1e-2 in torch",
    "RMSprop": "optax.rmsprop has decay 0.9 and adds eps inside the root, torch has alpha 0.99 and adds it outside",
    "Adagrad": "optax.adagrad starts its sums at 0.1 and adds eps inside the root, torch at 0 and outside",
    "SGD": "torch's first momentum is the gradient itself, also with dampening, which optax does not have",
    "NAdam": "torch's momentum has a schedule of its own",
}
"""Class of a torch optimizer -> a usual cause of a difference."""


@dataclass(frozen=True)
class Updated:
    """Parameters and moments after each update, by JAX's names: `mu of w (update 1)`."""

    params: Arrays
    moments: Arrays


def updates(
    params: Any, grads: Arrays, module: torch.nn.Module, rows: list[Row], optimizers: Optimizers, dtype: str
) -> tuple[Updated, Updated]:
    """Return what both optimizers make of the same gradients.

    Args:
        params: tree of JAX parameters.
        grads: JAX's gradients, by path.
        module: from `parity.ports.torch.prepared`; it is changed.
        rows: the mapping of names, each row without shared weights.
        optimizers: of both sides.
        dtype: of all floats.
    """
    return _in_jax(params, grads, optimizers[0], dtype), _in_torch(grads, module, rows, optimizers[1])


def _in_jax(params: Any, grads: Arrays, transformation: Any, dtype: str) -> Updated:
    now = typed_params(params, dtype)
    tree = jax.tree_util.tree_map_with_path(lambda path, leaf: jnp.asarray(grads.get(path_name(path), 0 * leaf)), now)
    state = transformation.init(now)
    found: Arrays = {}
    moments: Arrays = {}
    for number, factor in enumerate(FACTORS, 1):
        change, state = transformation.update(jax.tree.map(lambda g, f=factor: f * g, tree), state, now)
        now = optax.apply_updates(now, change)
        found |= {f"{name} (update {number})": value for name, value in _by_path(now).items()}
        for field, values in _optax_moments(state):
            moments |= {f"{field} of {name} (update {number})": value for name, value in _by_path(values).items()}
    return Updated(found, moments)


def _by_path(tree: Any) -> Arrays:
    return {path_name(path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def _optax_moments(state: Any) -> list[tuple[str, Any]]:
    """Return the moments in an optax state, which is a tree of named tuples."""
    found = []
    if hasattr(state, "_fields"):
        found = [(field, getattr(state, field)) for field in state._fields if field in MOMENTS]
    if isinstance(state, tuple | list):
        found += [moment for part in state for moment in _optax_moments(part)]
    return found


def _in_torch(
    grads: Arrays, module: torch.nn.Module, rows: list[Row], make: Callable[[list[Any]], torch.optim.Optimizer]
) -> Updated:
    parameters = dict(module.named_parameters())
    trained = [row for row in rows if set(row.torch) <= parameters.keys() and not row.shares]
    wanted = {name: parameters[name] for row in trained for name in row.torch}
    gradients = {name: value for row in trained for name, value in row.to_torch(grads).items()}
    optimizer = make(list(wanted.values()))
    found: Arrays = {}
    moments: Arrays = {}
    for number, factor in enumerate(FACTORS, 1):
        for name, value in gradients.items():
            wanted[name].grad = numpy_to_torch(np.ascontiguousarray(factor * value))
        optimizer.step()
        found |= {f"{name} (update {number})": value for name, value in _in_jax_layout(wanted, trained).items()}
        for field, key in ((field, key) for field, keys in MOMENTS.items() for key in keys):
            if all(torch.is_tensor(optimizer.state[p].get(key)) for p in wanted.values()):
                values = {name: optimizer.state[p][key] for name, p in wanted.items()}
                back = _in_jax_layout(values, trained)
                moments |= {f"{field} of {name} (update {number})": value for name, value in back.items()}
    return Updated(found, moments)


def _in_jax_layout(values: Mapping[str, torch.Tensor], rows: list[Row]) -> Arrays:
    arrays = {name: torch_to_numpy(value.detach()) for name, value in values.items()}
    return {path: value for row in rows for path, value in row.to_jax(arrays).items()}


def curves(
    sides: tuple[Callable[..., Any], Callable[..., Any]],
    params: Any,
    prepare: Callable[[Arrays], torch.nn.Module],
    optimizers: Optimizers,
    calls: Sequence[Call],
    draws: int,
) -> tuple[dict[str, np.ndarray], list[tuple[np.ndarray, np.ndarray]]]:
    """Return the losses of both sides by framework, and those of own runs from moved weights, each with the unmoved.

    Args:
        sides: `function(params, *args)` in JAX, and `call_module(module, *args)`.
        params: tree of JAX parameters.
        prepare: from JAX's arrays by path to a torch module with these weights.
        optimizers: of both sides.
        calls: arguments and loss of each step.
        draws: number of moved runs of each side.
    """
    dtype = calls[0].dtype
    leaves, tree = jax.tree.flatten(typed_params(params, dtype))
    paths = [path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    start = {path: np.asarray(leaf) for path, leaf in zip(paths, leaves, strict=True)}
    step = _jax_step(sides[0], optimizers[0], calls[0])

    def train_jax(weights: Arrays) -> np.ndarray:
        return _train_jax(jax.tree.unflatten(tree, [jnp.asarray(weights[path]) for path in paths]), step, calls)

    def train_torch(weights: Arrays) -> np.ndarray:
        return _train_torch(prepare(weights), sides[1], optimizers[1], calls)

    one, other = train_jax(start), train_torch(start)
    own = []
    for draw in range(draws):
        real = {path: array for path, array in start.items() if array.dtype.kind == "f"}
        moved = start | moved_by_one_ulp(real, draw)
        own += [(train_jax(moved), one), (train_torch(moved), other)]
    return {"jax": one, "torch": other}, own


def _jax_step(function: Callable[..., Any], transformation: Any, call: Call) -> tuple[Any, Callable[..., Any]]:
    @jax.jit
    def step(params: Any, state: Any, args: tuple[Any, ...]) -> tuple[Any, Any, Any]:
        loss, grads = jax.value_and_grad(lambda params: in_jax.loss_of(function(params, *args), call)[1])(params)
        change, state = transformation.update(grads, state, params)
        return optax.apply_updates(params, change), state, loss

    return transformation, step


def _train_jax(params: Any, optimizer: tuple[Any, Callable[..., Any]], calls: Sequence[Call]) -> np.ndarray:
    transformation, step = optimizer
    state, losses = transformation.init(params), []
    for call in calls:
        params, state, loss = step(params, state, in_jax.arrays(call.args))
        losses.append(float(loss))
    return np.array(losses)


def _train_torch(
    module: torch.nn.Module,
    call_module: Callable[..., Any],
    make: Callable[[list[Any]], torch.optim.Optimizer],
    calls: Sequence[Call],
) -> np.ndarray:
    optimizer, losses = make(list(module.parameters())), []
    for call in calls:
        optimizer.zero_grad()
        _, loss = in_torch.loss_of(call_module(module, *in_torch.tensors(call.args, {})), call)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return np.array(losses)
