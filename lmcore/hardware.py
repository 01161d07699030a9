"""Properties of the machine that both twins need: cores, memory, CPU features, malloc settings."""

import ctypes
import os
import platform
import subprocess
import sys
from functools import cache
from pathlib import Path

from lmcore.errors import note

__all__ = [
    "bfloat16_products",
    "cpu_features",
    "cpu_name",
    "even_parts",
    "limit_malloc_arenas",
    "malloc_settings",
    "memory_bytes",
    "restart_with_malloc_settings",
    "usable_cores",
]


def usable_cores() -> int:
    """Return the number of CPU cores that this process may run on; those of a run on one host share them."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1  # not on macOS
    return max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def even_parts(rows: int, max_parts: int) -> int:
    """Return the largest number of equal parts, at most `max_parts`, that `rows` can be split into."""
    return max(n for n in range(1, max_parts + 1) if rows % n == 0)


@cache
def _cpu_info() -> str:
    """Return Linux's description of the CPU, or macOS's in lines of the same form."""
    if sys.platform == "darwin":
        done = subprocess.run(["/usr/sbin/sysctl", "machdep.cpu", "hw.optional"], capture_output=True, text=True)
        return done.stdout
    info = Path("/proc/cpuinfo")
    return info.read_text(encoding="utf-8") if info.exists() else ""


def cpu_name() -> str:
    """Return the model name of the CPU."""
    lines = [line.partition(":") for line in _cpu_info().splitlines()]
    named = (value.strip() for name, _, value in lines if name.strip() in ("model name", "machdep.cpu.brand_string"))
    return next(named, "") or platform.processor() or platform.machine()


FEATURES = {
    "x86": {"AVX2": "avx2", "AVX-512": "avx512f", "AVX-512 BF16": "avx512_bf16", "AMX BF16": "amx_bf16"},
    "arm": {"NEON": "asimd", "BF16": "bf16", "SVE": "sve"},
}
"""Instruction sets that matter to matmuls -> their flags in Linux's /proc/cpuinfo."""
MACOS = {"avx2": "avx2_0", "asimd": "advsimd", "bf16": "arm.feat_bf16"}
"""Flags of Linux -> those of macOS in lower case, where they differ."""


def cpu_features() -> dict[str, bool]:
    """Return which instruction sets that matter to matmuls the CPU has; empty if the system does not say."""
    family = "arm" if platform.machine().lower() in ("aarch64", "arm64") else "x86"
    named = FEATURES[family]
    if sys.platform == "darwin":
        pairs = [line.lower().partition(":") for line in _cpu_info().splitlines()]
        flags = {name.removeprefix("hw.optional.") for name, _, value in pairs if value.strip() == "1"}
        named = {feature: MACOS.get(flag, flag) for feature, flag in named.items()}
    else:
        flags = set(_cpu_info().split())
    return {feature: flag in flags for feature, flag in named.items()} if flags else {}


def bfloat16_products() -> bool:
    """Return whether the CPU has bfloat16 matmul instructions: x86 with AVX-512 BF16, as Linux reports it."""
    return cpu_features().get("AVX-512 BF16", False)


def memory_bytes() -> int:
    """Return the main memory of the machine in bytes."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def malloc_settings() -> dict[str, str]:
    """Return the environment variables that make glibc's malloc use huge pages, for training.

    Empty on other systems than Linux, and if GLIBC_TUNABLES is already set. Each training step allocates and frees its
    buffers; with pages of 4 KiB, the kernel spends a sixth of the step on page faults.
    """
    applies = sys.platform == "linux" and "GLIBC_TUNABLES" not in os.environ
    return {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"} if applies else {}


M_ARENA_MAX = -8
"""Number of the parameter in glibc's malloc.h."""


def limit_malloc_arenas(count: int) -> None:
    """Let all threads share a few arenas of glibc's malloc, which would else make up to eight for each core.

    An arena grows to the most that its threads ever held, and scatters what stays over it. Where threads come and go,
    each of many arenas grows in turn, for thousands of steps, though no more is in use. Arenas that exist already stay;
    MALLOC_ARENA_MAX and GLIBC_TUNABLES come first, and other C libraries have no such limit.

    Args:
        count: maximum number of arenas.
    """
    chosen = "MALLOC_ARENA_MAX" in os.environ or "glibc.malloc.arena_max" in os.environ.get("GLIBC_TUNABLES", "")
    if sys.platform == "linux" and not chosen:
        getattr(ctypes.CDLL(None), "mallopt", lambda name, value: 0)(M_ARENA_MAX, count)


LAUNCHERS = ("TORCHELASTIC_RUN_ID", "SLURM_PROCID", "OMPI_COMM_WORLD_RANK", "PMI_RANK", "WORLD_SIZE")
"""Environment variables that launchers set for each of their processes."""


def _observed() -> bool:
    """Return whether a debugger, profiler or coverage tool is attached, which a restart would detach."""
    monitoring = getattr(sys, "monitoring", None)  # Python 3.12
    tools = monitoring is not None and any(monitoring.get_tool(number) is not None for number in range(3))
    return tools or sys.gettrace() is not None or sys.getprofile() is not None


def restart_with_malloc_settings() -> None:
    """Restart this program with `malloc_settings`, which glibc reads only at startup; the process id stays the same.

    A note says so. There is no restart if TWINLM_RESTART is 0, under a debugger or profiler, or if a launcher started
    this process.
    """
    added = malloc_settings()
    if not added or os.environ.get("TWINLM_RESTART") == "0" or _observed() or any(map(os.environ.get, LAUNCHERS)):
        return
    settings = " ".join(f"{name}={value}" for name, value in added.items())
    note(f"restarted with {settings}, for faster steps; TWINLM_RESTART=0 prevents this")
    os.environ.update(added)
    os.execv(sys.executable, sys.orig_argv)
