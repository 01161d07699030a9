"""Devices and the sharding of arrays over them: parameters whole on each device, the batch split over a `data` axis.

On a CPU, XLA runs one device's program mostly on one core, so a batch split over one device per core trains faster
than the same batch on one device; it is also the cheapest test of the path that several accelerators take.
"""

import contextlib
import os
import warnings
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from lmcore.config import TrainConfig
from lmcore.errors import UserError
from lmcore.hardware import even_parts, limit_malloc_arenas, usable_cores

__all__ = ["batch_sharding", "data_mesh", "local", "placed", "replicated", "set_up_jax"]


def set_up_jax(train: TrainConfig) -> None:
    """Set up jax for the whole process: devices, number types, and a compilation cache in the user's folder.

    Call it before the first array is created; devices cannot change after that.

    Raises:
        UserError: a precision or device that jaxlm does not have.
    """
    if train.precision == "float16":
        raise UserError("train.precision: found 'float16', expected bfloat16 with jaxlm (torchlm has float16)")
    if train.device == "mps":
        raise UserError("train.device: found 'mps', expected auto, cpu or cuda with jaxlm; torchlm runs on MPS")
    limit_malloc_arenas(1)  # Orbax starts a dozen threads for each checkpoint, and TensorStore others
    if train.device == "cpu":
        jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_enable_x64", train.precision == "float64")
    jax.config.update("jax_default_matmul_precision", None if train.precision == "bfloat16" else "highest")
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        jax.config.update("jax_compilation_cache_dir", str(home / "twinlm" / "jax"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
    # A full disk, say: the next run compiles again, and what a run must write says so itself.
    warnings.filterwarnings("ignore", "Error writing persistent compilation cache entry")
    with contextlib.suppress(RuntimeError):  # the devices exist already, in a test or a notebook
        jax.config.update("jax_num_cpu_devices", train.cpu_devices or usable_cores())


def data_mesh(train: TrainConfig) -> Mesh:
    """Return a mesh of as many devices as divide a micro-batch evenly; on accelerators, of all.

    Raises:
        UserError: the device is not there, or the micro-batch cannot be split over the accelerators.
    """
    try:
        devices = jax.devices(None if train.device == "auto" else train.device)
    except (RuntimeError, AssertionError) as error:  # the latter where JAX_PLATFORMS names what is not installed
        wanted = os.environ.get("JAX_PLATFORMS")
        hint = f"; JAX_PLATFORMS is {wanted!r}: unset it, or set it to what jax has here" if wanted else ""
        raise UserError(
            f"train.device: {train.device!r} is not available ({str(error) or 'no such backend'}){hint}"
        ) from error
    by_process = [[d for d in devices if d.process_index == p] for p in range(jax.process_count())]
    if devices[0].platform == "cpu" and train.cpu_devices:
        by_process = [own[: train.cpu_devices] for own in by_process]
    sequences, count = train.batch_size // train.grad_accum, len(by_process[0])
    used = even_parts(max(1, sequences // len(by_process)), count)
    if sequences % (used * len(by_process)) or (used < count and devices[0].platform != "cpu"):
        raise UserError(
            f"train.batch_size: found {train.batch_size} ({sequences} sequences at a time with train.grad_accum = "
            f"{train.grad_accum}), expected a multiple of the {len(by_process) * count} devices"
        )
    chosen = [device for own in by_process for device in own[:used]]
    return Mesh(np.array(chosen), ("data",), axis_types=(AxisType.Auto,))


def placed(rows: np.ndarray, sharding: NamedSharding) -> jax.Array:
    """Copy this process's rows of an array to the devices: of several processes, all have as many."""
    if jax.process_count() == 1:
        return jax.device_put(rows, sharding)
    return jax.make_array_from_process_local_data(sharding, rows)


def local(tree: Any) -> Any:
    """Return arrays that every device holds whole as this process's own, which it can use without the others."""
    return jax.tree.map(lambda leaf: leaf.addressable_data(0), tree) if jax.process_count() > 1 else tree


def replicated(mesh: Mesh) -> NamedSharding:
    """Return the sharding of an array that every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh, axis: int = 0) -> NamedSharding:
    """Return the sharding of an array that is split over the devices along `axis`."""
    return NamedSharding(mesh, PartitionSpec(*[None] * axis, "data"))
