"""A JAX model of any library as one function of its arrays by name: Flax linen and NNX, Equinox, Haiku, or plain.

Every library keeps parameters, statistics and random keys in its own way. `adapt` is the only place that knows them;
each library is imported only where a model of it is handed over.
"""

import inspect
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from lmcore.errors import UserError, shown
from parity.taps import tap_module

__all__ = ["JaxModel", "adapt", "flat", "holds_parameters", "path_name"]

Arrays = Mapping[str, Any]
Call = Callable[..., Any]
"""`call(model, *inputs)` runs a model that holds its parameters."""
COLLECTIONS = ("params.", "batch_stats.")
"""What stands before a module's path in the names of linen's variables."""


@dataclass(frozen=True, kw_only=True)
class JaxModel:
    """A model as a function of its arrays, which have dotted names, as in `blocks.0.w`."""

    arrays: dict[str, Any]
    """Parameters and statistics."""
    trained: tuple[str, ...]
    """Names of the parameters, of any type."""
    call: Callable[[Arrays, tuple[Any, ...]], tuple[Any, dict[str, Any]]]
    """From arrays and inputs to outputs, and to the statistics after the call."""
    tree: Callable[[Arrays], Any]
    """Parameters by name -> the tree that an optimizer takes."""
    prefix: str = ""
    """What stands before a leaf's path in that tree to make its name."""


def adapt(model: Any, params: Any, call: Call | None, train: bool) -> JaxModel:
    """Return a model as a function of its arrays.

    Args:
        model: a Flax module (NNX or linen), an Equinox module, what `haiku.transform` returns, or any function
            `model(params, *inputs)`.
        params: its parameters; of linen the variables, or the parameters alone; of Haiku with state a pair; None for
            NNX and Equinox, whose modules hold them.
        call: runs the model with its parameters, as `call(model, *inputs)`; None for `model(*inputs)`.
        train: whether NNX and Equinox modules are put in training mode; else in evaluation mode.

    Raises:
        UserError: parameters are missing, or are not needed.
    """
    call = call or (lambda model, *args: model(*args))
    library = _library(model)
    if holds_parameters(model) and params is not None:
        raise UserError(f"params: found parameters beside a module of {library}, which holds its own; leave them out")
    if not holds_parameters(model) and params is None:
        raise UserError("params: expected the tree of JAX parameters")
    if library == "nnx":
        return _nnx(model, call, train)
    if library == "equinox":
        return _equinox(model, call, train)
    if library == "linen":
        return _linen(model, params, call, train)
    if library == "haiku":
        return _haiku(model, params, call)
    if not callable(model):
        raise UserError(f"jax_model: found {shown(model)}, expected a function of params and inputs, or a module")
    leaves, tree = _opened(params)
    return JaxModel(
        arrays=leaves,
        trained=tuple(leaves),
        call=lambda arrays, args: (call(partial(model, tree(arrays)), *args), {}),
        tree=tree,
    )


def holds_parameters(model: Any) -> bool:
    """Return whether a model is a module that holds its parameters, of Flax NNX or Equinox."""
    return _library(model) in ("nnx", "equinox")


def _library(model: Any) -> str:
    """Return the library that a model is of; an empty string for a plain function."""
    loaded = {name: is_one for name, (package, is_one) in LIBRARIES.items() if package in sys.modules}
    return next((name for name, is_one in loaded.items() if is_one(model)), "")


def path_name(path: Any) -> str:
    """Return a leaf's path in a tree, dotted, without the last `.value` of an NNX state."""
    return jax.tree_util.keystr(path, simple=True, separator=".").removesuffix(".value")


def flat(params: Any) -> dict[str, Any]:
    """Return a tree's leaves by dotted paths; of random keys, none.

    Raises:
        UserError: two leaves have one name, or a leaf is no array.
    """
    found: dict[str, Any] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        name = path_name(path)
        if name in found:
            raise UserError(f"params: two arrays are called {name}")
        if not hasattr(leaf, "dtype") and not isinstance(leaf, bool | int | float | complex):
            raise UserError(f"params: {name} is {shown(leaf)}, expected an array")
        if not _is_key(leaf):
            found[name] = leaf
    return found


