"""Start the commands as processes of their own, wait for a moment of theirs, and tell what became of their files."""

import hashlib
import json
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from lmcore.run.trackers import read_metrics
from parity.convert.sources import open_source
from tests.tiny import TINY

__all__ = ["OPTIONS", "TWINS", "Moment", "Program", "Programs", "Result", "difference", "result_of", "train_words"]

TWINS = ("torchlm", "jaxlm")
OPTIONS: dict[str, Any] = {
    **TINY,
    "model.dropout": 0.1,
    "train.steps": 12,
    "train.resume": "auto",
    "eval.every": 3,
    "checkpoint.every": 2,
    "sample.every": 3,
    "sample.max_tokens": 2,
}
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "JAX_PLATFORMS": "cpu",
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "XLA_FLAGS": "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false",
}
PRELOADED = [
    *("jaxlm.engine", "torchlm.engine", "torch.distributed.checkpoint", "lmcore.run.trainer", "lmcore.config.cli"),
    *("parity.convert.conversion", "parity.convert.states", "parity.convert.replacing", "parity.backends"),
    *("matplotlib.figure", "matplotlib.backends.backend_agg"),
]


def train_words(**changed: object) -> list[str]:
    """Return the arguments of a `train` command that starts or resumes a tiny run."""
    options = OPTIONS | {name.replace("__", "."): value for name, value in changed.items()}
    return [f"--{name}={value}" for name, value in options.items()]


