"""The first call of each function of MKL's vector math, which must not be made by several threads at once."""

import torch

__all__ = ["VECTOR_MATH", "choose_math_kernels"]

VECTOR_MATH = (
    *(torch.exp, torch.log, torch.log2, torch.log10, torch.sqrt, torch.sin, torch.cos, torch.tan, torch.tanh),
    *(torch.asin, torch.acos, torch.atan, torch.erf, torch.erfc, torch.erfinv, torch.trunc),
)
"""What torch leaves to MKL's vector math on an x86 CPU, in float32 and float64 (`aten/src/ATen/cpu/vml.h`)."""


def choose_math_kernels() -> None:
    """Let MKL choose the kernels of its vector math on this thread, before several threads ask for them at once.

    MKL 2024, which torch 2.13 contains, stores the kind of processor in two writes: the number in its list of all
    processors, then the row of that in each function's table of kernels. A thread that asks in between on an Intel
    processor with AVX-512 takes the kernel at row 9, in the part of low accuracy: half of the digits of an
    exponential, for that one call (https://github.com/pytorch/pytorch/issues/188792). One element is never shared
    among threads, so that afterwards the choice stands.
    """
    for dtype in (torch.float32, torch.float64):
        half = torch.full((1,), 0.5, dtype=dtype)
        for function in VECTOR_MATH:
            function(half)
