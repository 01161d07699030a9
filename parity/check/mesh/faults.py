"""Faults of sharded training, each of which the check across meshes must catch.

GSPMD adds a compiled program's collectives itself, so that some faults of torch cannot be made in jax: there the plant
computes what a device would have without the collective.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

from parity.check.selftest.faults import patch

__all__ = ["FAULTS", "Fault", "planted"]

PARTS = 2
"""Number of devices of each mesh below."""


@dataclass(frozen=True)
class Fault:
    """One fault of one twin on a mesh of two devices."""

    name: str
    framework: str
    mesh: str
    """Sizes of data, fsdp and tensor."""
    plant: Callable[[], AbstractContextManager[Any]]
    """Returns a context in which that twin is patched."""

    @property
    def key(self) -> str:
        """Its name among all faults."""
        return f"{self.framework}: {self.name}"


def planted(key: str | None) -> AbstractContextManager[Any]:
    """Return a context in which the twin is patched with a fault; None leaves it as it is."""
    return nullcontext() if key is None else next(fault for fault in FAULTS if fault.key == key).plant()


def mean_of_means(loss_sum: Any) -> Any:
    """Each device divides its loss by its own targets, and the means are added."""
    return lambda *args, **options: PARTS * loss_sum(*args, **options)


def divides_again(clip: Any) -> Any:
    """Gradients that are divided already are averaged over the devices."""

    def faulty(grads: Any, max_norm: float) -> Any:
        import jax

        return clip(jax.tree.map(lambda g: g / PARTS, grads), max_norm)

    return faulty


def own_vocabulary(lookup: Any) -> Any:
    """Tokens of the other devices' part of the vocabulary are embedded as zero."""

    def faulty(self: Any, tokens: Any) -> Any:
        own = tokens < self.weight[...].shape[0] // PARTS
        return lookup(self, tokens) * own[..., None]

    return faulty


def same_mask(dropout: Any) -> Any:
    """Each device draws the masks of its own sequences from the same key."""

    def faulty(x: Any, rate: float, key: Any) -> Any:
        import jax.numpy as jnp

        if key is None:
            return x
        mask = dropout(jnp.ones_like(x[: len(x) // PARTS]), rate, key)
        return x * jnp.concatenate([mask] * PARTS)

    return faulty


def forgets_count(restore_state: Any) -> Any:
    """Adam's count of updates is not restored."""

    def faulty(folder: Any, **wanted: Any) -> Any:
        import jax
        import numpy as np

        def zero(leaf: Any) -> Any:  # of all processes, where they share it
            if leaf.ndim:
                return leaf
            return jax.make_array_from_callback((), leaf.sharding, np.zeros((), leaf.dtype).__getitem__)

        read = restore_state(folder, **wanted)
        if "optimizer" in read:
            read["optimizer"] = read["optimizer"] | {"state": jax.tree.map(zero, read["optimizer"]["state"])}
        return read

    return faulty


def first_shard(shard: Any) -> Any:
    """All processes read the first part of a batch."""
    return property(lambda self: (0, shard.fget(self)[1]))


def swapped_shards(shard: Any) -> Any:
    """The processes read each other's parts of a batch, whose rows then meet other dropout masks."""

    def faulty(self: Any) -> tuple[int, int]:
        index, count = shard.fget(self)
        return count - 1 - index, count

    return property(faulty)


def norm_of_own_part(norm: Any) -> Any:
    """The gradient norm is that of the first device's part of each gradient."""

    def faulty(grads: Any) -> Any:
        import jax

        return norm(jax.tree.map(lambda g: g[: -(-len(g) // PARTS)], grads))

    return faulty


def divides_in_place(clip: Any) -> Any:
    """Gradients that are divided already are averaged over the processes."""

    def faulty(parameters: Any, max_norm: float, *sharding: Any) -> Any:
        parameters = list(parameters)
        for p in parameters:
            p.grad /= PARTS
        return clip(parameters, max_norm, *sharding)

    return faulty


def not_summed(apply: Any) -> Any:
    """Each process embeds its own part of the vocabulary, and the rest as zero."""

    def faulty(model: Any, config: Any, mesh: Any, sequence: bool) -> None:
        apply(model, config, mesh, sequence)
        size = config.vocab_size // PARTS
        first = mesh.get_local_rank() * size

        def own(module: Any, arguments: Any, output: Any) -> Any:
            [tokens] = arguments
            tokens = tokens.to_local() if hasattr(tokens, "to_local") else tokens
            return output * ((tokens >= first) & (tokens < first + size))[..., None]

        model.embed_tokens.register_forward_hook(own)

    return faulty


def key_of_whole(mask_key: Any) -> Any:
    """Each process draws the masks of its own sequences from the same key, as if it had them all."""

    def faulty(self: Any, words: Any, sequence: bool) -> Any:
        from torchlm.dropout import MaskKey

        return MaskKey(words)

    return faulty


def zeroes_count(restore_state: Any) -> Any:
    """Adam's count of updates is not restored."""

    def faulty(folder: Any, **items: Any) -> None:
        restore_state(folder, **items)
        if "optimizer" in items:
            items["optimizer"]["count"].zero_()

    return faulty


def own_norm(norm: Any) -> Any:
    """The gradient norm is that of the process's own parts."""

    def faulty(self: Any, parameters: Any) -> Any:
        import torch

        return torch.stack([torch.sum(p.grad * p.grad) for p in parameters]).sum().sqrt()

    return faulty


FAULTS = (
    Fault("loss averaged per device", "jax", "2,1,1", patch("jaxlm.engine.loss_sum", mean_of_means)),
    Fault("gradients divided twice", "jax", "1,2,1", patch("jaxlm.engine.clip_by_global_norm", divides_again)),
    Fault("embedding not summed", "jax", "1,1,2", patch("jaxlm.model.Embedding.__call__", own_vocabulary)),
    Fault("the same masks on each device", "jax", "2,1,1", patch("jaxlm.model.dropout", same_mask)),
    Fault("count of updates not restored", "jax", "1,2,1", patch("jaxlm.engine.restore_state", forgets_count)),
    Fault("the same shard in each process", "jax", "2,1,1", patch("jaxlm.engine.Engine.shard", first_shard)),
    Fault("shards of the batch swapped", "jax", "2,1,1", patch("jaxlm.engine.Engine.shard", swapped_shards)),
    Fault("norm over local shards", "jax", "1,2,1", patch("optax.tree.norm", norm_of_own_part)),
    Fault("loss averaged per device", "torch", "2,1,1", patch("torchlm.engine.loss_sum", mean_of_means)),
    Fault("gradients divided twice", "torch", "1,2,1", patch("torchlm.engine.clip_by_global_norm", divides_in_place)),
    Fault("embedding not summed", "torch", "1,1,2", patch("torchlm.sharding.apply_tensor_parallel", not_summed)),
    Fault("the same masks on each device", "torch", "2,1,1", patch("torchlm.sharding.Sharding.mask_key", key_of_whole)),
    Fault("count of updates not restored", "torch", "1,2,1", patch("torchlm.engine.restore_state", zeroes_count)),
    Fault("the same shard in each process", "torch", "2,1,1", patch("torchlm.engine.Engine.shard", first_shard)),
    Fault("shards of the batch swapped", "torch", "2,1,1", patch("torchlm.engine.Engine.shard", swapped_shards)),
    Fault("norm over local shards", "torch", "1,2,1", patch("torchlm.sharding.Sharding.norm", own_norm)),
)
