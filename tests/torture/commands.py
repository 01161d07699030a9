"""Mutated configs and command lines, given to every public command in this process.

Each is accepted, or refused in one line with exit code 2 and nothing written: no traceback, no hang.
"""

import contextlib
import importlib
import io
import json
import os
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import yaml
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from hypothesis.errors import HypothesisDeprecationWarning

from lmcore.config import Config, flatten, from_dict, to_dict
from tests.lmcore.mutations import SCALARS, changed_fields, changed_text, write
from tests.torture.outcome import Outcome

__all__ = ["Case", "cases", "faults", "run", "runs"]

TINY: dict[str, Any] = {
    "model": {"dim": 16, "n_layers": 1, "n_heads": 2, "max_seq_len": 16},
    "data": {"stories": 20, "dir": "data"},
    "tokenizer": {"kind": "bytes"},
    "train": {"steps": 2, "batch_size": 2, "device": "cpu", "cpu_devices": 1},
    "eval": {"windows": 2},
    "sample": {"max_tokens": 4},
}
PLAIN = json.dumps(to_dict(from_dict(Config, TINY)))
TRAIN = [word for name, value in flatten(from_dict(Config, TINY)) if name in {
    f"{group}.{field}" for group, fields in TINY.items() for field in fields
} for word in (f"--{name}", str(value))]  # fmt: skip
PLAN = yaml.safe_dump({"base": TINY, "seeds": [0], "changes": {"high lr": {"optim.lr": 0.01}}})

COMMANDS: dict[str, list[str]] = {
    **{f"{twin}.train": [*TRAIN, "--run_dir", "run"] for twin in ("jaxlm", "torchlm")},
    "jaxlm.generate": ["JAX", "--prompt", "a", "--max_tokens", "4", "--device", "cpu"],
    "torchlm.generate": ["TORCH", "--prompt", "a", "b", "--temperature", "0", "--device", "cpu"],
    "jaxlm.evaluate": ["JAX", "--windows", "2", "--device", "cpu"],
    "torchlm.evaluate": ["TORCH", "--batch_size", "2", "--precision", "float32"],
    "jaxlm.ablate": ["PLAN", "--out", "out", "--jobs", "1"],
    "torchlm.ablate": ["PLAN", "--out", "out", "--train.steps", "2"],
    "lmcore.prepare": [*TRAIN[:-6], "--data.valid_fraction", "0.1"],
    "lmcore.verify": ["JAX", "TORCH"],
    "lmcore.describe": ["JAX"],
    "parity.check": ["JAX", "--rungs", "1", "--dtype", "float32", "--steps", "2"],
    "parity.convert": ["JAX", "--to", "torch", "--out", "out", "--checkpoint", "best"],
    "parity.bench.command": ["--mode", "prepare", "--dtype", "float32", "--rounds", "1", "--data.stories", "20"],
    "parity.growth": ["--axes", "batch", "--only", "torchlm", "--most", "2", "--out", "out"],
}
"""Module -> a valid command line; JAX and TORCH are runs, PLAN is a file."""
CONFIGURED = ("jaxlm.train", "torchlm.train", "lmcore.prepare", "parity.check", "parity.bench.command")
"""Commands that take `--config`."""

NASTY = [
    "",
    " ",
    "-1",
    "-",
    "--",
    "nan",
    "1e999",
    "9" * 30,
    "9" * 200,
    "[",
    "{a",
    "null",
    "*",
    "/dev/null",
    "..",
    "~x/y",
]
NASTY += ["a" * 300, "a" * 5000, "a\nb", "\udcff", "\ufeff", "0x10", "%s", "nosuch", "café", "\x1b[2J", "/dev/null/x"]
WORDS = st.sampled_from(NASTY) | SCALARS.map(str).map(lambda word: word.replace("\0", ""))
"""Values of options; no program can be given a NUL."""

BEGUN, LIMIT = 8.0, 90.0
"""Seconds after which a command is stopped that has begun its work, and one that has not is a hang."""


@dataclass(frozen=True)
class Case:
    """One command line, and the file that it names, if any."""

    module: str
    words: tuple[str, ...]
    config: Any = None

    def __str__(self) -> str:
        return f"python -m {self.module} {' '.join(map(ascii, self.words))} with {self.config!a}"


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """A command with its words changed, or with a changed file."""
    module = draw(st.sampled_from(sorted(COMMANDS)))
    words = list(COMMANDS[module])
    if module in CONFIGURED and draw(st.booleans()):
        config = draw(changed_fields(PLAIN) | changed_text(yaml.safe_dump(TINY)))
        out = ["--run_dir", "run"] if module.endswith("train") else []
        kept = words if module.startswith("parity") else []
        return Case(module, (*kept, "--config", "c.yaml", *out), config)
    if "PLAN" in words and draw(st.booleans()):
        return Case(module, tuple(words), draw(changed_text(PLAN)))
    for _ in range(draw(st.integers(1, 2))):
        place = draw(st.integers(0, len(words) - 1))
        change = draw(st.sampled_from(["value", "value", "value", "drop", "repeat", "option", "add"]))
        if change == "value" and words[place].startswith("--") and place + 1 < len(words):
            place += 1
        if change in ("drop", "repeat"):
            words[place : place + 1] = [] if change == "drop" else [words[place]] * 2
        elif change == "option":
            words[place] = draw(st.sampled_from(["--nosuch", "--model.dims", "--", "-x", f"{words[place]}x"]))
        elif change == "add":
            words += [f"--{draw(st.sampled_from(sorted(name for name, _ in flatten(Config()))))}", draw(WORDS)]
        else:
            words[place] = draw(WORDS)
        words = words or [""]
    return Case(module, tuple(words))


