"""Errors name the field, the value found and the value expected, in the API's form."""

import pytest
from pydantic import ValidationError

from lmcore.serve.errors import ApiError, error_body, from_validation
from lmcore.serve.requests import ChatRequest, CompletionRequest


@pytest.mark.parametrize(
    ("status", "kind"),
    [(400, "invalid_request_error"), (401, "authentication_error"), (429, "rate_limit_error"), (500, "server_error")],
)
def test_an_errors_type_follows_its_status(status: int, kind: str):
    body = error_body(ApiError(status, "m", "p", "c"))
    assert body == {"error": {"message": "m", "type": kind, "param": "p", "code": "c"}}


def test_headers_say_when_to_try_again_and_how_to_authenticate():
    assert ApiError(429, "m", retry=3).headers == {"Retry-After": "3"}
    assert ApiError(401, "m").headers == {"WWW-Authenticate": "Bearer"}
    assert ApiError(400, "m").headers == {}


def told(kind: type, **body: object) -> ApiError:
    with pytest.raises(ValidationError) as caught:
        kind.model_validate(body)
    return from_validation(caught.value.errors())


def test_an_unknown_field_is_named():
    error = told(CompletionRequest, prompt="a", tool="x")
    assert (error.param, error.message) == (
        "tool",
        "tool: found 'x', expected no such field: it is unknown, or not supported",
    )


def test_an_unknown_field_is_named_whatever_its_name_is():
    assert told(CompletionRequest, prompt="a", **{"max-tokens": 3}).message.startswith(
        "max-tokens: found 3, expected no "
    )
    assert told(CompletionRequest, prompt="a", **{"a\n" + "x" * 10_000: 3}).message.startswith("a\\nxxx")


def test_a_field_that_lacks_is_named():
    error = told(CompletionRequest)
    assert error.message == "prompt: found nothing, expected this field, which is required"


def test_a_value_out_of_range_is_told_with_the_range():
    assert told(CompletionRequest, prompt="a", top_p=2.0).message == (
        "top_p: found 2.0, expected less than or equal to 1"
    )


def test_a_nested_field_has_its_place():
    error = told(ChatRequest, messages=[{"role": "user", "content": "a"}, {"role": "wizard", "content": "b"}])
    assert error.param == "messages"
    assert error.message.startswith("messages.1.role: found 'wizard', expected 'system', ")


def test_a_long_value_is_shortened():
    assert len(told(CompletionRequest, prompt="a", model=["x" * 10_000]).message) < 200
