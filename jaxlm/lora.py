"""Low-rank adapters: W x + α/r · B A x, of which A and B are trained and W is not (Hu et al. 2021, arXiv:2106.09685).

They are added to a decoder from outside: without `model.lora` no class of this file is in it. Shape letters as in
`jaxlm.model`; r is the rank.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jaxlm.dropout import Key, dropout, split
from jaxlm.linear import BiasedLinear, Linear
from jaxlm.model import Attend, Block, Decoder
from jaxlm.scales import unchanged
from lmcore.config import ADAPTED, LoraConfig, ModelConfig
from lmcore.model.lora import adapter_layers, is_trained

__all__ = ["AdaptedBlock", "Adapter", "LoraBiasedLinear", "LoraLinear", "add_adapters", "merge"]


class Adapter(nnx.Module):
    """What an adapted layer adds to the linear layer that follows it in the order of base classes."""

    def __init__(self, in_dim: int, out_dim: int, dtype: jnp.dtype, lora: LoraConfig):
        super().__init__(in_dim, out_dim, dtype)  # type: ignore[call-arg]
        self.lora_A = Linear(in_dim, lora.rank, dtype)
        self.lora_B = Linear(lora.rank, out_dim, dtype)
        self.scale, self.rate = lora.scale, lora.dropout
        self.mask = _Mask()

    def __call__(self, x: Float[Array, "*B I"]) -> Float[Array, "*B O"]:
        y = super().__call__(x)
        return y + self.scale * self.lora_B(self.lora_A(dropout(x, self.rate, self.mask.key)))


class LoraLinear(Adapter, Linear):
    """A linear layer without bias, with an adapter."""


class LoraBiasedLinear(Adapter, BiasedLinear):
    """A linear layer with a bias, and with an adapter."""


LORA: dict[type, Callable[..., nnx.Module]] = {Linear: LoraLinear, BiasedLinear: LoraBiasedLinear}
"""Kind of linear layer -> the same with an adapter."""


class _Mask:
    """The random key of an adapter's dropout mask while its block runs: a Flax module must not change in a trace."""

    key: Key = None


class AdaptedBlock(Block):
    """A block whose linear layers that `model.lora.targets` names have adapters."""

    def __init__(self, config: ModelConfig, dtype: jnp.dtype, sequence: bool = False, layer: int = 0):
        super().__init__(config, dtype, sequence, layer)
        assert config.lora is not None
        for name in config.lora.targets:
            module = getattr(self, ADAPTED[name])
            linear = getattr(module, name)
            setattr(module, name, LORA[type(linear)](*linear.kernel.shape, dtype, config.lora))

    def __call__(
        self,
        x: Float[Array, "B T D"],
        cos: Float[Array, "#B T H"],
        sin: Float[Array, "#B T H"],
        attend: Attend,
        key: Key = None,
        keep: Callable[[Array], Array] = unchanged,
    ) -> Float[Array, "B _ D"]:
        """Apply the block as `Block` does; the key switches the adapters' dropout on, too."""
        with self.masked(key):
            return super().__call__(x, cos, sin, attend, key, keep)

    @contextmanager
    def masked(self, key: Key) -> Iterator[None]:
        """Give each adapter its own random key, for as long as the context lasts."""
        layers = (getattr(getattr(self, module), name, None) for name, module in ADAPTED.items())
        adapters = [layer for layer in layers if isinstance(layer, Adapter)]
        _, _, *keys = split(key, 2 + len(adapters))  # the first two are those of the block's own masks
        for adapter, own in zip(adapters, keys, strict=True):
            adapter.mask.key = own
        yield
        for adapter in adapters:
            adapter.mask.key = None


def add_adapters(decoder: Decoder) -> Decoder:
    """Give the decoder's blocks the adapters of `model.lora`, if there are any; return the decoder."""
    config, sequence = decoder.config, decoder.split.keywords["sequence"]
    if config.lora is not None:
        blocks = [AdaptedBlock(config, decoder.dtype, sequence, layer) for layer in range(config.n_layers)]
        decoder.layers = nnx.List(blocks)
    return decoder


def merge(params: dict[str, Array], config: ModelConfig) -> dict[str, Array]:
    """Return the parameters of the same model without adapters: W + α/r · B A.

    A kernel is stored input × output, so that the product is that of the stored A and B.

    Args:
        params: all parameters by dotted name, those of the adapters included.
        config: with its `lora`; without, the parameters are returned as they are.
    """
    if config.lora is None:
        return params
    merged = {name: p for name, p in params.items() if not is_trained(config, name)}
    for layer in adapter_layers(config):
        a, b = params[f"{layer}.lora_A.kernel"], params[f"{layer}.lora_B.kernel"]
        merged[f"{layer}.kernel"] = merged[f"{layer}.kernel"] + config.lora.scale * (a @ b)
    return merged
