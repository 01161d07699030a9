"""Data parallelism on one CPU: a batch is split over the cores, each of which runs forward and backward on its part.

So the cores wait for one another once a step, not in every operation, and each works on what its own caches hold.
jaxlm splits a batch over one XLA device per core.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lmcore.config import TrainConfig
from lmcore.hardware import even_parts, usable_cores
from torchlm.dropout import Key
from torchlm.model import Decoder

__all__ = ["LossSum", "SplitLoss"]

LossSum = Callable[[Decoder, Tensor, Tensor, Key, Tensor | None], Tensor]
"""`torchlm.loss.loss_sum`, or the same compiled or split."""


class SplitLoss:
    """A loss_sum over this process's part of a micro-batch, split evenly into threads, with its gradients.

    With dropout the batch stays whole, since one mask is drawn for all its sequences. Not for float16: its scaler would
    multiply the loss after the gradients are computed.
    """

    def __init__(self, loss_sum: LossSum, train: TrainConfig, processes: int = 1):
        cores = train.cpu_devices or usable_cores()
        sequences = max(1, train.batch_size // train.grad_accum // processes)
        self.loss_sum = loss_sum
        self.parts = even_parts(sequences, cores)
        self.pool = ThreadPoolExecutor(self.parts, "part", lambda: torch.set_num_threads(cores // self.parts))

    def __call__(
        self,
        model: Decoder,
        tokens: Int[Tensor, "B T"],
        targets: Int[Tensor, "B T"],
        key: Key = None,
        documents: Int[Tensor, "B T"] | None = None,
    ) -> Float[Tensor, ""]:
        """Return the summed token loss, in the parameters' dtype."""
        if self.parts == 1 or key is not None:
            return self.loss_sum(model, tokens, targets, key, documents)
        params = [p for p in model.parameters() if p.requires_grad]
        one = partial(_with_gradients, self.loss_sum, model, params)
        rows = (tokens, targets) if documents is None else (tokens, targets, documents)
        results = self.pool.map(one, *(x.chunk(self.parts) for x in rows))
        losses, grads = zip(*results, strict=True)
        return _PrecomputedGradients.apply(sum(losses), [sum(parts) for parts in zip(*grads, strict=True)], *params)


def _with_gradients(
    loss_sum: LossSum,
    model: Decoder,
    params: Sequence[Tensor],
    tokens: Tensor,
    targets: Tensor,
    documents: Tensor | None = None,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    loss = loss_sum(model, tokens, targets, None, documents)
    return loss.detach(), torch.autograd.grad(loss, params)


class _PrecomputedGradients(torch.autograd.Function):
    """A loss whose parameter gradients are computed already; the backward pass only scales them."""

    @staticmethod
    def forward(ctx: Any, loss: Tensor, grads: list[Tensor], *params: Tensor) -> Tensor:
        ctx.grads = grads
        return loss

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, *(g * grad for g in ctx.grads)
