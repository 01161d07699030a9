"""A client of the server that puts it under load: several connections, each with one streamed completion at a time.

It speaks HTTP/1.1 itself: a general client takes as long for a token as a small model does, on the same processor.
"""

import asyncio
import json
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["Answer", "Load", "main", "put_load"]


@dataclass(frozen=True)
class Answer:
    """What one request took."""

    tokens: int
    first: float
    """Seconds to the first token."""
    total: float
    """Seconds to the end."""


@dataclass(frozen=True)
class Load:
    """What all requests took."""

    seconds: float
    """From the first request to the end of the last."""
    answers: list[Answer]

    @property
    def tokens(self) -> int:
        """Tokens of all requests."""
        return sum(answer.tokens for answer in self.answers)

    def first_token(self, percent: int) -> float:
        """Return a percentile of the seconds to the first token."""
        firsts = [answer.first for answer in self.answers]
        return firsts[0] if len(firsts) == 1 else statistics.quantiles(firsts, n=100, method="inclusive")[percent - 1]


async def put_load(host: str, port: int, bodies: Sequence[dict[str, Any]], clients: int) -> Load:
    """Send completions, so many at a time, and wait for all of them.

    Args:
        host: of the server.
        port: of the server.
        bodies: of the requests.
        clients: number of connections; each sends its next request when the last is answered.

    Raises:
        RuntimeError: a request fails.
    """
    waiting = iter(bodies)
    begin = time.perf_counter()
    answers = await asyncio.gather(*(_client(host, port, waiting) for _ in range(clients)))
    return Load(time.perf_counter() - begin, [answer for own in answers for answer in own])


async def _client(host: str, port: int, waiting: Iterator[dict[str, Any]]) -> list[Answer]:
    reader, writer = await asyncio.open_connection(host, port)
    try:
        return [await _request(reader, writer, host, body) for body in waiting]
    finally:
        writer.close()


async def _request(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, host: str, body: dict[str, Any]
) -> Answer:
    streamed = body | {"stream": True, "stream_options": {"include_usage": True}}
    content = json.dumps(streamed).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
    begin = time.perf_counter()
    writer.write(f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content)
    status = await reader.readline()
    first, usage = 0.0, b""
    while (line := await reader.readline()) != b"data: [DONE]\n":
        if not line or b" 200 " not in status:
            raise RuntimeError(f"the server answered {status!r}, then {line or await reader.read(1000)!r}")
        if line.startswith(b"data: "):
            first = first or time.perf_counter() - begin
            usage = line
    while await reader.readline() != b"0\r\n":  # the last chunk
        pass
    await reader.readline()
    tokens = json.loads(usage.removeprefix(b"data: "))["usage"]["completion_tokens"]
    return Answer(tokens, first, time.perf_counter() - begin)


def main() -> None:
    """Put a server under the load that standard input describes, and print what it took; both are JSON."""
    order = json.load(sys.stdin)
    load = asyncio.run(put_load(order["host"], order["port"], order["bodies"], order["clients"]))
    first = {f"first_p{percent}": load.first_token(percent) for percent in (50, 95)}
    print(json.dumps({"seconds": load.seconds, "tokens": load.tokens, **first}))


if __name__ == "__main__":
    main()
