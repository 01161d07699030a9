"""`python -m lmcore.dashboard runs/`: show the runs of a folder in the browser while they train."""

from collections.abc import Sequence
from pathlib import Path

from lmcore.config import cli
from lmcore.errors import UserError, command
from lmcore.serve.listening import bind, known_hosts, server_config, url_of

__all__ = ["main"]


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

    with bind(args.host, args.port) as listener:
        listener.listen()  # Now, so that the address answers once it is printed.
        print(f"{folder}: {url_of(listener)}/ (Ctrl-C ends)", flush=True)
        uvicorn.Server(server_config(make_app(folder, known_hosts(args.host)))).run(sockets=[listener])
    return 0