def _is_key(leaf: Any) -> bool:
    return hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _opened(params: Any) -> tuple[dict[str, Any], Callable[[Arrays], Any]]:
    """Return a tree's leaves by name, and a function that puts arrays in their places; random keys stay."""
    leaves = flat(params)
    paths, tree = jax.tree_util.tree_flatten_with_path(params)

    def rebuilt(arrays: Arrays) -> Any:
        return jax.tree.unflatten(tree, [leaf if _is_key(leaf) else arrays[path_name(path)] for path, leaf in paths])

    return leaves, rebuilt


def _linen(module: Any, params: Any, call: Call, train: bool) -> JaxModel:
    from flax import linen

    whole = isinstance(params, Mapping) and "params" in params
    leaves, tree = _opened(params)
    mutable = [name for name in params if name != "params"] if whole and train else False
    prefix = "params." if whole else ""
    _, inner = _opened(params["params"] if whole else params)

    def intercepted(function: Any, args: Any, kwargs: Any, context: Any) -> Any:
        output = function(*args, **kwargs)
        if context.method_name == "__call__" and (name := ".".join(context.module.path)):
            tap_module(name, output)
        return output

    def run(arrays: Arrays, args: tuple[Any, ...]) -> tuple[Any, dict[str, Any]]:
        state: dict[str, Any] = {}
        current = tree(arrays) if whole else {"params": tree(arrays)}

        def apply(*args: Any, **kwargs: Any) -> Any:
            kwargs = {"rngs": {"dropout": jax.random.key(0)}, "mutable": mutable} | kwargs
            result = module.apply(current, *args, **kwargs)
            if not kwargs["mutable"]:
                return result
            outputs, changed = result
            state.update(flat(dict(changed)))
            return outputs

        with linen.intercept_methods(intercepted):
            return call(apply, *args), state

    return JaxModel(
        arrays=leaves,
        trained=tuple(name for name in leaves if name.startswith(prefix)),
        call=run,
        tree=lambda arrays: inner({name.removeprefix(prefix): array for name, array in arrays.items()}),
        prefix=prefix,
    )


def _nnx(module: Any, call: Call, train: bool) -> JaxModel:
    from flax import nnx

    module = nnx.clone(module)
    module.train() if train else module.eval()
    definition, *states = nnx.split(module, nnx.Param, nnx.RngState, ...)
    params, random, rest = states
    (weights, params_tree), (others, rest_tree) = _opened(params), _opened(rest)

    def run(arrays: Arrays, args: tuple[Any, ...]) -> tuple[Any, dict[str, Any]]:
        merged = nnx.merge(definition, params_tree(arrays), jax.tree.map(lambda leaf: leaf, random), rest_tree(arrays))
        parts = {".".join(map(str, path)): part for path, part in nnx.iter_modules(merged) if path}
        with _tapped(parts):
            outputs = call(merged, *args)
        return outputs, {name: value for name, value in flat(nnx.state(merged)).items() if name in others}

    return JaxModel(arrays=weights | others, trained=tuple(weights), call=run, tree=params_tree)


def _equinox(module: Any, call: Call, train: bool) -> JaxModel:
    import equinox

    module = equinox.nn.inference_mode(module, value=not train)
    params, static = equinox.partition(module, equinox.is_array)
    leaves, tree = _opened(params)

    def run(arrays: Arrays, args: tuple[Any, ...]) -> tuple[Any, dict[str, Any]]:
        merged = equinox.combine(tree(arrays), static)
        with _tapped(dict(_equinox_parts(merged, equinox.Module))):
            return call(merged, *args), {}

    return JaxModel(arrays=leaves, trained=tuple(leaves), call=run, tree=tree)


