"""Low-rank adapters: W x + α/r · B A x, of which A and B are trained and W is not (Hu et al. 2021, arXiv:2106.09685).

They are added to a decoder from outside: without `model.lora` no class of this file is in it. Shape letters as in
`torchlm.model`; r is the rank.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from jaxtyping import Float
from torch import Tensor, nn

from lmcore.config import ADAPTED, LoraConfig, ModelConfig
from lmcore.model.lora import adapter_layers, is_trained
from torchlm.dropout import Key, dropout, split
from torchlm.linear import BiasedLinear, Linear
from torchlm.model import Attend, Block, Decoder
from torchlm.scales import unchanged

__all__ = ["AdaptedBlock", "Adapter", "LoraBiasedLinear", "LoraLinear", "add_adapters", "merge"]


class Adapter(nn.Module):
    """What an adapted layer adds to the linear layer that follows it in the order of base classes."""

    def __init__(self, in_dim: int, out_dim: int, lora: LoraConfig):
        super().__init__(in_dim, out_dim)
        self.lora_A = Linear(in_dim, lora.rank)
        self.lora_B = Linear(lora.rank, out_dim)
        self.scale, self.rate = lora.scale, lora.dropout
        self.mask_key: Key = None

    def forward(self, x: Float[Tensor, "*B I"]) -> Float[Tensor, "*B O"]:
        y = super().forward(x)
        return y + self.scale * self.lora_B(self.lora_A(dropout(x, self.rate, self.mask_key)))


class LoraLinear(Adapter, Linear):
    """A linear layer without bias, with an adapter."""


class LoraBiasedLinear(Adapter, BiasedLinear):
    """A linear layer with a bias, and with an adapter."""


LORA: dict[type, Callable[..., nn.Module]] = {Linear: LoraLinear, BiasedLinear: LoraBiasedLinear}
"""Kind of linear layer -> the same with an adapter."""


class AdaptedBlock(Block):
    """A block whose linear layers that `model.lora.targets` names have adapters."""

    def __init__(self, config: ModelConfig):
        super().__init__(config)
        assert config.lora is not None
        for name in config.lora.targets:
            module = self.get_submodule(ADAPTED[name])
            layer = getattr(module, name)
            setattr(module, name, LORA[type(layer)](layer.in_features, layer.out_features, config.lora))

    def forward(
        self,
        x: Float[Tensor, "B T D"],
        cos: Float[Tensor, "#B T H"],
        sin: Float[Tensor, "#B T H"],
        attend: Attend,
        key: Key = None,
        keep: Callable[[Tensor], Tensor] = unchanged,
    ) -> Float[Tensor, "B _ D"]:
        """Apply the block as `Block` does; the key switches the adapters' dropout on, too."""
        with self.masked(key):
            return super().forward(x, cos, sin, attend, key, keep)

    @contextmanager
    def masked(self, key: Key) -> Iterator[None]:
        """Give each adapter its own random key, for as long as the context lasts."""
        layers = (getattr(getattr(self, module), name, None) for name, module in ADAPTED.items())
        adapters = [layer for layer in layers if isinstance(layer, Adapter)]
        _, _, *keys = split(key, 2 + len(adapters))  # the first two are those of the block's own masks
        for adapter, own in zip(adapters, keys, strict=True):
            adapter.mask_key = own
        yield
        for adapter in adapters:
            adapter.mask_key = None


def add_adapters(decoder: Decoder) -> Decoder:
    """Give the decoder's blocks the adapters of `model.lora`, if there are any; return the decoder."""
    config = decoder.config
    if config.lora is not None:
        blocks = [AdaptedBlock(config) for _ in range(config.n_layers)]
        decoder.layers = nn.ModuleList(blocks).to(decoder.embed_tokens.weight.dtype)
        for name, p in decoder.named_parameters():
            p.requires_grad_(is_trained(config, name))
    return decoder


def merge(params: dict[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
    """Return the parameters of the same model without adapters: W + α/r · B A.

    Args:
        params: all parameters by dotted name, those of the adapters included.
        config: with its `lora`; without, the parameters are returned as they are.
    """
    if config.lora is None:
        return params
    merged = {name: p for name, p in params.items() if not is_trained(config, name)}
    for layer in adapter_layers(config):
        a, b = params[f"{layer}.lora_A.weight"], params[f"{layer}.lora_B.weight"]
        merged[f"{layer}.weight"] = merged[f"{layer}.weight"] + config.lora.scale * (b @ a)
    return merged
