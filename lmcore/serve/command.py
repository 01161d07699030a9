"""`python -m jaxlm.serve RUN`, or torchlm: serve a run by the API of OpenAI, with a page to try it."""

import asyncio
import os
import socket
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmcore.config import Device, Precision, cli
from lmcore.errors import UserError
from lmcore.serve.listening import bind, known_hosts, server_config, url_of

if TYPE_CHECKING:
    from lmcore.serve.app import Settings
    from lmcore.serve.connections import Server
    from lmcore.serve.scheduler import Scheduler
    from lmcore.serve.served import Served

__all__ = ["main", "make_server", "serve"]

KEY = "TWINLM_API_KEY"
"""Environment variable that `--api_key` takes its default from."""
RANGES = {
    "slots": (1, 4096),
    "queue": (0, 1 << 20),
    "max_body": (1, 1 << 30),
    "grace": (0, 3600),
}
"""Option -> its lowest and its highest value."""


def main(argv: Sequence[str] | None, package: str, make_engine: Callable, make_slots: Callable) -> None:
    """Serve a run as the command line says, until a signal.

    Args:
        argv: command-line arguments; None takes those of the process.
        package: name of the twin.
        make_engine: called with a config, returns an engine.
        make_slots: called with engine, number of slots and their size, returns `Slots`.

    Raises:
        UserError: there is no such run, an option is invalid, or the port is in use.
    """
    args = cli.parse_arguments(_parser(package), argv)
    _check(args)
    key = os.environ.get(KEY) or None if args.api_key is None else args.api_key
    with bind(args.host, args.port) as listener:  # before the time that loading takes
        from lmcore.serve.app import Settings
        from lmcore.serve.scheduler import Scheduler

        engine, served = _load(args, package, make_engine)
        settings = Settings(api_key=key, hosts=known_hosts(args.host), max_body=args.max_body)
        scheduler = Scheduler(lambda: make_slots(engine, args.slots, served.context), args.slots, args.queue)
        server = make_server(served, scheduler, settings, args.grace)
        asyncio.run(serve(server, scheduler, listener, served.name))


def _parser(package: str) -> Any:
    parser = cli.command_parser(
        f"python -m {package}.serve",
        "Serve a trained model by the API of OpenAI (/v1/completions, /v1/chat/completions), with a page to try it at "
        "/. Requests are decoded together. SIGTERM or Ctrl-C ends the server when the requests are finished.",
        "RUN [--host HOST] [--port PORT] [--slots N]",
    )
    parser.add_argument("run", help="A run folder, for its best checkpoint, or one checkpoint.")
    parser.add_argument("--host", type=str, default="127.0.0.1", help="Address to listen at; 0.0.0.0 is all.")
    parser.add_argument("--port", type=int, default=8000, help="Port to listen at; 0 takes a free one.")
    parser.add_argument("--name", type=str | None, help="Id of the model; null takes the name of the run's folder.")
    parser.add_argument("--slots", type=int, default=8, help="Number of sequences that are decoded together.")
    parser.add_argument("--queue", type=int, default=64, help="Maximum number of sequences that wait for a slot.")
    parser.add_argument(
        "--api_key", type=str | None, help=f"Key that requests need; null takes {KEY} of the environment, if it is set."
    )
    parser.add_argument("--max_body", type=int, default=1 << 20, help="Maximum number of bytes of a request's body.")
    parser.add_argument(
        "--grace", type=float, default=10.0, help="Seconds that requests have to finish in when the server is ended."
    )
    parser.add_argument(
        "--template", type=str | None, help="Jinja chat template, or its file; null takes the model's own."
    )
    parser.add_argument("--precision", type=Precision | None, help="Dtype of the matmuls; null takes the run's.")
    parser.add_argument(
        "--device", type=Device, default="auto", help="Device to run on; auto takes an accelerator if there is one."
    )
    cli.add_no_verify(parser)
    return parser


def _check(args: Any) -> None:
    """Check the ranges of the options."""
    for name, (low, high) in RANGES.items():
        if not low <= args[name] <= high:
            raise UserError(f"--{name}: found {args[name]}, expected from {low} to {high}")
    for name in ("api_key", "name"):
        if args[name] is not None and not (args[name].isascii() and args[name].isprintable() and args[name].strip()):
            raise UserError(f"--{name}: found {args[name]!r}, expected printable ASCII")


def _load(args: Any, package: str, make_engine: Callable) -> "tuple[Any, Served]":
    """Return the engine with the run's weights, and what is served."""
    from lmcore.generate.chat import run_template
    from lmcore.model.memory import parameter_parts
    from lmcore.run.base import restore_model
    from lmcore.run.checkpoints import find_checkpoint
    from lmcore.run.folder import load_run
    from lmcore.serve.served import Served

    verify = not args.no_verify
    checkpoint = find_checkpoint(Path(args.run), verify=verify)
    checkpoint.check_framework(package.removesuffix("lm"))
    config, tokenizer = load_run(checkpoint, verify=verify)
    try:
        template = run_template(checkpoint.run_dir, args.template, verify=verify)
    except UserError:
        if args.template is not None:
            raise
        template = None
    train = replace(config.train, precision=args.precision or config.train.precision, device=args.device, cpu_devices=1)
    with cli.named_as_options("train"):
        engine = make_engine(replace(config, train=train))
    restore_model(engine, config, checkpoint, verify)
    parameters = engine.parameter_count
    if config.model.lora is not None:  # the engine counts those that are trained: the adapters'
        parameters += sum(parameter_parts(config.model).values())
    served = Served(
        name=args.name or checkpoint.run_dir.resolve().name,
        package=package,
        device=engine.device_name,
        parameters=parameters,
        created=int(checkpoint.folder.stat().st_mtime),
        model=config.model,
        sampling=config.sample,
        tokenizer=tokenizer,
        template=template,
    )
    return engine, served


def make_server(served: "Served", scheduler: "Scheduler", settings: "Settings", grace: float) -> "Server":
    """Return a server of a model, which `serve` runs.

    Args:
        served: the model.
        scheduler: decodes sequences.
        settings: limits.
        grace: seconds that requests have to finish in at the end.
    """
    from lmcore.serve.app import make_app
    from lmcore.serve.connections import Server
    from lmcore.serve.errors import ApiError

    app = make_app(served, scheduler, settings)

    def stop(over: bool) -> None:
        app.state.service.stopping = True
        if over:
            scheduler.abort(ApiError(503, "the server is stopping"))

    return Server(server_config(app), stop, grace)


async def serve(server: "Server", scheduler: "Scheduler", listener: socket.socket, name: str) -> None:
    """Serve a model until a signal ends it.

    Args:
        server: from `make_server`.
        scheduler: the server's, which is started and stopped here.
        listener: a bound socket.
        name: of the model, to print.
    """
    await scheduler.start()
    line = f"serving {name} at {url_of(listener)}; Ctrl-C ends"
    server.on_started = lambda: print(line, file=sys.stderr, flush=True)
    await server.serve([listener])
    await scheduler.stop()
