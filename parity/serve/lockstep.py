"""Both twins generate from one prompt and one seed, in turns, token by token.

While one twin computes, the other waits, so that neither slows the other, and each position's logits can be compared
as soon as both have them. From the first token that differs on, the two have different contexts: each goes on with its
own text, and logits are no longer compared.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pkgutil import resolve_name
from typing import Literal

import numpy as np

from lmcore.config import SampleConfig
from lmcore.data.tokenizer import Tokenizer
from lmcore.errors import NotFinite
from lmcore.generate.prompting import draw_uniforms
from lmcore.serve.logprobs import Logprob, TokenTexts, logprob_of
from lmcore.serve.slots import Sampling, Slots
from lmcore.serve.stopping import Stopper
from parity.backends.base import Pair

__all__ = ["Choice", "Lockstep", "Position", "Summary"]

ALTERNATIVES = 5
"""Number of most likely tokens that go with each token."""
Reason = Literal["stop", "length"]
"""Why a text ended: a stop token or string, or its maximum number of tokens."""


@dataclass(frozen=True)
class Choice:
    """A token that a twin has chosen."""

    token: Logprob
    text: str
    """What it adds to the text."""
    seconds: float
    """Wall time of choosing it and of the forward pass that follows."""
    ended: Reason | None
    """Why the text ends with it; None where it goes on."""


@dataclass(frozen=True)
class Position:
    """One position of both texts."""

    choices: tuple[Choice | None, Choice | None]
    """The reference's and the port's; None for a twin whose text has ended."""
    same: bool
    """Whether both texts are the same up to here, this token included."""
    difference: float | None
    """Largest absolute difference of two logits that the tokens were chosen from; None where the contexts differ."""
    largest: float = 0.0
    """Largest absolute value of these logits."""


@dataclass(frozen=True)
class Summary:
    """What a comparison has found so far."""

    tokens: tuple[int, int] = (0, 0)
    seconds: tuple[float, float] = (0.0, 0.0)
    """Of the tokens, without the prefill."""
    first_difference: int | None = None
    """The first position with different tokens, from 0; None if there is none."""
    compared: int = 0
    """Number of positions whose logits were compared."""
    difference: float = 0.0
    """Largest absolute difference of two logits."""
    where: int | None = None
    """Position of that difference."""
    largest: float = 0.0
    """Largest absolute value of the logits there."""

    def add(self, number: int, position: Position) -> "Summary":
        """Return the summary with one more position."""
        counts, seconds = zip(*((0, 0.0) if c is None else (1, c.seconds) for c in position.choices), strict=True)
        tokens = self.tokens[0] + counts[0], self.tokens[1] + counts[1]
        total = self.seconds[0] + seconds[0], self.seconds[1] + seconds[1]
        first = number if self.first_difference is None and not position.same else self.first_difference
        added = replace(self, tokens=tokens, seconds=total, first_difference=first)
        if position.difference is None:
            return added
        if self.where is None or position.difference > self.difference:
            added = replace(added, difference=position.difference, where=number, largest=position.largest)
        return replace(added, compared=self.compared + 1)


@dataclass
class _Side:
    """A twin's sequence: what it will choose from, and the text so far."""

    slots: Slots
    logits: np.ndarray
    texts: TokenTexts
    tokenizer: Tokenizer
    stopper: Stopper
    prompt: Sequence[int]
    ended: Reason | None = None
    tokens: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.stream = self.tokenizer.stream(self.prompt)

    def choose(self, uniform: np.ndarray, sampling: Sampling, last: bool) -> Choice | None:
        """Choose the next token; None if the text has ended."""
        if self.ended:
            return None
        if not np.isfinite(self.logits).all():
            raise NotFinite("the model's logits are not finite: its weights are not either; use another checkpoint")
        before, begin = self.logits, time.perf_counter()
        token = int(self.slots.step(uniform, sampling, np.ones(1, bool))[0])
        self.logits = self.slots.logits()[0]
        seconds = time.perf_counter() - begin
        self.tokens.append(token)
        stopped = token in self.tokenizer.stop_ids
        text = "" if stopped else self.stopper.feed(self.stream.feed(token))
        self.ended = "stop" if stopped or self.stopper.stopped else "length" if last else None
        if self.ended and not self.stopper.stopped:
            text += self.stopper.feed(self.stream.flush()) + self.stopper.flush()
        return Choice(logprob_of(before, token, ALTERNATIVES), text, seconds, self.ended)


class Lockstep:
    """The slots of both twins, one of each; only one thread may use it."""

    def __init__(self, pair: Pair, tokenizer: Tokenizer):
        """Load the twins with the pair's weights, and compile what a first token needs.

        Args:
            pair: both twins, with their weights.
            tokenizer: the model's.
        """
        self.pair, self.tokenizer, self.texts = pair, tokenizer, TokenTexts(tokenizer)
        self.slots: list[Slots] = []
        for twin in pair:
            engine = pair.loaded(twin).engine
            self.slots.append(resolve_name(f"{twin.backend.package}.slots:Slots")(engine, 1, pair.context))
        for _ in self.compare([tokenizer.eot_id], SampleConfig(max_tokens=2), ()):
            pass

    def room(self, prompt: Sequence[int]) -> int:
        """Return the maximum number of tokens after a prompt; 0 or less where the prompt is too long."""
        return min(slots.size for slots in self.slots) - len(prompt)

    def compare(
        self, prompt: Sequence[int], options: SampleConfig, stops: Sequence[str]
    ) -> Iterator[tuple[Position, Summary]]:
        """Yield each position, and what was found up to it, until both texts have ended.

        Args:
            prompt: token ids, at least one, with room for one more.
            options: of the draws; `max_tokens` is reduced to the room.
            stops: strings that end a text, without them.

        Raises:
            NotFinite: a twin's logits are not finite.
        """
        tokens, count = np.array(prompt, np.int32), min(options.max_tokens, self.room(prompt))
        sampling = Sampling(
            temperature=np.array([options.temperature], np.float32),
            top_k=np.array([options.top_k], np.int32),
            top_p=np.array([options.top_p], np.float32),
            min_p=np.array([options.min_p], np.float32),
        )
        sides = [
            _Side(slots, slots.prefill(0, tokens), self.texts, self.tokenizer, Stopper(stops), prompt)
            for slots in self.slots
        ]
        same, summary = True, Summary()
        for number, uniform in enumerate(draw_uniforms(options.seed, 1, count)[0]):
            difference, largest = None, 0.0
            if same and not any(side.ended for side in sides):
                one, other = (side.logits.astype(np.float64) for side in sides)
                difference, largest = float(np.abs(one - other).max()), float(np.abs(one).max())
            last = number == count - 1
            reference, port = (side.choose(np.array([uniform], np.float32), sampling, last) for side in sides)
            same = same and sides[0].tokens == sides[1].tokens
            position = Position((reference, port), same, difference, largest)
            summary = summary.add(number, position)
            yield position, summary
            if all(side.ended for side in sides):
                return
