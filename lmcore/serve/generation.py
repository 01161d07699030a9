"""One request's sequences in the event loop: tokens become text, which ends before a stop string."""

import asyncio
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from lmcore.data.tokenizer import Tokenizer
from lmcore.generate.prompting import draw_uniforms
from lmcore.serve.errors import ApiError
from lmcore.serve.logprobs import Logprob
from lmcore.serve.requests import Options
from lmcore.serve.scheduler import Event, Scheduler, Scored, Sequenced
from lmcore.serve.stopping import Stopper

__all__ = ["Choice", "Generation", "Piece", "Placed", "Prompt"]


class Prompt(NamedTuple):
    """A prompt as it was sent, and as the model reads it."""

    text: str | None
    """None where token ids were sent."""
    ids: list[int]


class Placed(NamedTuple):
    """A log probability, and where in the choice's text its token begins."""

    logprob: Logprob
    offset: int


class Piece(NamedTuple):
    """What a choice grows by."""

    choice: "Choice"
    text: str
    placed: list[Placed]
    finish: str | None


@dataclass(eq=False)
class Choice:
    """A text that grows."""

    index: int
    tokenizer: Tokenizer
    options: Options
    prompt: Prompt
    scored: Scored | None
    report: Callable[[Piece], None]
    text: str = ""
    """Text that was passed on."""
    tokens: int = 0
    finish: str | None = None
    _held: list[Placed] = field(default_factory=list)
    """Log probabilities of tokens whose text was not passed on yet."""
    _length: int = 0
    """Characters of the text that all tokens so far are known to have, a held stop string included."""

    def __post_init__(self) -> None:
        self._stream = self.tokenizer.stream(self.prompt.ids)
        self._stopper = Stopper(self.options.stops)
        self._unechoed = self.options.echo

    def receive(self, event: Event) -> bool:
        """Append a token, report what can be passed on, and return whether the text ended by a stop string."""
        text, placed = self._echo() if self._unechoed else ("", [])
        new = ""
        if event.token is not None:
            self.tokens += 1
            if event.logprob is not None:
                self._held.append(Placed(event.logprob, self._length))
            fed = self._stream.feed(event.token)
            self._length += len(fed)
            new = self._stopper.feed(fed)
        if event.finish and not self._stopper.stopped:
            new += self._stopper.feed(self._stream.flush())
            new += self._stopper.flush()
        stopped = self._stopper.stopped
        self.finish = "stop" if stopped else event.finish
        self.text += text + new
        if self.finish and not stopped:
            placed, self._held = placed + self._held, []
        elif new or stopped:
            count = sum(each.offset < len(self.text) for each in self._held)
            placed, self._held = placed + self._held[:count], self._held[count:]
        if text or new or placed or self.finish:
            self.report(Piece(self, text + new, placed, self.finish))
        return stopped

    def _echo(self) -> tuple[str, list[Placed]]:
        """Return the prompt's text, and the log probabilities of its tokens."""
        self._unechoed = False
        text = self.tokenizer.decode(self.prompt.ids) if self.prompt.text is None else self.prompt.text
        placed: list[Placed] = []
        if self.scored is not None:
            stream, length = self.tokenizer.stream(), 0
            for each in self.scored.logprobs or []:
                placed.append(Placed(each, length))
                length += len(stream.feed(each.token))
        self._length = len(text)
        return text, placed


class Generation:
    """All choices of a request, and what they grew by since the last look."""

    def __init__(
        self,
        scheduler: Scheduler,
        tokenizer: Tokenizer,
        stop_ids: frozenset[int],
        prompts: Sequence[Prompt],
        options: Options,
        lengths: Sequence[int],
    ):
        """Prepare the sequences, which `start` submits.

        Args:
            scheduler: decodes them.
            tokenizer: of the model.
            stop_ids: tokens that end a text.
            prompts: prompts, of which each gets `options.n` choices.
            options: what to generate.
            lengths: maximum number of tokens to generate after each prompt.
        """
        self._scheduler, self.prompts, self.options = scheduler, prompts, options
        self.pieces: list[Piece] = []
        self.error: ApiError | None = None
        self.begin = time.perf_counter()
        self.first: float | None = None
        """Seconds until the first token."""
        self._news = asyncio.Event()
        self.choices: list[Choice] = []
        self._sequences: list[Sequenced] = []
        seed = secrets.randbits(63) if options.seed is None else options.seed
        for prompt, length in zip(prompts, lengths, strict=True):
            scored = Scored(options.logprobs) if options.echo and options.logprobs is not None else None
            for _ in range(options.n):
                index = len(self.choices)
                choice = Choice(index, tokenizer, options, prompt, scored, self.pieces.append)
                self.choices.append(choice)
                uniforms = draw_uniforms(seed + index, 1, length)[0] if length else np.zeros(0, np.float32)
                self._sequences.append(self._sequence(choice, uniforms, stop_ids))

    def _sequence(self, choice: Choice, uniforms: np.ndarray, stop_ids: frozenset[int]) -> Sequenced:
        options = self.options
        return Sequenced(
            prompt=np.array(choice.prompt.ids, np.int32),
            uniforms=uniforms,
            temperature=options.temperature,
            top_k=options.top_k,
            top_p=options.top_p,
            min_p=options.min_p,
            stop_ids=stop_ids,
            receive=lambda event: self._receive(choice, event),
            logprobs=options.logprobs,
            scored=choice.scored,
        )

    def start(self) -> None:
        """Submit the sequences, for which the scheduler has room."""
        self._scheduler.submit(self._sequences)

    def cancel(self) -> None:
        """Stop decoding what is not finished."""
        if not self.done:
            self.error = ApiError(499, "the client has closed the connection")
            self._scheduler.cancel(self._sequences)
            self._news.set()

    @property
    def done(self) -> bool:
        """Whether all choices are finished, or an error ended them."""
        return self.error is not None or all(choice.finish for choice in self.choices)

    @property
    def usage(self) -> dict[str, int]:
        """The numbers of tokens, as the API reports them."""
        prompt, completion = sum(len(p.ids) for p in self.prompts), sum(choice.tokens for choice in self.choices)
        return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}

    async def news(self) -> list[Piece]:
        """Wait for the choices to grow, and return by what.

        Raises:
            ApiError: an error ended them.
        """
        while not self.pieces:
            if self.error is not None:
                raise self.error
            self._news.clear()
            await self._news.wait()
        pieces = self.pieces.copy()
        self.pieces.clear()  # the choices append to this list
        return pieces

    def _receive(self, choice: Choice, event: Event) -> None:
        if self.first is None and event.token is not None:
            self.first = time.perf_counter() - self.begin
        if event.error is not None:
            if self.error is None:
                self.error = event.error
                self._scheduler.cancel(self._sequences)
        elif choice.finish is None and choice.receive(event):
            self._scheduler.cancel(self._sequences[choice.index : choice.index + 1])
        if self.pieces or self.error:
            self._news.set()
