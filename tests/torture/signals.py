"""SIGTERM, Ctrl-C and SIGUSR1 in every phase of training; the stopped run then goes on.

Each signal ends the run in order, in one line and with its exit code, or saves a checkpoint. What the resumed run
leaves must be to the bit what an undisturbed run left.
"""

import random
import re
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path

from lmcore.run.checkpoints import list_checkpoints
from tests.torture.kills import appears, has_rows, train_victim
from tests.torture.outcome import Outcome
from tests.torture.programs import OPTIONS, TWINS, Moment, Program, Programs, difference, result_of, train_words

__all__ = ["KINDS", "PHASES", "Kind", "faults", "inject"]


@dataclass(frozen=True)
class Kind:
    """Signals that are sent one after the other, and what may become of the program."""

    name: str
    numbers: tuple[int, ...]
    codes: tuple[int, ...]
    """Exit codes of a run with steps to do; minus the second signal where it comes when the run is over."""
    grace: float = 0.0


STEPS = OPTIONS["train.steps"]
KINDS = (
    Kind("SIGTERM", (signal.SIGTERM,), (143,)),
    Kind("SIGTERM and no time", (signal.SIGTERM,), (143,), grace=0.01),
    Kind("Ctrl-C", (signal.SIGINT,), (130,)),
    Kind("Ctrl-C twice", (signal.SIGINT, signal.SIGINT), (130, -signal.SIGINT)),
    Kind("SIGTERM, Ctrl-C", (signal.SIGTERM, signal.SIGINT), (143, 130, -signal.SIGINT)),
    Kind("SIGUSR1 three times", (signal.SIGUSR1,) * 3, (0,)),
    Kind("SIGUSR1, SIGTERM", (signal.SIGUSR1, signal.SIGTERM), (143,)),
)
STOPPED = re.compile(r"stopped at step (\d+), saved; resume with: python -m \w+\.train --run_dir ")
LINES = re.compile(
    r"|stopping after this step and saving; Ctrl-C stops at once|interrupted"
    r"|note: the checkpoint could not be completed within checkpoint\.grace, 0\.01 s; stopped without it, earlier "
    r"checkpoints are intact"
)
"""Everything that a signal makes the program say on standard error."""


def _has_lock(run: Path) -> Callable[[Program], bool]:
    return lambda program: (run / ".lock").exists() and (run / ".lock").stat().st_size > 0


def _says(text: str) -> Callable[[Program], bool]:
    return lambda program: text in program.out


PHASES: dict[str, Callable[[Path, random.Random], Moment]] = {
    "start-up": lambda run, rng: Moment("the lock was taken", _has_lock(run), rng.uniform(0, 0.1)),
    "compilation": lambda run, rng: Moment("the first step began", _says("run folder"), rng.uniform(0, 0.1)),
    "steps": lambda run, rng: Moment(f"step {(n := rng.randrange(1, 10))}", has_rows(run, n), rng.uniform(0, 0.03)),
    "evaluation": lambda run, rng: Moment("step 2, before the evaluation", has_rows(run, 2), rng.uniform(0, 0.01)),
    "sampling": lambda run, rng: Moment("step 3, before the sample", has_rows(run, 3), rng.uniform(0, 0.02)),
    "saving": lambda run, rng: Moment("a checkpoint began", appears(run, "checkpoints/*.tmp"), rng.uniform(0, 0.03)),
    "the end": lambda run, rng: Moment("the last step", has_rows(run, STEPS), rng.uniform(0, 0.7)),
}


def _problem(kind: Kind, program: Program, run: Path, in_time: bool) -> str:
    """Return what is wrong with how the program ended; empty if nothing is.

    Args:
        kind: the signals that it was sent.
        program: has ended.
        run: its run folder.
        in_time: whether the first signal came before the last step was done.
    """
    code, said = program.code, program.err.splitlines()
    last = list_checkpoints(run)[-1:]
    complete = bool(last) and last[0].step == STEPS
    allowed = set(kind.codes) | ({0} if complete else set())
    if complete or "stopping" not in program.err:  # the handlers are not installed yet, or no longer
        allowed |= {-number for number in kind.numbers if number != signal.SIGUSR1}
    stopped = STOPPED.search(program.out)
    if code not in allowed:
        return f"exit code {code}, expected one of {sorted(allowed)}: {program.err.strip()}"
    if unknown := [line for line in said if not LINES.fullmatch(line)]:
        return f"standard error: {unknown[0]}"
    if stopped and (not last or last[0].step != int(stopped[1])):
        return f"it said that step {stopped[1]} was saved, which is not there"
    if code in (130, 143) and not (stopped or "interrupted" in said or "note: " in program.err):
        return "it does not say how it ended"
    if kind.numbers[0] == signal.SIGUSR1 and in_time and code == 0 and "SIGUSR1 received, saving" not in program.out:
        return "SIGUSR1 was not answered"
    return ""


def inject(programs: Programs, twin: str, kind: Kind, phase: str, rng: random.Random) -> Outcome | None:
    """Send signals in a phase of a new run, resume it, and judge it; return None if it had ended before."""
    victim = train_victim(programs, twin, twin)
    unbroken, run = programs.folder / twin, programs.folder / f"{twin}-{programs.count}"
    run.mkdir()  # so that it is locked first of all
    words = train_words(run_dir=run, data__dir=programs.folder / "data", checkpoint__grace=kind.grace)
    moment = PHASES[phase](run, rng)
    program = programs.start(victim.module, *words, cold=rng.random() < 0.2)
    if not moment.wait(program):
        return None
    in_time = True
    for place, number in enumerate(kind.numbers):
        program.send(number)
        in_time = in_time if place else not has_rows(run, STEPS)(program)
        time.sleep(rng.uniform(0, 0.1))
    program.wait()
    problem = _problem(kind, program, run, in_time)
    if not problem and (resumed := programs.finish(victim.module, *words)).code != 0:
        problem = f"resuming: exit code {resumed.code}: {resumed.err}"
    problem = problem or difference(result_of(run), result_of(unbroken), checkpoints=False)
    return Outcome(f"{victim.name}, {kind.name} {moment}", "lost" if problem else "survived", problem)


def faults(count: int, folder: Path, twins: tuple[str, ...] = TWINS) -> Iterator[Outcome]:
    """Send signals `count` times, of each kind in each phase first."""
    rng, programs, done = random.Random(count), Programs(folder), 0
    combinations = [(twin, kind, phase) for twin in twins for kind in KINDS for phase in PHASES]
    rng.shuffle(combinations)
    for twin, kind, phase in cycle(combinations):
        if done >= count:
            return
        if outcome := inject(programs, twin, kind, phase, rng):
            done += 1
            yield outcome
