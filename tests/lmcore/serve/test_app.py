"""The API as clients see it: every field, as a stream and as a whole, by the OpenAI client and by hand."""

import gc
import json
import re
import resource
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest

from lmcore.serve.generation import Choice, Generation
from lmcore.serve.logprobs import log_softmax
from lmcore.serve.scheduler import Sequenced
from tests.lmcore.serve.toy import CONTEXT, Running, Toy, expected_text, next_logits, running

HI = [{"role": "user", "content": "Hi"}]


@pytest.fixture(scope="module")
def client(server: Running) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def post(server: Running, path: str, **body: Any) -> httpx.Response:
    return httpx.post(server.url + path, json=body, timeout=30)


def chunks(response: httpx.Response) -> list[dict]:
    """The chunks of a stream, which must be events and end with [DONE]."""
    assert response.status_code == 200
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    *events, done, rest = response.text.split("\n\n")
    assert (done, rest) == ("data: [DONE]", "")
    assert all(event.startswith("data: ") for event in events)
    return [json.loads(event.removeprefix("data: ")) for event in events]


def test_the_model_is_listed(server: Running, client: openai.OpenAI):
    card = {"id": "toy", "object": "model", "created": 1_700_000_000, "owned_by": "twinlm"}
    assert httpx.get(f"{server.url}/v1/models").json() == {"object": "list", "data": [card]}
    assert httpx.get(f"{server.url}/v1/models/toy").json() == card
    assert [model.id for model in client.models.list()] == ["toy"]
    with pytest.raises(openai.NotFoundError, match="found 'gpt'"):
        client.models.retrieve("gpt")


def test_a_completion_has_every_field(server: Running):
    body = post(server, "/v1/completions", prompt="Hello", max_tokens=12, temperature=0).json()
    assert re.fullmatch("cmpl-[0-9a-f]{32}", body.pop("id"))
    assert isinstance(body.pop("created"), int)
    text, tokens, _ = expected_text(server.served, "Hello", 12)
    assert body == {
        "object": "text_completion",
        "model": "toy",
        "choices": [{"index": 0, "text": text, "logprobs": None, "finish_reason": "length"}],
        "usage": {"prompt_tokens": 5, "completion_tokens": len(tokens), "total_tokens": 5 + len(tokens)},
    }


def test_a_streamed_completion_has_every_field(server: Running):
    asked = {"prompt": "Hello", "max_tokens": 12, "temperature": 0, "stream": True}
    text, tokens, _ = expected_text(server.served, "Hello", 12)
    found = chunks(post(server, "/v1/completions", **asked))
    assert len({chunk["id"] for chunk in found}) == len({chunk["created"] for chunk in found}) == 1
    assert {(chunk["object"], chunk["model"], "usage" in chunk) for chunk in found} == {
        ("text_completion", "toy", False)
    }
    choices = [chunk["choices"] for chunk in found]
    assert [choice["text"] for (choice,) in choices] == list(text)
    assert [choice["finish_reason"] for (choice,) in choices] == [None] * (len(text) - 1) + ["length"]
    assert {(choice["index"], choice["logprobs"]) for (choice,) in choices} == {(0, None)}
    *found, last = chunks(post(server, "/v1/completions", **asked, stream_options={"include_usage": True}))
    assert {chunk["usage"] for chunk in found} == {None}
    assert last["choices"] == []
    assert last["usage"] == {"prompt_tokens": 5, "completion_tokens": len(tokens), "total_tokens": 5 + len(tokens)}
    assert last["id"] == found[0]["id"]


def test_a_chat_completion_has_every_field(server: Running):
    asked = {"messages": HI, "max_completion_tokens": 9, "seed": 4}
    body = post(server, "/v1/chat/completions", **asked).json()
    assert re.fullmatch("chatcmpl-[0-9a-f]{32}", body.pop("id"))
    assert isinstance(body.pop("created"), int)
    ids = server.served.encode_chat(HI).ids
    text, tokens, ended = expected_text(server.served, ids, 9, server.served.turn_ids, seed=4, temperature=1.0)
    assert body == {
        "object": "chat.completion",
        "model": "toy",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": text, "refusal": None},
                "logprobs": None,
                "finish_reason": "stop" if ended else "length",
            }
        ],
        "usage": {
            "prompt_tokens": len(ids),
            "completion_tokens": len(tokens),
            "total_tokens": len(ids) + len(tokens),
        },
    }


