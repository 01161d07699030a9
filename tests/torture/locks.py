"""Two processes at one run folder or one data folder, with locks and on a file system that has none.

A second process is refused, or waits, with the first one's process id and host, and the first one's work is to the bit
what it is alone. A killed process holds no lock.
"""

import json
import random
import socket
from collections.abc import Callable, Iterator
from itertools import cycle, product
from pathlib import Path

from lmcore.locks import Owner
from tests.torture.kills import Victim, appears, has_rows, prepare_victim, train_victim
from tests.torture.outcome import Outcome, Verdict
from tests.torture.programs import TWINS, Moment, Program, Programs

__all__ = ["KINDS", "faults"]

NO_LOCKS = """
import errno, fcntl, os
def refuse(handle, operation):
    raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))
fcntl.flock = refuse
"""
"""A `sitecustomize.py` that makes every file system one without locks."""


class Pair:
    """A command that is started twice on the same files."""

    def __init__(self, programs: Programs, victim: Victim, has_locks: bool):
        self.programs, self.victim, self.has_locks = programs, victim, has_locks
        site = programs.folder / "no locks"
        site.mkdir(exist_ok=True)
        (site / "sitecustomize.py").write_text(NO_LOCKS)
        self.environment = None if has_locks else {"PYTHONPATH": str(site)}

    def start(self, module: str | None = None, *words: str) -> Program:
        """Start the command, or another one."""
        words = words or tuple(self.victim.words)
        return self.programs.start(
            module or self.victim.module, *words, cold=not self.has_locks, environment=self.environment
        )

    def ended(self, program: Program, code: int, *lines: str) -> str:
        """Return what is wrong with how a program ended; empty if it is this code and these parts of lines."""
        program.wait()
        found = [line for line in program.err.splitlines() if "this file system has no locks" not in line]
        notes = len(program.err.splitlines()) - len(found)
        if program.code != code or len(found) != len(lines) or any(a not in b for a, b in zip(lines, found)):
            return f"exit code {program.code}, {program.err.strip()!r}; expected {code}, {lines}"
        return "" if self.has_locks or notes else "it does not say that there are no locks"


def _run_of(pair: Pair) -> Path:
    return Path(next(word for word in pair.victim.words if word.startswith("--run_dir=")).partition("=")[2])


def _owner(program: Program) -> str:
    return str(Owner(program.pid, socket.gethostname()))


def second(pair: Pair, rng: random.Random) -> str:
    """Start training where another process trains."""
    run = _run_of(pair)
    first = pair.start()
    assert Moment("step 1", has_rows(run, 1), 0).wait(first), first.err
    first.pause()
    refused = pair.start()
    problem = pair.ended(refused, 2, f"error: run_dir: {run} is in use by {_owner(first)}; wait for it, or name")
    first.resume()
    ended = pair.ended(first, 0)
    return problem or ended or pair.victim.judge()


def conversion(pair: Pair, rng: random.Random) -> str:
    """Replace by a conversion the run that another process trains."""
    run, source = _run_of(pair), pair.programs.folder / pair.victim.module.partition(".")[0]
    first = pair.start()
    assert Moment("step 1", has_rows(run, 1), 0).wait(first), first.err
    first.pause()
    refused = pair.start("parity.convert", str(source), "--to=torch", f"--out={run}", "--force")
    problem = pair.ended(refused, 2, f"error: run_dir: {run} is in use by {_owner(first)}; ")
    first.resume()
    ended = pair.ended(first, 0)
    return problem or ended or pair.victim.judge()


def killed(pair: Pair, rng: random.Random) -> str:
    """Kill a training process, and start the next one at once."""
    step = rng.randrange(1, 10)
    first = pair.start()
    assert Moment(f"step {step}", has_rows(_run_of(pair), step), 0).wait(first), first.err
    first.process.kill()
    first.wait()
    return pair.ended(pair.start(), 0) or pair.victim.judge()


def together(pair: Pair, rng: random.Random) -> str:
    """Start two training processes at the same time."""
    both = [pair.start(), pair.start()]
    codes = sorted(program.wait() for program in both)
    if codes == [0, 0]:  # one began when the other was done
        return pair.victim.judge()
    if codes != [0, 2]:
        return f"exit codes {codes}"
    loser = both[0] if both[0].code else both[1]
    return pair.ended(loser, 2, "is in use by") or pair.victim.judge()


def elsewhere(pair: Pair, rng: random.Random) -> str:
    """Start training where the owner's file names another host, and delete that file."""
    run = _run_of(pair)
    run.mkdir()
    owner_file = run / ".lock.owner"
    owner_file.write_text(json.dumps({"pid": 7, "host": "elsewhere"}))
    line = f"{run} is in use by process 7 on elsewhere; wait for it, or, if it has ended, delete {owner_file}"
    problem = pair.ended(pair.start(), 2, f"error: {line}")
    owner_file.unlink()
    return problem or pair.ended(pair.start(), 0) or pair.victim.judge()


def waiting(pair: Pair, rng: random.Random) -> str:
    """Prepare a text while another process prepares it, and perhaps kill that one."""
    data = Path(pair.victim.words[-1].partition("=")[2])
    first = pair.start()
    assert Moment("it began", appears(data, ".making-*"), 0).wait(first), first.err
    first.pause()
    other = pair.start()
    told = f"waiting for {_owner(first)}, which prepares text in {data}"
    if not Moment("it waits", lambda program: told in program.out, 0).wait(other):
        return f"it did not wait: {other.out}{other.err}"
    if rng.random() < 0.5:
        first.process.kill()
        first.wait()
    else:
        first.resume()
    return pair.ended(other, 0) or ("" if first.wait() == -9 else pair.ended(first, 0)) or pair.victim.judge()


KINDS: list[tuple[Callable[[Pair, random.Random], str], bool, Verdict]] = [
    (second, True, "refused"),
    (second, False, "refused"),
    (killed, True, "survived"),
    (killed, False, "survived"),
    (together, True, "survived"),
    (together, False, "survived"),
    (elsewhere, False, "refused"),
    (conversion, True, "refused"),
    (waiting, True, "survived"),
    (waiting, False, "survived"),
]
"""What is done, whether the file system has locks, and the verdict if nothing is wrong."""


def faults(count: int, folder: Path, twins: tuple[str, ...] = TWINS, kinds: list | None = None) -> Iterator[Outcome]:
    """Let two processes meet `count` times."""
    rng, programs = random.Random(count), Programs(folder)
    every = cycle(product(kinds or KINDS, twins))
    for number, ((meet, has_locks, verdict), twin) in zip(range(count), every):
        name = f"{meet.__name__}-{number}"
        victim = prepare_victim(programs, name) if meet is waiting else train_victim(programs, twin, name)
        problem = meet(Pair(programs, victim, has_locks), rng)
        where = "with locks" if has_locks else "without locks"
        assert meet.__doc__ is not None
        yield Outcome(f"{victim.name} {where}: {meet.__doc__}", "lost" if problem else verdict, problem)
