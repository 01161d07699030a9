"""The interface of a framework's twin to the check, and a pair of twins: weights and batches in, NumPy arrays out.

A twin drives the framework's real `Engine`, so that the code which is compared is the code that trains. For what the
engine does not return (activations, gradients before the clip), a twin hooks into the real modules; it never computes a
copy. Weights, gradients and moments have canonical names and layouts, whichever twin they come from: those of
`CANONICAL` in the table of names.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np

from lmcore.config import Config, Precision, SampleConfig
from lmcore.data.marks import token_ids
from lmcore.generate.prompting import write_tokens
from lmcore.model.quantize import Quantized, WeightFormat
from lmcore.optim.schedule import learning_rate
from lmcore.serve.slots import Sampling, Slots
from parity.arrays import Arrays
from parity.convert.moments import Moments
from parity.convert.names import Side

__all__ = [
    "CANONICAL",
    "Backend",
    "Device",
    "Pair",
    "Step",
    "Twin",
    "check_config",
    "generate",
    "train",
]

Device = Literal["auto", "cpu", "cuda", "mps"]
"""As in `train.device`."""

CANONICAL: Side = "jax"
"""Side in `parity.convert.names` whose names and layout all arrays of the check have."""

MAX_BATCH, ACCUMULATED, MAX_LENGTH = 4, 2, 32
"""Sequences, micro-batches and tokens of a sequence in the check's training batches: the mathematics of a longer batch
is the same, and a hundred steps stay affordable."""


@dataclass(frozen=True, kw_only=True)
class Backend:
    """Description of a framework's twin that does not need the framework to be imported."""

    framework: str
    """Its name in `BACKENDS`, in checkpoints and in JSON."""
    label: str
    """Its name in the lines of a check."""
    title: str
    """Its name in headings."""
    package: str
    """The package of the twin that it drives."""
    side: Side
    """Side in `parity.convert.names` whose names and layout the twin's parameters have."""
    twin: str
    """The class that drives it, as `module:name`, imported when a twin is first created."""
    devices: tuple[Device, ...]
    """Devices on which it can run."""
    distributions: tuple[str, ...]
    """Packages whose versions a report lists."""
    settings: Callable[[], AbstractContextManager[None]]
    """Context that restores, at its end, what the engine sets for the whole process."""


@dataclass(frozen=True)
class Step:
    """Results of one update."""

    loss: float
    grad_norm: float
    grads: Arrays
    """Gradients before the clip, as the engine computes them."""
    params: Arrays
    moments: dict[str, Arrays]
    """The optimizer's state: kind, as in `parity.convert.moments` -> parameter -> array."""


