"""Changes of parameter layout between a JAX model and a torch module, for the `names` of `parity.compare`.

A transform takes a list of arrays in JAX's layout to a list in torch's, and back: one to one, one to many, or many to
one. It moves values and never changes them, so gradients come back through it as weights do. It is written down without
shapes, and bound to them when they are known; what does not fit them is an error that says so.

    names = {
        "query.kernel": ("q_proj.weight", chain(reshape(D, N * H), transpose())),
        ("q.kernel", "k.kernel", "v.kernel"): ("in_proj_weight", chain(reshape(D, N * H), transpose(), concat())),
        "layers.kernel": (("0.weight", "1.weight"), chain(unstack(), transpose())),
    }
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

__all__ = [
    "Bound",
    "Transform",
    "chain",
    "concat",
    "copies",
    "flip",
    "identity",
    "reorder",
    "reshape",
    "shared",
    "split",
    "stack",
    "transpose",
    "unstack",
]

Shape = tuple[int, ...]
Arrays = list[np.ndarray]


@dataclass(frozen=True)
class Bound:
    """A transform for arrays of known shapes."""

    shapes: tuple[Shape, ...]
    """Shapes of the results in torch."""
    forward: Callable[[Arrays], Arrays]
    """From JAX's layout to torch's."""
    inverse: Callable[[Arrays], Arrays]
    """From torch's layout to JAX's."""


@dataclass(frozen=True)
class Transform:
    """A change of layout, described before the shapes are known."""

    name: str
    """As it is written, for messages."""
    bind: Callable[[tuple[Shape, ...]], Bound]
    """Fits it to the shapes of the JAX arrays; raises ValueError, saying why, where it does not fit."""
    shares: bool = False
    """Whether several JAX arrays are one in torch: only the sum of their gradients can be compared."""
    copies: bool = False
    """Whether one JAX array is several in torch: the same holds for those."""

    def __repr__(self) -> str:
        return self.name


def _each(
    name: str,
    change: Callable[[np.ndarray], np.ndarray],
    inverse: Callable[[np.ndarray, Shape], np.ndarray],
) -> Transform:
    """Return a transform of every array by itself.

    Args:
        name: for messages.
        change: from JAX's layout to torch's.
        inverse: called with an array in torch's layout and the shape in JAX.
    """

    def bind(shapes: tuple[Shape, ...]) -> Bound:
        results = tuple(change(_nothing(shape)).shape for shape in shapes)
        return Bound(
            results,
            lambda arrays: [change(array) for array in arrays],
            lambda arrays: [inverse(array, shape) for array, shape in zip(arrays, shapes, strict=True)],
        )

    return Transform(name, bind)


def _nothing(shape: Shape) -> np.ndarray:
    """Return an array of a shape that takes no memory."""
    return np.broadcast_to(np.int8(0), shape)


def identity() -> Transform:
    """Return the transform that leaves an array as it is."""
    return _each("identity()", lambda array: array, lambda array, shape: array)


def transpose(*axes: int) -> Transform:
    """Return the transform to `numpy.transpose(array, axes)`; without axes, they are reversed.

    Args:
        axes: axis of the JAX array for each axis of torch's.
    """
    back = tuple(int(i) for i in np.argsort(axes)) or None

    def change(array: np.ndarray) -> np.ndarray:
        if axes and sorted(axes) != list(range(array.ndim)):
            raise ValueError(f"found axes {axes}, expected an order of the {array.ndim} of its array")
        return np.transpose(array, axes or None)

    return _each(f"transpose{axes}", change, lambda array, shape: np.transpose(array, back))


def reshape(*shape: int) -> Transform:
    """Return the transform to another shape with the same values in the same order.

    Args:
        shape: in torch; one of its sizes may be −1.
    """
    return _each(f"reshape{shape}", lambda array: array.reshape(shape), lambda array, before: array.reshape(before))


def flip(*axes: int) -> Transform:
    """Return the transform that reverses the order along axes, as between the kernels of transposed convolutions.

    Args:
        axes: of the JAX array.
    """
    return _each(f"flip{axes}", lambda array: np.flip(array, axes), lambda array, shape: np.flip(array, axes))


def split(parts: int | Sequence[int], axis: int = 0) -> Transform:
    """Return the transform of one array into several, cut along an axis.

    Args:
        parts: number of equal parts, or their sizes.
        axis: of the JAX array.
    """

    def bind(shapes: tuple[Shape, ...]) -> Bound:
        [shape] = _exactly(1, shapes)
        sizes = _sizes(shape[axis], parts)
        ends = [int(end) for end in np.cumsum(sizes)[:-1]]
        results = tuple(part.shape for part in np.split(_nothing(shape), ends, axis))
        return Bound(
            results, lambda arrays: list(np.split(arrays[0], ends, axis)), lambda arrays: [np.concatenate(arrays, axis)]
        )

    return Transform(f"split({parts}, axis={axis})", bind)


def _sizes(length: int, parts: int | Sequence[int]) -> list[int]:
    """Return the sizes of the parts of an axis."""
    if isinstance(parts, int):
        if parts < 1 or length % parts:
            raise ValueError(f"an axis of {length} cannot be split into {parts} equal parts")
        return [length // parts] * parts
    if sum(parts) != length:
        raise ValueError(f"found parts {list(parts)}, expected a sum of {length}")
    return list(parts)


def concat(axis: int = 0) -> Transform:
    """Return the transform of several arrays into one, joined along an axis that they have.

    Args:
        axis: of the torch array.
    """

    def bind(shapes: tuple[Shape, ...]) -> Bound:
        joined = np.concatenate([_nothing(shape) for shape in shapes], axis)
        ends = [int(end) for end in np.cumsum([shape[axis] for shape in shapes])[:-1]]
        return Bound(
            (joined.shape,),
            lambda arrays: [np.concatenate(arrays, axis)],
            lambda arrays: list(np.split(arrays[0], ends, axis)),
        )

    return Transform(f"concat(axis={axis})", bind)


def stack(axis: int = 0) -> Transform:
    """Return the transform of several arrays into one, joined along a new axis.

    Args:
        axis: of the torch array.
    """

    def bind(shapes: tuple[Shape, ...]) -> Bound:
        joined = np.stack([_nothing(shape) for shape in shapes], axis)
        return Bound(
            (joined.shape,),
            lambda arrays: [np.stack(arrays, axis)],
            lambda arrays: list(np.moveaxis(arrays[0], axis, 0)),
        )

    return Transform(f"stack(axis={axis})", bind)


def unstack(axis: int = 0) -> Transform:
    """Return the transform of one array into several, one for each index of an axis, as of layers under `scan`.

    Args:
        axis: of the JAX array.
    """

    def bind(shapes: tuple[Shape, ...]) -> Bound:
        [shape] = _exactly(1, shapes)
        rest = np.moveaxis(_nothing(shape), axis, 0)
        return Bound(
            tuple(part.shape for part in rest),
            lambda arrays: list(np.moveaxis(arrays[0], axis, 0)),
            lambda arrays: [np.stack(arrays, axis)],
        )

    return Transform(f"unstack(axis={axis})", bind)


def reorder(*order: int) -> Transform:
    """Return the transform that puts several arrays into another order, as of the gates of an LSTM.

    Args:
        order: for each array of torch, the number of JAX's.
    """
    back = [int(i) for i in np.argsort(order)]

    def bind(shapes: tuple[Shape, ...]) -> Bound:
        if sorted(order) != list(range(len(shapes))):
            raise ValueError(f"found the order {order}, expected one of the {len(shapes)} arrays")
        return Bound(
            tuple(shapes[i] for i in order),
            lambda arrays: [arrays[i] for i in order],
            lambda arrays: [arrays[i] for i in back],
        )

    return Transform(f"reorder{order}", bind)


def shared() -> Transform:
    """Return the transform of several JAX arrays with equal values into the one that torch shares.

    The gradient of the shared weight is the sum of those of its copies, and is compared as such.
    """

    def bind(shapes: tuple[Shape, ...]) -> Bound:
        if len(set(shapes)) != 1:
            raise ValueError(f"found shapes {', '.join(str(list(shape)) for shape in shapes)}, expected equal ones")
        return Bound((shapes[0],), _one_value, lambda arrays: arrays * len(shapes))

    return Transform("shared()", bind, shares=True)


def copies(count: int) -> Transform:
    """Return the transform of one array, which JAX shares, into several of torch with the same value.

    Args:
        count: number of torch arrays. Their gradients are summed on the way back.
    """

    def bind(shapes: tuple[Shape, ...]) -> Bound:
        [shape] = _exactly(1, shapes)
        return Bound((shape,) * count, lambda arrays: arrays * count, lambda arrays: [sum(arrays[1:], arrays[0])])

    return Transform(f"copies({count})", bind, copies=True)


def _one_value(arrays: Arrays) -> Arrays:
    """Return the value that all arrays have.

    Raises:
        ValueError: they differ.
    """
    if any(not np.array_equal(arrays[0], array, equal_nan=array.dtype.kind in "fc") for array in arrays[1:]):
        raise ValueError("found different values, expected equal ones, since the other side shares them")
    return arrays[:1]


def chain(*transforms: Transform) -> Transform:
    """Return the transform that applies several, one after the other, in the direction from JAX to torch.

    Args:
        transforms: the first is applied to JAX's arrays.
    """

    def bind(shapes: tuple[Shape, ...]) -> Bound:
        steps = []
        for transform in transforms:
            try:
                steps.append(transform.bind(shapes))
            except (ValueError, IndexError) as error:  # NumPy's errors of axes are both
                raise ValueError(f"{transform.name} of {_listed(shapes)}: {error}") from error
            shapes = steps[-1].shapes

        def forward(arrays: Arrays) -> Arrays:
            for step in steps:
                arrays = step.forward(arrays)
            return arrays

        def inverse(arrays: Arrays) -> Arrays:
            for step in reversed(steps):
                arrays = step.inverse(arrays)
            return arrays

        return Bound(shapes, forward, inverse)

    name = f"chain({', '.join(transform.name for transform in transforms)})"
    shares, copies = (any(getattr(each, flag) for each in transforms) for flag in ("shares", "copies"))
    return Transform(name, bind, shares, copies)


def _exactly(count: int, shapes: tuple[Shape, ...]) -> tuple[Shape, ...]:
    if len(shapes) != count:
        raise ValueError(f"found {len(shapes)} arrays, expected {count}")
    return shapes


def _listed(shapes: tuple[Shape, ...]) -> str:
    listed = ", ".join(str(list(shape)) for shape in shapes[:4])
    return listed + f", … ({len(shapes)})" * (len(shapes) > 4)
