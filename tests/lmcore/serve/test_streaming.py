"""A stream's messages to the server below it, and what a client that goes away or an error does to them."""

import asyncio
import json
from collections.abc import Awaitable, Callable

import pytest

from lmcore.serve.errors import ApiError
from lmcore.serve.metrics import Metrics
from lmcore.serve.responses import Completion
from lmcore.serve.scheduler import Scheduler
from lmcore.serve.streaming import EventStream, whole
from tests.lmcore.serve.test_generation import SERVED, make
from tests.lmcore.serve.toy import Toy, expected_text


class Client:
    """The other side of a response."""

    def __init__(self) -> None:
        self.messages: list[dict] = []
        self.gone = asyncio.Event()
        self.on_send: Callable[[], None] = lambda: None

    async def receive(self) -> dict:
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: dict) -> None:
        self.messages.append(message)
        self.on_send()

    @property
    def status(self) -> int:
        return self.messages[0]["status"]

    @property
    def body(self) -> str:
        return b"".join(message["body"] for message in self.messages[1:]).decode()


def streamed(
    slots: Toy, test: Callable[[Scheduler, Client, Callable[..., Awaitable[None]]], Awaitable[None]], **options: object
) -> None:
    async def run() -> None:
        scheduler = Scheduler(lambda: slots, slots.count, 50)
        await scheduler.start()
        client = Client()

        async def respond() -> None:
            generation = make(scheduler, ["one", "two"], **options)
            response = EventStream(generation, Completion(generation, "toy", SERVED.texts), Metrics(frozenset()))
            generation.start()
            await response({"type": "http"}, client.receive, client.send)

        try:
            await asyncio.wait_for(test(scheduler, client, respond), 30)  # type: ignore[arg-type]
            while scheduler.pending:
                await asyncio.sleep(0.001)
        finally:
            await scheduler.stop()

    asyncio.run(run())


def test_a_stream_has_one_start_and_one_end():
    async def test(scheduler: Scheduler, client: Client, respond: Callable) -> None:
        await respond()
        assert client.status == 200
        assert [message["more_body"] for message in client.messages[1:]] == [True] * (len(client.messages) - 2) + [
            False
        ]
        events = [json.loads(event[6:]) for event in client.body.split("\n\n")[:-2]]
        texts = ["", ""]
        for event in events:
            texts[event["choices"][0]["index"]] += event["choices"][0]["text"]
        assert texts == [
            expected_text(SERVED, p, 10, seed=5 + i, temperature=1.0)[0] for i, p in enumerate(["one", "two"])
        ]

    streamed(Toy(delay=0.001), test)


def test_an_error_before_the_first_token_is_a_response():
    async def test(scheduler: Scheduler, client: Client, respond: Callable) -> None:
        slots.nan = True
        await respond()
        assert client.status == 500
        assert json.loads(client.body)["error"]["type"] == "server_error"

    slots = Toy()
    streamed(slots, test)


def test_a_later_error_is_the_last_event():
    async def test(scheduler: Scheduler, client: Client, respond: Callable) -> None:
        client.on_send = lambda: setattr(slots, "broken", True)
        await respond()
        assert client.status == 200
        last = client.body.split("\n\n")[-2]
        assert json.loads(last.removeprefix("data: "))["error"]["message"].startswith("the model failed")
        assert client.messages[-1]["more_body"] is False
        assert "[DONE]" not in client.body

    slots = Toy(delay=0.002)
    streamed(slots, test, max_tokens=80)


def test_a_client_that_goes_away_ends_the_stream_and_its_sequences():
    async def test(scheduler: Scheduler, client: Client, respond: Callable) -> None:
        client.on_send = client.gone.set
        await respond()
        while scheduler.pending:
            await asyncio.sleep(0.001)

    slots = Toy(delay=0.005)
    streamed(slots, test, max_tokens=80)
    assert len(slots.steps) < 40


def test_a_task_that_is_cancelled_ends_its_sequences():
    async def test(scheduler: Scheduler, client: Client, respond: Callable) -> None:
        task = asyncio.create_task(respond())
        while len(client.messages) < 3:
            await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    slots = Toy(delay=0.005)
    streamed(slots, test, max_tokens=80)
    assert len(slots.steps) < 40


def test_a_whole_answer_is_given_up_with_its_client():
    async def test(scheduler: Scheduler, client: Client, respond: Callable) -> None:
        generation = make(scheduler, ["one"], max_tokens=80)
        generation.start()
        asyncio.get_running_loop().call_later(0.05, client.gone.set)
        form = Completion(generation, "toy", SERVED.texts)
        with pytest.raises(ApiError, match="the client has closed the connection"):
            await whole(generation, form, client.receive, Metrics(frozenset()))  # type: ignore[arg-type]

    slots = Toy(delay=0.005)
    streamed(slots, test)
    assert len(slots.steps) < 40
