"""A language model in NumPy that keeps the protocol `Slots`, and a server of it for tests.

Its next token depends on every token so far and on their order, so that a slot that leaks, or a token that is lost,
changes the text.
"""

import asyncio
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np

from lmcore.config import ModelConfig, SampleConfig, TokenizerConfig
from lmcore.data import tokenizer as tokenizers
from lmcore.data.chat import CHATML, ChatTemplate
from lmcore.data.tokenizer import Tokenizer
from lmcore.generate.prompting import draw_uniforms
from lmcore.serve.app import Settings
from lmcore.serve.command import make_server, serve
from lmcore.serve.scheduler import Scheduler
from lmcore.serve.served import Served
from lmcore.serve.slots import Sampling

LAYERS, HEADS = 2, 2
CONTEXT = 96


def next_logits(tokens: list[int], vocab: int) -> np.ndarray:
    """Logits that depend on all tokens: mostly a lowercase letter or a space, seldom another byte or the end."""
    state = 1
    for position, token in enumerate(tokens):
        state = (state * 1_000_003 + token * 31 + position) % (1 << 61)
    logits = np.random.Generator(np.random.Philox(key=state)).normal(size=vocab).astype(np.float32)
    logits[: min(256, vocab)] -= 4
    letters = [*range(ord("a"), ord("z") + 1), ord(" ")]
    logits[letters] += 6
    return logits


def choose(logits: np.ndarray, uniform: float, temperature: float, top_k: int, top_p: float, min_p: float) -> int:
    """The documented rule of sampling, in float64."""
    if temperature == 0:
        return int(logits.argmax())
    logits = (logits.astype(np.float64) - logits.max()) / temperature
    order = np.argsort(-logits, kind="stable")
    if 0 < top_k < len(logits):
        logits[logits < logits[order[top_k - 1]]] = -np.inf
    weights = np.exp(logits)
    weights /= weights.sum()
    before = np.cumsum(weights[order]) - weights[order]
    if top_p < 1:
        weights[order[before >= top_p]] = 0
    weights[weights < min_p * weights.max()] = 0
    sums = np.cumsum(weights)
    return int(np.searchsorted(sums, uniform * sums[-1], side="right"))


class Toy:
    """Slots of the model; `delay` is the time that a step takes."""

    def __init__(self, count: int = 3, size: int = CONTEXT, vocab: int = 259, delay: float = 0.0):
        self.count, self.size, self.vocab, self.delay = count, size, vocab, delay
        self.rows: list[list[int]] = [[] for _ in range(count)]
        self.nan = False
        self.broken = False
        self.steps: list[int] = []
        self.prefills = 0
        self.thread: int | None = None

    def _check_thread(self) -> None:
        self.thread = self.thread or threading.get_ident()
        assert self.thread == threading.get_ident(), "only one thread may use the slots"

    def _logits(self, row: list[int]) -> np.ndarray:
        return np.full(self.vocab, np.nan, np.float32) if self.nan else next_logits(row, self.vocab)

    def prefill(self, slot: int, tokens: np.ndarray) -> np.ndarray:
        self._check_thread()
        assert tokens.dtype == np.int32
        assert 1 <= len(tokens) <= self.size
        self.prefills += 1
        self.rows[slot] = tokens.tolist()
        return self._logits(self.rows[slot])

    def step(self, uniforms: np.ndarray, sampling: Sampling, active: np.ndarray) -> np.ndarray:
        self._check_thread()
        if self.broken:
            self.broken = False
            raise MemoryError("too little memory")
        time.sleep(self.delay)
        self.steps.append(int(active.sum()))
        tokens = np.zeros(self.count, np.int32)
        for slot in np.flatnonzero(active):
            options = (float(field[slot]) for field in sampling)
            temperature, top_k, top_p, min_p = options
            tokens[slot] = choose(
                self._logits(self.rows[slot]), float(uniforms[slot]), temperature, int(top_k), top_p, min_p
            )
            assert len(self.rows[slot]) < self.size, "the slot overflows"
            self.rows[slot].append(int(tokens[slot]))
        return tokens

    def logits(self) -> np.ndarray:
        self._check_thread()
        return np.stack([self._logits(row or [0]) for row in self.rows])

    def prompt_logits(self, tokens: np.ndarray) -> np.ndarray:
        self._check_thread()
        return np.stack([self._logits(tokens[: end + 1].tolist()) for end in range(len(tokens))])

    def attention(self, tokens: np.ndarray, layer: int) -> np.ndarray:
        self._check_thread()
        weights = np.tril(np.random.default_rng(layer).random((HEADS, len(tokens), len(tokens))))
        return weights / weights.sum(-1, keepdims=True)


