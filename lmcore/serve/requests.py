"""What a request may say: strict types, every field known by name, and no value that would be ignored."""

import json
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, WithJsonSchema
from pydantic_core import from_json

from lmcore.serve.errors import ApiError, from_validation

__all__ = ["AttentionRequest", "ChatRequest", "CompletionRequest", "Options", "parse"]

MAX_STOPS = 16
"""Maximum number of stop strings."""
MAX_STOP = 1000
"""Maximum number of characters of one."""
NESTING = 32
"""Maximum depth of a request's JSON; the deepest that means anything has 4."""


def _without_nul(text: str) -> str:
    if "\0" in text:
        raise ValueError("text without the character U+0000")
    return text


def _one_of(*allowed: Any) -> Any:
    """Return the type of a field that this server does not support: only the values that ask for nothing pass."""

    def check(value: Any) -> Any:
        if not any(value == each and isinstance(value, bool) == isinstance(each, bool) for each in allowed):
            raise ValueError(f"{' or '.join(map(json.dumps, allowed))}, since it is not supported")
        return value

    return Annotated[Any, AfterValidator(check), WithJsonSchema({"enum": list(allowed)})]


PROMPT = "a string, a list of strings, a list of token ids, or a list of lists of token ids; none of the lists empty"


def _check_prompt(value: Any) -> Any:
    """Check the four forms by hand, since the errors of a union name all of its branches."""
    if isinstance(value, str):
        return _without_nul(value)
    if isinstance(value, list) and value:
        if all(isinstance(each, str) for each in value):
            return [_without_nul(each) for each in value]
        if _are_ids(value) or all(isinstance(each, list) and each and _are_ids(each) for each in value):
            return value
    raise ValueError(PROMPT)


def _check_one_prompt(value: Any) -> Any:
    if not (isinstance(value, str) or (isinstance(value, list) and value and _are_ids(value))):
        raise ValueError("a string, or a list of token ids that is not empty")
    return _check_prompt(value)


def _check_stop(value: Any) -> Any:
    """Check both forms by hand, for the same reason."""
    stops = [value] if isinstance(value, str) else [] if value is None else value
    if not isinstance(stops, list) or not all(isinstance(each, str) for each in stops):
        raise ValueError("a string or a list of strings")
    if len(stops) > MAX_STOPS:
        raise ValueError(f"at most {MAX_STOPS} stop strings")
    if not all(1 <= len(_without_nul(each)) <= MAX_STOP for each in stops):
        raise ValueError(f"stop strings of 1 to {MAX_STOP} characters")
    return value


def _are_ids(values: list[Any]) -> bool:
    return all(type(each) is int and each >= 0 for each in values)


TEXT: dict[str, Any] = {"type": "string", "pattern": "^[^\\u0000]*$"}
IDS: dict[str, Any] = {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1}
Text = Annotated[str, AfterValidator(_without_nul), WithJsonSchema(TEXT)]
Prompt = Annotated[
    Any,
    AfterValidator(_check_prompt),
    WithJsonSchema(
        {
            "anyOf": [
                TEXT,
                {"type": "array", "items": TEXT, "minItems": 1},
                IDS,
                {"type": "array", "items": IDS, "minItems": 1},
            ]
        }
    ),
]
OnePrompt = Annotated[Any, AfterValidator(_check_one_prompt), WithJsonSchema({"anyOf": [TEXT, IDS]})]
STOP: dict[str, Any] = TEXT | {"minLength": 1, "maxLength": MAX_STOP}
Stop = Annotated[
    Any,
    AfterValidator(_check_stop),
    WithJsonSchema({"anyOf": [STOP, {"type": "array", "items": STOP, "maxItems": MAX_STOPS}, {"type": "null"}]}),
]
Count = Annotated[int, Field(ge=0, lt=2**31)]


