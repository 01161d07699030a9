"""The optimizers whose update of a matrix needs all of it, where each process has a part: Adafactor and Muon.

The others update every element by itself, so that torch's own, on each process's parts, are right as they are.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor, nn

from torchlm.sharding import Layout, Sharding

__all__ = ["ShardedAdafactor", "ShardedMuon"]


class ShardedAdafactor(torch.optim.Adafactor):
    """torch's Adafactor, its sums over rows, columns and whole tensors taken over all parts.

    Args:
        groups: parameter groups of parts.
        sharding: this process's place in the mesh.
        options: of `torch.optim.Adafactor`.
    """

    def __init__(self, groups: list[dict[str, Any]], sharding: Sharding, **options: Any):
        super().__init__(groups, **options)
        self.sharding = sharding

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Update the parameters once, in three rounds of messages for all of them together."""
        parts = [(group, p, self.sharding.parts[p]) for group in self.param_groups for p in group["params"]]
        sizes = [_whole_size(p, layout, self.sharding) for _, p, layout in parts]
        matrices = [(p, layout, size) for (_, p, layout), size in zip(parts, sizes) if p.ndim > 1]
        rows = [torch.sum(p.grad * p.grad, dim=-1, keepdim=True) for p, _, _ in matrices]
        columns = [torch.sum(p.grad * p.grad, dim=-2, keepdim=True) for p, _, _ in matrices]
        squares = [torch.sum(p * p) for _, p, _ in parts]
        self.sharding.sum_parts(
            [
                *((sums, layout[1:]) for sums, (_, layout, _) in zip(rows, matrices)),
                *((sums, layout[:1]) for sums, (_, layout, _) in zip(columns, matrices)),
                *((sums, layout) for sums, (_, _, layout) in zip(squares, parts)),
            ]
        )
        for group, p, _ in parts:
            self.state[p]["step"] += 1
            p.mul_(1 - group["lr"] * group["weight_decay"])
        means = []
        for (p, _, size), row, column in zip(matrices, rows, columns):
            state, fresh = self.state[p], self._fresh(p)
            state["row_var"].lerp_(row / size[1], fresh)
            state["col_var"].lerp_(column / size[0], fresh)
            means.append(state["row_var"].sum(dim=-2, keepdim=True) / size[0])
        self.sharding.sum_parts([(mean, layout[:1]) for mean, (_, layout, _) in zip(means, matrices)])
        mean_of = {p: mean for mean, (p, _, _) in zip(means, matrices)}
        updates = [self._update(group, p, mean_of.get(p)) for group, p, _ in parts]
        lengths = [torch.sum(update * update) for update in updates]
        self.sharding.sum_parts([(length, layout) for length, (_, _, layout) in zip(lengths, parts)])
        for (group, p, _), size, square, update, length in zip(parts, sizes, squares, updates, lengths):
            count = math.prod(size)
            root_mean_square, limit = (square / count).sqrt(), group["d"]
            rate = min(group["lr"], float(self.state[p]["step"]) ** -0.5)
            alpha = root_mean_square.clamp_min(group["eps"][1]) * rate
            p.sub_(update * (alpha / ((length / count).sqrt() / limit).clamp_min(1.0)))

    def _fresh(self, p: nn.Parameter) -> float:
        """Return the weight of the new squares in their running mean."""
        return float(self.state[p]["step"]) ** self.defaults["beta2_decay"]

    def _update(self, group: dict[str, Any], p: nn.Parameter, mean: Tensor | None) -> Tensor:
        """Return the gradient over the root of its mean square."""
        state, eps = self.state[p], group["eps"][0]
        assert p.grad is not None
        if mean is None:
            estimate = state["variance"].lerp_(p.grad * p.grad, self._fresh(p)).clone()
        else:
            estimate = (state["row_var"] @ state["col_var"]).div_(mean.clamp_(min=eps))
        return estimate.clamp_(min=eps * eps).rsqrt_().mul_(p.grad)


