"""Faults of the model: its forward pass, its weights, and its loss and gradient."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any
from unittest import mock

import numpy as np

from parity.arrays import Arrays


def interleaved(rotate: Any) -> Any:
    """Feature 2i is rotated with 2i + 1, as in GPT-J, instead of i with i + H/2."""

    def faulty(x: Any, cos: Any, sin: Any) -> Any:
        half = x.shape[-1] // 2
        order = np.concatenate([np.arange(0, 2 * half, 2), np.arange(1, 2 * half, 2)])
        return rotate(x[..., order], cos, sin)[..., np.argsort(order)]

    return faulty


def changed(**changes: Any) -> Callable[[Any], Any]:
    """Other values in the config that a function receives."""
    return lambda function: lambda config, *rest: function(replace(config, **changes), *rest)


def reversed_order(preceding: Any) -> Any:
    """Of the tokens before each, the farthest comes first."""
    return lambda *args: preceding(*args).flip(-1)


def eps_times_ten(init: Any) -> Any:
    """A norm with ten times the eps."""

    def faulty(self: Any, dim: int, eps: float) -> None:
        init(self, dim, eps * 10)

    return faulty


def weight_before_norm(forward: Any) -> Any:
    """The weight is multiplied before the norm."""

    def faulty(self: Any, x: Any) -> Any:
        return forward(self, x * self.weight) / self.weight

    return faulty


def swapped(forward: Any) -> Any:
    """Gate and up projections are swapped."""

    def faulty(self: Any, x: Any) -> Any:
        gate, up = self.gate_proj, self.up_proj
        with mock.patch.dict(self._modules, {"gate_proj": up, "up_proj": gate}):
            return forward(self, x)

    return faulty


def tiled_heads(attend: Any) -> Any:
    """Query head n attends to key/value head n mod K instead of n // G."""

    def faulty(q: Any, k: Any, v: Any, **rest: Any) -> Any:
        n_heads, n_kv_heads = q.shape[2], k.shape[2]
        order = np.arange(n_heads).reshape(-1, n_kv_heads).T.ravel()
        return attend(q[:, :, order], k, v, **rest)[:, :, np.argsort(order)]

    return faulty


class RootlessMath:
    """`math` without the square root."""

    inf = float("inf")

    @staticmethod
    def sqrt(x: float) -> float:
        return x


def sees_next(attend: Any) -> Any:
    """Each query also attends to the position after its own."""

    def faulty(q: Any, k: Any, v: Any, **rest: Any) -> Any:
        import torch

        from torchlm.attention import attention, by_head, causal_mask

        length = q.shape[1]
        return attention(q, by_head(k), by_head(v), causal_mask(torch.arange(length) + 1, length))

    return faulty


def no_residual(forward: Any) -> Any:
    """The residual connection is left out."""

    def faulty(self: Any, x: Any, *args: Any, **kwargs: Any) -> Any:
        return forward(self, x, *args, **kwargs) - x

    return faulty


def gelu(activations: Any) -> Any:
    """GELU in place of SiLU."""
    return activations | {"swiglu": activations["geglu"]}


def rounded(function: Any) -> Any:
    """A computation in float32 in a float64 model."""

    def faulty(x: Any, *args: Any, **kwargs: Any) -> Any:
        return function(x.float(), *args, **kwargs).to(x.dtype)

    return faulty


def no_transpose(convert: Any) -> Any:
    """The conversion does not transpose one square kernel, in either direction."""

    def faulty(arrays: Arrays, config: Any, source: str, target: str, **rest: Any) -> Arrays:
        converted = convert(arrays, config, source, target, **rest)
        names = [name for name in converted if name.endswith(("self_attn.o_proj.kernel", "self_attn.o_proj.weight"))]
        transposed = {name: np.ascontiguousarray(converted[name].T) for name in names} if source != target else {}
        return converted | transposed

    return faulty


def unscaled_outputs(initial_weight: Any) -> Any:
    """Projections onto the residual stream are initialized with the std of the others."""
    return lambda seed, name, shape, model: (
        initial_weight(seed, name, shape, model)
        * np.float32((2 * model.n_layers) ** 0.5 if "o_proj" in name or "down_proj" in name else 1)
    )


def mean_of_means(total: Any) -> Any:
    """The mean of each sequence's mean loss, times the number of targets: right only if all sequences have as many."""

    def faulty(model: Any, tokens: Any, targets: Any, *rest: Any, **options: Any) -> Any:
        rows = zip(tokens.split(1), targets.split(1))
        means = [total(model, x, y, *rest, **options) / (y != -1).sum() for x, y in rows]
        return sum(means) / len(means) * (targets != -1).sum()

    return faulty


def counts_ignored(cross_entropy: Any) -> Any:
    """Ignored targets are counted in the loss."""
    return lambda logits, targets: cross_entropy(logits, targets.clamp_min(0))


def untied(head: Any) -> Any:
    """The head is a copy of the embedding: the same logits, but no gradient."""
    return property(lambda self: head.fget(self).detach().clone())


def by_micro_batch(train_step: Any) -> Any:
    """The loss is divided by the targets of one micro-batch instead of all."""

    def faulty(config: Any, state: Any, batch: Any, lr: float, loss_sum: Any) -> Any:
        return train_step(config, state, batch, lr, lambda *args: len(batch) * loss_sum(*args))

    return faulty


def wider(attend: Any) -> Any:
    """A window with one position more."""

    def faulty(q: Any, k: Any, v: Any, window: int = 0, **rest: Any) -> Any:
        return attend(q, k, v, window=window + (window > 0), **rest)

    return faulty


def uncapped(attend: Any) -> Any:
    """Attention scores without their soft cap."""

    def faulty(q: Any, k: Any, v: Any, softcap: float = 0.0, **rest: Any) -> Any:
        return attend(q, k, v, **rest)

    return faulty


def rotates_all_layers(tables: Any) -> Any:
    """A layer without RoPE is rotated."""
    return lambda config, kind: tables(config, "full" if kind == "nope" else kind)


def in_series(init: Any) -> Any:
    """The feed-forward layer takes what attention has been added to."""

    def faulty(self: Any, *args: Any) -> None:
        init(self, *args)
        self.parallel = False

    return faulty


def weight_alone(forward: Any) -> Any:
    """A zero-centered weight is multiplied as it is."""

    def faulty(self: Any, x: Any) -> Any:
        return forward(self, x) * self.weight / (1 + self.weight)

    return faulty


def no_factor(times: Any) -> Any:
    """Factors of embeddings, branches, queries and logits are left out."""
    return lambda factor: times(1.0)


def exact_gelu(activations: dict[str, Any]) -> dict[str, Any]:
    """GELU is exact where its approximation is asked for."""
    return activations | {"geglu_tanh": activations["gelu"]}


def no_slope(function: Any) -> Any:
    """The gradient of the loss passes through the soft cap of the logits as if it were none."""

    class Straight:
        @staticmethod
        def apply(hidden: Any, weight: Any, *rest: Any) -> Any:
            value = function.apply(hidden.detach(), weight.detach(), *rest)
            uncapped = function.apply(hidden, weight, *rest[:-1], 0.0)
            return value + uncapped - uncapped.detach()

    return Straight