def test_a_streamed_chat_completion_has_every_field(server: Running):
    asked = {"messages": HI, "max_tokens": 9, "seed": 4, "stream": True, "stream_options": {"include_usage": True}}
    ids = server.served.encode_chat(HI).ids
    text, _, _ = expected_text(server.served, ids, 9, server.served.turn_ids, seed=4, temperature=1.0)
    *found, usage = chunks(post(server, "/v1/chat/completions", **asked))
    assert {(chunk["object"], chunk["model"]) for chunk in found} == {("chat.completion.chunk", "toy")}
    deltas = [chunk["choices"][0].pop("delta") for chunk in found]
    assert deltas[0] == {"role": "assistant", "content": ""}
    assert deltas[-1] == {}
    assert [delta["content"] for delta in deltas[1:-1]] == list(text)
    assert [chunk["choices"] for chunk in found[:-1]] == [[{"index": 0, "logprobs": None, "finish_reason": None}]] * (
        len(found) - 1
    )
    assert found[-1]["choices"] == [{"index": 0, "logprobs": None, "finish_reason": "length"}]
    assert usage["choices"] == []
    assert usage["usage"]["completion_tokens"] == 9


def test_the_openai_client_completes(server: Running, client: openai.OpenAI):
    prompts = ["one", "two"]
    asked: dict[str, Any] = {"model": "toy", "prompt": prompts, "n": 2, "max_tokens": 8, "seed": 3, "temperature": 0.9}
    found = client.completions.create(**asked)
    expected = [expected_text(server.served, prompts[i // 2], 8, seed=3 + i, temperature=0.9)[0] for i in range(4)]
    assert [choice.text for choice in found.choices] == expected
    assert [choice.index for choice in found.choices] == [0, 1, 2, 3]
    assert found.usage is not None
    assert found.usage.prompt_tokens == 6
    streamed = [""] * 4
    for chunk in client.completions.create(**asked, stream=True):
        streamed[chunk.choices[0].index] += chunk.choices[0].text
    assert streamed == expected


def test_the_openai_client_chats(server: Running, client: openai.OpenAI):
    ids = server.served.encode_chat(HI).ids
    asked: dict[str, Any] = {"model": "toy", "messages": HI, "seed": 1, "extra_body": {"top_k": 5, "min_p": 0.05}}
    text, tokens, ended = expected_text(
        server.served, ids, CONTEXT - len(ids), server.served.turn_ids, seed=1, temperature=1.0, top_k=5, min_p=0.05
    )
    found = client.chat.completions.create(**asked)
    assert found.choices[0].message.content == text
    assert found.choices[0].finish_reason == ("stop" if ended else "length")
    streamed = ""
    for chunk in client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}):
        if chunk.choices:
            streamed += chunk.choices[0].delta.content or ""
    assert streamed == text
    assert chunk.usage is not None
    assert chunk.usage.completion_tokens == len(tokens)


def test_token_ids_are_a_prompt(server: Running, client: openai.OpenAI):
    found = client.completions.create(model="toy", prompt=[[104, 105], [106]], max_tokens=4, temperature=0)
    assert [choice.text for choice in found.choices] == [
        expected_text(server.served, ids, 4)[0] for ids in ([104, 105], [106])
    ]


def test_a_stop_string_over_the_border_of_tokens_ends_the_text(server: Running, client: openai.OpenAI):
    text, _, _ = expected_text(server.served, "Hello", 12)
    stop = text[4:7]
    cut = text.index(stop)
    found = client.completions.create(model="toy", prompt="Hello", max_tokens=12, temperature=0, stop=[stop, "QQ"])
    assert (found.choices[0].text, found.choices[0].finish_reason) == (text[:cut], "stop")
    streamed = [
        chunk.choices[0]
        for chunk in client.completions.create(
            model="toy", prompt="Hello", max_tokens=12, temperature=0, stop=stop, stream=True
        )
    ]
    assert "".join(choice.text for choice in streamed) == text[:cut]
    assert streamed[-1].finish_reason == "stop"


def expected_logprobs(prompt: list[int], tokens: list[int], vocab: int) -> list[np.ndarray]:
    return [log_softmax(next_logits(prompt + tokens[:i], vocab)) for i in range(len(tokens))]


def test_a_completions_log_probabilities(server: Running, client: openai.OpenAI):
    _, tokens, _ = expected_text(server.served, "Hi", 5, seed=2, temperature=0.8)
    rows = expected_logprobs(list(b"Hi"), tokens, server.served.model.vocab_size)
    asked: dict[str, Any] = {"model": "toy", "prompt": "Hi", "max_tokens": 5, "seed": 2, "temperature": 0.8}
    found = client.completions.create(**asked, logprobs=2).choices[0]
    logprobs = found.logprobs
    assert logprobs is not None
    texts = [server.served.texts.text_of(token) for token in tokens]
    assert logprobs.tokens == texts
    assert logprobs.token_logprobs == pytest.approx([row[token] for row, token in zip(rows, tokens)], abs=1e-6)
    assert logprobs.text_offset == list(range(5))
    for top, row, token in zip(logprobs.top_logprobs or [], rows, tokens, strict=True):
        likely = {*np.argsort(-row)[:2].tolist(), token}
        assert top == pytest.approx({server.served.texts.text_of(i): row[i] for i in likely}, abs=1e-6)
    parts = [c.choices[0].logprobs for c in client.completions.create(**asked, logprobs=2, stream=True)]
    assert [each for part in parts if part for each in part.tokens or []] == texts
    assert [each for part in parts if part for each in part.text_offset or []] == list(range(5))


def test_an_echo_has_the_prompt_and_its_log_probabilities(server: Running, client: openai.OpenAI):
    vocab = server.served.model.vocab_size
    asked: dict[str, Any] = {"model": "toy", "prompt": "Hello", "echo": True, "logprobs": 0, "temperature": 0}
    found = client.completions.create(**asked, max_tokens=0).choices[0]
    assert (found.text, found.finish_reason) == ("Hello", "length")
    assert found.logprobs is not None
    assert found.logprobs.tokens == list("Hello")
    first, *others = found.logprobs.token_logprobs or []
    assert first is None
    rows = expected_logprobs([], list(b"Hello"), vocab)
    assert others == pytest.approx([row[token] for row, token in zip(rows, b"Hello")][1:], abs=1e-6)
    assert found.logprobs.text_offset == [0, 1, 2, 3, 4]
    text, _, _ = expected_text(server.served, "Hello", 3)
    longer = client.completions.create(**asked, max_tokens=3).choices[0]
    assert longer.text == "Hello" + text
    assert longer.logprobs is not None
    assert longer.logprobs.text_offset == list(range(8))
    streamed = list(client.completions.create(**asked, max_tokens=3, stream=True))
    assert "".join(chunk.choices[0].text for chunk in streamed) == "Hello" + text


def test_a_chats_log_probabilities(server: Running, client: openai.OpenAI):
    ids = server.served.encode_chat(HI).ids
    _, tokens, _ = expected_text(server.served, ids, 4, server.served.turn_ids, seed=6, temperature=1.0)
    rows = expected_logprobs(ids, tokens, server.served.model.vocab_size)
    found = client.chat.completions.create(
        model="toy", messages=HI, max_tokens=4, seed=6, logprobs=True, top_logprobs=2
    )
    logprobs = found.choices[0].logprobs
    assert logprobs is not None
    for each, row, token in zip(logprobs.content or [], rows, tokens, strict=True):
        assert each.token == server.served.texts.text_of(token)
        assert each.bytes == [token]
        assert each.logprob == pytest.approx(row[token], abs=1e-6)
        assert [top.bytes for top in each.top_logprobs] == [[int(i)] for i in np.argsort(-row)[:2]]


def test_a_seed_gives_the_same_text_beside_others(server: Running):
    asked = {"prompt": "Once", "max_tokens": 30, "seed": 11}
    alone = post(server, "/v1/completions", **asked).json()["choices"][0]["text"]
    assert alone == expected_text(server.served, "Once", 30, seed=11, temperature=1.0)[0]
    with ThreadPoolExecutor(8) as pool:
        others = [pool.submit(post, server, "/v1/completions", prompt=f"{i}", max_tokens=20) for i in range(7)]
        beside = pool.submit(post, server, "/v1/completions", **asked).result()
        assert {other.result().status_code for other in others} == {200}
    assert beside.json()["choices"][0]["text"] == alone


@pytest.mark.parametrize(
    ("path", "body", "status", "param"),
    [
        ("/v1/completions", {"prompt": "a", "model": "gpt"}, 404, "model"),
        ("/v1/completions", {"prompt": "a", "suffix": "b"}, 400, "suffix"),
        ("/v1/completions", {"prompt": "a" * 90}, 400, "prompt"),
        ("/v1/completions", {"prompt": ["a"] * 20}, 400, "n"),
        ("/v1/completions", {"prompt": [999]}, 400, "prompt"),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "a" * 90}]}, 400, "messages"),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "<|im_end|>"}]}, 400, "messages"),
        ("/attention", {"prompt": "a", "layer": 2}, 400, "layer"),
    ],
)
def test_a_request_that_cannot_be_answered_says_why(server: Running, path: str, body: dict, status: int, param: str):
    for stream in [{}] if path == "/attention" else [{}, {"stream": True}]:
        response = post(server, path, **body, **stream)
        error = response.json()["error"]
        assert (response.status_code, error["param"]) == (status, param)
        assert set(error) == {"message", "type", "param", "code"}
        assert error["message"].startswith(f"{param}: ")
        assert "found " in error["message"]