def make_tokenizer() -> Tokenizer:
    """Bytes, and the special tokens of ChatML."""
    special = ["<|im_start|>", "<|im_end|>"]
    return tokenizers.train(TokenizerConfig(kind="bytes", special_tokens=special), [])


def make_served(template: ChatTemplate | None = None, tokenizer: Tokenizer | None = None, **model: int) -> Served:
    """The model as it is served, under the name `toy`."""
    tokenizer = tokenizer or make_tokenizer()
    shape = {"dim": 8, "n_layers": LAYERS, "n_heads": HEADS, "max_seq_len": CONTEXT, **model}
    return Served(
        name="toy",
        package="jaxlm",
        device="cpu",
        parameters=1234,
        created=1_700_000_000,
        model=ModelConfig(vocab_size=tokenizer.vocab_size, **shape),
        sampling=SampleConfig(),
        tokenizer=tokenizer,
        template=template,
    )


def chat_template() -> ChatTemplate:
    """ChatML."""
    return ChatTemplate(CHATML)


def expected_text(
    served: Served, prompt: str | list[int], max_tokens: int, stop_ids: frozenset[int] | None = None, **options: float
) -> tuple[str, list[int], bool]:
    """Text, tokens and whether the model ended it, of a sequence alone and without a server.

    Options are those of `SampleConfig`.
    """
    sampling = replace(SampleConfig(temperature=0.0), **options)
    ids = served.tokenizer.encode_prompt(prompt) if isinstance(prompt, str) else prompt
    row, written = list(ids), []
    for uniform in draw_uniforms(sampling.seed, 1, max_tokens)[0]:
        token = choose(
            next_logits(row, served.model.vocab_size),
            float(uniform),
            float(np.float32(sampling.temperature)),
            sampling.top_k,
            float(np.float32(sampling.top_p)),
            float(np.float32(sampling.min_p)),
        )
        if token in (stop_ids or served.stop_ids):
            return served.tokenizer.decode(ids + written)[len(served.tokenizer.decode(ids)) :], written, True
        written.append(token)
        row.append(token)
    return served.tokenizer.decode(ids + written)[len(served.tokenizer.decode(ids)) :], written, False


class Running:
    """A server in a thread of its own, and what it is made of."""

    def __init__(self, served: Served, slots: Toy, settings: Settings, waiting: int):
        self.served, self.slots = served, slots
        self.scheduler = Scheduler(lambda: slots, slots.count, waiting)
        self.server = make_server(served, self.scheduler, settings, grace=5.0)
        self.service = self.server.config.app.state.service  # type: ignore[union-attr]
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.thread = threading.Thread(target=self._run)
        self.thread.start()
        while not self.server.started:
            assert self.thread.is_alive(), "the server ended before it listened"
            time.sleep(0.005)

    def _run(self) -> None:
        asyncio.run(serve(self.server, self.scheduler, self.listener, self.served.name))

    def stop(self) -> None:
        """Stop as a signal does, and wait for the end."""
        self.server.should_exit = True
        self.thread.join(timeout=20)
        assert not self.thread.is_alive(), "the server does not end"


@contextmanager
def running(
    served: Served | None = None, slots: Toy | None = None, settings: Settings | None = None, waiting: int = 16
) -> Iterator[Running]:
    """A server that listens, and ends with the block."""
    server = Running(served or make_served(), slots or Toy(), settings or Settings(), waiting)
    try:
        yield server
    finally:
        server.stop()
