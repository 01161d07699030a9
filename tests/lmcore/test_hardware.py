"""Restarts for the settings of malloc: once, as the same process, with the same arguments; and few arenas."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from lmcore.hardware import usable_cores

PROGRAM = """
import os, sys
from lmcore.hardware import restart_with_malloc_settings
print("begins", os.getpid(), flush=True)
restart_with_malloc_settings()
print("runs", os.getpid(), sys.argv[1:], os.environ.get("GLIBC_TUNABLES"))
"""


SET = "glibc.malloc.hugetlb=1"


def _kept() -> dict[str, str]:
    """This environment without what decides on a restart, such as a tracer of covered lines."""
    decisive = ("GLIBC_TUNABLES", "TWINLM_RESTART", "COVERAGE")
    return {name: value for name, value in os.environ.items() if not name.startswith(decisive)}


@pytest.mark.skipif(sys.platform != "linux", reason="Linux only")
@pytest.mark.parametrize("given", [None, "glibc.malloc.check=0"])
def test_a_program_starts_anew_once(tmp_path: Path, given: str | None) -> None:
    script = tmp_path / "program.py"
    script.write_text(PROGRAM)
    environment = (
        _kept() | {"PYTHONPATH": str(Path(__file__).parents[2])} | ({} if given is None else {"GLIBC_TUNABLES": given})
    )
    argv = [sys.executable, "-B", str(script), "--option", "two words"]
    done = subprocess.run(argv, env=environment, capture_output=True, text=True, check=True)
    *begun, last = done.stdout.splitlines()
    assert len(begun) == (2 if given is None else 1)
    assert len({line.split()[1] for line in [*begun, last]}) == 1, "the same process"
    assert last.endswith(f"['--option', 'two words'] {given or SET}")
    assert done.stderr.count("note: restarted with") == (given is None)


@pytest.mark.skipif(sys.platform != "linux", reason="Linux only")
@pytest.mark.parametrize(
    ("settings", "options"),
    [
        ({"TWINLM_RESTART": "0"}, []),
        ({"WORLD_SIZE": "2"}, []),
        ({}, ["-m", "cProfile"]),
        ({}, ["-m", "trace", "--count", "--coverdir", "counts"]),
    ],
)
def test_a_program_goes_on_where_a_new_one_would_surprise(tmp_path: Path, settings: dict[str, str], options: list[str]):
    (tmp_path / "program.py").write_text(PROGRAM)
    environment = _kept() | {"PYTHONPATH": str(Path(__file__).parents[2])} | settings
    argv = [sys.executable, *options, "program.py"]
    done = subprocess.run(argv, env=environment, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.count("begins") == 1
    assert "restarted with" not in done.stderr


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
    environment = _kept() | {"PYTHONPATH": str(Path(__file__).parents[2])} | settings
    environment = {name: value for name, value in environment.items() if name != "MALLOC_ARENA_MAX"} | settings
    done = subprocess.run([sys.executable, "-c", ARENAS], env=environment, capture_output=True, text=True, check=True)
    assert done.stderr.count("Arena ") == expected, done.stderr


def test_the_processes_of_a_run_share_the_cores_of_their_host(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    cores = usable_cores()
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert usable_cores() == max(1, cores // 2)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(cores + 1))
    assert usable_cores() == 1