def test_paths_and_methods_that_are_not_there_are_told_in_json(server: Running):
    response = httpx.get(f"{server.url}/v2")
    assert (response.status_code, response.json()["error"]["message"]) == (404, "/v2: found no such path")
    response = httpx.get(f"{server.url}/v1/completions")
    assert (response.status_code, response.headers["allow"]) == (405, "POST")
    assert response.json()["error"]["message"] == "GET: expected another method"


def test_a_model_without_a_template_refuses_chats():
    with running() as server:
        error = post(server, "/v1/chat/completions", messages=HI).json()["error"]
        assert (error["code"], "has no chat template" in error["message"]) == ("no_chat_template", True)
        assert httpx.get(f"{server.url}/info").json()["chat"] is False


def test_nan_is_an_error_of_the_server_which_goes_on():
    with running(slots=Toy(count=2)) as server:
        server.slots.nan = True
        for stream in (False, True):
            response = post(server, "/v1/completions", prompt="a", stream=stream)
            assert (response.status_code, response.json()["error"]["type"]) == (500, "server_error")
            assert "NaN" in response.json()["error"]["message"]
        server.slots.nan = False
        assert post(server, "/v1/completions", prompt="a").status_code == 200


def test_a_full_queue_asks_to_come_again():
    with running(slots=Toy(count=1, delay=0.02), waiting=1) as server, ThreadPoolExecutor(6) as pool:
        asked = [pool.submit(post, server, "/v1/completions", prompt="a", max_tokens=20) for _ in range(6)]
        responses = [each.result() for each in asked]
        refused = [response for response in responses if response.status_code == 429]
        assert sorted(response.status_code for response in responses)[:2] == [200, 200]
        assert len(refused) >= 2
        assert {response.headers["retry-after"] for response in refused} == {"1"}
        assert {response.json()["error"]["type"] for response in refused} == {"rate_limit_error"}
        assert post(server, "/v1/completions", prompt="a").status_code == 200


