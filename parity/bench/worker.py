"""One implementation of a benchmark, alone in its process: it computes on request, and otherwise waits on a pipe.

`parity.bench.rounds` writes an order to standard input, one JSON line `{"do": NAME, ...}`, and reads one back.
Whatever a library prints goes to standard error. Times are on the wall; `cpu` is processor time over all threads.
"""

import contextlib
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from lmcore.config import Config, from_dict
from lmcore.errors import UserError
from lmcore.hardware import keep_freed_memory, resident
from parity.bench.base import GeneratingImplementation, Implementation, TrainingImplementation
from parity.bench.implementations import make_implementation

__all__ = ["Worker", "main"]


class Worker:
    """What an order can ask for: a public method by its name, its fields the arguments, its result the answer."""

    config: Config
    implementation: Implementation

    def __init__(self) -> None:
        self.rested = time.perf_counter(), time.process_time()

    def obey(self, order: dict[str, Any]) -> dict[str, Any]:
        """Answer an order, with what processor time was used since the last one, when this process should have slept.

        Raises:
            UserError: the implementation cannot do what is asked.
        """
        wall, cpu = self.rested
        idle = {"idle_seconds": time.perf_counter() - wall, "idle_cpu_seconds": time.process_time() - cpu}
        answer = getattr(self, order.pop("do"))(**order)
        self.rested = time.perf_counter(), time.process_time()
        return answer | idle

    def make(self, implementation: str, mode: str, config: dict[str, Any]) -> dict[str, Any]:
        """Load the framework and put the initial weights in place."""
        self.config = from_dict(Config, config)
        self.implementation = make_implementation(implementation, self.config, mode)
        self.implementation.wait()
        names = "device", "parameters", "peak", "step_flops"
        return {"start_bytes": resident("VmRSS")} | {name: getattr(self.implementation, name) for name in names}

    def train(self, step: int, count: int, warm: int = 0) -> dict[str, Any]:
        """Do `count` updates, on the batches of `step` and those that follow; the first `warm` are not timed."""
        assert isinstance(self.implementation, TrainingImplementation)
        train, vocab_size, lr = self.config.train, self.config.model.vocab_size, self.config.optim.lr
        shape = train.batch_size, train.seq_len + 1
        batches = [
            np.random.default_rng([train.seed, number]).integers(vocab_size, size=shape, dtype=np.int32)
            for number in range(step, step + count)
        ]
        losses = [self.implementation.step(batch, lr) for batch in batches[:warm]]
        self.implementation.wait(losses)
        keep_freed_memory()  # as `train` does after its first update
        begin, busy = time.perf_counter(), time.process_time()
        losses += [self.implementation.step(batch, lr) for batch in batches[warm:]]
        self.implementation.wait(losses)
        timed = {"seconds": time.perf_counter() - begin, "cpu_seconds": time.process_time() - busy}
        return timed | {"losses": [float(loss) for loss in losses]}

    def logits(self, sequences: int, length: int) -> dict[str, Any]:
        """Some logits of the tokens that follow the prompts."""
        assert isinstance(self.implementation, GeneratingImplementation)
        return {"logits": self.implementation.logits(self._prompts(sequences, length)).ravel().tolist()}

    def generate(self, sequences: int, length: int) -> dict[str, Any]:
        """Prefill prompts and decode after them."""
        assert isinstance(self.implementation, GeneratingImplementation)
        busy = time.process_time()
        prefill, decode = self.implementation.generate(self._prompts(sequences, length))
        return {"prefill_seconds": prefill, "decode_seconds": decode, "cpu_seconds": time.process_time() - busy}

    def settle(self) -> dict[str, Any]:
        """Let the most memory resident count from now on."""
        with contextlib.suppress(OSError):  # only Linux has it
            Path("/proc/self/clear_refs").write_text("5")
        return {}

    def memory(self) -> dict[str, Any]:
        """Most memory in use at once so far."""
        return {"rss_bytes": resident("VmHWM"), "device_bytes": self.implementation.device_bytes()}

    def _prompts(self, sequences: int, length: int) -> np.ndarray:
        rng = np.random.default_rng([self.config.train.seed, sequences])
        return rng.integers(self.config.model.vocab_size, size=(sequences, length), dtype=np.int32)


def main() -> None:
    """Obey until the orders end."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print is no answer
    worker = Worker()
    for line in sys.stdin:
        try:
            answer = worker.obey(json.loads(line))
        except UserError as error:
            answer = {"mistake": str(error)}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
