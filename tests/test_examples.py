"""The examples of ports run as a user runs them, and each says what its first lines promise."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PORTS = sorted((ROOT / "examples" / "ports").glob("*.py"))


def test_there_are_six():
    assert len(PORTS) >= 6


@pytest.mark.parametrize("path", PORTS, ids=lambda path: path.stem)
def test_an_example_ends_well_and_prints_its_table(path: Path, tmp_path: Path):
    settings = os.environ | {"PYTHONPATH": str(ROOT), "JAX_NUMPY_RANK_PROMOTION": "allow"}
    command = [sys.executable, str(path)]
    done = subprocess.run(command, cwd=tmp_path, env=settings, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("rung  type")
