"""Rung 0: each twin against itself, before it is compared with the other.

The same computation, repeated in this process and once in a fresh one, must give the same bits on a CPU. Where it does
not, the framework is at fault and not the port: the report names the framework, what it computed, and by how much it
differed, and later rungs are not blamed on the port. On an accelerator, where frameworks sum in any order, the
difference is only reported.
"""

import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

from lmcore import config as configs
from lmcore.optim.schedule import learning_rate
from parity.arrays import Arrays
from parity.backends import make_twin
from parity.backends.base import Pair, Twin
from parity.check.result import Result, identical, judge
from parity.check.rungs.base import Options, training_batches

__all__ = ["answers", "main", "repeat"]


def answers(twin: Twin, start: Arrays, tokens: np.ndarray, batch: np.ndarray, lr: float) -> Arrays:
    """Return what a twin computes from these weights: logits, summed loss, and one train step.

    Args:
        twin: of any framework.
        start: weights in canonical names.
        tokens: token ids of the forward passes and their targets, B T1.
        batch: token ids of the train step, B T1.
        lr: learning rate of the train step.
    """
    twin.load(start)
    arrays = {"logits": twin.logits(tokens[:, :-1])}
    arrays["summed loss"] = np.array(twin.evaluate(tokens[:, :-1], tokens[:, 1:])[0])
    step = twin.step(batch, lr)
    arrays |= {"training loss": np.array(step.loss), "gradient norm": np.array(step.grad_norm)}
    arrays |= {f"gradient of {name}": grad for name, grad in step.grads.items()}
    return arrays | {f"updated {name}": value for name, value in step.params.items()}


def repeat(pair: Pair, options: Options) -> Iterator[Result]:
    """Rung 0: compute with each twin twice, then once in a fresh process."""
    tokens = pair.rows(3, min(pair.context, 33) + 1)
    batch, lr = training_batches(pair, 1)[0], learning_rate(pair.config, 0)

    def answer(twin: Twin) -> Arrays:
        return answers(twin, pair.start, tokens, batch, lr)

    with tempfile.TemporaryDirectory() as folder:
        processes, first = [], pair.each(("answers", 1), answer)
        if pair.fresh_process:  # now, since JAX's programs are in its cache of compiled ones
            inputs = {"tokens": tokens, "batch": batch, "lr": np.array(lr)} | _prefixed(pair.start)
            save_file(inputs, Path(folder) / "inputs.safetensors")
            processes = [_start(Path(folder), twin) for twin in pair]
        second = pair.each(("answers", 2), answer)
        for twin, one, other in zip(pair, first, second, strict=True):
            yield _compare(pair, twin, "asked again", one, other)
        for twin, one, process in zip(pair, first, processes, strict=False):
            name, label = twin.backend.framework, twin.backend.label
            if process.wait() != 0:
                raise RuntimeError(f"a fresh process of {label} ended with code {process.returncode}")
            yield _compare(pair, twin, "in a fresh process", one, load_file(Path(folder) / f"{name}.safetensors"))


def _compare(pair: Pair, twin: Twin, what: str, first: Arrays, second: Arrays) -> Result:
    label = twin.backend.label
    differences = [identical(f"{label}'s {key}", first[key], second[key]) for key in first]
    return judge(0, f"{label}, {what}", pair.dtype, differences, 0.0 if pair.on_cpu(twin) else None)


def _prefixed(start: Arrays) -> Arrays:
    return {f"start.{name}": value for name, value in start.items()}


def _start(folder: Path, twin: Twin) -> subprocess.Popen[bytes]:
    """Start a process that computes the answers of one framework."""
    framework = twin.backend.framework
    configs.save(twin.engine.config, folder / f"{framework}.yaml")
    return subprocess.Popen([sys.executable, "-m", "parity.check.rungs.repeat", str(folder), framework])


def main(argv: Sequence[str]) -> int:
    """Compute the answers: `python -m parity.check.rungs.repeat FOLDER FRAMEWORK`, as `repeat` starts it."""
    folder, framework = Path(argv[0]), argv[1]
    inputs = load_file(folder / "inputs.safetensors")
    start = {name.removeprefix("start."): value for name, value in inputs.items() if name.startswith("start.")}
    twin = make_twin(framework, replace(configs.load(folder / f"{framework}.yaml"), run_dir=None))
    arrays = answers(twin, start, inputs["tokens"], inputs["batch"], float(inputs["lr"]))
    save_file({name: np.array(value, order="C") for name, value in arrays.items()}, folder / f"{framework}.safetensors")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
