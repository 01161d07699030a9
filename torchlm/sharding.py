"""The processes of a run as a mesh, and the split of a model over them: FSDP, tensor and sequence parallelism.

Each process has one device. Forward and backward pass are torch's own `fully_shard` and `parallelize_module`; what the
optimizer updates and a checkpoint holds are each process's own parts, split as `lmcore.run.mesh.split_axes` says, in
both twins the same.
"""

import warnings
from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, Replicate, Shard

from lmcore.config import Config
from lmcore.errors import UserError
from lmcore.run.mesh import AXES, MeshShape, split_axes
from torchlm.dropout import MaskKey, Part
from torchlm.processes import sum_over_processes
from torchlm.tensor_parallel import apply_tensor_parallel

if TYPE_CHECKING:
    from torchlm.model import Decoder

__all__ = ["Layout", "Sharding", "check_sharding", "layouts", "own"]

Layout = tuple[str | None, ...]
"""Axis of the mesh that splits each dimension of a tensor; None where it is whole."""


def layouts(model: nn.Module, shape: MeshShape) -> dict[str, Layout]:
    """Return the layout of every parameter; torch stores kernels output × input, `split_axes` takes input × output."""
    found = {}
    for name, p in model.named_parameters():
        order = -1 if isinstance(model.get_submodule(name.rpartition(".")[0]), nn.Linear) else 1
        found[name] = split_axes(name, tuple(p.shape)[::order], shape)[::order]
    return found


def own(p: Tensor) -> Tensor:
    """Return this process's part of a parameter."""
    return p.to_local().detach() if isinstance(p, DTensor) else p.detach()


def check_sharding(config: Config, shape: MeshShape) -> None:
    """Check that torch can train a config on a mesh.

    Raises:
        UserError: it cannot.
    """
    if config.train.precision == "float16" and shape.sharded:  # whose scaler looks at one process's gradients
        raise UserError(f"train.precision: found 'float16', expected bfloat16 on a mesh of {shape}")
    by_block = config.train.compile and config.model.scan_layers
    if by_block and shape.tensor > 1 and not config.parallel.sequence:  # torch 2.13 fails in the backward pass
        raise UserError(
            f"model.scan_layers: found true with train.compile and parallel.tensor {shape.tensor}, expected false, or "
            f"parallel.sequence true"
        )


