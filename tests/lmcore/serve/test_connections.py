"""Slow, broken and hurried clients, seen on the socket, and the server's end."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from lmcore.serve.connections import MAX_HEADERS, Connection
from tests.lmcore.serve.toy import Running, Toy, expected_text, running

ROOT = Path(__file__).parents[3]


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> Iterator[Running]:
    """A server that waits 0.3 s for headers, 0.6 s for bodies, and 0.5 s for a client to read."""
    for name, seconds in (("header_seconds", 0.3), ("body_seconds", 0.6), ("read_seconds", 0.5)):
        monkeypatch.setattr(Connection, name, seconds)
    with running(slots=Toy(count=2)) as server:
        yield server


def request(stream: bool = False, **body: object) -> bytes:
    content = json.dumps({"prompt": "a", "max_tokens": 50, "stream": stream, **body}).encode()
    kind = "Content-Type: application/json"
    head = f"POST /v1/completions HTTP/1.1\r\nHost: a\r\n{kind}\r\nContent-Length: {len(content)}\r\n\r\n"
    return head.encode() + content


def connect(server: Running) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.port), timeout=10)


def seconds_until_closed(connection: socket.socket) -> float:
    begin = time.monotonic()
    try:
        while connection.recv(65536):
            pass
    except ConnectionResetError:
        pass
    return time.monotonic() - begin


def is_up(server: Running) -> bool:
    return httpx.get(f"{server.url}/health", timeout=10).json()["status"] == "ok"


@pytest.mark.parametrize(
    ("sent", "least", "most"),
    [
        (b"", 0.2, 2),
        (b"GET /health HT", 0.2, 2),
        (b"GET /health HTTP/1.1\r\nHost: a\r\nX-A: ", 0.2, 2),
        (request()[:-5], 0.5, 3),
    ],
)
def test_an_unfinished_request_loses_its_connection(hurried: Running, sent: bytes, least: float, most: float):
    with connect(hurried) as connection:
        connection.sendall(sent)
        assert least <= seconds_until_closed(connection) <= most
    assert is_up(hurried)


def test_a_byte_now_and_then_does_not_extend_the_time(hurried: Running):
    with connect(hurried) as connection:
        begin = time.monotonic()
        with contextlib.suppress(OSError):
            for byte in b"GET /health HTTP/1.1\r\nX-A: " + b"a" * 1000:
                connection.sendall(bytes([byte]))
                time.sleep(0.05)
        assert time.monotonic() - begin < 3
    assert is_up(hurried)


def test_a_second_request_on_the_connection_has_its_own_time(hurried: Running):
    with connect(hurried) as connection:
        for _ in range(3):
            connection.sendall(request(max_tokens=1))
            content = b""
            while b"total_tokens" not in content:
                content += connection.recv(65536)
            time.sleep(0.2)
        connection.sendall(b"GET /")
        assert 0.2 <= seconds_until_closed(connection) <= 2


def test_the_time_limits_are_of_the_request_and_not_of_the_answer(hurried: Running):
    hurried.slots.delay = 0.03
    with connect(hurried) as connection:
        connection.sendall(request(stream=True))
        content = connection.recv(65536)
        connection.sendall(b"\r\n")  # as some clients send after a body
        while b"[DONE]" not in content:
            part = connection.recv(65536)
            assert part, content
            content += part


def test_small_writes_are_sent_at_once(hurried: Running):
    with httpx.Client(base_url=hurried.url) as client:
        client.get("/health")
        (connection,) = hurried.server.server_state.connections
        accepted = connection.transport.get_extra_info("socket")
        assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_endless_headers_are_refused(hurried: Running):
    with connect(hurried) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nX-A: " + b"a" * (MAX_HEADERS + 10))
        assert connection.recv(100).startswith(b"HTTP/1.1 400 ")
    assert is_up(hurried)


@pytest.mark.parametrize("sent", [b"\x16\x03\x01\x02\x00\x01", b"nonsense\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n"])
def test_what_is_not_http_is_refused(hurried: Running, sent: bytes):
    with connect(hurried) as connection:
        connection.sendall(sent)
        assert connection.recv(100).startswith(b"HTTP/1.1 400 ")
    assert is_up(hurried)


def test_a_client_that_does_not_read_loses_its_connection(hurried: Running):
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.settimeout(10)
        connection.connect(("127.0.0.1", hurried.port))
        for _ in range(400):  # pipelined: far more than the buffers hold
            try:
                connection.sendall(b"GET /openapi.json HTTP/1.1\r\nHost: a\r\n\r\n")
            except OSError:
                break
        time.sleep(1.5)
        assert hurried.server.server_state.connections == set()
    assert is_up(hurried)


def test_streams_that_are_aborted_free_their_slots():
    with running(slots=Toy(count=4, delay=0.001), waiting=20) as server:

        def abort(number: int) -> None:
            with connect(server) as connection:
                connection.sendall(request(stream=number % 4 > 0))
                if number % 3:
                    connection.recv(10 if number % 2 else 3000)

        with ThreadPoolExecutor(16) as pool:
            list(pool.map(abort, range(200)))
        until = time.monotonic() + 10
        while server.scheduler.pending and time.monotonic() < until:
            time.sleep(0.01)
        assert (server.scheduler.pending, server.scheduler.active) == (0, 0)
        text = httpx.post(f"{server.url}/v1/completions", json={"prompt": "a", "temperature": 0}).json()
        assert text["choices"][0]["text"] == expected_text(server.served, "a", 16)[0]


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_goes_away_while_it_waits_leaves_the_queue(stream: bool):
    with running(slots=Toy(count=1, delay=0.01), waiting=4) as server:
        with connect(server) as first, connect(server) as second:
            first.sendall(request(max_tokens=80))
            while not server.scheduler.active:
                time.sleep(0.001)
            second.sendall(request(stream=stream))
            while server.scheduler.pending < 2:
                time.sleep(0.001)
        until = time.monotonic() + 5
        while server.scheduler.pending and time.monotonic() < until:
            time.sleep(0.001)
        assert server.scheduler.pending == 0
        assert len(server.slots.steps) < 60


def test_a_stop_lets_what_streams_finish_and_refuses_the_rest():
    with running(slots=Toy(count=1, delay=0.02)) as server, connect(server) as connection:
        connection.sendall(request(stream=True, temperature=0))
        content = connection.recv(500)
        server.server.should_exit = True
        time.sleep(0.3)
        with pytest.raises(httpx.TransportError):
            httpx.get(f"{server.url}/health")
        while part := connection.recv(65536):
            content += part
        assert content.count(b'"text"') == len(expected_text(server.served, "a", 50)[0])
        assert b"data: [DONE]" in content


def test_at_the_end_of_the_grace_period_streams_end_with_an_error():
    with running(slots=Toy(count=1, delay=0.05)) as server, connect(server) as connection:
        server.server._grace = 0.3
        connection.sendall(request(stream=True, max_tokens=90))
        content = connection.recv(500)
        begin = time.monotonic()
        server.stop()
        assert time.monotonic() - begin < 3
        while part := connection.recv(65536):
            content += part
        assert b'"message": "the server is stopping"' in content
        assert b"[DONE]" not in content


SERVE = """
import asyncio, sys
from lmcore.serve.app import Settings
from lmcore.serve.command import make_server, serve
from lmcore.serve.listening import bind
from lmcore.serve.scheduler import Scheduler
from tests.lmcore.serve.toy import Toy, make_served