class Body(BaseModel):
    """A JSON object without fields that are not listed."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class StreamOptions(Body):
    """Options of a streamed answer."""

    include_usage: bool | None = None
    """Whether a last chunk, with no choices, has the number of tokens."""
    include_obfuscation: _one_of(None, False) = None  # type: ignore[valid-type]


class Sampled(Body):
    """What completions and chats have in common."""

    model: str | None = None
    """Id of the model; null takes the one that is served."""
    n: Annotated[int, Field(ge=1, le=128)] | None = None
    """Number of choices for each prompt; null is 1."""
    temperature: Annotated[float, Field(ge=0, le=100)] | None = None
    """Divides the logits; 0 always takes the most likely token; null is 1."""
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    """Keep the smallest set of most likely tokens whose probabilities sum to at least this; null is 1."""
    top_k: Count | None = None
    """Keep only this many most likely tokens; 0, or null, keeps all."""
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    """Keep only tokens whose probability is at least this fraction of the highest one; null is 0."""
    seed: Annotated[int, Field(ge=0, lt=2**64)] | None = None
    """Choice i has the random numbers of seed + i; null draws a new seed."""
    stop: Stop = None
    """Strings before which the text ends."""
    stream: bool | None = None
    """Whether the text is sent as it grows."""
    stream_options: StreamOptions | None = None

    frequency_penalty: _one_of(None, 0) = None  # type: ignore[valid-type]
    presence_penalty: _one_of(None, 0) = None  # type: ignore[valid-type]
    logit_bias: _one_of(None, {}) = None  # type: ignore[valid-type]
    service_tier: _one_of(None, "auto", "default") = None  # type: ignore[valid-type]
    user: str | None = None
    metadata: dict[str, str] | None = None

    def shared_options(self) -> dict[str, Any]:
        """Return the fields of `Options` that are the same for both.

        Raises:
            ApiError: `stream_options` without `stream`.
        """
        if self.stream_options is not None and not self.stream:
            raise ApiError(400, "stream_options: found without stream, expected both", "stream_options")
        stops = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return {
            "n": 1 if self.n is None else self.n,
            "temperature": 1.0 if self.temperature is None else self.temperature,
            "top_p": 1.0 if self.top_p is None else self.top_p,
            "top_k": self.top_k or 0,
            "min_p": self.min_p or 0.0,
            "seed": self.seed,
            "stops": tuple(stops),
            "stream": bool(self.stream),
            "include_usage": bool(self.stream_options and self.stream_options.include_usage),
        }


class CompletionRequest(Sampled):
    """Body of `POST /v1/completions`."""

    prompt: Prompt
    """Text to go on with; of an empty one, a new document."""
    max_tokens: Count | None = None
    """Maximum number of tokens to generate; null is 16. 0 is allowed with echo."""
    logprobs: Annotated[int, Field(ge=0, le=5)] | None = None
    """Return log probabilities, and so many of the most likely tokens at each position."""
    echo: bool | None = None
    """Whether the text begins with the prompt."""

    best_of: Annotated[int, Field(ge=1, le=128)] | None = None
    suffix: _one_of(None, "") = None  # type: ignore[valid-type]

    def options(self) -> "Options":
        """Return what to generate.

        Raises:
            ApiError: fields that do not fit each other.
        """
        shared = self.shared_options()
        if self.best_of not in (None, shared["n"]):
            message = f"best_of: found {self.best_of}, expected {shared['n']} as n, or null, since it is not supported"
            raise ApiError(400, message, "best_of")
        if self.max_tokens == 0 and not self.echo:
            raise ApiError(400, "max_tokens: found 0 without echo, expected at least 1", "max_tokens")
        maximum = 16 if self.max_tokens is None else self.max_tokens
        return Options(max_tokens=maximum, logprobs=self.logprobs, echo=bool(self.echo), **shared)


class TextPart(Body):
    """A part of a message."""

    type: Literal["text"]
    text: Text


class ChatMessage(Body):
    """A turn of a conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Text | Annotated[list[TextPart], Field(fail_fast=True, min_length=1)]
    name: _one_of(None) = None  # type: ignore[valid-type]
    refusal: _one_of(None) = None  # type: ignore[valid-type]
    annotations: _one_of(None, []) = None  # type: ignore[valid-type]
    audio: _one_of(None) = None  # type: ignore[valid-type]
    function_call: _one_of(None) = None  # type: ignore[valid-type]
    tool_calls: _one_of(None, []) = None  # type: ignore[valid-type]

    def turn(self) -> dict[str, str]:
        """Return the message as chat templates take it."""
        content = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return {"role": "system" if self.role == "developer" else self.role, "content": content}


