"""Facts about the machine that both twins ask for."""

import os
import sys

__all__ = ["restart_with_huge_pages", "usable_cores"]


def usable_cores() -> int:
    """Processor cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def restart_with_huge_pages() -> None:
    """On Linux, run this program anew with an allocator that asks for huge pages, unless GLIBC_TUNABLES is set already.

    A train step allocates and frees its buffers each time: in pages of 4 KiB, the kernel spends a sixth of the step
    on handing them out. glibc reads the setting only when a program starts; the process keeps its number.
    """
    if sys.platform == "linux" and "GLIBC_TUNABLES" not in os.environ:
        os.environ["GLIBC_TUNABLES"] = "glibc.malloc.hugetlb=1"
        os.execv(sys.executable, sys.orig_argv)
