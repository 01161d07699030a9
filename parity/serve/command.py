"""`python -m parity.serve RUN`: both twins of a run side by side in a browser, with the ladder's verdict on it."""

import asyncio
import socket
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from lmcore.config import Precision, cli
from lmcore.errors import UserError, command
from lmcore.serve.listening import bind, known_hosts, server_config, url_of
from parity.backends import BACKENDS, PAIR

if TYPE_CHECKING:
    from lmcore.serve.connections import Server
    from lmcore.serve.served import Served
    from parity.serve.lockstep import Lockstep
    from parity.serve.verdict import Check

__all__ = ["load", "main", "make_server", "serve"]

Scope = Literal["quick", "full", "none"]
QUICK = ("1-6", "8")
"""Rungs that take seconds: all but training, other implementations, restarts and other ways of computing."""
SCOPES = {"quick": "rungs 1 to 6 and 8 of 12", "full": "all twelve rungs", "none": "not climbed"}
GRACE = 2.0
"""Seconds that streams have to end in: each ends with its next token."""


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Serve the twins as the command line says, until a signal."""
    args = cli.parse_arguments(_parser(), argv)
    _check(args)
    with bind(args.host, args.port) as listener:  # before the time that loading takes
        served, lockstep = load(Path(args.run), args.device, args.precision, not args.no_verify)
        from parity.serve.verdict import Check

        with tempfile.TemporaryDirectory(prefix="parity-serve-") as folder:
            report = None if args.report is None else Path(args.report)
            check = Check(_arguments(args), Path(folder), report, SCOPES[args.check])
            server = make_server(served, lockstep, check, known_hosts(args.host))
            try:
                asyncio.run(serve(server, check, listener, served.name))
            finally:
                check.end()


def _parser() -> Any:
    parser = cli.command_parser(
        "python -m parity.serve",
        "Generate with jaxlm and torchlm from one run, one prompt and one seed, side by side in a browser: the first "
        "token that differs, the speeds, the largest difference of the logits, and the verdict of parity.check.",
        "RUN [--port PORT] [--check quick|full|none] [--report FILE.html]",
    )
    parser.add_argument("run", help="A run or a checkpoint of either framework, or a Hugging Face folder.")
    parser.add_argument("--host", type=str, default="127.0.0.1", help="Address to listen at; 0.0.0.0 is all.")
    parser.add_argument("--port", type=int, default=8000, help="Port to listen at; 0 takes a free one.")
    parser.add_argument("--check", type=Scope, default="quick", help="How much of the ladder to climb at the start.")
    parser.add_argument("--report", type=str | None, help="File for the check's report; null takes a temporary one.")
    parser.add_argument("--precision", type=Precision, default="float32", help="Dtype of the matmuls.")
    parser.add_argument("--device", type=str, default="cpu", help="cpu, cuda or auto for both twins.")
    cli.add_no_verify(parser)
    return parser


def _check(args: Any) -> None:
    """Check the options before anything is loaded."""
    allowed = [device for device in BACKENDS["jax"].devices if device in BACKENDS["torch"].devices]
    if args.device not in allowed:
        raise UserError(f"--device: found {args.device!r}, expected one of {', '.join(allowed)}")
    if args.precision == "float16":
        known = ", ".join(precision for precision in get_args(Precision) if precision != "float16")
        raise UserError(f"--precision: found float16, expected one of {known}, which both twins have on every device")
    if args.report is None:
        return
    if args.check == "none":
        raise UserError("--report: found --check none too, expected a check to report on; leave one of them out")
    path = Path(args.report)
    if path.is_dir() or not path.absolute().parent.is_dir():
        raise UserError(f"--report: found {args.report!r}, expected a file in a folder that exists")


def _arguments(args: Any) -> list[str]:
    """Return the arguments of the check; none for no check."""
    if args.check == "none":
        return []
    rungs = ["--rungs", *QUICK] if args.check == "quick" else []
    dtypes = ["--dtype", "float64", "float32", "bfloat16"] if args.precision == "bfloat16" else []
    verify = ["--no_verify"] if args.no_verify else []
    return [args.run, "--device", args.device, *rungs, *dtypes, *verify]


def load(run: Path, device: str, precision: Precision, verify: bool = True) -> "tuple[Served, Lockstep]":
    """Load a run into both twins.

    Args:
        run: a run, a checkpoint or a Hugging Face folder.
        device: of both twins, as in `train.device`.
        precision: of the matmuls.
        verify: whether to compare files with their checksums.

    Returns:
        What is served, and both twins.

    Raises:
        UserError: it cannot be read, or has no tokenizer.
    """
    import numpy as np

    from lmcore.run.opening import with_vocabulary
    from lmcore.serve.served import Served
    from parity.backends import make_pair
    from parity.backends.base import CANONICAL
    from parity.convert.sources import open_source
    from parity.serve.lockstep import Lockstep

    source = open_source(run, verify=verify)
    if source.tokenizer is None:
        raise UserError(f"{run}: found no tokenizer.json, expected a model that can read and write text")
    config = with_vocabulary(source.config, source.tokenizer.vocab_size)
    train = replace(config.train, precision=precision, cpu_devices=1, remat=False, compile=False)
    params = {name: np.ascontiguousarray(array) for name, array in source.tensors(CANONICAL).items()}
    with cli.named_as_options("train"):
        pair = make_pair(
            replace(config, train=train),
            np.empty(0, np.int32),
            params,
            dict.fromkeys(PAIR, device),  # type: ignore[arg-type]
        )
    lockstep = Lockstep(pair, source.tokenizer)
    folder = run if source.checkpoint is None else source.checkpoint.run_dir
    served = Served(
        name=folder.resolve().name,
        package=" and ".join(twin.backend.package for twin in pair),
        device=", ".join(dict.fromkeys(twin.engine.device_name for twin in pair)),
        parameters=pair.reference.engine.parameter_count,
        created=int(run.stat().st_mtime),
        model=config.model,
        sampling=config.sample,
        tokenizer=source.tokenizer,
        template=None,
    )
    return served, lockstep


def make_server(served: "Served", lockstep: "Lockstep", check: "Check", hosts: frozenset[str] | None) -> "Server":
    """Return a server, which `serve` runs.

    Args:
        served: the model.
        lockstep: both twins.
        check: the ladder's; it ends with the server.
        hosts: names that a Host header may have; None allows all.
    """
    from lmcore.serve.connections import Server
    from parity.serve.app import make_app

    app = make_app(served, lockstep, check, hosts)

    def stop(over: bool) -> None:
        app.state.service.stopping = True
        check.end()

    return Server(server_config(app), stop, GRACE)


async def serve(server: "Server", check: "Check", listener: socket.socket, name: str) -> None:
    """Serve until a signal ends it.

    Args:
        server: from `make_server`.
        check: is started once the server listens, whose signals end it then.
        listener: a bound socket.
        name: of the model, to print.
    """

    def started() -> None:
        print(f"serving both twins of {name} at {url_of(listener)}; Ctrl-C ends", file=sys.stderr, flush=True)
        check.start()

    server.on_started = started
    await server.serve([listener])
