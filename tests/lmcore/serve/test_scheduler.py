"""Continuous batching: sequences join and leave between steps, and what one says does not depend on the others."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np
import pytest

from lmcore.generate.prompting import draw_uniforms
from lmcore.serve import scheduler as scheduling
from lmcore.serve.errors import ApiError
from lmcore.serve.logprobs import log_softmax
from lmcore.serve.scheduler import PREFILLS, Event, Scheduler, Scored, Sequenced
from tests.lmcore.serve.toy import Toy, choose, next_logits

V = 259


class Listener:
    """A sequence, and what came of it."""

    def __init__(self, prompt: list[int], length: int, seed: int = 0, temperature: float = 1.0, **options: Any):
        self.events: list[Event] = []
        self.ended = asyncio.Event()
        uniforms = draw_uniforms(seed, 1, length)[0] if length else np.zeros(0, np.float32)
        fields = {"top_k": 0, "top_p": 1.0, "min_p": 0.0, "stop_ids": frozenset[int](), **options}
        self.sequence = Sequenced(
            prompt=np.array(prompt, np.int32),
            uniforms=uniforms,
            temperature=temperature,
            receive=self._receive,
            **fields,
        )

    def _receive(self, event: Event) -> None:
        self.events.append(event)
        if event.finish or event.error:
            self.ended.set()

    @property
    def tokens(self) -> list[int]:
        return [event.token for event in self.events if event.token is not None]

    @property
    def end(self) -> str | ApiError | None:
        return self.events[-1].error or self.events[-1].finish

    def expected(self) -> list[int]:
        """The tokens of the sequence alone."""
        sequence, row = self.sequence, self.sequence.prompt.tolist()
        for uniform in sequence.uniforms:
            options = sequence.temperature, sequence.top_k, sequence.top_p, sequence.min_p
            row.append(choose(next_logits(row, V), float(uniform), *options))
        return row[len(sequence.prompt) :]


def scheduled(test: Callable[[Scheduler, Toy], Awaitable[None]], slots: Toy | None = None, waiting: int = 50) -> Toy:
    """Run a test with a scheduler."""
    slots = slots or Toy()

    async def run() -> None:
        scheduler = Scheduler(lambda: slots, slots.count, waiting)
        await scheduler.start()
        slots.steps, slots.prefills = [], 0
        try:
            await asyncio.wait_for(test(scheduler, slots), 30)  # type: ignore[arg-type]
        finally:
            await scheduler.stop()
        assert not scheduler.alive

    asyncio.run(run())
    return slots


def test_a_sequence_says_the_same_alone_and_beside_others():
    lengths = [1, 9, 30, 4, 17, 2, 11]

    async def test(scheduler: Scheduler, slots: Toy) -> None:
        listeners = [Listener([5, 6, i], length, seed=i) for i, length in enumerate(lengths)]
        listeners[3] = Listener([7], 4, temperature=0.0)
        listeners[4] = Listener([7], 17, seed=3, temperature=1.5, top_k=20, top_p=0.5, min_p=0.01)
        scheduler.submit([each.sequence for each in listeners])
        for each in listeners:
            await each.ended.wait()
        assert scheduler.pending == 0
        for each in listeners:
            assert each.tokens == each.expected()
            assert each.end == "length"

    slots = scheduled(test)
    assert max(slots.steps) == 3, "they were decoded together"
    assert len(slots.steps) < sum(lengths) / 2


def test_a_sequence_joins_at_the_next_step_while_others_go_on():
    async def test(scheduler: Scheduler, slots: Toy) -> None:
        long, short = Listener([1], 60), Listener([2], 2)
        scheduler.submit([long.sequence])
        while len(long.tokens) < 5:
            await asyncio.sleep(0.001)
        scheduler.submit([short.sequence])
        await short.ended.wait()
        assert not long.ended.is_set(), "the short one did not wait for the long one"
        await long.ended.wait()
        assert (long.tokens, short.tokens) == (long.expected(), short.expected())

    scheduled(test, Toy(delay=0.003))


def test_few_prompts_are_prefilled_between_two_steps():
    async def test(scheduler: Scheduler, slots: Toy) -> None:
        listeners = [Listener([i], 12) for i in range(6)]
        scheduler.submit([each.sequence for each in listeners])
        for each in listeners:
            await each.ended.wait()

    slots = scheduled(test, Toy(count=6))
    assert slots.steps[:3] == [PREFILLS, 2 * PREFILLS, 3 * PREFILLS]


def test_a_stop_token_ends_a_sequence_and_is_not_said():
    async def test(scheduler: Scheduler, slots: Toy) -> None:
        listener = Listener([3], 20, seed=1)
        fourth = listener.expected()[3]
        listener.sequence.stop_ids = frozenset({fourth})
        scheduler.submit([listener.sequence])
        await listener.ended.wait()
        assert listener.end == "stop"
        expected = listener.expected()
        assert listener.tokens == expected[: expected.index(fourth)]

    scheduled(test)


def test_log_probabilities_are_of_the_models_own_distribution():
    async def test(scheduler: Scheduler, slots: Toy) -> None:
        plain = Listener([8], 5)
        asking = Listener([9, 1], 5, seed=2, temperature=0.5, top_k=3, logprobs=2)
        scheduler.submit([plain.sequence, asking.sequence])
        await asking.ended.wait()
        await plain.ended.wait()
        row = [9, 1]
        for event in asking.events:
            expected = log_softmax(next_logits(row, V))
            assert event.logprob is not None
            assert event.logprob.token == event.token
            assert event.logprob.value == pytest.approx(expected[event.token], abs=1e-9)
            assert [token for token, _ in event.logprob.top] == np.argsort(-expected, kind="stable")[:2].tolist()
            row.append(event.token)
        assert {event.logprob for event in plain.events} == {None}

    scheduled(test)


def test_the_choices_of_a_prompt_share_its_log_probabilities():
    async def test(scheduler: Scheduler, slots: Toy) -> None:
        scored = Scored(1)
        first, second = Listener([4, 5], 0, scored=scored), Listener([4, 5], 2, scored=scored)
        scheduler.submit([first.sequence, second.sequence])
        await second.ended.wait()
        await first.ended.wait()
        assert first.tokens == []
        assert first.end == "length"
        assert scored.logprobs is not None
        assert [each.token for each in scored.logprobs] == [4, 5]
        assert scored.logprobs[1].value == pytest.approx(log_softmax(next_logits([4], V))[5], abs=1e-9)
        assert slots.prefills == 1, "an echo alone takes no slot"

    scheduled(test)


def test_more_sequences_than_there_is_room_for_are_refused():
    async def test(scheduler: Scheduler, slots: Toy) -> None:
        listeners = [Listener([i], 20) for i in range(5)]
        scheduler.check_room(5)
        scheduler.submit([each.sequence for each in listeners])
        with pytest.raises(ApiError) as full:
            scheduler.check_room(1)
        assert (full.value.status, full.value.headers) == (429, {"Retry-After": "1"})
        with pytest.raises(ApiError) as never:
            scheduler.check_room(6)
        assert (never.value.status, never.value.param) == (400, "n")
        for each in listeners:
            await each.ended.wait()
        scheduler.check_room(5)

    scheduled(test, waiting=2)


def test_a_cancelled_sequence_leaves_its_slot_and_the_queue():
    async def test(scheduler: Scheduler, slots: Toy) -> None:
        active = [Listener([i], 90) for i in range(3)]
        waiting = [Listener([i], 3) for i in range(3)]
        scheduler.submit([each.sequence for each in active + waiting])
        while not active[2].tokens:
            await asyncio.sleep(0.001)
        scheduler.cancel([waiting[0].sequence])
        await waiting[0].ended.wait()
        assert waiting[0].events == [Event(waiting[0].sequence, finish="cancelled")]
        assert scheduler.pending == 5
        scheduler.cancel([each.sequence for each in active])
        for each in (*active, *waiting[1:]):
            await each.ended.wait()
        assert [each.end for each in active] == ["cancelled"] * 3
        assert [each.tokens for each in waiting[1:]] == [each.expected() for each in waiting[1:]]
        assert (scheduler.pending, scheduler.active) == (0, 0)

    slots = scheduled(test, Toy(delay=0.005))
    assert len(slots.steps) < 60


def test_nan_ends_a_sequence_with_an_error_and_the_next_one_is_served():
    async def test(scheduler: Scheduler, slots: Toy) -> None:
        slots.nan = True
        bad, echo = Listener([1], 3), Listener([1, 2], 0, scored=Scored(1))
        scheduler.submit([bad.sequence, echo.sequence])
        for each in (bad, echo):
            await each.ended.wait()
            assert isinstance(each.end, ApiError)
            assert (each.end.status, each.tokens) == (500, [])
        slots.nan = False
        good = Listener([1], 3)
        scheduler.submit([good.sequence])
        await good.ended.wait()
        assert good.tokens == good.expected()

    scheduled(test)


def test_nan_that_comes_later_is_noticed():
    async def test(scheduler: Scheduler, slots: Toy) -> None:
        listener = Listener([1], 90)
        scheduler.submit([listener.sequence])
        while not listener.tokens:
            await asyncio.sleep(0.001)
        slots.nan = True
        await listener.ended.wait()
        assert isinstance(listener.end, ApiError)
        assert len(listener.tokens) < 40

    scheduled(test, Toy(delay=0.002))


def test_after_a_failure_of_the_model_the_slots_are_made_again(caplog: pytest.LogCaptureFixture):
    async def test(scheduler: Scheduler, slots: Toy) -> None:
        slots.broken = True
        bad = Listener([1], 3)
        scheduler.submit([bad.sequence])
        await bad.ended.wait()
        assert isinstance(bad.end, ApiError)
        assert bad.end.status == 500
        good = Listener([1], 3)
        scheduler.submit([good.sequence])
        await good.ended.wait()
        assert good.tokens == good.expected()
        assert scheduler.pending == 0

    scheduled(test)
    assert "too little memory" in caplog.text


def test_a_model_that_fails_for_good_makes_every_request_an_error(caplog: pytest.LogCaptureFixture):
    made = [Toy()]

    async def run() -> None:
        scheduler = Scheduler(made.pop, 3, 5)
        await scheduler.start()
        first, second = Listener([1], 50), Listener([2], 3)
        made_slots = scheduler._slots
        assert isinstance(made_slots, Toy)
        made_slots.broken = True
        scheduler.submit([first.sequence])
        await first.ended.wait()
        scheduler.submit([second.sequence])  # it was let in before
        await second.ended.wait()
        for each in (first, second):
            assert isinstance(each.end, ApiError)
            assert each.end.status == 500
        with pytest.raises(ApiError, match="the model failed"):
            scheduler.check_room(1)
        assert (scheduler.alive, scheduler.pending) == (False, 0)
        await scheduler.stop()

    asyncio.run(run())
    assert "restart the server" in caplog.text


def test_a_function_of_the_slots_is_called_between_steps():
    async def test(scheduler: Scheduler, slots: Toy) -> None:
        listener = Listener([1], 20)
        scheduler.submit([listener.sequence])
        tokens = np.array([1, 2], np.int32)
        found = await scheduler.call(lambda slots: slots.attention(tokens, 0))
        assert found.shape == (2, 2, 2)
        await listener.ended.wait()
        assert listener.tokens == listener.expected()
        assert scheduler.pending == 0

    scheduled(test)


def test_a_function_that_fails_is_an_error_of_its_caller_alone(caplog: pytest.LogCaptureFixture):
    async def test(scheduler: Scheduler, slots: Toy) -> None:
        with pytest.raises(ApiError, match="ZeroDivisionError"):
            await scheduler.call(lambda slots: 1 // 0)
        assert await scheduler.call(lambda slots: slots.count) == 3

    scheduled(test)
    assert "ZeroDivisionError" in caplog.text


def test_an_abort_ends_all_with_its_error_and_refuses_more():
    async def test(scheduler: Scheduler, slots: Toy) -> None:
        listeners = [Listener([i], 90) for i in range(5)]
        scheduler.submit([each.sequence for each in listeners])
        while not listeners[0].tokens:
            await asyncio.sleep(0.001)
        error = ApiError(503, "over")
        scheduler.abort(error)
        for each in listeners:
            await each.ended.wait()
        assert [each.end for each in listeners] == [error] * 5
        with pytest.raises(ApiError) as refused:
            scheduler.check_room(1)
        assert refused.value.status == 503

    scheduled(test, Toy(delay=0.002))


@pytest.mark.parametrize(("size", "lengths"), [(2, [1]), (32, [31]), (96, [32, 64, 96]), (100, [32, 64, 96, 100])])
def test_prompts_of_all_lengths_are_tried_while_nobody_asks(
    size: int, lengths: list[int], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(scheduling, "PATIENCE", 0.001)
    tried: list[int] = []

    class Noting(Toy):
        def prefill(self, slot: int, tokens: np.ndarray) -> np.ndarray:
            tried.append(len(tokens))
            return super().prefill(slot, tokens)

    async def run() -> None:
        scheduler = Scheduler(lambda: Noting(2, size), 2, 5)
        await scheduler.start()
        assert tried[:1] == lengths[:1], "before anything is served"
        while len(tried) < len(lengths):
            await asyncio.sleep(0.001)
        await asyncio.sleep(0.05)
        await scheduler.stop()

    asyncio.run(run())
    assert tried == lengths


def test_slots_that_cannot_be_made_end_the_start():
    def broken() -> Toy:
        raise MemoryError("no room")

    async def run() -> None:
        with pytest.raises(MemoryError, match="no room"):
            await Scheduler(broken, 1, 1).start()

    asyncio.run(run())
