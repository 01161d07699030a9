"""Answers that are sent as they grow, and what happens when the client goes away before their end."""

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator

from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from lmcore.serve.errors import ApiError, error_body
from lmcore.serve.generation import Generation
from lmcore.serve.limits import error_response
from lmcore.serve.metrics import Metrics
from lmcore.serve.responses import Format

__all__ = ["EventStream", "whole"]

HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-store"),
    (b"x-accel-buffering", b"no"),  # a proxy must not wait for the end
]


@contextlib.asynccontextmanager
async def _watched(generation: Generation, receive: Receive, metrics: Metrics) -> AsyncIterator[None]:
    """Give a generation up when its client disconnects, or when whoever waits for it is cancelled."""
    watcher = asyncio.create_task(_watch(generation, receive))
    try:
        yield
    finally:
        watcher.cancel()
        generation.cancel()
        metrics.finished(generation, time.perf_counter() - generation.begin)


async def _watch(generation: Generation, receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    generation.cancel()


async def whole(generation: Generation, form: Format, receive: Receive, metrics: Metrics) -> Response:
    """Return the response with all of a generation.

    Args:
        generation: what is generated.
        form: how it is written.
        receive: of the request, whose body has been read.
        metrics: are told of the end.
    """
    pieces = []
    async with _watched(generation, receive, metrics):
        while not generation.done:
            pieces += await generation.news()
        if generation.error is not None:
            raise generation.error
        return JSONResponse(form.body(pieces + generation.pieces))


class EventStream(Response):
    """Sends a generation as server-sent events, one for each change of a choice."""

    def __init__(self, generation: Generation, form: Format, metrics: Metrics):
        """Prepare the response.

        Args:
            generation: what is generated; it has been started.
            form: how it is written.
            metrics: are told of the end.
        """
        self._generation, self._form, self._metrics = generation, form, metrics
        self.background = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events; an error before the first is a response of its own, a later one an event."""
        generation, form = self._generation, self._form
        async with _watched(generation, receive, self._metrics):
            try:
                pieces = await generation.news()
            except ApiError as error:
                await error_response(error)(scope, receive, send)
                return
            await send({"type": "http.response.start", "status": 200, "headers": HEADERS})
            text = form.first_chunks()
            try:
                while True:
                    text += form.chunks(pieces)
                    if generation.done and generation.error is None and not generation.pieces:
                        text += form.last_chunks()
                        break
                    await send({"type": "http.response.body", "body": text.encode(), "more_body": True})
                    text = ""
                    pieces = await generation.news()
            except ApiError as error:
                text = f"data: {json.dumps(error_body(error))}\n\n"
            await send({"type": "http.response.body", "body": text.encode(), "more_body": False})
