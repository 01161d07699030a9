"""What stands between a connection and the API: size of bodies, API key, host names, and security headers."""

import hmac
import logging
from collections.abc import Callable

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lmcore.serve.errors import ApiError, error_body

__all__ = ["Guard", "error_response", "host_name", "read_body"]

log = logging.getLogger(__name__)

HEADERS = [
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (
        b"content-security-policy",
        b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
        b"base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    ),
]


def error_response(error: ApiError) -> JSONResponse:
    """Return the response that tells of an error."""
    return JSONResponse(error_body(error), error.status, error.headers)


async def read_body(request: Request, limit: int) -> bytes:
    """Return a request's body.

    Args:
        request: the request.
        limit: maximum number of bytes.

    Raises:
        ApiError: it is longer, or of another type than JSON.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":  # other types can be sent by any page of the web without asking
        raise ApiError(415, f"Content-Type: found {kind or 'nothing'}, expected application/json")
    announced = request.headers.get("content-length", "0")
    content = bytearray()
    if int(announced) <= limit:  # the server checks that it is a number
        try:
            async for part in request.stream():
                content += part
                if len(content) > limit:
                    break
            else:
                return bytes(content)
        except ClientDisconnect:
            raise ApiError(499, "the client has closed the connection") from None
    message = f"body: found more than {limit} bytes, expected at most that, or a server with a higher --max_body"
    raise ApiError(413, message, code="too_large")


def host_name(header: str) -> str:
    """Return the name in a Host header, without port and brackets."""
    name = header.strip().lower()
    if name.startswith("["):
        return name[1:].partition("]")[0]
    return name.partition(":")[0]


class Guard:
    """Refuses requests without the API key or for another host, and adds headers to every response."""

    def __init__(
        self,
        app: ASGIApp,
        api_key: str | None,
        hosts: frozenset[str] | None,
        count: Callable[[str, int], None],
        is_open: frozenset[str] = frozenset({"/health"}),
    ):
        """Wrap an application.

        Args:
            app: the application.
            api_key: that requests need; None asks for none.
            hosts: names that a Host header may have; None allows all. It stops a page of the web whose name leads to
                this machine (DNS rebinding).
            count: called with the path and the status of each response.
            is_open: paths that need no key.
        """
        self._app, self._open, self._hosts, self._count = app, is_open, hosts, count
        self._key = None if api_key is None else api_key.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        started = False

        async def send_with_headers(message: Message) -> None:
            nonlocal started
            started = True
            if message["type"] == "http.response.start":
                own = message.get("headers", [])
                names = {name.lower() for name, _ in own}
                message["headers"] = [*own, *(header for header in HEADERS if header[0] not in names)]
                self._count(scope["path"], message["status"])
            await send(message)

        error = self._refusal(scope["path"], scope["headers"])
        app = self._app if error is None else error_response(error)
        try:
            await app(scope, receive, send_with_headers)
        except Exception:  # a fault of this program: the server goes on
            log.exception("%s %s failed", scope["method"], scope["path"])
            if started:
                raise  # so that the connection is closed
            await error_response(ApiError(500, "the server failed; its log says why"))(
                scope, receive, send_with_headers
            )

    def _refusal(self, path: str, sent: list[tuple[bytes, bytes]]) -> ApiError | None:
        headers, hosts = dict(sent), sum(name == b"host" for name, _ in sent)
        if hosts > 1:  # RFC 9112, section 3.2: what lies before this server may have taken another one
            return ApiError(400, f"Host: found {hosts} such headers, expected one")
        host = headers.get(b"host", b"").decode("latin-1")
        if self._hosts is not None and host_name(host) not in self._hosts:
            names = ", ".join(sorted(self._hosts))
            return ApiError(400, f"Host: found {host[:80]!r}, expected one of {names}; start the server with --host")
        if self._key is None or path in self._open or hmac.compare_digest(_sent_key(headers), self._key):
            return None
        return ApiError(401, "Authorization: expected Bearer and the server's API key", code="invalid_api_key")


def _sent_key(headers: dict[bytes, bytes]) -> bytes:
    """Return the key that a request was sent with; empty where there is none."""
    scheme, _, value = headers.get(b"authorization", b"").partition(b" ")
    return value.strip() if scheme.lower() == b"bearer" else b""
