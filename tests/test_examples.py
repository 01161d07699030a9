"""The examples of ports run as a user runs them, and each says what its first lines promise."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PORTS = sorted((ROOT / "examples" / "ports").glob("*.py"))
PUBLIC = sorted((ROOT / "examples" / "public").glob("*.py"))
LINES = 40


QUICK = ("mlp", "bugs")
CHOSEN = [path if path.stem in QUICK else pytest.param(path, marks=pytest.mark.slow) for path in PORTS]


def test_there_are_six():
    assert len(PORTS) >= 6


@pytest.mark.parametrize("path", CHOSEN, ids=lambda path: path.stem)
def test_an_example_ends_well_and_prints_its_table(path: Path, tmp_path: Path):
    assert ran(path, tmp_path).startswith("rung  type")


@pytest.mark.parametrize("path", PUBLIC, ids=lambda path: path.stem)
def test_a_public_pair_is_compared_in_few_lines_that_the_docs_have(path: Path):
    script = path.read_text()
    assert len([line for line in script.splitlines() if line]) < LINES
    assert f"```python\n{script}```" in (ROOT / "docs" / "public-ports.md").read_text()


@pytest.mark.slow
def test_haikus_cnn_trains_as_torchs(tmp_path: Path):
    printed = ran(ROOT / "examples" / "public" / "haiku_cnn.py", tmp_path)
    assert "training, 50 steps" in printed
    assert printed.endswith("The two are the same model: 7 comparisons passed in float64.\n")


@pytest.mark.parametrize(
    ("decay", "said"), [("1e-10", "The two are the same model"), ("0.01", "weight_decay 0.01 -> 0")]
)
def test_the_gemma_of_openpi_is_transformers(decay: str, said: str, tmp_path: Path):
    if importlib.util.find_spec("openpi") is None:
        pytest.skip("openpi is not installed: it is on GitHub alone")
    assert said in ran(ROOT / "examples" / "public" / "openpi_gemma.py", tmp_path, decay).splitlines()[-1]


def ran(path: Path, folder: Path, *arguments: str) -> str:
    """Return what a script prints."""
    settings = os.environ | {"PYTHONPATH": str(ROOT), "JAX_NUMPY_RANK_PROMOTION": "allow"}
    command = [sys.executable, str(path), *arguments]
    done = subprocess.run(command, cwd=folder, env=settings, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
