"""Processes in turns: another begins each round, one that dies is heard, none outlives the benchmark."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lmcore.config import Config
from parity.bench.rounds import Options, Process, environment, started, take_turns


@pytest.fixture
def start(config: Config, tmp_path: Path) -> Iterator[Callable[[str], Process]]:
    """Starts a worker, without waiting for it."""
    processes = []

    def one(implementation: str) -> Process:
        processes.append(Process(implementation, "train", config, tmp_path))
        return processes[-1]

    yield one
    for process in processes:
        process.end()


def options(rounds: int) -> Options:
    return Options(rounds=rounds, turn_steps=1, batches=(), prompt_tokens=1, alone=False)


def test_each_round_asks_all_and_another_begins(start: Callable[[str], Process]):
    asked: list[str] = []

    def ask(process: Process, number: int) -> dict[str, Any]:
        asked.append(f"{process.implementation}{number}")
        return {"round": number}

    answers = take_turns([start("a"), start("b"), start("c")], options(rounds=4), ask)
    assert asked == ["a0", "b0", "c0", "b1", "c1", "a1", "c2", "a2", "b2", "a3", "b3", "c3"]
    assert answers == {name: [{"round": number} for number in range(4)] for name in "abc"}


def test_a_process_that_dies_is_told_with_its_last_words(start: Callable[[str], Process]):
    process = start("torchlm")
    process.process.kill()
    process.process.wait()
    process.log.write_text("out of memory\n")
    with pytest.raises(RuntimeError, match="torchlm died with -9:\nout of memory"):
        process.ask("train", step=0, count=1)


def test_no_process_outlives_the_benchmark(config: Config, monkeypatch: pytest.MonkeyPatch):
    alive: list[Process] = []
    monkeypatch.setattr(Process, "made", lambda self: alive.append(self))  # they need not load a framework
    with started(["a", "b"], "train", config, options(1)) as processes:
        assert alive == processes
        assert [process.process.poll() for process in processes] == [None, None]
    assert [process.process.poll() for process in alive] == [-9, -9]


def test_idle_is_processor_time_over_the_time_of_others(start: Callable[[str], Process]):
    process = start("a")
    process.idle = [(1.0, 0.1), (3.0, 0.3)]
    assert process.idle_fraction == pytest.approx(0.1)


def test_compilers_remember_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PYTHONPATH", "mine")
    worker = environment(tmp_path)
    assert worker["JAX_COMPILATION_CACHE_DIR"] == str(tmp_path / "jax")
    assert worker["PYTHONPATH"].split(os.pathsep)[1:] == ["mine"]
