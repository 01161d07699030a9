"""What the check asks of a framework's twin, and a pair of twins: the same weights and batches in, NumPy arrays out.

A twin drives the framework's real `Engine`, so that the code which is compared is the code that trains. Where the
ladder needs what the engine does not return (activations, gradients before the clip), a twin hooks into the real
modules; it never computes a copy. Weights, gradients and moments carry canonical names and layouts, whichever twin they
come from: those of `CANONICAL` in the table of names.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np

from lmcore.config import Config, Precision, SampleConfig
from lmcore.generate.prompting import write_tokens
from lmcore.optim.schedule import learning_rate
from parity.convert.moments import Moments
from parity.convert.names import Side

__all__ = [
    "CANONICAL",
    "Arrays",
    "Backend",
    "Device",
    "Pair",
    "Step",
    "Twin",
    "check_config",
    "generate",
    "moved_by_one_ulp",
    "train",
]

Arrays = dict[str, np.ndarray]
"""Name -> array, in order."""

Device = Literal["auto", "cpu", "cuda", "mps"]
"""As in `train.device`."""

CANONICAL: Side = "jax"
"""Whose names and layout, in `parity.convert.names`, all arrays of the check have."""

MAX_BATCH, ACCUMULATED, MAX_LENGTH = 4, 2, 64
"""Sequences, micro-batches and tokens of a sequence in the check's training batches: the mathematics of a longer batch
is the same, and a hundred steps stay affordable."""


@dataclass(frozen=True, kw_only=True)
class Backend:
    """What is known of a framework's twin without importing the framework."""

    framework: str
    """Its name in `BACKENDS`, in checkpoints and in JSON."""
    label: str
    """Its name in the lines of a check."""
    title: str
    """Its name in headings."""
    package: str
    """The package of the twin that it drives."""
    side: Side
    """Whose names and layout the twin's parameters have, in `parity.convert.names`."""
    twin: str
    """The class that drives it, as `module:name`, imported when a twin is first made."""
    devices: tuple[Device, ...]
    """Where it can run."""
    distributions: tuple[str, ...]
    """Packages whose versions a report gives."""
    settings: Callable[[], AbstractContextManager[None]]
    """Restores, where it ends, what the engine sets for the whole process."""


@dataclass(frozen=True)
class Step:
    """One update: what it computed."""

    loss: float
    grad_norm: float
    grads: Arrays
    """Before the clip, as the engine computes them."""
    params: Arrays
    moments: dict[str, Arrays]
    """The optimizer's state: kind, as in `parity.convert.moments` -> by parameter."""