def ask_in_turns(server: Running, count: int) -> None:
    """Send requests of every kind: whole, streamed, with log probabilities, a chat, and two that are refused."""
    bodies = [
        {"prompt": "a", "max_tokens": 3},
        {"prompt": ["a", "b"], "max_tokens": 3, "n": 2, "stream": True},
        {"prompt": "ab", "max_tokens": 2, "logprobs": 2, "echo": True},
        {"prompt": "a", "max_tokens": 1000},
        {"prompt": None},
    ]
    with httpx.Client(base_url=server.url) as client:
        for number in range(count):
            client.post("/v1/completions", json=bodies[number % len(bodies)])


def test_nothing_of_a_request_is_left_when_it_has_ended():
    kinds = (Generation, Choice, Sequenced)
    gc.collect()
    before = {id(each) for each in gc.get_objects() if type(each) in kinds}
    with running() as server:
        ask_in_turns(server, 20)
        server.slots.nan = True
        ask_in_turns(server, 10)
        while server.scheduler.pending:
            time.sleep(0.001)
        time.sleep(0.1)
        gc.collect()
        assert [each for each in gc.get_objects() if type(each) in kinds and id(each) not in before] == []


@pytest.mark.slow
def test_memory_is_flat_over_two_thousand_requests():
    def used() -> int:
        gc.collect()
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * resource.getpagesize()

    with running() as server:
        ask_in_turns(server, 500)
        before = used()
        ask_in_turns(server, 2000)
        assert used() - before < 2 << 20


def test_health_is_ok(server: Running):
    response = httpx.get(f"{server.url}/health")
    assert (response.status_code, response.json()) == (200, {"status": "ok", "model": "toy"})


def test_the_page_is_there_and_nothing_beside_it(server: Running):
    for path, kind in {
        "/": "text/html; charset=utf-8",
        "/app.js": "text/javascript; charset=utf-8",
        "/style.css": "text/css; charset=utf-8",
        "/icon.svg": "image/svg+xml",
    }.items():
        response = httpx.get(server.url + path)
        assert (response.status_code, response.headers["content-type"]) == (200, kind)
        assert response.content
    for path in ("/index.html", "/page/index.html", "/app.py", "/..%2fapp.py", "/page/..%2f..%2fslots.py"):
        assert httpx.get(server.url + path).status_code == 404
