"""Linear layers with int8 weights, for decoding: a matmul with the values, then one scale for each output channel.

`lmcore.model.quantize` computes values and scales, for both twins. The layers replace a decoder's from outside.
"""

from collections.abc import Callable, Mapping

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lmcore.model.quantize import Quantized
from torchlm.fast.linear import MAX_INT8_ROWS, int8_linear, keeps_int8, laid_out
from torchlm.linear import BiasedLinear, Linear
from torchlm.model import Decoder

__all__ = ["Int8BiasedLinear", "Int8Linear", "int8_decoder"]


class Int8Linear(nn.Module):
    """A matmul with int8 values, converted in it, without bias; its result is scaled."""

    values: Tensor
    scales: Tensor
    for_batch: Tensor | None
    """The values in the dtype of the matmuls, for many sequences."""

    def __init__(self, quantized: Quantized, dtype: torch.dtype, device: torch.device):
        super().__init__()
        values, scales = (torch.from_numpy(array).to(device) for array in quantized)
        kept = keeps_int8(values.shape[1], device, dtype)
        values = values if kept else laid_out(values.to(dtype))
        self.register_buffer("values", values, persistent=False)
        self.register_buffer("scales", scales, persistent=False)
        self.register_buffer("for_batch", None if kept else values, persistent=False)
        self.dtype = dtype

    def forward(self, x: Float[Tensor, "*B I"]) -> Float[Tensor, "*B O"]:
        if len(x) <= MAX_INT8_ROWS:
            return int8_linear(x.to(self.dtype), self.values, self.scales)
        if self.for_batch is None:  # converted for every token of so many sequences, they would take longer
            self.for_batch = laid_out(self.values.to(self.dtype))
        return int8_linear(x.to(self.dtype), self.for_batch, self.scales)


class Int8BiasedLinear(Int8Linear):
    """A matmul with int8 values, its scale, then a bias."""

    bias: Tensor

    def __init__(self, quantized: Quantized, dtype: torch.dtype, device: torch.device, bias: Tensor):
        super().__init__(quantized, dtype, device)
        self.register_buffer("bias", bias.to(device), persistent=False)

    def forward(self, x: Float[Tensor, "*B I"]) -> Float[Tensor, "*B O"]:
        y = super().forward(x)
        return y + self.bias.to(y.dtype)


INT8: dict[type, Callable[..., nn.Module]] = {Linear: Int8Linear, BiasedLinear: Int8BiasedLinear}
"""Kind of linear layer -> the same with int8 weights."""


def int8_decoder(decoder: Decoder, layers: Mapping[str, Quantized], weights: dict[str, Tensor]) -> Decoder:
    """Give the decoder linear layers with int8 weights, the output head included; return the decoder.

    Args:
        decoder: without adapters; its layers' parameters may be on the meta device. It must call its output head.
        layers: dotted name of each of its linear layers -> its weights.
        weights: the decoder's other parameters by name; biases of linear layers are taken out of it.
    """
    device = weights["embed_tokens.weight"].device
    for name, quantized in layers.items():
        kind = INT8[type(decoder.get_submodule(name))]
        bias = [weights.pop(f"{name}.bias")] if kind is Int8BiasedLinear else []
        decoder.set_submodule(name, kind(quantized, decoder.dtype, device, *bias))
    return decoder