@runtime_checkable
class Twin(Protocol):
    """One framework's model, as the ladder sees it."""

    backend: Backend
    engine: Any
    """The framework's own, an `lmcore.run.trainer.Engine`."""
    rounded_correction: str
    """What computes 1 − β^t in less than double precision, for people; empty where nothing does."""

    def initial(self) -> Arrays:
        """The weights that the engine itself starts from."""

    def load(self, params: Arrays, moments: Moments | None = None, step: int = 0) -> None:
        """Set the weights, and the optimizer's state after `step` updates; without moments, a new one."""

    def params(self) -> Arrays:
        """The weights now."""

    def received(self, batch: np.ndarray) -> np.ndarray:
        """What the train step gets of a batch of token ids, A B T1."""

    def activations(self, tokens: np.ndarray) -> Arrays:
        """Everything from the embedding to the final norm for tokens B T, in the order of computation."""

    def logits(self, tokens: np.ndarray) -> np.ndarray:
        """Full forward pass of tokens B T: B T V."""

    def token_losses(self, logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """Cross-entropy of each position, in nats, from logits B T V and targets B T."""

    def evaluate(self, tokens: np.ndarray, targets: np.ndarray) -> tuple[float, int]:
        """Summed loss in nats and number of targets that count, of tokens and targets B T."""

    def step(self, batch: np.ndarray, lr: float, grads: Arrays | None = None) -> Step:
        """One update on a batch B T1; `grads`, if any, replace the twin's own before the clip."""

    def bias_correction(self, beta: float, count: int, dtype: np.dtype) -> float:
        """1 − β^t at update `count`, as the optimizer computes it for parameters of `dtype`."""

    def choose(self, logits: np.ndarray, uniforms: np.ndarray, options: SampleConfig) -> np.ndarray:
        """Token ids B that a generator chooses from logits B V, with one uniform number for each sequence."""

    def decode(self, tokens: np.ndarray, pads: np.ndarray, prompt: int, size: int) -> np.ndarray:
        """Logits after the first `prompt` positions and after each further one, by the KV cache: B S V.

        Args:
            tokens: ids, B T, padded on the left.
            pads: number of padding positions of each sequence, B.
            prompt: positions of the prefill.
            size: positions of the cache.
        """


def generate(
    twin: Twin, prompts: Sequence[Sequence[int]], options: SampleConfig, context: int, first: int = 0
) -> np.ndarray:
    """Return the token ids, B × tokens, that a twin decodes after the prompts.

    Args:
        twin: with weights.
        prompts: token ids of each.
        options: of the draws.
        context: positions of the model.
        first: number of tokens that were decoded before, at the end of the prompts.
    """
    generator = twin.engine.generator(options)
    return np.concatenate(list(write_tokens(generator, prompts, options, context=context, pad=0, first=first)), axis=1)


def train(twin: Twin, config: Config, params: Arrays, batches: Sequence[np.ndarray]) -> np.ndarray:
    """Return the losses of a run, one a step, through the engine's own train step.

    Args:
        twin: whose weights and optimizer state are replaced.
        config: its schedule.
        params: the weights that the run starts from.
        batches: of all steps, each B T1.
    """
    twin.load(params)
    losses = [twin.engine.train_step(batch, learning_rate(config, step))["loss"] for step, batch in enumerate(batches)]
    return np.array([float(loss) for loss in losses])


class Pair:
    """Two twins of one config in one precision, in order, and their common inputs: `for twin in pair`.

    Answers are cached by framework, so that several faulty twins can be compared with one healthy one.
    """

    def __init__(self, reference: Twin, port: Twin, config: Config, params: Arrays, tokens: np.ndarray, fresh: bool):
        assert reference.backend.framework != port.backend.framework, "answers are cached by framework"
        self.reference, self.port = reference, port
        """The port is compared with the reference; where it follows a run, it takes the reference's states."""
        self.config = config
        self.start = params
        """Weights in canonical names, in the parameters' type."""
        self.tokens = tokens
        """Token ids of the text, a vector."""
        self.fresh = fresh
        """Whether the weights are the engines' own initial ones."""
        self.fresh_process = True
        """Whether rung 0 asks in a process of its own too."""
        self.answers: dict[str, dict[Any, Any]] = {twin.backend.framework: {} for twin in self}
        """Framework -> question -> answer."""

    def __iter__(self) -> Iterator[Twin]:
        yield self.reference
        yield self.port

    def with_weights(self, params: Arrays) -> "Pair":
        """The same twins and text with other weights than the initial ones; nothing is cached."""
        return Pair(self.reference, self.port, self.config, params, self.tokens, fresh=False)

    def with_twins(self, reference: Twin, port: Twin) -> "Pair":
        """The same weights and text for other twins; a twin of this pair brings its answers."""
        pair = Pair(reference, port, self.config, self.start, self.tokens, self.fresh)
        pair.fresh_process = self.fresh_process
        for twin in pair:
            if twin is self.reference or twin is self.port:
                pair.answers[twin.backend.framework] = self.answers[twin.backend.framework]
        return pair

    @property
    def labels(self) -> tuple[str, str]:
        """Both frameworks' names in the lines of a check."""
        return self.reference.backend.label, self.port.backend.label

    @property
    def dtype(self) -> Precision:
        """Precision of the matmuls."""
        return self.config.train.precision

    def ask(self, twin: Twin, question: Any, answer: Callable[[Twin], Any]) -> Any:
        """Ask one twin; `question` names what is asked, so that it is computed once.

        Args:
            twin: one of the two.
            question: a hashable name.
            answer: computes it.
        """
        cached = self.answers[twin.backend.framework]
        if question not in cached:
            cached[question] = answer(twin)
        return cached[question]

    def each(self, question: Any, answer: Callable[[Twin], Any]) -> tuple[Any, Any]:
        """Ask both twins, the reference first, as `ask` does."""
        return self.ask(self.reference, question, answer), self.ask(self.port, question, answer)

    def loaded(self, twin: Twin) -> Twin:
        """A twin with the starting weights and a new optimizer state."""
        twin.load(self.start)
        return twin

    def on_cpu(self, twin: Twin) -> bool:
        """Whether a twin runs where the same computation gives the same bits."""
        return "cpu" in twin.engine.device_name.lower()

    @property
    def context(self) -> int:
        """Longest sequence that the model takes."""
        return self.config.model.max_seq_len

    def rows(self, count: int, length: int, first: int = 0) -> np.ndarray:
        """Return sequences of the text, evenly spread over it, B T; a text that is too short starts again.

        Args:
            count: number of sequences, B.
            length: tokens of each, T.
            first: position in the text of the first one.
        """
        starts = first + np.arange(count) * max(1, len(self.tokens) // count)
        where = (starts[:, None] + np.arange(length)[None]) % len(self.tokens)
        return self.tokens[where].astype(np.int32)


def check_config(config: Config, precision: Precision) -> Config:
    """The config that both twins are checked with: small batches in two parts, nothing recomputed.

    Dropout is as it is, with the same masks in both.
    """
    seq_len = min(config.train.seq_len, MAX_LENGTH)
    train = replace(
        config.train,
        batch_size=MAX_BATCH,
        grad_accum=ACCUMULATED,
        seq_len=seq_len,
        precision=precision,
        cpu_devices=1,
        remat=False,
        compile=False,
        dropout_masks="threefry",
    )
    return replace(config, train=train)


def moved_by_one_ulp(params: Arrays, seed: int, precision: Precision = "float32") -> Arrays:
    """Return every weight moved to the next number, up or down by chance.

    Args:
        params: by name.
        seed: of the directions.
        precision: of the matmuls; for bfloat16 the next number is that of bfloat16, else that of the array's own type.
    """
    rng = np.random.default_rng(seed)
    moved = {}
    for name, value in params.items():
        up = rng.random(value.shape) < 0.5
        if precision == "bfloat16":
            moved[name] = (value * np.where(up, 1 + 2.0**-8, 1 - 2.0**-8)).astype(value.dtype)
        else:
            moved[name] = np.nextafter(value, np.where(up, np.inf, -np.inf).astype(value.dtype))
    return moved
