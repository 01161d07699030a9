"""Bytes that the devices of a mesh exchange in one step, by a formula.

`fsdp` gathers each matrix whenever it is used: in the forward pass, in the gradient of its input, and with
`train.remat` in the forward pass that is repeated (of which down_proj's output is not needed). Gradients are summed
over `fsdp`, and what a device keeps of the sum over `data`. `tensor` sums the outputs of o_proj and down_proj, and the
gradients of the inputs of all that it splits by outputs. All of it once for each micro-batch, and the output head once
for each chunk of the loss.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from jaxlm.loss import chunk_count
from lmcore.config import GATED, Config
from lmcore.run.mesh import MeshShape, split_axes
from parity.plan.hlo import wire_bytes
from parity.plan.shapes import Shapes

__all__ = ["Exchange", "exchanges"]


@dataclass(frozen=True)
class Exchange:
    """All collectives of one step for one purpose."""

    kind: str
    axis: str
    """Axis or axes of the mesh that exchange."""
    group: int
    """Number of devices that exchange with each other."""
    stride: int
    """Distance between two of them, in the order of the mesh."""
    bytes: float
    """Size of the whole arrays, summed over all."""

    @property
    def wire(self) -> float:
        """Bytes that one device sends in a step, by the ring algorithm."""
        return wire_bytes(self.kind, self.group, self.bytes)


def exchanges(config: Config, shapes: Shapes, mesh: MeshShape, compiled_for_cpu: bool = False) -> list[Exchange]:
    """Return what is exchanged in a step, but for scalars.

    Args:
        config: of the run.
        shapes: of its model.
        mesh: the devices.
        compiled_for_cpu: whether matmuls are in the parameters' dtype, whatever `train.precision` says, as XLA does for
            CPUs.
    """
    found = [*_sharding(config, shapes, mesh, compiled_for_cpu), *_tensor(config, shapes, mesh, compiled_for_cpu)]
    return [exchange for exchange in found if exchange.group > 1 and exchange.bytes]


def _sharding(config: Config, shapes: Shapes, mesh: MeshShape, compiled_for_cpu: bool) -> Iterator[Exchange]:
    """Yield the exchanges of weights and gradients over `data` and `fsdp`."""
    model, train, wide = config.model, config.train, shapes.wide
    narrow = wide if compiled_for_cpu else shapes.narrow
    chunks = chunk_count(train.batch_size // train.grad_accum, train.seq_len, model.vocab_size, mesh.size)
    head = "embed_tokens.weight" if model.tie_embeddings else "lm_head.kernel"
    gathered = summed = looked_up = 0.0
    for weight in shapes.weights:
        axes = split_axes(weight.name, weight.shape, mesh)
        elements = math.prod(weight.shape) * weight.count / (mesh.tensor if "tensor" in axes else 1)
        size = elements * (narrow if len(weight.shape) > 1 else wide)
        uses, sums = 2, train.grad_accum
        if weight.name.startswith("layers."):
            uses = train.grad_accum * (2 + (train.remat and "down_proj" not in weight.name))
        elif weight.name == head:
            uses = 2 if chunks == 1 else 1 + 2 * train.grad_accum * chunks
            sums *= chunks
        elif weight.name == "embed_tokens.weight":
            uses = sums = 0
        if weight.name == "embed_tokens.weight":
            looked_up += elements * wide
            gathered += elements * wide * (not model.tie_embeddings or shapes.narrow < wide) * ("fsdp" in axes)
        gathered += size * uses * ("fsdp" in axes)
        summed += size * sums
    yield Exchange("all-gather", "fsdp", mesh.fsdp, mesh.tensor, gathered)
    yield Exchange("reduce-scatter", "fsdp", mesh.fsdp, mesh.tensor, summed)
    yield Exchange("all-reduce", "data", mesh.data, mesh.fsdp * mesh.tensor, summed / mesh.fsdp)
    yield Exchange("all-reduce", "data and fsdp", mesh.batch, mesh.tensor, looked_up * train.grad_accum)


def _tensor(config: Config, shapes: Shapes, mesh: MeshShape, compiled_for_cpu: bool) -> Iterator[Exchange]:
    """Yield the exchanges of activations over `tensor`."""
    model, train, wide = config.model, config.train, shapes.wide
    narrow = wide if compiled_for_cpu else shapes.narrow
    stream = train.batch_size // mesh.batch * train.seq_len * model.dim  # elements, over all micro-batches
    backward = (3 + (2 if model.mlp in GATED else 1)) * narrow  # each gradient of an input is summed by itself
    split = "tensor" in split_axes("embed_tokens.weight", (model.vocab_size, model.dim), mesh)
    summed = model.n_layers * ((2 + train.remat) * narrow + backward) + (wide + narrow) * split
    kind = "reduce-scatter" if config.parallel.sequence else "all-reduce"
    yield Exchange(kind, "tensor", mesh.tensor, 1, stream * summed)
    if config.parallel.sequence:
        gathers = model.n_layers * (4 + 2 * train.remat) + (3 if mesh.fsdp > 1 else 2)
        yield Exchange("all-gather", "tensor", mesh.tensor, 1, stream * narrow * gathers)
