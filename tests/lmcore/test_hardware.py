"""Settings of malloc, which a user's come before, and the cores that a process may use."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from lmcore import hardware
from lmcore.hardware import memory_bytes, resident, usable_cores


def _environment(settings: dict[str, str]) -> dict[str, str]:
    """These settings of malloc, and no others."""
    ours = {name: value for name, value in os.environ.items() if not name.startswith(("GLIBC_TUNABLES", "MALLOC_"))}
    return ours | {"PYTHONPATH": str(Path(__file__).parents[2])} | settings


KEEPS = """
import resource
from lmcore import hardware
hardware.memory_bytes = lambda: {enough} * hardware.resident("VmHWM")
hardware.keep_freed_memory()
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    bytearray(2**28)[:: 2**12] = bytes(2**16)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(faults(), faults())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc only")
@pytest.mark.parametrize(
    ("settings", "enough", "kept"),
    [
        ({}, 4, True),
        ({}, 2, False),
        ({"MALLOC_MMAP_MAX_": "65536"}, 4, False),
        ({"GLIBC_TUNABLES": "glibc.malloc.mmap_max=65536"}, 4, False),
    ],
)
def test_freed_memory_is_kept_where_there_is_enough_unless_the_user_says_otherwise(
    settings: dict[str, str], enough: int, kept: bool
):
    command = [sys.executable, "-c", KEEPS.format(enough=enough)]
    done = subprocess.run(command, env=_environment(settings), capture_output=True, text=True, check=True)
    first, second = map(int, done.stdout.split())
    assert first > 100  # of at least 2 MiB each
    assert (second < first / 10) == kept


ARENAS = """
import ctypes, threading
from lmcore.hardware import limit_malloc_arenas
limit_malloc_arenas(1)
together = threading.Barrier(6)
def use():
    kept = bytearray(9000)
    together.wait()
threads = [threading.Thread(target=use) for _ in range(6)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
ctypes.CDLL(None).malloc_stats()
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc only")
@pytest.mark.parametrize(
    ("settings", "expected"),
    [({}, 1), ({"MALLOC_ARENA_MAX": "3"}, 3), ({"GLIBC_TUNABLES": "glibc.malloc.arena_max=3"}, 3)],
)
def test_all_threads_share_an_arena_unless_the_user_says_otherwise(settings: dict[str, str], expected: int):
    command = [sys.executable, "-c", ARENAS]
    done = subprocess.run(command, env=_environment(settings), capture_output=True, text=True, check=True)
    assert done.stderr.count("Arena ") == expected, done.stderr


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux tells what is resident")
def test_resident_memory_grows_by_what_is_held():
    before = resident("VmRSS")
    held = np.ones(8_000_000)
    assert held.nbytes * 0.9 < resident("VmRSS") - before < held.nbytes * 1.5
    assert resident("VmHWM") >= resident("VmRSS")


@pytest.mark.parametrize(("limit", "expected"), [("1048576\n", 1 << 20), ("max\n", None), (None, None)])
def test_memory_is_that_of_the_container(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str | None, expected: int | None
):
    monkeypatch.setattr(hardware, "LIMITS", ())
    whole = memory_bytes()
    monkeypatch.setattr(hardware, "LIMITS", (str(tmp_path / "memory.max"),))
    if limit is not None:
        (tmp_path / "memory.max").write_text(limit)
    assert memory_bytes() == (expected or whole)


def test_the_processes_of_a_run_share_the_cores_of_their_host(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    cores = usable_cores()
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert usable_cores() == max(1, cores // 2)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(cores + 1))
    assert usable_cores() == 1
