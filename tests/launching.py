"""Starts runs of one process and of several, as users do, in float64: the same run, but for the order of its sums."""

import json
import os
import subprocess
import sys
from pathlib import Path

from parity.check.mesh.jobs import free_port

__all__ = ["OPTIONS", "TOLERANCE", "by_torchrun", "difference", "rows", "train", "without_launcher"]

ROOT = Path(__file__).parent.parent
OPTIONS = {
    "model.dim": 16,
    "model.n_layers": 2,
    "model.n_heads": 2,
    "model.max_seq_len": 16,
    "data.stories": 40,
    "tokenizer.kind": "bytes",
    "train.device": "cpu",
    "train.precision": "float64",
    "train.steps": 8,
    "train.batch_size": 8,
    "train.grad_accum": 2,
    "log.every": 1,
    "eval.every": 4,
    "eval.windows": 7,  # in batches of 4: the last has a row less in one process
    "checkpoint.every": 4,
    "checkpoint.keep": 3,
    "sample.every": 4,
    "sample.max_tokens": 4,
}
TOLERANCE = 1e-12
RATE = "tokens_per_second"


def train(twin: str, data: Path, **changed: object) -> list[str]:
    """Python's arguments for a run."""
    options = OPTIONS | {"data.dir": data} | {name.replace("__", "."): value for name, value in changed.items()}
    return ["-m", f"{twin}.train", *(f"--{name}={value}" for name, value in options.items())]


def start(command: list[str], folder: Path, **variables: str) -> "subprocess.Popen[str]":
    """Start a program in a folder of its own, in which it finds the packages."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"} | variables
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, cwd=folder, env=environment, text=True, **streams)  # type: ignore[call-overload]


def by_torchrun(arguments: list[str], folder: Path, count: int = 2) -> str:
    """Run processes by `torchrun`; return what they print."""
    launcher = ["-m", "torch.distributed.run", f"--nproc-per-node={count}", f"--master-port={free_port()}"]
    process = start([sys.executable, *launcher, *arguments], folder)
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    return out


def without_launcher(arguments: list[str], folder: Path, count: int = 2) -> list[tuple[int, str]]:
    """Run processes by nothing but the launcher's variables; return the exit code and the standard error of each."""
    shared = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    shared |= {"LOCAL_WORLD_SIZE": str(count)}
    ranks = [{"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(count)]
    processes = [start([sys.executable, *arguments], folder, **shared, **rank) for rank in ranks]
    errors = [process.communicate(timeout=240)[1] for process in processes]
    return [(process.returncode, error) for process, error in zip(processes, errors, strict=True)]


def rows(run: Path) -> list[dict[str, float]]:
    """Return the metrics of a run, without its rate."""
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [{name: value for name, value in json.loads(line).items() if name != RATE} for line in lines]


def difference(one: list[dict[str, float]], other: list[dict[str, float]]) -> float:
    """Return the largest difference between the metrics of two runs, which have the same ones at the same steps."""
    assert [list(row) for row in one] == [list(row) for row in other]
    assert [row["step"] for row in one] == [row["step"] for row in other]
    return max(abs(a[name] - b[name]) for a, b in zip(one, other, strict=True) for name in a)
