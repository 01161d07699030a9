"""The train and decode steps of jaxlm, lowered for a platform that is not here: nothing is allocated or run."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any
from unittest import mock

import jax
import jax.extend
import jax.numpy as jnp
from jax.sharding import AbstractDevice, AbstractMesh, AxisType

from jaxlm.decoding import Generator
from jaxlm.engine import jit_train_step
from jaxlm.fast.attention import QUERY_BLOCK
from jaxlm.functional import Model
from jaxlm.sharding import mesh_of
from lmcore.config import Config
from lmcore.run.mesh import AXES, MeshShape

__all__ = ["PLATFORMS", "Lowered", "audited", "compile_for", "lower_decode_step", "lower_train_step"]

PLATFORMS = {"cuda": ("gpu", "NVIDIA H100 80GB HBM3", None), "tpu": ("tpu", "TPU v5 lite", 1)}
"""Name in jax's lowering -> name, kind and number of cores of a device whose programs are audited."""
CUDNN = 91002
"""Version of cuDNN that is assumed, on an H100."""
HOST = re.compile(r"callback|debug_print|infeed|outfeed")
SEQUENCES, TOKENS = 8, 4
"""Of the decode step: sequences, and tokens for each in one call."""


@dataclass(frozen=True)
class Lowered:
    """A step, lowered for one platform."""

    platform: str
    name: str
    program: Any
    """jax's `Lowered`; None where there are callbacks, which jax lowers for the process's own devices alone."""
    donated: int
    """Number of arrays whose memory an output should take."""
    callbacks: tuple[str, ...] = ()
    """Operations of the traced program that call the host."""


def audited(config: Config, mesh: MeshShape) -> Config:
    """Return the config with a sequence length that divides no other size, so that T × T tensors are known by it.

    The length is as near to `train.seq_len` as can be, and differs by a multiple of the blocks that kernels take.
    """
    model, train = config.model, config.train
    micro = train.batch_size // train.grad_accum
    groups = model.n_heads // model.n_kv_heads
    sizes = {micro // mesh.batch * heads for heads in (1, model.n_heads, model.n_kv_heads)}
    sizes |= {model.vocab_size, model.dim, model.ffn_dim, groups * QUERY_BLOCK}
    sizes |= {heads * model.head_dim for heads in (model.n_heads, model.n_kv_heads)}
    sizes |= {size // parts for size in sizes for parts in (mesh.fsdp, mesh.tensor, mesh.fsdp * mesh.tensor)}
    start = train.seq_len + max(0, 2 * QUERY_BLOCK - train.seq_len) // QUERY_BLOCK * QUERY_BLOCK
    below = range(start, QUERY_BLOCK, -QUERY_BLOCK)
    above = range(start, start + 1000 * QUERY_BLOCK, QUERY_BLOCK)
    length = next(n for n in [*below, *above] if not any(size and size % n == 0 for size in sizes))
    longest = max(length, model.max_seq_len)
    return replace(config, model=replace(model, max_seq_len=longest), train=replace(train, seq_len=length))


def lower_train_step(config: Config, mesh: MeshShape, platform: str) -> Lowered:
    """Lower the train step that `Engine` would compile.

    Args:
        config: with `model.vocab_size` set.
        mesh: the devices; for cuDNN the process must have as many, of any kind.
        platform: `cuda` or `tpu`.
    """
    with on_platform(platform, mesh) as devices:
        by_cudnn = platform == "cuda" and not config.model.has_dropout  # its lowering asks how many devices there are
        step, state = jit_train_step(Model(config), mesh_of(jax.devices()[: mesh.size], mesh) if by_cudnn else devices)
        train = config.train
        shape = (train.grad_accum, train.batch_size // train.grad_accum, train.seq_len + 1)
        traced = step.trace(state, jax.ShapeDtypeStruct(shape, jnp.int32), 0.0)
        return _lowered(platform, "train", traced, state)


def lower_decode_step(config: Config, platform: str) -> Lowered:
    """Lower the step that decodes a few tokens of each sequence of a batch, over a cache of T positions, on one device.

    Args:
        config: with `model.vocab_size` set.
        platform: `cuda` or `tpu`.
    """
    alone = MeshShape()
    with on_platform(platform, alone) as mesh:
        generator = Generator(Model(config), config.sample, mesh)
        params = Model(config).shapes
        traced, state = generator.trace(params, SEQUENCES, TOKENS, config.train.seq_len)
        return _lowered(platform, "decode", traced, state)


def _lowered(platform: str, name: str, traced: Any, donated: Any) -> Lowered:
    callbacks = tuple(_callbacks(traced.jaxpr))
    program = None if callbacks else traced.lower(lowering_platforms=(platform,))
    return Lowered(platform, name, program, len(jax.tree.leaves(donated)), callbacks)


def _callbacks(jaxpr: Any) -> Iterator[str]:
    """Yield the operations that call the host, those of inner programs included."""
    for equation in jaxpr.eqns:
        if HOST.search(equation.primitive.name):
            yield equation.primitive.name
        for inner in jax.extend.core.jaxprs_in_params(equation.params):
            yield from _callbacks(inner)


def compile_for(topology: str, config: Config, mesh: MeshShape) -> str:
    """Return the text of the train step, compiled by libtpu.

    Args:
        topology: of the TPUs, such as `v5e:2x2`.
        config: with `model.vocab_size` set.
        mesh: the devices, of which the topology may have more.
    """
    from jax.experimental.topologies import get_topology_desc

    from jaxlm.engine import lower_train_step

    devices = get_topology_desc(topology, platform="tpu").devices[: mesh.size]
    return lower_train_step(config, mesh_of(devices, mesh)).compile().as_text()


@contextmanager
def on_platform(platform: str, shape: MeshShape) -> Iterator[AbstractMesh]:
    """Trace for a mesh of devices that are not here, and for NVIDIA as if cuDNN were.

    Args:
        platform: `cuda` or `tpu`.
        shape: of the mesh.
    """
    from jax._src.cudnn import fused_attention_stablehlo  # it asks the process's own GPU what cuDNN can do there

    name, kind, cores = PLATFORMS[platform]
    sizes = tuple(getattr(shape, axis) for axis in AXES)
    mesh = AbstractMesh(sizes, AXES, axis_types=(AxisType.Auto,) * 3, abstract_device=AbstractDevice(kind, cores, name))
    assumed: dict[str, Any] = {
        "check_cudnn_version": lambda: CUDNN,
        "check_compute_capability": lambda capability: float(capability) <= 9.0,
        "is_cuda_compute_capability_equal": lambda capability: float(capability) == 9.0,
    }
    with mock.patch.multiple(fused_attention_stablehlo, **assumed), jax.sharding.use_abstract_mesh(mesh):
        yield mesh
