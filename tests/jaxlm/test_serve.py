"""`python -m jaxlm.serve` is the common command with this package's name and engine."""

from collections.abc import Callable
from pathlib import Path

import pytest

from jaxlm import serve


@pytest.mark.parametrize("framework", ["jax", "torch"])
def test_a_run_of_this_framework_is_given_to_its_engine_and_another_is_refused(
    framework: str, run_of: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
):
    run = run_of(framework)
    assert serve.main([str(run), "--device=cpu", "--port=0"]) == 2
    error = capsys.readouterr().err
    if framework == "jax":
        assert 'Item "params" was not found in the checkpoint' in error
    else:
        assert error.startswith(f"error: {run} is a torch run, expected jax; convert it first")
