"""A study that is half done."""

import math
from pathlib import Path

import pytest

from lmcore.ablation.plan import Outcome, outcome, read_plan, trials
from tests.lmcore.ablation.studies import FILE, a_run, rows, written


@pytest.fixture
def study(tmp_path: Path) -> tuple[Path, list[Outcome]]:
    """A base that finished twice, a change that diverged once, and one that finished once and is on its way."""
    path = written(tmp_path, FILE.replace("optim: {lr: 1e-3}", "train: {steps: 30}"))
    base, untied, wider, base5, untied5, wider5 = trials(read_plan(path), tmp_path / "out")
    a_run(base, rows(3.0, 2.0, 2.2), 1000, 30)
    a_run(base5, rows(3.2, 2.4, 2.4, rate=300.0), 1000, 30)
    a_run(untied, rows(3.0, 1.9, 2.0), 1500, 30)
    a_run(untied5, [*rows(3.0, 1.5), {"step": 25, "tokens": 1600, "loss": math.nan}], 1500, 20)
    a_run(wider, rows(3.0, 2.5, 2.3), 4000, 30)
    a_run(wider5, rows(3.0), 4000, 10)
    return path, [outcome(t) for t in (base, untied, wider, base5, untied5, wider5)]