class ShardedMuon(torch.optim.Muon):
    """Muon on parts: whole matrices are orthogonalized by another process each, as in Dion (arXiv:2504.05295).

    Args:
        groups: parameter groups of parts of matrices.
        sharding: this process's place in the mesh.
        whole: the optimizer of one process, for the matrices.
        options: of `torch.optim.Muon`.
    """

    def __init__(
        self,
        groups: list[dict[str, Any]],
        sharding: Sharding,
        whole: type[torch.optim.Muon],
        **options: Any,
    ):
        super().__init__(groups, **options)
        self.sharding, self.whole, self.options = sharding, whole, options

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Update the parameters once, with two exchanges for all matrices of one shape."""
        for group in self.param_groups:
            for layout, same in _by_shape(group["params"], self.sharding.parts):
                updates = []
                for p in same:
                    assert p.grad is not None
                    momentum = self.state[p]["momentum_buffer"].lerp_(p.grad, 1 - group["momentum"])
                    updates.append(p.grad.lerp(momentum, group["momentum"]))
                for p, update in zip(same, self._orthogonal(torch.stack(updates), layout)):
                    p.mul_(1 - group["lr"] * group["weight_decay"]).add_(update, alpha=-group["lr"])

    def _orthogonal(self, updates: Float[Tensor, "M R C"], layout: Layout) -> Float[Tensor, "M R C"]:
        """Return the updates of Muon at a learning rate of 1, given parts of the momenta of matrices of one shape."""
        axes = [(dim, axis) for dim, axis in enumerate(layout, start=1) if axis is not None]
        count, processes = len(updates), math.prod(getattr(self.sharding.shape, axis) for _, axis in axes)
        missing = -count % processes
        stacked = torch.cat([updates, updates.new_zeros(missing, *updates.shape[1:])]) if missing else updates
        for dim, axis in axes:
            stacked = _exchanged(stacked, 0, dim, self.sharding.mesh.get_group(axis))
        matrices = [nn.Parameter(torch.zeros_like(matrix)) for matrix in stacked]
        for matrix, momentum in zip(matrices, stacked):
            matrix.grad = momentum
        self.whole(
            matrices, **self.options | {"lr": 1.0, "weight_decay": 0.0, "momentum": 0.0, "nesterov": False}
        ).step()
        stacked = -torch.stack([matrix.detach() for matrix in matrices])
        for dim, axis in reversed(axes):
            stacked = _exchanged(stacked, dim, 0, self.sharding.mesh.get_group(axis))
        return stacked[:count]


def _exchanged(x: Tensor, split: int, joined: int, group: dist.ProcessGroup) -> Tensor:
    """Return a tensor split along another dimension: each process sends every process a part of its own.

    Args:
        x: a part of the whole, which is split along `joined`.
        split: dimension along which the result is split.
        joined: dimension along which the result is whole.
        group: the processes.
    """
    parts = [part.contiguous() for part in x.chunk(dist.get_world_size(group), split)]
    received = torch.empty_like(sent := torch.stack(parts))
    dist.all_to_all_single(received, sent, group=group)
    return torch.cat(list(received), dim=joined)


def _by_shape(
    parameters: Sequence[nn.Parameter], layouts: dict[nn.Parameter, Layout]
) -> Iterator[tuple[Layout, list[nn.Parameter]]]:
    """Yield each layout and the parameters of one shape that have it."""
    found: dict[tuple[torch.Size, Layout], list[nn.Parameter]] = {}
    for p in parameters:
        found.setdefault((p.shape, layouts[p]), []).append(p)
    for (_, layout), same in found.items():
        yield layout, same


def _whole_size(p: Tensor, layout: Layout, sharding: Sharding) -> tuple[int, ...]:
    """Return the shape of the tensor of which p is a part."""
    return tuple(size * getattr(sharding.shape, axis or "", 1) for size, axis in zip(p.shape, layout, strict=True))
