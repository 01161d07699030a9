"""Where the peers' packages are, and programs that run them there."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from lmcore.config import Config
from lmcore.errors import UserError
from parity.bench.peers import PEERS, peer_of, peer_versions
from parity.bench.rounds import Options, environment, started

ROOT = Path(__file__).parents[4]


@pytest.fixture(autouse=True)
def as_without_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keeps from the peers what our own tests ask of JAX."""
    monkeypatch.delenv("JAX_NUMPY_RANK_PROMOTION", raising=False)


@pytest.fixture
def pythons() -> Callable[..., dict[str, str]]:
    """Finds implementations' interpreters: of `.venv-PEER` in the repository, or this one; skips where neither is."""

    def found(*implementations: str) -> dict[str, str]:
        chosen: dict[str, str] = {}
        for implementation in implementations:
            name = next(name for name in PEERS if PEERS[name] is peer_of(implementation))
            problems = []
            for path in (ROOT / f".venv-{name}" / "bin" / "python", Path(sys.executable)):
                if not path.exists():
                    continue
                try:
                    peer_versions(name, str(path))
                except UserError as error:
                    problems.append(str(error))
                else:
                    chosen[implementation] = str(path)
                    break
            if implementation not in chosen:
                pytest.skip(problems[-1])
        return chosen

    return found


@pytest.fixture
def turns() -> Callable[..., Options]:
    """Options with the interpreters of the peers."""

    def made(pythons: dict[str, str]) -> Options:
        return Options(rounds=1, turn_steps=1, batches=(2,), prompt_tokens=7, alone=False, pythons=pythons)

    return made


@pytest.fixture
def trained(turns: Callable[..., Options]) -> Callable[..., dict[str, tuple[int, list[float]]]]:
    """Makes three updates by each implementation: its parameters and losses."""

    def train(config: Config, implementations: list[str], pythons: dict[str, str]) -> dict[str, Any]:
        with started(implementations, "train", config, turns(pythons)) as processes:
            return {
                process.implementation: (
                    process.facts["parameters"],
                    process.ask("train", step=0, count=3)["losses"],
                )
                for process in processes
            }

    return train


@pytest.fixture
def run_with(tmp_path: Path) -> Callable[[str, str, Config, str], Any]:
    """Runs lines on an implementation's model to generate, in its environment: what they leave in `answer`."""

    def run(implementation: str, python: str, config: Config, lines: str) -> Any:
        program = f"""
import json, sys
import numpy as np
from lmcore.config import Config, from_dict
from parity.bench.implementations import make_implementation
made = make_implementation({implementation!r}, from_dict(Config, json.loads(sys.argv[1])), "generate")
prompts = np.arange(1, 15, dtype=np.int32).reshape(2, 7)  # 0 pads in transformers
{lines}
print(json.dumps(answer))
"""
        command = [python, "-c", program, json.dumps(asdict(config))]
        done = subprocess.run(command, env=environment(tmp_path), capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    return run


@pytest.fixture
def faulty(tmp_path: Path) -> Callable[[str, str], str]:
    """Makes an interpreter whose worker runs these lines first."""

    def made(python: str, lines: str) -> str:
        program = f"{lines}; from parity.bench.worker import main; main()"
        path = tmp_path / "python"
        path.write_text(f"#!/bin/sh\nexec '{python}' -c \"{program}\"\n")
        path.chmod(0o755)
        return str(path)

    return made