def drawn(count: int) -> list[Case]:
    """Return the same cases each time."""
    found: list[Case] = []

    @seed(0)
    @settings(
        max_examples=count,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(cases())
    def collect(case: Case) -> None:
        found.append(case)

    with warnings.catch_warnings():  # another thread of this process may use `random` in the meantime
        warnings.filterwarnings("ignore", "Do not use the `random` module", HypothesisDeprecationWarning)
        collect()
    return found[:count]


def runs(folder: Path) -> dict[str, str]:
    """Train a tiny run of each twin, and return what stands for it in a command line."""
    made = {}
    for name, twin in (("JAX", "jaxlm"), ("TORCH", "torchlm")):
        path = folder / name
        words = [*TRAIN, "--run_dir", str(path), "--data.dir", str(folder / "data")]
        with contextlib.redirect_stdout(io.StringIO()):
            assert importlib.import_module(f"{twin}.train").main(words) == 0
        made[name] = str(path)
    (folder / "plan.yaml").write_text(PLAN)
    return made | {"PLAN": str(folder / "plan.yaml")}


def _files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


class Clock:
    """Stops the command by KeyboardInterrupt once it has begun its work, or has hung."""

    def __init__(self, folder: Path, output: io.StringIO):
        self.folder, self.output, self.before = folder, output, _files(folder)
        self.stopped = ""

    def __enter__(self) -> "Clock":
        self.since = time.monotonic()
        self.handler = signal.signal(signal.SIGALRM, self._ring)
        signal.setitimer(signal.ITIMER_REAL, BEGUN, 2.0)
        return self

    def __exit__(self, *exception: object) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, self.handler)

    def _ring(self, number: int, frame: FrameType | None) -> None:
        if self.output.getvalue() or _files(self.folder) != self.before:
            self.stopped = "begun"
        elif time.monotonic() - self.since > LIMIT:
            self.stopped = "hang"
        if self.stopped:
            raise KeyboardInterrupt


def run(case: Case, folder: Path, made: dict[str, str]) -> Outcome:
    """Run a command in this process, in a folder of its own.

    Args:
        case: what to run.
        folder: a new folder.
        made: what stands for JAX, TORCH and PLAN.
    """
    folder.mkdir(parents=True)
    words = [made.get(word, word) for word in case.words]
    if case.config is not None:
        write(folder / "c.yaml", case.config)
        words = ["c.yaml" if word == made["PLAN"] else word for word in words]
    main = importlib.import_module(case.module).main
    out, err, code = io.StringIO(), io.StringIO(), None
    before, here = _files(folder), Path.cwd()
    os.chdir(folder)
    try:
        with (
            open(os.devnull) as nothing,
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
            Clock(folder, out) as clock,
        ):
            sys.stdin, stdin = nothing, sys.stdin
            try:
                code = main(words)
            except SystemExit as error:  # --help
                code = error.code
            except KeyboardInterrupt:
                code = 130
            except BaseException:
                code, _ = "traceback", err.write(traceback.format_exc())
            finally:
                sys.stdin = stdin
    finally:
        os.chdir(here)
    written = _files(folder) - before if code == 2 else set()
    return judge(case, code, clock.stopped, err.getvalue(), written)


def judge(case: Case, code: Any, stopped: str, said: str, written: set[str]) -> Outcome:
    """Say what became of a command.

    Args:
        case: the command.
        code: its exit code.
        stopped: whether the clock stopped it, and how.
        said: its standard error.
        written: files that a refused command wrote.
    """
    lines = [line for line in said.splitlines() if line.strip() and not line.startswith("note: ")]
    refused = len(lines) == 1 and lines[0].startswith("error: ") and len(lines[0]) < 3000
    if "Traceback" in said or code == "traceback":
        verdict, detail = "lost", said[-1500:]
    elif stopped or code == 0:
        verdict, detail = "lost" if stopped == "hang" else "survived", f"stopped: {stopped}"
    elif code == 2 and refused and not written:
        verdict, detail = "refused", lines[0]
    elif code == 1 and case.module != "parity.growth":  # diverged, differs or damaged: no mistake, but said
        verdict, detail = "survived", said[-300:]
    else:
        verdict, detail = "lost", f"exit code {code}, wrote {sorted(written)}: {said[-1500:]}"
    return Outcome(str(case), verdict, detail)  # type: ignore[arg-type]


ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "WANDB_MODE": "disabled",
    "TORCHDYNAMO_DISABLE": "1",
}
"""No network, and no compiler that takes minutes."""


def faults(count: int, folder: Path, chosen: Sequence[Case] = ()) -> Iterator[Outcome]:
    """Run `count` mutated commands, or those chosen."""
    os.environ.update(ENVIRONMENT)
    made = runs(folder)
    kept = {name: _files(Path(path)) for name, path in made.items()}
    for number, case in enumerate(chosen or drawn(count)):
        yield run(case, folder / f"case-{number}" / "here", made)
    for name, path in made.items():
        if _files(Path(path)) != kept[name]:
            yield Outcome(f"all commands that read {name}", "lost", f"changed {_files(Path(path)) ^ kept[name]}")


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as place:
        for outcome in faults(int(sys.argv[1]), Path(place)):
            print(outcome.verdict, ascii(outcome.fault)[:300], "|", outcome.detail[-1500:], flush=True)
