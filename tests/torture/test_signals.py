"""Signals end a run in order or save it, the resumed run is the undisturbed one, and a lost one is called lost."""

import random
import signal
from pathlib import Path

import pytest

from lmcore.run.checkpoints import list_checkpoints
from tests.torture import signals
from tests.torture.programs import Programs
from tests.torture.signals import KINDS, PHASES, Kind

BY_NAME = {kind.name: kind for kind in KINDS}


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Programs:
    """Programs in a folder whose undisturbed runs serve all tests."""
    return Programs(tmp_path_factory.mktemp("signals"))


@pytest.mark.parametrize(
    ("twin", "kind", "phase"),
    [
        ("torchlm", "Ctrl-C twice", "saving"),
        pytest.param("jaxlm", "SIGUSR1, SIGTERM", "steps", marks=pytest.mark.slow),
    ],
)
def test_a_run_that_gets_signals_ends_as_the_undisturbed_one(twin: str, kind: str, phase: str, programs: Programs):
    outcome = signals.inject(programs, twin, BY_NAME[kind], phase, random.Random(1))
    assert outcome is not None, "the run was over before the signal"
    assert (outcome.verdict, outcome.detail) == ("survived", "")


def test_a_run_that_ends_otherwise_is_lost(programs: Programs):
    surprised = Kind("SIGTERM", (signal.SIGTERM,), (0,))
    outcome = signals.inject(programs, "torchlm", surprised, "steps", random.Random(0))
    assert outcome is not None
    assert outcome.verdict == "lost"
    assert outcome.detail.startswith("exit code 143, expected one of [0]: stopping after this step and saving; ")


class Ended:
    """A program that has ended, with what it said."""

    def __init__(self, code: int, out: str = "", err: str = ""):
        self.code, self.out, self.err = code, out, err


def test_what_a_run_says_is_judged(programs: Programs):
    run = programs.folder / "torchlm"
    assert list_checkpoints(run)[-1].step == signals.STEPS
    saved = f"stopped at step {signals.STEPS}, saved; resume with: python -m torchlm.train --run_dir run"
    term, usr1 = BY_NAME["SIGTERM"], BY_NAME["SIGUSR1 three times"]
    for kind, program, problem in (
        (term, Ended(143, saved), ""),
        (term, Ended(143, saved.replace("12", "11")), "it said that step 11 was saved, which is not there"),
        (term, Ended(143), "it does not say how it ended"),
        (term, Ended(1), "exit code 1, expected one of [-15, 0, 143]: "),
        (
            term,
            Ended(143, saved, "Traceback (most recent call last):"),
            "standard error: Traceback (most recent call last):",
        ),
        (usr1, Ended(0, "SIGUSR1 received, saving step 3"), ""),
        (usr1, Ended(0), "SIGUSR1 was not answered"),
        (usr1, Ended(-signal.SIGUSR1), "exit code -10, expected one of [0]: "),
    ):
        assert signals._problem(kind, program, run, in_time=True) == problem  # type: ignore[arg-type]


def test_every_phase_has_a_moment_that_is_said(tmp_path: Path):
    rng = random.Random(0)
    assert len({str(phase(tmp_path, rng)).partition(" after ")[2] for phase in PHASES.values()}) == len(PHASES)
