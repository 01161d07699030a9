"""First calls of torch's vector math, each in a process that has computed nothing; `test_math_kernels` starts this.

`python first_calls.py NAMES COUNT [set_up] [fault]` imports torch and forks COUNT children, a few milliseconds each,
which take the functions in NAMES (separated by commas) in turn, in float64 and float32. A child wakes torch's threads,
calls its function twice and prints what it found: how many values of the first call differ from the second's, and the
first's largest relative error, in units of rounding, against long double. With `set_up`, torchlm's own set-up comes
before; with `fault`, the first call meets the number that lies in MKL's memory between the two writes that
`choose_math_kernels` describes.

Where the processor has AVX-512 and MKL can be asked, a child answers MKL's question as an Intel processor does: 9 in
MKL's list, row 5 in its tables. An AMD processor is 0 and row 0, and never sees the fault.
"""

import ctypes
import itertools
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from lmcore.config import TrainConfig
from torchlm.device import set_up_torch

INTEL = 9
"""An Intel processor with AVX-512 in MKL's list; also the row in a function's table that it must not be taken for."""
SHAPE = (3, 32, 512)

CALLS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[np.ndarray], np.ndarray]]] = {
    "logsumexp": (lambda x: torch.logsumexp(x, -1), lambda x: np.log(np.exp(x).sum(-1))),
    "exp": (torch.exp, np.exp),
    "log": (torch.log, np.log),
    "sin": (torch.sin, np.sin),
    "sqrt": (torch.sqrt, np.sqrt),
}
"""Name -> the call in torch, the same in NumPy."""


class Mkl(NamedTuple):
    """Two numbers in MKL's memory, −1 until they are known."""

    listed: ctypes.c_int
    """Which processor of MKL's list this is."""
    row: ctypes.c_int
    """Which row of a function's table of kernels it takes."""


def find_mkl() -> Mkl | None:
    """Where the MKL in torch keeps its choice: what the first instruction of each of two functions reads, or None."""
    library = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
    if not library.exists():
        return None
    handle = ctypes.CDLL(str(library))
    found = []
    for symbol, opening, length in (
        ("mkl_serv_vml_cpu_detect", b"\x83\x3d", 7),  # cmpl $0, offset(%rip)
        ("mkl_vml_serv_cpu_detect", b"\x8b\x05", 6),  # mov offset(%rip), %eax
    ):
        if not hasattr(handle, symbol):
            return None
        address = ctypes.cast(getattr(handle, symbol), ctypes.c_void_p).value
        if address is None or ctypes.string_at(address, 2) != opening:
            return None
        found.append(ctypes.c_int.from_address(address + length + ctypes.c_int.from_address(address + 2).value))
    return Mkl(*found)


def answer_as_intel(mkl: Mkl | None) -> bool:
    """Let MKL hold the processor for an Intel with AVX-512, where that does no harm; whether it does."""
    if mkl is None or torch.backends.cpu.get_cpu_capability() != "AVX512":
        return False
    torch.ones(8, 8) @ torch.ones(8, 8)  # matmuls look at the processor too, and would overwrite what follows
    mkl.listed.value = INTEL
    return True


def first_call(name: str, dtype: torch.dtype, mkl: Mkl | None, options: set[str]) -> dict[str, object]:
    """Call one function twice in a process that has computed nothing, and compare."""
    function, exact = CALLS[name]
    floats = np.float64 if dtype == torch.float64 else np.float32
    values = np.random.default_rng(0).uniform(0.1, 4, SHAPE).astype(floats)
    x, factor = torch.from_numpy(values), torch.from_numpy(np.ones((256, 256)))
    intel = answer_as_intel(mkl)
    if "set_up" in options:
        set_up_torch(TrainConfig(device="cpu"))
    row = mkl.row.value if mkl else None
    (factor @ factor).sum()  # the threads are awake and wait for work
    if "fault" in options and mkl:
        torch.exp(x[0, 0, :1])
        right, mkl.row.value = mkl.row.value, INTEL
        one = function(x)
        mkl.row.value = right
    else:
        one = function(x)
    two = function(x)
    wanted = exact(values.astype(np.longdouble))
    error = float((np.abs(one.numpy() - wanted) / np.abs(wanted)).max() / np.finfo(floats).eps)
    changed = int((one != two).sum())
    return {"call": f"{name} {dtype}", "changed": changed, "error": error, "row": row, "intel": intel}


def main(names: list[str], count: int, options: set[str]) -> None:
    """Fork the children one after another; each prints a line of JSON."""
    mkl = find_mkl()
    kinds = itertools.cycle(itertools.product(names, (torch.float64, torch.float32)))
    for name, dtype in itertools.islice(kinds, count):
        child = os.fork()
        if child == 0:
            print(json.dumps(first_call(name, dtype, mkl, options)), flush=True)
            os._exit(0)
        if status := os.waitpid(child, 0)[1]:
            sys.exit(f"{name} {dtype}: the child ended with status {status}")


if __name__ == "__main__":
    main(sys.argv[1].split(","), int(sys.argv[2]), set(sys.argv[3:]))
