"""The devices of a process, and JAX's settings for them."""

import contextlib
import math
import os
import warnings
from pathlib import Path

import jax

from lmcore.config import Config
from lmcore.errors import UserError
from lmcore.hardware import limit_malloc_arenas, usable_cores
from lmcore.run.mesh import AXES

__all__ = ["set_up_jax"]


def set_up_jax(config: Config, processes: int = 1) -> None:
    """Set up jax for the whole process: devices, number types, and a compilation cache in the user's folder.

    Call it before the first array is created; devices cannot change after that. On a CPU there are as many as
    `train.cpu_devices` says, else as a mesh of fixed size has, else one per core.

    Args:
        config: of the run.
        processes: number of those that share the mesh.

    Raises:
        UserError: a precision or device that jaxlm does not have.
    """
    train = config.train
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
    sizes = [getattr(config.parallel, name) for name in AXES]
    in_mesh = 0 if -1 in sizes else -(-math.prod(sizes) // processes)
    with contextlib.suppress(RuntimeError):  # the devices exist already, in a test or a notebook
        jax.config.update("jax_num_cpu_devices", train.cpu_devices or in_mesh or usable_cores())
