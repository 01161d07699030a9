"""What the ladder asks of a twin, and the pair of them: the same weights and batches in, NumPy arrays out.

A twin drives the framework's real `Engine`, so that the code which is compared is the code that trains. Where the
ladder needs what the engine keeps to itself (activations, gradients before the clip) a twin listens in on the real
modules; it never computes a copy. Weights and gradients carry JAX's names and layout on both sides: what comes from
torch has passed through the table of names.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np

from lmcore.config import Config, Precision, SampleConfig
from lmcore.generate.prompting import write_tokens
from lmcore.optim.schedule import learning_rate
from parity.convert.moments import Moments

__all__ = [
    "Arrays",
    "Device",
    "Pair",
    "Step",
    "Twin",
    "check_config",
    "framework_settings",
    "moved_by_one_ulp",
]

Arrays = dict[str, np.ndarray]
"""Name -> array, in order."""

Device = Literal["auto", "cpu", "cuda", "mps"]
"""As in `train.device`."""

ROWS, ACCUMULATED, LENGTH = 4, 2, 64
"""Most sequences, micro-batches and tokens in a row of the check's training batches: the mathematics of a longer
batch is the same, and a hundred steps stay affordable."""


@dataclass(frozen=True)
class Step:
    """One update: what went in and came out."""

    loss: float
    grad_norm: float
    grads: Arrays
    """Before the clip, as the engine made them."""
    params: Arrays
    moments: dict[str, Arrays]
    """What the optimizer remembers: kind, as in `parity.convert.moments` -> by parameter."""


@runtime_checkable
class Twin(Protocol):
    """One framework's model, as the ladder sees it."""

    framework: str
    engine: Any
    """The framework's own, an `lmcore.run.trainer.Engine`."""

    def initial(self) -> Arrays:
        """The weights that the engine itself starts from."""

    def load(self, params: Arrays, moments: Moments | None = None, step: int = 0) -> None:
        """Put weights in, and the optimizer's state after `step` updates; without moments, a new one."""

    def params(self) -> Arrays:
        """The weights now."""

    def received(self, batch: np.ndarray) -> np.ndarray:
        """What the train step gets of a batch, A B T1."""

    def activations(self, tokens: np.ndarray) -> Arrays:
        """Everything from the embedding to the final norm, in the order of computation."""

    def logits(self, tokens: np.ndarray) -> np.ndarray:
        """Full forward pass, B T V."""

    def token_losses(self, logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """Cross-entropy of each position, from given logits."""

    def evaluate(self, tokens: np.ndarray, targets: np.ndarray) -> tuple[float, int]:
        """Summed loss and number of targets that count."""

    def step(self, batch: np.ndarray, lr: float, given: Arrays | None = None) -> Step:
        """One update, with the gradients `given` in the place of its own."""

    def choose(self, logits: np.ndarray, uniforms: np.ndarray, options: SampleConfig) -> np.ndarray:
        """Token ids that a generator chooses from logits B V, with one uniform number for each row."""

    def decode(self, tokens: np.ndarray, pads: np.ndarray, prompt: int, size: int) -> np.ndarray:
        """Logits after the first `prompt` columns and after each further one, by the cache: B S V."""


def write(
    twin: Twin, prompts: Sequence[Sequence[int]], options: SampleConfig, context: int, first: int = 0
) -> np.ndarray:
    """Token ids that a twin decodes after the prompts, of which `first` tokens were decoded before."""
    generator = twin.engine.generator(options)
    return np.concatenate(list(write_tokens(generator, prompts, options, context=context, pad=0, first=first)), axis=1)


def train(twin: Twin, config: Config, params: Arrays, batches: Sequence[np.ndarray]) -> np.ndarray:
    """Losses of a run from these weights, through the engine's own train step."""
    twin.load(params)
    losses = [twin.engine.train_step(batch, learning_rate(config, step))["loss"] for step, batch in enumerate(batches)]
    return np.array([float(loss) for loss in losses])


class Pair:
    """Two twins of one config in one precision, and what both are fed.

    Results of a side are kept, so that several faulty twins can be held against one healthy one.
    """

    def __init__(self, jax: Twin, torch: Twin, config: Config, params: Arrays, tokens: np.ndarray, fresh: bool):
        self.jax, self.torch, self.config = jax, torch, config
        self.start = params
        """Weights, JAX names, in the parameters' type."""
        self.tokens = tokens
        """Token ids of the text, in a row."""
        self.fresh = fresh
        """Whether the weights are the engines' own initial ones."""
        self.fresh_process = True
        """Whether rung 0 asks in a process of its own too."""
        self.kept: dict[str, dict[Any, Any]] = {"jax": {}, "torch": {}}

    @property
    def dtype(self) -> Precision:
        """Precision of the matrix products."""
        return self.config.train.precision

    def each(self, what: Any, ask: Callable[[Twin], Any]) -> tuple[Any, Any]:
        """Ask both sides, JAX first; `what` names the question, so that it is asked once."""
        answers = []
        for twin in (self.jax, self.torch):
            kept = self.kept[twin.framework]
            if what not in kept:
                kept[what] = ask(twin)
            answers.append(kept[what])
        return answers[0], answers[1]

    def loaded(self, twin: Twin) -> Twin:
        """A twin with the starting weights, its optimizer's state new."""
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
        """Sequences of the text, evenly spread over it, B T; a text that is too short starts again."""
        starts = first + np.arange(count) * max(1, len(self.tokens) // count)
        where = (starts[:, None] + np.arange(length)[None]) % len(self.tokens)
        return self.tokens[where].astype(np.int32)


def check_config(config: Config, precision: Precision) -> Config:
    """The config that both twins are checked with: small batches in two parts, nothing recomputed.

    Dropout is as it is, with the same masks in both.
    """
    seq_len = min(config.train.seq_len, LENGTH)
    train = replace(
        config.train,
        batch_size=ROWS,
        grad_accum=ACCUMULATED,
        seq_len=seq_len,
        precision=precision,
        cpu_devices=1,
        remat=False,
        compile=False,
        dropout_masks="threefry",
    )
    return replace(config, train=train)


@contextmanager
def framework_settings() -> Iterator[None]:
    """Leave the process as it was: engines set number types for all of it."""
    import jax
    import torch

    names = ("jax_enable_x64", "jax_default_matmul_precision", "jax_compilation_cache_dir", "jax_platforms")
    before = {name: getattr(jax.config, name) for name in names}
    products, deterministic = torch.get_float32_matmul_precision(), torch.are_deterministic_algorithms_enabled()
    try:
        yield
    finally:
        for name, value in before.items():
            jax.config.update(name, value)
        torch.set_float32_matmul_precision(products)
        torch.use_deterministic_algorithms(deterministic)


def moved_by_one_ulp(params: Arrays, seed: int, precision: Precision = "float32") -> Arrays:
    """Every weight moved to the next number, up or down by chance: of its type, or of bfloat16 for such matmuls."""
    rng = np.random.default_rng(seed)
    moved = {}
    for name, value in params.items():
        up = rng.random(value.shape) < 0.5
        if precision == "bfloat16":
            moved[name] = (value * np.where(up, 1 + 2.0**-8, 1 - 2.0**-8)).astype(value.dtype)
        else:
            moved[name] = np.nextafter(value, np.where(up, np.inf, -np.inf).astype(value.dtype))
    return moved
