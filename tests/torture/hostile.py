"""Hostile files and names: none is executed, leads outside of its folder, fills the memory, or commands a terminal.

Every file is the real thing, with checksums that fit, as its maker would compute them. Each must be refused in one
line, or change nothing. What is executed writes a marker.
"""

import contextlib
import hashlib
import io
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from lmcore.files import checksums, seal, stamp
from parity.convert.conversion import main as convert
from tests.torture.damage import Refused, Twin, answer, compiled_once, specimens
from tests.torture.outcome import Outcome

__all__ = ["Case", "Lab", "faults"]

SECRET = "the secret of another folder"


@dataclass
class Lab:
    """Good files to make hostile, and what no hostile file may reach."""

    folder: Path
    good: dict[str, Path] = field(default_factory=dict)
    """Name of a specimen -> its folder."""
    twins: dict[str, Twin] = field(default_factory=dict)

    @property
    def marker(self) -> Path:
        """A file that exists if anything was executed."""
        return self.folder / "executed"

    @property
    def outside(self) -> Path:
        """A folder that nothing may read from or write to."""
        return self.folder / "outside"

    def prepare(self) -> None:
        """Make the good files, and the folder outside."""
        (self.folder / "good").mkdir()
        for specimen in specimens(self.folder / "good"):
            self.good[specimen.name] = specimen.folder
        self.twins = {package: Twin(package) for package in ("torchlm", "jaxlm")}
        self.renew()

    def renew(self) -> None:
        """Restore the folder outside."""
        shutil.rmtree(self.outside, ignore_errors=True)
        (self.outside / "step_00000001").mkdir(parents=True)
        for name in ("secret.txt", "sample-000009.txt", "secret.safetensors", "step_00000001/file"):
            (self.outside / name).write_text(SECRET)

    def copy(self, name: str, to: Path) -> Path:
        """Copy good files into an empty folder."""
        shutil.copytree(self.good[name], to, dirs_exist_ok=True)
        return to


@dataclass(frozen=True)
class Case:
    """One hostile file."""

    name: str
    make: Callable[[Lab, Path], list[Callable[[], object]]]
    """Makes it in an empty folder, where the commands that it returns then read it."""
    neutral: bool = False
    """Whether a command may also succeed, if it reaches nothing outside."""


def reseal(run: Path) -> None:
    """Make the checksums of a run fit its files again."""
    for description in run.glob("checkpoints/step_*/checkpoint.json"):
        try:
            fields = json.loads(description.read_text())
        except ValueError:  # it is the hostile file
            continue
        del fields["checksum"]
        description.unlink()
        fields["files"] = checksums(description.parent)
        for name, file in (("tokenizer", run / "tokenizer.json"), ("metrics", run / "metrics.jsonl")):
            if file.is_file() and name in fields["run"]:
                fields["run"][name] = hashlib.sha256(file.read_bytes()).hexdigest()
        if (run / "metrics.jsonl").is_file() and "metrics_bytes" in fields["run"]:
            fields["run"]["metrics_bytes"] = (run / "metrics.jsonl").stat().st_size
        description.write_text(json.dumps(seal(fields)))


def restamp(path: Path, change: Callable[[str], str]) -> None:
    """Change a config below the line of its checksum, and make that fit."""
    path.write_text(stamp(change(path.read_text().partition("\n")[2])))


def redescribe(run: Path, /, **fields: object) -> None:
    """Change fields of all descriptions of checkpoints, with checksums that fit."""
    for path in run.glob("checkpoints/step_*/checkpoint.json"):
        found = json.loads(path.read_text()) | fields
        del found["checksum"]
        path.write_text(json.dumps(seal(found)))


def reads(lab: Lab, package: str, imported: bool = False) -> list[Callable[[], object]]:
    """Return the commands that read a run."""
    twin, text = lab.twins[package], ["--data.files=text.txt"] if imported else []
    return [
        lambda: twin.evaluate(text),
        lambda: twin.generate([]),
        lambda: twin.train(["--run_dir=run", "--train.resume=auto", *text]),
        lambda: answer(convert, ["run", "--to=hf", "--out=out-hf"]),
        lambda: answer(convert, ["run", "--to=jax", "--out=out-jax"]),
        lambda: answer(convert, ["run", "--to=torch", "--out=out-torch"]),
    ]


def imports() -> list[Callable[[], object]]:
    """Return the commands that read an export."""
    return [partial(answer, convert, ["model", f"--to={to}", f"--out=out-{to}"]) for to in ("torch", "jax", "hf")]


def state_of(where: Path) -> str:
    """Return a digest of all names and contents in a folder."""
    paths = sorted(path for path in where.rglob("*") if path.is_file())
    return hashlib.sha256(b"".join(str(path).encode() + path.read_bytes() for path in paths)).hexdigest()


def inject(lab: Lab, case: Case, folder: Path) -> Outcome:
    """Make a hostile file, run the commands that read it, and judge them by all that they did."""
    lab.renew()
    folder.mkdir()
    before, commands = Path.cwd(), case.make(lab, folder)
    outside, refused, wrong = state_of(lab.outside), False, ""
    os.chdir(folder)
    try:
        for number, call in enumerate(commands):
            code, said = _run(call)
            refused |= code != 0
            wrong = wrong or (_complaint(code, said, case) and f"command {number}: {_complaint(code, said, case)}")
    finally:
        os.chdir(before)
    if lab.marker.exists():
        wrong = "it was executed"
        lab.marker.unlink()
    if state_of(lab.outside) != outside:
        wrong = wrong or "it changed files outside of its folder"
    if leaks := [str(p.relative_to(folder)) for p in _written(folder) if SECRET.encode() in p.read_bytes()]:
        wrong = wrong or f"it copied a file from outside to {leaks[0]}"
    shutil.rmtree(folder)
    return Outcome(case.name, "lost" if wrong else "refused" if refused else "survived", wrong)


def _written(folder: Path) -> Iterator[Path]:
    for path in folder.glob("out*/**/*"):
        if path.is_file():
            yield path


def _run(call: Callable[[], object]) -> tuple[int, str]:
    """Return the exit code of a command, 0, 2 or, for a traceback, -1, and all that it printed."""
    out, err = io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            found = call()
        code = 0
        out.write(str(found))
    except Refused as refused:
        code = refused.args[0]
    except Exception as error:
        code = -1
        err.write(f"{type(error).__name__}: {error}")
    return code, f"{out.getvalue()}\n{err.getvalue()}"


def _complaint(code: int, said: str, case: Case) -> str:
    errors = [line for line in said.splitlines() if line.startswith("error: ")]
    if code == -1 or "Traceback" in said:
        return f"traceback: {said.strip()[-300:]}"
    if control := re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", said):
        return f"printed the control character {control[0]!r}"
    if code == 0 and not case.neutral:
        return "accepted"
    if code != 0 and (code != 2 or len(errors) != 1):
        return f"exit code {code} with {len(errors)} errors: {said.strip()[-300:]}"
    return ""


def faults(count: int, folder: Path, only: str = "") -> Iterator[Outcome]:
    """Inject `count` hostile files, evenly spaced over all that there are.

    Args:
        count: number of files; more than there are takes all.
        folder: an empty folder.
        only: begins the names of the cases; empty takes all.
    """
    from tests.torture.hostile_cases import CASES

    with compiled_once(folder / "compiled"):
        lab = Lab(folder)
        lab.prepare()
        cases = [case for case in CASES if case.name.startswith(only)]
        count = min(count, len(cases))
        for number in range(count):
            yield inject(lab, cases[number * len(cases) // count], folder / f"case-{number}")
