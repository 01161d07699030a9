"""Memory of one device: the train state exactly, by arithmetic from its shardings, and an estimate of all else."""

import math
from dataclasses import dataclass
from functools import cache
from typing import Any

import jax
from jax.sharding import AbstractMesh, AxisType

from jaxlm.fast.attention import MAX_BLOCKS, QUERY_BLOCK
from jaxlm.loss import chunk_count
from jaxlm.sharding import state_shardings
from lmcore.config import GATED, Config
from lmcore.run.mesh import AXES, MeshShape, split_axes
from parity.plan.shapes import Shapes

__all__ = ["Memory", "device_memory"]


@dataclass(frozen=True)
class Memory:
    """Bytes on one device."""

    parameters: int
    optimizer: int
    gradients: int
    """Of the parameters that the device holds; with gradient accumulation twice, the sum and what is added to it."""
    activations: int
    """What the forward pass keeps for the backward pass."""
    working: int
    """The most that one part of the model takes besides: a layer, the loss or the embedding, with whole weights."""

    @property
    def state(self) -> int:
        """Parameters and optimizer state: exact."""
        return self.parameters + self.optimizer

    @property
    def temporaries(self) -> int:
        """All else: an estimate."""
        return self.gradients + self.activations + self.working

    @property
    def total(self) -> int:
        """State and temporaries."""
        return self.state + self.temporaries


def device_memory(config: Config, shapes: Shapes, mesh: MeshShape) -> Memory:
    """Return the memory that one device of a mesh needs to train.

    Args:
        config: of the run.
        shapes: of its model.
        mesh: the devices.
    """
    parameters, optimizer = _state(shapes, mesh)
    activations, working = _activations(config, shapes, mesh)
    copies = 2 if config.train.grad_accum > 1 else 1
    return Memory(parameters, optimizer, copies * parameters, activations, working)


@cache
def _state(shapes: Shapes, mesh: MeshShape) -> tuple[int, int]:
    """Return the bytes of one device's parameters, and of its optimizer state with the number of steps."""
    sizes = tuple(getattr(mesh, name) for name in AXES)
    devices = AbstractMesh(sizes, AXES, axis_types=(AxisType.Auto,) * 3)
    shardings = state_shardings(devices, shapes.state, shapes.params)

    def size(leaf: Any, sharding: Any) -> int:
        return math.prod(sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize

    parts = jax.tree.map(size, shapes.state, shardings)
    parameters = sum(parts.params.values())
    return parameters, sum(jax.tree.leaves(parts)) - parameters


def _activations(config: Config, shapes: Shapes, mesh: MeshShape) -> tuple[int, int]:
    """Return the bytes that are kept for the backward pass, and the most that is needed besides at one time.

    The compiler decides what is kept, so this is an estimate: without `train.remat` all that a layer computes, else
    its input alone; besides, one layer's own values and gradients, with the whole weights that `fsdp` gathers; or the
    loss of one chunk; or the embedding, whole but for `tensor`, and its gradient.
    """
    model, train, wide, narrow = config.model, config.train, shapes.wide, shapes.narrow
    sequences = train.batch_size // train.grad_accum
    tokens = sequences // mesh.batch * train.seq_len
    stream = tokens * model.dim // (mesh.tensor if config.parallel.sequence else 1)
    heads = (model.n_heads + model.n_kv_heads) * model.head_dim
    feed_forward = (3 if model.mlp in GATED else 2) * model.ffn_dim
    layer = 2 * stream * (wide + narrow) + tokens * (2 * heads + feed_forward) * narrow // mesh.tensor
    if train.seq_len <= QUERY_BLOCK * MAX_BLOCKS:  # all attention weights of a layer exist at once
        layer += tokens * train.seq_len * model.n_heads // mesh.tensor // 2 * (wide + narrow)
    kept = model.n_layers * (stream * wide if train.remat else layer)

    def whole(wanted: str, size: int) -> int:
        """Return the bytes of the weights whose names contain a word, whole but for `tensor`."""
        parts = 0
        for weight in shapes.weights:
            split = "tensor" in split_axes(weight.name, weight.shape, mesh)
            parts += (wanted in weight.name) * math.prod(weight.shape) // (mesh.tensor if split else 1)
        return parts * size

    chunks = chunk_count(sequences, train.seq_len, model.vocab_size, mesh.size)
    logits = tokens * model.vocab_size // (chunks * mesh.tensor) * wide
    head = "embed_tokens" if model.tie_embeddings else "lm_head"
    gathered = mesh.fsdp > 1
    parts = [
        layer + whole("layers.", narrow + (wide if gathered else 0)),
        3 * logits + whole(head, narrow + (wide if gathered else 0)),
        sum(whole(name, 2 * wide if gathered else wide) for name in ("embed_tokens", "embed_previous")),
    ]
    return kept, max(parts)
