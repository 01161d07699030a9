"""`python -m torchlm.harness` is the common command with this package's name and engine."""

from collections.abc import Callable
from pathlib import Path

import pytest

from torchlm import harness


@pytest.mark.parametrize("framework", ["jax", "torch"])
def test_a_run_of_another_framework_is_refused(
    framework: str, run_of: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
):
    run = run_of(framework)
    assert harness.main([str(run), "--tasks", "none", "--include_path=nowhere"]) == 2
    assert capsys.readouterr().err.startswith("error: --include_path: found no folder 'nowhere'")
    if framework != "torch":
        assert harness.main([str(run), "--tasks", "none"]) == 2
        assert f"is a {framework} run, expected torch" in capsys.readouterr().err