def _equinox_parts(module: Any, kind: type, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the submodules of an Equinox module by their paths."""
    inner = jax.tree_util.tree_leaves_with_path(module, is_leaf=lambda x: isinstance(x, kind) and x is not module)
    for place, part in inner:
        if isinstance(part, kind):
            name = path + path_name(place)
            yield name, part
            yield from _equinox_parts(part, kind, f"{name}.")


def _haiku(transformed: Any, params: Any, call: Call) -> JaxModel:
    import haiku

    with_state = isinstance(transformed, haiku.TransformedWithState)
    if with_state and not (isinstance(params, tuple) and len(params) == 2):
        raise UserError("params: expected the pair (params, state) that transform_with_state's init returned")
    own, statistics = params if with_state else (params, {})
    (weights, tree), (others, state_tree) = _opened(own), _opened(statistics)
    parameters = list(inspect.signature(transformed.apply).parameters)
    takes_key = parameters[1 + with_state : 2 + with_state] == ["rng"]  # haiku.without_apply_rng takes none

    def intercepted(function: Any, args: Any, kwargs: Any, context: Any) -> Any:
        output = function(*args, **kwargs)
        if context.method_name == "__call__":
            tap_module(context.module.module_name, output)
        return output

    def run(arrays: Arrays, args: tuple[Any, ...]) -> tuple[Any, dict[str, Any]]:
        state: dict[str, Any] = {}

        def apply(*args: Any, **kwargs: Any) -> Any:
            key = (jax.random.key(0),) if takes_key else ()
            if not with_state:
                return transformed.apply(tree(arrays), *key, *args, **kwargs)
            outputs, after = transformed.apply(tree(arrays), state_tree(arrays), *key, *args, **kwargs)
            state.update(flat(after))
            return outputs

        with haiku.intercept_methods(intercepted):
            return call(apply, *args), state

    return JaxModel(arrays=weights | others, trained=tuple(weights), call=run, tree=tree)


@contextmanager
def _tapped(parts: Mapping[str, Any]) -> Iterator[None]:
    """Record the outputs of modules, by their names, as their classes' `__call__` returns them.

    Args:
        parts: name -> module.
    """
    names = {id(part): name for name, part in parts.items()}
    inside: set[int] = set()
    calls: dict[Any, Callable[..., Any]] = {}

    def recording(original: Callable[..., Any]) -> Callable[..., Any]:
        def __call__(self: Any, *args: Any, **kwargs: Any) -> Any:
            if id(self) not in names or id(self) in inside:  # a class calls that of its base
                return original(self, *args, **kwargs)
            inside.add(id(self))
            try:
                output = original(self, *args, **kwargs)
            finally:
                inside.discard(id(self))
            tap_module(names[id(self)], output)
            return output

        return __call__

    with ExitStack() as stack:
        for kind in {type(part) for part in parts.values()}:
            if any("__call__" in vars(base) for base in kind.__mro__):
                own = vars(kind).get("__call__")
                put_back = (
                    partial(delattr, kind, "__call__") if own is None else partial(setattr, kind, "__call__", own)
                )
                stack.callback(put_back)
                calls[kind] = kind.__call__
        for kind, original in calls.items():
            kind.__call__ = recording(original)
        yield


def _is_nnx(model: Any) -> bool:
    from flax import nnx

    return isinstance(model, nnx.Module)


def _is_linen(model: Any) -> bool:
    from flax import linen

    return isinstance(model, linen.Module)


LIBRARIES: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "nnx": ("flax.nnx", _is_nnx),
    "linen": ("flax.linen", _is_linen),
    "equinox": ("equinox", lambda model: isinstance(model, sys.modules["equinox"].Module)),
    "haiku": (
        "haiku",
        lambda model: isinstance(model, (sys.modules["haiku"].Transformed, sys.modules["haiku"].TransformedWithState)),
    ),
}
"""Library -> the package that is imported where a model of it exists, and whether a model is one of it."""
