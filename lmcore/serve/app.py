"""The application: the OpenAI-compatible API, the page, health, metrics, and the API's own description."""

from dataclasses import dataclass
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from lmcore.serve.errors import ApiError, error_body
from lmcore.serve.generation import Generation, Prompt
from lmcore.serve.inspection import attention, info
from lmcore.serve.limits import Guard, error_response, read_body
from lmcore.serve.metrics import CONTENT_TYPE, Metrics
from lmcore.serve.openapi import document
from lmcore.serve.pages import page_routes
from lmcore.serve.requests import AttentionRequest, ChatRequest, CompletionRequest, Options, parse
from lmcore.serve.responses import Chat, Completion, Format
from lmcore.serve.scheduler import Scheduler
from lmcore.serve.served import Served, count_prompts
from lmcore.serve.streaming import EventStream, whole

__all__ = ["HANDLERS", "Settings", "make_app"]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How the API is served."""

    api_key: str | None = None
    """Key that requests need; None asks for none."""
    hosts: frozenset[str] | None = None
    """Names that a Host header may have; None allows all."""
    max_body: int = 1 << 20
    """Maximum number of bytes of a request's body."""


class Service:
    """Answers requests."""

    def __init__(self, served: Served, scheduler: Scheduler, settings: Settings):
        self.served, self.scheduler, self.settings = served, scheduler, settings
        self.stopping = False
        self.metrics = Metrics(frozenset(route.path for route in self.routes()))
        self.metrics.slots.set(scheduler.count)
        scheduler.observe = self.metrics.generated
        self._document = document(served, settings.api_key is not None)

    def routes(self) -> list[Route]:
        """Return the routes of the application."""
        return [
            Route("/v1/models", self._models, methods=["GET"]),
            Route("/v1/models/{id:path}", self._model, methods=["GET"]),
            Route("/v1/completions", self._completions, methods=["POST"]),
            Route("/v1/chat/completions", self._chat, methods=["POST"]),
            Route("/health", self._health, methods=["GET"]),
            Route("/metrics", self._metrics, methods=["GET"]),
            Route("/openapi.json", self._openapi, methods=["GET"]),
            Route("/info", self._info, methods=["GET"]),
            Route("/attention", self._attention, methods=["POST"]),
        ]

    def _card(self) -> dict:
        return {"id": self.served.name, "object": "model", "created": self.served.created, "owned_by": "twinlm"}

    async def _models(self, request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [self._card()]})

    async def _model(self, request: Request) -> Response:
        self.served.check_name(request.path_params["id"])
        return JSONResponse(self._card())

    async def _completions(self, request: Request) -> Response:
        asked = parse(CompletionRequest, await read_body(request, self.settings.max_body))
        self.served.check_name(asked.model)
        options = asked.options()
        self.scheduler.check_room(options.n * count_prompts(asked.prompt))  # before time is spent on them
        return await self._generate(request, self.served.encode(asked.prompt), options, Completion)

    async def _chat(self, request: Request) -> Response:
        asked = parse(ChatRequest, await read_body(request, self.settings.max_body))
        self.served.check_name(asked.model)
        options = asked.options()
        prompt = self.served.encode_chat([message.turn() for message in asked.messages])
        return await self._generate(request, [prompt], options, Chat)

    async def _generate(
        self, request: Request, prompts: list[Prompt], options: Options, kind: type[Format]
    ) -> Response:
        """Generate text after prompts, as a stream or as a whole."""
        served, param = self.served, "messages" if kind is Chat else "prompt"
        lengths = [served.length(prompt, options.max_tokens, param) for prompt in prompts]
        self.scheduler.check_room(options.n * len(prompts))
        stop_ids = served.turn_ids if kind is Chat else served.stop_ids
        generation = Generation(self.scheduler, served.tokenizer, stop_ids, prompts, options, lengths)
        form = kind(generation, served.name, served.texts)
        generation.start()
        if options.stream:
            return EventStream(generation, form, self.metrics)
        return await whole(generation, form, request.receive, self.metrics)

    async def _health(self, request: Request) -> Response:
        ok = self.scheduler.alive and not self.stopping
        status = "ok" if ok else "stopping" if self.stopping else "failed"
        return JSONResponse({"status": status, "model": self.served.name}, 200 if ok else 503)

    async def _metrics(self, request: Request) -> Response:
        self.metrics.waiting.set(max(0, self.scheduler.pending - self.scheduler.active))
        self.metrics.active.set(self.scheduler.active)
        return Response(self.metrics.text(), media_type=CONTENT_TYPE)

    async def _openapi(self, request: Request) -> Response:
        return JSONResponse(self._document)

    async def _info(self, request: Request) -> Response:
        return JSONResponse(info(self.served, self.scheduler.count, self.settings.api_key is not None))

    async def _attention(self, request: Request) -> Response:
        asked = parse(AttentionRequest, await read_body(request, self.settings.max_body))
        return JSONResponse(await attention(self.served, self.scheduler, asked))


async def _api_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return error_response(error)


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    messages = {404: f"{request.url.path[:200]}: found no such path", 405: f"{request.method}: expected another method"}
    told = ApiError(error.status_code, messages.get(error.status_code, error.detail))
    return JSONResponse(error_body(told), error.status_code, error.headers)


HANDLERS: dict[Any, Any] = {ApiError: _api_error, HTTPException: _http_error}
"""Exception -> what makes the response that tells of it."""


def make_app(served: Served, scheduler: Scheduler, settings: Settings) -> Starlette:
    """Return the application, whose `state.service` is told when the server stops.

    Args:
        served: the model.
        scheduler: decodes sequences; whoever runs the application starts and stops it.
        settings: limits.
    """
    service = Service(served, scheduler, settings)
    page = page_routes(["lmcore.serve"])
    # The page's own files tell nothing of the model; the page asks for the key.
    is_open = frozenset({"/health", *(route.path for route in page)})
    guard = Middleware(
        Guard, api_key=settings.api_key, is_open=is_open, hosts=settings.hosts, count=service.metrics.count
    )
    app = Starlette(routes=[*service.routes(), *page], middleware=[guard], exception_handlers=HANDLERS)
    app.state.service = service
    return app
