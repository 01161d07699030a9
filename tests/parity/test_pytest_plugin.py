"""The plugin as a user has it: a test suite of its own, run by pytest in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

SUITE = """
import jax.numpy as jnp
import numpy as np
from torch import nn

X = np.random.default_rng(0).standard_normal((4, 5))
PARAMS = {"w": np.random.default_rng(1).standard_normal((5, 3))}


def check(parity_compare, act=nn.Tanh, **options):
    module = nn.Sequential(nn.Linear(5, 3, bias=False), act())
    return parity_compare(
        lambda p, x: jnp.tanh(x @ p["w"]), module, X, params=PARAMS, names={"w": ("0.weight", (1, 0))}, **options
    )


def test_same(parity_compare):
    assert check(parity_compare)
    assert check(parity_compare, dtype="float32")


def test_other(parity_compare):
    check(parity_compare, act=nn.Hardtanh)


def test_slow(parity_compare):
    check(parity_compare, seconds=0.001)
"""


def test_a_suite_fails_where_a_port_differs_and_gets_its_pages(tmp_path: Path):
    (tmp_path / "test_port.py").write_text(SUITE, encoding="utf-8")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    command += ["--parity-report", "pages", "test_port.py"]  # pytest finds the plugin by the package's entry point
    root = str(Path(__file__).parents[2])
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, timeout=120, env=os.environ | {"PYTHONPATH": root}
    )
    assert done.returncode == 1, done.stdout
    assert "1 passed" in done.stdout
    assert "2 failed" in done.stdout
    assert "They differ first in output" in done.stdout
    assert "the comparison took longer than the 0.001 s that it may take" in done.stdout
    assert sorted(path.name for path in (tmp_path / "pages").iterdir()) == [
        "test_port.py-test_other.html",
        "test_port.py-test_same-2.html",
        "test_port.py-test_same.html",
    ]
