"""Matmuls on a CPU: in float32 by oneDNN where it is faster than MKL, which `F.linear` uses; elsewhere by `F.linear`.

All of torch's private operators that this package calls are here. Where torch lacks them, `F.linear` is used.
"""

import platform
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Float32, Shaped
from torch import Tensor

from lmcore.hardware import bfloat16_products, intel_cpu

__all__ = [
    "MAX_INT8_ROWS",
    "emulated",
    "int8_linear",
    "keeps_int8",
    "laid_out",
    "linear",
    "matmul",
]

ONEDNN = torch.backends.mkldnn.is_available() and all(
    hasattr(torch.ops.mkldnn, name)
    for name in ("_is_mkldnn_bf16_supported", "_linear_pointwise", "_reorder_linear_weight")
)
"""Whether torch has oneDNN, and under the private names by which it is called here."""
FAST_MKL = torch.backends.mkl.is_available() and intel_cpu()
"""Whether MKL multiplies many rows faster than oneDNN: on Intel's processors by a tenth, on AMD's it is slower."""
ARM = platform.machine() in ("arm64", "aarch64")
CPU_BFLOAT16 = (
    ONEDNN
    and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    and (ARM or getattr(torch.cpu, "_is_avx512_bf16_supported", bfloat16_products)())
)
"""Whether the processor has bfloat16 instructions that oneDNN uses. Without, bfloat16 factors are multiplied in
float32, which is exact, and the sums rounded: oneDNN, which emulates the instructions where there is AVX-512, takes
four times as long, torch's own matmul fifty times."""
INT8 = hasattr(torch.ops.aten, "_weight_int8pack_mm")
"""Whether torch has a matmul that converts int8 weights as it reads them; fast on a CPU for bfloat16 activations."""
INT8_INPUTS = 16
"""Of a number of inputs that this does not divide, that matmul would read past the end."""
MAX_INT8_ROWS = 4
"""Rows up to which that matmul is faster than one with bfloat16 weights."""
MIN_ROWS = 64
"""Below, oneDNN is the faster one with a matrix that has more outputs than inputs, and with a single row with none."""


def linear(x: Float[Tensor, "*B I"], weight: Float[Tensor, "O I"]) -> Float[Tensor, "*B O"]:
    """Return x weightᵀ, in the dtype that x or autocast asks for, or in that of a weight from `laid_out`."""
    if weight.is_mkldnn:
        return torch.ops.mkldnn._linear_pointwise(x.to(weight.dtype), weight, None, "none", [], "")
    outputs, inputs = weight.shape
    rows = x.numel() // inputs
    if rows < 2 or x.device.type != "cpu":
        return F.linear(x, weight)
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype
    if dtype == torch.bfloat16 and not CPU_BFLOAT16:
        with torch.autocast("cpu", enabled=False):
            return linear(x.to(dtype).float(), weight.to(dtype).float()).to(dtype)
    faster = not FAST_MKL if rows >= MIN_ROWS else outputs > inputs
    by_onednn = ONEDNN and dtype == torch.float32 and faster
    return onednn_linear(x, weight) if by_onednn else F.linear(x, weight)


def matmul(a: Float[Tensor, "*B I J"], b: Float[Tensor, "*B J K"]) -> Float[Tensor, "*B I K"]:
    """Return a b, in their common dtype."""
    if a.dtype == torch.bfloat16 and a.device.type == "cpu" and not CPU_BFLOAT16:
        return (a.float() @ b.float()).to(a.dtype)
    return a @ b


def laid_out(weight: Float[Tensor, "O I"]) -> Float[Tensor, "O I"]:
    """Return the same weight in the layout that a matmul with one row reads fastest; it cannot be trained.

    On a CPU that is oneDNN's own order in bfloat16, where that is no emulation, and, for more outputs than inputs,
    input × output in float32: for an output head about three times faster than output × input, for smaller matrices
    less. In float32, oneDNN's order gained nothing.
    """
    if weight.device.type != "cpu":
        return weight
    if weight.dtype == torch.bfloat16:
        weight = weight.contiguous()
        return torch.ops.mkldnn._reorder_linear_weight(weight) if CPU_BFLOAT16 else weight
    return weight.T.contiguous().T if len(weight) > weight.shape[1] else weight


def emulated(device: torch.device, dtype: torch.dtype) -> bool:
    """Return whether this device has no instructions for matmuls in `dtype`, so that float32 is faster."""
    return device.type == "cpu" and dtype == torch.bfloat16 and not CPU_BFLOAT16


def keeps_int8(inputs: int, device: torch.device, dtype: torch.dtype) -> bool:
    """Return whether `int8_linear` reads int8 weights faster than weights that were converted to `dtype` before.

    Args:
        inputs: number of inputs of the layer.
        device: of the matmul.
        dtype: of the matmul.
    """
    fits = inputs % INT8_INPUTS == 0 and device.type == "cpu" and dtype == torch.bfloat16
    return INT8 and CPU_BFLOAT16 and fits


def int8_linear(
    x: Float[Tensor, "*B I"], values: Shaped[Tensor, "O I"], scales: Float32[Tensor, " O"]
) -> Float[Tensor, "*B O"]:
    """Return (x valuesᵀ) · scales, in x's dtype; the matmul is rounded to it before it is scaled.

    Args:
        x: activations.
        values: from -127 to 127, as int8, or converted to x's dtype.
        scales: of the output channels.
    """
    inputs = x.shape[-1]
    rows = x.numel() // inputs
    if values.dtype == torch.int8 and rows <= MAX_INT8_ROWS and keeps_int8(inputs, x.device, x.dtype):
        packed = torch.ops.aten._weight_int8pack_mm(x.reshape(rows, -1), values, _ones(len(values)))
        y = packed.view(*x.shape[:-1], -1)
    else:
        y = linear(x, values.to(x.dtype) if values.dtype == torch.int8 else values)
    return (y * scales).to(x.dtype)


@cache
def _ones(count: int) -> Tensor:
    """Return scales that change nothing: the operator would take the real ones in bfloat16 alone."""
    return torch.ones(count, dtype=torch.bfloat16)


@torch.library.custom_op("twinlm::onednn_linear", mutates_args=())
def onednn_linear(x: Tensor, weight: Tensor) -> Tensor:
    """Compute `linear` as a custom operator, which torch.compile leaves as it is."""
    return torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")


@onednn_linear.register_fake
def _shape(x: Tensor, weight: Tensor) -> Tensor:
    return x.new_empty(*x.shape[:-1], len(weight))


def _save(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
    x, weight = inputs
    ctx.save_for_backward(x if weight.requires_grad else None, weight)


def _gradients(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None]:
    """Return the gradients with respect to x and weight; the weight's sums over all rows, which MKL computes faster."""
    x, weight = ctx.saved_tensors
    return onednn_linear(grad, weight.T), None if x is None else grad.flatten(0, -2).T @ x.flatten(0, -2)


onednn_linear.register_autograd(_gradients, setup_context=_save)
