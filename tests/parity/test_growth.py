"""`python -m parity.growth` is the command of `parity.bench.growth`."""

import runpy
import sys
from pathlib import Path

import pytest

import parity
from parity.bench.growth import AXES


def test_the_program_measures_growth(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    program = Path(parity.__file__).parent / "growth.py"
    monkeypatch.setattr(sys, "argv", [str(program), "--axes", "time"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(program), run_name="__main__")
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith(f"error: --axes: found 'time', expected {', '.join(AXES)}")
