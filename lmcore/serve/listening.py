"""What the servers of this project have in common: where they listen, who reaches them, and how uvicorn runs them."""

import errno
import ipaddress
import socket
from typing import TYPE_CHECKING, Any

from lmcore.errors import UserError

if TYPE_CHECKING:
    import uvicorn

__all__ = ["bind", "known_hosts", "server_config", "url_of"]

LOOPBACK = ("127.0.0.1", "localhost", "::1")
"""Hosts that only this machine reaches; only there are the names of Host headers known."""
CONNECTIONS = 1000
"""Maximum number of open connections; more are answered with 503."""


def bind(host: str, port: int) -> socket.socket:
    """Return a socket that is bound, but does not listen yet.

    Raises:
        UserError: the port is in use or not permitted, or the host is none of this machine.
    """
    if not 0 <= port < 2**16:
        raise UserError(f"--port: found {port}, expected from 0 to {2**16 - 1}")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
    except (OSError, UnicodeError) as error:
        raise UserError(f"--host: found {host!r}, expected an address of this machine ({error})") from None
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(address)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRNOTAVAIL:
            raise UserError(f"--host: found {host!r}, expected an address of this machine ({error})") from None
        reason = error.strerror or str(error)
        raise UserError(f"--port: cannot listen at {host} port {port} ({reason}); choose another") from None
    return listener


def known_hosts(host: str) -> frozenset[str] | None:
    """Return the names that a Host header may have at an address: all, None, where other machines reach it."""
    name = host.lower()
    try:
        loopback = name in LOOPBACK or ipaddress.ip_address(name).is_loopback
    except ValueError:
        loopback = False
    return frozenset((*LOOPBACK, name)) if loopback else None


def url_of(listener: socket.socket) -> str:
    """Return the address of a bound socket, for a browser."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def server_config(app: Any) -> "uvicorn.Config":
    """Return uvicorn's settings for an application, with limits against slow clients and too many."""
    import uvicorn

    from lmcore.serve.connections import Connection

    return uvicorn.Config(
        app,
        loop="asyncio",
        http=Connection,
        ws="none",
        lifespan="off",
        log_level="error",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        limit_concurrency=CONNECTIONS,
    )
