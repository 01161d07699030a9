"""The client that puts a server under load, against a server of a few lines."""

import asyncio
import json
from typing import Any

import pytest

from parity.bench.load import Answer, Load, put_load

PAUSE = 0.02


def served(clients: int, requests: int, status: bytes = b"200 OK") -> tuple[Load, list[dict[str, Any]], int]:
    """Serve completions of as many tokens as are asked for; return the load, the bodies, and how many came at once."""
    bodies: list[dict[str, Any]] = []
    now, most = 0, 0

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal now, most
        try:
            while head := await reader.readline():
                assert head == b"POST /v1/completions HTTP/1.1\r\n"
                while (line := await reader.readline()) != b"\r\n":
                    if line.lower().startswith(b"content-length:"):
                        length = int(line.split(b":")[1])
                body = json.loads(await reader.readexactly(length))
                bodies.append(body)
                now += 1
                most = max(most, now)
                writer.write(b"HTTP/1.1 " + status + b"\r\ntransfer-encoding: chunked\r\n\r\n")
                await asyncio.sleep(PAUSE)
                usage = {"usage": {"completion_tokens": body["max_tokens"]}, "choices": []}
                for text in ('{"choices": [{"text": "a"}]}', json.dumps(usage), "[DONE]"):
                    chunk = f"data: {text}\n\n".encode()
                    writer.write(b"%x\r\n%s\r\n" % (len(chunk), chunk))
                    await asyncio.sleep(PAUSE)
                now -= 1
                writer.write(b"0\r\n\r\n")
        finally:
            writer.close()

    async def run() -> Load:
        async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
            host, port = server.sockets[0].getsockname()
            bodies = [{"prompt": str(number), "max_tokens": number} for number in range(requests)]
            return await put_load(host, port, bodies, clients)

    return asyncio.run(run()), bodies, most


@pytest.mark.parametrize(("clients", "most"), [(1, 1), (3, 3)])
def test_so_many_requests_are_under_way_at_once(clients: int, most: int):
    load, bodies, found = served(clients, 6)
    assert found == most
    assert sorted(int(body["prompt"]) for body in bodies) == list(range(6))
    assert all(body["stream"] and body["stream_options"] == {"include_usage": True} for body in bodies)
    assert load.tokens == sum(range(6))
    assert all(PAUSE <= answer.first < answer.total - 2 * PAUSE for answer in load.answers)
    assert load.seconds >= 6 // clients * 4 * PAUSE


def test_a_request_that_fails_is_reported():
    with pytest.raises(RuntimeError, match="429 Too Many"):
        served(1, 1, b"429 Too Many Requests")


def test_percentiles_are_of_all_requests():
    load = Load(1.0, [Answer(1, seconds / 100, 1.0) for seconds in range(101)])
    assert (load.first_token(50), load.first_token(95)) == pytest.approx((0.5, 0.95))
    assert Load(1.0, [Answer(1, 0.3, 1.0)]).first_token(95) == 0.3