with bind("127.0.0.1", 0) as listener:
    scheduler = Scheduler(lambda: Toy(delay=0.03), 3, 4)
    server = make_server(make_served(), scheduler, Settings(), grace=5.0)
    asyncio.run(serve(server, scheduler, listener, "toy"))
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("again", [False, True])
def test_a_signal_ends_the_server_gracefully_and_a_second_ctrl_c_at_once(number: int, again: bool):
    settings = os.environ | {"PYTHONPATH": "."}
    command = [sys.executable, "-c", SERVE]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, env=settings)
    assert process.stderr is not None
    line = process.stderr.readline()
    assert line.startswith("serving toy at http://127.0.0.1:")
    url = line.split()[3].removesuffix(";")
    found: list[httpx.Response] = []

    def ask() -> None:
        with contextlib.suppress(httpx.TransportError):
            asked = {"prompt": "a", "max_tokens": 40}
            found.append(httpx.post(f"{url}/v1/completions", json=asked, timeout=20))

    client = threading.Thread(target=ask)
    client.start()
    while not (httpx.get(f"{url}/metrics").text.count("twinlm_active_slots 1.0")):
        time.sleep(0.02)
    process.send_signal(number)
    assert process.stderr.readline() == "stopping when the requests are finished; Ctrl-C stops at once\n"
    if again:
        process.send_signal(signal.SIGINT)
    assert process.wait(timeout=15) == (130 if again else 0)
    client.join()
    assert [response.status_code for response in found] == ([] if again else [200])
    assert process.stderr.read() == ("interrupted\n" if again else "")
    process.stderr.close()
