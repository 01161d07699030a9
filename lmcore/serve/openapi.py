"""The API's own description, as OpenAPI 3.1, from the classes that read the requests."""

from typing import Any

from pydantic.json_schema import models_json_schema

from lmcore.serve.requests import AttentionRequest, ChatRequest, CompletionRequest
from lmcore.serve.served import Served

__all__ = ["document"]

JSON = "application/json"
STRING, INTEGER, NUMBER, OBJECT = ({"type": kind} for kind in ("string", "integer", "number", "object"))
REFERENCE = "#/components/schemas/{model}"


def _object(**properties: Any) -> dict[str, Any]:
    """Return the schema of an object that has exactly these properties."""
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def _list(items: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": items}


def _or_null(schema: dict[str, Any]) -> dict[str, Any]:
    return {"anyOf": [schema, {"type": "null"}]}


def _ref(name: str) -> dict[str, str]:
    return {"$ref": REFERENCE.format(model=name)}


FINISH = {"enum": ["stop", "length"]}
TOKEN = {"token": STRING, "logprob": NUMBER, "bytes": _list(INTEGER)}
COMPLETION_LOGPROBS = _object(
    tokens=_list(STRING),
    token_logprobs=_list(_or_null(NUMBER)),
    top_logprobs=_list(_or_null({"type": "object", "additionalProperties": NUMBER})),
    text_offset=_list(INTEGER),
)
CHAT_LOGPROBS = _object(content=_list(_object(**TOKEN, top_logprobs=_list(_object(**TOKEN)))), refusal={"type": "null"})
RESPONSES = {
    "Error": _object(
        error=_object(message=STRING, type=STRING, param=_or_null(STRING), code=_or_null(STRING)),
    ),
    "Model": _object(id=STRING, object={"const": "model"}, created=INTEGER, owned_by=STRING),
    "Models": _object(object={"const": "list"}, data=_list(_ref("Model"))),
    "Usage": _object(prompt_tokens=INTEGER, completion_tokens=INTEGER, total_tokens=INTEGER),
    "Completion": _object(
        id=STRING,
        object={"const": "text_completion"},
        created=INTEGER,
        model=STRING,
        choices=_list(
            _object(index=INTEGER, text=STRING, logprobs=_or_null(COMPLETION_LOGPROBS), finish_reason=FINISH)
        ),
        usage=_ref("Usage"),
    ),
    "ChatCompletion": _object(
        id=STRING,
        object={"const": "chat.completion"},
        created=INTEGER,
        model=STRING,
        choices=_list(
            _object(
                index=INTEGER,
                message=_object(role={"const": "assistant"}, content=STRING, refusal={"type": "null"}),
                logprobs=_or_null(CHAT_LOGPROBS),
                finish_reason=FINISH,
            )
        ),
        usage=_ref("Usage"),
    ),
    "Health": _object(status={"enum": ["ok", "stopping", "failed"]}, model=STRING),
    "Info": OBJECT,
    "Attention": _object(
        tokens=_list(STRING), layer=INTEGER, head=INTEGER, weights=_list(_list({"type": "number", "minimum": 0}))
    ),
}
REQUESTS = (CompletionRequest, ChatRequest, AttentionRequest)
FAILURES = {
    "400": "The request cannot be answered; the message names the field.",
    "401": "The API key is missing or wrong.",
    "404": "There is no such model or path.",
    "405": "The path has another method.",
    "413": "The body is too large.",
    "415": "The body is not JSON.",
    "429": "The queue is full; try again after Retry-After seconds.",
    "500": "The model or the server failed.",
    "503": "The server is stopping.",
}


def _operation(summary: str, answer: str, request: str | None = None, streams: bool = False) -> dict[str, Any]:
    """Return an operation.

    Args:
        summary: what it does, in one line.
        answer: name of the schema of its answer, or a media type.
        request: name of the schema of its body; None where it has none.
        streams: whether the answer may be a stream of events.
    """
    content: dict[str, Any] = {answer: {"schema": STRING}} if "/" in answer else {JSON: {"schema": _ref(answer)}}
    if streams:
        content["text/event-stream"] = {}  # OpenAPI 3.1 has no schema for one event of many
    responses: dict[str, Any] = {"200": {"description": "The answer.", "content": content}}
    for status, description in FAILURES.items():
        responses[status] = {"description": description, "content": {JSON: {"schema": _ref("Error")}}}
    operation: dict[str, Any] = {"summary": summary, "responses": responses}
    if request is not None:
        operation["requestBody"] = {"required": True, "content": {JSON: {"schema": _ref(request)}}}
    return operation


def _paths(name: str) -> dict[str, Any]:
    """Return the paths of the API, for a model of this name."""
    health = _operation("Say whether the server is up.", "Health")
    health["responses"]["503"] = {
        "description": "The server is stopping, or has failed.",
        "content": {JSON: {"schema": _ref("Health")}},
    }
    parameter = {"name": "id", "in": "path", "required": True, "schema": {"type": "string", "enum": [name]}}
    chat = _operation("Reply to a conversation.", "ChatCompletion", "ChatRequest", streams=True)
    return {
        "/v1/models": {"get": _operation("List the model.", "Models")},
        "/v1/models/{id}": {"get": _operation("Describe the model.", "Model") | {"parameters": [parameter]}},
        "/v1/completions": {"post": _operation("Go on with a text.", "Completion", "CompletionRequest", streams=True)},
        "/v1/chat/completions": {"post": chat},
        "/health": {"get": health | {"security": []}},
        "/metrics": {"get": _operation("Return metrics for Prometheus.", "text/plain")},
        "/info": {"get": _operation("Return facts about the model.", "Info")},
        "/attention": {"post": _operation("Return the attention weights of a text.", "Attention", "AttentionRequest")},
    }


def document(served: Served, has_key: bool = False) -> dict[str, Any]:
    """Return the OpenAPI document of the server of a model.

    Args:
        served: the model.
        has_key: whether requests need an API key.
    """
    _, schemas = models_json_schema([(kind, "validation") for kind in REQUESTS], ref_template=REFERENCE)
    described: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {"title": f"twinlm: {served.name}", "version": "1"},
        "paths": _paths(served.name),
        "components": {"schemas": {**schemas["$defs"], **RESPONSES}},
    }
    if has_key:
        described["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        described["security"] = [{"key": []}]
    return described
