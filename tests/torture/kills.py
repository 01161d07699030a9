"""SIGKILL at seeded moments of training, of preparing text and of converting; the same command then goes on.

A killed command is started again, and perhaps killed again, until it has ended by itself. What it leaves must be to the
bit what the unbroken command left: weights, optimizer state, metrics with each step once, samples, and no other file.
"""

import hashlib
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path

from lmcore.locks import Owner
from tests.torture.outcome import Outcome
from tests.torture.programs import TWINS, Moment, Program, Programs, difference, result_of, train_words

__all__ = [
    "Victim",
    "appears",
    "contents",
    "convert_victim",
    "faults",
    "has_rows",
    "kill",
    "prepare_victim",
    "train_victim",
]

KILLS_PER_RUN = 4


@dataclass(frozen=True)
class Victim:
    """A command that is killed."""

    name: str
    module: str
    words: list[str]
    moments: list[Callable[[random.Random], Moment]]
    """What to aim at, each made of a random number generator."""
    judge: Callable[[], str]
    """Says what differs from the unbroken command's work once the command has ended; empty if nothing does."""


def _always(program: Program) -> bool:
    return True


def appears(folder: Path, pattern: str) -> Callable[[Program], bool]:
    """Return whether a file matches that did not before: killed processes leave some, of the same names."""
    before = {(path, path.stat().st_ino) for path in folder.glob(pattern)}

    def seen(program: Program) -> bool:
        try:
            return any((path, path.stat().st_ino) not in before for path in folder.glob(pattern))
        except FileNotFoundError:  # deleted between the two
            return False

    return seen


def has_rows(run: Path, count: int) -> Callable[[Program], bool]:
    return lambda program: (
        (run / "metrics.jsonl").exists() and (run / "metrics.jsonl").read_bytes().count(b"\n") >= count
    )


def train_victim(programs: Programs, twin: str, name: str) -> Victim:
    """Return a training run, which the unbroken run `TWIN` judges; that is trained now if there is none."""
    unbroken, run = programs.folder / twin, programs.folder / name
    if not unbroken.exists():
        _finish(programs, f"{twin}.train", *train_words(run_dir=unbroken, data__dir=programs.folder / "data"))
    moments = [
        lambda rng: Moment("the start", _always, rng.uniform(0, 3)),
        lambda rng: Moment("a checkpoint was begun", appears(run, "checkpoints/step_*.tmp"), rng.uniform(0, 0.02)),
        lambda rng: Moment(f"step {(step := rng.randrange(1, 12))}", has_rows(run, step), rng.uniform(0, 0.05)),
        lambda rng: Moment("its state was begun", appears(run, "checkpoints/step_*.tmp/state"), rng.uniform(0, 0.05)),
        lambda rng: Moment("the last step", has_rows(run, 12), rng.uniform(0, 0.5)),
    ]
    words = train_words(run_dir=run, data__dir=programs.folder / "data")
    expected = result_of(unbroken)
    return Victim(f"{twin}.train", f"{twin}.train", words, moments, lambda: difference(result_of(run), expected))


def prepare_victim(programs: Programs, name: str) -> Victim:
    """Return the preparation of a text, tokenizer training included."""
    text, data = programs.folder / "text.txt", programs.folder / name
    words = ["--tokenizer.vocab_size=600", f"--data.files={text}"]
    if not text.exists():
        rng = random.Random(0)
        made = ("".join(rng.choices("abcdefghij", k=rng.randrange(2, 6))) for _ in range(200_000))
        text.write_text(" ".join(word + "\n" * (rng.random() < 0.1) for word in made))
        _finish(programs, "lmcore.prepare", *words, f"--data.dir={programs.folder / 'unbroken'}")
    expected = contents(programs.folder / "unbroken")
    moments = [
        lambda rng: Moment("the tokenizer's training began", appears(data, ".making-*"), rng.uniform(0, 0.5)),
        lambda rng: Moment("the first token", appears(data, ".making-*/train.bin"), rng.uniform(0, 0.3)),
        lambda rng: Moment("the header", appears(data, ".making-*/meta.json"), rng.uniform(0, 0.01)),
    ]

    def judge() -> str:
        found = contents(data)
        return "; ".join(
            sorted(name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name))
        )

    return Victim("lmcore.prepare", "lmcore.prepare", [*words, f"--data.dir={data}"], moments, judge)


