"""Both twins in turns: the text of the generators, the first difference, and the logits up to it."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from lmcore.config import SampleConfig
from lmcore.errors import NotFinite
from lmcore.serve.logprobs import Logprob, log_softmax
from parity.backends.base import generate
from parity.serve.lockstep import Choice, Lockstep, Position, Summary
from tests.parity.serve.conftest import Twins

OPTIONS = SampleConfig(max_tokens=24, temperature=0.9, top_k=12, top_p=0.95, min_p=0.01, seed=3)
Perturb = Callable[[str, float], None]


@pytest.fixture
def lockstep(twins: Twins) -> Lockstep:
    return twins[1]


def compared(
    lockstep: Lockstep, options: SampleConfig = OPTIONS, stops: tuple[str, ...] = ()
) -> tuple[list[Position], Summary]:
    """All positions after a prompt, and the last summary."""
    found = list(lockstep.compare(lockstep.tokenizer.encode_prompt("the "), options, stops))
    return [position for position, _ in found], found[-1][1]


def ids(positions: list[Position], side: int) -> list[int]:
    return [position.choices[side].token.token for position in positions if position.choices[side]]


def text(positions: list[Position], side: int) -> str:
    return "".join(position.choices[side].text for position in positions if position.choices[side])


def tokens_up_to(stop: str, positions: list[Position], side: int) -> int:
    """Number of tokens after which a text has a string; a token may have no text of its own."""
    return next(count for count in range(len(positions) + 1) if stop in text(positions[:count], side))


def test_both_twins_write_what_their_generators_write(lockstep: Lockstep):
    prompt = lockstep.tokenizer.encode_prompt("the ")
    positions, summary = compared(lockstep)
    expected = [generate(lockstep.pair.loaded(twin), [prompt], OPTIONS, 48)[0].tolist() for twin in lockstep.pair]
    for side in (0, 1):
        found = ids(positions, side)
        assert found == expected[side][: len(found)]
        assert len(found) == 24 or found[-1] in lockstep.tokenizer.stop_ids
    assert summary.first_difference is None
    assert summary.tokens == (len(positions),) * 2
    assert all(position.same for position in positions)


def test_logits_are_compared_at_every_position_of_equal_texts(lockstep: Lockstep):
    positions, summary = compared(lockstep)
    differences = [position.difference for position in positions]
    assert summary.compared == len(positions)
    assert summary.difference == max(differences)
    assert summary.where == int(np.argmax(differences))
    assert 0 < summary.difference < 1e-5 * summary.largest


def test_a_token_has_its_probability_and_the_likeliest_ones(lockstep: Lockstep):
    positions, _ = compared(lockstep)
    logits = lockstep.slots[0].prompt_logits(np.array(lockstep.tokenizer.encode_prompt("the "), np.int32))[-1]
    values = log_softmax(logits)
    choice = positions[0].choices[0]
    assert choice.token.value == pytest.approx(values[choice.token.token], abs=1e-5)
    assert [token for token, _ in choice.token.top] == np.argsort(-values, kind="stable")[:5].tolist()
    assert choice.seconds > 0


def test_a_fault_in_one_twin_is_found_at_the_first_token_that_differs(lockstep: Lockstep, perturbed: Perturb):
    healthy, _ = compared(lockstep)
    perturbed("layers.1.mlp.down_proj.kernel", 1.3)
    positions, summary = compared(lockstep)
    first = next(i for i, (one, other) in enumerate(zip(ids(positions, 0), ids(positions, 1))) if one != other)
    assert ids(positions, 0) == ids(healthy, 0), "the reference is as before"
    assert summary.first_difference == first
    assert [position.same for position in positions] == [i < first for i in range(len(positions))]
    assert [position.difference is None for position in positions] == [i > first for i in range(len(positions))]
    assert summary.compared == first + 1
    assert summary.difference > 1e-2


def test_a_fault_too_small_for_the_text_shows_in_the_logits(lockstep: Lockstep, perturbed: Perturb):
    _, healthy = compared(lockstep)
    perturbed("layers.1.mlp.down_proj.kernel", 1.0005)
    _, summary = compared(lockstep)
    assert summary.first_difference is None
    assert summary.difference > 20 * healthy.difference


def test_texts_end_before_a_stop_string(lockstep: Lockstep):
    whole, _ = compared(lockstep)
    stop = text(whole, 0)[7:9]
    positions, summary = compared(lockstep, stops=(stop,))
    assert text(positions, 0) == text(positions, 1) == text(whole, 0).partition(stop)[0]
    assert [choice.ended for choice in positions[-1].choices] == ["stop", "stop"]
    assert summary.tokens == (tokens_up_to(stop, whole, 0),) * 2


def test_a_twin_that_has_ended_leaves_the_other_alone(lockstep: Lockstep, perturbed: Perturb):
    perturbed("layers.1.mlp.down_proj.kernel", 1.3)
    whole, _ = compared(lockstep)
    letters = [text(whole, side) for side in (0, 1)]
    stop = next(letter for letter in letters[1] if letter not in letters[0])
    positions, summary = compared(lockstep, stops=(stop,))
    assert text(positions, 0) == letters[0]
    assert text(positions, 1) == letters[1].partition(stop)[0]
    assert summary.tokens == (len(positions), tokens_up_to(stop, whole, 1))
    assert positions[-1].choices[1] is None


def test_texts_end_with_the_context(lockstep: Lockstep):
    prompt = lockstep.tokenizer.encode_prompt("the quick brown ")
    room = lockstep.room(prompt)
    assert room == 48 - len(prompt)
    for seed in range(20):
        found = list(lockstep.compare(prompt, replace(OPTIONS, max_tokens=1000, seed=seed), ()))
        if found[-1][0].choices[0].ended == "length":
            break
    assert len(found) == room


def test_weights_that_are_not_finite_are_named(lockstep: Lockstep, perturbed: Perturb):
    perturbed("norm.weight", float("nan"))
    with pytest.raises(NotFinite, match="logits are not finite"):
        compared(lockstep)


def test_a_summary_adds_up():
    def choice(seconds: float) -> Choice:
        return Choice(Logprob(0, None), "a", seconds, None)

    summary = Summary().add(0, Position((choice(1.0), choice(2.0)), True, 0.5, 3.0))
    summary = summary.add(1, Position((choice(1.5), choice(0.5)), False, 0.25, 9.0))
    summary = summary.add(2, Position((None, choice(1.0)), False, None))
    assert summary == Summary((2, 3), (2.5, 3.5), 1, 2, 0.5, 0, 3.0)
