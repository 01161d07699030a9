"""What a request may say, and what it is refused for."""

import json
from typing import Any

import pytest

from lmcore.serve.errors import ApiError
from lmcore.serve.requests import AttentionRequest, ChatRequest, CompletionRequest, parse

HI = [{"role": "user", "content": "Hi"}]


def completion(**body: Any) -> CompletionRequest:
    return parse(CompletionRequest, json.dumps({"prompt": "a"} | body).encode())


def chat(**body: Any) -> ChatRequest:
    return parse(ChatRequest, json.dumps({"messages": HI} | body).encode())


def refusal(call: Any, **body: Any) -> tuple[str | None, str]:
    with pytest.raises(ApiError) as caught:
        call(**body).options()
    assert caught.value.status == 400
    return caught.value.param, caught.value.message


def test_what_is_left_out_or_null_has_the_apis_defaults():
    for request in (completion(), completion(temperature=None, max_tokens=None, n=None, stop=None, stream=None)):
        options = request.options()
        assert (options.n, options.max_tokens, options.temperature, options.top_p) == (1, 16, 1.0, 1.0)
        assert (options.top_k, options.min_p, options.seed, options.stops) == (0, 0.0, None, ())
        assert (options.logprobs, options.echo, options.stream, options.include_usage) == (None, False, False, False)
    assert chat().options().max_tokens is None


def test_what_is_said_is_kept():
    options = completion(
        n=2, max_tokens=3, temperature=0, top_p=0.5, top_k=7, min_p=0.1, seed=9, stop="x", logprobs=0, echo=True
    ).options()
    assert (options.n, options.max_tokens, options.temperature, options.top_p) == (2, 3, 0.0, 0.5)
    assert (options.top_k, options.min_p, options.seed, options.stops) == (7, 0.1, 9, ("x",))
    assert (options.logprobs, options.echo) == (0, True)
    assert completion(stop=["a", "b"]).options().stops == ("a", "b")
    assert completion(stream=True, stream_options={"include_usage": True}).options().include_usage


@pytest.mark.parametrize("prompt", ["", "a", ["a", "b"], [1, 2], [[1], [2, 3]]])
def test_a_prompt_has_four_forms(prompt: Any):
    assert completion(prompt=prompt).prompt == prompt


@pytest.mark.parametrize("prompt", [None, 1, {}, [], [[]], ["a", 1], [1, [2]], [True], [1.0], [-1], [["a"]], "\0"])
def test_another_prompt_is_refused(prompt: Any):
    param, message = refusal(completion, prompt=prompt)
    assert param == "prompt"
    assert message.startswith("prompt: found ")


@pytest.mark.parametrize(
    ("field", "harmless", "harmful"),
    [
        ("best_of", [None, 1], [2, 0]),
        ("suffix", [None, ""], ["x"]),
        ("logit_bias", [None, {}], [{"1": 5}, []]),
        ("presence_penalty", [None, 0, 0.0], [0.1, -1, False]),
        ("frequency_penalty", [None, 0], [2, "0"]),
        ("service_tier", [None, "auto", "default"], ["flex"]),
        ("user", [None, "me"], [1]),
        ("metadata", [None, {"a": "b"}], [{"a": 1}, "x"]),
    ],
)
def test_a_completions_field_that_is_not_supported_may_only_ask_for_nothing(field: str, harmless: list, harmful: list):
    for value in harmless:
        completion(**{field: value}).options()
    for value in harmful:
        param, message = refusal(completion, **{field: value})
        assert (param, message.partition(":")[0].partition(".")[0]) == (field, field)


@pytest.mark.parametrize(
    ("field", "harmless", "harmful"),
    [
        ("tools", [None, []], [[{"type": "function"}]]),
        ("tool_choice", [None, "none", "auto"], ["required", {}]),
        ("functions", [None, []], [[{}]]),
        ("response_format", [None, {"type": "text"}], [{"type": "json_object"}]),
        ("modalities", [None, ["text"]], [["audio"]]),
        ("store", [None, False], [True, 0]),
        ("parallel_tool_calls", [None, True], ["x"]),
        ("prediction", [], [{}]),
        ("echo", [], [True]),
    ],
)
def test_a_chats_field_that_is_not_supported_may_only_ask_for_nothing(field: str, harmless: list, harmful: list):
    for value in harmless:
        chat(**{field: value}).options()
    for value in harmful:
        assert refusal(chat, **{field: value})[0] == field


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("model", 1),
        ("n", 0),
        ("n", 129),
        ("n", "2"),
        ("n", 1.0),
        ("n", True),
        ("max_tokens", -1),
        ("max_tokens", 10**30),
        ("max_tokens", 0),
        ("temperature", -0.1),
        ("temperature", "1"),
        ("temperature", 101),
        ("top_p", 0),
        ("top_p", 1.1),
        ("top_k", -1),
        ("min_p", 1.1),
        ("seed", -1),
        ("seed", 2**64),
        ("seed", 1.5),
        ("stop", ""),
        ("stop", ["a"] * 17),
        ("stop", [1]),
        ("stop", "a\0"),
        ("stop", "x" * 1001),
        ("stream", 1),
        ("stream_options", {"include_usage": True}),
        ("stream_options", {"x": 1}),
        ("logprobs", 6),
        ("logprobs", True),
    ],
)
def test_a_value_of_another_type_or_out_of_range_is_refused(field: str, value: Any):
    assert refusal(completion, **{field: value})[0] == field


