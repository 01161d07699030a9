"""What is refused before the API sees it, and the headers of every response."""

import asyncio
import socket
from collections.abc import Iterator

import httpx
import pytest

from lmcore.serve.app import Settings
from lmcore.serve.limits import Guard, host_name
from tests.lmcore.serve.toy import Running, running

KEY = "s3cret"
BODY = {"prompt": "a", "max_tokens": 2}


@pytest.fixture(scope="module")
def guarded():
    hosts = frozenset({"127.0.0.1", "localhost", "::1"})
    with running(settings=Settings(api_key=KEY, hosts=hosts, max_body=2000)) as server:
        yield server


def test_all_but_health_and_the_pages_files_needs_the_key(guarded: Running):
    for path in ("/v1/models", "/v1/completions", "/metrics", "/info", "/attention", "/openapi.json", "/nope"):
        response = httpx.get(guarded.url + path)
        assert (response.status_code, response.json()["error"]["code"]) == (401, "invalid_api_key")
        assert response.headers["www-authenticate"] == "Bearer"
    assert httpx.get(f"{guarded.url}/health").status_code == 200
    assert httpx.get(f"{guarded.url}/").status_code == 200


@pytest.mark.parametrize(
    ("value", "status"),
    [
        (f"Bearer {KEY}", 200),
        (f"bearer  {KEY}", 200),
        (f"Bearer {KEY}x", 401),
        (f"Bearer {KEY[:-1]}", 401),
        ("Bearer", 401),
        ("Bearer \xe9", 401),
        (f"Basic {KEY}", 401),
        (KEY, 401),
    ],
)
def test_the_key_must_be_the_whole_key(guarded: Running, value: str, status: int):
    response = httpx.get(f"{guarded.url}/v1/models", headers={"Authorization": value.encode("latin-1")})
    assert response.status_code == status


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost:8000", 200),
        ("127.0.0.1", 200),
        ("LOCALHOST", 200),
        ("[::1]:80", 200),
        ("evil.example", 400),
        ("localhost.evil.example:8000", 400),
        ("", 400),
    ],
)
def test_a_page_whose_name_leads_here_is_refused(guarded: Running, host: str, status: int):
    response = httpx.get(f"{guarded.url}/health", headers={"Host": host})
    assert response.status_code == status


def test_several_hosts_are_refused(server: Running):
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: a\r\nhost: b\r\nConnection: close\r\n\r\n")
        answer = connection.makefile("rb").read()
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b"Host: found 2 such headers, expected one" in answer


def test_a_servers_names_may_be_any(server: Running):
    assert httpx.get(f"{server.url}/health", headers={"Host": "lab.example"}).status_code == 200


@pytest.mark.parametrize(
    ("header", "name"),
    [("a", "a"), ("A:80", "a"), ("[::1]:80", "::1"), ("[::1]", "::1"), ("", ""), (" a ", "a"), ("[", "")],
)
def test_a_host_header_has_a_name(header: str, name: str):
    assert host_name(header) == name


@pytest.mark.parametrize("path", ["/", "/health", "/v1/models", "/nope"])
def test_every_response_has_security_headers(server: Running, path: str):
    headers = httpx.get(server.url + path).headers
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["x-frame-options"] == "DENY"
    policy = headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "server" not in headers


def test_a_body_must_be_json(guarded: Running):
    key = {"Authorization": f"Bearer {KEY}"}
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""):
        response = httpx.post(f"{guarded.url}/v1/completions", content=b"{}", headers={**key, "Content-Type": kind})
        assert response.status_code == 415
    good = {**key, "Content-Type": "Application/JSON; charset=utf-8"}
    assert httpx.post(f"{guarded.url}/v1/completions", content=b'{"prompt":"a"}', headers=good).status_code == 200


def test_a_large_body_is_refused_announced_or_not(guarded: Running):
    key = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}

    def parts():
        yield from [b" " * 1000] * 3

    announced = httpx.post(f"{guarded.url}/v1/completions", content=b" " * 2001, headers=key)
    chunked = httpx.post(f"{guarded.url}/v1/completions", content=parts(), headers=key)
    for response in (announced, chunked):
        assert (response.status_code, response.json()["error"]["code"]) == (413, "too_large")
    fits = httpx.post(f"{guarded.url}/v1/completions", content=b'{"prompt":"a"}'.ljust(2000), headers=key)
    assert fits.status_code == 200


def test_ten_megabytes_are_refused_and_the_connection_goes_on(server: Running):
    with httpx.Client(base_url=server.url, timeout=30) as client:
        response = client.post("/v1/completions", json={"prompt": "x" * 10_000_000})
        assert response.status_code == 413
        assert client.post("/v1/completions", json=BODY).status_code == 200


def test_a_client_that_goes_away_while_it_sends_is_no_fault(server: Running, caplog: pytest.LogCaptureFixture):
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.sendall(
            b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
            b"Content-Length: 500\r\n\r\n{"
        )
    for _ in range(3):
        assert httpx.get(f"{server.url}/health").status_code == 200
    assert caplog.text == ""


def test_a_fault_of_the_program_is_an_error_in_json(caplog: pytest.LogCaptureFixture):
    sent = []

    async def broken(scope, receive, send):
        raise ZeroDivisionError

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "method": "GET", "path": "/x", "headers": []}
    counted: list[tuple[str, int]] = []
    guard = Guard(broken, None, None, lambda path, status: counted.append((path, status)))
    asyncio.run(guard(scope, None, send))  # type: ignore[arg-type]
    assert sent[0]["status"] == 500
    assert counted == [("/x", 500)]
    assert b"the server failed" in sent[1]["body"]
    assert "ZeroDivisionError" in caplog.text


def huge() -> Iterator[tuple[str, str, str]]:
    """(path, body of about a megabyte, field that its error names)."""
    yield "/v1/completions", '{"prompt": [' + '"a",' * 250_000 + '"a"]}', "n"
    yield "/v1/completions", '{"prompt": [' + "1," * 500_000 + "1]}", "prompt"
    yield "/v1/completions", '{"prompt": "' + "a" * 1_000_000 + '"}', "prompt"
    yield "/v1/completions", '{"prompt": "a", "stop": [' + "1," * 500_000 + "1]}", "stop"
    yield "/v1/completions", '{"prompt": "a"' + "".join(f', "{i}": 1' for i in range(70_000)) + "}", "0"
    yield "/v1/chat/completions", '{"messages": [' + "{}," * 300_000 + "{}]}", "messages"
    turn = '{"role": "user", "content": "a"}'
    yield "/v1/chat/completions", '{"messages": [' + f"{turn}," * 30_000 + turn + "]}", "messages"


@pytest.mark.parametrize(("path", "body", "param"), [pytest.param(*each, id=str(i)) for i, each in enumerate(huge())])
def test_a_huge_request_is_refused_in_a_few_words(server: Running, path: str, body: str, param: str):
    headers = {"Content-Type": "application/json"}
    response = httpx.post(server.url + path, content=body.encode(), headers=headers, timeout=20)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == param
    assert len(response.content) < 500
