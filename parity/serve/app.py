"""The application: both twins' tokens as one stream, the ladder's verdict and its report, and the page."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from typing import Any

import numpy as np
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from lmcore.config import SampleConfig
from lmcore.errors import NotFinite
from lmcore.serve.app import HANDLERS
from lmcore.serve.errors import ApiError, error_body
from lmcore.serve.inspection import info
from lmcore.serve.limits import Guard, read_body
from lmcore.serve.pages import page_routes
from lmcore.serve.requests import CompletionRequest, Options, parse
from lmcore.serve.served import Served
from parity.serve.lockstep import Choice, Lockstep, Position, Summary
from parity.serve.verdict import Check

__all__ = ["make_app"]

MAX_BODY = 1 << 20
"""Maximum number of bytes of a request's body."""
DONE = "data: [DONE]\n\n"
REPORT_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; frame-ancestors 'none'"
"""Content security policy of the report, which stands alone: its style is in it, and it has no script."""


class Service:
    """Answers requests; one comparison at a time."""

    def __init__(self, served: Served, lockstep: Lockstep, check: Check):
        self.served, self.lockstep, self.check = served, lockstep, check
        self.thread = ThreadPoolExecutor(1, "twins")
        self.busy = False
        """Whether a comparison is running."""
        self.stopping = False

    def routes(self) -> list[Route]:
        """Return the routes of the application."""
        return [
            Route("/info", self._info, methods=["GET"]),
            Route("/compare", self._compare, methods=["POST"]),
            Route("/verdict", self._verdict, methods=["GET"]),
            Route("/report", self._report, methods=["GET"]),
            Route("/health", self._health, methods=["GET"]),
            *page_routes(["parity.serve", "lmcore.serve"]),
        ]

    async def _info(self, request: Request) -> Response:
        pair = self.lockstep.pair
        twins = [
            {"framework": t.backend.framework, "title": t.backend.title, "package": t.backend.package}
            | {"device": t.engine.device_name}
            for t in pair
        ]
        return JSONResponse(info(self.served, 1, False) | {"precision": pair.dtype, "twins": twins})

    async def _health(self, request: Request) -> Response:
        status = "stopping" if self.stopping else "ok"
        return JSONResponse({"status": status, "model": self.served.name}, 503 if self.stopping else 200)

    async def _verdict(self, request: Request) -> Response:
        return JSONResponse(await asyncio.to_thread(self.check.outcome))

    async def _report(self, request: Request) -> Response:
        if not (await asyncio.to_thread(self.check.outcome))["report"]:
            raise ApiError(404, "/report: found none, expected a check that has ended")
        content = await asyncio.to_thread(self.check.report.read_bytes)
        policy = {"Content-Security-Policy": REPORT_POLICY, "Cache-Control": "no-store"}
        return Response(content, media_type="text/html; charset=utf-8", headers=policy)

    async def _compare(self, request: Request) -> Response:
        """Answer a request as of `/v1/completions`, with one prompt and one choice, by a stream of positions."""
        asked = parse(CompletionRequest, await read_body(request, MAX_BODY))
        self.served.check_name(asked.model)
        options = asked.options()
        prompts = self.served.encode(asked.prompt)
        for name, wrong in (
            ("prompt", len(prompts) != 1),
            ("n", options.n != 1),
            ("echo", options.echo),
            ("logprobs", asked.logprobs is not None),
            ("stream", asked.stream is False),
        ):
            if wrong:
                message = f"{name}: expected one prompt and one choice, streamed with log probabilities"
                raise ApiError(400, message, name)
        length = self.served.length(prompts[0], options.max_tokens, "prompt")
        if self.busy:
            raise ApiError(429, "another comparison is running", retry=1)
        self.busy = True
        return _Stream(self._events(prompts[0].ids, options, length), self._release)

    def _release(self) -> None:
        self.busy = False

    async def _events(self, prompt: Sequence[int], options: Options, length: int) -> AsyncIterator[str]:
        """Yield the events of a comparison. When the client goes away, it ends with the position being computed."""
        sampling = SampleConfig(
            max_tokens=length,
            temperature=options.temperature,
            top_k=min(options.top_k, self.served.model.vocab_size),
            top_p=options.top_p,
            min_p=options.min_p,
            seed=int(np.random.SeedSequence().generate_state(1)[0]) if options.seed is None else options.seed,
        )
        positions = self.lockstep.compare(prompt, sampling, options.stops)
        loop = asyncio.get_running_loop()
        try:
            while (found := await loop.run_in_executor(self.thread, next, positions, None)) is not None:
                yield _event(self._describe(*found))
                if self.stopping:
                    raise ApiError(503, "the server is stopping")
            yield DONE
        except NotFinite as error:
            yield _event(error_body(ApiError(500, str(error))))
        except ApiError as error:
            yield _event(error_body(error))

    def _describe(self, position: Position, summary: Summary) -> dict[str, Any]:
        choices = [None if choice is None else self._choice(choice) for choice in position.choices]
        number = max(summary.tokens) - 1
        return {"position": number, "same": position.same, "choices": choices, "summary": asdict(summary)}

    def _choice(self, choice: Choice) -> dict[str, Any]:
        token, text_of = choice.token.token, self.served.texts.text_of
        top = [{"token": text_of(other), "logprob": value} for other, value in choice.token.top]
        return {
            "token": text_of(token),
            "text": choice.text,
            "special": token in self.served.stop_ids,
            "logprob": choice.token.value,
            "top": top,
            "ended": choice.ended,
        }


class _Stream(StreamingResponse):
    """Server-sent events; calls a function when they have ended, however that came."""

    def __init__(self, content: AsyncIterator[str], ended: Callable[[], None]):
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        super().__init__(content, media_type="text/event-stream", headers=headers)
        self._ended = ended

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._ended()


def _event(value: dict[str, Any]) -> str:
    return f"data: {json.dumps(value, ensure_ascii=False, allow_nan=False)}\n\n"


def make_app(served: Served, lockstep: Lockstep, check: Check, hosts: frozenset[str] | None) -> Starlette:
    """Return the application, whose `state.service` is told when the server stops.

    Args:
        served: the model.
        lockstep: both twins.
        check: the ladder's.
        hosts: names that a Host header may have; None allows all.
    """
    service = Service(served, lockstep, check)
    guard = Middleware(Guard, api_key=None, hosts=hosts, count=lambda path, status: None)
    app = Starlette(routes=service.routes(), middleware=[guard], exception_handlers=HANDLERS)
    app.state.service = service
    return app
