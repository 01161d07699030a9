"""Rung 0: each twin against itself, before it is compared with the other.

The same computation, asked again in this process and once in a fresh one, must give the same bits on a CPU. Where it
does not, the framework is at fault and not the port: the report names the framework, what it computed, and by how much
it differed, and later rungs are not blamed on the port. On an accelerator, where frameworks add in any order, the
difference is only reported.
"""

import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

from lmcore import config as configs
from parity.backends import make_twin
from parity.backends.base import Arrays, Pair, Twin
from parity.check.result import Result, identical, judge

__all__ = ["answers", "main", "repeat"]

NAMES = {"jax": "JAX", "torch": "torch"}


def answers(twin: Twin, start: Arrays, tokens: np.ndarray, batch: np.ndarray, lr: float) -> Arrays:
    """What a twin computes from these weights: logits, summed loss, and one train step."""
    twin.load(start)
    found = {"logits": twin.logits(tokens)}
    found["summed loss"] = np.array(twin.evaluate(tokens[:, :-1], tokens[:, 1:])[0])
    step = twin.step(batch, lr)
    found |= {"training loss": np.array(step.loss), "gradient norm": np.array(step.grad_norm)}
    found |= {f"gradient of {name}": grad for name, grad in step.grads.items()}
    return found | {f"updated {name}": value for name, value in step.params.items()}


def repeat(pair: Pair, batch: np.ndarray, lr: float) -> Iterator[Result]:
    """Ask each twin twice, then once in a process of its own.

    Args:
        pair: both twins.
        batch: of a train step, B T1.
        lr: its learning rate.
    """
    tokens = pair.rows(2, min(pair.context, 48))

    def ask(time: int, twin: Twin) -> Arrays:
        return answers(twin, pair.start, tokens, batch, lr)

    with tempfile.TemporaryDirectory() as folder:
        started = []
        if pair.fresh_process:  # they start while this one computes
            inputs = {"tokens": tokens, "batch": batch, "lr": np.array(lr)} | _prefixed(pair.start)
            save_file(inputs, Path(folder) / "inputs.safetensors")
            started = [_start(Path(folder), twin) for twin in (pair.jax, pair.torch)]
        first = dict(zip(NAMES, pair.each(("answers", 1), partial(ask, 1)), strict=True))
        again = dict(zip(NAMES, pair.each(("answers", 2), partial(ask, 2)), strict=True))
        for twin in (pair.jax, pair.torch):
            yield _compare(pair, twin, "asked again", first[twin.framework], again[twin.framework])
        for twin, process in zip((pair.jax, pair.torch), started, strict=False):
            if process.wait() != 0:
                raise RuntimeError(f"a fresh process of {NAMES[twin.framework]} ended with code {process.returncode}")
            got = load_file(Path(folder) / f"{twin.framework}.safetensors")
            yield _compare(pair, twin, "in a fresh process", first[twin.framework], got)


def _compare(pair: Pair, twin: Twin, what: str, first: Arrays, again: Arrays) -> Result:
    name = NAMES[twin.framework]
    found = [identical(f"{name}'s {key}", first[key], again[key]) for key in first]
    return judge(0, f"{name}, {what}", pair.dtype, found, 0.0 if pair.on_cpu(twin) else None)


def _prefixed(start: Arrays) -> Arrays:
    return {f"start.{name}": value for name, value in start.items()}


def _start(folder: Path, twin: Twin) -> subprocess.Popen[bytes]:
    """A process that answers for one framework."""
    configs.save(twin.engine.config, folder / f"{twin.framework}.yaml")
    return subprocess.Popen([sys.executable, "-m", "parity.check.rungs.repeat", str(folder), twin.framework])


def main(argv: Sequence[str]) -> int:
    """Answer for one framework: `python -m parity.check.rungs.repeat FOLDER FRAMEWORK`, as `repeat` starts it."""
    folder, framework = Path(argv[0]), argv[1]
    given = load_file(folder / "inputs.safetensors")
    start = {name.removeprefix("start."): value for name, value in given.items() if name.startswith("start.")}
    twin = make_twin(framework, replace(configs.load(folder / f"{framework}.yaml"), run_dir=None))
    found = answers(twin, start, given["tokens"], given["batch"], float(given["lr"]))
    save_file({name: np.array(value, order="C") for name, value in found.items()}, folder / f"{framework}.safetensors")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
