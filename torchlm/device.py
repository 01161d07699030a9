"""The device that a model runs on, what each kind can do, and torch's settings for it.

Support for MPS follows PyTorch's documentation and issues: no float64, no gradient scaler, autocast to bfloat16. What
it lacks runs on the CPU, by PYTORCH_ENABLE_MPS_FALLBACK, which the package sets on a Mac.
"""

import os

import numpy as np
import torch
from jaxtyping import Int32, Int64
from torch import Tensor

from lmcore.config import Precision, TrainConfig
from lmcore.errors import UserError
from lmcore.hardware import usable_cores
from torchlm.math_kernels import choose_math_kernels

__all__ = [
    "check_precision",
    "choose_device",
    "device_name",
    "make_scaler",
    "set_up_torch",
    "to_device",
]

PRECISIONS: dict[str, tuple[Precision, ...]] = {
    "cuda": ("float32", "bfloat16", "float16", "float64"),
    "mps": ("float32", "bfloat16"),
    "cpu": ("float32", "bfloat16", "float64"),
}
"""Kind of device -> precisions it can train in; float16 needs a gradient scaler, which only CUDA has."""


def choose_device(wanted: str = "auto") -> torch.device:
    """Return CUDA, else MPS, else the CPU; or the kind of device that is wanted.

    Raises:
        UserError: there is no such device here.
    """
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if wanted == "auto":
        return torch.device(next(kind for kind, present in available.items() if present))
    if not available[wanted]:
        found = " and ".join(kind for kind, present in available.items() if present)
        raise UserError(f"train.device: found {wanted!r}, expected what torch sees on this machine: {found}, or auto")
    return torch.device(wanted)


def check_precision(kind: str, precision: Precision) -> None:
    """Check that a kind of device can train in a precision.

    Raises:
        UserError: it cannot.
    """
    if precision not in PRECISIONS[kind]:
        raise UserError(
            f"train.precision: found {precision!r}, expected one of {', '.join(PRECISIONS[kind])} on {kind}; "
            f"choose one of them or another train.device"
        )


def set_up_torch(train: TrainConfig) -> torch.device:
    """Set up torch for the whole process (math kernels, threads, number types, determinism); return the device to use.

    Raises:
        UserError: there is no such device, or it lacks the precision.
    """
    device = choose_device(train.device)
    check_precision(device.type, train.precision)
    choose_math_kernels()
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(usable_cores())
    torch.set_float32_matmul_precision("highest")  # float32 means float32: no TF32
    if train.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what cuBLAS asks for, before its first use
    if torch.are_deterministic_algorithms_enabled() != train.deterministic:  # the call imports TorchInductor: a second
        torch.use_deterministic_algorithms(train.deterministic)
    return device


def device_name(device: torch.device) -> str:
    """Return the name of a device, for people to read."""
    if device.type == "cuda":
        return f"1 × {torch.cuda.get_device_name(device)}"
    return f"1 × {device.type}" + (f" ({torch.get_num_threads()} threads)" if device.type == "cpu" else "")


def make_scaler(device: torch.device, precision: Precision) -> torch.amp.GradScaler | None:
    """Return a gradient scaler for float16, whose small gradients would underflow; None for other precisions."""
    return torch.amp.GradScaler(device.type) if precision == "float16" else None


def to_device(array: Int32[np.ndarray, "..."], device: torch.device) -> Int64[Tensor, "..."]:
    """Copy token ids to the device, without waiting for it."""
    tokens = torch.from_numpy(array).long()  # the dtype that torch's losses take
    return tokens.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tokens.to(device)
