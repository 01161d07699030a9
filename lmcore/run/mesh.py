"""The mesh of a run: its devices along the axes data, fsdp and tensor, and the axis that splits each dimension.

Both twins split the same parameters the same way. Devices are numbered along `tensor` first, so that those which share
most are neighbours; sequences are split over `data` and `fsdp` together.
"""

from dataclasses import dataclass

from lmcore.config import Config, ParallelConfig
from lmcore.errors import UserError

__all__ = ["AXES", "MeshShape", "check_mesh", "mesh_shape", "split_axes"]

AXES = ("data", "fsdp", "tensor")
"""Axes of a mesh, in the order of its devices: those of the last are neighbours."""
COLUMNS = ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj", "lm_head")
"""Linear layers whose outputs are split over `tensor`."""
ROWS = ("o_proj", "down_proj", "embed_tokens")
"""Layers whose inputs are split over `tensor`: an embedding's are its tokens."""


@dataclass(frozen=True)
class MeshShape:
    """Number of devices along each axis."""

    data: int = 1
    fsdp: int = 1
    tensor: int = 1

    @property
    def size(self) -> int:
        """Number of devices."""
        return self.data * self.fsdp * self.tensor

    @property
    def batch(self) -> int:
        """Number of parts that a batch is split into."""
        return self.data * self.fsdp

    @property
    def sharded(self) -> bool:
        """Whether a device holds less than the whole state."""
        return self.fsdp * self.tensor > 1

    def __str__(self) -> str:
        return " × ".join(f"{name} {getattr(self, name)}" for name in AXES if getattr(self, name) > 1) or "one device"


def mesh_shape(parallel: ParallelConfig, devices: int, kind: str = "devices") -> MeshShape:
    """Return the mesh of all devices.

    Args:
        parallel: of the config.
        devices: number of devices of the run, over all its processes.
        kind: what they are, for the error.

    Raises:
        UserError: the axes do not multiply to the number of devices.
    """
    sizes = {name: getattr(parallel, name) for name in AXES}
    left = next((name for name, size in sizes.items() if size == -1), None)
    known = MeshShape(**{name: max(1, size) for name, size in sizes.items()}).size
    if left is not None and devices % known == 0:
        sizes[left] = devices // known
    elif left is not None or known != devices:
        product = " × ".join(f"{name} {size}" for name, size in sizes.items() if size > 1) or "one device"
        expected = f"{'a divisor of ' if left else ''}the {devices} {kind if devices > 1 else kind[:-1]} of this run"
        raise UserError(f"parallel: found {product}, expected {expected}; change it, or how many are started")
    return MeshShape(**sizes)


def check_mesh(config: Config, mesh: MeshShape) -> None:
    """Check that the model and the batch can be split over a mesh.

    Raises:
        UserError: a dimension is not a multiple of the axis that splits it.
    """
    model, train, parallel = config.model, config.train, config.parallel
    if model.lora is not None and mesh.sharded:
        axis = "fsdp" if mesh.fsdp > 1 else "tensor"
        raise UserError(f"parallel.{axis}: found {getattr(mesh, axis)} with model.lora, expected 1: only data parallel")

    def divides(axis: str, parts: int, field: str, value: int) -> None:
        if value % parts:
            raise UserError(f"parallel.{axis}: found {parts}, expected a divisor of {field} = {value}")

    divides("fsdp", mesh.fsdp, "model.dim", model.dim)
    divides("tensor", mesh.tensor, "model.n_heads", model.n_heads)
    divides("tensor", mesh.tensor, "model.n_kv_heads", model.n_kv_heads)
    divides("tensor", mesh.tensor, "model.ffn_dim", model.ffn_dim)
    if mesh.tensor > 1 and model.qk_norm == "all_heads":
        raise UserError(f"parallel.tensor: found {mesh.tensor}, expected 1 with model.qk_norm: all_heads")
    if parallel.sequence:
        divides("tensor", mesh.tensor, "train.seq_len", train.seq_len)
    sequences = train.batch_size // train.grad_accum
    if sequences % mesh.batch:
        at_a_time = f" ({sequences} sequences at a time with train.grad_accum {train.grad_accum})"
        raise UserError(
            f"train.batch_size: found {train.batch_size}{at_a_time * (train.grad_accum > 1)}, expected a multiple of "
            f"the {mesh.batch} parts of the mesh ({mesh})"
        )


def split_axes(name: str, shape: tuple[int, ...], mesh: MeshShape) -> tuple[str | None, ...]:
    """Return the axis of the mesh that splits each dimension of a parameter; None where it is whole.

    `tensor` splits the heads, the feed-forward width and the vocabulary, `fsdp` the model width. A vocabulary that
    `tensor` does not divide stays whole, as does a vector that `fsdp` does not divide.

    Args:
        name: dotted name of the parameter, such as `layers.0.mlp.up_proj.kernel`.
        shape: a matrix's is (inputs, outputs), an embedding's (number of embeddings, D).
        mesh: the devices.
    """
    owner = name.split(".")[-2]
    if len(shape) == 2:
        wanted: tuple[str | None, ...] = ("fsdp", "tensor") if owner in COLUMNS else ("tensor", "fsdp")
        wanted = wanted if owner in COLUMNS + ROWS else (None, "fsdp")
    else:
        wanted = ("tensor",) if owner in COLUMNS and mesh.tensor > 1 else ("fsdp",)
    sizes = {"fsdp": mesh.fsdp, "tensor": mesh.tensor, None: 1}
    divided = zip(wanted, shape, strict=True)
    return tuple(axis if sizes[axis] > 1 and size % sizes[axis] == 0 else None for axis, size in divided)