def convert_victim(programs: Programs, twin: str, name: str) -> Victim:
    """Return a conversion that replaces a run by the one of another framework."""
    to = {"torchlm": "jax", "jaxlm": "torch"}[twin]
    train_victim(programs, twin, twin)  # the source
    source, unbroken, out = programs.folder / twin, programs.folder / f"to-{to}" / "out", programs.folder / name / "out"
    for folder in (unbroken, out):
        if not folder.exists():
            words = [str(source), f"--to={to}", f"--out={folder}"]
            _finish(programs, "parity.convert", *words)
            _finish(programs, "parity.convert", *words, "--force")  # leaves a lock file, as what is to come does
    expected = result_of(unbroken, unbroken.parent)
    moments = [
        lambda rng: Moment("the start", _always, rng.uniform(0, 0.5)),
        lambda rng: Moment("it began to write", appears(out.parent, ".out-*.tmp"), rng.uniform(0, 0.1)),
        lambda rng: Moment("the state", appears(out.parent, ".out-*.tmp/checkpoints/*/state"), rng.uniform(0, 0.02)),
        lambda rng: Moment("the first of two renames", appears(out.parent, ".out-*.old"), 0),
    ]
    words = [str(source), f"--to={to}", f"--out={out}", "--force"]
    judge = lambda: difference(result_of(out, out.parent), expected)  # noqa: E731
    return Victim(f"parity.convert --to {to}", "parity.convert", words, moments, judge)


def contents(folder: Path) -> dict[str, str]:
    """Return name -> checksum of the files of prepared text.

    A lock file that names an ended process counts as an empty one: where that was killed with all written, the next
    command finds its work done, and takes no lock.
    """
    files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    owner = Owner.read(folder / ".lock")
    if owner is not None and owner.has_ended():
        files[".lock"] = b""
    return {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}


def _finish(programs: Programs, module: str, *words: str) -> None:
    program = programs.finish(module, *words)
    assert program.code == 0, f"{module}: {program.err}"


def kill(programs: Programs, victim: Victim, count: int, rng: random.Random) -> Iterator[Outcome]:
    """Kill a command up to `count` times, and judge what it leaves when it has ended by itself."""
    killed: list[str] = []
    problem = ""
    while True:
        program = programs.start(victim.module, *victim.words, cold=rng.random() < 0.2)
        if len(killed) < count:
            moment = rng.choice(victim.moments)(rng)
            if moment.wait(program):
                program.process.kill()
                if program.wait() == -9:
                    killed.append(f"{victim.name} killed {moment}")
                    continue
        if program.wait() != 0:
            problem = f"exit code {program.code}: {program.err.strip() or program.out[-200:]}"
        break
    problem = problem or victim.judge()
    for fault in killed or ([f"{victim.name} not killed"] if problem else []):
        yield Outcome(fault, "lost" if problem else "survived", problem)


def faults(count: int, folder: Path, twins: tuple[str, ...] = TWINS) -> Iterator[Outcome]:
    """Kill commands `count` times; a third of the kills are not in training."""
    rng, programs, done = random.Random(count), Programs(folder), 0
    kinds = ["train", "train", "convert", "train", "train", "prepare"]
    for number, (kind, twin) in enumerate(zip(cycle(kinds), cycle(twins))):
        if done >= count:
            return
        name = f"{kind}-{number}"
        victim = (
            train_victim(programs, twin, name)
            if kind == "train"
            else convert_victim(programs, twin, name)
            if kind == "convert"
            else prepare_victim(programs, name)
        )
        for outcome in kill(programs, victim, min(KILLS_PER_RUN, count - done), rng):
            done += 1
            yield outcome
