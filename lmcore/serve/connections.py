"""Connections and the server's end: what uvicorn lacks against slow clients, and a graceful stop.

A client that is slow to send a request, or to read a response, loses its connection, so that it holds nothing for long.
"""

import asyncio
import contextlib
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

__all__ = ["Connection", "Server"]

HEADER_SECONDS = 10.0
"""From the connection, or the first byte of a further request, to the end of its headers."""
BODY_SECONDS = 30.0
"""From there to the end of the body."""
READ_SECONDS = 60.0
"""For a client to read what the server has written."""
MAX_HEADERS = 64 << 10
"""Maximum number of bytes of a request's headers."""


class Connection(HttpToolsProtocol):
    """A connection with time limits."""

    header_seconds, body_seconds, read_seconds = HEADER_SECONDS, BODY_SECONDS, READ_SECONDS

    def __init__(self, *arguments: Any, **options: Any):
        super().__init__(*arguments, **options)
        self._deadline: asyncio.TimerHandle | None = None
        self._reading: asyncio.TimerHandle | None = None
        self._in_headers, self._size = True, 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Wait for a request."""
        super().connection_made(transport)
        # A token must not wait until the client has acknowledged the one before; asyncio sees to that for some sockets.
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._limit(self.header_seconds)

    def connection_lost(self, error: Exception | None) -> None:
        """Drop the timers."""
        for timer in (self._deadline, self._reading):
            if timer is not None:
                timer.cancel()
        super().connection_lost(error)

    def data_received(self, data: bytes) -> None:
        """Parse what came, unless the headers do not end."""
        if self._in_headers:
            if self._deadline is None:
                self._limit(self.header_seconds)
            self._size += len(data)
        super().data_received(data)
        if self._in_headers and self._size > MAX_HEADERS and not self.transport.is_closing():
            self.send_400_response("Request headers are too large.")

    def on_headers_complete(self) -> None:
        """Wait for the body."""
        self._in_headers, self._size = False, 0
        self._limit(self.body_seconds)
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """Wait for nothing: the request is complete."""
        super().on_message_complete()
        self._in_headers = True
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def pause_writing(self) -> None:
        """Wait for the client to read."""
        super().pause_writing()
        self._reading = self.loop.call_later(self.read_seconds, self.transport.abort)

    def resume_writing(self) -> None:
        """Go on: the client reads."""
        super().resume_writing()
        if self._reading is not None:
            self._reading.cancel()
            self._reading = None

    def _limit(self, seconds: float) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        self._deadline = self.loop.call_later(seconds, self._expire)

    def _expire(self) -> None:
        """Close the connection, unless it waits for a response, after which a further request may be complete."""
        if self.cycle is None or self.cycle.response_complete or self.cycle.more_body:
            self.transport.abort()
        else:
            self._limit(self.header_seconds)


class Server(uvicorn.Server):
    """A server that ends gracefully: SIGTERM or Ctrl-C lets requests finish for a while, a second Ctrl-C none."""

    def __init__(self, config: uvicorn.Config, on_stop: Callable[[bool], None], grace: float):
        """Prepare the server.

        Args:
            config: of uvicorn.
            on_stop: called with False when the server begins to end, and with True when the grace period is over.
            grace: seconds that requests have to finish in at the end.
        """
        # uvicorn cancels requests; before that, they end with an error that tells their clients why.
        config.timeout_graceful_shutdown = int(grace) + 2
        super().__init__(config)
        self._on_stop, self._grace = on_stop, grace
        self.on_started: Callable[[], None] = lambda: None
        """Called when the server listens."""

    async def startup(self, sockets: list | None = None) -> None:
        """Listen."""
        await super().startup(sockets)
        self.on_started()

    async def shutdown(self, sockets: list | None = None) -> None:
        """Stop accepting, and wait for the requests that there are."""
        self._on_stop(False)
        over = asyncio.get_running_loop().call_later(self._grace, self._on_stop, True)
        await super().shutdown(sockets)
        over.cancel()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Answer signals; unlike uvicorn, do not raise them again, since the end is the one that was asked for."""
        if threading.current_thread() is not threading.main_thread():  # which alone gets signals
            yield
            return
        before = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to end; at a second Ctrl-C, end at once."""
        if self.should_exit and sig == signal.SIGINT:
            os.write(2, b"interrupted\n")
            os._exit(128 + signal.SIGINT)
        first, self.should_exit = not self.should_exit, True  # before the line, which invites a second signal
        if first:
            print("stopping when the requests are finished; Ctrl-C stops at once", file=sys.stderr, flush=True)
