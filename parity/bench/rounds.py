"""Implementations in turns: one process each, of which one at a time computes, while the others wait on their pipes.

On a CPU all implementations are alive together and every round asks each of them once, in an order that rotates, so
that a machine that is busy for a while slows all alike; ratios are then taken round by round. A turn begins with work
that is not timed: after a rest, the first step has to win back memory and caches from the others, which no training run
does. On an accelerator, whose memory one implementation may need for itself, they follow one another.
"""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from lmcore.config import Config
from lmcore.errors import UserError

__all__ = ["Options", "Process", "environment", "started", "take_turns"]


@dataclass(frozen=True, kw_only=True)
class Options:
    """How a benchmark is taken."""

    rounds: int
    """Timed turns of each implementation."""
    turn_steps: int
    """Timed updates per turn; 0 takes 2 on a CPU, 10 on an accelerator, where a loop does not wait for each."""
    batches: tuple[int, ...]
    """Batch sizes of generation."""
    prompt_tokens: int
    """Length of a prompt."""
    requests: int = 48
    """Requests to the server in a turn."""
    alone: bool
    """Whether the implementations follow one another instead of taking turns."""
    pythons: Mapping[str, str] = field(default_factory=dict)
    """Implementation -> Python interpreter, where it is not this process's."""
    say: Callable[[str], None] = lambda line: None
    """Told what is going on."""


class Process:
    """An implementation in a process of its own."""

    def __init__(self, implementation: str, mode: str, config: Config, folder: Path, python: str = sys.executable):
        """Start it.

        Args:
            implementation: one of `parity.bench.modes.IMPLEMENTATIONS`.
            mode: train or generate.
            config: shape of the model and batch.
            folder: for its log and the caches of compilers.
            python: interpreter whose environment has the packages.
        """
        self.implementation = implementation
        self.log = folder / f"{implementation}.log"
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [python, "-m", "parity.bench.worker"],
                env=environment(folder / f"{implementation}-cache"),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        self.idle: list[tuple[float, float]] = []
        self.facts: dict[str, Any] = {}
        self.order("make", implementation=implementation, mode=mode, config=asdict(config))

    def made(self) -> None:
        """Wait for the implementation to be there."""
        self.facts = self.answer()
        self.idle.clear()

    def ask(self, do: str, **arguments: Any) -> dict[str, Any]:
        """Give an order and wait for the answer. Raises as `answer` does."""
        self.order(do, **arguments)
        return self.answer()

    def order(self, do: str, **arguments: Any) -> None:
        """Give an order; `answer` must follow."""
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # the answer will say why
            print(json.dumps({"do": do} | arguments), file=self.process.stdin, flush=True)

    def answer(self) -> dict[str, Any]:
        """The answer to the last order.

        Raises:
            UserError: what was asked for cannot be had here.
            RuntimeError: the process has died; the message ends with its last words.
        """
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            words = self.log.read_text(encoding="utf-8", errors="replace").strip()
            raise RuntimeError(f"{self.implementation} died with {self.process.wait()}:\n{words}")
        answer = json.loads(line)
        if "mistake" in answer:
            raise UserError(answer["mistake"])
        self.idle.append((answer.pop("idle_seconds"), answer.pop("idle_cpu_seconds")))
        return answer

    @property
    def idle_fraction(self) -> float:
        """Cores that this process kept busy while others had their turn: 0 if it slept."""
        wall, cpu = np.sum(self.idle, axis=0)
        return float(cpu / wall)

    def end(self) -> None:
        """Stop the process, whatever it does."""
        self.process.kill()
        self.process.communicate()


def environment(cache: Path) -> dict[str, str]:
    """What a worker runs under: as the real commands do, but with compilers that remember nothing from earlier runs."""
    root = str(Path(__file__).parents[2])
    path = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
    caches = {"JAX_COMPILATION_CACHE_DIR": str(cache / "jax"), "TORCHINDUCTOR_CACHE_DIR": str(cache / "torch")}
    return os.environ | {"PYTHONPATH": path} | caches


@contextmanager
def started(implementations: Sequence[str], mode: str, config: Config, options: Options) -> Iterator[list[Process]]:
    """Processes of these implementations, ended when the context closes."""
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        options.say(f"starting {', '.join(implementations)}")
        processes = []
        for implementation in implementations:
            python = options.pythons.get(implementation, sys.executable)
            processes.append(Process(implementation, mode, config, Path(folder), python))
            stack.callback(processes[-1].end)
        for process in processes:
            process.made()
        yield processes


def take_turns(
    processes: Sequence[Process], options: Options, ask: Callable[[Process, int], dict[str, Any]]
) -> dict[str, list[dict[str, Any]]]:
    """Every round asks each implementation once; each round another implementation begins."""
    answers: dict[str, list[dict[str, Any]]] = {process.implementation: [] for process in processes}
    for number in range(options.rounds):
        first = number % len(processes)
        for process in [*processes[first:], *processes[:first]]:
            options.say(f"round {number + 1} of {options.rounds}: {process.implementation}")
            answers[process.implementation].append(ask(process, number))
    return answers
