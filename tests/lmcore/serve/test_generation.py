"""Tokens become text: what each choice grows by, where its tokens begin, and what a stop string cuts off."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest

from lmcore.serve.errors import ApiError
from lmcore.serve.generation import Choice, Generation, Piece, Prompt
from lmcore.serve.logprobs import Logprob
from lmcore.serve.requests import Options
from lmcore.serve.scheduler import Event, Scheduler, Scored, Sequenced
from tests.lmcore.serve.toy import Toy, expected_text, make_served

SERVED = make_served()
OPTIONS = Options(
    n=1,
    max_tokens=10,
    temperature=1.0,
    top_p=1.0,
    top_k=0,
    min_p=0.0,
    seed=5,
    stops=(),
    logprobs=None,
    echo=False,
    stream=False,
    include_usage=False,
)
SEQUENCE = Sequenced(
    prompt=np.ones(1, np.int32),
    uniforms=np.zeros(1, np.float32),
    temperature=1.0,
    top_k=0,
    top_p=1.0,
    min_p=0.0,
    stop_ids=frozenset(),
    receive=lambda event: None,
)


def grown(
    tokens: Sequence[int], finish: str = "length", echoed: str = "ab", **options: object
) -> tuple[Choice, list[Piece]]:
    """A choice that these tokens were given to, each with a log probability, and its pieces."""
    pieces: list[Piece] = []
    chosen = replace(OPTIONS, **options)
    scored = Scored(0, [Logprob(97, None), Logprob(98, -1.0)]) if chosen.echo else None
    choice = Choice(0, SERVED.tokenizer, chosen, Prompt(echoed, [97, 98]), scored, pieces.append)
    for number, token in enumerate(tokens, 1):
        logprob = None if chosen.logprobs is None else Logprob(token, -0.5)
        end = finish if number == len(tokens) and finish == "length" else None
        if choice.receive(Event(SEQUENCE, token, logprob, end)):
            return choice, pieces
    if finish == "stop":
        choice.receive(Event(SEQUENCE, finish="stop"))
    return choice, pieces


def test_each_token_is_passed_on_as_text():
    choice, pieces = grown(b"xyz")
    assert [(piece.text, piece.finish) for piece in pieces] == [("x", None), ("y", None), ("z", "length")]
    assert (choice.text, choice.tokens, choice.finish) == ("xyz", 3, "length")


def test_a_character_is_passed_on_when_all_of_its_tokens_are_there():
    _, pieces = grown("é!".encode())
    assert [piece.text for piece in pieces] == ["é", "!"]
    _, pieces = grown("é".encode()[:1])
    assert [piece.text for piece in pieces] == ["\ufffd"]


def test_the_models_own_end_passes_on_what_was_held_back():
    choice, pieces = grown(b"one EN", finish="stop", stops=("END",))
    assert [piece.text for piece in pieces] == ["o", "n", "e", " ", "EN"]
    assert (choice.finish, pieces[-1].finish) == ("stop", "stop")


def test_a_stop_string_ends_the_text_before_it():
    choice, pieces = grown(b"one END two", stops=("END",))
    assert (choice.text, choice.finish, choice.tokens) == ("one ", "stop", 7)
    assert [piece.text for piece in pieces] == ["o", "n", "e", " ", ""]
    assert pieces[-1].finish == "stop"


def test_log_probabilities_come_with_the_text_of_their_tokens():
    _, pieces = grown("é!".encode(), logprobs=0)
    assert [[(each.logprob.token, each.offset) for each in piece.placed] for piece in pieces] == [
        [(0xC3, 0), (0xA9, 0)],
        [(ord("!"), 1)],
    ]


def test_tokens_of_a_stop_string_have_no_log_probabilities():
    _, pieces = grown(b"ab END", logprobs=0, stops=("END",))
    placed = [each for piece in pieces for each in piece.placed]
    assert bytes(each.logprob.token for each in placed) == b"ab "
    assert [each.offset for each in placed] == [0, 1, 2]


def test_what_was_held_back_in_vain_has_them():
    _, pieces = grown(b"EN!", logprobs=0, stops=("END",))
    assert [(piece.text, len(piece.placed)) for piece in pieces] == [("EN!", 3)]
    _, pieces = grown(b"EN", logprobs=0, stops=("END",))
    assert [(piece.text, len(piece.placed)) for piece in pieces] == [("EN", 2)]


def test_an_echo_begins_with_the_prompt_as_it_was_sent():
    choice, pieces = grown(b"xy", echo=True, logprobs=0)
    assert choice.text == "abxy"
    assert [piece.text for piece in pieces] == ["abx", "y"]
    placed = [each for piece in pieces for each in piece.placed]
    assert [(each.logprob.token, each.offset) for each in placed] == [(97, 0), (98, 1), (ord("x"), 2), (ord("y"), 3)]


def test_a_stop_string_in_the_prompt_does_not_end_the_text():
    choice, _ = grown(b"xyz", echo=True, echoed="ENDab", stops=("END", "y"))
    assert choice.text == "ENDabx"


def generated(test: Callable[[Scheduler], Awaitable[None]], slots: Toy) -> None:
    async def run() -> None:
        scheduler = Scheduler(lambda: slots, slots.count, 50)
        await scheduler.start()
        try:
            await asyncio.wait_for(test(scheduler), 30)  # type: ignore[arg-type]
        finally:
            await scheduler.stop()

    asyncio.run(run())


def make(scheduler: Scheduler, texts: Sequence[str], **options: object) -> Generation:
    chosen = replace(OPTIONS, **options)
    prompts = [prompt for text in texts for prompt in SERVED.encode(text)]
    lengths = [chosen.max_tokens or 0] * len(prompts)
    return Generation(scheduler, SERVED.tokenizer, SERVED.stop_ids, prompts, chosen, lengths)


async def finished(generation: Generation) -> list[str]:
    generation.start()
    while not generation.done:
        await generation.news()
    return [choice.text for choice in generation.choices]


def test_choice_i_has_the_random_numbers_of_seed_plus_i():
    async def test(scheduler: Scheduler) -> None:
        found = await finished(make(scheduler, ["one", "two"], n=2))
        prompts = ["one", "one", "two", "two"]
        expected = [expected_text(SERVED, p, 10, seed=5 + i, temperature=1.0)[0] for i, p in enumerate(prompts)]
        assert found == expected
        assert len(set(found)) == 4

    generated(test, Toy())


def test_without_a_seed_each_request_has_another():
    async def test(scheduler: Scheduler) -> None:
        texts = [await finished(make(scheduler, ["one"], seed=None)) for _ in range(3)]
        assert len(set(map(tuple, texts))) == 3

    generated(test, Toy())


def test_usage_counts_each_prompt_once_and_all_choices():
    async def test(scheduler: Scheduler) -> None:
        generation = make(scheduler, ["one", "four"], n=2, temperature=0.0)
        await finished(generation)
        count = sum(choice.tokens for choice in generation.choices)
        assert generation.usage == {"prompt_tokens": 7, "completion_tokens": count, "total_tokens": 7 + count}
        assert count == 2 * sum(len(expected_text(SERVED, p, 10)[1]) for p in ("one", "four"))

    generated(test, Toy())


def test_a_stop_string_frees_the_slot():
    async def test(scheduler: Scheduler) -> None:
        text = expected_text(SERVED, "one", 10, seed=5, temperature=1.0)[0]
        generation = make(scheduler, ["one"], stops=(text[3:5],), max_tokens=80)
        assert await finished(generation) == [text[:3]]
        while scheduler.pending:
            await asyncio.sleep(0.001)

    slots = Toy(delay=0.01)
    generated(test, slots)
    assert len(slots.steps) < 20


def test_an_error_of_one_choice_ends_all():
    async def test(scheduler: Scheduler) -> None:
        slots.nan = True
        generation = make(scheduler, ["one", "two"])
        generation.start()
        with pytest.raises(ApiError, match="NaN"):
            await generation.news()
        while scheduler.pending:
            await asyncio.sleep(0.001)

    slots = Toy()
    generated(test, slots)


def test_a_cancelled_generation_ends_whoever_waits_for_it():
    async def test(scheduler: Scheduler) -> None:
        generation = make(scheduler, ["one", "two"], max_tokens=80)
        generation.start()
        await generation.news()
        generation.cancel()
        generation.pieces.clear()
        with pytest.raises(ApiError) as caught:
            await generation.news()
        assert caught.value.status == 499
        while scheduler.pending:
            await asyncio.sleep(0.001)

    slots = Toy(delay=0.01)
    generated(test, slots)
    assert len(slots.steps) < 20
