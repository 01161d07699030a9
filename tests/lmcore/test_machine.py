"""Starting anew for malloc's settings: once, as the same process, with the same arguments."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import os, sys
from lmcore.machine import restart_with_malloc_settings
print("begins", os.getpid(), flush=True)
restart_with_malloc_settings()
print("runs", os.getpid(), sys.argv[1:], os.environ.get("GLIBC_TUNABLES"))
"""


SET = "glibc.malloc.hugetlb=1"


@pytest.mark.skipif(sys.platform != "linux", reason="Linux only")
@pytest.mark.parametrize("given", [None, "glibc.malloc.check=0"])
def test_a_program_starts_anew_once(tmp_path: Path, given: str | None) -> None:
    script = tmp_path / "program.py"
    script.write_text(PROGRAM)
    environment = {name: value for name, value in os.environ.items() if name != "GLIBC_TUNABLES"}
    environment |= {"PYTHONPATH": str(Path(__file__).parents[2])} | ({} if given is None else {"GLIBC_TUNABLES": given})
    argv = [sys.executable, "-B", str(script), "--option", "two words"]
    done = subprocess.run(argv, env=environment, capture_output=True, text=True, check=True)
    *begun, last = done.stdout.splitlines()
    assert len(begun) == (2 if given is None else 1)
    assert len({line.split()[1] for line in [*begun, last]}) == 1, "the same process"
    assert last.endswith(f"['--option', 'two words'] {given or SET}")
