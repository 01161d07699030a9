"""Properties of the machine that both twins need: cores, memory, CPU features, malloc settings."""

import contextlib
import ctypes
import os
import platform
import subprocess
import sys
from functools import cache
from pathlib import Path

__all__ = [
    "bfloat16_products",
    "cpu_features",
    "cpu_name",
    "even_parts",
    "intel_cpu",
    "keep_freed_memory",
    "limit_malloc_arenas",
    "local_processes",
    "memory_bytes",
    "resident",
    "usable_cores",
]


def usable_cores() -> int:
    """Return the number of CPU cores that this process may run on; those of a run on one host share them."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1  # not on macOS
    return max(1, cores // local_processes())


def local_processes() -> int:
    """Return the number of a run's processes on this host, as their launcher says."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


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


def intel_cpu() -> bool:
    """Return whether the CPU is Intel's, for which MKL is written."""
    return "GenuineIntel" in (_cpu_info() or platform.processor())  # the latter on Windows


LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
"""Files with the memory that a container may use, in versions 2 and 1 of Linux's control groups."""


def memory_bytes() -> int:
    """Return the bytes of memory that this process can use: the machine's, or those of its container."""
    found = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for path in map(Path, LIMITS):
        with contextlib.suppress(OSError, ValueError):  # none, or "max"
            found.append(int(path.read_text(encoding="utf-8")))
    return min(found)


def resident(field: str) -> int:
    """Return the bytes of memory that this process holds, or the most that it held at once.

    By Linux's own account, since getrusage passes the parent's peak on; elsewhere both are getrusage's peak.

    Args:
        field: VmRSS for what it holds, VmHWM for the most.
    """
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith(field))
        return int(line.split()[1]) * 1024
    import resource  # not on Windows

    found = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return found if sys.platform == "darwin" else found * 1024


M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8
"""Numbers of parameters in glibc's malloc.h."""
MALLOC_VARIABLES = {
    M_TRIM_THRESHOLD: ("MALLOC_TRIM_THRESHOLD_", "glibc.malloc.trim_threshold"),
    M_MMAP_MAX: ("MALLOC_MMAP_MAX_", "glibc.malloc.mmap_max"),
    M_ARENA_MAX: ("MALLOC_ARENA_MAX", "glibc.malloc.arena_max"),
}
"""Parameter -> the environment variable and the name in GLIBC_TUNABLES by which a user sets it."""


def keep_freed_memory() -> None:
    """Let glibc's malloc keep freed memory from now on, for the next training step, which allocates the same again.

    By default it returns large buffers to the system, which must clear their pages before the next step gets them: up
    to a quarter of a step of jaxlm on a CPU. The price is memory, up to twice as much, since small objects come to lie
    between the buffers. So nothing changes where the processes of this run on this host, each as large as this one,
    have needed a third of what there is.
    """
    if 3 * resident("VmHWM") * local_processes() < memory_bytes():
        _set_malloc(M_TRIM_THRESHOLD, -1)  # never
        _set_malloc(M_MMAP_MAX, 0)


def limit_malloc_arenas(count: int) -> None:
    """Let all threads share a few arenas of glibc's malloc, which would else make up to eight for each core.

    An arena grows to the most that its threads ever held, and scatters what stays over it. Where threads come and go,
    each of many arenas grows in turn, for thousands of steps, though no more is in use. Arenas that exist already stay.

    Args:
        count: maximum number of arenas.
    """
    _set_malloc(M_ARENA_MAX, count)


def _set_malloc(parameter: int, value: int) -> None:
    """Set a parameter of glibc's malloc unless the user did; other C libraries have none."""
    variable, tunable = MALLOC_VARIABLES[parameter]
    chosen = variable in os.environ or tunable in os.environ.get("GLIBC_TUNABLES", "")
    if sys.platform == "linux" and not chosen:
        getattr(ctypes.CDLL(None), "mallopt", lambda name, value: 0)(parameter, value)