@pytest.mark.parametrize(
    ("stop", "expected"),
    [
        (["a"] * 17, "expected at most 16 stop strings"),
        (["a", "x" * 1001], "expected stop strings of 1 to 1000 characters"),
        ("", "expected stop strings of 1 to 1000 characters"),
        (["a", 1], "expected a string or a list of strings"),
        (["a\0"], "expected text without the character U+0000"),
    ],
)
def test_a_refused_stop_is_told_by_its_reason_in_either_form(stop: Any, expected: str):
    assert refusal(completion, stop=stop)[1].endswith(expected)


def test_a_chats_older_name_of_a_field_must_agree_with_the_newer():
    assert chat(max_tokens=5).options().max_tokens == 5
    assert chat(max_completion_tokens=5, max_tokens=5).options().max_tokens == 5
    assert refusal(chat, max_completion_tokens=5, max_tokens=6)[0] == "max_tokens"
    assert refusal(chat, max_tokens=0)[0] == "max_tokens"


def test_a_chats_top_logprobs_need_logprobs():
    assert chat(logprobs=True).options().logprobs == 0
    assert chat(logprobs=True, top_logprobs=20).options().logprobs == 20
    assert chat(logprobs=False, top_logprobs=0).options().logprobs is None
    assert refusal(chat, top_logprobs=1)[0] == "top_logprobs"
    assert refusal(chat, logprobs=True, top_logprobs=21)[0] == "top_logprobs"


def test_messages_have_known_roles_and_text():
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    messages = [{"role": "developer", "content": parts}, {"role": "assistant", "content": "", "tool_calls": None}]
    assert [message.turn() for message in chat(messages=messages).messages] == [
        {"role": "system", "content": "ab"},
        {"role": "assistant", "content": ""},
    ]
    for messages in ([], "x", [{"role": "user"}], [{"content": "a"}], [{"role": "tool", "content": "a"}]):
        assert refusal(chat, messages=messages)[0] == "messages"
    image = {"type": "image_url", "image_url": {"url": "x"}}
    for content in (None, 1, [], [image], "\0"):
        assert refusal(chat, messages=[{"role": "user", "content": content}])[0] == "messages"
    assert refusal(chat, messages=[HI[0] | {"tool_calls": [{}]}])[0] == "messages"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b'{"prompt": "a"} x',
        b'{"prompt": "\xff"}',
        b'{"prompt": "\\ud800"}',
        b'{"prompt": "a\x00"}',
        b'{"prompt": "a", "temperature": NaN}',
        b'{"prompt": "a", "temperature": Infinity}',
        b'{"prompt": "a", "temperature": 1e999}',
        b'{"prompt": "a", "seed": ' + b"9" * 5000 + b"}",
        b"[" * 100_000,
        b'{"prompt": ' + b"[" * 100 + b"]" * 100 + b"}",
        b'{"prompt": "a", "metadata": ' + b'{"a":' * 40 + b"1" + b"}" * 40 + b"}",
        b"null",
        b'"a"',
        b"[]",
    ],
)
def test_a_body_that_is_no_such_json_is_refused(body: bytes):
    with pytest.raises(ApiError) as caught:
        parse(CompletionRequest, body)
    assert caught.value.status == 400
    assert len(caught.value.message) < 400


def test_attention_takes_one_prompt():
    request = parse(AttentionRequest, b'{"prompt": [1, 2], "layer": 1}')
    assert (request.prompt, request.layer, request.head) == ([1, 2], 1, 0)
    for wrong in ({"prompt": ["a"]}, {"prompt": []}, {"prompt": "a", "layer": -1}, {"prompt": "a", "head": 0.5}):
        with pytest.raises(ApiError):
            parse(AttentionRequest, json.dumps(wrong).encode())
