"""Decoding on a CPU: linear layers that share their input become one matmul, with weights laid out for one row.

A decoded token reads every weight once for little arithmetic, so fewer and larger matrices are faster. In training they
gain nothing, and separate layers have the names that every Llama shares.
"""

from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from lmcore.config import ModelConfig
from lmcore.model.quantize import Quantized, WeightFormat, quantized_layers
from torchlm.fast.linear import emulated, laid_out
from torchlm.lora import merge
from torchlm.mlps import GatedMLP
from torchlm.model import Attention, Decoder
from torchlm.norms import NoNorm
from torchlm.quantized import int8_decoder

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


class CallingDecoder(Decoder):
    """A decoder whose output head is called, as its other linear layers are, rather than its weight used."""

    def logits(self, hidden: Float[Tensor, "*B D"]) -> Float[Tensor, "*B V"]:
        """Apply the output head: a matmul in `dtype`, its result in the parameters' dtype."""
        with self.autocast():
            return self.softcap(self.lm_head(self.divide(hidden)).to(hidden.dtype))


MERGED = {Attention: MergedAttention, GatedMLP: MergedGatedMLP}
"""Module -> what replaces it in decoding; a module with a single layer on its input stays."""


def for_decoding(model: Decoder, weights: WeightFormat = "full") -> Decoder:
    """Return a copy whose weights are laid out for the matmuls of decoding, which read each of them once per token.

    Matmuls with the same input are one, with weights in `dtype` already and laid out for the machine, or int8. The
    output head has its own copy. On a CPU without instructions for bfloat16, a model in bfloat16 decodes in float32.
    """
    config = replace(model.config, tie_embeddings=False, lora=None)
    device = model.embed_tokens.weight.device
    with torch.device("meta"):
        copy = CallingDecoder(config, torch.float32 if emulated(device, model.dtype) else model.dtype)
        for block in copy.layers:
            for name in ("self_attn", "mlp"):
                kind = type(block.get_submodule(name))
                setattr(block, name, MERGED.get(kind, kind)(config))
    prepared = _int8(model, copy) if weights == "int8" else _full(model, copy)
    copy.load_state_dict(prepared, assign=True)
    return copy.to(device).requires_grad_(False).eval()


def _full(model: Decoder, copy: Decoder) -> dict[str, Tensor]:
    """Return the copy's parameters."""
    weights = merge({name: p.detach() for name, p in model.named_parameters()}, model.config)
    weights["lm_head.weight"] = model.head.detach()
    for name, module in copy.named_modules():
        if isinstance(module, Merged):
            for kind in dict(module.merged.named_parameters()):
                weights[f"{name}.merged.{kind}"] = torch.cat([weights.pop(f"{name}.{n}.{kind}") for n in module.names])
        elif isinstance(module, nn.Linear):
            weights[f"{name}.weight"] = laid_out(weights[f"{name}.weight"].to(copy.dtype))
    return weights


def _int8(model: Decoder, copy: Decoder) -> dict[str, Tensor]:
    """Replace the copy's linear layers by such with int8 weights, and return its other parameters."""
    linear = {name for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    arrays, weights = {}, {}
    for name, p in model.named_parameters():
        layer, _, kind = name.rpartition(".")
        if layer in linear and kind == "weight":
            arrays[f"{layer}.kernel"] = p.detach().cpu().numpy().T
        else:
            weights[name] = p.detach()
    arrays["embed_tokens.weight"] = weights["embed_tokens.weight"].cpu().numpy()
    layers = quantized_layers(arrays, model.config)
    for name, module in copy.named_modules():
        if isinstance(module, Merged):
            names = [f"{name}.{n}" for n in module.names]
            parts = [layers.pop(n) for n in names]
            layers[f"{name}.merged"] = Quantized(*map(np.concatenate, zip(*parts, strict=True)))
            biases = [weights.pop(f"{n}.bias") for n in names if f"{n}.bias" in weights]
            weights |= {f"{name}.merged.bias": torch.cat(biases)} if biases else {}
    int8_decoder(copy, layers, weights)
    return weights
