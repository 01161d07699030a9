"""Decoding on a CPU: linear layers that share their input become one matmul, with weights laid out for one row.

A decoded token reads every weight once for little arithmetic, so fewer and larger matrices are faster. In training they
gain nothing, and separate layers have the names that every Llama shares.
"""

from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lmcore.config import ModelConfig
from torchlm.fast.linear import laid_out
from torchlm.lora import merge
from torchlm.mlps import GatedMLP
from torchlm.model import Attention, Decoder
from torchlm.norms import NoNorm

__all__ = ["for_decoding"]


class Merged(nn.Module):
    """Base of the merged parts: one linear layer, `merged`, in place of those named in `names`."""

    names: tuple[str, ...]

    def __init__(self, config: ModelConfig):
        super().__init__(config)
        layers = [getattr(self, name) for name in self.names]
        self.widths = [layer.out_features for layer in layers]
        self.merged = type(layers[0])(config.dim, sum(self.widths))
        for name in self.names:
            delattr(self, name)

    def project(self, x: Float[Tensor, "B T D"]) -> tuple[Tensor, ...]:
        """Return the outputs of all merged layers, in the order of `names`."""
        return self.merged(x).split(self.widths, dim=-1)


class MergedAttention(Merged, Attention):
    """Attention with queries, keys and values from one matmul, and one rotation, unless a norm comes between."""

    names = ("q_proj", "k_proj", "v_proj")

    def heads(
        self, x: Float[Tensor, "B T D"], cos: Float[Tensor, "#B T _"], sin: Float[Tensor, "#B T _"]
    ) -> tuple[Float[Tensor, "B T N H"], Float[Tensor, "B T K H"], Float[Tensor, "B T K H"]]:
        """Return queries, keys and values, as `Attention.heads` does."""
        n, k, _ = (width // self.head_dim for width in self.widths)
        heads = self.merged(x).view(*x.shape[:2], n + 2 * k, self.head_dim)
        if isinstance(self.q_norm, NoNorm):
            queries_keys, values = heads.split([n + k, k], dim=2)
            queries, keys = self.rotate(queries_keys, cos, sin).split([n, k], dim=2)
            return self.scale(queries), keys, values
        queries, keys, values = heads.split([n, k, k], dim=2)
        rotated = self.rotate(self.q_norm(queries), cos, sin), self.rotate(self.k_norm(keys), cos, sin)
        return self.scale(rotated[0]), rotated[1], values


class MergedGatedMLP(Merged, GatedMLP):
    """A gated feed-forward layer with gate and up projection in one matmul."""

    names = ("gate_proj", "up_proj")


MERGED = {Attention: MergedAttention, GatedMLP: MergedGatedMLP}
"""Module -> what replaces it in decoding; a module with a single layer on its input stays."""


def for_decoding(model: Decoder) -> Decoder:
    """Return a copy whose weights are laid out for the matmuls of decoding, which read each of them once per token.

    Matmuls with the same input are one, with weights in `dtype` already and laid out for the machine. The output head
    has its own copy.
    """
    config = replace(model.config, tie_embeddings=False, lora=None)
    with torch.device("meta"):
        copy = Decoder(config, model.dtype)
        for block in copy.layers:
            for name in ("self_attn", "mlp"):
                kind = type(block.get_submodule(name))
                setattr(block, name, MERGED.get(kind, kind)(config))
    weights = merge({name: p.detach() for name, p in model.named_parameters()}, model.config)
    weights["lm_head.weight"] = model.head.detach()
    for name, module in copy.named_modules():
        if isinstance(module, Merged):
            for kind in dict(module.merged.named_parameters()):
                weights[f"{name}.merged.{kind}"] = torch.cat([weights.pop(f"{name}.{n}.{kind}") for n in module.names])
        elif isinstance(module, nn.Linear):
            weights[f"{name}.weight"] = laid_out(weights[f"{name}.weight"].to(model.dtype))
    copy.load_state_dict(weights, assign=True)
    return copy.to(model.embed_tokens.weight.device).requires_grad_(False).eval()
