"""The interface of a framework's engine to the training loop, and the validation loss, which any engine computes."""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int32

from lmcore.config import Config, SampleConfig
from lmcore.data.batches import Tokens, eval_windows
from lmcore.data.packing import packed_windows
from lmcore.errors import UserError
from lmcore.generate import prompting
from lmcore.model.init import Weights
from lmcore.model.quantize import WeightFormat
from lmcore.run.processes import ALONE, Processes
from lmcore.run.trackers import Row

__all__ = ["Engine", "EngineClass", "evaluate"]


@runtime_checkable
class Engine(Protocol):
    """The mathematics of a run, in one framework."""

    framework: str
    package: str
    """Name of the twin, for the commands that messages suggest."""

    @property
    def parameter_count(self) -> int:
        """Number of trained parameters."""

    @property
    def device_name(self) -> str:
        """Device that the model runs on, for messages."""

    @property
    def peak_flops(self) -> float | None:
        """Sum of the peaks of all devices in use, in FLOP/s; None if unknown."""

    @property
    def shard(self) -> tuple[int, int]:
        """(index, count): this process computes the index-th of `count` equal, contiguous parts of each micro-batch."""

    def init(self, weights: Weights | None = None) -> None:
        """Start at step 0 with these weights; None initializes them from `train.seed` (`lmcore.model.init`).

        Those that `load_base` has loaded stay.
        """

    def load_base(self, folder: Path) -> None:
        """Load all weights but the adapters' from a saved state that has no adapters, before `init` or `restore`."""

    def train_step(self, batch: Int32[np.ndarray, "B T1"], lr: float) -> dict[str, Any]:
        """Do one update; return `loss`, `grad_norm` and further metrics as device scalars, without waiting for them."""

    def eval_step(self, tokens: Int32[np.ndarray, "B T"], targets: Int32[np.ndarray, "B T"]) -> tuple[Any, Any]:
        """Return the sum of token losses and the number of targets that are not −1, as device scalars.

        The sequences are this process's own, as in `train_step`; the sums are over all processes.
        """

    def is_finite(self) -> bool:
        """Return whether parameters and optimizer state are free of infinities and NaN; waits for the device."""

    def save(self, folder: Path) -> Callable[[], None]:
        """Copy the state and start writing it; the returned function waits for that and opens the files as a test.

        All processes call it, with a folder whose parent is there. In process 0, the returned function waits for all.
        """

    def restore(self, folder: Path, optimizer: bool = True) -> None:
        """Load what `save` has saved; `optimizer=False` skips the optimizer state, to evaluate or generate."""

    def generator(self, options: SampleConfig, weights: WeightFormat = "full") -> prompting.Generator:
        """Return a generator of text with the current weights; all processes call it, and the first may use it."""


@runtime_checkable
class EngineClass(Protocol):
    """The class of an `Engine`, as the training loop uses it."""

    framework: str

    def check_machine(self, config: Config, processes: Processes = ALONE) -> None:
        """Raise UserError unless this machine has the device and precision; called before anything is written."""

    def joined(self, config: Config) -> AbstractContextManager[Processes]:
        """Join the processes that a launcher started, before the first use of a device."""

    def __call__(self, config: Config, processes: Processes = ALONE) -> Engine:
        """Create an engine for a config whose vocabulary size is set."""


def evaluate(engine: Engine, tokens: Tokens, config: Config, windows: int) -> Row:
    """Evaluate the model: the mean token loss over evenly spaced windows of a text, or rows of conversations.

    Args:
        engine: the model; each of its processes evaluates its part of every batch.
        tokens: the text.
        config: its sequence length and evaluation batch size are used.
        windows: number of windows; 0 takes all of the text.

    Returns:
        valid_loss in nats per token, valid_perplexity, and valid_bits_per_byte by the whole text's bytes per token.
    """
    index, count = engine.shard
    rows = -(-config.eval.batch_size // count)  # the last may be empty: eval_windows pads with such
    own = slice(index * rows, (index + 1) * rows)
    windows_of = packed_windows if config.data.format == "chat" else eval_windows
    batches = windows_of(tokens, seq_len=config.train.seq_len, batch_size=rows * count, windows=windows)
    sums = [(float(loss), int(count)) for loss, count in (engine.eval_step(x[own], y[own]) for x, y in batches)]
    targets = sum(count for _, count in sums)
    if targets == 0:
        raise UserError("eval.windows: found no token to predict in what is evaluated, expected some; set it to 0")
    loss = math.fsum(loss for loss, _ in sums) / targets
    return {
        "valid_loss": loss,
        "valid_perplexity": math.exp(min(loss, 700.0)),
        "valid_bits_per_byte": loss / math.log(2) / tokens.bytes_per_token,
    }
