"""The API's own description: it is valid, names every route, and the API keeps to it, whatever it is sent."""

import json
from typing import Any

import httpx
import hypothesis
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from schemathesis import Case, GenerationMode
from schemathesis.checks import CHECKS

from lmcore.serve.openapi import document
from tests.lmcore.serve.toy import Running, chat_template, make_served, running

ANSWERS = ("/v1/completions", "/v1/chat/completions", "/attention")


def test_every_route_is_described(server: Running):
    described = {(path, method.upper()) for path, item in document(server.served)["paths"].items() for method in item}
    routes = {
        (route.path.replace(":path", ""), method)  # type: ignore[attr-defined]
        for route in server.service.routes()
        for method in route.methods or ()
    }
    assert described == {(path, method) for path, method in routes if method != "HEAD"} - {("/openapi.json", "GET")}


def test_all_references_lead_somewhere_and_all_schemas_are_valid(server: Running):
    text = json.dumps(document(server.served))
    names = set(document(server.served)["components"]["schemas"])
    found = {part.partition('"')[0] for part in text.split('"#/components/schemas/')[1:]}
    assert found == names
    for schema in document(server.served)["components"]["schemas"].values():
        Draft202012Validator.check_schema(schema)


def test_a_key_is_described_where_there_is_one(server: Running):
    assert "security" not in document(server.served)
    described = document(server.served, has_key=True)
    assert described["security"] == [{"key": []}]
    assert described["components"]["securitySchemes"]["key"]["scheme"] == "bearer"
    assert described["paths"]["/health"]["get"]["security"] == []


def schema_of(server: Running, name: str) -> Draft202012Validator:
    described = document(server.served)
    return Draft202012Validator({"$ref": f"#/components/schemas/{name}", "components": described["components"]})


@pytest.mark.parametrize(
    ("path", "body", "name"),
    [
        ("/v1/completions", {"prompt": "a", "logprobs": 2, "echo": True, "n": 2}, "Completion"),
        ("/v1/completions", {"prompt": "a", "suffix": "b"}, "Error"),
        (
            "/v1/chat/completions",
            {"messages": [{"role": "user", "content": "a"}], "logprobs": True, "top_logprobs": 2, "max_tokens": 3},
            "ChatCompletion",
        ),
        ("/attention", {"prompt": "abc"}, "Attention"),
        ("/v1/models", None, "Models"),
        ("/v1/models/toy", None, "Model"),
        ("/health", None, "Health"),
        ("/info", None, "Info"),
    ],
)
def test_answers_are_as_described(server: Running, path: str, body: Any, name: str):
    answer = (httpx.get(server.url + path) if body is None else httpx.post(server.url + path, json=body)).json()
    schema_of(server, name).validate(answer)
    if name != "Info":
        assert not schema_of(server, name).is_valid({**answer, "more": 1}), "the description is exact"


def fuzz(server: Running, examples: int) -> None:
    """Send what the description allows, and what it does not, and check each answer by the description."""
    schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
    # Whether what is allowed is accepted depends on what no schema can say: the tokens of a text, and the queue.
    checks = [check for check in CHECKS.get_all() if check.__name__ != "positive_data_acceptance"]
    assert {"not_a_server_error", "negative_data_rejection", "response_schema_conformance"} <= {
        check.__name__ for check in checks
    }
    seen: set[tuple[str, int]] = set()
    limits = settings(
        max_examples=examples,
        database=None,
        deadline=None,
        derandomize=True,
        phases=[hypothesis.Phase.generate],
        suppress_health_check=list(HealthCheck),
    )

    def send(case: Case) -> None:
        response = case.call()
        seen.add((case.operation.path, response.status_code))
        case.validate_response(response, checks=checks)

    for result in schema.get_all_operations():
        operation = result.ok()
        modes = [GenerationMode.POSITIVE, *([GenerationMode.NEGATIVE] if operation.method == "post" else [])]
        for mode in modes:
            limits(given(case=operation.as_strategy(generation_mode=mode))(send))()
    assert {path for path, status in seen if status == 200} >= {"/v1/completions", "/attention", "/health"}
    assert {path for path, status in seen if status == 400} >= set(ANSWERS)
    assert server.scheduler.pending == 0
    assert httpx.post(f"{server.url}/v1/completions", json={"prompt": "a"}).status_code == 200


def test_a_few_requests_by_the_description_are_answered_by_it(server: Running):
    fuzz(server, examples=12)


@pytest.mark.slow
def test_many_requests_by_the_description_are_answered_by_it():
    with running(make_served(chat_template())) as server:
        fuzz(server, examples=600)


def test_no_bytes_are_an_error_of_the_server(server: Running):
    headers = {"Content-Type": "application/json"}
    with httpx.Client(base_url=server.url, headers=headers) as client:

        @given(content=st.binary(max_size=200))
        @settings(max_examples=100, deadline=None)
        def send(content: bytes) -> None:
            for path in ANSWERS:
                assert client.post(path, content=content).status_code == 400

        send()
