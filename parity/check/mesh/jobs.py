"""What the processes of a check across meshes are asked to do, and how they are started."""

import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from lmcore.config import Config, from_dict, to_dict
from lmcore.data.batches import Tokens
from lmcore.errors import UserError
from lmcore.run.checkpoints import Checkpoint

__all__ = ["STEPS", "Job", "Outcome", "Request", "free_port", "launch"]

STEPS = 4
"""Number of updates in a whole run."""
PATIENCE = 900.0
"""Seconds after which the processes of one launch are ended."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """A run of a few steps, from the initial weights or from a checkpoint, up to step STEPS."""

    config: Config
    folder: Path
    """Where the states and metrics go."""
    restore: Path | None = None
    """Folder of a framework's own files to start from; None starts from the initial weights."""
    start: int = 0
    """Step of that state."""

    def outcome(self, framework: str) -> "Outcome":
        """Return what the run has left in its folder."""
        return Outcome(framework, self.folder)


@dataclass(frozen=True)
class Outcome:
    """What a run has left: its states at the start, after one step and at the end, and its metrics."""

    framework: str
    folder: Path

    def checkpoint(self, step: int) -> Checkpoint:
        """Return the state that was saved after so many steps."""
        return Checkpoint(self.folder / f"step_{step}", self.framework, step, None)

    def metrics(self) -> dict[str, np.ndarray]:
        """Return metric -> its values, one for each step that was done; `valid_loss` has one."""
        return {name: np.array(values) for name, values in json.loads(self._file.read_text()).items()}

    def write(self, metrics: dict[str, list[float]]) -> None:
        """Write the metrics."""
        self._file.write_text(json.dumps(metrics))

    @property
    def _file(self) -> Path:
        return self.folder / "metrics.json"


@dataclass(frozen=True, kw_only=True)
class Request:
    """What all processes of one launch do, one job after the other, on one number of devices."""

    package: str
    jobs: Sequence[Job]
    text: np.ndarray
    """Token ids."""
    fault: str | None = None
    """Name of a fault to plant (see `parity.check.mesh.faults`)."""

    def save(self, folder: Path) -> None:
        """Write the request for the processes to read."""
        np.save(folder / "text.npy", self.text)
        plain = [asdict(replace(job, config=Config())) | {"config": to_dict(job.config)} for job in self.jobs]
        facts = {"package": self.package, "jobs": plain, "fault": self.fault}
        (folder / "request.json").write_text(json.dumps(facts, default=str))

    @classmethod
    def load(cls, folder: Path) -> "Request":
        """Read what `save` wrote."""
        facts = json.loads((folder / "request.json").read_text())
        jobs = [_job(job) for job in facts["jobs"]]
        return cls(package=facts["package"], jobs=jobs, text=np.load(folder / "text.npy"), fault=facts["fault"])

    @property
    def tokens(self) -> Tokens:
        """The text as a split of a prepared folder."""
        return Tokens(ids=self.text, documents=1, bytes=len(self.text), unknown=0)


def _job(facts: dict[str, Any]) -> Job:
    restore = None if facts["restore"] is None else Path(facts["restore"])
    return Job(
        config=from_dict(Config, facts["config"]), folder=Path(facts["folder"]), restore=restore, start=facts["start"]
    )


def launch(request: Request, processes: int) -> None:
    """Do the jobs in new processes, and wait for their end.

    Raises:
        UserError: a process has refused the config.
        RuntimeError: a process has failed.
    """
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        request.save(Path(folder))
        command = [sys.executable, "-m", "parity.check.mesh.worker", folder]
        streams: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
        started = []
        for environment in _environments(processes):
            process = subprocess.Popen(command, env=environment, **streams)
            stack.callback(process.wait)
            stack.callback(process.kill)
            started.append(process)
        try:
            errors = [process.communicate(timeout=PATIENCE)[1] for process in started]
        except subprocess.TimeoutExpired as late:
            raise RuntimeError(f"the processes of a mesh have not ended after {PATIENCE:.0f} s") from late
        codes = [process.returncode for process in started]
    for code, error in zip(codes, errors, strict=True):
        if code == UserError.exit_code:
            raise UserError(_last_line(error).removeprefix("error: "))
    if any(codes):
        failed = next(number for number, code in enumerate(codes) if code)
        raise RuntimeError(f"process {failed} of {processes} ended with code {codes[failed]}:\n{errors[failed]}")


def _environments(processes: int) -> list[dict[str, str]]:
    """Return the variables of each process, as a launcher sets them."""
    plain = os.environ | {"PYTHONWARNINGS": "ignore"}
    if processes == 1:
        return [plain | {"WORLD_SIZE": "1"}]
    shared = {"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes)}
    shared |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "OMP_NUM_THREADS": "1"}
    return [plain | shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(processes)]


def free_port() -> int:
    """Return a port that is free, as is the next, on which process 0 listens."""
    while True:
        with socket.socket() as one, socket.socket() as other:
            one.bind(("127.0.0.1", 0))
            port: int = one.getsockname()[1]
            try:
                other.bind(("127.0.0.1", port + 1))
            except (OSError, OverflowError):
                continue
            return port


def _last_line(text: str) -> str:
    lines = [line for line in text.splitlines() if line.startswith("error: ")]
    return lines[-1] if lines else text.strip().splitlines()[-1] if text.strip() else "no message"