@runtime_checkable
class Twin(Protocol):
    """One framework's model, with the operations that the ladder compares."""

    backend: Backend
    engine: Any
    """The framework's own engine, an `lmcore.run.engine.Engine`."""
    rounded_correction: str
    """Name, for reports, of what computes 1 − β^t in less than double precision; empty where nothing does."""

    def initial(self) -> Arrays:
        """Return the weights that the engine itself starts from."""

    def load(self, params: Arrays, moments: Moments | None = None, step: int = 0) -> None:
        """Set the weights, and the optimizer's state after `step` updates; without moments, a new one.

        Args:
            params: weights in canonical names.
            moments: the optimizer's state, in canonical names; None for a new one.
            step: number of updates so far.
        """

    def params(self) -> Arrays:
        """Return the current weights."""

    def received(self, batch: np.ndarray) -> np.ndarray:
        """Return the token ids, A B T1, that the train step receives for a batch."""

    def activations(self, tokens: np.ndarray) -> Arrays:
        """Return all activations from the embedding to the final norm for tokens B T, in the order of computation.

        Here, in `logits`, in `evaluate` and in `step`, tokens may have marks (`lmcore.data.marks`) where the config's
        data have them.
        """

    def logits(self, tokens: np.ndarray) -> np.ndarray:
        """Return the logits B T V of a full forward pass of tokens B T."""

    def token_losses(self, logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """Return the cross-entropy of each position, in nats, from logits B T V and targets B T."""

    def evaluate(self, tokens: np.ndarray, targets: np.ndarray) -> tuple[float, int]:
        """Return the summed loss in nats, and the number of targets that count, of tokens and targets B T."""

    def step(self, batch: np.ndarray, lr: float, grads: Arrays | None = None) -> Step:
        """Update the parameters once, and return what was computed.

        Args:
            batch: token ids, B T1.
            lr: learning rate.
            grads: gradients that replace the twin's own before the clip; None to use its own.
        """

    def bias_correction(self, beta: float, count: int, dtype: np.dtype) -> float:
        """Return 1 − β^t at update `count`, as the optimizer computes it.

        Args:
            beta: β1 or β2.
            count: number of the update, from 1.
            dtype: of the parameters.
        """

    def choose(self, logits: np.ndarray, uniforms: np.ndarray, options: SampleConfig | Sampling) -> np.ndarray:
        """Return the token ids B that a generator chooses.

        Args:
            logits: of the next token, B V.
            uniforms: one uniform number in [0, 1) for each sequence, B.
            options: of all draws, or of each.
        """

    def slots(self, count: int, size: int) -> Slots:
        """Return a cache for `count` sequences of at most `size` tokens, which join and leave."""

    def int8_layers(self) -> dict[str, Quantized]:
        """Return dotted name of each linear layer -> the weights that a generator with int8 weights decodes with."""

    def decode(
        self, tokens: np.ndarray, pads: np.ndarray, prompt: int, size: int, weights: WeightFormat = "full"
    ) -> np.ndarray:
        """Return the logits B S V after the prompt and after each further token, with the KV cache.

        Args:
            tokens: token ids, B T, padded on the left.
            pads: number of padding positions of each sequence, B.
            prompt: number of positions of the prefill.
            size: number of slots of the cache.
            weights: form of the generator's weights.
        """


def generate(
    twin: Twin, prompts: Sequence[Sequence[int]], options: SampleConfig, context: int, first: int = 0
) -> np.ndarray:
    """Return the token ids B T that a twin decodes after the prompts.

    Args:
        twin: with its weights loaded.
        prompts: token ids of each prompt.
        options: of the draws.
        context: maximum number of positions of the model.
        first: number of tokens at the end of the prompts that were decoded already.
    """
    generator = twin.engine.generator(options)
    return np.concatenate(list(write_tokens(generator, prompts, options, context=context, pad=0, first=first)), axis=1)


def train(twin: Twin, config: Config, params: Arrays, batches: Sequence[np.ndarray]) -> np.ndarray:
    """Return the losses of a run, one per step, from the engine's own train step.

    Args:
        twin: its weights and optimizer state are replaced.
        config: of the run; its schedule gives the learning rates.
        params: weights that the run starts from.
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
        """The port is compared with the reference; on rung 7 it is loaded with the reference's states."""
        self.config = config
        self.start = params
        """Weights in canonical names, in the parameters' dtype."""
        self.tokens = tokens
        """Token ids of the text, a vector; with their marks where the config's data have them."""
        self.fresh = fresh
        """Whether the weights are the engines' own initial ones."""
        self.fresh_process = True
        """Whether rung 0 repeats the computation in a fresh process too."""
        self.answers: dict[str, dict[Any, Any]] = {twin.backend.framework: {} for twin in self}
        """Framework -> question -> answer."""

    def __iter__(self) -> Iterator[Twin]:
        yield self.reference
        yield self.port

    def with_weights(self, params: Arrays) -> "Pair":
        """Return the same twins and text with other weights than the initial ones, and an empty cache."""
        return Pair(self.reference, self.port, self.config, params, self.tokens, fresh=False)

    def with_twins(self, reference: Twin, port: Twin) -> "Pair":
        """Return the same weights and text for other twins; a twin of this pair keeps its cached answers."""
        pair = Pair(reference, port, self.config, self.start, self.tokens, self.fresh)
        pair.fresh_process = self.fresh_process
        for twin in pair:
            if twin is self.reference or twin is self.port:
                pair.answers[twin.backend.framework] = self.answers[twin.backend.framework]
        return pair

    @property
    def labels(self) -> tuple[str, str]:
        """Labels of both frameworks in the lines of a check."""
        return self.reference.backend.label, self.port.backend.label

    @property
    def dtype(self) -> Precision:
        """Precision of the matmuls."""
        return self.config.train.precision

    def ask(self, twin: Twin, question: Any, answer: Callable[[Twin], Any]) -> Any:
        """Return one twin's answer to a question, computed once and cached.

        Args:
            twin: one of the two.
            question: a hashable name for what is computed.
            answer: computes it.
        """
        cached = self.answers[twin.backend.framework]
        if question not in cached:
            cached[question] = answer(twin)
        return cached[question]

    def each(self, question: Any, answer: Callable[[Twin], Any]) -> tuple[Any, Any]:
        """Return both twins' answers, the reference's first, cached as by `ask`."""
        return self.ask(self.reference, question, answer), self.ask(self.port, question, answer)

    def loaded(self, twin: Twin) -> Twin:
        """Load a twin with the starting weights and a new optimizer state, and return it."""
        twin.load(self.start)
        return twin

    def on_cpu(self, twin: Twin) -> bool:
        """Return whether a twin runs on a CPU, where the same computation gives the same bits."""
        return "cpu" in twin.engine.device_name.lower()

    @property
    def context(self) -> int:
        """Maximum number of positions of the model."""
        return self.config.model.max_seq_len

    def rows(self, count: int, length: int, first: int = 0, marked: bool = False) -> np.ndarray:
        """Return sequences B T of the text, evenly spread over it; a text that is too short is repeated.

        Args:
            count: number of sequences, B.
            length: number of tokens of each, T.
            first: position of the first one in the text.
            marked: whether to leave the marks on them.
        """
        starts = first + np.arange(count) * max(1, len(self.tokens) // count)
        positions = (starts[:, None] + np.arange(length)[None]) % len(self.tokens)
        rows = self.tokens[positions].astype(np.int32)
        return rows if marked else token_ids(rows)


def check_config(config: Config, precision: Precision) -> Config:
    """Return the config that both twins are checked with: small batches in two micro-batches, without remat.

    Dropout is unchanged, with the same masks in both.
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
