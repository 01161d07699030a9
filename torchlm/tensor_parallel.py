"""Tensor and sequence parallelism by `parallelize_module`: each process has some heads, feed-forward units and tokens.

Between the matmuls, tensors are each process's own (Shoeybi et al. 2019, arXiv:1909.08053). With sequence parallelism
the residual stream is split along its positions there (Korthikanti et al. 2022, arXiv:2205.05198), and dropout and
norms with it; else all processes of the axis compute the same.
"""

from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard
from torch.distributed.tensor.experimental import register_sharding
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    ParallelStyle,
    PrepareModuleInput,
    PrepareModuleInputOutput,
    PrepareModuleOutput,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)

from lmcore.config import ModelConfig

__all__ = ["apply_tensor_parallel", "own_part", "whole_last"]


def apply_tensor_parallel(model: nn.Module, config: ModelConfig, mesh: DeviceMesh, sequence: bool) -> None:
    """Split the matrices of a model over a mesh of one dimension, and what is computed with them.

    Args:
        model: the decoder; parameters that are not split stay plain tensors, unless their gradients must be summed.
        config: its config.
        mesh: the processes of the axis `tensor`.
        sequence: whether the residual stream is split too.
    """
    register_sharding(torch.ops.twinlm.onednn_linear.default)(_onednn_shardings)
    stream = Shard(1) if sequence else Replicate()
    plan: dict[str, ParallelStyle] = {}
    if config.vocab_size % mesh.size() == 0:
        plan["embed_tokens"] = RowwiseParallel(input_layouts=Replicate())
        if not config.tie_embeddings:
            plan["lm_head"] = ColwiseParallel()
    if sequence:
        plan["embed_positions"] = PrepareModuleOutput(output_layouts=Replicate(), desired_output_layouts=stream)
        plan["norm"] = PrepareModuleInput(
            input_layouts=stream, desired_input_layouts=Replicate(), use_local_output=True
        )
    for name, module in model.named_modules():
        last = name.rpartition(".")[2]
        if last in ("self_attn", "mlp"):
            others = (None,) * (3 if last == "self_attn" else 0)  # RoPE's tables, and the function of attention
            plan[name] = PrepareModuleInputOutput(
                input_layouts=(stream, *others),
                desired_input_layouts=(Replicate(), *others),
                output_layouts=stream,
                desired_output_layouts=stream,
            )
        elif last in ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj"):
            plan[name] = ColwiseParallel()
        elif last in ("o_proj", "down_proj"):
            plan[name] = RowwiseParallel(output_layouts=stream, use_local_output=False)
        elif last in ("q_norm", "k_norm") and list(module.parameters()):
            plan[name] = SequenceParallel(sequence_dim=2, use_local_output=True)  # its dimension of heads
        elif sequence and name.startswith("layers.") and last.endswith("layernorm"):
            plan[name] = SequenceParallel(use_local_output=True)
    parallelize_module(model, mesh, plan, src_data_rank=None)


def own_part(parameter: Tensor) -> tuple[Tensor, dist.ProcessGroup | None]:
    """Return this process's part of a parameter's rows, and the processes which have the parts; None if it is whole."""
    if not isinstance(parameter, DTensor):
        return parameter, None
    return parameter.to_local(), parameter.device_mesh.get_group()


def whole_last(x: Float[Tensor, "*B V"], group: dist.ProcessGroup | None) -> Float[Tensor, "*B _"]:
    """Return x with the parts of its last dimension that a group of processes has; it has no gradient then."""
    if group is None:
        return x
    parts = [torch.empty_like(x) for _ in range(dist.get_world_size(group))]
    dist.all_gather(parts, x.contiguous(), group)
    return torch.cat(parts, dim=-1)


def _onednn_shardings(x: Any, weight: Any) -> list[tuple[list[Any], list[Any]]]:
    """Return how the output of `onednn_linear` may be split, and the inputs with it."""
    last = x.ndim - 1
    whole, along = Replicate(), [([Shard(dim)], [Shard(dim), Replicate()]) for dim in range(last)]
    outputs, inputs = ([Shard(last)], [whole, Shard(0)]), ([Partial()], [Shard(last), Shard(1)])
    return [([whole], [whole, whole]), outputs, inputs, *along]
