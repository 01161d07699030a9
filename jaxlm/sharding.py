"""The mesh of devices, and the sharding of arrays: sequences over data and fsdp, parameters over fsdp and tensor.

`jax.jit` partitions each program by the shardings of its arguments and of the residual stream (GSPMD, Xu et al. 2021,
arXiv:2105.04663): the mathematics says nothing of devices but in `on_mesh` and `over_heads`, which do nothing outside
of `jax.set_mesh`. What splits each parameter is in `lmcore.run.mesh`, for both twins.

On a CPU, XLA runs one device's program mostly on one core, so a batch split over one device per core trains faster
than the same batch on one device; it is also the cheapest test of the path that several accelerators take.
"""

import math
import os
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array

from jaxlm.dropout import Key
from lmcore.config import Config
from lmcore.errors import UserError
from lmcore.run.mesh import AXES, MeshShape, check_mesh, mesh_shape, split_axes

__all__ = [
    "BATCH",
    "batch_sharding",
    "devices_in_mesh",
    "gather_positions",
    "gathered",
    "local",
    "make_mesh",
    "mesh_of",
    "on_mesh",
    "over_heads",
    "own_mesh",
    "placed",
    "platform",
    "replicated",
    "shape_of",
    "split_positions",
    "state_shardings",
]

BATCH = ("data", "fsdp")
"""Axes of the mesh that sequences are split over."""


def make_mesh(config: Config) -> Mesh:
    """Return the mesh of all devices of all processes; on a CPU, of as many as divide a micro-batch evenly.

    Raises:
        UserError: the device is not there, or batch or model cannot be split over the mesh.
    """
    train = config.train
    try:
        devices = jax.devices(None if train.device == "auto" else train.device)
    except (RuntimeError, AssertionError) as error:  # the latter where JAX_PLATFORMS names what is not installed
        wanted = os.environ.get("JAX_PLATFORMS")
        hint = f"; JAX_PLATFORMS is {wanted!r}: unset it, or set it to what jax has here" if wanted else ""
        raise UserError(
            f"train.device: {train.device!r} is not available ({str(error) or 'no such backend'}){hint}"
        ) from error
    by_process = [[d for d in devices if d.process_index == p] for p in range(jax.process_count())]
    count = len(by_process[0])
    if devices[0].platform == "cpu" and train.cpu_devices:
        count = min(count, train.cpu_devices)
    fewest = 1 if devices[0].platform == "cpu" else count
    refused: UserError | None = None
    for used in range(count, fewest - 1, -1):
        try:
            shape = mesh_shape(config.parallel, used * len(by_process))
            check_mesh(config, shape)
        except UserError as error:
            refused = refused or error
            continue
        if used % shape.tensor and shape.tensor % used:
            raise UserError(
                f"parallel.tensor: found {shape.tensor}, expected a divisor or a multiple of the {used} devices of "
                "each process"
            )
        return mesh_of([device for own in by_process for device in own[:used]], shape)
    assert refused is not None
    raise refused


