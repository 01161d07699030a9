"""`python -m lmcore.dashboard runs/`: show the runs of a folder in the browser while they train."""

import errno
import socket
from collections.abc import Sequence
from pathlib import Path

from lmcore.config import cli
from lmcore.errors import UserError, command
from lmcore.serve.command import CONNECTIONS, known_hosts

__all__ = ["listen", "main"]


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Serve the page until Ctrl-C."""
    parser = cli.command_parser(
        "python -m lmcore.dashboard",
        "Show the runs of a folder in the browser: live curves, samples, configs and reports. Nothing is written.",
        "[FOLDER] [--host HOST] [--port PORT]",
    )
    parser.add_argument("folder", nargs="?", default="runs", help="A folder of runs, or one run.")
    parser.add_argument("--host", type=str, default="127.0.0.1", help="Address to listen on; others may then read it.")
    parser.add_argument("--port", type=int, default=8001, help="Port to listen on; 0 takes a free one.")
    args = cli.parse_arguments(parser, argv)
    folder = Path(args.folder)
    if not folder.is_dir():
        raise UserError(f"{folder}: found no such folder, expected a folder of runs; name one, or train a run first")

    import uvicorn

    from lmcore.dashboard.app import make_app
    from lmcore.serve.connections import Connection

    with listen(args.host, args.port) as listener:
        host = f"[{args.host}]" if ":" in args.host else args.host
        print(f"{folder}: http://{host}:{listener.getsockname()[1]}/ (Ctrl-C ends)", flush=True)
        config = uvicorn.Config(
            make_app(folder, known_hosts(args.host)),
            http=Connection,
            log_level="warning",
            access_log=False,
            lifespan="off",
            ws="none",
            limit_concurrency=CONNECTIONS,
        )
        uvicorn.Server(config).run(sockets=[listener])
    return 0


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens.

    Raises:
        UserError: the port is in use or not permitted, or the host is not of this machine.
    """
    if not 0 <= port < 2**16:
        raise UserError(f"--port: found {port}, expected a number from 0 to {2**16 - 1}")
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server((address[0], port), family=family, backlog=128)
    except (OSError, UnicodeError) as error:
        if isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
            raise UserError(f"--port: {port} is in use; end what uses it, or name another port") from None
        if isinstance(error, OSError) and error.errno == errno.EACCES:
            raise UserError(f"--port: {port} may not be used by this user; name one from 1024 on") from None
        raise UserError(f"--host: found {host!r}, expected an address of this machine ({error})") from None