def _main(module: str, words: list[str], folder: Path, streams: tuple[Path, Path], cache: str) -> None:
    """Do in a forked process what `python -m MODULE WORDS` does."""
    for number, stream in enumerate(streams, 1):
        os.dup2(os.open(stream, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.chdir(folder)
    os.environ["XDG_CACHE_HOME"] = cache
    sys.argv = [module, *words]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


@dataclass
class Program:
    """A command at work."""

    process: Any
    """A `subprocess.Popen` or a `multiprocessing` process."""
    folder: Path
    streams: tuple[Path, Path]
    begin: float = field(default_factory=time.monotonic)

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def code(self) -> int | None:
        """Exit code, minus the signal that killed it; None while it runs."""
        return self.process.poll() if isinstance(self.process, subprocess.Popen) else self.process.exitcode

    def send(self, number: int) -> None:
        with suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def pause(self) -> None:
        """Let it do nothing until `resume`."""
        self.send(signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on."""
        self.send(signal.SIGCONT)

    def wait(self, seconds: float = 300) -> int:
        """Wait for the end and return the exit code; a program that does not end is killed, which is an error."""
        deadline = time.monotonic() + seconds
        while self.code is None and time.monotonic() < deadline:
            time.sleep(0.002)
        if self.code is None:
            self.process.kill()
            raise TimeoutError(f"{self.streams[0]}: did not end within {seconds:g} s: {self.out[-500:]}{self.err}")
        return self.code

    @property
    def out(self) -> str:
        return self.streams[0].read_text(errors="replace") if self.streams[0].exists() else ""

    @property
    def err(self) -> str:
        return self.streams[1].read_text(errors="replace") if self.streams[1].exists() else ""


class Programs:
    """Starts commands in a folder.

    Most are forked from a process that has imported the frameworks and done nothing else, which saves most of the time
    of a tiny run. A cold one is started as users do.
    """

    def __init__(self, folder: Path):
        self.folder, self.count = folder, 0
        self.cache = folder / "cache"
        (folder / "streams").mkdir(parents=True, exist_ok=True)
        for name, value in ENVIRONMENT.items():  # the frameworks read it when they are imported
            os.environ.setdefault(name, value)
        if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a shell's background job, whose children ignore it too
            signal.signal(signal.SIGINT, signal.default_int_handler)
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(PRELOADED)

    def start(self, module: str, *words: str, cold: bool = False, environment: dict[str, str] | None = None) -> Program:
        """Start `python -m MODULE WORDS`, with an additional environment only if it is a cold start."""
        assert cold or not environment
        self.count += 1
        streams = (
            self.folder / "streams" / f"{self.count}.out",
            self.folder / "streams" / f"{self.count}.err",
        )
        if not cold:
            arguments = (module, list(words), self.folder, streams, str(self.cache))
            process = self.context.Process(target=_main, args=arguments, daemon=True)
            process.start()
            return Program(process, self.folder, streams)
        root = str(Path(__file__).parents[2])
        paths = [(environment or {}).get("PYTHONPATH"), root]
        variables = os.environ | (environment or {}) | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
        with streams[0].open("w") as out, streams[1].open("w") as err:
            popen = subprocess.Popen(
                [sys.executable, "-m", module, *words],
                cwd=self.folder,
                env=variables | {"XDG_CACHE_HOME": str(self.cache)},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
            )
        return Program(popen, self.folder, streams)

    def finish(self, module: str, *words: str) -> Program:
        """Run a command to its end."""
        program = self.start(module, *words)
        program.wait()
        return program


@dataclass(frozen=True)
class Moment:
    """A moment in the life of a program: some time after something is first seen."""

    name: str
    seen: Callable[[Program], bool]
    delay: float

    def __str__(self) -> str:
        return f"{self.delay:.3f} s after {self.name}"

    def wait(self, program: Program, seconds: float = 300) -> bool:
        """Wait for the moment; return False if the program ends before."""
        deadline = time.monotonic() + seconds
        while not self.seen(program):
            if program.code is not None or time.monotonic() > deadline:
                return False
            time.sleep(0.0005)
        time.sleep(self.delay)
        return program.code is None


@dataclass(frozen=True)
class Result:
    """What a program has left, as far as it must not depend on when the program was killed."""

    state: dict[str, str]
    """Parameter, or kind of moment and parameter -> digest of its bytes."""
    rows: list[dict[str, float]]
    samples: dict[str, str]
    paths: set[str]
    """All files but those inside checkpoints, whose names a framework chooses."""
    owner: str
    """Content of the lock file."""


def _digest(array: Any) -> str:
    array = np.asarray(array)
    return f"{array.dtype}{array.shape}{hashlib.sha256(array.tobytes()).hexdigest()}"


def result_of(run: Path, folder: Path | None = None) -> Result:
    """Read what is left of a run.

    Args:
        run: the run folder.
        folder: the folder whose files are listed; None takes the run folder.
    """
    state = open_source(run, "latest").state()
    assert state.moments is not None
    arrays = {name: _digest(array) for name, array in state.params.items()}
    for kind, by_name in state.moments.arrays.items():
        arrays |= {f"{kind} of {name}": _digest(array) for name, array in by_name.items()}
    arrays |= {"step": str(state.step), "count": str(state.moments.count)}
    rows = [{k: v for k, v in row.items() if k != "tokens_per_second"} for row in read_metrics(run / "metrics.jsonl")]
    samples = {path.name: path.read_text() for path in (run / "samples").glob("*")}
    paths = {path.relative_to(folder or run).as_posix() for path in (folder or run).rglob("*") if path.is_file()}
    paths = {path for path in paths if "/state/" not in path or ".tmp/" in path}
    lock = run / ".lock"
    return Result(arrays, rows, samples, paths, lock.read_text() if lock.exists() else "")


def difference(found: Result, expected: Result, checkpoints: bool = True) -> str:
    """Return how two results differ; empty if they are bitwise the same.

    Args:
        found: what is judged.
        expected: what the unbroken program left.
        checkpoints: whether the same checkpoints must be kept.
    """
    names = expected.state.keys() | found.state.keys()
    changed = [name for name in names if found.state.get(name) != expected.state.get(name)]
    steps = [int(row["step"]) for row in found.rows]
    paths = found.paths ^ expected.paths
    if not checkpoints:
        paths = {path for path in paths if ".tmp" in path or not path.startswith("checkpoints/step_")}
    problems = [
        f"state: {', '.join(sorted(changed)[:3])} differ" if changed else "",
        f"metrics: steps {steps}" if len(set(steps)) < len(steps) else "",
        "metrics: rows differ" if json.dumps(found.rows) != json.dumps(expected.rows) else "",
        "samples differ" if found.samples != expected.samples else "",
        f"files: {', '.join(sorted(paths)[:3])}" if paths else "",
        f"lock: still names {found.owner.strip()}" if found.owner else "",
    ]
    return "; ".join(filter(None, problems))