class ChatRequest(Sampled):
    """Body of `POST /v1/chat/completions`."""

    messages: Annotated[list[ChatMessage], Field(fail_fast=True, min_length=1)]
    """The conversation so far."""
    max_completion_tokens: Annotated[Count, Field(ge=1)] | None = None
    """Maximum number of tokens to generate; null is what the context has room for."""
    max_tokens: Annotated[Count, Field(ge=1)] | None = None
    """The same, by its older name."""
    logprobs: bool | None = None
    """Whether to return log probabilities."""
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    """Number of the most likely tokens to return at each position; it needs logprobs."""

    functions: _one_of(None, []) = None  # type: ignore[valid-type]
    function_call: _one_of(None, "none", "auto") = None  # type: ignore[valid-type]
    modalities: _one_of(None, ["text"]) = None  # type: ignore[valid-type]
    parallel_tool_calls: bool | None = None
    reasoning_effort: _one_of(None, "none") = None  # type: ignore[valid-type]
    response_format: _one_of(None, {"type": "text"}) = None  # type: ignore[valid-type]
    store: _one_of(None, False) = None  # type: ignore[valid-type]
    tools: _one_of(None, []) = None  # type: ignore[valid-type]
    tool_choice: _one_of(None, "none", "auto") = None  # type: ignore[valid-type]

    def options(self) -> "Options":
        """Return what to generate.

        Raises:
            ApiError: fields that do not fit each other.
        """
        first, second = self.max_completion_tokens, self.max_tokens
        if first is not None and second is not None and first != second:
            message = f"max_tokens: found {second}, expected {first} as max_completion_tokens, or only one of them"
            raise ApiError(400, message, "max_tokens")
        if self.top_logprobs and not self.logprobs:
            message = f"top_logprobs: found {self.top_logprobs} without logprobs, expected logprobs to be true"
            raise ApiError(400, message, "top_logprobs")
        logprobs = (self.top_logprobs or 0) if self.logprobs else None
        maximum = second if first is None else first
        return Options(max_tokens=maximum, logprobs=logprobs, echo=False, **self.shared_options())


class AttentionRequest(Body):
    """Body of `POST /attention`."""

    prompt: OnePrompt
    layer: Annotated[int, Field(ge=0)] = 0
    head: Annotated[int, Field(ge=0)] = 0


@dataclass(frozen=True, kw_only=True)
class Options:
    """What to generate after each prompt."""

    n: int
    max_tokens: int | None
    """None takes what the context has room for."""
    temperature: float
    top_p: float
    top_k: int
    min_p: float
    seed: int | None
    stops: tuple[str, ...]
    logprobs: int | None
    """Number of most likely tokens to return at each position; None returns no log probabilities."""
    echo: bool
    stream: bool
    include_usage: bool


Model = TypeVar("Model", bound=Body)


def parse(kind: type[Model], content: bytes) -> Model:
    """Read a request's JSON.

    Args:
        kind: class of the request.
        content: bytes of the body.

    Raises:
        ApiError: it is no JSON, or not such a request.
    """
    try:
        # Unlike the standard library's, this parser refuses lone surrogates, and NaN.
        value = from_json(content, allow_inf_nan=False)
    except ValueError as error:
        raise ApiError(400, f"body: found no valid JSON ({error}), expected an object in UTF-8") from None
    if _is_deeper(value, NESTING):
        raise ApiError(400, f"body: found JSON that is nested more than {NESTING} deep, expected less")
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        raise from_validation(error.errors(include_url=False)) from None


def _is_deeper(value: Any, limit: int) -> bool:
    """Return whether JSON is nested deeper than `limit`; no value but a container takes a call."""
    if not isinstance(value, list | dict):
        return False
    inner = value.values() if isinstance(value, dict) else value
    return limit == 0 or any(_is_deeper(each, limit - 1) for each in inner if isinstance(each, list | dict))