class Sharding:
    """The processes of a run as a mesh, of which this process has one place.

    Args:
        shape: number of processes along each axis.
        device: of this process.
    """

    def __init__(self, shape: MeshShape, device: torch.device):
        self.shape = shape
        sizes = tuple(getattr(shape, axis) for axis in AXES)
        self.mesh = init_device_mesh(device.type, sizes, mesh_dim_names=AXES)
        place = self.mesh.get_coordinate()
        assert place is not None
        self.place = dict(zip(AXES, place, strict=True))
        self.layouts: dict[str, Layout] = {}
        """Dotted name of a parameter -> its layout."""
        self.parts: dict[nn.Parameter, Layout] = {}
        """This process's part of a parameter -> its layout."""

    def apply(self, model: "Decoder", config: Config) -> None:
        """Split a model on the meta device, whose parameters become DTensors where they are split.

        Args:
            model: the decoder.
            config: of the run.
        """
        self.layouts = layouts(model, self.shape)
        if self.shape.tensor > 1:
            apply_tensor_parallel(model, config.model, self.mesh["tensor"], config.parallel.sequence)
        if self.shape.fsdp > 1:
            self._fully_shard(model)

    def _fully_shard(self, model: "Decoder") -> None:
        names = {p: name for name, p in model.named_parameters()}
        whole = {p for p, name in names.items() if "fsdp" not in self.layouts[name]}

        def placement(p: nn.Parameter) -> Shard:
            return Shard(self.layouts[names[p]].index("fsdp"))

        mesh = self.mesh["data", "fsdp"] if self.shape.data > 1 else self.mesh["fsdp"]
        for module in (*model.layers, model):
            fully_shard(module, mesh=mesh, shard_placement_fn=placement, ignored_params=whole)
        register_fsdp_forward_method(model, "hidden")
        warnings.filterwarnings("ignore", ".*returned a view tensor")  # nothing here changes one in place
        for module in model.modules():
            if isinstance(module, FSDPModule):  # the loss is divided by all targets already: gradients are sums
                module.set_gradient_divide_factor(1.0)
                module.set_force_sum_reduction_for_comms(True)  # gloo has no other

    def own(self, whole: Tensor, layout: Layout) -> Tensor:
        """Return a copy of this process's part of a tensor."""
        for dim, axis in enumerate(layout):
            if axis is not None:
                whole = whole.chunk(getattr(self.shape, axis), dim)[self.place[axis]]
        return whole.clone(memory_format=torch.contiguous_format)

    def held(self, model: nn.Module, own: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return what the parameters of the model are to hold, given this process's parts of them."""
        return {name: self._held(p, own[name]) for name, p in model.named_parameters()}

    def own_parts(self, model: nn.Module) -> dict[str, nn.Parameter]:
        """Return this process's parts of the trained parameters, for the optimizer: the same memory as in the model."""
        found = {}
        for name, p in model.named_parameters():
            if p.requires_grad:
                found[name] = nn.Parameter(own(p)) if isinstance(p, DTensor) else p
        self.parts = {p: self.layouts[name] for name, p in found.items()}
        return found

    def reshard(self, model: nn.Module) -> None:
        """Free what the forward pass of an evaluation has gathered."""
        if isinstance(model, FSDPModule):
            model.reshard()

    def mask_key(self, words: Tensor, sequence: bool) -> MaskKey:
        """Return the key of this process's part of the dropout masks.

        Args:
            words: the random key.
            sequence: whether the residual stream is split over the axis `tensor`.
        """
        rows, heads = Part(self.batch_part, self.shape.batch), Part(self.place["tensor"], self.shape.tensor)
        return MaskKey(words, rows, heads if sequence else Part(), heads)

    def mask_seed(self, sequence: bool) -> int:
        """Return a number that differs between processes, unless they must draw the same masks of the residual stream.

        Args:
            sequence: whether the residual stream is split over the axis `tensor`.
        """
        return self.batch_part * self.shape.tensor + self.place["tensor"] if sequence else self.batch_part

    @property
    def batch_part(self) -> int:
        """Number of this process's part of the batch."""
        return self.place["data"] * self.shape.fsdp + self.place["fsdp"]

    def _held(self, p: nn.Parameter, own: Tensor) -> Tensor:
        if not isinstance(p, DTensor):
            return own
        return DTensor.from_local(own, p.device_mesh, p.placements, run_check=False, shape=p.shape, stride=p.stride())

    def wholes(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the whole tensors of which this process has parts, as DTensors with the same memory.

        Args:
            tensors: parts of parameters, by dotted name, or of an optimizer's state, by `kind.name`; numbers stay.
        """
        return {key: self._whole(key, own) if own.ndim else own for key, own in tensors.items()}

    def _whole(self, key: str, own: Tensor) -> DTensor:
        kind, _, name = key.partition(".")
        layout = self.layouts[key if key in self.layouts else name]
        rows, columns = layout[0], layout[-1]
        layout = {"row_var": (rows, None), "col_var": (None, columns)}.get(kind, layout)
        placements = [Shard(layout.index(axis)) if axis in layout else Replicate() for axis in AXES]
        return DTensor.from_local(own, self.mesh, placements, run_check=False)

    def norm(self, parameters: Iterable[nn.Parameter]) -> Tensor:
        """Return the norm of the gradients of all parameters, given this process's parts."""
        own = [torch.sum(p.grad * p.grad) for p in parameters if p.grad is not None]
        counted = [square for p, square in zip(parameters, own) if self.counts(self.parts[p])]
        total = torch.stack(counted).sum() if counted else torch.zeros_like(own[0])
        sum_over_processes([total])
        return total.sqrt()

    def counts(self, layout: Layout) -> bool:
        """Return whether this process is the first of those that have the same part of a tensor."""
        return not any(place for axis, place in self.place.items() if axis not in layout)

    def sum_parts(self, parts: Iterable[tuple[Tensor, Layout]]) -> None:
        """Replace each tensor by its sum over the processes of the axes beside it."""
        parts = list(parts)
        for axis in ("fsdp", "tensor"):
            if own := [tensor for tensor, axes in parts if axis in axes]:
                sum_over_processes(own, self.mesh.get_group(axis))

    def sum_over_batch(self, tensors: Iterable[Tensor]) -> None:
        """Replace tensors by their sums over the processes that each compute a part of the batch."""
        tensors = list(tensors)
        for axis in ("fsdp", "data"):
            if getattr(self.shape, axis) > 1:
                sum_over_processes(tensors, self.mesh.get_group(axis))

    def collect_gradients(self, model: nn.Module, parameters: dict[str, nn.Parameter]) -> list[Tensor]:
        """Give this process's parts of the parameters the gradients of the model's own.

        Args:
            model: after the backward pass.
            parameters: name -> part of the parameter.

        Returns:
            Gradients that are not yet summed over the batch.
        """
        unsummed = []
        for name, p in model.named_parameters():
            if name not in parameters:
                continue
            grad = p.grad
            if isinstance(grad, DTensor):
                grad = grad.redistribute(placements=p.placements).to_local()  # type: ignore[attr-defined]
            parameters[name].grad = grad
            if grad is not None and not (self.shape.fsdp > 1 and "fsdp" in self.layouts[name]):
                unsummed.append(grad)
        return unsummed