def mesh_of(devices: Sequence[Any], shape: MeshShape) -> Mesh:
    """Return a mesh of these devices, in their order: those of the last axis are neighbours."""
    sizes = [getattr(shape, name) for name in AXES]
    return Mesh(np.array(devices).reshape(sizes), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def shape_of(mesh: Mesh | AbstractMesh) -> MeshShape:
    """Return the number of devices along each axis."""
    return MeshShape(**{name: mesh.shape[name] for name in AXES})


def own_mesh(mesh: Mesh) -> Mesh:
    """Return a mesh of this process's devices alone, which it can use without the others, along `data`."""
    own = [device for device in mesh.devices.flat if device.process_index == jax.process_index()]
    return mesh_of(own, MeshShape(data=len(own)))


def placed(rows: np.ndarray, sharding: NamedSharding) -> jax.Array:
    """Copy this process's rows of an array to the devices: of several processes, all have as many."""
    if jax.process_count() == 1:
        return jax.device_put(rows, sharding)
    return jax.make_array_from_process_local_data(sharding, rows)


def local(tree: Any) -> Any:
    """Return arrays that every device holds whole as this process's own, which it can use without the others."""
    return jax.tree.map(lambda leaf: leaf.addressable_data(0), tree) if jax.process_count() > 1 else tree


def gathered(tree: Any, mesh: Mesh) -> Any:
    """Return arrays that may be sharded over a mesh as whole ones; all its processes call it."""
    return jax.jit(lambda tree: tree, out_shardings=replicated(mesh))(tree)


def replicated(mesh: Mesh | AbstractMesh) -> NamedSharding:
    """Return the sharding of an array that every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh | AbstractMesh, axis: int = 0) -> NamedSharding:
    """Return the sharding of an array whose sequences, along `axis`, are split over the devices."""
    return NamedSharding(mesh, PartitionSpec(*[None] * axis, BATCH))


def state_shardings(mesh: Mesh | AbstractMesh, state: Any, params: dict[str, Any]) -> Any:
    """Return the sharding of each array of a state: that of its parameter where it has its shape, else whole.

    Args:
        mesh: the devices; their numbers along each axis suffice.
        state: arrays, or their shapes, in dicts keyed by the parameters' names; perhaps stacked (see `jaxlm.layers`).
        params: name -> parameter, or its shape, unstacked.
    """

    def sharding(path: tuple[Any, ...], leaf: Any) -> NamedSharding:
        name = next((key.key for key in reversed(path) if hasattr(key, "key") and "." in str(key.key)), "")
        first = name.replace("*", "0")
        if first not in params or len(leaf.shape) < len(params[first].shape):
            return replicated(mesh)
        stacked, like = first != name, params[first].shape
        if leaf.shape[stacked:] != like:
            return replicated(mesh)
        return NamedSharding(mesh, PartitionSpec(*[None] * stacked, *split_axes(name, like, shape_of(mesh))))

    return jax.tree_util.tree_map_with_path(sharding, state)


def devices_in_mesh() -> int:
    """Return the number of devices of the mesh that is set, 1 where none is."""
    mesh = jax.sharding.get_abstract_mesh()
    return 1 if mesh.empty else mesh.size


def platform() -> str:
    """Return the platform of the mesh that is set, cpu, gpu or tpu; an empty string where none is.

    It is that of the program, not of the process: a mesh may have the devices of a machine that is not here.
    """
    device = jax.sharding.get_abstract_mesh().abstract_device
    return device.platform if device else ""


def on_mesh(x: Array, *axes: str | tuple[str, ...] | None) -> Array:
    """Ask for a sharding of an array inside a program, where a mesh is set.

    Args:
        x: the array.
        axes: axis or axes of the mesh that split each of its first dimensions, where they divide it.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return x
    sizes = (math.prod(mesh.shape[name] for name in ([axis] if isinstance(axis, str) else axis or ())) for axis in axes)
    divided = [axis if dim % size == 0 else None for axis, dim, size in zip(axes, x.shape, sizes)]
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*divided))


def split_positions(x: Array, sequence: bool) -> Array:
    """Keep the residual stream, B × T × D, split over the mesh as its sequences are, where a mesh is set.

    Without, XLA would gather the sequences of all devices rather than the weights.

    Args:
        x: the residual stream, or what a branch adds to it.
        sequence: whether `tensor` splits the positions too; the gradient of x is gathered then.
    """
    return _resharded(x, sequence, False) if devices_in_mesh() > 1 else x


def gather_positions(x: Array, sequence: bool) -> Array:
    """Gather what `split_positions` has split, for a branch, whose matmuls `tensor` splits; the gradient is split."""
    return _resharded(x, False, sequence) if devices_in_mesh() > 1 else x


@partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _resharded(x: Array, split: bool, split_gradient: bool) -> Array:
    """Return x with its positions split over `tensor` or not, and its gradient with its own split or not."""
    return on_mesh(x, BATCH, "tensor" if split else None)


def _resharded_forward(x: Array, split: bool, split_gradient: bool) -> tuple[Array, None]:
    return _resharded(x, split, split_gradient), None


def _resharded_gradient(split: bool, split_gradient: bool, saved: None, gradient: Array) -> tuple[Array]:
    return (on_mesh(gradient, BATCH, "tensor" if split_gradient else None),)


_resharded.defvjp(_resharded_forward, _resharded_gradient)


def over_heads(attend: Callable[..., Array], key: Key, documents: Array | None = None) -> Callable[..., Array]:
    """Return attention that each device computes for its own sequences and heads, where a mesh is set.

    Batch and heads become one axis within attention, which GSPMD cannot split over two axes of the mesh: it would
    gather the heads. With dropout it does, since the mask is drawn for all heads at once. Nor can it split a kernel
    of an accelerator's over any axis.

    Args:
        attend: attention of queries to keys and values.
        key: its random key; None where dropout is off.
        documents: position at which each token's document begins, B × T; None where a sequence is one document.
    """
    mesh = jax.sharding.get_abstract_mesh()
    devices = 1 if mesh.empty else mesh.shape["tensor"] if platform() == "cpu" else mesh.size
    if key is not None or devices == 1:
        return partial(attend, key=key, documents=documents)
    spec = PartitionSpec(BATCH, None, "tensor", None)
    by_device = partial(jax.shard_map, out_specs=spec, check_vma=platform() == "cpu")  # kernels do not say what varies
    if documents is None:
        return by_device(attend, in_specs=(spec, spec, spec))
    masked = by_device(
        lambda q, k, v, documents: attend(q, k, v, documents=documents),
        in_specs=(spec, spec, spec, PartitionSpec(BATCH)),
    )
    return lambda q, k, v: masked(q, k, v, documents)
